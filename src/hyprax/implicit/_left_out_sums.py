"""The leave-one-out loss and its hypergradient from enclosed fits: sums over the rows left out, with their bounds."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._products import product
from ._constants import INFLATION
from ._left_out import LeftOut, Rows
from ._self_concordance import finite_or_infinite, growth


class Judged(eqx.Module):
    """The loss of every row left out, and their weighted mean F = Σ_i c_i ℓ_i, c_i = ω_i/Σ ω.

    - `losses`, `losses_error`: ℓ_i(x_iᵀw_i) and a bound of its error.
    - `slopes`, `slopes_error`: c_i ℓ_i' and a bound of its error.
    - `shares`: c_i. - `used`: how many rows have a weight above 0.
    """

    losses: Float[Array, " N"]
    losses_error: Float[Array, " N"]
    slopes: Float[Array, " N"]
    slopes_error: Float[Array, " N"]
    shares: Float[Array, " N"]
    used: Int[Array, ""]
    mean: Float[Array, ""]
    mean_error: Float[Array, ""]

    def standard_error(self) -> Float[Array, ""]:
        spread = jnp.sum(jnp.square(self.shares * (self.losses - self.mean)))
        return jnp.sqrt(corrected(self.used) * spread)


def corrected(used: Int[Array, ""]) -> Float[Array, ""]:
    """m/(m - 1)."""
    return used / jnp.maximum(used - 1, 1)


def judged(rows: Rows, left: Int[Array, " N"], fits: LeftOut) -> Judged:
    """|ℓ(u*) - ℓ(ũ)| <= |ℓ'| r + ½ ℓ'' e^(Mr) r² for |u* - ũ| <= r, with the global curvature where that is smaller."""
    loss, unit, m = rows.loss, rows.unit, rows.loss.self_concordance
    x, y, weights = rows.inputs[left], rows.targets[left], rows.weights[left]
    p, count, offset = x.shape[1], left.shape[0], rows.offset[left]
    u = jnp.sum(x * fits.params, axis=1) + offset
    size = rows.norms.rows[left] * jnp.sqrt(jnp.sum(jnp.square(fits.params), axis=1)) + jnp.abs(offset)
    du = (p + 14) * unit * size
    r = fits.radius + du
    statistic = loss.statistic(u, y)
    losses, slopes = loss.value(u, y), loss.slope(statistic, y)
    curves = loss.curve_diagonal(statistic) + rows.curve_error(statistic, du)
    own = loss.slope_rounding(statistic, y, size, du, unit)
    steep = jnp.abs(slopes) + own
    local = finite_or_infinite(curves * jnp.exp(m * r))
    bent = jnp.minimum(local, loss.curvature)
    rounding = 20 * unit * (loss.value_size(u, y) + size)
    losses_error = finite_or_infinite(INFLATION * (steep * r + 0.5 * bent * jnp.square(r)) + rounding)
    changed = jnp.minimum(finite_or_infinite(curves * growth(m * r)), loss.curvature) * r + own
    shares = weights / jnp.sum(weights)
    used = weights > 0

    def total(v: Array) -> Array:
        return jnp.sum(jnp.where(used, shares * v, 0))

    summed = (count + 30) * unit * total(loss.value_size(u, y))
    return Judged(
        losses=losses,
        losses_error=losses_error,
        slopes=shares * slopes,
        slopes_error=jnp.where(used, finite_or_infinite(INFLATION * shares * changed), 0),
        shares=shares,
        used=jnp.sum(used),
        mean=total(losses),
        mean_error=INFLATION * total(losses_error) + summed,
    )


class Gradient(eqx.Module):
    """dF/dλ_j for every strength and dF/dω_k for every example weight, with bounds, and sums of squares of the terms.

    - `each`, `square`: Σ_i c_i h_i and Σ_i h_i² of the terms h_i of the rows left out, in the structure of the
        hyperparameters: what the noise is made of.
    """

    strengths: Float[Array, " p"]
    strengths_error: Float[Array, " p"]
    weights: Float[Array, " n"] | None
    weights_error: Float[Array, " n"] | None
    each: PyTree
    square: PyTree


Pull = Callable[[Array, Array | None], PyTree]
"""(dF/dλ, dF/dω) to the structure of the hyperparameters; linear."""
WeightTerms = Callable[[Any, LeftOut, Judged, Array], tuple[Array, Array]]
"""-n times what each example weight changes in the criterion through the fit of each row left out; and its error."""


def gradient(
    rows: Any, left: Int[Array, " N"], fits: LeftOut, seen: Judged, pull: Pull, terms_of: WeightTerms | None
) -> Gradient:
    """dF/dλ_j = -Σ_i c_i ℓ_i' a_ij w_ij; by ω_k (ℓ_k - F)/Σω - (1/n) Σ_{i != k} c_i ℓ_i' (x_kᵀa_i) ℓ_k'(x_kᵀw_i)."""
    count = left.shape[0]
    unit = rows.unit
    terms = -seen.slopes[:, None] * fits.adjoint * fits.params
    a, w = jnp.abs(fits.adjoint), jnp.abs(fits.params)
    of_a, of_w = fits.adjoint_error, fits.params_error
    used = (seen.shares > 0)[:, None]
    off = jnp.abs(seen.slopes)[:, None] * (a * of_w + of_a * w + of_a * of_w)
    off = off + seen.slopes_error[:, None] * (a + of_a) * (w + of_w)
    off = jnp.where(used, finite_or_infinite(off), 0)
    strengths = jnp.sum(terms, axis=0)
    strengths_error = INFLATION * jnp.sum(off, axis=0) + (count + 40) * unit * jnp.sum(jnp.abs(terms), axis=0)
    if terms_of is None:
        pulled = jax.vmap(lambda term: pull(term, None))(terms)
        square = jax.tree.map(lambda x: jnp.sum(jnp.square(x), axis=0), pulled)
        each = jax.tree.map(lambda x: _weighed(seen.shares, x), pulled)
        return Gradient(strengths, strengths_error, None, None, each, square)
    return _with_weights(rows, left, fits, seen, pull, terms_of, terms, strengths, strengths_error)


def _weighed(shares: Float[Array, " N"], x: Array) -> Array:
    """Σ_i c_i x_i."""
    return jnp.sum(jnp.expand_dims(shares, tuple(range(1, x.ndim))) * x.astype(shares.dtype), axis=0)


def weight_terms(
    rows: Rows, fits: LeftOut, seen: Judged, places: Int[Array, " B"]
) -> tuple[Float[Array, "n B"], Float[Array, "n B"]]:
    """(x_kᵀa_i) ℓ_k'(x_kᵀw_i) ℓ_i' for every row k and every row i left out, and bounds of the errors."""
    m = rows.loss.self_concordance
    params, adjoint = fits.params[places].T, fits.adjoint[places].T
    slope = seen.slopes[places]
    y = rows.targets[:, None]
    sizes, du = rows.prediction_error(params)
    _, dv = rows.product_error(adjoint)
    statistic = rows.loss.statistic(rows.predict(params), y)
    v = product(rows.inputs, adjoint)
    steep = rows.loss.slope(statistic, y)
    found = slope[None] * v * steep
    r = (fits.reach * fits.params_distance)[places][None] + du
    curve = rows.loss.curve_diagonal(statistic) + rows.curve_error(statistic, du)
    changed = jnp.minimum(finite_or_infinite(curve * growth(m * r)), rows.loss.curvature) * r
    changed = changed + rows.loss.slope_rounding(statistic, y, sizes, du, rows.unit)
    of_v = (fits.reach * fits.adjoint_distance)[places][None] + dv
    v, steep = jnp.abs(v), jnp.abs(steep)
    off = jnp.abs(slope)[None] * (v * changed + of_v * steep + of_v * changed)
    return found, off + seen.slopes_error[places][None] * (v + of_v) * (steep + changed)


def _with_weights(
    rows: Any,
    left: Int[Array, " N"],
    fits: LeftOut,
    seen: Judged,
    pull: Pull,
    terms_of: WeightTerms,
    terms: Float[Array, "N p"],
    strengths: Float[Array, " p"],
    strengths_error: Float[Array, " p"],
) -> Gradient:
    """Every row left out moves every other's weight: in blocks of n numbers each, as the fits were found."""
    n, unit, count = rows.count, rows.unit, left.shape[0]
    whole = jnp.sum(rows.weights[left])
    direct = (seen.losses - seen.mean) / whole
    direct_error = (seen.losses_error + seen.mean_error + 8 * unit * (jnp.abs(seen.losses) + seen.mean)) / whole
    size = min(rows.block, count)
    blocks = math.ceil(count / size)
    order = jnp.concatenate([jnp.arange(count), jnp.zeros(blocks * size - count, int)]).reshape(blocks, size)
    real = (jnp.arange(blocks * size) < count).astype(terms.dtype).reshape(blocks, size)

    def add(sofar: tuple, part: tuple[Array, Array]) -> tuple[tuple, None]:
        places, real = part
        slope = real * seen.slopes[places]
        other = (jnp.arange(n)[:, None] != left[places][None]).astype(terms.dtype)
        found, off = terms_of(rows, fits, seen, places)
        found = -other * real[None] * found / n
        off = jnp.where((slope != 0)[None] & (other > 0), finite_or_infinite(off) / n, 0)
        placed = found + (1 - other) * (real * direct[places])[None]
        pulled = jax.vmap(pull)(real[:, None] * terms[places], placed.T)
        shares = real * seen.shares[places]
        each = jax.tree.map(lambda x: _weighed(shares, x), pulled)
        square = jax.tree.map(lambda x: jnp.sum(jnp.square(x), axis=0), pulled)
        sums = (jnp.sum(placed, axis=1), jnp.sum(off, axis=1), jnp.sum(jnp.abs(placed), axis=1), each, square)
        return jax.tree.map(jnp.add, sofar, sums), None

    zero = jnp.zeros(n, terms.dtype)
    shapes = jax.eval_shape(pull, terms[0], zero)
    start = (
        zero,
        zero,
        zero,
        jax.tree.map(lambda s: jnp.zeros(s.shape, seen.shares.dtype), shapes),
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
    )
    (weights, off, size_of, each, square), _ = jax.lax.scan(add, start, (order, real))
    error = INFLATION * (off + jnp.zeros(n, off.dtype).at[left].add(direct_error)) + (count + 40) * unit * size_of
    return Gradient(strengths, strengths_error, weights, error, each, square)
