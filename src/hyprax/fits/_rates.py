"""How weights and hyperparameters move in a fit that is not told otherwise."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

MOST_SECANTS = 1000
"""The most hyperparameters whose curvature is learned, in a matrix of that side."""
FIRST, LONGEST = 0.1, 0.5
"""Of a move, in the largest coordinate: before any curvature is known, and ever."""


@functools.lru_cache(maxsize=32)
def default_optimizer(steps: int) -> optax.GradientTransformation:
    """Adam, its rate falling as a cosine from 1e-2 to 1e-5: one object for equal runs, which then compile once."""
    return optax.adam(optax.cosine_decay_schedule(1e-2, steps, 1e-3))


@functools.lru_cache(maxsize=32)
def default_hyper_optimizer(
    online: int, at_mode: int, draws: bool, count: int
) -> optax.GradientTransformationExtraArgs:
    """Adam, from 0.1 to 0.01, while the weights train; then on to 1e-3 where draws are noisy, else secants.

    `count` hyperparameters: beyond 1,000 Rprop, which goes by signs alone, stands in for the secants.
    """
    falling = optax.cosine_decay_schedule(0.1, max(online, 1), 0.1)
    if draws or not at_mode:
        rates = optax.join_schedules([falling, optax.cosine_decay_schedule(0.02, max(at_mode, 1), 0.05)], [online])
        return optax.with_extra_args_support(optax.adam(rates))
    first = optax.adam(falling)
    then = secants() if count <= MOST_SECANTS else optax.rprop(0.05, min_step_size=1e-7, max_step_size=0.3)
    then = optax.with_extra_args_support(then)

    def init(params: PyTree) -> Any:
        return first.init(params), then.init(params), jnp.zeros((), jnp.int32)

    def update(updates: PyTree, state: Any, params: PyTree = None, *, value: Any, **others: Any) -> tuple[PyTree, Any]:
        one, other, count = state
        early = count < online
        moved, one_after = first.update(updates, one, params)
        turned, other_after = then.update(updates, other, params, value=value)

        def chosen(a: PyTree, b: PyTree) -> PyTree:
            return jax.tree.map(lambda x, y: jnp.where(early, x, y), a, b)

        return chosen(moved, turned), (one_after, chosen(other, other_after), count + 1)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  # it asks for the value, which optax's protocol leaves open


class Secants(NamedTuple):
    """The best point with its value and gradient, the inverse Hessian so far, how far a move may go, the moves, and how
    many in a row were taken back."""

    point: Float[Array, " n"]
    value: Float[Array, ""]
    gradient: Float[Array, " n"]
    inverse: Float[Array, "n n"]
    reach: Float[Array, ""]
    moves: Int[Array, ""]
    failed: Int[Array, ""]


def secants() -> optax.GradientTransformationExtraArgs:
    """-H g, H the inverse Hessian of Broyden, Fletcher, Goldfarb and Shanno, no coordinate by more than 0.5.

    A move that does not lower the value is taken back, and the next one goes a quarter as far; from the second in a row
    on it follows the gradient, as H may be to blame. Before the first value that is finite nothing moves. It needs
    gradients of one function: those at the mode, with the way of the mode in them.
    """

    def init(params: PyTree) -> Secants:
        x, _ = ravel_pytree(params)
        far = jnp.asarray(jnp.inf, x.dtype)
        none = jnp.zeros((), jnp.int32)
        return Secants(
            x, far, jnp.zeros_like(x), jnp.eye(x.size, dtype=x.dtype), jnp.full_like(far, LONGEST), none, none
        )

    def update(
        updates: PyTree, state: Secants, params: PyTree = None, *, value: Any, **others: Any
    ) -> tuple[PyTree, Secants]:
        (g, unravel), (x, _) = ravel_pytree(updates), ravel_pytree(params)
        value = jnp.asarray(value, x.dtype)
        tiny = jnp.finfo(g.dtype).tiny
        s, y = x - state.point, g - state.gradient
        length = jnp.max(jnp.abs(s))
        first, fell = state.moves == 0, value < state.value
        waits = ~jnp.isfinite(value) & ~jnp.isfinite(state.value)
        curved = jnp.vdot(s, y)
        keeps = fell & ~first & (curved > 1e-6 * jnp.linalg.norm(s) * jnp.linalg.norm(y))
        rho = jnp.where(keeps, 1 / jnp.where(keeps, curved, 1), 0)
        identity = jnp.eye(x.size, dtype=x.dtype)
        steepest = FIRST / jnp.maximum(jnp.max(jnp.abs(g)), tiny) * identity
        scaled = curved / jnp.maximum(jnp.vdot(y, y), tiny) * identity
        before = jnp.where(first, steepest, jnp.where(keeps & (state.moves == 1), scaled, state.inverse))
        left = identity - rho * jnp.outer(s, y)
        inverse = jnp.where(keeps, left @ before @ left.T + rho * jnp.outer(s, s), before)
        reach = jnp.where(fell, jnp.minimum(jnp.maximum(state.reach, 2 * length), LONGEST), length / 4)
        reach = jnp.where(first, LONGEST, reach).astype(x.dtype)
        kept = state.point, state.value, state.gradient
        point, lowest, slope = jax.tree.map(lambda a, b: jnp.where(fell, a, b), (x, value, g), kept)
        failed = jnp.where(fell, 0, state.failed + 1)
        blamed = failed > 1
        inverse = jnp.where(blamed, reach / jnp.maximum(jnp.max(jnp.abs(slope)), tiny) * identity, inverse)
        move = -inverse @ slope
        move = move * jnp.minimum(1.0, reach / jnp.maximum(jnp.max(jnp.abs(move)), tiny))
        moves = jnp.where(fell, state.moves + 1, jnp.where(blamed, 1, state.moves))
        moved = Secants(point, lowest, slope, inverse, reach, moves, failed)
        updates = jnp.where(waits, 0, point + move - x)
        return unravel(updates), jax.tree.map(lambda a, b: jnp.where(waits, a, b), state, moved)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]  # a state of its own, as optax's have
