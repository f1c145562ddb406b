"""One run in fixed point on the host: what it is made of, forwards, backwards, and whether it came back."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._drivers import index
from ._fixed_point import COARSE_BITS, LIMIT_BITS, Seen, wide
from ._packing import pack
from ._rational import Factor, Plan, exact_bits, limit_bits, plan
from ._reversal import (
    Backward,
    Forward,
    Layout,
    Setup,
    host_step,
    host_step_back,
    loop_step,
    loop_step_back,
    one_gradient,
    one_step,
    one_step_back,
    one_undo_weights,
    start_words,
    weights_of,
)
from ._reversible_optimizer import WEIGHTS, AbstractReversibleOptimizer, Coefficients, columns, leaf_groups
from ._spill import Place, Spill
from ._step import Program

Pair: TypeAlias = Literal["loop", "isolated", "host", "one"]
"""The forward and the reverse sweep: two compiled loops (with the gradient isolated in both, or not), two host loops,
or host loops that share one compiled gradient, which are exact by construction."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A run before its first step: the setup, the rationals and the plans of its buffers, and w_0."""

    setup: Setup
    factors: dict[str, Factor]
    plans: dict[str, list[Plan]]
    asked: dict[str, np.ndarray]
    chosen: dict[str, list[int]]
    raw: Coefficients
    used: dict[str, np.ndarray]
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
            f"Reversible: given an optimiser of type {type(optimizer).__name__}, allowed are those that can be undone: "
            "hx.unroll.MomentumSGD, hx.unroll.Adam and hx.unroll.AdamW; for any other use hx.unroll.Checkpointed."
        )
    return optimizer


@eqx.filter_jit
def _open(program: Program) -> tuple[AbstractReversibleOptimizer, PyTree]:
    """The optimiser, and w_0."""
    return _optimizer(program, program.hyper), _start(program)(program.hyper)


@eqx.filter_jit
def _make_columns(program: Program, chosen: dict[str, list[int]]) -> Coefficients:
    """The hyperparameters of the optimiser in columns."""
    return _columns(program, chosen)(program.hyper)


@eqx.filter_jit
def close(
    program: Program, chosen: dict[str, list[int]], draw: Coefficients, dweights: PyTree, dhyper: PyTree
) -> PyTree:
    """dλ with what acts through the optimiser and through w_0."""
    (through_optimizer,) = jax.vjp(_columns(program, chosen), program.hyper)[1](draw)
    (through_start,) = jax.vjp(_start(program), program.hyper)[1](dweights)
    return jax.tree.map(lambda a, b, c: a + b + c, dhyper, through_optimizer, through_start)


def _columns(program: Program, chosen: dict[str, list[int]]) -> Any:
    steps = program.training.steps
    return lambda hyper: columns(_optimizer(program, hyper).hyperparameters(), chosen, steps)


def _start(program: Program) -> Any:
    return lambda hyper: jax.tree.map(jnp.asarray, program.training.start(hyper, program.key))


def _tables(rule: AbstractReversibleOptimizer, raw: Coefficients, used: dict[str, Array], steps: int) -> Coefficients:
    """The tables at the values used, with derivatives that pass straight through the rounding."""
    targets = {name: used[name] + (value - jax.lax.stop_gradient(value)) for name, value in rule.targets(raw).items()}
    return rule.tables(raw, targets, steps)


@eqx.filter_jit
def _make_tables(rule: Any, raw: Coefficients, used: dict[str, Array], steps: int) -> Coefficients:
    return _tables(rule, raw, used, steps)


@eqx.filter_jit
def pull_tables(
    rule: Any, raw: Coefficients, used: dict[str, Array], steps: int, dtables: Coefficients
) -> Coefficients:
    """The derivatives with respect to the hyperparameters in columns, from those with respect to the tables."""
    return jax.vjp(lambda raw: _tables(rule, raw, used, steps), raw)[1](dtables)[0]


def as_float64(table: Mapping[str, Array | np.ndarray]) -> Coefficients:
    """The tables in float64; call it where 64-bit types are on."""
    return {name: jnp.asarray(np.asarray(value), jnp.float64) for name, value in table.items()}


def draft(program: Program) -> Draft:
    """Look at the run: round what is to be rational, plan the buffers, encode w_0.

    **Raises:** `ValueError` for an optimiser that cannot be undone, or hyperparameters with which it cannot.
    """
    steps, user_x64 = program.training.steps, bool(jax.config.read("jax_enable_x64"))
    optimizer, weights = _open(program)
    optimizer.check_reversible()
    chosen, groups = leaf_groups(optimizer.hyperparameters(), weights)
    raw = _make_columns(program, chosen)
    rule = jax.tree.map(lambda _: None, optimizer)
    with wide():
        wider = as_float64(raw)
        asked = {name: np.asarray(value) for name, value in rule.targets(wider).items()}
        factors = rule.rationals(asked)
        used = {name: rule.represented(name, factor) for name, factor in factors.items()}
        layout = Layout(
            rule,
            pack(weights, groups),
            tuple((name, factor.shift) for name, factor in factors.items()),
            user_x64,
            isolated=False,
        )
        tables = _make_tables(rule, wider, as_float64(used), steps)
        pairs = {name: (jnp.asarray(f.n), jnp.asarray(f.d)) for name, f in factors.items()}
        setup = Setup(program, layout, tables, pairs, jnp.asarray(True))
    plans = {name: [plan(f.n[:, g], f.d[:, g], steps) for g in range(f.n.shape[1])] for name, f in factors.items()}
    return Draft(setup, factors, plans, asked, chosen, raw, used, weights)


_start_words = eqx.filter_jit(start_words)
_weights_of = eqx.filter_jit(weights_of)


class ExactRun:
    """A drafted run under one pair of sweeps; use it where 64-bit types are on."""

    def __init__(self, draft: Draft, pair: Pair, place: Place):
        self.draft, self.pair = draft, pair
        self.setup = eqx.tree_at(
            lambda s: s.layout, draft.setup, dataclasses.replace(draft.setup.layout, isolated=pair == "isolated")
        )
        self.spill = Spill(place)
        self._due: dict[int, list[tuple[int, str]]] = {}
        for i, vector in enumerate(self.setup.layout.packing.vectors):
            for name, plans in draft.plans.items():
                for t in plans[vector.group].steps:
                    self._due.setdefault(t, []).append((i, name))

    def pieces(self, stops: Iterator[int]) -> list[tuple[int, int]]:
        """The steps, cut where words are due and at other stops."""
        cuts = sorted({0, self.draft.steps, *self._due, *stops})
        return list(itertools.pairwise(cuts))

    def words_before(self, t: int) -> list[Array]:
        """Zeros in the shapes of the words that are put away while step t is the next, or was undone last."""
        due = [i for at in sorted(self._due) if at < t for i, _ in self._due[at]]
        vectors = self.setup.layout.packing.vectors
        return [jnp.zeros((vectors[i].size,), jnp.uint32) for i in due]

    def forward(self, carry: Forward, lo: int, hi: int) -> Forward:
        """Steps lo..hi-1, with the words that are due before step lo put away."""
        for i, name in self._due.get(lo, ()):
            carry = eqx.tree_at(lambda c, i=i, name=name: c.words[i].buffers[name], carry, replace_fn=self.spill.take)
        if self.pair in ("loop", "isolated"):
            return loop_step((self.setup, index(lo), index(hi)), carry)
        for t in range(lo, hi):
            carry = self._step(carry, index(t))
        return carry

    def backward(self, carry: Backward, lo: int, hi: int) -> Backward:
        """Steps hi-1..lo undone, and the words put back that were put away before step lo."""
        if self.pair in ("loop", "isolated"):
            carry = loop_step_back((self.setup, index(lo), index(hi)), carry)
        else:
            for t in reversed(range(lo, hi)):
                carry = self._step_back(carry, index(t))
        for i, name in reversed(self._due.get(lo, ())):
            carry = eqx.tree_at(lambda c, i=i, name=name: c.words[i].buffers[name], carry, replace_fn=self.spill.put)
        return carry

    def _step(self, carry: Forward, t: Array) -> Forward:
        if self.pair == "host":
            return host_step((self.setup, t), carry)
        return one_step(self.setup, carry, t, one_gradient(self.setup, carry.words, t))

    def _step_back(self, carry: Backward, t: Array) -> Backward:
        if self.pair == "host":
            return host_step_back((self.setup, t), carry)
        words = one_undo_weights(self.setup, carry.words, t)
        return one_step_back(self.setup, carry, words, t, one_gradient(self.setup, words, t))

    def returned(self, carry: Backward) -> bool:
        """Whether every weight, state and buffer is that of the start, as integers, and no stored word is left."""
        ends, starts = jax.tree.leaves(carry.words), jax.tree.leaves(self.draft.start().words)
        same = all(bool(jnp.array_equal(a, b)) for a, b in zip(ends, starts, strict=True))
        return same and not len(self.spill)

    def weights(self, carry: Forward) -> PyTree:
        """The weights in the user's dtypes."""
        with wide():
            return _weights_of(self.setup.layout, carry.words)


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
    limits = dict.fromkeys(names, LIMIT_BITS)
    for name, factor in draft.factors.items():
        limits[name] = limit_bits(factor.n, factor.d)
    return Ranges(seen.finite, dict(zip(names, seen.bits, strict=False)), limits)


def kept_bits(draft: Draft) -> tuple[float, float]:
    """Bits a parameter and step, averaged over the weights: what was kept, and Σ log2(1/γ), what had to be."""
    kept, theory, packing = 0.0, 0.0, draft.setup.layout.packing
    for vector in packing.vectors:
        for name, factor in draft.factors.items():
            kept += vector.size * draft.plans[name][vector.group].bits
            pair = factor.n[:, vector.group], factor.d[:, vector.group]
            theory += vector.size * exact_bits(*pair, draft.steps)
    return kept / (packing.size * draft.steps), theory / (packing.size * draft.steps)


def headroom(found: Ranges) -> int:
    """The doublings that the fullest format had left."""
    return min(found.limits[name] - max(found.bits[name], COARSE_BITS) for name in found.bits)


def largest_change(draft: Draft) -> dict[str, float]:
    """By name, how far the rationals used are from what was asked for."""
    return {
        name: float(np.max(np.abs(draft.used[name] - draft.asked[name]))) if draft.used[name].size else math.nan
        for name in draft.used
    }
