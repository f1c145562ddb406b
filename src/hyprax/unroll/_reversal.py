"""One step of a training run in fixed point, made and undone, and the adjoint that is carried through what is undone.

The step and the notation are those of `_step`: given the gradient g, the words move by integer operations that have an
exact inverse (`_reversible_optimizer`). So a run can be undone if and only if g comes back bit for bit.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._fixed_point import as_user, decode, encode, watch
from ._packing import Packing
from ._reversible_optimizer import WEIGHTS, AbstractReversibleOptimizer, Coefficients, StepFactors, Words
from ._step import Program, add


class Layout(eqx.Module):
    """What is fixed about a run in fixed point: the rule of the optimiser (without hyperparameters), the packing."""

    rule: AbstractReversibleOptimizer
    packing: Packing = eqx.field(static=True)
    shifts: tuple[tuple[str, int | None], ...] = eqx.field(static=True)
    user_x64: bool = eqx.field(static=True)
    isolated: bool = eqx.field(static=True)


class Setup(eqx.Module):
    """All that a step depends on but t: tables of coefficients (float64) and pairs n, d (int64), (rows, groups).

    `always` is true, and no constant: see `user_gradient`.
    """

    program: Program
    layout: Layout
    tables: dict[str, Array]
    pairs: dict[str, tuple[Array, Array]]
    always: Array


class Forward(eqx.Module):
    """The words of every vector, and what the watch saw of it."""

    words: list[Words]
    seen: list[Array]


class Backward(eqx.Module):
    """The words of every vector; the adjoint of its weights and states; dλ and the derivatives of the tables so far."""

    words: list[Words]
    dweights: list[Array]
    dstates: list[dict[str, Array]]
    dhyper: PyTree
    dtables: dict[str, Array]


def start_words(setup: Setup, weights: PyTree) -> Forward:
    """The words of w_0 and of states 0, with empty buffers."""
    bits = setup.layout.rule.fraction_bits()
    words, seen = [], []
    for vector in setup.layout.packing.join(weights):
        word, zero = encode(vector, bits[WEIGHTS]), jnp.zeros(vector.shape, jnp.int64)
        words.append(
            Words(
                {WEIGHTS: word, **dict.fromkeys(setup.layout.rule.states, zero)},
                dict.fromkeys(setup.pairs, zero),
            )
        )
        seen.append(watch(zero, [[word]], vector))
    return Forward(words, seen)


def weights_of(layout: Layout, words: list[Words]) -> PyTree:
    """The weights in the user's dtypes."""
    bits, packing = layout.rule.fraction_bits()[WEIGHTS], layout.packing
    return packing.split(
        [decode(w.values[WEIGHTS], bits, vector.dtype) for w, vector in zip(words, packing.vectors, strict=True)]
    )


def user_gradient(setup: Setup, words: list[Words], t: Array) -> list[Array]:
    """g_t, a list of vectors.

    Isolated, it is one branch of a conditional, which compilers do not fuse with what stands around it: so the last
    bits of g, which depend on the operations that it is fused with, are the same in both sweeps.
    """
    grad = as_user(setup.layout.user_x64, Program.gradient)
    weights = weights_of(setup.layout, words)
    if setup.layout.isolated:
        grads = jax.lax.cond(
            setup.always,
            lambda weights, t: grad(setup.program, weights, t),
            lambda weights, t: jax.tree.map(jnp.zeros_like, weights),
            weights,
            t,
        )
    else:
        grads = grad(setup.program, weights, t)
    return setup.layout.packing.join(grads)


def gradient_along(program: Program, params: PyTree, t: Any, direction: PyTree) -> tuple[PyTree, tuple[PyTree, PyTree]]:
    """g_t, and (H p, Mᵀ p) for a direction p that is known before it: nothing is kept between them."""
    (grads, _), products = jax.jvp(lambda params: program.gradients(params, t), (params,), (direction,))
    return grads, products


def _row(table: Array, t: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(table, t if table.shape[0] > 1 else jnp.zeros_like(t), keepdims=False)


def at(setup: Setup, t: Array) -> list[tuple[Coefficients, StepFactors]]:
    """The coefficients and factors of step t, for every vector."""
    rows = {name: _row(table, t) for name, table in setup.tables.items()}
    pairs = {name: (_row(n, t), _row(d, t)) for name, (n, d) in setup.pairs.items()}
    return [
        (
            {name: row[vector.group] for name, row in rows.items()},
            StepFactors(
                {name: (n[vector.group], d[vector.group]) for name, (n, d) in pairs.items()}, setup.layout.shifts
            ),
        )
        for vector in setup.layout.packing.vectors
    ]


def step(setup: Setup, carry: Forward, t: Array) -> Forward:
    """The words after step t."""
    return step_given(setup, carry, t, user_gradient(setup, carry.words, t))


def step_given(setup: Setup, carry: Forward, t: Array, gradients: list[Array]) -> Forward:
    """The words after step t, from its gradient."""
    rule = setup.layout.rule
    words, seen = [], []
    for leaf, before, g, (c, factors) in zip(carry.words, carry.seen, gradients, at(setup, t), strict=True):
        after, added = rule.forward(c, factors, g, leaf)
        watched = [[after.values[name], *added.get(name, [])] for name in (WEIGHTS, *rule.states)]
        words.append(after)
        seen.append(watch(before, watched, g))
    return Forward(words, seen)


def undo_weights(setup: Setup, words: list[Words], t: Array) -> list[Words]:
    """The weights as before step t, the states as after it."""
    rule = setup.layout.rule
    return [rule.undo_weights(c, f, leaf) for leaf, (c, f) in zip(words, at(setup, t), strict=True)]


def step_back(setup: Setup, carry: Backward, t: Array) -> Backward:
    """Words and adjoint before step t, with the gradient and the second-order product from one pass."""
    layout = setup.layout
    words = undo_weights(setup, carry.words, t)
    weights = weights_of(layout, words)
    if layout.rule.pullback_needs_gradient or layout.isolated:
        return step_back_given(setup, carry, words, t, user_gradient(setup, words, t))
    direction = layout.packing.split(_directions(setup, carry, t))
    along = as_user(layout.user_x64, gradient_along)
    grads, products = along(setup.program, weights, t, direction)
    return _finish(setup, carry, words, t, layout.packing.join(grads), lambda _: products)


def step_back_given(setup: Setup, carry: Backward, words: list[Words], t: Array, gradients: list[Array]) -> Backward:
    """As `step_back`, from the words with weights undone and the gradient there; the product is made anew."""
    weights = weights_of(setup.layout, words)

    def product(direction: PyTree) -> tuple[PyTree, PyTree]:
        return as_user(setup.layout.user_x64, gradient_along)(setup.program, weights, t, direction)[1]

    return _finish(setup, carry, words, t, gradients, product)


def _pull(setup: Setup, c: Coefficients, g: Array, states: dict[str, Array], weights: Array) -> Any:
    """The transposed derivative of the step of one vector with respect to (c, g, states, weights)."""
    scalars = {name: value.astype(weights.dtype) for name, value in c.items()}
    return jax.vjp(setup.layout.rule.apply, scalars, g, states, weights)[1]


def _directions(setup: Setup, carry: Backward, t: Array) -> list[Array]:
    """p = (∂U/∂g)ᵀ (adjoint), where that depends on no gradient and no state: zeros stand in for them."""
    made = []
    for i, (c, _) in enumerate(at(setup, t)):
        zero = jnp.zeros_like(carry.dweights[i])
        states = dict.fromkeys(carry.dstates[i], zero)
        made.append(_pull(setup, c, zero, states, zero)((carry.dstates[i], carry.dweights[i]))[1])
    return made


def _finish(
    setup: Setup, carry: Backward, words: list[Words], t: Array, gradients: list[Array], product: Any
) -> Backward:
    """States undone, and the adjoint pulled back through the step at what was recovered."""
    layout, rule, bits = setup.layout, setup.layout.rule, setup.layout.rule.fraction_bits()
    before, directions, dweights, dstates = [], [], [], []
    rows = {name: jnp.zeros((table.shape[1],), table.dtype) for name, table in setup.tables.items()}
    for i, ((c, factors), vector) in enumerate(zip(at(setup, t), layout.packing.vectors, strict=True)):
        leaf, g, dtype = rule.undo_states(c, factors, gradients[i], words[i]), gradients[i], vector.dtype
        states = {name: decode(leaf.values[name], bits[name], dtype) for name in rule.states}
        here = decode(leaf.values[WEIGHTS], bits[WEIGHTS], dtype)
        dc, dg, ds, dw = _pull(setup, c, g, states, here)((carry.dstates[i], carry.dweights[i]))
        for name in rows:
            rows[name] = rows[name].at[vector.group].add(dc[name].astype(rows[name].dtype))
        before.append(leaf)
        directions.append(dg)
        dweights.append(dw)
        dstates.append(ds)
    curved, mixed = product(layout.packing.split(directions))
    return Backward(
        before,
        [a + b for a, b in zip(dweights, layout.packing.join(curved), strict=True)],
        dstates,
        add(carry.dhyper, mixed),
        {name: _add_row(carry.dtables[name], rows[name], t) for name in rows},
    )


def _add_row(table: Array, row: Array, t: Array) -> Array:
    if table.shape[0] == 1:
        return table + row[None]
    return jax.lax.dynamic_update_index_in_dim(table, row, t, 0)


@eqx.filter_jit(donate="all-except-first")
def loop_step(inputs: tuple[Setup, Array, Array], carry: Forward) -> Forward:
    """Steps lo..hi-1 in one loop, for (setup, lo, hi). The carry is used up."""
    setup, lo, hi = inputs
    return jax.lax.fori_loop(lo, hi, lambda t, carry: step(setup, carry, t), carry)


@eqx.filter_jit(donate="all-except-first")
def loop_step_back(inputs: tuple[Setup, Array, Array], carry: Backward) -> Backward:
    """Steps hi-1..lo undone in one loop, for (setup, lo, hi). The carry is used up."""
    setup, lo, hi = inputs
    return jax.lax.fori_loop(jnp.zeros_like(lo), hi - lo, lambda i, carry: step_back(setup, carry, hi - 1 - i), carry)


@eqx.filter_jit(donate="all-except-first")
def host_step(inputs: tuple[Setup, Array], carry: Forward) -> Forward:
    """`step`, for (setup, t). The carry is used up."""
    return step(inputs[0], carry, inputs[1])


@eqx.filter_jit(donate="all-except-first")
def host_step_back(inputs: tuple[Setup, Array], carry: Backward) -> Backward:
    """`step_back`, for (setup, t). The carry is used up."""
    return step_back(inputs[0], carry, inputs[1])


one_gradient = eqx.filter_jit(user_gradient)
one_step = eqx.filter_jit(step_given)
one_undo_weights = eqx.filter_jit(undo_weights)
one_step_back = eqx.filter_jit(step_back_given)
