"""The way of the weights to their mode."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ._estimator import exact_side
from ._mode import deviations, dot, log_joint, newton, radau, rows_times, unrolled
from ._problem import LinearisedModel
from ._truncated_newton import LENGTHS, PROBES, by_newton, hessian

NEAR, NEAR_A_DATUM = 1e-5, 1e-7
"""Nats left at which the way to the mode ends with a last step: in all, and for each example."""
FIRST_ORDER = 10
"""As many times more where the way is by gradients alone."""
PAIRS = 30
"""Steps that the quasi-Newton way remembers."""
EXAMPLES = 500
"""Examples that are gone through at a time."""
CHECK = 20
"""Of conjugate gradients, at most, to see whether the weights have arrived."""
DECREASE, SLOPE, TRIALS = 1e-4, 0.9, 20
"""Of the search along a direction: Wolfe's two constants, and the most lengths tried."""


def cheap(random: LinearisedModel) -> bool:
    """Whether one matrix of the smaller side is: the decrement is then measured at every evaluation."""
    return exact_side(random.count, random.size, random.outputs) is not None


def near(random: LinearisedModel) -> float:
    """The decrement at which weights count as at their mode."""
    return (NEAR + NEAR_A_DATUM * random.size) * (1 if cheap(random) else FIRST_ORDER)


class Arrival(eqx.Module):
    """Where [`hyprax.evidence.to_mode`][] ended: the weights, the nats left, and the steps taken."""

    params: PyTree
    decrement: Float[Array, ""]
    steps: int


def to_mode(problem: LinearisedModel, *, steps: int = 50, tolerance: float = 1e-4) -> Arrival:
    """The weights where the Newton decrement ½ gᵀ(P0 + H)⁻¹g is at most `tolerance` nats, from those of `problem`.

    Where a matrix of the smaller side (weights or outputs) is cheap: Newton's method with a trust region. A step
    maximises the second-order model gᵀs - ½ sᵀA s of the log joint density where sᵀ(P0 + H)s <= Δ², A the Hessian
    itself, by conjugate gradients with P0 + H, of Gauss-Newton, as preconditioner; where A is not positive, it follows
    a direction in which the density is convex, so that saddles are left. Where it brings more, the step is bent to
    s + ½ a, a = -(P0 + H)⁻¹ Jᵀ Λ D²f[s, s] (geodesic acceleration), along which the outputs keep their course: valleys
    of the density wind. A linear model with Gaussian noise arrives in one step. Convolutions on a CPU, slow in compiled
    loops, go by damped Gauss-Newton, w <- w + ((1 + μ) P0 + H)⁻¹ g.

    Else: L-BFGS on the log joint density of all data in the coordinates P0^½ w, where the prior is N(m, I); examples
    are gone through in chunks by a loop of the host's. Its own estimate of the decrement says when to look: conjugate
    gradients for A = I + P0^-½ H P0^-½ then bound it from above, as A >= I, and the weights have arrived where the
    bound is at most `tolerance`. Where the steps are spent before, the bound is what is reported.

    Where g vanishes it says nothing of saddles: at all weights 0 of a network, for instance, or two units alike. So
    before weights are believed to have arrived, conjugate gradients for A s = b, b drawn at random, look for a
    direction in which A is not positive, by 15 products; the way goes on along it where it brings more than
    `tolerance`. A saddle that 15 products do not show is not left.

    **Arguments:**

    - `problem`: the model, as [`hyprax.evidence.linearise`][] makes it.
    - `steps`: the most steps; of L-BFGS, which are cheaper, ten times as many.
    - `tolerance`: the decrement in nats; of Newton's methods that before the last step, which is taken.

    **Returns:** the weights as `params`, the decrement left as `decrement`, infinite where the steps were spent near a
    saddle, and the `steps` taken.

    Source: Nocedal and Wright 2006, Numerical Optimization, chapters 4, 5 and 7; Transtrum and Sethna 2011.
    """
    if not cheap(problem):
        return _by_quasi_newton(problem, 10 * steps, tolerance)
    if unrolled(problem):
        return _by_gauss_newton(problem, steps, tolerance)
    params, left, taken = by_newton(problem, steps, tolerance)
    return Arrival(params, jnp.asarray(left, problem.dtype), taken)


@eqx.filter_jit
def _trial(problem: LinearisedModel, damping: Array) -> tuple[PyTree, Array, Array, Array]:
    step, found = newton(problem, damping)
    moved = jax.tree.map(jnp.add, problem.params, step)
    return moved, found.value, log_joint(problem, problem.params), log_joint(problem, moved)


def _by_gauss_newton(problem: LinearisedModel, steps: int, tolerance: float) -> Arrival:
    damping, taken, left = 0.0, 0, math.inf
    for _ in range(steps):
        moved, found, before, after = _trial(problem, jnp.asarray(damping, problem.dtype))
        promised, before, after = float(found), float(before), float(after)
        if not math.isfinite(before):
            break
        floor = 8 * float(np.finfo(problem.dtype).eps) * abs(before)
        left = (1 + damping) * promised  # A + μ I <= (1 + μ) A, since A >= I
        arrived = left <= tolerance
        if after - before >= 0.1 * promised - floor:
            problem = eqx.tree_at(lambda p: p.params, problem, moved)
            taken += 1
            if after - before >= 0.5 * promised:
                damping = damping / 4 if damping > 1e-3 else 0.0
        elif not arrived:
            damping = max(4 * damping, 0.03)
        if arrived or promised <= floor or damping > 1e8:
            beyond = _beyond(scaled := _Scaled(problem), scaled.start, lambda v: v, max(floor, tolerance))
            if beyond is None:
                break
            problem, damping, left = scaled.at(beyond), 0.0, math.inf
    return Arrival(problem.params, jnp.asarray(left, problem.dtype), taken)


def bounded_decrement(problem: LinearisedModel) -> Float[Array, ""]:
    """½ gᵀ(P0 + H)⁻¹g from above, of all examples, by conjugate gradients in a loop of the host's."""
    scaled = _Scaled(problem)
    grad = scaled.value_and_gradient(scaled.start)[1]
    return jnp.asarray(_bound(scaled, scaled.start, grad, 0.0, True), problem.dtype)


class _Memory(eqx.Module):
    """The last steps s and differences y of the gradient, the newest last; 1/(sᵀy) is 0 where there is none yet."""

    s: Float[Array, "m p"]
    y: Float[Array, "m p"]
    inverse: Float[Array, " m"]
    scale: Float[Array, ""]

    @classmethod
    def empty(cls, like: Array) -> "_Memory":
        none = jnp.zeros((PAIRS, like.size), like.dtype)
        return cls(none, none, none[:, 0], jnp.ones((), like.dtype))

    @eqx.filter_jit
    def after(self, s: Array, y: Array) -> "_Memory":
        """With one more pair, sᵀy > 0."""
        along = dot(s, y)

        def appended(old: Array, new: Array) -> Array:
            return jnp.roll(old, -1, axis=0).at[-1].set(new)

        scale = along / dot(y, y)
        return _Memory(appended(self.s, s), appended(self.y, y), appended(self.inverse, 1 / along), scale)

    @eqx.filter_jit
    def times(self, v: Array) -> Array:
        """The approximate inverse of the Hessian times v: the recursion of two loops."""

        def back(v: Array, pair: tuple) -> tuple[Array, Array]:
            s, y, inverse = pair
            share = inverse * dot(s, v)
            return v - share * y, share

        def forth(v: Array, pair: tuple) -> tuple[Array, None]:
            s, y, inverse, share = pair
            return v + (share - inverse * dot(y, v)) * s, None

        pairs = (self.s, self.y, self.inverse)
        v, shares = jax.lax.scan(back, v, pairs, reverse=True)
        return jax.lax.scan(forth, self.scale * v, (*pairs, shares))[0]


class _Scaled:
    """-log p(D|w)^(1/T) p(w) of x = P0^½ w as one vector, its gradient, and I + P0^-½ H P0^-½ at some weights."""

    def __init__(self, problem: LinearisedModel):
        # A sequence is gone through once for all of its tokens, so it is not cut.
        count = 1 if problem.tokens else -(-problem.size // EXAMPLES)
        parts = np.array_split(np.arange(problem.size, dtype=np.int32), count)
        self.problem = problem.constant()
        self.parts = [None] if count == 1 else [jnp.asarray(part) for part in parts]
        self.start, self.unravel = jax.flatten_util.ravel_pytree(_divided(problem.params, deviations(problem)))

    def at(self, x: Array) -> LinearisedModel:
        """The model at these weights."""
        return eqx.tree_at(lambda p: p.params, self.problem, _times_deviations(self.problem, self.unravel(x)))

    def value_and_gradient(self, x: Array) -> tuple[float, Array]:
        at = self.at(x)
        found = [_fit(at, data) for data in self.parts]
        penalty, slope = _penalty(at)
        value = float(penalty) - sum(float(one) for one, _ in found)
        for _, part in found:
            slope = jax.tree.map(jnp.subtract, slope, part)
        return value, jax.flatten_util.ravel_pytree(slope)[0]

    def hessian_times(self, at: LinearisedModel, v: Array) -> Array:
        tree = self.unravel(v)
        total = v
        for data in self.parts:
            total = total + jax.flatten_util.ravel_pytree(_bent(at, data, tree))[0] - v  # each counts the prior
        return total

    def curvature_times(self, at: LinearisedModel, v: Array) -> Array:
        tree = self.unravel(v)
        total = v
        for data in self.parts:
            total = total + jax.flatten_util.ravel_pytree(_curved(at, data, tree))[0]
        return total


def _divided(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.divide, a, b)


@eqx.filter_jit
def _times_deviations(problem: LinearisedModel, tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.multiply, tree, deviations(problem))


@eqx.filter_jit
def _fit(problem: LinearisedModel, data: Int[Array, " m"] | None) -> tuple[Array, PyTree]:
    """(1/T) Σ log p(y|f) over some examples, and its gradient in the scaled weights."""

    def fit(params: PyTree) -> Array:
        found = eqx.tree_at(lambda p: p.params, problem, params).log_likelihood(data)
        return found / problem.temperature.astype(found.dtype)

    value, grad = jax.value_and_grad(fit)(problem.params)
    return value, jax.tree.map(jnp.multiply, grad, deviations(problem))


@eqx.filter_jit
def _penalty(problem: LinearisedModel) -> tuple[Array, PyTree]:
    value, grad = jax.value_and_grad(lambda w: 0.5 * problem.prior.penalty(w))(problem.params)
    return value, jax.tree.map(jnp.multiply, grad, deviations(problem))


@eqx.filter_jit
def _curved(problem: LinearisedModel, data: Int[Array, " m"] | None, v: PyTree) -> PyTree:
    forward, backward = rows_times(problem, data)
    return backward(forward(v))


@eqx.filter_jit
def _bent(problem: LinearisedModel, data: Int[Array, " m"] | None, v: PyTree) -> PyTree:
    return hessian(problem, data)(v)


def _beyond(scaled: _Scaled, x: Array, inverse: Callable[[Array], Array], enough: float) -> Array | None:
    """Weights beyond a saddle, of more than `enough` nats: `None` where no direction with pᵀA p <= 0 was found.

    Conjugate gradients for A s = b, b random, with the preconditioner `inverse`.
    """
    at, r = scaled.at(x), jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    p = inverse(r)
    start = square = dot(r, p)
    for _ in range(PROBES):
        q = scaled.hessian_times(at, p)
        curved = dot(p, q)
        if curved <= 0:
            break
        r = r - square / curved * q
        z = inverse(r)
        square, before = dot(r, z), square
        if square <= jnp.finfo(x.dtype).eps * start:
            return None
        p = z + square / before * p
    else:
        return None
    value, direction = scaled.value_and_gradient(x)[0], p / jnp.linalg.norm(p)
    for length in (*LENGTHS, *(LENGTHS[-1] * y for y in LENGTHS[1:])):
        for sign in (1, -1):
            moved = x + sign * length * direction
            if scaled.value_and_gradient(moved)[0] < value - enough:
                return moved
    return None


def _bound(scaled: _Scaled, x: Array, grad: Array, tolerance: float, last: bool) -> float:
    """The decrement from above, by conjugate gradients.

    Done where the bound is at most `tolerance`, or, but for the `last`, where the decrement is known to be more.
    """
    at, b = scaled.at(x), -grad
    step, r, p, square, share = jnp.zeros_like(b), b, b, dot(b, b), jnp.ones((), b.dtype)
    bound = 0.5 * float(square)
    for _ in range(CHECK):
        below = 0.5 * float(dot(b, step))
        if bound <= max(tolerance, 1.5 * below) or (below > tolerance and not last):
            break
        q = scaled.curvature_times(at, p)
        alpha = square / dot(p, q)
        step, r = step + alpha * p, r - alpha * q
        square, before = dot(r, r), square
        beta = square / before
        p, share = r + beta * p, radau(share, alpha, beta, 1.0)
        bound = min(bound, 0.5 * float(dot(b, step) + share * square))
    return bound


def _along(scaled: _Scaled, x: Array, value: float, grad: Array, direction: Array) -> tuple | None:
    """A step t d that Wolfe's weak conditions hold for, by doubling and halving; `None` where rounding allows none."""
    slope, floor = float(dot(grad, direction)), 8 * float(jnp.finfo(x.dtype).eps) * abs(value)
    low, high, t = 0.0, math.inf, 1.0
    for _ in range(TRIALS):
        moved = x + t * direction
        new, new_grad = scaled.value_and_gradient(moved)
        if not new <= value + DECREASE * t * slope + floor:  # also where it is not a number
            high = t
        elif float(dot(new_grad, direction)) < SLOPE * slope:
            low = t
        else:
            return moved, new, new_grad
        t = 0.5 * (low + high) if math.isfinite(high) else 2 * t
    return None


def _by_quasi_newton(problem: LinearisedModel, steps: int, tolerance: float) -> Arrival:
    scaled = _Scaled(problem)
    x = scaled.start
    value, grad = scaled.value_and_gradient(x)
    memory, taken, left, looks = _Memory.empty(x), 0, math.inf, tolerance
    while math.isfinite(value):
        direction = -memory.times(grad)
        estimate = -0.5 * float(dot(grad, direction)) if taken else math.inf
        length, found, spent = float(jnp.linalg.norm(grad)), None, taken == steps
        if estimate <= looks or spent or not length:
            left = _bound(scaled, x, grad, tolerance, spent)
            looks = 0.25 * min(looks, estimate)
        if left > tolerance and not spent:
            first = 1.0 if taken else min(1.0, 1.0 / length)
            found = _along(scaled, x, value, grad, first * direction)
            if found is None:
                left = _bound(scaled, x, grad, tolerance, True)
        if found is None:
            beyond = None if spent else _beyond(scaled, x, memory.times, tolerance)
            if beyond is None:
                break
            x, memory, left, looks = beyond, _Memory.empty(x), math.inf, tolerance
            value, grad = scaled.value_and_gradient(x)
        else:
            moved, value, new = found
            memory = memory.after(moved - x, new - grad)
            x, grad = moved, new
        taken += 1
    return Arrival(scaled.at(x).params, jnp.asarray(left, problem.dtype), taken)
