"""How far values and hypergradients of an elastic net may be off: by duality, on a support that is proved."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._products import product
from ._constants import INFLATION
from ._elastic_net_solver import Moments, Solved, on_support, rounded


def count(held: Array) -> Array:
    """The number of rows that judge."""
    return jnp.sum((held > 0).astype(held.dtype))


class Judged(NamedTuple):
    """F and its error, ∇F and its error, the distance of the weights from the optimum, the residuals."""

    value: Array
    value_error: Array
    slope: Array
    slope_error: Array
    away: Array
    off: Array


def judged(x: Array, y: Array, held: Array, fit: Moments, found: Solved, l2: Array) -> Judged:
    """The loss of a net on rows that count by `held`, 0 for those that do not judge."""
    m = count(held)
    away = INFLATION * found.residual / (fit.curvature + jnp.min(l2))
    root, level, centre = jnp.sqrt(held), fit.level, fit.centre[None, :]
    rows = root[:, None]
    unit = jnp.finfo(y.dtype).eps
    left, size = rows * (x - centre), jnp.abs(found.params)
    slip = rows * (fit.centre_error[None, :] + 4 * unit * (jnp.abs(x) + jnp.abs(centre)))
    target = root * (y - level)
    miss = root * (fit.level_error + 4 * unit * (jnp.abs(y) + jnp.abs(level)))
    off = target - product(left, found.params)
    own = (size.size + 8) * unit * (jnp.abs(target) + product(jnp.abs(left), size))
    reach = (jnp.linalg.norm(left, axis=1) + jnp.linalg.norm(slip, axis=1)) * away
    errors = INFLATION * (own + product(slip, size) + miss + reach)
    value = 0.5 * jnp.sum(jnp.square(off)) / m
    rounding = (2 * y.size + 8) * unit
    value_error = jnp.sum(jnp.abs(off) * errors + 0.5 * jnp.square(errors)) / m + rounding * value
    slope = -product(left.T, off) / m
    slope_error = product(jnp.abs(left).T, errors + rounding * jnp.abs(off))
    slope_error = (slope_error + product(slip.T, jnp.abs(off) + errors)) / m
    return Judged(value, INFLATION * value_error, slope, INFLATION * slope_error, away, off)


class Adjoint(NamedTuple):
    """q on the support, whether that is proved, and the errors of the entries -s_j q_j and -w_j q_j."""

    q: Array
    proved: Array
    of_l1: Array
    of_l2: Array


def adjoint(fit: Moments, found: Solved, l1: Array, l2: Array, loss: Judged) -> Adjoint:
    """The solution of (XᵀX/n + Λ)_SS q = ∇_S F, with its error by the residual over strong convexity."""
    w, active, away = found.params, found.params != 0, loss.away
    convex = fit.curvature + jnp.min(l2)
    columns = jnp.linalg.norm(fit.gram, axis=0) + l2 + jnp.linalg.norm(fit.gram_error)
    inside = jnp.abs(found.slope) + found.rounding + INFLATION * columns * away < l1
    proved = jnp.all(jnp.where(active, jnp.abs(w) > away, inside)) & found.converged
    q = on_support(fit, l2, active, loss.slope)
    missing = jnp.where(active, product(fit.gram, q) + l2 * q - loss.slope, 0)
    error = jnp.abs(missing) + rounded(fit, l2, q, jnp.abs(loss.slope)) + loss.slope_error
    error = jnp.linalg.norm(jnp.where(active, error, 0))
    error = INFLATION * error / convex  # of q
    rounding = 8 * jnp.finfo(w.dtype).eps
    of_l1 = jnp.where(active, error + rounding * jnp.abs(q), 0)
    of_l2 = jnp.where(active, (jnp.abs(w) + away) * error + (away + rounding * jnp.abs(w)) * jnp.abs(q), 0)
    return Adjoint(q, proved, of_l1, of_l2)
