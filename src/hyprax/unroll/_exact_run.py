"""One run in fixed point on the host: forwards, backwards, and whether it came back."""

import dataclasses
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._draft import Draft, Pair
from ._drivers import index
from ._fixed_point import LIMB_BITS, LIMIT_BITS, Seen, wide
from ._long_run import BACKWARDS, Journal
from ._reversal import (
    Backward,
    Forward,
    Pieces,
    Setup,
    host_step,
    host_step_back,
    loop_pieces,
    loop_pieces_back,
    model_before,
    one_gradient,
    one_step,
    one_step_back,
    one_undo_weights,
    start_words,
    weights_of,
)
from ._reversible_optimizer import (
    WEIGHTS,
)
from ._runner import blank_rows, measure
from ._scales import Place, Store
from ._step import movable

TOGETHER, LARGE = 8, 1 << 18
"""Pieces in one program, for networks of fewer weights than `LARGE`: for each, a byte a weight is held twice."""


@jax.jit
def _rows(low: Array) -> list[Array]:
    return [low[k] for k in range(low.shape[0])]


@jax.jit
def _stacked(rows: list[Any]) -> Array:
    return jnp.stack(rows)


_weights_of = eqx.filter_jit(weights_of)


def isolated(setup: Setup) -> Setup:
    """The setup whose gradient stands apart, as a branch of its own."""
    return dataclasses.replace(setup, layout=dataclasses.replace(setup.layout, isolated=True))


class ExactRun:
    """A drafted run under one pair of sweeps; use it where 64-bit types are on."""

    def __init__(self, draft: Draft, pair: Pair, place: Place):
        self.draft, self.pair = draft, pair
        self.setup = draft.setup if pair != "isolated" else isolated(draft.setup)
        self.store = Store(place)
        self._due: dict[int, list[tuple[int, str, int]]] = {}
        for i, vector in enumerate(self.setup.layout.packing.vectors):
            for name, scale in draft.scales.items():
                for t, bits in scale.shifts[vector.group]:
                    self._due.setdefault(t, []).append((i, name, bits))
        self._times = sorted(self._due)
        self._which = tuple(sorted({(i, name) for due in self._due.values() for i, name, _ in due}))

    @property
    def together(self) -> int:
        """How many pieces between shifts are one program. Its start takes as long as some steps of a small network."""
        return TOGETHER if self.setup.layout.packing.size < LARGE and self.pair in ("loop", "isolated") else 1

    @property
    def lows_bytes(self) -> int:
        """What is put away in one program, at most, which is held twice for a moment."""
        return sum(self.together * self.setup.layout.packing.vectors[i].size for i, _ in self._which)

    def pieces(self, stops: Iterator[int]) -> list[tuple[int, int]]:
        """The steps, cut at stops, and so often that no words are due within more than `together` pieces."""
        bounds = sorted({0, self.draft.steps, *stops})
        cuts = set(bounds)
        for lo, hi in itertools.pairwise(bounds):
            cuts |= set(self._between(lo, hi)[self.together - 1 :: self.together])
        return list(itertools.pairwise(sorted(cuts)))

    def lows_before(self, t: int) -> list[Array]:
        """Zeros in the shapes of what is put away while step t is the next, or was undone last."""
        due = [i for at in self._times if at <= t for i, _, bits in self._due[at] if bits > 0]
        vectors = self.setup.layout.packing.vectors
        return [jnp.zeros(vectors[i].shape, jnp.uint8) for i in due]

    def forward(self, carry: Forward, lo: int, hi: int) -> Forward:
        """Steps lo..hi-1, with the shifts that are due before steps lo+1..hi."""
        if self.pair in ("loop", "isolated"):
            ends = [*self._between(lo, hi), hi]
            carry, lows = loop_pieces((self.setup, self._pieces(lo, ends, [])), carry)
            rows = [_rows(low) for low in lows]
            for k, end in enumerate(ends):
                for i, name, bits in self._due.get(end, ()):
                    if bits > 0:
                        self.store.put(rows[self._which.index((i, name))][k])
            return carry
        for t in range(lo, hi):
            carry = self._step(carry, index(t))
        for i, name, bits in self._due.get(hi, ()):
            carry.words[i][name] = self.store.shift(carry.words[i][name], bits)
        return carry

    def backward(self, carry: Backward, lo: int, hi: int) -> Backward:
        """Those shifts and steps undone."""
        if self.pair in ("loop", "isolated"):
            ends = [*self._between(lo, hi), hi]
            vectors = self.setup.layout.packing.vectors
            rows: list[list[Any]] = [[np.zeros(vectors[i].shape, np.uint8)] * self.together for i, _ in self._which]
            for k, end in reversed(list(enumerate(ends))):
                for i, name, bits in reversed(self._due.get(end, ())):
                    if bits > 0:
                        rows[self._which.index((i, name))][k] = self.store.take()
            return loop_pieces_back((self.setup, self._pieces(lo, ends, [_stacked(row) for row in rows])), carry)
        for i, name, bits in reversed(self._due.get(hi, ())):
            carry.words[i][name] = self.store.unshift(carry.words[i][name], bits)
        for t in reversed(range(lo, hi)):
            carry = self._step_back(carry, index(t))
        return carry

    def _between(self, lo: int, hi: int) -> list[int]:
        """The steps before which words are due, lo < t < hi."""
        return self._times[bisect_right(self._times, lo) : bisect_left(self._times, hi)]

    def _pieces(self, lo: int, ends: list[int], lows: list[Array]) -> Pieces:
        """So many as are made together, the last ones without steps."""
        bits = np.zeros((self.together, len(self._which)), np.int64)
        for k, end in enumerate(ends):
            for i, name, by in self._due.get(end, ()):
                bits[k, self._which.index((i, name))] = by
        ends = ends + [ends[-1]] * (self.together - len(ends))
        return Pieces(self._which, index(lo), np.asarray(ends, np.int32), bits, lows)

    def _step(self, carry: Forward, t: Any) -> Forward:
        if self.pair == "host":
            return host_step((self.setup, t), carry)
        return one_step((self.setup, t, *one_gradient(self.setup, carry.words, carry.model, t)), carry)

    def _step_back(self, carry: Backward, t: Any) -> Backward:
        if self.pair == "host":
            return host_step_back((self.setup, t), carry)
        words = one_undo_weights(self.setup, carry.words, t)
        gradients, _ = one_gradient(self.setup, words, model_before(carry, t), t)
        return one_step_back(self.setup, carry, words, t, gradients)

    def returned(self, carry: Backward) -> bool:
        """Whether every weight and state is that of the start, as integers, and nothing that was put away is left."""
        return bool(_are_start(self.draft.setup, self.draft.weights, carry.words)) and not len(self.store)

    def weights(self, carry: Forward, t: int) -> PyTree:
        """The weights before step t in the user's dtypes."""
        with wide():
            return _weights_of(self.setup, carry.words, index(t))


@dataclasses.dataclass(frozen=True)
class Ranges:
    """How much of the range of its format each kind of number took."""

    finite: bool
    bits: dict[str, int]
    limits: dict[str, int]

    @property
    def fits(self) -> bool:
        return all(self.bits[name] <= self.limits[name] for name in self.bits)


def ranges(draft: Draft, carry: Forward) -> Ranges:
    """What the watch saw: log2 of the largest magnitude, in units of the last place, beside what is allowed."""
    seen = Seen([np.asarray(word) for word in carry.seen])
    limits = {WEIGHTS: LIMIT_BITS}
    limits |= {name: limbs * LIMB_BITS for name, limbs in draft.setup.layout.rule.states.items()}
    bits = {name: limits[name] - LIMIT_BITS + found for name, found in zip(limits, seen.bits, strict=False)}
    return Ranges(seen.finite, bits, limits)


def headroom(found: Ranges) -> int:
    """The doublings that the fullest format had left."""
    return min(found.limits[name] - found.bits[name] for name in found.bits)


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
                "rows": blank_rows(run.setup.program, run.draft.weights, start.model, rows),
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
                self._rows.append(measure(run.setup.program, run.weights(carry, lo), carry.model, index(lo)))
            with wide():
                carry = run.forward(carry, lo, hi)
            self._passed(hi, f"step {hi:,}", 0, hi, carry)
        self._last = carry
        return carry

    def metrics(self) -> PyTree:
        """The metrics along the way, stacked; `None` where there are none."""
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self._rows) if self._rows else None

    def backward(self, dparams: PyTree, dmodel: PyTree, dhyper: PyTree) -> Backward:
        """The start of the run recovered, with the adjoint there, from ∇_w F, ∇_m F and ∂_λ F at its end."""
        run, steps = self._run, self._run.draft.steps
        with wide():
            if self._carry is not None:
                carry, reached = self._carry, self._at
            else:
                carry, reached = _ended(run, self.forward(), dparams, dmodel, dhyper), steps
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


def _ended(run: ExactRun, last: Forward, dparams: PyTree, dmodel: PyTree, dhyper: PyTree) -> Backward:
    """What the sweep back starts from. Sweeps use up what they are given: all but the words is a copy of its own."""
    return _before_the_end(run, last, (dparams, dmodel, dhyper))


def untouched(run: ExactRun, last: Forward) -> Backward:
    """The words of the end of the run, and zeros for the adjoint."""
    return _before_the_end(run, last, None)


def _before_the_end(run: ExactRun, last: Forward, adjoint: tuple[PyTree, PyTree, PyTree] | None) -> Backward:
    with wide():
        here = [words[WEIGHTS] for words in last.words]
        blank = _zeros(run.setup, here, None if run.setup.layout.keeps else last.model, movable(last.model), adjoint)
    return dataclasses.replace(blank, words=last.words, kept=last.kept)


@eqx.filter_jit
def _are_start(setup: Setup, weights: PyTree, words: PyTree) -> Array:
    """Whether the words are those that a run starts from."""
    ends, starts = jax.tree.leaves(words), jax.tree.leaves(start_words(setup, weights).words)
    return jnp.all(jnp.stack([jnp.array_equal(a, b) for a, b in zip(ends, starts, strict=True)]))


@eqx.filter_jit
def _zeros(
    setup: Setup, words: list[Array], model: PyTree, moving: PyTree, adjoint: tuple[PyTree, PyTree, PyTree] | None
) -> Backward:
    """Zeros for what the way back adds up; the adjoint of the end where it is given."""
    zeros = [
        jnp.zeros_like(word, vector.dtype) for word, vector in zip(words, setup.layout.packing.vectors, strict=True)
    ]
    dmodel, dhyper, dtables, drates, blank = jax.tree.map(
        jnp.zeros_like, (moving, setup.program.hyper, setup.tables, setup.rates, model)
    )
    dweights = zeros
    if adjoint is not None:
        dweights, dmodel, dhyper = jax.tree.map(jnp.copy, (setup.layout.packing.join(adjoint[0]), *adjoint[1:]))
    return Backward(
        [],
        dweights,
        [dict.fromkeys(setup.layout.rule.states, zero) for zero in zeros],
        dmodel,
        dhyper,
        dtables,
        drates,
        jnp.zeros((), jnp.float64),
        jnp.zeros(4, jnp.float64),
        None,
        blank,
    )
