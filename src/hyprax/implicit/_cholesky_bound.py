"""The bound that a dense Cholesky factor of the Hessian buys: energy norms instead of those of the penalty."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, PyTree

from .._certificate import Certificate
from .._products import product
from ._bounds import HYPERGRADIENT, Certified, Evaluation
from ._constants import INFLATION
from ._family_bounds import AbstractFamilyCertifier, as_computed, convex_or_infinite, family_of
from ._inner_loss import AbstractInnerLoss, Point
from ._self_concordance import (
    adjoint_reach,
    around,
    finite_or_infinite,
    free_bound,
    geometry,
    growth,
    plain_residuals,
    together,
    weights_bound,
)
from .families._design import is_dense
from .families._generalised_linear import GeneralisedLinear
from .families._mean_loss import prediction_rounding, unit_roundoff
from .families._norms import DesignNorms

LARGEST = 2000  # weights: the factor takes their cube


class Factor(eqx.Module):
    """Upper triangular R with RᵀR ≈ Â, and `scale` with ‖v‖_{Â⁻¹} <= scale ‖y‖ for every computed y = R⁻ᵀv.

    Let ‖RᵀR - Â‖₂ <= ε (rounding of Â, entry by entry, and of the factorisation, γ_{p+1}‖R‖²_F; Higham 2002, theorem
    10.3) and θ = ε/min M, Â ⪰ M: Λ, but for columns without penalty. As Â ⪰ min M I, RᵀR ⪯ (1 + θ) Â, so ‖v‖²_{Â⁻¹} <=
    (1 + θ)‖R⁻ᵀv‖²; likewise Â ⪰ (1 - ε‖R⁻¹‖²) RᵀR, and the better of the two is taken. A triangular solve is exact for
    R + ΔR, ‖ΔR‖ <= γ_p‖R‖_F (theorem 8.5), so ‖R⁻ᵀv‖ <= (1 + γ_p‖R‖_F/σ)‖y‖ with σ the larger of (min M - ε)^½ and
    1/‖R⁻¹‖. `widest` is an upper bound of ‖Â^-½‖₂.

    `inverse` is Y ≈ R⁻¹, for products in place of solves: with E = I - RY, R⁻ᵀv = (I - Eᵀ)⁻¹Yᵀv, and a computed Yᵀv is
    off by at most γ_p‖Y‖_F‖v‖ <= γ_p‖Y‖_F‖R‖_F‖Yᵀv‖/(1 - ‖E‖): so ‖v‖_{Â⁻¹} <= `inverse_scale` ‖y‖ for a computed
    y = Yᵀv.
    """

    upper: Float[Array, "p p"]
    scale: Float[Array, ""]
    widest: Float[Array, ""]
    inverse: Float[Array, "p p"]
    inverse_scale: Float[Array, ""]

    def solve(self, v: Float[Array, "p k"]) -> Float[Array, "p k"]:
        """R⁻ᵀv."""
        return jsl.solve_triangular(self.upper, v, trans="T")

    def norms(self, v: Float[Array, "p k"]) -> Float[Array, " k"]:
        """Upper bounds of ‖v_k‖_{Â⁻¹}."""
        return INFLATION * self.scale * jnp.sqrt(jnp.sum(jnp.square(self.solve(v)), axis=0))

    def energies(self, v: Float[Array, "p k"]) -> Float[Array, " k"]:
        """The same by a product, which many columns are faster by."""
        return INFLATION * self.inverse_scale * jnp.sqrt(jnp.sum(jnp.square(product(self.inverse.T, v)), axis=0))

    def spectral(self, v: Float[Array, "p k"]) -> Float[Array, ""]:
        """An upper bound of ‖Â^-½ v‖₂: tr(K^32)^(1/32) >= λ_max(K) for K = R⁻ᵀv vᵀR⁻¹, at most p^(1/32) of it."""
        solved = self.solve(v)
        power, size = product(solved, solved.T), jnp.ones((), v.dtype)
        for exponent in (1, 2, 4, 8, 16):  # K = size power, kept in range: squared, size is multiplied up
            largest = jnp.linalg.norm(power)
            safe = jnp.where(largest > 0, largest, 1)
            size = size * safe ** (1 / exponent)
            power = product(power / safe, power / safe)
        return INFLATION * self.scale * jnp.sqrt(size * jnp.trace(power) ** (1 / 32))


def _factorised(loss: GeneralisedLinear, point: Point, hyper: PyTree, below: Array) -> Factor:
    strengths, statistic, unit = loss.strengths(hyper), point.memory, unit_roundoff(point.params)
    n, d = loss.inputs.shape
    basis = jnp.eye(strengths.size, dtype=strengths.dtype).reshape(-1, *strengths.shape)
    hessian = jax.lax.map(loss.product(point, hyper), basis).reshape(strengths.size, -1)
    hessian = 0.5 * (hessian + hessian.T)
    _, du = prediction_rounding(point.params, loss.norms, unit, loss.offset)
    ones = jnp.ones_like(statistic)
    relative = jnp.expm1(4 * loss.loss.self_concordance * du) + (n + 2 * d + 60) * unit
    columns = statistic[0].size
    off = relative * loss.loss.curve_abs(statistic, ones) + columns * unit * loss.loss.curve_cancellation(statistic)
    off = jnp.max(loss.weighted(off, hyper), axis=tuple(range(1, off.ndim)))
    pulled = jnp.max(loss.pull_rounding(strengths, jnp.ones_like(strengths), unit))
    error = jnp.sum(jnp.square(loss.norms.rows) * off) / n + pulled
    return factor_of(hessian, error, jnp.min(below), unit)


def factor_of(hessian: Float[Array, "p p"], error: Array, smallest: Array, unit: float) -> Factor:
    """The factor of a computed Â, off by at most `error` in norm, with Â ⪰ `smallest` I; 0 where nothing is known."""
    size = len(hessian)
    upper = jnp.linalg.cholesky(hessian).T
    whole = jnp.sum(jnp.square(upper))
    error = INFLATION * (error + (size + 13) * unit * whole)
    # ‖R⁻¹‖ <= ‖Y‖/(1 - ‖I - RY‖) for Y ≈ R⁻¹: where the data themselves hold Â up, ε is small beside R's own smallest
    # eigenvalue, and not beside that of the penalty.
    inverse = jsl.solve_triangular(upper, jnp.eye(size, dtype=upper.dtype))
    norm = jnp.linalg.norm(inverse)
    missing = jnp.linalg.norm(jnp.eye(size, dtype=upper.dtype) - product(upper, inverse))
    missing = INFLATION * missing + (size + 13) * unit * jnp.sqrt(whole) * norm
    reach = finite_or_infinite(jnp.where(missing < 1, INFLATION * norm / (1 - missing), jnp.inf))
    own = finite_or_infinite(error * jnp.square(reach))
    grown = jnp.minimum(finite_or_infinite(1 + error / smallest), jnp.where(own < 1, 1 / (1 - own), jnp.inf))
    root = jnp.maximum(jnp.sqrt(jnp.maximum(smallest - error, 0)), 1 / reach)
    slack = (size + 12) * unit * jnp.sqrt(whole) / root
    scale = INFLATION * jnp.sqrt(grown) * (1 + slack)
    widest = jnp.minimum(1 / jnp.sqrt(smallest), reach / jnp.sqrt(jnp.where(own < 1, 1 - own, 0)))
    blur = (size + 13) * unit * jnp.sqrt(whole) * norm / (1 - missing)
    inverse_scale = jnp.sqrt(grown) / ((1 - missing) * (1 - blur))
    inverse_scale = jnp.where((missing < 0.5) & (blur < 0.5), INFLATION * inverse_scale, jnp.inf)
    scales = (finite_or_infinite(x) for x in (scale, INFLATION * widest, inverse_scale))
    scale, widest, inverse_scale = scales
    return Factor(upper, scale, widest, inverse, inverse_scale)


def _row_norms(factor: Factor, inputs: Array, like: Array) -> Float[Array, " n"]:
    """Upper bounds of sup osc(x_iᵀv) over ‖v‖_Â <= 1: ‖x_i‖_{Â⁻¹}, or the two largest classes' norms added."""
    columns = like.size // like.shape[0]

    def one(x: Array) -> Array:
        placed = x[:, None, None] * jnp.eye(columns, dtype=x.dtype)[None]
        norms = factor.norms(placed.reshape(-1, columns))
        return norms[0] if columns == 1 else jnp.sum(jax.lax.top_k(norms, 2)[0])

    return jax.lax.map(one, inputs, batch_size=64)


class CholeskyCertifier(AbstractFamilyCertifier):
    """‖h - dF/dλ‖₂ <= ‖Â^-½B_q‖τ + ‖Â^-½B_w‖ζ + max_k t_k τζ, all norms of residuals in ‖·‖_{Â⁻¹}.

    [`hyprax.implicit.ResidualCertifier`][] with the Hessian Â at ŵ in place of the penalty, from a dense Cholesky
    factor: usually ten times tighter, for problems of at most 2,000 weights. With R >= sup osc(x_iᵀv)/‖v‖_Â:

    - ν = ‖∇g(ŵ)‖_{Â⁻¹}; ‖w* - ŵ‖_Â <= τ = -log(1 - M R ν)/(M R) where M R ν < 1;
    - ρ = M R τ; ‖q - q*‖_Â <= ζ = e^ρ (‖r‖_{Â⁻¹} + M ψ(ρ) max_i osc(x_iᵀq) τ + κ τ), κ >= λ_max(Â^-½ ∇²f Â^-½) on the
        segment, ψ(x) = (e^x - 1)/x;
    - columns of B_q and B_w: λ_j q_j and λ_j w_j (times t_k = |dλ_k/d raw_k|/λ_k) over the weights of each strength k;
    - example weights as in [`hyprax.implicit.ResidualCertifier`][], with these τ and ζ.

    The smaller of this and the free bound is given, which is the latter where M R ν >= 1. The rounding of Â, of its
    factor and of every solve is bounded; nothing is assumed of the factor.

    **Raises:** `ValueError` for more than 2,000 weights, or sparse data.

    Source: own derivation.
    """

    outer_norms: DesignNorms | None = eqx.field(default_factory=lambda: None, init=False)

    METHOD: ClassVar[str] = "self-concordance in the norm of the Hessian, by Cholesky, rounding included"

    def prepare(self, loss: AbstractInnerLoss, outer, outer_data) -> AbstractFamilyCertifier:
        if isinstance(loss, GeneralisedLinear):
            size = math.prod(loss.shape)
            if size > LARGEST or not (is_dense(loss.inputs) and is_dense(outer_data[0])):
                raise ValueError(
                    f"CholeskyCertifier requires dense data and at most {LARGEST} weights; got {size} weights, and "
                    f"inputs {type(loss.inputs).__name__} and {type(outer_data[0]).__name__}. Use "
                    "hx.implicit.LookAhead(), which has no such limits."
                )
        return super().prepare(loss, outer, outer_data)

    def certify_double(self, evaluation: Evaluation, outer_norms: DesignNorms) -> Certified:
        e, hyper, point = evaluation, evaluation.hyper, evaluation.point
        loss, outer = family_of(e)
        family, design = loss.loss, loss.inputs
        assert is_dense(design)  # `prepare` has refused it
        space = geometry(loss, e.outer_data, outer_norms, hyper, point)
        residuals = plain_residuals(loss, outer, e.outer_data, outer_norms, hyper, point, e.adjoint, e.residual)
        near = around(space, loss, point, point, residuals.gradient, residuals.gradient_error)
        free = free_bound(loss, outer, e.outer_data, outer_norms, hyper, point, e.adjoint, residuals, near)
        factor = _factorised(loss, point, hyper, space.below)

        def energy(vector: Array, error: Array) -> Array:
            margin = jnp.sqrt(jnp.sum(jnp.square(error) / space.below))
            return factor.norms(vector.reshape(-1, 1))[0] + INFLATION * margin

        nu = energy(residuals.gradient, residuals.gradient_error)
        rows = _row_norms(factor, design, point.memory)
        reach = family.self_concordance * jnp.max(rows)
        near = reach * nu < 1
        tau = jnp.where(reach * nu > 1e-8, -jnp.log1p(-jnp.where(near, reach * nu, 0)) / reach, nu * (1 + reach * nu))
        tau = INFLATION * jnp.where(near, tau, jnp.inf)
        rows_rho = INFLATION * family.self_concordance * rows * tau
        rho = jnp.max(rows_rho)

        inputs, targets = e.outer_data[:2]
        predicted = outer.predict(point.params, e.outer_data)
        outer_rho = INFLATION * family.self_concordance * _row_norms(factor, inputs, predicted) * tau
        curved = outer.loss.top_curvature(outer.loss.statistic(predicted, targets)) * growth(outer_rho)
        curved = outer.scaled(jnp.minimum(outer.loss.curvature, finite_or_infinite(curved * (1 + 1e-10))))
        columns = predicted.size // len(predicted)
        root = (jnp.sqrt(curved / len(predicted))[:, None] * inputs).T
        spread = (root[:, None, :, None] * jnp.eye(columns, dtype=root.dtype)[None, :, None, :]).reshape(
            root.shape[0] * columns, -1
        )
        kappa = jnp.square(factor.spectral(spread))
        change = family.self_concordance * growth(rho) * adjoint_reach(loss, e.adjoint) * tau
        residual = energy(residuals.adjoint, residuals.adjoint_error)
        zeta = INFLATION * jnp.exp(rho) * (residual + change + kappa * tau)

        ratio = loss.penalty.ratio(hyper)
        of_adjoint = _columns(loss, hyper, space.strengths * e.adjoint, ratio)
        of_params = _columns(loss, hyper, space.strengths * point.params, ratio)
        rounding = loss.rounding(point, hyper, e.adjoint, unit_roundoff(point.params))
        entries = factor.norms(of_adjoint) * tau + factor.norms(of_params) * zeta
        entries = INFLATION * (entries.reshape(ratio.shape) + ratio * tau * zeta) + rounding.strengths
        total = factor.spectral(of_adjoint) * tau + factor.spectral(of_params) * zeta + jnp.max(ratio) * tau * zeta
        weights = weights_total = None
        if loss.weights is not None and not loss.weights.constant:
            weights, weights_total = weights_bound(loss, hyper, point, e.adjoint, space, rows_rho, tau, tau, zeta)
        dense = together(INFLATION * total, entries, rounding, weights, weights_total, nu, zeta)
        bound = jnp.minimum(convex_or_infinite(dense.total, loss, hyper), free.total)
        terms = {"cholesky": dense.total, "free": free.total, "inner_error": tau, "adjoint_error": zeta}
        bound = convex_or_infinite(bound, loss, hyper)
        certificate = Certificate(bound, "certified", HYPERGRADIENT, self.METHOD, terms)
        return as_computed(e, certificate, space.products)


def _columns(loss: GeneralisedLinear, hyper: PyTree, product: Array, ratio: Array) -> Float[Array, "p k"]:
    """The columns t_k (product restricted to the weights of the strength k)."""
    count = max(ratio.size, 1)
    index = loss.penalty.spread(jnp.arange(count, dtype=ratio.dtype).reshape(ratio.shape)).ravel()
    inside = index[:, None] == jnp.arange(count, dtype=ratio.dtype)[None, :]
    return jnp.where(inside, product.reshape(-1, 1) * ratio.reshape(1, -1), 0)
