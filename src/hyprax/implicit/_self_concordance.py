"""A free a posteriori bound for generalised linear models, by generalised self-concordance.

Three ideas replace the global constants of the classical bounds: the penalty is scaled out (residuals in ‖·‖_{Λ⁻¹},
errors in ‖·‖_Λ, where strong convexity is 1, so no 1/μ), |ℓ'''| <= M ℓ'' stands for the Lipschitz constant of the
Hessian, and the direction that the Hessian acts on is the computed adjoint, whose reach max_i osc(x_iᵀq) is measured.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._inner_loss import Point
from .families import DesignNorms, GeneralisedLinear, MeanLoss

INFLATION = 1 + 1e-6  # for the rounding of the norms and sums in the bounds themselves


class FreeBound(eqx.Module):
    """A bound of ‖h - dF/dλ‖₂, its parts for each strength, and the error of the optimum that it rests on."""

    total: Float[Array, ""]
    entries: Float[Array, "..."]
    inner_error: Float[Array, ""]
    adjoint_error: Float[Array, ""]


def _psi(x: Array) -> Array:
    """(e^x - 1)/x, at most 1 + x for small x."""
    safe = jnp.where(x > 1e-8, x, 1)
    return jnp.where(x > 1e-8, jnp.expm1(safe) / safe, 1 + x)


def _inverse_phi(x: Array) -> Array:
    """x/(1 - e^-x), at most 1 + x."""
    safe = jnp.where(x > 1e-8, x, 1)
    return jnp.where(x > 1e-8, -safe / jnp.expm1(-safe), 1 + x)


def _finite_or_infinite(x: Array) -> Array:
    """Overflow must give an infinite bound, never NaN."""
    return jnp.where(jnp.isnan(x), jnp.inf, x)


def free_bound(
    loss: GeneralisedLinear,
    outer: MeanLoss,
    outer_data: tuple[Array, Array],
    outer_norms: DesignNorms,
    hyper: PyTree,
    point: Point,
    outer_grad: Array,
    adjoint: Array,
    residual: Array,
) -> FreeBound:
    """‖h - dF/dλ‖₂ <= max_k t_k‖q‖_{Λ,k} ν + max_k t_k‖ŵ‖_{Λ,k} ζ + max_k t_k ν ζ + rounding, everything at (ŵ, q).

    With e = w* - ŵ, z = q - q*, t_k = |dλ_k/d raw_k|/λ_k, ‖·‖_{Λ,k} restricted to the weights of strength k, and M, osc
    as in the losses:

    1. ‖e‖_Λ <= ν = ‖∇g(ŵ)‖_{Λ⁻¹}, since Āe = -∇g with Ā ⪰ Λ the mean Hessian on the segment.
    2. ρ = M ν max_i sup{osc(x_iᵀv) : ‖v‖_Λ <= 1} bounds M osc(x_iᵀe); then e^-ρ Â ⪯ A(w) ⪯ e^ρ Â on the segment.
    3. ‖e‖_Â <= τ = ν ρ/(1 - e^-ρ), and <= (1 + c‖X Λ^-½‖²/n)^½ ν with c = sup ∇²ℓ.
    4. ‖z‖_Λ <= ‖z‖_{A*} <= ζ = ‖r‖_{Λ⁻¹} + min(M e^{ρ/2} Q τ, c₃ Q ‖X Λ^-½‖²/n ν) + κ ν, with r = Âq - ∇f(ŵ),
       Q = max_i osc(x_iᵀq), κ >= λ_max of Λ^-½ (mean ∇²f on the segment) Λ^-½: A*z = r + (A* - Â)q + ∇f(ŵ) - ∇f(w*);
       the change of A in the direction q is M Q e^{ρ/2}‖·‖_{A*}‖e‖_Â by Cauchy-Schwarz on the third cumulant.
    5. w_j q_j - w*_j q*_j = -q_j e_j + ŵ_j z_j + e_j z_j (signs aside), summed over a group with weights λ_j.

    Rounding errors of ∇g, A q, ∇f and of the assembly of h are added entry by entry before the norms are taken.
    """
    strengths, slope = loss.strengths(hyper), loss.slope(hyper)
    inverse = 1 / strengths
    rounding = loss.rounding(point, hyper, adjoint)
    outer_rounding = outer.gradient_rounding(point.params, outer_data, outer_norms)
    family = loss.loss

    def scaled(v: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(v) * inverse))

    n, m = loss.inputs.shape[0], outer_data[0].shape[0]
    squares = jnp.square(loss.inputs) @ inverse
    outer_squares = jnp.square(outer_data[0]) @ inverse
    parts = tuple(range(1, squares.ndim))
    nu = INFLATION * scaled(jnp.abs(point.grad) + rounding.gradient)
    rho = family.self_concordance * jnp.max(family.oscillation_norm(squares)) * nu * INFLATION
    smallest = jnp.min(strengths)
    design = INFLATION * jnp.minimum(loss.norms.gram / n / smallest, jnp.max(jnp.mean(squares, axis=0)))
    tau = nu * jnp.minimum(_inverse_phi(rho), jnp.sqrt(1 + family.curvature * design))

    reach = INFLATION * jnp.max(family.oscillation(loss.inputs @ adjoint))
    change = jnp.minimum(family.self_concordance * jnp.exp(rho / 2) * tau, family.third_oscillation * design * nu)
    local_rho = family.self_concordance * family.oscillation_norm(outer_squares) * nu
    curved = family.top_curvature(family.mean(outer_data[0] @ point.params)) * _psi(local_rho)
    widest = jnp.max(outer_squares, axis=parts)
    kappa = INFLATION * jnp.minimum(
        jnp.mean(jnp.minimum(family.curvature, _finite_or_infinite(curved)) * widest),
        family.curvature * outer_norms.gram / m / smallest,
    )
    zeta = INFLATION * scaled(jnp.abs(residual) + rounding.product + outer_rounding) + reach * change + kappa * nu

    ratio = slope / loss.grouped_strengths(hyper)
    of_adjoint = ratio * jnp.sqrt(loss.grouped(strengths * jnp.square(adjoint), slope))
    of_params = ratio * jnp.sqrt(loss.grouped(strengths * jnp.square(point.params), slope))
    entries = INFLATION * (of_adjoint * nu + of_params * zeta + ratio * nu * zeta) + rounding.assembly
    total = INFLATION * (jnp.max(of_adjoint) * nu + jnp.max(of_params) * zeta + jnp.max(ratio) * nu * zeta)
    total = total + jnp.sqrt(jnp.sum(jnp.square(rounding.assembly)))
    # Several entries, each bounded: their Euclidean norm bounds the total as well.
    total = jnp.minimum(_finite_or_infinite(total), _finite_or_infinite(INFLATION * jnp.sqrt(jnp.sum(entries**2))))
    return FreeBound(total, _finite_or_infinite(entries), nu, zeta)
