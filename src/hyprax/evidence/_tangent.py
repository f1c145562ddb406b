"""The tangent bound: stochastic EKFAC, made a bound by a linear correction."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._designs import check_size, subset
from ._estimator import AbstractEstimator, EstimatorKind, LogDeterminant, cotangents
from ._problem import Problem
from ._roots import Rows
from ._structures import Basis, accumulate, bases, projected_squares, second_factors


class Tangent(AbstractEstimator):
    """U = Σ_l Σ_io [ log(1 + s̃_io) + (ŝ_io - s̃_io)/(1 + s̃_io) ]: E U >= log|I + K| for any s̃ > -1 and any basis.

    The logarithm of a determinant is concave, so it lies below its tangent at I + U diag(s̃) Uᵀ; the tangent is linear
    in the curvature, so an unbiased estimate of that keeps it a bound in expectation. Basis and s̃ come from reference
    rows, ŝ from fresh rows drawn apart: one Rademacher cotangent L_n ξ_n a datum, weight N/B, scaled by P0^-½. No
    kernel, and nothing grows with N. The best where the budget is far below the effective rank.

    **Arguments:**

    - `size`: B, the fresh data, one backward pass each.
    - `reference`: the data of the basis and of s̃, as many more passes; `None` for two halves of `size` that play both
        parts, averaged.
    """

    size: int = eqx.field(static=True, default=256)
    reference: int | None = eqx.field(static=True, default=None)

    @property
    def kind(self) -> EstimatorKind:
        return "bound"

    def __check_init__(self):
        if self.reference is None and (self.size < 2 or self.size % 2):
            raise ValueError(f"Tangent: given size {self.size} for two halves, allowed are even numbers >= 2.")

    def __call__(self, problem: Problem, key: Array) -> LogDeterminant:
        first, second = jax.random.split(key)
        if self.reference is not None:
            return LogDeterminant(_sided(problem, self.size, first, self.reference, second))
        half = self.size // 2
        there = _sided(problem, half, first, half, second)
        back = _sided(problem, half, second, half, first)
        return LogDeterminant((there + back) / 2)


def _sided(problem: Problem, size: int, key: Array, reference: int, reference_key: Array) -> Float[Array, ""]:
    check_size("Tangent", size, problem.size, "data")
    check_size("Tangent: reference", reference, problem.size, "data")
    constant = problem.constant()
    data, rows = _rademacher(constant, reference, reference_key)
    factors = accumulate(constant, data, rows, second_factors)
    into = bases(factors)
    projected = accumulate(constant, data, rows, lambda x: projected_squares(x, into))
    guesses = [
        _guess(square, basis, left, right, reference)
        for square, basis, (left, right) in zip(projected, into, factors, strict=True)
    ]
    into, guesses = jax.lax.stop_gradient((into, guesses))
    data, rows = _rademacher(problem, size, key)
    fresh = accumulate(problem, data, rows, lambda x: projected_squares(x, into))
    terms = (jnp.sum(jnp.log1p(g) + (s - g) / (1 + g)) for s, g in zip(fresh, guesses, strict=True))
    return sum(terms, jnp.zeros((), rows.dtype))


def _guess(
    squares: Float[Array, "i o"], basis: Basis, left: Array | None, right: Array | None, rows: int
) -> Float[Array, "i o"]:
    """s̃ = ½ d_i e_o/Σd + ½ ŝ_io, d and e the eigenvalues of the two factors, each shrunk towards its mean.

    k numbers from m rows keep the share m/(m + √k) of themselves: a direction of which few reference rows show anything
    would otherwise have s̃ near 0, and the tangent there is steep.
    """

    def shrunk(x: Array) -> Array:
        own = rows / (rows + x.size**0.5)
        return own * jnp.maximum(x, 0.0) + (1 - own) * jnp.mean(x)

    if basis.left is None or basis.right is None or left is None or right is None:
        return shrunk(squares)
    along = shrunk(jnp.einsum("ij,ik,kj->j", basis.left, left, basis.left))
    across = shrunk(jnp.einsum("ij,ik,kj->j", basis.right, right, basis.right))
    total = jnp.maximum(jnp.sum(along), jnp.finfo(squares.dtype).tiny)
    return 0.5 * shrunk(squares) + 0.5 * jnp.outer(along, across) / total


def _rademacher(problem: Problem, size: int, key: Array) -> tuple[Array, Float[Array, "m 1 c"]]:
    """Data, and for each the cotangent L ξ √(N/B), ξ = ±1: the mean of the outer products is the curvature."""
    data_key, sign_key = jax.random.split(key)
    data = subset(size, problem.size, data_key)
    outputs = problem.outputs
    signs = jax.random.rademacher(sign_key, (size, outputs, 1), problem.dtype)
    scale = jnp.sqrt(jnp.asarray(problem.size / size, problem.dtype))
    return data, scale * cotangents(problem, Rows(), data, signs)
