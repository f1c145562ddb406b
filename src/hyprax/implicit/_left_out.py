"""Fits without one row each, of a family with one output, enclosed: by a shared factor, and by Newton for what is left.

With H the Hessian at the fit w of all rows, z_i = H⁻¹x_i and s_i = ω_i ℓ_i''/n, the Hessian without row i is H_i = H -
s_i x_i x_iᵀ, whose inverse is that of H and a rank-one term. One Newton step from w is w + z_i ω_i ℓ_i'/(n (1 - s_i
x_iᵀz_i)); further ones, with H_i kept, are products of matrices for all rows at once.

What is proved of the exact w_i, at any w̃ with the residual r of its problem: with m = M max_k |x_kᵀ(w̃ - w)| the
Hessian at w̃ is at least e⁻ᵐ H_i, and H_i >= (1 - h_i) H with h_i = s_i x_iᵀz_i. So norms ‖·‖_~ of the inverse Hessian
at w̃ are at most e^(m/2) (1 - h_i)^-½ times those of H⁻¹, and with ν = ‖r‖_~ and ρ = max_{k != i} ‖x_k‖_~ the distance τ
of w̃ from w_i, in the norm of the Hessian at w̃, is at most -log(1 - Mρν)/(Mρ).
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._products import product
from ._cholesky_bound import Factor, factor_of
from ._constants import INFLATION
from ._self_concordance import finite_or_infinite
from .families._losses import AbstractPointLoss
from .families._mean_loss import unit_roundoff
from .families._norms import DesignNorms


class Rows(eqx.Module):
    """A family with one output, at given strengths and example weights: arrays, in the arithmetic of the bounds."""

    inputs: Float[Array, "n p"]
    targets: Float[Array, " n"]
    strengths: Float[Array, " p"]
    weights: Float[Array, " n"]
    offset: Float[Array, " n"]
    norms: DesignNorms
    loss: AbstractPointLoss

    @property
    def count(self) -> int:
        return self.inputs.shape[0]

    @property
    def unit(self) -> float:
        return unit_roundoff(self.inputs)

    @property
    def block(self) -> int:
        """How many rows are left out at once: an array of n numbers each stays in the cache."""
        return max(16, min(64, (1 << 16) // self.count))

    @property
    def inverse(self) -> Float[Array, " p"]:
        """1/λ, infinite for a column without penalty."""
        return jnp.where(self.strengths > 0, 1 / jnp.where(self.strengths > 0, self.strengths, 1), jnp.inf)

    def predict(self, params: Float[Array, "p *B"]) -> Float[Array, "n *B"]:
        """Xw + o."""
        return product(self.inputs, params) + jnp.expand_dims(self.offset, tuple(range(1, params.ndim)))

    def gradient(self, params: Float[Array, " p"]) -> tuple[Array, Array]:
        """The statistic of every row, and ∇g."""
        statistic = self.loss.statistic(self.predict(params), self.targets)
        slope = self.weights * self.loss.slope(statistic, self.targets)
        return statistic, product(self.inputs.T, slope) / self.count + self.strengths * params

    def hessian(self, statistic: Float[Array, " n"]) -> Float[Array, "p p"]:
        curves = self.weights * self.loss.curve_diagonal(statistic) / self.count
        return product((self.inputs * curves[:, None]).T, self.inputs) + jnp.diag(self.strengths)

    def product_error(self, params: Float[Array, "p B"]) -> tuple[Array, Array]:
        """Bounds, for each row and column, of |Xw| and of the rounding of Xw."""
        size = self.norms.rows[:, None] * jnp.sqrt(jnp.sum(jnp.square(params), axis=0))[None]
        return size, (self.inputs.shape[1] + 12) * self.unit * size

    def prediction_error(self, params: Float[Array, "p B"]) -> tuple[Array, Array]:
        """The same for Xw + o."""
        size, off = self.product_error(params)
        size = size + jnp.abs(self.offset)[:, None]
        return size, off + 2 * self.unit * size

    def curve_error(self, statistic: Array, du: Array) -> Array:
        """A bound of the error of the computed ℓ'', rows whose predictions are off by du; and of sums with it."""
        n, p = self.inputs.shape
        relative = jnp.expm1(4 * self.loss.self_concordance * du) + (n + 2 * p + 60) * self.unit
        cancelled = self.unit * self.loss.curve_cancellation(statistic)
        return relative * self.loss.curve_diagonal(statistic) + cancelled


class Centre(eqx.Module):
    """The factor of a Hessian that the fits without one row share, and what norms it gives.

    - `params`, `predictions`: where it is. `slopes`, `curves`: ω_i ℓ_i' and s_i = ω_i ℓ_i''/n there; of several
        classes ω_i ∇ℓ_i and the probabilities.
    - `squares`: upper bounds of ‖x_i‖²_{H⁻¹}; `axes`: of ‖e_j‖_{H⁻¹}; `leverage`: of s_i ‖x_i‖²_{H⁻¹}.
    - `largest`: the largest of `squares` over rows of positive weight other than i, for every i.
    - `plain_squares`, `plain_largest`: the same in the norm of Λ⁻¹.
    - `spread`, `spread_penalty`: ‖Xᵀe‖ <= spread ‖e‖₂ in the norms of H⁻¹ and of Λ⁻¹.
    - `off`: a bound of the error of the computed Hessian, in the spectral norm.
    """

    params: Float[Array, " p"]
    predictions: Float[Array, "n *C"]
    slopes: Float[Array, "n *C"]
    curves: Float[Array, "n *C"]
    factor: Factor
    hessian: Float[Array, "p p"]
    squares: Float[Array, " n"]
    axes: Float[Array, " p"]
    leverage: Float[Array, " n"]
    largest: Float[Array, " n"]
    plain_squares: Float[Array, " n"]
    plain_largest: Float[Array, " n"]
    spread: Float[Array, ""]
    spread_penalty: Float[Array, ""]
    off: Float[Array, ""]

    def nearly(self, v: Float[Array, "p B"]) -> Float[Array, "p B"]:
        """H⁻¹v by products, which are many times faster than triangular solves: for steps that are taken again."""
        return product(self.factor.inverse, product(self.factor.inverse.T, v))

    def solve(self, v: Float[Array, "p B"]) -> Float[Array, "p B"]:
        """H⁻¹v, refined once."""
        first = self.nearly(v)
        return first + self.nearly(v - product(self.hessian, first))


def largest_of_others(weights: Float[Array, " n"], of: Float[Array, " n"]) -> Float[Array, " n"]:
    """The largest over the rows of positive weight other than i, for every i."""
    counted = jnp.where(weights > 0, of, 0)
    first = jnp.argmax(counted)
    return jnp.where(jnp.arange(of.size) == first, jnp.max(counted.at[first].set(0)), counted[first])


def centre_at(rows: Rows, params: Float[Array, " p"]) -> Centre:
    """The centre at `params`, any point: a better one makes tighter bounds."""
    n, p = rows.inputs.shape
    predictions = rows.predict(params)
    statistic = rows.loss.statistic(predictions, rows.targets)
    curves = rows.weights * rows.loss.curve_diagonal(statistic) / n
    du = rows.prediction_error(params[:, None])[1][:, 0]
    error = rows.weights * rows.curve_error(statistic, du) / n
    hessian = rows.hessian(statistic)
    off = jnp.sum(jnp.square(rows.norms.rows) * error) + 4 * rows.unit * jnp.max(rows.strengths)
    factor = factor_of(hessian, off, jnp.min(rows.strengths), rows.unit)
    plain = finite_or_infinite(INFLATION * product(jnp.square(rows.inputs), rows.inverse))
    squares = jnp.minimum(jnp.square(factor.energies(rows.inputs.T)), plain)
    axes = jnp.minimum(factor.energies(jnp.eye(p, dtype=params.dtype)), INFLATION * jnp.sqrt(rows.inverse))

    columns = rows.norms.columns
    penalty = finite_or_infinite(INFLATION * jnp.sqrt(jnp.sum(jnp.square(columns) * rows.inverse)))
    return Centre(
        params=params,
        predictions=predictions,
        slopes=rows.weights * rows.loss.slope(statistic, rows.targets),
        curves=curves,
        factor=factor,
        hessian=hessian,
        squares=squares,
        axes=axes,
        leverage=INFLATION * (curves + error) * squares,
        largest=largest_of_others(rows.weights, squares),
        plain_squares=plain,
        plain_largest=largest_of_others(rows.weights, plain),
        spread=jnp.minimum(INFLATION * jnp.sum(columns * axes), penalty),
        spread_penalty=penalty,
        off=off,
    )


class LeftOut(eqx.Module):
    """The fits without one row each, and how far they are from exact: the first axis is that of the rows left out.

    - `params`, `adjoint`: w̃ ≈ w_i and ã ≈ a_i, the solution of H_i(w_i) a = x_i; of several classes that of x_i ⊗ ∇ℓ_i.
    - `params_error`, `adjoint_error`: bounds of |w̃ - w_i| and |ã - a_i|, entry by entry.
    - `radius`: a bound of |x_iᵀ(w̃ - w_i)|.
    - `params_distance`, `adjoint_distance`: τ and ζ, bounds in the norm of the Hessian at w̃.
    - `reach`: an upper bound of ‖x_k‖ in the dual norm over all k != i.
    - `nearness`: Mρν. - `found`: whether more rounds would gain nothing but digits.
    """

    params: Float[Array, "N p"]
    adjoint: Float[Array, "N p"]
    params_error: Float[Array, "N p"]
    adjoint_error: Float[Array, "N p"]
    radius: Float[Array, " N"]
    params_distance: Float[Array, " N"]
    adjoint_distance: Float[Array, " N"]
    reach: Float[Array, " N"]
    nearness: Float[Array, " N"]
    found: Bool[Array, " N"]


def distance(reach: Array, nu: Array) -> Array:
    """-log(1 - reach ν)/reach, infinite from reach ν = 1; reach = Mρ."""
    near = reach * nu < 1
    safe = jnp.where(reach > 0, reach, 1)
    far = -jnp.log1p(-jnp.where(near, reach * nu, 0)) / safe
    return INFLATION * jnp.where(near, jnp.where(reach * nu > 1e-8, far, nu * (1 + reach * nu)), jnp.inf)


class Norms(eqx.Module):
    """What the bounds of the rows left out share: `wider` = e^(m/2) (1 - h_i)^-½."""

    wider: Float[Array, " B"]
    rho: Float[Array, " B"]
    own: Float[Array, " B"]


def norms_at(rows: Any, centre: Centre, left: Int[Array, " B"], moved: Float[Array, " B"]) -> Norms:
    """`moved`: a bound of max_{k != i} |x_kᵀ(w̃ - w)|."""
    leverage = centre.leverage[left]
    room = jnp.where(leverage < 1, 1 - leverage, 0)
    wider = INFLATION * jnp.exp(0.5 * rows.loss.self_concordance * moved) / jnp.sqrt(room)
    wider = finite_or_infinite(wider)
    rho = finite_or_infinite(wider * jnp.sqrt(centre.largest[left]))
    own = finite_or_infinite(wider * jnp.sqrt(centre.squares[left]))
    rho = jnp.minimum(rho, jnp.sqrt(centre.plain_largest[left]))
    return Norms(wider, rho, jnp.minimum(own, jnp.sqrt(centre.plain_squares[left])))


def record(
    rows: Any,
    centre: Centre,
    left: Int[Array, " B"],
    params: Float[Array, "p B"],
    adjoint: Float[Array, "p B"],
    norms: Norms,
    nu: Float[Array, " B"],
    nu_penalty: Float[Array, " B"],
    of_adjoint: Float[Array, " B"],
    found: Bool[Array, " B"],
    right: tuple[Array, Callable[[Array], Array]] | None = None,
) -> LeftOut:
    """`nu`, `nu_penalty`: ‖r‖ in the norm of the inverse Hessian at w̃ and in that of Λ⁻¹; `of_adjoint`: ‖H̃ã - x_i‖.

    `right`: where the adjoint has another right-hand side than x_i, its norm, and how far it moves within a radius.
    """
    m = rows.loss.self_concordance
    tau = distance(m * norms.rho, nu)
    growth = INFLATION * m * norms.rho * tau
    own_penalty = jnp.sqrt(centre.plain_squares[left])
    radius = finite_or_infinite(INFLATION * own_penalty * nu_penalty)
    radius = jnp.minimum(finite_or_infinite(norms.own * tau), radius)
    size, changed = (norms.own, jnp.zeros_like(tau)) if right is None else (right[0], right[1](radius))
    # ‖ã‖ <= ‖x_i‖ + ‖H̃ã - x_i‖, and Hessians differ by a factor of at most e^growth.
    zeta = INFLATION * jnp.exp(growth) * (of_adjoint + jnp.expm1(growth) * (size + of_adjoint) + changed)
    zeta = finite_or_infinite(zeta)
    inverse_root = INFLATION * jnp.sqrt(rows.inverse)
    axes = jnp.minimum(norms.wider[:, None] * centre.axes[None], inverse_root[None])
    by_penalty = finite_or_infinite(inverse_root[None] * nu_penalty[:, None])
    params_error = jnp.minimum(finite_or_infinite(axes * tau[:, None]), by_penalty)
    everything = finite_or_infinite(norms.wider * jnp.sqrt(jnp.max(centre.squares)))
    return LeftOut(
        params=params.T,
        adjoint=adjoint.T,
        params_error=params_error,
        adjoint_error=finite_or_infinite(axes * zeta[:, None]),
        radius=radius,
        params_distance=tau,
        adjoint_distance=zeta,
        reach=jnp.minimum(everything, jnp.sqrt(jnp.max(centre.plain_squares))),
        nearness=m * norms.rho * nu,
        found=found,
    )
