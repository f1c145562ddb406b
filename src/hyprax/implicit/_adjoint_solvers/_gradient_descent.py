"""Gradient descent on the adjoint system."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ..._trees import tree_dtype
from .._spectrum import check_spectrum, resolve
from ._first_order import iterate
from ._solver import AbstractAdjointSolver, AdjointSystem, LinearSolution, check_settings


class AdjointGradientDescent(AbstractAdjointSolver):
    """q ← q - t (A q - ∇f): gradient descent on ½ qᵀAq - ∇fᵀq, ‖q_k - q‖₂ <= ((L - μ)/(L + μ))^k ‖q_0 - q‖₂.

    From q = 0, K steps are the truncated Neumann series t Σ_{k<K} (I - tA)^k ∇f, and the same numbers as
    backpropagation through K steps of gradient descent on the inner loss with its second derivatives frozen at the
    last iterate ("inexact automatic differentiation").

    **Arguments:**

    - `tolerance`: ‖A q - ∇f‖₂/‖∇f‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: products, at most.
    - `step`: t; default 2/(L + μ).
    - `smoothness`, `strong_convexity`: L and μ; default those of the family, or else Lanczos estimates (12 products).

    Source: Ehrhardt and Roberts, arXiv 2301.04764 (2023); Grazzi et al., arXiv 2006.16218 (2020).
    """

    tolerance: float | None = None
    max_steps: int = 10_000
    step: float | Array | None = None
    smoothness: float | Array | None = None
    strong_convexity: float | Array | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@article{ehrhardt2023analyzing, author = {Ehrhardt, Matthias J. and Roberts, Lindon},
  title = {Analyzing inexact hypergradients for bilevel learning}, journal = {IMA Journal of Applied Mathematics},
  year = {2023}, note = {arXiv:2301.04764}}""",
    )

    def __check_init__(self):
        check_settings("AdjointGradientDescent", self.tolerance, self.max_steps)
        check_spectrum("AdjointGradientDescent", self.strong_convexity, self.smoothness)

    def solve(self, system: AdjointSystem) -> LinearSolution:
        if self.step is not None:
            return iterate(system, jnp.asarray(self.step, tree_dtype(system.rhs)), None, self.max_steps, 0)
        known, given = system.spectrum, (self.strong_convexity, self.smoothness)
        spectrum, _, spent = resolve(*given, known, system.product, system.rhs)
        return iterate(system, 2 / (spectrum.lower + spectrum.upper), None, self.max_steps, spent)
