"""A run in fixed point before its first step: the units of its words, what is put away when, and where it starts."""

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._objective import described
from .._trees import is_traced
from ._fixed_point import wide
from ._packing import pack
from ._reversal import Forward, Layout, Setup, looks_at_state, start_words
from ._reversible_optimizer import (
    WEIGHTS,
    AbstractReversibleOptimizer,
    Coefficients,
    columns,
    leaf_groups,
    plain,
    rates,
)
from ._scales import Scale, fixed_scale, make_scale
from ._step import Program, movable
from ._training import strong

Pair: TypeAlias = Literal["loop", "isolated", "host", "one"]
"""The forward and the reverse sweep: two compiled loops (with the gradient isolated in both, or not), two host loops,
or host loops that share one compiled gradient, which are exact by construction."""

_start_words = eqx.filter_jit(start_words)


@jax.jit
def on_device(numbers: PyTree) -> PyTree:
    """Numbers as arrays on the device: one program takes a fifth of the time of a transfer each."""
    return numbers


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


class Opened(NamedTuple):
    """What a look at a run finds: the optimizer without its hyperparameters, w_0, whether the way back looks at the
    state of the loss, which groups of weights share all hyperparameters (`chosen`, by name, and the group of every
    leaf), these in columns, and learning rates for each weight."""

    rule: AbstractReversibleOptimizer
    weights: PyTree
    keeps: bool
    chosen: dict[str, list[int]]
    groups: list[int]
    raw: Coefficients
    rates: PyTree | None


@eqx.filter_jit
def _open(program: Program) -> Opened:
    weights, model = _start(program)(program.hyper)
    optimizer = _optimizer(program, program.hyper)
    optimizer.check_reversible()
    chosen, groups = leaf_groups(plain(optimizer), weights)
    raw, for_each = _columns(program, chosen)(program.hyper)
    rule = jax.tree.map(lambda _: None, optimizer)
    return Opened(rule, weights, looks_at_state(program, weights, model), chosen, groups, raw, for_each)


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


def pull_tables(rule: Any, raw: Coefficients, steps: int, dtables: Coefficients) -> Coefficients:
    """The derivatives with respect to the hyperparameters in columns, from those with respect to the tables."""
    return jax.vjp(lambda raw: rule.tables(raw, steps), raw)[1](dtables)[0]


def as_float64(tables: PyTree) -> PyTree:
    """Tables in float64, on the device; call it where 64-bit types are on."""
    return on_device(jax.tree.map(lambda table: np.asarray(table, np.float64), tables))


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
    opened = _open(program)
    rule, weights, chosen = opened.rule, opened.weights, opened.chosen
    bits = rule.fraction_bits()
    with wide():
        tables = _make_tables(rule, as_float64(opened.raw), steps)
        numbers = {name: np.asarray(table) for name, table in tables.items()}
        packing, count = pack(weights, opened.groups, by_leaf=rule.by_leaf), len(next(iter(chosen.values())))
        scales = {name: fixed_scale(count, bits[name]) for name in (WEIGHTS, *rule.states)}
        scales |= {name: make_scale(table, steps, bits[name]) for name, table in rule.factors(numbers).items()}
        increments = rule.increments(numbers, {name: scale.after for name, scale in scales.items()})
        increments, units = as_float64((increments, {name: scale.units for name, scale in scales.items()}))
        setup = Setup(
            program,
            Layout(rule, packing, user_x64, opened.keeps, isolated=False),
            tables,
            increments,
            units,
            None if opened.rates is None else packing.join(opened.rates),
            jnp.asarray(True),
        )
    return Draft(setup, scales, chosen, opened.raw, weights)


def kept_bits(draft: Draft) -> tuple[float, float]:
    """Bits a parameter and step, averaged over the weights: what was put away, and Σ log2(1/γ), what had to be kept."""
    kept, theory, packing = 0.0, 0.0, draft.setup.layout.packing
    for vector in packing.vectors:
        for scale in draft.scales.values():
            kept += vector.size * scale.kept(vector.group)
            theory += vector.size * float(scale.theory[vector.group])
    return kept / (packing.size * draft.steps), theory / (packing.size * draft.steps)
