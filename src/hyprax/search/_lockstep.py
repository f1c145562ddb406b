"""Many small searches at once: quasi-Newton steps of all sets of folds in one compiled program."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOST_REFUSALS = 6
LONGEST = 3.0
PATIENCE = 3


@runtime_checkable
class Sets(Protocol):
    """Sets of folds, each with raw hyperparameters of its own: a module of arrays, so that it can be compiled for."""

    def start(self) -> Array:
        """The weights to begin with."""
        ...

    def value_and_grad(self, raw: Float[Array, "B N"], start: Array) -> tuple[Array, Array, Array]:
        """The values, the gradients, and the weights from which the next evaluation starts."""
        ...


class Held(eqx.Module):
    """What holds the coordinates together: (τ/2) Σ_j (θ_j - the mean of its group)², or one number a group (`tied`)."""

    strength: Float[Array, ""]
    tied: Array
    groups: Array
    low: Float[Array, " N"]
    high: Float[Array, " N"]

    def means(self, raw: Float[Array, "B N"]) -> Float[Array, "B N"]:
        """The mean of its group at each coordinate."""
        count = raw.shape[1]
        sums = jax.vmap(lambda row: jax.ops.segment_sum(row, self.groups, num_segments=count))(raw)
        sizes = jax.ops.segment_sum(jnp.ones(count, raw.dtype), self.groups, num_segments=count)
        return (sums / jnp.maximum(sizes, 1)[None])[:, self.groups]


class Limits(eqx.Module):
    """When a search has arrived.

    - `steps`: the most steps; `gradient`: a norm that is small enough.
    - `progress`: the relative fall of the value that counts, three steps without one being the end.
    """

    steps: Array
    gradient: Array
    progress: Array

    @classmethod
    def of(cls, steps: int, gradient: float = 0.0, progress: float = 1e-4) -> "Limits":
        """From numbers."""
        return cls(jnp.asarray(steps), jnp.asarray(gradient, float), jnp.asarray(progress, float))


class _Walk(eqx.Module):
    """Where every search is (`raw`, `value`, `grad`), the step tried from there, and the inverse Hessian so far."""

    raw: Array
    value: Array
    grad: Array
    weights: Array
    inverse: Array
    direction: Array
    length: Array
    taken: Array
    refused: Array
    idle: Array
    mark: Array
    flat: Array
    done: Array


@eqx.filter_jit
def minimised(
    sets: Sets, raw: Float[Array, "B N"], weights: Array, held: Held, limits: Limits
) -> tuple[Float[Array, "B N"], Float[Array, " B"], Array, Array, Array]:
    """The coordinates at which each set's value and prior are lowest, the value alone, the weights, the steps, and
    whether the gradient was small there.

    Quasi-Newton steps with a dense inverse Hessian (BFGS), lengths by backtracking; a step is one evaluation of all
    sets, and one that has arrived stands still. With a limit of no steps, the value at `raw`.
    """
    count, size = raw.shape

    def evaluated(raw: Array, weights: Array) -> tuple[Array, Array, Array]:
        value, grad, weights = sets.value_and_grad(raw, weights)
        off = raw - held.means(raw)
        loose = jnp.where(held.tied, 0.0, held.strength).astype(raw.dtype)
        value = value + 0.5 * loose * jnp.sum(jnp.square(off), axis=1)
        grad = jnp.where(held.tied, held.means(grad), grad + loose * off)
        return value, grad, weights

    def again(walk: _Walk) -> Array:
        return jnp.logical_not(jnp.all(walk.done))

    def step(walk: _Walk) -> _Walk:
        trial = jnp.clip(walk.raw + walk.length[:, None] * walk.direction, held.low[None], held.high[None])
        value, grad, weights = evaluated(trial, walk.weights)
        move, turn = trial - walk.raw, grad - walk.grad
        predicted = -jnp.sum(walk.grad * move, axis=1)
        first = jnp.isinf(walk.value)
        fall = jnp.where(first, jnp.inf, walk.value - value)
        good = ((fall >= 1e-4 * predicted) & (fall > 0) & jnp.isfinite(value)) & ~walk.done
        good = good & (first | (predicted > 0))
        product = jnp.sum(move * turn, axis=1)
        size_of = jnp.linalg.norm(move, axis=1) * jnp.linalg.norm(turn, axis=1)
        curved = good & ~first & (product > 1e-8 * size_of)
        inverse = jax.vmap(_updated)(walk.inverse, move, turn, jnp.where(curved, product, 1.0))
        inverse = jnp.where(curved[:, None, None], inverse, walk.inverse)
        raw = jnp.where(good[:, None], trial, walk.raw)
        slope = jnp.where(good[:, None], grad, walk.grad)
        taken = walk.taken + jnp.where(good & ~first, 1, 0)
        refused = jnp.where(good, 0, walk.refused + 1)
        # After several refusals the curvature is forgotten once; the steepest direction is the last resort.
        stale = refused == MOST_REFUSALS
        fresh = jnp.broadcast_to(jnp.zeros((size, size), raw.dtype), inverse.shape)
        inverse = jnp.where(stale[:, None, None], fresh, inverse)
        free = ~(((raw <= held.low[None]) & (slope > 0)) | ((raw >= held.high[None]) & (slope < 0)))
        steep = jnp.where(free, slope, 0.0)
        newton = jnp.where(free, -jnp.einsum("bij,bj->bi", inverse, steep, precision="highest"), 0.0)
        falls = jnp.sum(newton * steep, axis=1) < 0
        direction = jnp.where(falls[:, None], newton, -steep)
        longest = jnp.max(jnp.abs(direction), axis=1)
        length = jnp.minimum(1.0, jnp.where(falls, LONGEST, 1.0) / jnp.maximum(longest, 1e-30))
        length = jnp.where(falls, length, 1.0 / jnp.maximum(longest, 1e-30))
        shorter = jnp.clip(0.5 * predicted / (predicted - fall), 0.1, 0.5)
        shorter = walk.length * jnp.where(jnp.isfinite(shorter), shorter, 0.1)
        anew = good | stale
        tiny = (predicted <= 1e-12 * jnp.abs(walk.value)) & ~first & ~good
        ahead = first | (walk.mark - value > limits.progress.astype(value.dtype) * jnp.abs(value))
        idle = jnp.where(good, jnp.where(ahead, 0, walk.idle + 1), walk.idle)
        near = jnp.maximum(limits.gradient.astype(value.dtype), 1e-9 * jnp.abs(value))
        flat = good & (jnp.linalg.norm(steep, axis=1) <= near)
        done = walk.done | (taken >= limits.steps) | (idle >= PATIENCE) | flat | tiny
        done = done | (refused > 2 * MOST_REFUSALS) | (first & ~jnp.isfinite(value))
        return _Walk(
            raw=raw,
            value=jnp.where(good, value, walk.value),
            grad=slope,
            weights=jnp.where(good[:, None, None], weights, walk.weights),
            inverse=inverse,
            direction=jnp.where(done[:, None], 0.0, jnp.where(anew[:, None], direction, walk.direction)),
            length=jnp.where(anew, length, shorter),
            taken=taken,
            refused=refused,
            idle=idle,
            mark=jnp.where(good & ahead, value, walk.mark),
            flat=walk.flat | flat,
            done=done,
        )

    ones, whole = jnp.ones(count, raw.dtype), jnp.zeros(count, int)
    begun = _Walk(
        raw=raw,
        value=jnp.inf * ones,
        grad=jnp.zeros_like(raw),
        weights=weights,
        inverse=jnp.zeros((count, size, size), raw.dtype),
        direction=jnp.zeros_like(raw),
        length=ones,
        taken=whole,
        refused=whole,
        idle=whole,
        mark=jnp.inf * ones,
        flat=jnp.zeros(count, bool),
        done=jnp.zeros(count, bool),
    )
    found = jax.lax.while_loop(again, step, begun)
    loose = jnp.where(held.tied, 0.0, held.strength).astype(raw.dtype)
    prior = 0.5 * loose * jnp.sum(jnp.square(found.raw - held.means(found.raw)), axis=1)
    return found.raw, found.value - prior, found.weights, found.taken, found.flat


def _updated(inverse: Array, move: Array, turn: Array, product: Array) -> Array:
    """The inverse Hessian after a pair (BFGS); zeros stand for none yet, and become a multiple of the identity."""
    unit = jnp.eye(len(move), dtype=move.dtype)
    none = jnp.all(inverse == 0)
    inverse = jnp.where(none, product / jnp.maximum(jnp.sum(turn * turn), 1e-300) * unit, inverse)
    along = inverse @ turn
    scale = (1 + jnp.vdot(turn, along) / product) / product
    cross = jnp.outer(move, along) / product
    return inverse + scale * jnp.outer(move, move) - cross - cross.T
