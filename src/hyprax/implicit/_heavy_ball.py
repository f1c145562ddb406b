"""Polyak's heavy ball: one recurrence for the inner problem and for the adjoint system."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._constants import Spectrum

POLYAK = """@article{polyak1964some, author = {Polyak, Boris T.},
  title = {Some methods of speeding up the convergence of iteration methods},
  journal = {USSR Computational Mathematics and Mathematical Physics},
  volume = {4}, number = {5}, pages = {1--17}, year = {1964}}"""


def heavy_ball_constants(spectrum: Spectrum) -> tuple[Array, Array]:
    """The step 4/(√L + √μ)² and the momentum ((√L - √μ)/(√L + √μ))², best for a quadratic with these constants."""
    low, high = jnp.sqrt(spectrum.lower), jnp.sqrt(spectrum.upper)
    return 4 / jnp.square(high + low), jnp.square((high - low) / (high + low))


def heavy_ball_step(
    now: PyTree, before: PyTree, slope: PyTree, step: Float[Array, ""], momentum: Float[Array, ""]
) -> PyTree:
    """x₊ = x - t r + β (x - x₋), r the gradient at x, or the residual."""
    return jax.tree.map(lambda x, b, r: x - step * r + momentum * (x - b), now, before, slope)
