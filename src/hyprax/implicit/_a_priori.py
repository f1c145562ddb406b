"""A priori rates and errors: what an accuracy will take, before any iteration is made."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import equinox as eqx
import numpy as np

from ._constants import Constants

Method: TypeAlias = Literal["gradient_descent", "heavy_ball", "fista", "conjugate_gradients"]


def _gradient_descent(condition: float, k: int) -> float:
    return ((condition - 1) / (condition + 1)) ** k


def _heavy_ball(condition: float, k: int) -> float:
    root = (np.sqrt(condition) - 1) / (np.sqrt(condition) + 1)
    return float((1 + k * (1 + root)) * root**k)


def _fista(condition: float, k: int) -> float:
    if k == 0:
        return 1.0
    momentum = (np.sqrt(condition) - 1) / (np.sqrt(condition) + 1)
    shrink = np.sqrt(1 - 1 / np.sqrt(condition))
    distance = np.sqrt(condition + 1) * shrink ** np.array([k, k - 1])
    return float((1 + momentum) * distance[0] + momentum * distance[1])


def _conjugate_gradients(condition: float, k: int) -> float:
    root = (np.sqrt(condition) - 1) / (np.sqrt(condition) + 1)
    return float(min(2 * np.sqrt(condition) * root**k, np.sqrt(condition)))


_RATES: dict[str, Callable[[float, int], float]] = {
    "gradient_descent": _gradient_descent,
    "heavy_ball": _heavy_ball,
    "fista": _fista,
    "conjugate_gradients": _conjugate_gradients,
}


class APrioriRate(eqx.Module):
    """How fast a first-order method gets to a solution, known before any iteration is made.

        ‖x_k - x*‖₂ <= ρ_k ‖x_0 - x*‖₂,    κ = L/μ

    - `gradient_descent`: ρ_k = ((κ - 1)/(κ + 1))^k with the step 2/(L + μ).
    - `heavy_ball`: (1 + k(1 + √β)) β^{k/2}, √β = (√κ - 1)/(√κ + 1): with t = (1 + β - αλ)/(2√β) in [-1, 1], the k-th
      error polynomial is β^{k/2}(U_k(t) - √β U_{k-1}(t)), and |U_k| <= k + 1.
    - `fista`: ((1 + β) s^k + β s^{k-1}) √(κ + 1), s = (1 - 1/√κ)^½, β = (√κ - 1)/(√κ + 1), at the point y_k that is
      returned: from ½μ‖x_k - x*‖² <= g(x_k) - g* <= (1 - 1/√κ)^k ½(L + μ)‖x_0 - x*‖².
    - `conjugate_gradients`: 2√κ ((√κ - 1)/(√κ + 1))^k, and √κ, which it never exceeds.

    In exact arithmetic. Gradient descent and FISTA: for every L-smooth, μ-strongly convex function; heavy ball and
    conjugate gradients: for quadratics, so for every adjoint system. On a quadratic the same ρ_k bounds the reduction
    of the gradient norm, or residual, of gradient descent, heavy ball and conjugate gradients.

    **Arguments:**

    - `method`: `"gradient_descent"`, `"heavy_ball"`, `"fista"` or `"conjugate_gradients"`.
    - `condition`: κ >= 1.

    Source: Ehrhardt and Roberts, arXiv 2301.04764 (2023), section 3; Nesterov, Lectures on Convex Optimization (2018).
    """

    method: Method = eqx.field(static=True)
    condition: float = eqx.field(static=True)

    def __check_init__(self):
        if self.method not in _RATES:
            raise ValueError(f"APrioriRate: method must be one of {', '.join(map(repr, _RATES))}; got {self.method!r}.")
        if not 1 <= self.condition < np.inf:
            raise ValueError(f"APrioriRate: condition (L/μ) must be a finite number >= 1; got {self.condition}.")

    def reduction(self, steps: int) -> float:
        """ρ_k after k = `steps` iterations."""
        if steps < 0:
            raise ValueError(f"APrioriRate: steps must be an integer >= 0; got {steps}.")
        return _RATES[self.method](self.condition, steps)

    def steps(self, reduction: float) -> int:
        """The least k with ρ_k <= `reduction`, in (0, 1]: iterations that suffice."""
        if not 0 < reduction <= 1:
            raise ValueError(f"APrioriRate: reduction must be in (0, 1]; got {reduction}.")
        if reduction == 1:
            return 0
        # ρ_0 >= 1, and ρ rises at most once before it falls for good: the first k below is found by bisection.
        high = 1
        while self.reduction(high) > reduction:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.reduction(middle) <= reduction else (middle, high)
        return high


def a_priori_bound(
    constants: Constants,
    smoothness: float,
    *,
    gradient_norm: float,
    outer_gradient_norm: float,
    lipschitz_outer: float,
    lipschitz_direct: float = 0.0,
    inner: tuple[Method, int],
    adjoint: tuple[Method, int],
) -> float:
    """‖h - dF/dλ‖₂ <= ω(ε_k, δ_m) after k inner iterations from w_0 and m adjoint iterations from q = 0.

    All is known at w_0, before anything is iterated. With ε_0 = ‖∇g(w_0)‖/μ >= ‖w_0 - w*‖, ε = ρ_k ε_0, and the
    distance s = ε_0 + ε that the inner solver can have moved:

        G = ‖∇f(w_0)‖ + L_f s >= ‖∇f(ŵ)‖,   b = ‖B(w_0)‖ + L_B s >= ‖B(ŵ)‖,   δ = ρ_m G,
        ω = (L_f b/μ + L_A G b/μ² + L_B G/μ) ε + (b/μ) δ + (L_B L_f/μ) ε² + L_fλ ε,

    ρ as in [`hyprax.implicit.APrioriRate`][]. It plans work: [`hyprax.implicit.EhrhardtRoberts`][] measures
    the same terms where the iterations have ended, and is smaller.

    **Arguments:**

    - `constants`: [`hyprax.implicit.Constants`][], μ and the Lipschitz constants global, `mixed_norm` that at w_0.
    - `smoothness`: L, A ⪯ L I everywhere.
    - `gradient_norm`, `outer_gradient_norm`: ‖∇_w g‖₂ and ‖∇_w f‖₂ at w_0.
    - `lipschitz_outer`, `lipschitz_direct`: L_f and L_fλ.
    - `inner`, `adjoint`: method and iterations, such as `("fista", 200)`. An inner loss that is not quadratic has a
        rate for gradient descent and FISTA alone.

    It holds in exact arithmetic, given the constants; it is no certificate.

    Source: Ehrhardt and Roberts, arXiv 2301.04764 (2023), section 3.
    """
    mu, l_a = float(constants.strong_convexity), float(constants.lipschitz_hessian)
    l_b, l_f = float(constants.lipschitz_mixed), float(lipschitz_outer)
    if not 0 < mu <= smoothness:
        raise ValueError(f"EhrhardtRoberts.a_priori: 0 < μ <= L is required; got μ = {mu} and L = {smoothness}.")
    condition = smoothness / mu
    first = gradient_norm / mu
    epsilon = APrioriRate(inner[0], condition).reduction(inner[1]) * first
    moved = first + epsilon
    slope = outer_gradient_norm + l_f * moved
    mixed = float(constants.mixed_norm) + l_b * moved
    delta = APrioriRate(adjoint[0], condition).reduction(adjoint[1]) * slope
    omega = (l_f * mixed / mu + l_a * slope * mixed / mu**2 + l_b * slope / mu) * epsilon + mixed / mu * delta
    return omega + l_b * l_f / mu * epsilon**2 + lipschitz_direct * epsilon
