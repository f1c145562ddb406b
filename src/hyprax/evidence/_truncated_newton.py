"""Newton's method with a trust region for the mode, where a matrix of the smaller side is cheap."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ._mode import deviations, dot, factored, log_joint, scaled_gradient
from ._problem import LinearisedModel

PRODUCTS = 60
"""Of the Hessian in a step, at most."""
GOOD, POOR, TAKEN = 0.75, 0.25, 1e-3
"""Of what a step promises: from which the region grows, below which it shrinks, and from which the step is taken."""


class Step(NamedTuple):
    """A step in the coordinates P0^½ w: what it promises, its length in the norm of M, and whether it ended at the
    border of the region, or the Hessian was not positive along the way."""

    step: PyTree
    promised: Float[Array, ""]
    length: Float[Array, ""]
    at_border: Bool[Array, ""]
    indefinite: Bool[Array, ""]


def steihaug(
    times: Callable[[PyTree], PyTree], inverse: Callable[[PyTree], PyTree], gradient: PyTree, radius: Array
) -> Step:
    """About the s that maximises gᵀs - ½ sᵀA s where sᵀM s <= radius².

    Conjugate gradients for A s = g with the preconditioner M, `times` v -> A v and `inverse` v -> M⁻¹ v. They end where
    the residual is small (‖r‖ <= min(1/10, √‖g‖) ‖g‖ in the norm of M⁻¹, so that steps converge faster than linearly),
    at the border of the region, or in a direction p with pᵀA p <= 0, which is followed to the border.

    Source: Steihaug 1983; Conn, Gould and Toint 2000, Trust-Region Methods, section 7.5.
    """
    z = inverse(gradient)
    start = dot(gradient, z)
    zero = jnp.zeros_like(start)
    least = jnp.minimum(0.01, jnp.sqrt(start)) * start
    none = jnp.asarray(False)
    # The step, the residual, the direction; rᵀz; of s and p in the norm of M: ss, sp, pp; what s promises.
    carry = jax.tree.map(jnp.zeros_like, gradient), gradient, z, start, (zero, zero, start), zero, none, none, zero

    def along(carry: tuple) -> tuple:
        s, r, p, square, (ss, sp, pp), promised, _, _, count = carry
        q = times(p)
        curved = dot(p, q)
        indefinite = curved <= 0
        alpha = square / jnp.where(indefinite, 1, curved)
        beyond = indefinite | (ss + alpha * (2 * sp + alpha * pp) >= radius**2)
        room = jnp.maximum(radius**2 - ss, 0.0)
        to_border = room / (sp + jnp.sqrt(jnp.maximum(sp**2 + pp * room, jnp.finfo(pp.dtype).tiny)))
        alpha = jnp.where(beyond, to_border, alpha)
        promised = promised + alpha * (square - 0.5 * alpha * curved)
        s = jax.tree.map(lambda s, p: s + alpha.astype(s.dtype) * p, s, p)
        r = jax.tree.map(lambda r, q: r - alpha.astype(r.dtype) * q, r, q)
        z = inverse(r)
        new = dot(r, z)
        beta = new / square
        p = jax.tree.map(lambda z, p: z + beta.astype(z.dtype) * p, z, p)
        norms = ss + alpha * (2 * sp + alpha * pp), beta * (sp + alpha * pp), new + beta**2 * pp
        return s, r, p, new, norms, promised, beyond, indefinite, count + 1

    def goes_on(carry: tuple) -> Array:
        return ~carry[6] & (carry[3] > least) & (carry[8] < PRODUCTS)

    s, _, _, _, (length, *_), promised, border, indefinite, _ = jax.lax.while_loop(goes_on, along, carry)
    return Step(s, promised, jnp.sqrt(length), border, indefinite)


@eqx.filter_jit
def _trial(problem: LinearisedModel, radius: Array) -> tuple[PyTree, Step, Array, Array, Array]:
    """The weights after a step, the step, the decrement before it, and what it brings, on the log joint density."""
    problem = problem.constant()
    scales, params = deviations(problem), problem.params
    g, inverse = scaled_gradient(problem), factored(problem)
    slope = jax.grad(lambda w: log_joint(problem, w))

    def times(v: PyTree) -> PyTree:
        found = jax.jvp(slope, (params,), (jax.tree.map(jnp.multiply, v, scales),))[1]
        return jax.tree.map(lambda x, s: -x * s, found, scales)

    toward = dot(g, inverse(g))
    radius = jnp.where(jnp.isfinite(radius), radius, 1.01 * jnp.sqrt(toward))  # at first, a step of Gauss-Newton
    step = steihaug(times, inverse, g, radius)
    moved = jax.tree.map(lambda w, s, scale: w + s * scale, params, step.step, scales)
    before = log_joint(problem, params)
    return moved, step, 0.5 * toward, before, log_joint(problem, moved) - before


def by_newton(problem: LinearisedModel, steps: int, tolerance: float) -> tuple[PyTree, float, int]:
    """The weights at a mode, the decrement before the last step, and the steps taken.

    The decrement is infinite where the steps were spent and the last met a direction in which the density is convex.

    s about the maximum of the second-order model of the log joint density in a region ‖s‖_M <= Δ around the weights,
    M = P0 + H of Gauss-Newton, A the Hessian itself: near a mode the steps are Newton's, and a saddle, where
    Gauss-Newton stays, is left along a direction in which the density grows.
    """
    radius, taken, left, saddle = math.inf, 0, math.inf, False
    for _ in range(steps):
        moved, step, decrement, before, gained = _trial(problem, jnp.asarray(radius, problem.dtype))
        promised, length, before, gained = (float(x) for x in (step.promised, step.length, before, gained))
        if not math.isfinite(before):
            break
        left, saddle = float(decrement), bool(step.indefinite)
        floor = 8 * float(np.finfo(problem.dtype).eps) * abs(before)
        share = gained / promised if promised > floor else 1.0
        arrived = not saddle and (left <= tolerance or promised <= floor)
        if share >= TAKEN and gained >= -floor:
            problem = eqx.tree_at(lambda p: p.params, problem, moved)
            taken += 1
        if arrived:
            break
        if not share >= POOR:
            radius = 0.25 * length
        elif share > GOOD and bool(step.at_border):
            radius = 2 * length if math.isinf(radius) else 2 * radius
        elif math.isinf(radius):
            radius = 2 * length
        if radius**2 <= floor:
            break
    return problem.params, math.inf if saddle else left, taken
