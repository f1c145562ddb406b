"""One step of a training run in fixed point, made and undone, and the adjoint that is carried through what is undone.

The step and the notation are those of `_step`: given the gradient g, the words move by integer operations that have an
exact inverse (`_reversible_optimizer`). So a run can be undone if and only if g comes back bit for bit.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._fixed_point import as_user, as_wide, decode, encode, to_word, watch
from ._packing import Packing
from ._reversible_optimizer import WEIGHTS, AbstractReversibleOptimizer, Coefficients, Words
from ._step import Program, add, gradient_and_product


class Layout(eqx.Module):
    """What is fixed about a run in fixed point: the rule of the optimiser (without hyperparameters), the packing."""

    rule: AbstractReversibleOptimizer
    packing: Packing = eqx.field(static=True)
    user_x64: bool = eqx.field(static=True)
    isolated: bool = eqx.field(static=True)


class Setup(eqx.Module):
    """All that a step depends on but t; arrays of float64, (rows, groups), rows 1 or T.

    - `tables`: the coefficients of the step in floating point, which is differentiated.
    - `increments`: those of the step in fixed point.
    - `units`: of the weights and the states, before every step and after the last: rows 1 or T + 1.
    - `always`: true, and no constant: see `user_gradient`.
    """

    program: Program
    layout: Layout
    tables: dict[str, Array]
    increments: dict[str, Array]
    units: dict[str, Array]
    always: Array


class Forward(eqx.Module):
    """The words of every vector, and what the watch saw of it."""

    words: list[Words]
    seen: list[Array]


class Backward(eqx.Module):
    """The words of every vector; the adjoint of its weights and states; dλ and the derivatives of the tables so far.

    `variance`: Σ ‖adjoint‖² U²/12 over the steps undone, U the unit to which they rounded: to first order the variance
    of what that rounding adds to F, as of independent errors uniform within a unit.
    """

    words: list[Words]
    dweights: list[Array]
    dstates: list[dict[str, Array]]
    dhyper: PyTree
    dtables: dict[str, Array]
    variance: Array


def start_words(setup: Setup, weights: PyTree) -> Forward:
    """The words of w_0 and of states 0."""
    words, seen = [], []
    for i, vector in enumerate(setup.layout.packing.join(weights)):
        group = setup.layout.packing.vectors[i].group
        word, zero = encode(vector, 1 / setup.units[WEIGHTS][0, group]), jnp.zeros(vector.shape, jnp.int64)
        words.append({WEIGHTS: word, **dict.fromkeys(setup.layout.rule.states, zero)})
        seen.append(watch(zero, [[word]], vector))
    return Forward(words, seen)


def weights_of(setup: Setup, words: list[Words], t: Array) -> PyTree:
    """The weights before step t (t = T: at the end), in the user's dtypes."""
    packing = setup.layout.packing
    return packing.split(
        [_weights(setup, w[WEIGHTS], vector, t) for w, vector in zip(words, packing.vectors, strict=True)]
    )


def _weights(setup: Setup, word: Array, vector: Any, t: Array) -> Array:
    """A product by a power of two alone: no rounding that a compiler could leave out stands before the user's loss."""
    bits, units = setup.layout.rule.fraction_bits()[WEIGHTS], setup.units[WEIGHTS]
    if units.shape[0] > 1:
        word = to_word(as_wide(word) * (_row(units, t)[vector.group] * 2.0**bits))
    return decode(word, 2.0**-bits, vector.dtype)


def user_gradient(setup: Setup, words: list[Words], t: Array) -> list[Array]:
    """g_t, a list of vectors.

    Isolated, it is one branch of a conditional, which compilers do not fuse with what stands around it: so the last
    bits of g, which depend on the operations that it is fused with, are the same in both sweeps.
    """
    grad = as_user(setup.layout.user_x64, Program.gradient)
    weights = weights_of(setup, words, t)
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
    """g_t, and (Hᵀ p, Mᵀ p) for a direction p that is known before it."""
    grads, product = gradient_and_product(program, params, t)
    return grads, product(direction)


def _row(table: Array, t: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(table, t if table.shape[0] > 1 else jnp.zeros_like(t), keepdims=False)


def at(setup: Setup, tables: dict[str, Array], t: Any) -> list[Coefficients]:
    """The row of step t of some of the setup's tables, for every vector."""
    rows = {name: _row(table, t) for name, table in tables.items()}
    return [{name: row[vector.group] for name, row in rows.items()} for vector in setup.layout.packing.vectors]


def step(setup: Setup, carry: Forward, t: Array) -> Forward:
    """The words after step t."""
    return step_given(setup, carry, t, user_gradient(setup, carry.words, t))


def step_given(setup: Setup, carry: Forward, t: Array, gradients: list[Array]) -> Forward:
    """The words after step t, from its gradient."""
    rule = setup.layout.rule
    words, seen = [], []
    for leaf, before, g, k in zip(carry.words, carry.seen, gradients, at(setup, setup.increments, t), strict=True):
        after, added = rule.forward(k, g, leaf)
        watched = [[after[name], *added.get(name, [])] for name in (WEIGHTS, *rule.states)]
        words.append(after)
        seen.append(watch(before, watched, g))
    return Forward(words, seen)


def undo_weights(setup: Setup, words: list[Words], t: Array) -> list[Words]:
    """The weights as before step t, the states as after it."""
    rule = setup.layout.rule
    return [rule.undo_weights(k, leaf) for leaf, k in zip(words, at(setup, setup.increments, t), strict=True)]


def step_back(setup: Setup, carry: Backward, t: Array) -> Backward:
    """Words and adjoint before step t, with the gradient and the second-order product from one pass."""
    layout = setup.layout
    words = undo_weights(setup, carry.words, t)
    weights = weights_of(setup, words, t)
    if layout.rule.pullback_needs_gradient or layout.isolated:
        return step_back_given(setup, carry, words, t, user_gradient(setup, words, t))
    direction = layout.packing.split(_directions(setup, carry, t))
    along = as_user(layout.user_x64, gradient_along)
    grads, products = along(setup.program, weights, t, direction)
    return _finish(setup, carry, words, t, layout.packing.join(grads), lambda _: products)


def step_back_given(setup: Setup, carry: Backward, words: list[Words], t: Array, gradients: list[Array]) -> Backward:
    """As `step_back`, from the words with weights undone and the gradient there; the product is made anew."""
    weights = weights_of(setup, words, t)

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
    for i, c in enumerate(at(setup, setup.tables, t)):
        zero = jnp.zeros_like(carry.dweights[i])
        states = dict.fromkeys(carry.dstates[i], zero)
        made.append(_pull(setup, c, zero, states, zero)((carry.dstates[i], carry.dweights[i]))[1])
    return made


def _finish(
    setup: Setup, carry: Backward, words: list[Words], t: Array, gradients: list[Array], product: Any
) -> Backward:
    """States undone, and the adjoint pulled back through the step at what was recovered."""
    layout, rule = setup.layout, setup.layout.rule
    before, directions, dweights, dstates, variance = [], [], [], [], carry.variance
    rows = {name: jnp.zeros((table.shape[1],), table.dtype) for name, table in setup.tables.items()}
    rowwise = at(setup, setup.tables, t), at(setup, setup.increments, t), at(setup, setup.units, t)
    rowwise = *rowwise, at(setup, setup.units, t + 1)
    for i, (c, k, unit, after) in enumerate(zip(*rowwise, strict=True)):
        vector = layout.packing.vectors[i]
        leaf, g = rule.undo_states(k, gradients[i], words[i]), gradients[i]
        states = {name: decode(leaf[name], unit[name], vector.dtype) for name in rule.states}
        here = _weights(setup, leaf[WEIGHTS], vector, t)
        dc, dg, ds, dw = _pull(setup, c, g, states, here)((carry.dstates[i], carry.dweights[i]))
        for name in rows:
            rows[name] = rows[name].at[vector.group].add(dc[name].astype(rows[name].dtype))
        for name, adjoint in ((WEIGHTS, carry.dweights[i]), *carry.dstates[i].items()):
            variance = variance + jnp.square(after[name]) / 12 * jnp.sum(jnp.square(adjoint)).astype(variance.dtype)
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
        variance,
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
