"""The heavy-ball method on the adjoint system."""

from typing import ClassVar

from jaxtyping import Array

from .._heavy_ball import POLYAK, heavy_ball_constants
from .._spectrum import check_spectrum, resolve
from ._first_order import iterate
from ._solver import AbstractAdjointSolver, AdjointSystem, LinearSolution, check_settings


class AdjointHeavyBall(AbstractAdjointSolver):
    """q₊ = q - t (A q - ∇f) + β (q - q₋), t = 4/(√L + √μ)², β = ((√L - √μ)/(√L + √μ))².

    ‖q_k - q‖₂ <= (1 + k(1 + √β)) β^{k/2} ‖q_0 - q‖₂: the rate of conjugate gradients without its inner products, given
    L and μ. From q = 0 it gives the same numbers as backpropagation through as many heavy-ball steps on the inner loss
    with its second derivatives frozen at the last iterate.

    **Arguments:**

    - `tolerance`: ‖A q - ∇f‖₂/‖∇f‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: products, at most.
    - `smoothness`, `strong_convexity`: L and μ; default those of the family, or else Lanczos estimates (12 products).
        An L below half the true one makes the iteration diverge, which the recomputed residual reports.

    Source: Polyak (USSR Comput. Math. Math. Phys. 4, 1964); Ehrhardt and Roberts, arXiv 2301.04764 (2023).
    """

    tolerance: float | None = None
    max_steps: int = 10_000
    smoothness: float | Array | None = None
    strong_convexity: float | Array | None = None

    citations: ClassVar[tuple[str, ...]] = (POLYAK,)

    def __check_init__(self):
        check_settings("AdjointHeavyBall", self.tolerance, self.max_steps)
        check_spectrum("AdjointHeavyBall", self.strong_convexity, self.smoothness)

    def solve(self, system: AdjointSystem) -> LinearSolution:
        known, given = system.spectrum, (self.strong_convexity, self.smoothness)
        spectrum, _, spent = resolve(*given, known, system.product, system.rhs)
        step, momentum = heavy_ball_constants(spectrum)
        return iterate(system, step, momentum, self.max_steps, spent)
