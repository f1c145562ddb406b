"""Fits without one row each by a single Newton step: bounded in O(n p²), since no row's residual is computed.

At w̃ = w + d, d = c z_i, the residual of row i's problem is its linear part, which rounding alone keeps from 0, and a
remainder Σ_{k != i} s_k e_k x_k with |e_k| <= ½ M t_k² ψ₂(M|t_k|), t_k = x_kᵀd, ψ₂(x) = 2(eˣ - 1 - x)/x². Its norm in
H_i⁻¹ is at most (Σ s_k e_k²)^½ <= ½ M ψ₂(M t) t ‖d‖_H with t = max_k ‖x_k‖_{H⁻¹} ‖d‖_H.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, Int

from .._products import product
from ._constants import INFLATION
from ._left_out import Centre, LeftOut, Rows, norms_at, record
from ._self_concordance import finite_or_infinite


def one_step(rows: Rows, centre: Centre, left: Int[Array, " N"]) -> LeftOut:
    """The fits without the rows `left` after one step: exact, up to rounding, for squared loss."""
    n, p = rows.inputs.shape
    unit, m = rows.unit, rows.loss.self_concordance
    x = rows.inputs[left].T
    z = centre.solve(x)
    along = jnp.sum(x * z, axis=0)
    slope, curve = centre.slopes[left], centre.curves[left]
    room = 1 - curve * along
    c = slope / (n * room)
    params = centre.params[:, None] + z * c[None]
    adjoint = z / room[None]

    norm_x, norm_z = (jnp.sqrt(jnp.sum(jnp.square(v), axis=0)) for v in (x, z))
    whole = jnp.linalg.norm(centre.hessian)
    defect = product(centre.hessian, z) - x
    blur = (centre.off + (p + 12) * unit * whole) * norm_z + 4 * unit * norm_x
    of_solve = INFLATION * (centre.factor.energies(defect) + blur * centre.factor.widest)
    statistic, gradient = rows.gradient(centre.params)
    size, du = rows.prediction_error(centre.params[:, None])
    of_slope = rows.weights * rows.loss.slope_rounding(statistic, rows.targets, size[:, 0], du[:, 0], unit)
    of_curve = rows.weights * rows.curve_error(statistic, du[:, 0]) / n
    error = jnp.linalg.norm(of_slope + (n + 12) * unit * jnp.abs(centre.slopes)) / n
    more = 4 * unit * jnp.sum(centre.axes * rows.strengths * jnp.abs(centre.params))
    start = INFLATION * (centre.factor.energies(gradient[:, None])[0] + centre.spread * error + more)

    lost = of_curve[left] * jnp.abs(along) + curve * (p + 12) * unit * norm_x * norm_z  # of s_i x_iᵀz_i
    left_over = jnp.abs(c - slope / n - curve * c * along) + of_slope[left] / n + jnp.abs(c) * lost
    left_over = left_over + 8 * unit * (jnp.abs(c) * (1 + curve * jnp.abs(along)) + jnp.abs(slope) / n)
    own = jnp.sqrt(centre.squares[left])
    placed = 4 * unit * (jnp.sqrt(jnp.sum(jnp.square(params), axis=0)) + jnp.abs(c) * norm_z)
    placed = placed * jnp.sqrt(whole + centre.off)
    linear = INFLATION * (start + jnp.abs(c) * of_solve + left_over * own + placed)

    length = INFLATION * jnp.abs(c) * (own + of_solve) + placed  # ‖d‖_H
    moved = INFLATION * jnp.sqrt(centre.largest[left]) * length
    norms = norms_at(rows, centre, left, moved)
    remainder = 0.5 * m * jnp.exp(m * moved) * moved * length  # ψ₂(x) <= eˣ
    nu = norms.wider * linear + INFLATION * jnp.exp(0.5 * m * moved) * remainder
    of_first = norms.wider * (of_solve + own * (lost + 8 * unit)) / jnp.abs(room)
    of_adjoint = INFLATION * (of_first + jnp.expm1(m * moved) * (norms.own + of_first))
    never = jnp.full_like(nu, jnp.inf)
    found = jnp.isfinite(nu) & jnp.isfinite(of_adjoint)
    nu, of_adjoint = finite_or_infinite(nu), finite_or_infinite(of_adjoint)
    return record(rows, centre, left, params, adjoint, norms, nu, never, of_adjoint, found)


class Slopes(eqx.Module):
    """The derivative of the one-step criterion with respect to each strength and each example weight."""

    strengths: Float[Array, " p"]
    weights: Float[Array, " n"]


def one_step_slopes(rows: Rows, params: Float[Array, " p"], left: Int[Array, " N"]) -> Slopes:
    """By reverse mode through the step, and through the fit w by the implicit function theorem.

    F₁ = Σ_i ω_i ℓ_i(u_i + δ_i)/Σ_i ω_i, δ_i = x_iᵀz_i ω_i ℓ_i'/(n (1 - s_i x_iᵀz_i)).
    """
    n = rows.count

    def criterion(w: Array, strengths: Array, weights: Array) -> Array:
        here = eqx.tree_at(lambda r: (r.strengths, r.weights), rows, (strengths, weights))
        u = rows.predict(w)
        statistic = rows.loss.statistic(u, rows.targets)
        inverse = jnp.linalg.inv(here.hessian(statistic))  # triangular solves of many columns are slow on CPUs
        along = jnp.sum(product(rows.inputs[left], inverse) * rows.inputs[left], axis=1)
        curve = (weights * rows.loss.curve_diagonal(statistic))[left] / n
        slope = (weights * rows.loss.slope(statistic, rows.targets))[left] / n
        moved = u[left] + along * slope / (1 - curve * along)
        chosen = weights[left]
        return jnp.sum(chosen * rows.loss.value(moved, rows.targets[left])) / jnp.sum(chosen)

    of_params, strengths, weights = jax.grad(criterion, argnums=(0, 1, 2))(params, rows.strengths, rows.weights)
    statistic, _ = rows.gradient(params)
    q = jsl.cho_solve((jnp.linalg.cholesky(rows.hessian(statistic)), True), of_params)
    slope = rows.loss.slope(statistic, rows.targets)
    return Slopes(strengths - q * params, weights - product(rows.inputs, q) * slope / n)
