"""One attempt at an exact run: to its end and back to its start, saved on the way and taken up again."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._drivers import index
from ._exact_run import ExactRun
from ._fixed_point import wide
from ._long_run import BACKWARDS, Journal
from ._reversal import Backward, Forward
from ._runner import blank_rows, measure


class Sweep:
    """Forwards, then backwards; what a journal saved of the same attempt is gone on from.

    A position is (attempt, whether on the way back, the step reached, rows of metrics, bytes put away).
    """

    def __init__(self, run: ExactRun, attempt: int, journal: Journal):
        self._run, self._attempt, self._journal = run, attempt, journal
        self._rows: list[PyTree] = []
        self._last: Forward | None = None
        self._carry: Any = run.draft.start() if journal.position is None else None
        self._at = 0
        if journal.position is not None:
            self._restore(*journal.position[1:])

    def _restore(self, back: int, at: int, rows: int, taken: int) -> None:
        run = self._run
        start = run.draft.start()
        with wide():
            template = {
                "carry": untouched(run, start) if back else start,
                "last": start if back else None,
                "rows": blank_rows(run.setup.program, run.draft.weights, rows),
                "lows": run.lows_before(at),
            }
            state = self._journal.restore(template)
            run.store.refill(state["lows"], taken)
        self._carry, self._last, self._rows, self._at = state["carry"], state["last"], state["rows"], at

    def forward(self) -> Forward:
        """The end of the run, which the sweep back uses up."""
        if self._last is not None:
            return self._last
        run, training, carry = self._run, self._run.setup.program.training, self._carry
        self._carry = None
        due = range(0, training.steps, training.every) if training.metrics is not None else range(0)
        for lo, hi in run.pieces(itertools.chain(due, self._journal.stops(training.steps))):
            if lo < self._at:
                continue
            if lo in due:
                self._rows.append(measure(run.setup.program, run.weights(carry, lo), index(lo)))
            with wide():
                carry = run.forward(carry, lo, hi)
            self._passed(hi, f"step {hi:,}", 0, hi, carry)
        self._last = carry
        return carry

    def metrics(self) -> PyTree:
        """The metrics along the way, stacked; `None` where there are none."""
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self._rows) if self._rows else None

    def backward(self, dparams: PyTree, dhyper: PyTree) -> Backward:
        """The start of the run recovered, with the adjoint there, from that of the weights at its end and ∂_λ F."""
        run, steps = self._run, self._run.draft.steps
        with wide():
            if self._carry is not None:
                carry, reached = self._carry, self._at
            else:
                carry, reached = _ended(run, self.forward(), dparams, dhyper), steps
                self._last = self._journal.copied(self._last)
            self._carry = None
            for lo, hi in reversed(run.pieces(iter(self._journal.stops(steps)))):
                if hi > reached:
                    continue
                carry = run.backward(carry, lo, hi)
                self._passed(steps + BACKWARDS * (steps - lo), f"back at step {lo:,}", 1, lo, carry)
        return carry

    def _passed(self, done: int, text: str, back: int, at: int, carry: Any) -> None:
        store = self._run.store
        position = [self._attempt, back, at, len(self._rows), store.bytes]
        state = {"carry": carry, "last": self._last, "rows": self._rows, "lows": store.lows()}
        self._journal.passed(done, text, position, state)


def _ended(run: ExactRun, last: Forward, dparams: PyTree, dhyper: PyTree) -> Backward:
    """What the sweep back starts from. Sweeps use up what they are given: all but the words is a copy of its own."""
    blank = untouched(run, last)
    dweights = run.setup.layout.packing.join(dparams)
    return Backward(
        last.words, jax.tree.map(jnp.copy, dweights), blank.dstates, jax.tree.map(jnp.copy, dhyper), blank.dtables,
        blank.variance,
    )


def untouched(run: ExactRun, last: Forward) -> Backward:
    """The words of the end of the run, and zeros for the adjoint."""
    with wide():
        vectors = run.setup.layout.packing.vectors
        return Backward(
            last.words,
            [jnp.zeros((vector.size,), vector.dtype) for vector in vectors],
            [
                {name: jnp.zeros((vector.size,), vector.dtype) for name in run.setup.layout.rule.states}
                for vector in vectors
            ],
            jax.tree.map(jnp.zeros_like, run.setup.program.hyper),
            {name: jnp.zeros_like(table) for name, table in run.setup.tables.items()},
            jnp.zeros((), jnp.float64),
        )
