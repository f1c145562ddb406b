"""Newton's method with a trust region for the mode, where a matrix of the smaller side is cheap."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._mode import deviations, dot, factored, log_joint, rows_times, scaled_gradient
from ._problem import LinearisedModel

PRODUCTS, PROBES = 60, 15
"""Of the Hessian, at most: in a step; and to see whether weights where the gradient vanishes are at a saddle."""
LENGTHS = tuple(4.0**-k for k in range(6))
"""Of a move away from a saddle, tried both ways, in the norm of M: at 1 about the spread of the posterior."""
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
    times: Callable[[PyTree], PyTree],
    inverse: Callable[[PyTree], PyTree],
    gradient: PyTree,
    z: PyTree,
    radius: Array,
    share: Array,
    products: Array,
) -> Step:
    """About the s that maximises gᵀs - ½ sᵀA s where sᵀM s <= radius².

    Conjugate gradients for A s = g with the preconditioner M, `times` v -> A v, `inverse` v -> M⁻¹ v, and z = M⁻¹ g.
    They end where the residual is small (‖r‖² <= `share` ‖g‖² in the norm of M⁻¹), after so many `products`, at the
    border of the region, or in a direction p with pᵀA p <= 0, which is followed to the border. A share of at most ‖g‖
    makes steps converge faster than linearly.

    Source: Steihaug 1983; Conn, Gould and Toint 2000, Trust-Region Methods, section 7.5.
    """
    start = dot(gradient, z)
    zero = jnp.zeros_like(start)
    least = share * start
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
        return ~carry[6] & (carry[3] > least) & (carry[8] < products)

    s, _, _, _, (length, *_), promised, border, indefinite, _ = jax.lax.while_loop(goes_on, along, carry)
    return Step(s, promised, jnp.sqrt(length), border, indefinite)


@eqx.filter_jit
def _trial(
    problem: LinearisedModel, radius: Array, drawn: Float[Array, " p"]
) -> tuple[PyTree, Step, Array, Array, Array]:
    """The weights after a step, the step, the decrement before it, and what it brings, on the log joint density.

    Where a b was `drawn`, not 0, the step is for it in place of g, as far as it goes: where g is 0 there is nothing to
    follow, but conjugate gradients for A s = b meet a direction with pᵀA p <= 0 as soon as the space of
    b, M⁻¹A b, ... holds one, and end far along it. Both in one program, which takes long to compile.
    """
    problem = problem.constant()
    vector, unravel = jax.flatten_util.ravel_pytree(scaled_gradient(problem))
    probes = jnp.any(drawn != 0)
    b = unravel(jnp.where(probes, drawn, vector))
    inverse = factored(problem)
    z = inverse(b)
    square = dot(b, z)
    length = jnp.sqrt(jnp.maximum(square, 0.0))
    radius = jnp.where(jnp.isfinite(radius), radius, 1.01 * length)  # at first, a step of Gauss-Newton
    radius = jnp.where(probes, 1e3 * length, radius)
    share = jnp.where(probes, jnp.finfo(vector.dtype).eps, jnp.minimum(0.01, length))
    step = steihaug(hessian(problem), inverse, b, z, radius, share, jnp.where(probes, PROBES, PRODUCTS))
    acceleration = _acceleration(problem, inverse, step.step)
    straight = _moved(problem, step.step)
    bent = _moved(problem, jax.tree.map(lambda s, a: s + 0.5 * a, step.step, acceleration))
    there = jax.tree.map(lambda *each: jnp.stack(each), problem.params, straight, bent)
    before, one, other = jax.vmap(lambda w: log_joint(problem, w))(there)
    bends = (other > one) | jnp.isnan(one)
    moved = jax.tree.map(lambda a, b: jnp.where(bends, b, a), straight, bent)
    return moved, step, 0.5 * square, before, jnp.fmax(one, other) - before


def _acceleration(problem: LinearisedModel, inverse: Callable[[PyTree], PyTree], step: PyTree) -> PyTree:
    """a = -M⁻¹ Φᵀ Lᵀ D²f[s, s], so that the outputs along s t + ½ a t² keep the course that they set out on.

    Where valleys of the density are narrow and bent, as with little noise, a straight step soon climbs their walls.

    Source: Transtrum and Sethna 2011, Physical Review E 83, 036701: geodesic acceleration.
    """
    along = jax.tree.map(jnp.multiply, step, deviations(problem))

    def speed(params: PyTree) -> Array:
        return jax.jvp(lambda w: problem.logits(None, w), (params,), (along,))[1]

    f, bend = problem.logits(None), jax.jvp(speed, (problem.params,), (along,))[1]
    rows = jax.vmap(problem.likelihood.transposed_root_times)(f, bend)
    _, backward = rows_times(problem, None)
    pulled = backward(problem.shares(None).astype(f.dtype)[:, None] * rows)
    return jax.tree.map(jnp.negative, inverse(pulled))


def hessian(problem: LinearisedModel, data: Int[Array, " m"] | None = None) -> Callable[[PyTree], PyTree]:
    """v -> A v, of minus the log joint density (of some of the data) in the coordinates P0^½ w."""
    scales, slope = deviations(problem), jax.grad(lambda w: log_joint(problem, w, data))

    def times(v: PyTree) -> PyTree:
        found = jax.jvp(slope, (problem.params,), (jax.tree.map(jnp.multiply, v, scales),))[1]
        return jax.tree.map(lambda x, s: -x * s, found, scales)

    return times


def _moved(problem: LinearisedModel, step: PyTree, length: Array | float = 1.0) -> PyTree:
    """The weights after a step in the coordinates P0^½ w."""
    return jax.tree.map(
        lambda w, s, scale: w + jnp.asarray(length, w.dtype) * s * scale, problem.params, step, deviations(problem)
    )


@eqx.filter_jit
def _further(problem: LinearisedModel, step: PyTree, length: Array) -> tuple[PyTree, Array]:
    """The weights after such a part of a step, and what it brings."""
    moved = _moved(problem, step, length)
    return moved, log_joint(problem, moved) - log_joint(problem, problem.params)


def _beyond(problem: LinearisedModel, radius: Array, enough: float) -> PyTree | None:
    """Weights beyond a saddle, of more than `enough` nats: `None` where no direction to such was found."""
    drawn = np.random.default_rng(0).normal(size=problem.count)
    step = _trial(problem, radius, jnp.asarray(drawn, problem.dtype))[1]
    for part in LENGTHS if step.indefinite else ():
        for sign in (1, -1):
            moved, gained = _further(problem, step.step, sign * part / step.length)
            if gained > enough:
                return moved
    return None


def by_newton(problem: LinearisedModel, steps: int, tolerance: float) -> tuple[PyTree, float, int]:
    """The weights at a mode, the decrement before the last step, and the steps taken.

    The decrement is infinite where the steps were spent and the last met a direction in which the density is convex.

    s about the maximum of the second-order model of the log joint density in a region ‖s‖_M <= Δ around the weights,
    M = P0 + H of Gauss-Newton, A the Hessian itself: near a mode the steps are Newton's, and a saddle, where
    Gauss-Newton stays, is left along a direction in which the density grows. Where the gradient vanishes such a
    direction is looked for before the weights are believed.
    """
    radius, taken, left, saddle = math.inf, 0, math.inf, False
    nothing = jnp.zeros(problem.count, problem.dtype)
    for _ in range(steps):
        moved, step, decrement, before, gained = _trial(problem, jnp.asarray(radius, problem.dtype), nothing)
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
            beyond = _beyond(problem, jnp.asarray(radius, problem.dtype), max(floor, tolerance))
            if beyond is None:
                break
            problem = eqx.tree_at(lambda p: p.params, problem, beyond)
            radius, left = 1.0, math.inf
            continue
        if not share >= POOR:
            radius = 0.25 * length
        elif share > GOOD and bool(step.at_border):
            radius = 2 * length if math.isinf(radius) else 2 * radius
        elif math.isinf(radius):
            radius = 2 * length
        if radius**2 <= floor:
            break
    return problem.params, math.inf if saddle else left, taken
