"""The heavy-ball method."""

from typing import ClassVar

from jaxtyping import Array, Float, PyTree

from .._constants import Spectrum
from .._heavy_ball import POLYAK, heavy_ball_constants, heavy_ball_step
from .._inner_loss import AbstractInnerLoss, Point
from .._spectrum import check_spectrum
from ._first_order import descend
from ._solver import AbstractInnerSolver, Minimum, check_settings


class HeavyBall(AbstractInnerSolver):
    """w₊ = w - t ∇g(w) + β (w - w₋), t = 4/(√L + √μ)², β = ((√L - √μ)/(√L + √μ))².

    For a quadratic ‖w_k - w*‖₂ <= (1 + k(1 + √β)) β^{k/2} ‖w_0 - w*‖₂, as fast as conjugate gradients. For other
    strongly convex g it is as fast near the optimum, and convergence from afar is not assured:
    [`hyprax.implicit.FISTA`][]
    has that.

    **Arguments:**

    - `tolerance`: ‖∇g‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: gradients, at most.
    - `smoothness`, `strong_convexity`: L and μ of g in w; default those of the family, or else estimates: by Lanczos at
        the start (12 products), L doubled whenever a step measures more.

    Source: Polyak (USSR Comput. Math. Math. Phys. 4, 1964).
    """

    tolerance: float | None = None
    max_steps: int = 10_000
    smoothness: float | Array | None = None
    strong_convexity: float | Array | None = None

    citations: ClassVar[tuple[str, ...]] = (POLYAK,)

    def __check_init__(self):
        check_settings("HeavyBall", self.tolerance, self.max_steps)
        check_spectrum("HeavyBall", self.strong_convexity, self.smoothness)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        def advance(point: Point, memory: PyTree, spectrum: Spectrum) -> tuple[PyTree, PyTree]:
            return heavy_ball_step(point.params, memory, point.grad, *heavy_ball_constants(spectrum)), point.params

        constants = (self.strong_convexity, self.smoothness)
        return descend(loss, hyper, params, tolerance, self.max_steps, constants, advance)
