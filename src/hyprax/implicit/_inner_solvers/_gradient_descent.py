"""Gradient descent."""

from typing import ClassVar

import jax
from jaxtyping import Array, Float, PyTree

from .._constants import Spectrum
from .._inner_loss import AbstractInnerLoss, Point
from .._spectrum import check_spectrum
from ._first_order import descend
from ._solver import AbstractInnerSolver, Minimum, check_settings


class GradientDescent(AbstractInnerSolver):
    """w ← w - t ∇g(w), t = 2/(L + μ): ‖w_k - w*‖₂ <= ((L - μ)/(L + μ))^k ‖w_0 - w*‖₂.

    **Arguments:**

    - `tolerance`: ‖∇g‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: gradients, at most.
    - `step`: t, fixed.
    - `smoothness`, `strong_convexity`: L and μ of g in w; default those of the family, or else estimates: L by Lanczos
        at the start (12 products) and doubled whenever a step measures more.

    Source: Nesterov, Lectures on Convex Optimization (2018), theorem 2.1.15.
    """

    tolerance: float | None = None
    max_steps: int = 10_000
    step: float | Array | None = None
    smoothness: float | Array | None = None
    strong_convexity: float | Array | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@book{nesterov2018lectures, author = {Nesterov, Yurii}, title = {Lectures on convex optimization},
  publisher = {Springer}, year = {2018}, edition = {2nd}}""",
    )

    def __check_init__(self):
        check_settings("GradientDescent", self.tolerance, self.max_steps)
        check_spectrum("GradientDescent", self.strong_convexity, self.smoothness)
        check_spectrum("GradientDescent", None, self.step)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        def advance(point: Point, memory: PyTree, spectrum: Spectrum) -> tuple[PyTree, PyTree]:
            step = 2 / (spectrum.lower + spectrum.upper) if self.step is None else self.step
            return jax.tree.map(lambda w, g: w - step * g, point.params, point.grad), memory

        # A given step asks for no constants, and 1 in their place costs no estimate.
        constants = (self.strong_convexity, self.smoothness) if self.step is None else (1.0, 1.0)
        return descend(loss, hyper, params, tolerance, self.max_steps, constants, advance)
