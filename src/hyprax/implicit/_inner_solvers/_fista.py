"""Accelerated gradient descent for strongly convex losses."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._constants import Spectrum
from .._inner_loss import AbstractInnerLoss, Point
from .._spectrum import check_spectrum
from ._first_order import descend
from ._solver import AbstractInnerSolver, Minimum, check_settings


class FISTA(AbstractInnerSolver):
    """x₊ = y - ∇g(y)/L, y₊ = x₊ + β (x₊ - x), β = (√L - √μ)/(√L + √μ), from y = x = w.

    For every L-smooth, μ-strongly convex g: g(x_k) - g* <= (1 - √(μ/L))^k (L + μ)/2 ‖x_0 - x*‖². The gradient is
    measured at y, and y is what is returned.

    **Arguments:**

    - `tolerance`: ‖∇g‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: gradients, at most.
    - `smoothness`, `strong_convexity`: L and μ of g in w; default those of the family, or else estimates: by Lanczos at
        the start (12 products), L doubled whenever a step measures more.

    Source: Beck and Teboulle (SIAM J. Imaging Sci. 2, 2009); for strongly convex g Nesterov, Lectures on Convex
    Optimization (2018), section 2.2; Chambolle and Pock (Acta Numerica 25, 2016).
    """

    tolerance: float | None = None
    max_steps: int = 10_000
    smoothness: float | Array | None = None
    strong_convexity: float | Array | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@article{beck2009fast, author = {Beck, Amir and Teboulle, Marc},
  title = {A fast iterative shrinkage-thresholding algorithm for linear inverse problems},
  journal = {SIAM Journal on Imaging Sciences}, volume = {2}, pages = {183--202}, year = {2009}}""",
        """@article{chambolle2016introduction, author = {Chambolle, Antonin and Pock, Thomas},
  title = {An introduction to continuous optimization for imaging}, journal = {Acta Numerica},
  volume = {25}, pages = {161--319}, year = {2016}}""",
    )

    def __check_init__(self):
        check_settings("FISTA", self.tolerance, self.max_steps)
        check_spectrum("FISTA", self.strong_convexity, self.smoothness)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        def advance(point: Point, memory: PyTree, spectrum: Spectrum) -> tuple[PyTree, PyTree]:
            low, high = jnp.sqrt(spectrum.lower), jnp.sqrt(spectrum.upper)
            momentum = (high - low) / (high + low)
            x = jax.tree.map(lambda y, g: y - g / spectrum.upper, point.params, point.grad)
            return jax.tree.map(lambda new, old: new + momentum * (new - old), x, memory), x

        constants = (self.strong_convexity, self.smoothness)
        return descend(loss, hyper, params, tolerance, self.max_steps, constants, advance)
