"""One step of a training run: made, carried backwards, carried forwards. Every mode and driver uses these alone.

Write the step as (w', s') = U(g, s, w, λ), g = ∇_w L(w, λ). With the adjoint (a, b) of (w', s'),

    (p, b', a_U, λ_U) = DUᵀ (a, b),     a' = a_U + Hᵀ p,     dλ += λ_U + Mᵀ p,     H = ∂g/∂w,  M = ∂g/∂λ.

(Hᵀ p, Mᵀ p) is one transposed derivative of g, reverse over reverse, which shares its first half with g itself and
costs about 2 gradients with it. H is not taken to be symmetric: where the loss holds a `jax.custom_vjp` or a
`stop_gradient` (gradient reversal, clipping, straight-through estimators), g is a field and no gradient.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float, PyTree

from .._jaxprs import equations
from ._convolutions import strided_as_products
from ._optimizer import OptaxOptimizer, other_lengths
from ._training import Training


class Program(eqx.Module):
    """A training run with its hyperparameters (natural units) and its key: all that a step depends on but t."""

    training: Training
    hyper: PyTree
    key: Array

    def gradient(self, params: PyTree, t: Any) -> PyTree:
        """g_t = ∇_w L(w, λ, t)."""
        return self.field(params, self.hyper, t)

    def field(self, params: PyTree, hyper: PyTree, t: Any) -> PyTree:
        """g_t(w, λ): what JAX gives as the gradient of the loss."""
        return jax.grad(strided_as_products(self.training.step_loss))(params, hyper, t, self.key)


def movable(carry: PyTree) -> PyTree:
    """The floating arrays of weights and optimiser state, `None` in the place of counters: what has an adjoint."""
    return eqx.filter(carry, eqx.is_inexact_array)


def add(a: PyTree, b: PyTree) -> PyTree:
    """a + b."""
    return jax.tree.map(jnp.add, a, b)


def first(program: Program) -> PyTree:
    """(w_0, s_0), with no weak types: they would not survive a step, and a loop must end with what it began with."""
    params = jax.tree.map(_strong, program.training.start(program.hyper, program.key))
    return params, jax.tree.map(_strong, program.training.optimizer(program.hyper).init(params))


def _strong(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return jnp.asarray(leaf, dtype=leaf.dtype)


def advance(program: Program, carry: PyTree, t: Any) -> PyTree:
    """(w_{t+1}, s_{t+1}) from (w_t, s_t)."""
    params, state = carry
    grads = program.gradient(params, t)
    return program.training.optimizer(program.hyper).update(grads, state, params, t)


def gradient_and_product(program: Program, params: PyTree, t: Any) -> tuple[PyTree, Any]:
    """g_t, and the linear map p ↦ (Hᵀ p, Mᵀ p), which shares its work with g_t."""
    return jax.vjp(lambda params, hyper: program.field(params, hyper, t), params, program.hyper)


def step_back(program: Program, carry: PyTree, t: Any, adjoint: PyTree, dhyper: PyTree) -> tuple[PyTree, PyTree]:
    """The adjoint of (w_t, s_t) from that of (w_{t+1}, s_{t+1}), and dλ with this step's part added."""
    params, state = carry
    grads, product = gradient_and_product(program, params, t)
    moving, fixed = eqx.partition(state, eqx.is_inexact_array)

    def move(grads: PyTree, moving: PyTree, params: PyTree, hyper: PyTree) -> PyTree:
        return movable(program.training.optimizer(hyper).update(grads, eqx.combine(moving, fixed), params, t))

    dgrads, dstate, dparams, direct = jax.vjp(move, grads, moving, params, program.hyper)[1](adjoint)
    curved, mixed = product(dgrads)
    return (add(dparams, curved), dstate), add(add(dhyper, direct), mixed)


def start_back(program: Program, adjoint: PyTree, dhyper: PyTree) -> PyTree:
    """dλ with the part that acts through (w_0, s_0) added."""

    def start(hyper: PyTree) -> PyTree:
        return movable(first(Program(program.training, hyper, program.key)))

    (direct,) = jax.vjp(start, program.hyper)[1](adjoint)
    return add(dhyper, direct)


def start_forward(program: Program, directions: PyTree) -> PyTree:
    """d(w_0, s_0) along each of the directions of λ, stacked on a leading axis."""

    def start(hyper: PyTree) -> PyTree:
        return movable(first(Program(program.training, hyper, program.key)))

    return jax.vmap(jax.linearize(start, program.hyper)[1])(directions)


def step_forward(
    program: Program, carry: PyTree, tangents: PyTree, t: Any, directions: PyTree
) -> tuple[PyTree, PyTree]:
    """The next weights and state, and their derivatives along each of the directions of λ."""
    params, state = carry
    moving, fixed = eqx.partition(state, eqx.is_inexact_array)
    grads, along = _gradient_along(program, params, t)

    def move(grads: PyTree, moving: PyTree, params: PyTree, hyper: PyTree) -> tuple[PyTree, PyTree]:
        moved = program.training.optimizer(hyper).update(grads, eqx.combine(moving, fixed), params, t)
        return eqx.partition(moved, eqx.is_inexact_array)

    moved, product, counters = jax.linearize(move, grads, moving, params, program.hyper, has_aux=True)

    def each(tangent: PyTree, direction: PyTree) -> PyTree:
        dparams, dstate = tangent
        return product(along(dparams, direction), dstate, dparams, direction)

    return eqx.combine(moved, counters), jax.vmap(each)(tangents, directions)


def _gradient_along(program: Program, params: PyTree, t: Any) -> tuple[PyTree, Any]:
    """g_t, and the linear map (ẇ, λ̇) ↦ H ẇ + M λ̇.

    Where the loss holds a `jax.custom_vjp`, which has no derivative along a direction, the map is the transpose of its
    transpose, a derivative in reverse of the one in reverse: right for every rule, and about twice the work.
    """

    def field(params: PyTree, hyper: PyTree) -> PyTree:
        return program.field(params, hyper, t)

    if not has_custom_vjp(program, params, t):
        return jax.linearize(field, params, program.hyper)
    grads, pull = jax.vjp(field, params, program.hyper)
    transposed = jax.vjp(pull, jax.tree.map(jnp.zeros_like, grads))[1]
    return grads, lambda dparams, dhyper: transposed((dparams, dhyper))[0]


def has_custom_vjp(program: Program, params: PyTree, t: Any) -> bool:
    """Whether a `jax.custom_vjp` stands anywhere in the loss."""
    jaxpr = jax.make_jaxpr(lambda params: program.training.step_loss(params, program.hyper, t, program.key))(params)
    return any(equation.primitive.name.startswith("custom_vjp") for equation in equations(jaxpr.jaxpr))


def check_program(program: Program) -> None:
    """Look at shapes and types alone.

    **Raises:** `ValueError` as [`hyprax.Training`][]`.check` does, and for a step whose weights or state have another
    shape or type than those before it.
    """
    program.training.check(program.hyper, program.key)
    if isinstance(eqx.filter_eval_shape(program.training.optimizer, program.hyper), OptaxOptimizer):
        check_schedules(program)
    before = eqx.filter_eval_shape(first, program)
    after = eqx.filter_eval_shape(advance, program, before, jnp.asarray(0))
    old, new = (jax.tree_util.tree_leaves_with_path(carry) for carry in (before, after))
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError("Training: the optimizer's update must keep the structure of weights and state.")
    for (path, a), (_, b) in zip(old, new, strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"Training: the optimizer's update must keep shapes and dtypes; at (params, state)"
                f"{jax.tree_util.keystr(path)} it turns {a.dtype}{list(a.shape)} into {b.dtype}{list(b.shape)}. Cast "
                "the hyperparameters to the dtype of the weights."
            )


def check_schedules(program: Program) -> None:
    """**Raises:** `ValueError` for a schedule of another length than T inside a transformation of optax.

    JAX would take the last entry for all steps after it, and leave out entries after the last step.
    """
    params, state = eqx.filter_eval_shape(first, program)
    optimizer = program.training.optimizer

    def update(hyper: PyTree, grads: PyTree, state: PyTree, params: PyTree) -> PyTree:
        return optimizer(hyper).update(grads, state, params, jnp.asarray(0))

    steps = program.training.steps
    lengths = other_lengths(jax.make_jaxpr(update)(program.hyper, params, state, params).jaxpr, steps)
    if lengths:
        raise ValueError(
            f"OptaxOptimizer: a schedule must have one entry a step, {steps}; got one of {lengths[0]} entries, of "
            "which the optimizer takes that of its step count."
        )


def unused(program: Program, outer: Any) -> list[str]:
    """The hyperparameters on which neither the start, a step, nor the outer loss depends, by their places."""
    training, key = program.training, program.key
    params, state = eqx.filter_eval_shape(first, program)

    def everything(hyper: PyTree, params: PyTree, state: PyTree) -> Any:
        zero = jnp.asarray(0)
        start, loss = training.start(hyper, key), training.step_loss(params, hyper, zero, key)
        return start, loss, training.optimizer(hyper).update(params, state, params, zero), outer(params, hyper)

    jaxpr = jax.make_jaxpr(everything)(program.hyper, params, state).jaxpr
    seen = {x for eqn in jaxpr.eqns for x in eqn.invars if not isinstance(x, Literal)} | set(jaxpr.outvars)
    places = jax.tree_util.tree_leaves_with_path(program.hyper)
    return [
        f"hyper{jax.tree_util.keystr(path)}"
        for (path, _), x in zip(places, jaxpr.invars, strict=False)
        if x not in seen
    ]


def basis(hyper: PyTree) -> PyTree:
    """The H unit vectors of the space of hyperparameters, stacked on a leading axis."""
    leaves, structure = jax.tree.flatten(hyper)
    size = sum(leaf.size for leaf in leaves)
    columns, start = [], 0
    for leaf in leaves:
        rows = jnp.eye(size, leaf.size, -start, dtype=leaf.dtype)
        columns.append(rows.reshape(size, *leaf.shape))
        start += leaf.size
    return jax.tree.unflatten(structure, columns)


def outer_and_grads(outer: Any, params: PyTree, hyper: PyTree) -> tuple[Float[Array, ""], PyTree, PyTree]:
    """f(w, λ), ∇_w f and ∂_λ f."""
    value, (dparams, dhyper) = jax.value_and_grad(outer, argnums=(0, 1))(params, hyper)
    return value, dparams, dhyper
