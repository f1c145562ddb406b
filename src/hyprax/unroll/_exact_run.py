"""One run in fixed point on the host: what it is made of, forwards, backwards, and whether it came back."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._objective import described
from .._trees import is_traced
from ._drivers import index
from ._fixed_point import COARSE_BITS, LIMIT_BITS, Seen, wide
from ._long_run import BACKWARDS, Journal
from ._packing import pack
from ._reversal import (
    Backward,
    Forward,
    Layout,
    Pieces,
    Setup,
    host_step,
    host_step_back,
    looks_at_state,
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
    AbstractReversibleOptimizer,
    Coefficients,
    columns,
    leaf_groups,
    plain,
    rates,
)
from ._runner import blank_rows, measure
from ._scales import Place, Scale, Store, fixed_scale, make_scale
from ._step import Program, movable
from ._training import strong

Pair: TypeAlias = Literal["loop", "isolated", "host", "one"]
"""The forward and the reverse sweep: two compiled loops (with the gradient isolated in both, or not), two host loops,
or host loops that share one compiled gradient, which are exact by construction."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A run before its first step: the setup, the units of its words, and w_0."""

    setup: Setup
    scales: dict[str, Scale]
    chosen: dict[str, list[int]]
    raw: Coefficients
    weights: PyTree

    def start(self) -> Forward:
        """What the forward sweep starts from, made anew: sweeps use it up."""
        with wide():
            return _start_words(self.setup, self.weights)

    @property
    def steps(self) -> int:
        return self.setup.program.training.steps

    def pairs(self, host: bool) -> tuple[Pair, ...]:
        """The pairs to try in turn, the fastest first; one that is seldom exact for this optimiser is left out."""
        if self.setup.layout.rule.pullback_needs_gradient:
            return ("one",) if host else ("isolated", "one")
        return ("host", "one") if host else ("loop", "isolated", "one")


def _optimizer(program: Program, hyper: PyTree) -> AbstractReversibleOptimizer:
    optimizer = program.training.optimizer(hyper)
    if not isinstance(optimizer, AbstractReversibleOptimizer):
        raise ValueError(
            "Reversible: the optimizer must be one that can be undone: hx.unroll.MomentumSGD, Adam, AdamW, Lion or "
            f"Muon; got {described(optimizer)}. For any other use hx.unroll.Checkpointed."
        )
    return optimizer


@eqx.filter_jit
def _open(program: Program) -> tuple[AbstractReversibleOptimizer, PyTree, bool]:
    """The optimiser, w_0, and whether the way back looks at the state of the loss."""
    weights, model = _start(program)(program.hyper)
    return _optimizer(program, program.hyper), weights, looks_at_state(program, weights, model)


@eqx.filter_jit
def _make_columns(program: Program, chosen: dict[str, list[int]]) -> tuple[Coefficients, PyTree | None]:
    """The hyperparameters of the optimiser in columns, and learning rates for each weight."""
    return _columns(program, chosen)(program.hyper)


@eqx.filter_jit
def close(
    program: Program,
    chosen: dict[str, list[int]],
    draw: Coefficients,
    drates: PyTree | None,
    dstart: PyTree,
    dhyper: PyTree,
) -> PyTree:
    """dλ with what acts through the optimiser and through (w_0, m_0)."""
    (through_optimizer,) = jax.vjp(_columns(program, chosen), program.hyper)[1]((draw, drates))
    (through_start,) = jax.vjp(lambda hyper: movable(_start(program)(hyper)), program.hyper)[1](dstart)
    return jax.tree.map(lambda a, b, c: a + b + c, dhyper, through_optimizer, through_start)


def _columns(program: Program, chosen: dict[str, list[int]]) -> Any:
    def made(hyper: PyTree) -> tuple[Coefficients, PyTree | None]:
        optimizer, (weights, _) = _optimizer(program, hyper), _start(program)(hyper)
        return columns(plain(optimizer), chosen, program.training.steps), rates(optimizer, weights)

    return made


def _start(program: Program) -> Any:
    def start(hyper: PyTree) -> tuple[PyTree, PyTree]:
        weights = jax.tree.map(strong, program.training.start(hyper, program.key))
        return weights, jax.tree.map(strong, program.training.model(weights, hyper))

    return start


@eqx.filter_jit
def _make_tables(rule: Any, raw: Coefficients, steps: int) -> Coefficients:
    return rule.tables(raw, steps)


@eqx.filter_jit
def pull_tables(rule: Any, raw: Coefficients, steps: int, dtables: Coefficients) -> Coefficients:
    """The derivatives with respect to the hyperparameters in columns, from those with respect to the tables."""
    return jax.vjp(lambda raw: rule.tables(raw, steps), raw)[1](dtables)[0]


def as_float64(table: Mapping[str, Array | np.ndarray]) -> Coefficients:
    """The tables in float64; call it where 64-bit types are on."""
    return {name: jnp.asarray(np.asarray(value), jnp.float64) for name, value in table.items()}


def draft(program: Program) -> Draft:
    """Look at the run: choose the units of its words, and what is put away when.

    **Raises:** `ValueError` for an optimiser that cannot be undone, or hyperparameters with which it cannot.
    """
    steps, user_x64 = program.training.steps, bool(jax.config.read("jax_enable_x64"))
    if is_traced((program.hyper, program.key)):
        raise ValueError(
            "Reversible: hyper and key must have values, from which a run is planned on the host; got those of a "
            "transformation of JAX. Under jax.jit and jax.vmap use hx.unroll.StoreAll or hx.unroll.Checkpointed."
        )
    optimizer, weights, keeps = _open(program)
    optimizer.check_reversible()
    chosen, groups = leaf_groups(plain(optimizer), weights)
    raw, for_each = _make_columns(program, chosen)
    rule = jax.tree.map(lambda _: None, optimizer)
    bits = rule.fraction_bits()
    with wide():
        tables = _make_tables(rule, as_float64(raw), steps)
        numbers = {name: np.asarray(table) for name, table in tables.items()}
        packing, count = pack(weights, groups, by_leaf=rule.by_leaf), len(next(iter(chosen.values())))
        scales = {name: fixed_scale(count, bits[name]) for name in (WEIGHTS, *rule.states)}
        scales |= {name: make_scale(table, steps, bits[name]) for name, table in rule.factors(numbers).items()}
        setup = Setup(
            program,
            Layout(rule, packing, user_x64, keeps, isolated=False),
            tables,
            as_float64(rule.increments(numbers, {name: scale.after for name, scale in scales.items()})),
            as_float64({name: scale.units for name, scale in scales.items()}),
            None if for_each is None else packing.join(for_each),
            jnp.asarray(True),
        )
    return Draft(setup, scales, chosen, raw, weights)


TOGETHER, LARGE = 8, 1 << 18
"""Pieces in one program, for networks of fewer weights than `LARGE`: for each, a byte a weight is held twice."""


@jax.jit
def _rows(low: Array) -> list[Array]:
    return [low[k] for k in range(low.shape[0])]


@jax.jit
def _stacked(rows: list[Any]) -> Array:
    return jnp.stack(rows)


_start_words = eqx.filter_jit(start_words)
_weights_of = eqx.filter_jit(weights_of)


class ExactRun:
    """A drafted run under one pair of sweeps; use it where 64-bit types are on."""

    def __init__(self, draft: Draft, pair: Pair, place: Place):
        self.draft, self.pair = draft, pair
        self.setup = eqx.tree_at(
            lambda s: s.layout, draft.setup, dataclasses.replace(draft.setup.layout, isolated=pair == "isolated")
        )
        self.store = Store(place)
        self._due: dict[int, list[tuple[int, str, int]]] = {}
        for i, vector in enumerate(self.setup.layout.packing.vectors):
            for name, scale in draft.scales.items():
                for t, bits in scale.shifts[vector.group]:
                    self._due.setdefault(t, []).append((i, name, bits))
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
            cuts |= set([t for t in sorted(self._due) if lo < t < hi][self.together - 1 :: self.together])
        return list(itertools.pairwise(sorted(cuts)))

    def lows_before(self, t: int) -> list[Array]:
        """Zeros in the shapes of what is put away while step t is the next, or was undone last."""
        due = [i for at in sorted(self._due) if at <= t for i, _, bits in self._due[at] if bits > 0]
        vectors = self.setup.layout.packing.vectors
        return [jnp.zeros(vectors[i].shape, jnp.uint8) for i in due]

    def forward(self, carry: Forward, lo: int, hi: int) -> Forward:
        """Steps lo..hi-1, with the shifts that are due before steps lo+1..hi."""
        if self.pair in ("loop", "isolated"):
            ends = self._ends(lo, hi)
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
            ends = self._ends(lo, hi)
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

    def _ends(self, lo: int, hi: int) -> list[int]:
        return [*(t for t in sorted(self._due) if lo < t < hi), hi]

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
        ends, starts = jax.tree.leaves(carry.words), jax.tree.leaves(self.draft.start().words)
        same = all(bool(jnp.array_equal(a, b)) for a, b in zip(ends, starts, strict=True))
        return same and not len(self.store)

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
    names = (WEIGHTS, *draft.setup.layout.rule.states)
    return Ranges(seen.finite, dict(zip(names, seen.bits, strict=False)), dict.fromkeys(names, LIMIT_BITS))


def kept_bits(draft: Draft) -> tuple[float, float]:
    """Bits a parameter and step, averaged over the weights: what was put away, and Σ log2(1/γ), what had to be kept."""
    kept, theory, packing = 0.0, 0.0, draft.setup.layout.packing
    for vector in packing.vectors:
        for scale in draft.scales.values():
            kept += vector.size * scale.kept(vector.group)
            theory += vector.size * float(scale.theory[vector.group])
    return kept / (packing.size * draft.steps), theory / (packing.size * draft.steps)


def headroom(found: Ranges) -> int:
    """The doublings that the fullest format had left."""
    return min(found.limits[name] - max(found.bits[name], COARSE_BITS) for name in found.bits)


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
    blank = untouched(run, last)
    dweights = run.setup.layout.packing.join(dparams)
    return dataclasses.replace(
        blank, **jax.tree.map(jnp.copy, {"dweights": dweights, "dmodel": dmodel, "dhyper": dhyper})
    )


def untouched(run: ExactRun, last: Forward) -> Backward:
    """The words of the end of the run, and zeros for the adjoint."""
    with wide():
        blank = _zeros(run.setup, None if run.setup.layout.keeps else last.model, movable(last.model))
    return dataclasses.replace(blank, words=last.words, kept=last.kept)


@eqx.filter_jit
def _zeros(setup: Setup, model: PyTree, moving: PyTree) -> Backward:
    vectors = setup.layout.packing.vectors
    dmodel, dhyper, dtables, drates, blank = jax.tree.map(
        jnp.zeros_like, (moving, setup.program.hyper, setup.tables, setup.rates, model)
    )
    return Backward(
        [],
        [jnp.zeros(vector.shape, vector.dtype) for vector in vectors],
        [{name: jnp.zeros(vector.shape, vector.dtype) for name in setup.layout.rule.states} for vector in vectors],
        dmodel,
        dhyper,
        dtables,
        drates,
        jnp.zeros((), jnp.float64),
        None,
        blank,
    )
