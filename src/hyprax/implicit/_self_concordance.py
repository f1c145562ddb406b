"""A free a posteriori bound for generalised linear models, by generalised self-concordance.

Three ideas replace the global constants of the classical bounds: the penalty is scaled out (residuals in ‖·‖_{Λ⁻¹},
errors in ‖·‖_Λ, where strong convexity is 1, so no 1/μ), |ℓ'''| <= M ℓ'' stands for the Lipschitz constant of the
Hessian, and the direction that the Hessian acts on is the computed adjoint, whose reach max_i osc(x_iᵀq) is measured.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ._constants import INFLATION, Rounding
from ._elimination import eliminated
from ._inner_loss import Point
from .families._design import forward, forward_squared
from .families._generalised_linear import GeneralisedLinear
from .families._mean_loss import MeanLoss, OuterData, prediction_rounding, unit_roundoff
from .families._norms import DesignNorms


class Residuals(eqx.Module):
    """∇g(ŵ) and r = Â q - ∇f(ŵ) as computed, with bounds, entry by entry, on what rounding has done to them."""

    gradient: Float[Array, "d *C"]
    adjoint: Float[Array, "d *C"]
    gradient_error: Float[Array, "d *C"]
    adjoint_error: Float[Array, "d *C"]


class Geometry(eqx.Module):
    """What a bound knows of the problem in the norms ‖·‖_M and ‖·‖_{M⁻¹}.

    All but the first two and the last are upper bounds.

    - `strengths`: Λ.
    - `below`: the diagonal of M, A ⪰ M: Λ itself where every weight has a penalty; with columns that have none, M of
        `eliminated` at the point that the geometry was made at. `around` makes it hold on the way to the optimum.
    - `rows`, `outer_rows`: ‖x_i‖²_{M⁻¹} for each part of a prediction, on the data of g and of f.
    - `design`: ‖Ω^½XM^-½‖₂²/n; `outer_design`: ‖VM^-½‖₂²/m; `plain_design`: ‖XM^-½‖₂²/n.
    - `products`: how many with A it took.
    """

    strengths: Float[Array, "d *C"]
    below: Float[Array, "d *C"]
    rows: Float[Array, "n *C"]
    outer_rows: Float[Array, "m *C"]
    design: Float[Array, ""]
    plain_design: Float[Array, ""]
    outer_design: Float[Array, ""]
    products: Int[Array, ""]


class Enclosure(eqx.Module):
    """A bound of ‖h - dF/dλ‖₂, its parts for each strength and weight, and the errors that it rests on."""

    total: Float[Array, ""]
    strengths: Float[Array, "..."]
    weights: Float[Array, "..."] | None
    inner_error: Float[Array, ""]
    adjoint_error: Float[Array, ""]


def growth(x: Array) -> Array:
    """ψ(x) = (e^x - 1)/x, at most 1 + x for small x."""
    safe = jnp.where(x > 1e-8, x, 1)
    return jnp.where(x > 1e-8, jnp.expm1(safe) / safe, 1 + x)


def _inverse_phi(x: Array) -> Array:
    """x/(1 - e^-x), at most 1 + x."""
    safe = jnp.where(x > 1e-8, x, 1)
    return jnp.where(x > 1e-8, -safe / jnp.expm1(-safe), 1 + x)


def finite_or_infinite(x: Array) -> Array:
    """Overflow must give an infinite bound, never NaN."""
    return jnp.where(jnp.isnan(x), jnp.inf, x)


def _times(constant: Array | float, x: Array) -> Array:
    """constant · x for a constant that may be infinite: an infinite bound also where x = 0."""
    return finite_or_infinite(constant * x)


def geometry(
    loss: GeneralisedLinear, outer_data: OuterData, outer_norms: DesignNorms, hyper: PyTree, point: Point
) -> Geometry:
    """The scaled norms, from one pass over each data matrix; with free columns M is that at the point."""
    strengths = loss.strengths(hyper)
    below, products = (strengths, jnp.asarray(0)) if loss.free is None else eliminated(loss, point, hyper)
    inverse, smallest = 1 / below, jnp.min(below)
    n, m = loss.inputs.shape[0], outer_data[0].shape[0]
    rows, outer_rows = forward_squared(loss.inputs, inverse), forward_squared(outer_data[0], inverse)

    def norm(rows: Array, gram: Array, count: int, heaviest: Array | float) -> Array:
        return INFLATION * jnp.minimum(heaviest * gram / count / smallest, jnp.max(jnp.mean(rows, axis=0)))

    plain = norm(rows, loss.norms.gram, n, 1.0)
    design = plain
    if loss.weights is not None:
        design = norm(loss.weighted(rows, hyper), loss.norms.gram, n, jnp.max(loss.weights.leaf(hyper)))
    outer_design = norm(outer_rows, outer_norms.gram, m, 1.0)
    return Geometry(strengths, below, rows, outer_rows, design, plain, outer_design, products)


def around(
    space: Geometry, loss: GeneralisedLinear, origin: Point, point: Point, gradient: Array, error: Array
) -> Geometry:
    """The geometry made at `origin` with a smaller M: one that A is above between `point` and the optimum.

    Λ is below A everywhere, so nothing changes without free columns. With them, and with c the constant of
    self-concordance, δ = max_i osc(x_iᵀ(ŵ - origin)) gives A(ŵ) ⪰ e^-cδ M₀ =: M₁. In the norms of M₁ let
    R >= sup osc(x_iᵀv)/‖v‖, ν >= ‖∇g(ŵ)‖_{M₁⁻¹}. Where c R ν < 1 the optimum exists and lies in the ball of radius
    r = -log(1 - c R ν)/(c R) about ŵ, since ⟨∇g(w), w - ŵ⟩ >= 0 on its boundary; there A ⪰ e^-cRr M₁ =
    (1 - c R ν) M₁. NaN where c R ν >= 1: nothing is proved.
    """
    family = loss.loss
    if loss.free is None or family.self_concordance == 0:
        return space
    moved = INFLATION * family.self_concordance * adjoint_reach(loss, point.params - origin.params)
    nu = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(gradient) + error) / space.below))
    reach = family.self_concordance * jnp.max(family.oscillation_norm(space.rows))
    near = INFLATION**2 * jnp.exp(moved) * reach * nu
    factor = jnp.where(near < 1, jnp.exp(-moved) * (1 - near) / INFLATION, jnp.nan)
    grown = INFLATION / factor
    norms = lambda s: (s.rows, s.outer_rows, s.design, s.plain_design, s.outer_design)  # noqa: E731
    wider = tuple(grown * x for x in norms(space))
    return eqx.tree_at(lambda s: (s.below, *norms(s)), space, (factor * space.below, *wider))


def plain_residuals(
    loss: GeneralisedLinear,
    outer: MeanLoss,
    outer_data: OuterData,
    outer_norms: DesignNorms,
    hyper: PyTree,
    point: Point,
    adjoint: Array,
    residual: Array,
) -> Residuals:
    """The residuals as the working precision gives them, with a priori bounds of their rounding."""
    unit = unit_roundoff(point.params)
    rounding = loss.rounding(point, hyper, adjoint, unit)
    of_outer = outer.gradient_rounding(point.params, outer_data, outer_norms, unit)
    return Residuals(point.grad, residual, rounding.gradient, rounding.product + of_outer)


def inner_error(space: Geometry, residuals: Residuals) -> Float[Array, ""]:
    """ν >= ‖w* - ŵ‖_Ā: with Ā ⪰ M the mean Hessian on the segment, Ā(w* - ŵ) = -∇g(ŵ), so ν = ‖∇g(ŵ)‖_{M⁻¹}."""
    square = jnp.square(jnp.abs(residuals.gradient) + residuals.gradient_error)
    return INFLATION * jnp.sqrt(jnp.sum(square / space.below))


def outer_curvature(
    space: Geometry, outer: MeanLoss, outer_data: OuterData, params: Array, nu: Float[Array, ""]
) -> Float[Array, ""]:
    """κ >= λ_max(M^-½ (mean of ∇²f on the segment to w*) M^-½), for ‖w* - ŵ‖_M <= ν."""
    family, targets = outer.loss, outer_data[1]
    reach = family.self_concordance * family.oscillation_norm(space.outer_rows) * nu
    curved = family.top_curvature(family.statistic(outer.predict(params, outer_data), targets)) * growth(reach)
    widest = jnp.max(space.outer_rows, axis=tuple(range(1, space.outer_rows.ndim)))
    local = jnp.mean(outer.scaled(jnp.minimum(family.curvature, finite_or_infinite(curved)) * widest))
    whole = _times(family.curvature, outer.heaviest(space.outer_design) * space.outer_design)
    return INFLATION * jnp.minimum(finite_or_infinite(local), whole)


def free_bound(
    loss: GeneralisedLinear,
    outer: MeanLoss,
    outer_data: OuterData,
    outer_norms: DesignNorms,
    hyper: PyTree,
    point: Point,
    adjoint: Array,
    residuals: Residuals,
    space: Geometry,
) -> Enclosure:
    """A bound of ‖h - dF/dλ‖₂ at (ŵ, q) that needs no solve.

    With e = w* - ŵ, z = q - q*, Â the Hessian at ŵ, A* at w*, Λ = diag λ, ω' = ω/n the example weights, M and osc as in
    the losses, and N a diagonal matrix with A ⪰ N (and A ⪰ Λ) on the segment: Λ itself, or with columns without penalty
    that of `around`, which is called M in the geometry:

    1. ‖e‖_N <= ν and ‖e‖_Λ <= ν = ‖∇g(ŵ)‖_{N⁻¹}.
    2. ρ_i = M ν sup{osc(x_iᵀv) : ‖v‖_N <= 1} bounds M osc(x_iᵀe); with ρ = max ρ_i, e^-ρ Â ⪯ A(w) ⪯ e^ρ Â on the
       segment.
    3. ‖e‖_Â <= τ = ν min(ρ/(1 - e^-ρ), (1 + c‖Ω'^½XN^-½‖²)^½), c = sup ∇²ℓ.
    4. ‖z‖_N, ‖z‖_Λ <= ‖z‖_{A*} <= ζ = ‖r‖_{N⁻¹} + min(M e^{ρ/2} Q τ, c₃ Q ‖Ω'^½XN^-½‖² ν) + κ ν, with r = Âq - ∇f(ŵ),
       Q = max_i osc(x_iᵀq), κ of `outer_curvature`: A*z = r + (A* - Â)q + ∇f(ŵ) - ∇f(w*); the change of A in the
       direction q is M Q e^{ρ/2}‖·‖_{A*}‖e‖_Â by Cauchy-Schwarz on the third cumulant.
    5. Strengths, t_k = |dλ_k/d raw_k|/λ_k: w_j q_j - w*_j q*_j = -q_j e_j + ŵ_j z_j + e_j z_j (signs aside), so
       |h_k - ∂F_k| <= t_k (‖q‖_{Λ,k} ν + ‖ŵ‖_{Λ,k} ζ + ν ζ), and the norm over k is at most the same with max_k.
    6. Weights, c_i = |dω_i/d raw_i|/n: ∇ℓ̂ᵀx_iᵀq - ∇ℓ*ᵀx_iᵀq* = ∇ℓ̂ᵀ(x_iᵀz) + (∇ℓ̂ - ∇ℓ*)ᵀ(x_iᵀq) - (∇ℓ̂ -
       ∇ℓ*)ᵀ(x_iᵀz), where |(∇ℓ̂ - ∇ℓ*)ᵀv| <= ψ(ρ_i)‖x_iᵀe‖_D̂‖v‖_D̂ and <= c‖x_iᵀe‖‖v‖, Σ_i ω'_i‖x_iᵀe‖²_D̂ <= τ²,
       Σ_i ω'_i‖x_iᵀz‖²_D̂ <= e^ρ ζ², ψ(x) = (e^x - 1)/x. See `weights_bound`.

    Rounding errors of ∇g, A q, ∇f and of the assembly of h are added entry by entry before the norms are taken.
    """
    family, strengths = loss.loss, space.strengths
    unit = unit_roundoff(point.params)
    rounding = loss.rounding(point, hyper, adjoint, unit)
    nu = inner_error(space, residuals)
    rows_rho = INFLATION * family.self_concordance * family.oscillation_norm(space.rows) * nu
    rho = jnp.max(rows_rho)
    tau = nu * jnp.minimum(_inverse_phi(rho), jnp.sqrt(1 + _times(family.curvature, space.design)))

    reach = adjoint_reach(loss, adjoint)
    change = jnp.minimum(
        finite_or_infinite(family.self_concordance * jnp.exp(rho / 2) * tau),
        _times(family.third_oscillation, space.design * nu),
    )
    kappa = outer_curvature(space, outer, outer_data, point.params, nu)
    residual = jnp.square(jnp.abs(residuals.adjoint) + residuals.adjoint_error)
    zeta = INFLATION * jnp.sqrt(jnp.sum(residual / space.below)) + reach * change + kappa * nu

    slope, ratio = loss.penalty.slope(hyper), loss.penalty.ratio(hyper)
    of_adjoint = ratio * jnp.sqrt(loss.penalty.summed(strengths * jnp.square(adjoint), slope))
    of_params = ratio * jnp.sqrt(loss.penalty.summed(strengths * jnp.square(point.params), slope))
    entries = INFLATION * (of_adjoint * nu + of_params * zeta + ratio * nu * zeta) + rounding.strengths
    total = INFLATION * (jnp.max(of_adjoint) * nu + jnp.max(of_params) * zeta + jnp.max(ratio) * nu * zeta)
    weights = weights_total = None
    if loss.weights is not None and not loss.weights.constant:
        weights, weights_total = weights_bound(loss, hyper, point, adjoint, space, rows_rho, nu, tau, zeta)
    return together(total, entries, rounding, weights, weights_total, nu, zeta)


def adjoint_reach(loss: GeneralisedLinear, adjoint: Array) -> Float[Array, ""]:
    """max_i osc(x_iᵀq), rounding included."""
    hidden = 2 * jnp.max(prediction_rounding(adjoint, loss.norms, unit_roundoff(adjoint))[1])
    return INFLATION * (jnp.max(loss.loss.oscillation(forward(loss.inputs, adjoint))) + hidden)


def together(
    total: Array,
    entries: Array,
    rounding: Rounding,
    weights: Array | None,
    weights_total: Array | None,
    nu: Array,
    zeta: Array,
) -> Enclosure:
    """Strengths (rounding included in their entries, not in their total) and weights (in neither) as one bound."""
    total = _smaller(total, entries, rounding.strengths)
    if weights is not None:
        assert weights_total is not None
        assert rounding.weights is not None
        weights = finite_or_infinite(weights + rounding.weights)
        total = INFLATION * jnp.hypot(total, _smaller(weights_total, weights, rounding.weights))
    return Enclosure(finite_or_infinite(total), finite_or_infinite(entries), weights, nu, zeta)


def _smaller(total: Array, entries: Array, rounding: Array) -> Array:
    """The bound of the whole with its rounding, or the norm of the bounds of its entries, which is another."""
    total = finite_or_infinite(total + jnp.sqrt(jnp.sum(jnp.square(rounding))))
    return jnp.minimum(total, finite_or_infinite(INFLATION * jnp.sqrt(jnp.sum(jnp.square(entries)))))


def weights_bound(
    loss: GeneralisedLinear,
    hyper: PyTree,
    point: Point,
    adjoint: Array,
    space: Geometry,
    rows_rho: Array,
    nu: Array,
    tau: Array,
    zeta: Array,
) -> tuple[Array, Array]:
    """Bounds of |h_k - ∂F_k| for each weight k, and of their norm, without rounding.

    The three terms of step 6, each the smaller of a form in the norms of D̂ (exact near the optimum, and infinite where
    ω_i = 0 or ρ is large) and one by global constants. For a leaf that each entry of which weighs up to G examples,
    sums over a group are taken by Cauchy-Schwarz, and the norm over groups by ‖Σ_{i in k} x_i‖_k <= √G ‖x‖.
    """
    assert loss.weights is not None
    family, targets, weights = loss.loss, loss.targets, loss.weights
    n = loss.inputs.shape[0]
    leaf_slope = weights.slope(hyper)
    omega, rate = weights.values(hyper) / n, weights.spread(leaf_slope) / n
    parts = tuple(range(1, point.memory.ndim))
    unit = unit_roundoff(point.params)
    size, du = prediction_rounding(point.params, loss.norms, unit, loss.offset)
    error = family.slope_rounding(point.memory, targets, size, du, unit)
    slope = jnp.abs(family.slope(point.memory, targets)) + error
    steep = jnp.sqrt(jnp.sum(jnp.square(slope), axis=parts))
    reach = forward(loss.inputs, adjoint)
    hidden = jnp.broadcast_to(prediction_rounding(adjoint, loss.norms, unit)[1], reach.shape)
    hidden = jnp.sqrt(jnp.sum(jnp.square(hidden), axis=parts))
    reach_size = jnp.sqrt(jnp.sum(jnp.square(reach), axis=parts)) + hidden
    # The squared D̂-norm is a difference for several parts: it may have lost all but 1e-14 of its terms.
    square = jnp.sum(reach * family.curve(point.memory, reach), axis=parts)
    lost = 1e-7 * jnp.sqrt(family.top_curvature(point.memory)) * reach_size
    curved = jnp.sqrt(jnp.maximum(square, 0)) + lost + jnp.sqrt(family.top_curvature(point.memory)) * hidden
    widest = jnp.sqrt(jnp.max(space.rows, axis=parts))
    psi, half = growth(rows_rho), jnp.exp(rows_rho / 2)
    root = jnp.sqrt(omega)
    group = weights.count(leaf_slope)

    def summed(x: Array) -> Array:
        return weights.summed(x, leaf_slope)

    def norm(x: Array) -> Array:
        return jnp.sqrt(summed(jnp.square(x)))

    by_curvature = rate * jnp.sqrt(family.dual_slope(point.memory, targets, error)) / root * jnp.max(half)
    by_slope = rate * jnp.sqrt(jnp.sum(jnp.square(slope) * space.rows, axis=parts))
    first = _least(summed(by_slope), norm(by_curvature)) * zeta
    change, change_by_constant = psi * rate / root * curved, _times(family.curvature, rate * reach_size)
    second = _least(norm(change) * tau, summed(change_by_constant * widest) * nu)
    both, both_by_constant = psi * half * rate / omega, _times(family.curvature, rate * jnp.square(widest))
    third = _least(weights.largest(both, leaf_slope) * tau * zeta, summed(both_by_constant) * nu * zeta)
    entries = INFLATION * (first + second + third)

    design = jnp.sqrt(space.plain_design * n)
    slopes = _least(jnp.max(rate * steep) * design, jnp.sqrt(jnp.sum(jnp.square(by_slope))), jnp.max(by_curvature))
    changes = _least(jnp.max(change) * tau, jnp.max(change_by_constant) * design * nu)
    rest = _least(jnp.max(both) * tau * zeta, _times(family.curvature, jnp.max(rate * widest)) * design * nu * zeta)
    return entries, INFLATION * group**0.5 * (slopes * zeta + changes + rest)


def _least(*bounds: Array) -> Array:
    """The smallest of several bounds of one thing; one that is not a number says nothing."""
    smallest = finite_or_infinite(bounds[0])
    for bound in bounds[1:]:
        smallest = jnp.minimum(smallest, finite_or_infinite(bound))
    return smallest
