"""One step of a training run in fixed point, made and undone, and the adjoint that is carried through what is undone.

The step and the notation are those of `_step`: given the gradient g, the words move by integer operations that have an
exact inverse (`_reversible_optimizer`). So a run can be undone if and only if g comes back bit for bit.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._jaxprs import needed
from ._fixed_point import as_user, as_wide, decode, encode, to_word, watch, zeros_like
from ._packing import Packing
from ._reversible_optimizer import WEIGHTS, AbstractReversibleOptimizer, Coefficients, Words
from ._scales import shifted, unshifted
from ._step import Program, add, gradient_and_product, movable, room
from ._training import strong

LOOKS = 16
"""Steps, about, at which is measured what the resolution of states does to derivatives."""


class Layout(eqx.Module):
    """What is fixed about a run in fixed point: the rule of the optimiser (without hyperparameters), the packing, and
    whether states of the loss are kept."""

    rule: AbstractReversibleOptimizer
    packing: Packing = eqx.field(static=True)
    user_x64: bool = eqx.field(static=True)
    keeps: bool = eqx.field(static=True)
    isolated: bool = eqx.field(static=True)


class Setup(eqx.Module):
    """All that a step depends on but t; arrays of float64, (rows, groups), rows 1 or T.

    - `tables`: the coefficients of the step in floating point, which is differentiated.
    - `increments`: those of the step in fixed point.
    - `rates`: learning rates for each weight, by which coefficients in proportion to the learning rate are multiplied.
    - `units`: of the weights and the states, before every step and after the last: rows 1 or T + 1.
    - `always`: true, and no constant: see `user_gradient`.
    """

    program: Program
    layout: Layout
    tables: dict[str, Array]
    increments: dict[str, Array]
    units: dict[str, Array]
    rates: list[Array] | None
    always: Array


class Forward(eqx.Module):
    """The words of every vector, what the watch saw of it, the state of the loss, and that before every step so far.

    `kept`: arrays with a first axis of T; `None` where the way back needs no state, whatever the loss makes of it.
    """

    words: list[Words]
    seen: list[Array]
    model: PyTree
    kept: PyTree


class Backward(eqx.Module):
    """The words of every vector; the adjoint of its weights and states, and of the state of the loss; dλ and the
    derivatives of tables and rates so far; the states of the loss that were kept, or one to stand in their place.

    `variance`: Σ ‖adjoint‖² U²/12 over the steps undone, U the unit to which they rounded: to first order the variance
    of what that rounding adds to F, as of independent errors uniform within a unit.
    """

    words: list[Words]
    dweights: list[Array]
    dstates: list[dict[str, Array]]
    dmodel: PyTree
    dhyper: PyTree
    dtables: dict[str, Array]
    drates: list[Array] | None
    variance: Array
    blur: Array
    kept: PyTree
    blank: PyTree


def start_words(setup: Setup, weights: PyTree) -> Forward:
    """The words of w_0 and of states 0, and m_0."""
    words, seen = [], []
    for i, vector in enumerate(setup.layout.packing.join(weights)):
        group = setup.layout.packing.vectors[i].group
        word, zero = encode(vector, 1 / setup.units[WEIGHTS][0, group]), jnp.zeros_like(vector, jnp.int64)
        states = {name: zeros_like(vector, limbs) for name, limbs in setup.layout.rule.states.items()}
        words.append({WEIGHTS: word, **states, **dict.fromkeys(setup.layout.rule.codes, zero)})
        seen.append(watch(zero, [word], vector))
    steps = setup.program.training.steps

    def start(program: Program, weights: PyTree) -> PyTree:
        return jax.tree.map(strong, program.training.model(weights, program.hyper))

    model = as_user(setup.layout.user_x64, start)(setup.program, weights)
    kept = room(model, steps) if setup.layout.keeps else None
    return Forward(words, seen, model, kept)


def model_before(carry: Backward, t: Any) -> PyTree:
    """The state of the loss before step t, on the way back; any of its shapes where it is not needed."""
    if carry.kept is None:
        return carry.blank
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False), carry.kept)


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


def user_gradient(setup: Setup, words: list[Words], model: PyTree, t: Array) -> tuple[list[Array], PyTree]:
    """g_t, a list of vectors, and the state of the loss after the step.

    Isolated, it is one branch of a conditional, which compilers do not fuse with what stands around it: so the last
    bits of g, which depend on the operations that it is fused with, are the same in both sweeps.
    """
    grad = as_user(setup.layout.user_x64, Program.gradient)
    weights = weights_of(setup, words, t)
    if setup.layout.isolated:
        grads, after = jax.lax.cond(
            setup.always,
            lambda weights, model, t: grad(setup.program, weights, model, t),
            lambda weights, model, t: (jax.tree.map(jnp.zeros_like, weights), model),
            weights,
            model,
            t,
        )
    else:
        grads, after = grad(setup.program, weights, model, t)
    return setup.layout.packing.join(grads), after


def gradient_along(
    program: Program, params: PyTree, model: PyTree, t: Any, direction: tuple[PyTree, PyTree]
) -> tuple[PyTree, tuple[PyTree, PyTree, PyTree]]:
    """g_t, and the adjoints of (w, m, λ) along an adjoint of (g, m') that is known before it."""
    grads, product = gradient_and_product(program, params, model, t)
    return grads, product(direction)


def looks_at_state(program: Program, params: PyTree, model: PyTree) -> bool:
    """Whether the gradient of a step or the way back through it depends on the state of the loss before the step.

    It does not where the state is on its way alone: averages of weights, the statistics of a batch norm that trains.
    """
    if not jax.tree.leaves(model):
        return False
    after = movable(model)

    def way_back(model: PyTree, params: PyTree, direction: PyTree, hyper: PyTree) -> PyTree:
        return gradient_along(Program(program.training, hyper, program.key), params, model, jnp.asarray(0), direction)

    jaxpr = jax.make_jaxpr(way_back)(model, params, (params, after), program.hyper).jaxpr
    found = needed(jaxpr)
    return any(variable in found for variable in jaxpr.invars[: len(jax.tree.leaves(model))])


def _row(table: Array, t: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(table, t if table.shape[0] > 1 else jnp.zeros_like(t), keepdims=False)


def at(setup: Setup, tables: dict[str, Array], t: Any) -> list[Coefficients]:
    """The row of step t of some of the setup's tables, for every vector."""
    found = shared(setup, tables, t)
    if setup.rates is None:
        return found
    rated = setup.layout.rule.rated
    return [
        {name: x * rates.astype(x.dtype) if name in rated else x for name, x in row.items()}
        for row, rates in zip(found, setup.rates, strict=True)
    ]


def shared(setup: Setup, tables: dict[str, Array], t: Any) -> list[Coefficients]:
    """The same without the learning rates for each weight."""
    rows = {name: _row(table, t) for name, table in tables.items()}
    return [{name: row[vector.group] for name, row in rows.items()} for vector in setup.layout.packing.vectors]


def step(setup: Setup, carry: Forward, t: Array) -> Forward:
    """The words after step t."""
    return step_given(setup, carry, t, *user_gradient(setup, carry.words, carry.model, t))


def step_given(setup: Setup, carry: Forward, t: Array, gradients: list[Array], model: PyTree) -> Forward:
    """The words after step t, from its gradient, with the state of the loss after it."""
    rule = setup.layout.rule
    words, seen = [], []
    for leaf, before, g, k in zip(carry.words, carry.seen, gradients, at(setup, setup.increments, t), strict=True):
        after = rule.forward(k, g, leaf)
        words.append(after)
        seen.append(watch(before, [after[name] for name in (WEIGHTS, *rule.states)], g))
    kept = carry.kept
    if setup.layout.keeps:
        kept = jax.tree.map(lambda s, x: jax.lax.dynamic_update_index_in_dim(s, x, t, 0), kept, carry.model)
    return Forward(words, seen, model, kept)


def undo_weights(setup: Setup, words: list[Words], t: Array) -> list[Words]:
    """The weights as before step t, the states as after it."""
    rule = setup.layout.rule
    return [rule.undo_weights(k, leaf) for leaf, k in zip(words, at(setup, setup.increments, t), strict=True)]


def step_back(setup: Setup, carry: Backward, t: Array) -> Backward:
    """Words and adjoint before step t, with the gradient and the second-order product from one pass."""
    layout = setup.layout
    words = undo_weights(setup, carry.words, t)
    weights, model = weights_of(setup, words, t), model_before(carry, t)
    if layout.rule.pullback_needs_gradient or layout.isolated:
        return step_back_given(setup, carry, words, t, user_gradient(setup, words, model, t)[0])
    direction = layout.packing.split(_directions(setup, carry, t))
    along = as_user(layout.user_x64, gradient_along)
    grads, products = along(setup.program, weights, model, t, (direction, carry.dmodel))
    return _finish(setup, carry, words, t, layout.packing.join(grads), lambda _: products)


def step_back_given(setup: Setup, carry: Backward, words: list[Words], t: Array, gradients: list[Array]) -> Backward:
    """As `step_back`, from the words with weights undone and the gradient there; the product is made anew."""
    weights, model = weights_of(setup, words, t), model_before(carry, t)

    def product(direction: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        along = as_user(setup.layout.user_x64, gradient_along)
        return along(setup.program, weights, model, t, (direction, carry.dmodel))[1]

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
    before, directions, dweights, dstates, variance, blurred = [], [], [], [], carry.variance, []
    drates = None if carry.drates is None else list(carry.drates)
    alone = shared(setup, setup.tables, t)
    rows = {name: jnp.zeros((table.shape[1],), table.dtype) for name, table in setup.tables.items()}
    rowwise = at(setup, setup.tables, t), at(setup, setup.increments, t), at(setup, setup.units, t)
    rowwise = *rowwise, at(setup, setup.units, t + 1)
    for i, (c, k, unit, after) in enumerate(zip(*rowwise, strict=True)):
        vector = layout.packing.vectors[i]
        leaf, g = rule.undo_states(k, gradients[i], words[i]), gradients[i]
        states = {name: decode(leaf[name], unit[name], vector.dtype) for name in rule.states}
        here = _weights(setup, leaf[WEIGHTS], vector, t)
        adjoint = carry.dstates[i], carry.dweights[i]
        dc, dg, ds, dw = _pull(setup, c, g, states, here)(adjoint)
        blurred.append((c, g, {name: (leaf[name], unit[name]) for name in rule.states}, here, adjoint, (dc, dg)))
        for name in rows:
            part = dc[name].astype(rows[name].dtype)
            if setup.rates is not None and drates is not None and name in rule.rated:
                drates[i] = drates[i] + (part * alone[i][name]).astype(drates[i].dtype)
                part = jnp.sum(part * setup.rates[i].astype(part.dtype))
            rows[name] = rows[name].at[vector.group].add(part)
        for name, adjoint in ((WEIGHTS, carry.dweights[i]), *carry.dstates[i].items()):
            variance = variance + jnp.square(after[name]) / 12 * jnp.sum(jnp.square(adjoint)).astype(variance.dtype)
        before.append(leaf)
        directions.append(dg)
        dweights.append(dw)
        dstates.append(ds)
    curved, dmodel, mixed = product(layout.packing.split(directions))
    looked = t % max(1, setup.program.training.steps // LOOKS) == 0
    blur = jax.lax.cond(looked, lambda: sum((_blur(setup, *of) for of in blurred), jnp.zeros(4)), lambda: jnp.zeros(4))
    return Backward(
        before,
        [a + b for a, b in zip(dweights, layout.packing.join(curved), strict=True)],
        dstates,
        dmodel,
        add(carry.dhyper, mixed),
        {name: _add_row(carry.dtables[name], rows[name], t) for name in rows},
        drates,
        variance,
        carry.blur + blur,
        carry.kept,
        carry.blank,
    )


def _blur(setup: Setup, c: Coefficients, g: Array, states: Any, weights: Array, adjoint: Any, found: Any) -> Array:
    """What `Backward.blur` adds up, of one vector: `found` are the adjoints of (c, g) at the states as they are.

    A state that is 0 at a gradient of 0 was not rounded.
    """
    moved = {}
    for name, (number, unit) in states.items():
        value = as_wide(number)
        away = jnp.where((value == 0) & (g == 0), 0.0, jnp.where(value < 0, -1.0, 1.0))
        moved[name] = ((value + away) * unit).astype(weights.dtype)
    dc, dg = _pull(setup, c, g, moved, weights)(adjoint)[:2]
    squares = [_square(dg - found[1]), _square(dg)]
    logs = [{name: x * c[name].astype(x.dtype) for name, x in part.items()} for part in (dc, found[0])]
    squares += [sum(_square(logs[0][name] - logs[1][name]) for name in dc), sum(map(_square, logs[0].values()))]
    return jnp.stack([jnp.asarray(x) for x in squares])


def _square(x: Array) -> Array:
    return jnp.sum(jnp.square(x.astype(jnp.float64)))


def _add_row(table: Array, row: Array, t: Array) -> Array:
    if table.shape[0] == 1:
        return table + row[None]
    return jax.lax.dynamic_update_index_in_dim(table, row, t, 0)


class Pieces(eqx.Module):
    """Steps lo..ends[0]-1, ends[0]..ends[1]-1, ..., and by how many bits words are shifted after each.

    - `which`: the vectors and names whose words are ever shifted.
    - `bits`: (pieces, which).
    - `lows`: on the way back, for each of `which` what was put away, (pieces, ...).
    """

    which: tuple[tuple[int, str], ...] = eqx.field(static=True)
    lo: Any
    ends: Any
    bits: Any
    lows: list[Array]

    def begin(self, k: Array) -> Array:
        return jnp.where(k == 0, self.lo, self.ends[jnp.maximum(k - 1, 0)])


@eqx.filter_jit(donate="all-except-first")
def loop_pieces(inputs: tuple[Setup, Pieces], carry: Forward) -> tuple[Forward, list[Array]]:
    """The steps of the pieces in one program, and what was put away. The carry is used up."""
    setup, pieces = inputs

    def piece(k: Array, both: tuple[Forward, list[Array]]) -> tuple[Forward, list[Array]]:
        carry, lows = both
        end = pieces.ends[k]
        carry = jax.lax.fori_loop(pieces.begin(k), end, lambda t, carry: step(setup, carry, t), carry)
        words, lows = [dict(leaf) for leaf in carry.words], list(lows)
        for j, (i, name) in enumerate(pieces.which):
            words[i][name], low = shifted(words[i][name], pieces.bits[k, j])
            lows[j] = jax.lax.dynamic_update_index_in_dim(lows[j], low, k, 0)
        return eqx.tree_at(lambda carry: carry.words, carry, words), lows

    count = pieces.ends.shape[0]
    lows = room([jnp.zeros_like(carry.words[i][WEIGHTS], jnp.uint8) for i, _ in pieces.which], count)
    return jax.lax.fori_loop(0, count, piece, (carry, lows))


@eqx.filter_jit(donate="all-except-first")
def loop_pieces_back(inputs: tuple[Setup, Pieces], carry: Backward) -> Backward:
    """The steps of the pieces undone in one program. The carry is used up."""
    setup, pieces = inputs
    count = pieces.ends.shape[0]

    def piece(n: Array, carry: Backward) -> Backward:
        k = count - 1 - n
        begin, end = pieces.begin(k), pieces.ends[k]
        words = [dict(leaf) for leaf in carry.words]
        for j, (i, name) in enumerate(pieces.which):
            low = jax.lax.dynamic_index_in_dim(pieces.lows[j], k, keepdims=False)
            words[i][name] = unshifted(words[i][name], low, pieces.bits[k, j])
        carry = eqx.tree_at(lambda carry: carry.words, carry, words)
        return jax.lax.fori_loop(
            jnp.zeros_like(begin), end - begin, lambda n, carry: step_back(setup, carry, end - 1 - n), carry
        )

    return jax.lax.fori_loop(0, count, piece, carry)


@eqx.filter_jit(donate="all-except-first")
def host_step(inputs: tuple[Setup, Array], carry: Forward) -> Forward:
    """`step`, for (setup, t). The carry is used up."""
    return step(inputs[0], carry, inputs[1])


@eqx.filter_jit(donate="all-except-first")
def host_step_back(inputs: tuple[Setup, Array], carry: Backward) -> Backward:
    """`step_back`, for (setup, t). The carry is used up."""
    return step_back(inputs[0], carry, inputs[1])


@eqx.filter_jit(donate="all-except-first")
def one_step(inputs: tuple[Setup, Array, list[Array], PyTree], carry: Forward) -> Forward:
    """`step_given`, for (setup, t, gradients, state after the step). The carry is used up."""
    setup, t, gradients, model = inputs
    return step_given(setup, carry, t, gradients, model)


one_gradient = eqx.filter_jit(user_gradient)
one_undo_weights = eqx.filter_jit(undo_weights)
one_step_back = eqx.filter_jit(step_back_given)
