"""One step of a training run: made, carried backwards, carried forwards. Every mode and driver uses these alone.

Write the step as (w', s') = U(g, s, w, λ), g = ∇_w L(w, λ). With the adjoint (a, b) of (w', s'),

    (p, b', a_U, λ_U) = DUᵀ (a, b),     a' = a_U + Hᵀ p,     dλ += λ_U + Mᵀ p,     H = ∂g/∂w,  M = ∂g/∂λ.

(Hᵀ p, Mᵀ p) is one transposed derivative of g, reverse over reverse, which shares its first half with g itself and
costs about 2 gradients with it. A loss with a state m gives (g, m') as a function of (w, m, λ), which is pulled back as
one: by p and by the adjoint of m'. A carry is (w, s, m).

H is not taken to be symmetric: where the loss holds a `jax.custom_vjp` or a `stop_gradient` (gradient reversal,
clipping, straight-through estimators), g is a field and no gradient.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._jaxprs import equations, needed
from ._convolutions import strided_as_products
from ._optimizer import OptaxOptimizer, other_lengths
from ._training import Training, strong


class Program(eqx.Module):
    """A training run with its hyperparameters (natural units) and its key: all that a step depends on but t."""

    training: Training
    hyper: PyTree
    key: Array

    def gradient(self, params: PyTree, model: PyTree, t: Any) -> tuple[PyTree, PyTree]:
        """g_t and m_{t+1}."""
        return self.field(params, model, self.hyper, t)

    def field(self, params: PyTree, model: PyTree, hyper: PyTree, t: Any) -> tuple[PyTree, PyTree]:
        """g_t(w, m, λ) and m_{t+1}: what JAX gives as the gradient of the loss, as the optimizer gets it."""
        training = self.training
        batch, key = training.pieces(t, self.key)

        def part(params: PyTree, model: PyTree, hyper: PyTree, batch: Any, key: Any) -> tuple[PyTree, PyTree]:
            def loss(params: PyTree, model: PyTree, hyper: PyTree) -> tuple[Array, PyTree]:
                return training.piece_loss(params, model, hyper, batch, key)

            grads, model = jax.grad(strided_as_products(loss), has_aux=True)(params, model, hyper)
            return grads, jax.tree.map(strong, model)

        if training.microbatches == 1:
            grads, model = part(params, model, hyper, batch, key)
        else:
            grads, model = _mean_over(part, params, model, hyper, (batch, key), training.microbatches)
        return training.transformed(grads, params, hyper), model


def _mean_over(part: Any, params: PyTree, model: PyTree, hyper: PyTree, pieces: PyTree, count: int) -> Any:
    """The mean of the gradients of microbatches; activations are those of one, made again when needed."""
    again = jax.checkpoint(part, prevent_cse=False)

    def body(carry: tuple[PyTree, PyTree], piece: tuple[Any, Any]) -> tuple[tuple[PyTree, PyTree], None]:
        total, model = carry
        grads, model = again(params, model, hyper, *piece)
        return (add(total, grads), model), None

    (total, model), _ = jax.lax.scan(body, (jax.tree.map(jnp.zeros_like, params), model), pieces)
    return jax.tree.map(lambda g: g / count, total), model


def movable(carry: PyTree) -> PyTree:
    """The floating arrays of weights and optimiser state, `None` in the place of counters: what has an adjoint."""
    return eqx.filter(carry, eqx.is_inexact_array)


def room(tree: PyTree, size: int) -> PyTree:
    """Zeros with a leading axis of that size, spread over devices as the leaves are."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.zeros_like(leaf), (size, *leaf.shape)), tree)


def add(a: PyTree, b: PyTree) -> PyTree:
    """a + b."""
    return jax.tree.map(jnp.add, a, b)


def first(program: Program) -> PyTree:
    """(w_0, s_0, m_0), with no weak types."""
    training, hyper = program.training, program.hyper
    params = jax.tree.map(strong, training.start(hyper, program.key))
    return params, *jax.tree.map(strong, (training.optimizer(hyper).init(params), training.model(params, hyper)))


def moved(
    program: Program, hyper: PyTree, grads: PyTree, state: PyTree, params: PyTree, model: PyTree, t: Any
) -> PyTree:
    """(w_{t+1}, s_{t+1}): what the optimizer makes of a gradient."""
    optimizer = program.training.optimizer(hyper)

    def value(params: PyTree) -> Array:
        return program.training.step_loss(params, model, hyper, t, program.key)[0]

    return optimizer.update(grads, state, params, t, *((value,) if optimizer.takes_loss else ()))


def advance(program: Program, carry: PyTree, t: Any) -> PyTree:
    """(w_{t+1}, s_{t+1}, m_{t+1}) from (w_t, s_t, m_t)."""
    params, state, model = carry
    grads, after = program.gradient(params, model, t)
    return *moved(program, program.hyper, grads, state, params, model, t), after


def gradient_and_product(program: Program, params: PyTree, model: PyTree, t: Any) -> tuple[PyTree, Any]:
    """g_t, and the linear map (p, dm') ↦ adjoints of (w, m, λ), (Hᵀ p, ., Mᵀ p) without a state, which shares its work.

    What of the state is no floating array has no adjoint.
    """
    moving, fixed = eqx.partition(model, eqx.is_inexact_array)

    def field(params: PyTree, moving: PyTree, hyper: PyTree) -> tuple[PyTree, PyTree]:
        grads, after = program.field(params, eqx.combine(moving, fixed), hyper, t)
        return grads, movable(after)

    (grads, _), product = jax.vjp(field, params, moving, program.hyper)
    return grads, product


def step_back(program: Program, carry: PyTree, t: Any, adjoint: PyTree, dhyper: PyTree) -> tuple[PyTree, PyTree]:
    """The adjoint of (w_t, s_t, m_t) from that of (w_{t+1}, s_{t+1}, m_{t+1}), and dλ with this step's part added."""
    params, state, model = carry
    dparams, dstate, dmodel = adjoint
    grads, product = gradient_and_product(program, params, model, t)
    moving, fixed = eqx.partition((state, model), eqx.is_inexact_array)

    def move(grads: PyTree, moving: PyTree, params: PyTree, hyper: PyTree) -> PyTree:
        state, model = eqx.combine(moving, fixed)
        return movable(moved(program, hyper, grads, state, params, model, t))

    pull = jax.vjp(move, grads, moving, params, program.hyper)[1]
    dgrads, (dstate, looked), dparams, direct = pull((dparams, dstate))
    curved, across, mixed = product((dgrads, dmodel))
    return (add(dparams, curved), dstate, add(looked, across)), add(add(dhyper, direct), mixed)


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
    """The next weights and states, and their derivatives along each of the directions of λ."""
    params, state, model = carry
    moving, fixed = eqx.partition((state, model), eqx.is_inexact_array)
    grads, after, along = _gradient_along(program, params, model, t)

    def move(grads: PyTree, moving: PyTree, params: PyTree, hyper: PyTree) -> tuple[PyTree, PyTree]:
        state, model = eqx.combine(moving, fixed)
        return eqx.partition(moved(program, hyper, grads, state, params, model, t), eqx.is_inexact_array)

    moved_on, product, counters = jax.linearize(move, grads, moving, params, program.hyper, has_aux=True)

    def each(tangent: PyTree, direction: PyTree) -> PyTree:
        dparams, dstate, dmodel = tangent
        dgrads, dafter = along(dparams, dmodel, direction)
        return *product(dgrads, (dstate, dmodel), dparams, direction), dafter

    return (*eqx.combine(moved_on, counters), after), jax.vmap(each)(tangents, directions)


def _gradient_along(program: Program, params: PyTree, model: PyTree, t: Any) -> tuple[PyTree, PyTree, Any]:
    """g_t, m_{t+1}, and the linear map (ẇ, ṁ, λ̇) ↦ (ġ, ṁ'): H ẇ + M λ̇ without a state.

    Where the loss holds a `jax.custom_vjp`, which has no derivative along a direction, the map is the transpose of its
    transpose, a derivative in reverse of the one in reverse: right for every rule, and about twice the work.
    """
    moving, fixed = eqx.partition(model, eqx.is_inexact_array)

    def field(params: PyTree, moving: PyTree, hyper: PyTree) -> tuple[PyTree, PyTree]:
        grads, after = program.field(params, eqx.combine(moving, fixed), hyper, t)
        moved, counters = eqx.partition(after, eqx.is_inexact_array)
        return (grads, moved), counters

    at = params, moving, program.hyper
    if not has_custom_vjp(program, params, model, t):
        (grads, after), along, counters = jax.linearize(field, *at, has_aux=True)
        return grads, eqx.combine(after, counters), along
    (grads, after), pull, counters = jax.vjp(field, *at, has_aux=True)
    transposed = jax.vjp(pull, jax.tree.map(jnp.zeros_like, (grads, after)))[1]
    return grads, eqx.combine(after, counters), lambda *along: transposed(along)[0]


def has_custom_vjp(program: Program, params: PyTree, model: PyTree, t: Any) -> bool:
    """Whether a `jax.custom_vjp` stands anywhere in the loss."""

    def loss(params: PyTree, model: PyTree) -> Array:
        return program.training.step_loss(params, model, program.hyper, t, program.key)[0]

    jaxpr = jax.make_jaxpr(loss)(params, model)
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


def _update_alone(program: Program) -> Any:
    """The jaxpr of an update of optax, of a loss of which nothing is to be seen."""
    params, state, _ = eqx.filter_eval_shape(first, program)
    optimizer = program.training.optimizer

    def value(params: PyTree) -> Array:
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    def update(hyper: PyTree, grads: PyTree, state: PyTree, params: PyTree) -> PyTree:
        made = optimizer(hyper)
        assert isinstance(made, OptaxOptimizer)
        return made.update(grads, state, params, jnp.asarray(0), value)

    with jax.numpy_dtype_promotion("standard"):
        return jax.make_jaxpr(update)(program.hyper, params, state, params).jaxpr


def check_schedules(program: Program) -> None:
    """**Raises:** `ValueError` for a schedule of another length than T inside a transformation of optax.

    JAX would take the last entry for all steps after it, and leave out entries after the last step.
    """
    steps = program.training.steps
    lengths = other_lengths(_update_alone(program), steps)
    if lengths:
        raise ValueError(
            f"OptaxOptimizer: a schedule must have one entry a step, {steps}; got one of {lengths[0]} entries, of "
            "which the optimizer takes that of its step count."
        )


def check_searches(program: Program) -> None:
    """**Raises:** `ValueError` for a transformation of optax that goes round a loop of no fixed length."""
    if not isinstance(eqx.filter_eval_shape(program.training.optimizer, program.hyper), OptaxOptimizer):
        return
    if any(eqn.primitive.name == "while" for eqn in equations(_update_alone(program))):
        raise ValueError(
            "OptaxOptimizer: transformation must have no loop of a length that is not fixed, such as a line search, "
            "but for hx.unroll.ForwardMode; got one with such a loop, through which no derivative goes backwards."
        )


def unused(program: Program, outer: Any) -> list[str]:
    """The hyperparameters on which neither the start, a step, nor the outer loss depends, by their places."""
    training, key = program.training, program.key
    params, state, model = eqx.filter_eval_shape(first, program)

    def everything(hyper: PyTree, params: PyTree, state: PyTree, model: PyTree) -> Any:
        zero = jnp.asarray(0)
        start, loss = first(Program(training, hyper, key)), training.step_loss(params, model, hyper, zero, key)
        grads = training.transformed(params, params, hyper)
        after = moved(Program(training, hyper, key), hyper, grads, state, params, model, zero)
        return start, loss, after, outer(params, model, hyper)

    jaxpr = jax.make_jaxpr(everything)(program.hyper, params, state, model).jaxpr
    seen = needed(jaxpr)
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


def outer_and_grads(
    outer: Any, params: PyTree, model: PyTree, hyper: PyTree
) -> tuple[Float[Array, ""], PyTree, PyTree, PyTree]:
    """f(w, m, λ), ∇_w f, ∇_m f and ∂_λ f."""
    moving, fixed = eqx.partition(model, eqx.is_inexact_array)

    def value(params: PyTree, moving: PyTree, hyper: PyTree) -> Array:
        return outer(params, eqx.combine(moving, fixed), hyper)

    found, (dparams, dmodel, dhyper) = jax.value_and_grad(value, argnums=(0, 1, 2))(params, moving, hyper)
    return found, dparams, dmodel, dhyper
