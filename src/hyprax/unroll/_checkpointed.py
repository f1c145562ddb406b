"""Some states of the run kept and the others made again, by the binomial schedule."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._drivers import DriverName, check_driver
from ._long_run import BACKWARDS, Journal, LongRun
from ._mode import AbstractMode, Outer, UnrollReport, rounding_only
from ._runner import Runner, blank_rows, run_value
from ._training import Training


class Plan(eqx.Module):
    """`segments` of `length` steps (the last may be shorter), of whose starts at most `slots` are kept at once.

    - `recomputed`: the steps that are made again, beyond the first sweep.
    """

    length: int
    segments: int
    slots: int
    recomputed: int

    @property
    def states(self) -> int:
        """The states (w, s) kept at once: starts of segments, and the steps of one segment."""
        return self.slots + self.length


def reach(slots: int, repeats: int) -> int:
    """C(slots + repeats, slots): the most segments reversed with that many slots, each made at most so often again."""
    return math.comb(slots + repeats, slots)


def _repeats(n: int, slots: int) -> int:
    """The least r with reach(slots, r) >= n."""
    high = 1
    while reach(slots, high) < n:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reach(slots, middle) >= n else (middle, high)
    return high


def fewest_advances(n: int, slots: int) -> int:
    """r n - C(slots + r, slots + 1), r the least with C(slots + r, slots) >= n: segments advanced to reverse n.

    The start of the first segment takes one of the slots (Griewank and Walther, ACM TOMS 26, 2000, algorithm 799). It
    satisfies p(n, s) = min_k k + p(n - k, s - 1) + p(k, s), p(1, s) = 0.
    """
    if n == 1:
        return 0
    r = _repeats(n, slots)
    return r * n - reach(slots + 1, r - 1)


def split(n: int, slots: int) -> int:
    """A k at which that minimum is attained, for n >= 2 and slots >= 2."""
    r = _repeats(n, slots)
    return max(1, reach(slots, r - 2) if r >= 2 else 1, n - reach(slots - 1, r))


def make_plan(steps: int, states: int | None) -> Plan:
    """The fastest plan that keeps at most so many states at once; about 2 sqrt(T) of them for `None`.

    The states are shared between the starts of segments, s, and the steps of one segment, m, so that the steps made
    again, m p(n, s) with n = T/m, are fewest.
    """
    if states is None:
        states = 2 * math.isqrt(steps - 1) + 2
    lengths = np.unique(np.geomspace(1, max(1, min(steps, states - 1)), 400).round().astype(int)).tolist()
    plans = []
    for length in lengths:
        segments = -(-steps // length)
        slots = min(states - length, segments)
        plans.append(Plan(length, segments, slots, length * fewest_advances(segments, slots)))
    return min(plans, key=lambda plan: (plan.recomputed, plan.states))


def schedule(segments: int, slots: int) -> Iterator[tuple[str, int, int]]:
    """The moves that reverse all segments: ("advance", a, b), ("keep", b, b) and ("reverse", a, b).

    An advance goes on from where the last move ended if that was an advance or a keep, and else from the last start
    kept, which is then at a; a reverse takes the segment that begins where the last advance ended, and drops its start.
    """
    kept, end = [0], segments
    while end > 0:
        at = kept[-1]
        while end - at > 1:
            free = slots - len(kept)
            to = at + split(end - at, free + 1) if free > 0 else end - 1
            yield "advance", at, to
            if free > 0:
                kept.append(to)
                yield "keep", to, to
            at = to
        yield "reverse", at, end
        end = at
        if kept and kept[-1] == end:
            kept.pop()


class End(eqx.Module):
    """What the end of the run gave, the last carry, F and its adjoint, and how far back the adjoint and dλ are."""

    carry: PyTree
    value: Float[Array, ""]
    last: PyTree
    adjoint: PyTree
    dhyper: PyTree


def _ending(runner: Runner, carry: PyTree) -> End:
    value, last, dhyper = runner.end(carry)
    return End(carry, value, last, last, dhyper)


class Checkpointed(AbstractMode):
    """Reverse mode with N states kept at once and the others made again from them, by the binomial schedule.

    Memory N S P + A: S P the words of weights and optimiser state, A the activations of one step. With N = 2 sqrt(T),
    the default, every step is made once more, and the time is T (2 c + h), c a gradient and h the gradient and
    second-order product together, about 2 c. With fewer, T <= C(s + r, s) steps need s states and r repetitions. Exact
    in exact arithmetic.

    **Arguments:**

    - `states`: N >= 2, the most states kept at once.
    - `memory`: instead, their size in bytes.
    - `driver`: `"loop"` for compiled loops, `"host"` for loops on the host, `"auto"` to choose.
    - `long`: for hours, a [`hyprax.unroll.LongRun`][]: a bar, stopping and going on.

    **Raises:** `ValueError` for both `states` and `memory`, fewer than 2 states, or a memory that does not hold 2.

    Source: A. Griewank and A. Walther, *Algorithm 799: revolve*, ACM TOMS 26, 2000.
    """

    states: int | None = eqx.field(static=True, default=None)
    memory: int | None = eqx.field(static=True, default=None)
    driver: DriverName = eqx.field(static=True, default="auto")
    long: LongRun | None = eqx.field(default=None, metadata={"bits": False})

    citations: ClassVar[tuple[str, ...]] = (
        """@article{griewank2000revolve,
  title={Algorithm 799: revolve: an implementation of checkpointing for the reverse or adjoint mode of computational
    differentiation},
  author={Griewank, Andreas and Walther, Andrea},
  journal={ACM Transactions on Mathematical Software},
  volume={26},
  number={1},
  pages={19--45},
  year={2000}
}""",
    )

    def __check_init__(self) -> None:
        check_driver("Checkpointed", self.driver)
        if self.states is not None and self.memory is not None:
            raise ValueError("Checkpointed: only one of states and memory may be given; got both.")
        if self.states is not None and self.states < 2:
            raise ValueError(f"Checkpointed: states must be an integer >= 2; got {self.states}.")

    def plan(self, steps: int, state_bytes: int) -> Plan:
        """The plan for a run of so many steps whose weights and optimiser state take so many bytes.

        **Raises:** `ValueError` for a memory that does not hold two states.
        """
        if self.memory is None:
            return make_plan(steps, self.states)
        if self.memory < 2 * state_bytes:
            raise ValueError(
                f"Checkpointed: memory must be at least {2 * state_bytes} bytes, two states of weights and optimizer; "
                f"got {self.memory}."
            )
        return make_plan(steps, self.memory // max(state_bytes, 1))

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        runner = Runner(training, outer, hyper, key, self.driver)
        carry = start = runner.start()
        plan = self.plan(training.steps, tree_bytes(carry))
        moves = list(schedule(plan.segments, plan.slots))
        kept: dict[int, PyTree] = {0: carry}
        ended: End | None = None
        begun = done = 0
        work = plan.recomputed + (1 + BACKWARDS) * training.steps
        same = (training, training.steps, "Checkpointed")
        with Journal(self.long, same, (runner.program, plan), work) as journal:
            if (position := journal.position) is not None:
                begun, done, is_ended, *counts = position[:7]
                template = {
                    "carry": carry,
                    "kept": [carry] * len(position[7:]),
                    "ended": _ending(runner, carry) if is_ended else None,
                    "rows": blank_rows(runner.program, start[0], start[2], counts[-1]),
                }
                state = journal.restore(template)
                carry, ended = state["carry"], state["ended"]
                kept = dict(zip(position[7:], state["kept"], strict=True))
                runner.restore(counts, state["rows"])
            store = runner.driver.empty(start, plan.length)
            for number, (move, a, b) in enumerate(moves[begun:], begun + 1):
                lo, hi = a * plan.length, min(b * plan.length, training.steps)
                if move == "advance":
                    carry = runner.advance(kept.get(a, carry), lo, hi)
                    done += hi - lo
                elif move == "keep":
                    kept[b] = carry
                else:
                    store, carry = runner.record(store, kept.pop(a, carry), lo, hi)
                    if ended is None:
                        ended = _ending(runner, carry)
                    adjoint, dhyper = runner.reverse(store, lo, hi, ended.adjoint, ended.dhyper)
                    ended = dataclasses.replace(ended, adjoint=adjoint, dhyper=dhyper)
                    done += (1 + BACKWARDS) * (hi - lo)
                journal.passed(
                    done,
                    f"back at step {lo:,}" if move == "reverse" else f"step {hi:,}",
                    [number, done, int(ended is not None), *runner.position(), *kept],
                    {"carry": carry, "kept": list(kept.values()), "ended": ended, "rows": runner.rows()},
                )
        assert ended is not None
        grads = runner.chain(ended.adjoint, ended.dhyper)
        stats = runner.with_adjoint(ended.adjoint, ended.last)
        report = runner.report(ended.carry, rounding_only(ended.value.dtype), ended.value, grads, stats)
        return ended.value, grads, report

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], UnrollReport]:
        return run_value(training, outer, hyper, key, self.driver)


def tree_bytes(tree: Any) -> int:
    """The bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
