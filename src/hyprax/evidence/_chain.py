"""The chain bound: both sides of log|I + K| from one Cholesky factorisation of a reweighted sample."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._products import product

_WHOLE = 128
"""Triangles up to this side are inverted and multiplied whole: halves of smaller ones cost more than their zeros."""


def chain(
    kernel: Float[Array, "rows rows"], weights: Float[Array, " m"], block: int = 1
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """U = Σ_b w_b log|I + S_b/w_b| and Lo = Σ_b log|I + S_b|, S_b = R_bb R_bbᵀ - I, I + W^½ K W^½ = R Rᵀ.

    The rows come in blocks of `block` (1: single rows, U = Σ w_j log(1 + (R_jj² - 1)/w_j), Lo = 2 Σ log R_jj), each
    with its weight w_b = 1/π_b >= 1, in an order that does not depend on the sample. If π_bc <= π_b π_c for all
    pairs, then E Lo <= log|I + K_all| <= E U; with all weights 1 both are log|I + K|.

    The derivative in K is W^½ R⁻ᵀ diag(Ω_b) R⁻¹ W^½, Ω_b = w_b R_bbᵀ ((w_b - 1) I + R_bb R_bbᵀ)⁻¹ R_bb for U and I for
    Lo. Weights and order are constants: E U is a bound for each.
    """
    return _sides(kernel, weights, block)


def _blocks(matrix: Array, block: int) -> Array:
    """The diagonal blocks [m, block, block]."""
    m = matrix.shape[0] // block
    return jnp.moveaxis(jnp.diagonal(matrix.reshape(m, block, m, block), axis1=0, axis2=2), -1, 0)


def _chain(kernel: Array, weights: Array, block: int) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    half = jnp.repeat(jnp.sqrt(weights), block).astype(kernel.dtype)
    weights = weights.astype(kernel.dtype)
    identity = jnp.eye(kernel.shape[0], dtype=kernel.dtype)
    root = jnp.linalg.cholesky(identity + half[:, None] * kernel * half[None, :])
    if block == 1:
        squares = jnp.square(jnp.diagonal(root))
        # A pivot is 1 plus a square; rounding must not make it less.
        upper = jnp.sum(weights * jnp.log1p(jnp.maximum(squares - 1, 0.0) / weights))
    else:
        pivots = _blocks(root, block)
        w = weights[:, None, None]
        inner = jnp.eye(block, dtype=kernel.dtype)[None] * (1 - 1 / w)
        inner += product(pivots, jnp.swapaxes(pivots, 1, 2)) / w
        diagonals = jnp.diagonal(jnp.linalg.cholesky(inner), axis1=1, axis2=2)
        upper = jnp.sum(weights * 2 * jnp.sum(jnp.log(diagonals), axis=1))
    lower = 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    return (upper, lower), (root, half, weights)


def _primal(kernel: Array, weights: Array, block: int) -> tuple[Array, Array]:
    return _chain(kernel, weights, block)[0]


def _inverse(root: Array) -> Array:
    """R⁻¹ of a lower triangle, half by half: [[A, 0], [B, C]]⁻¹ = [[A⁻¹, 0], [-C⁻¹ B A⁻¹, C⁻¹]]."""
    n = root.shape[0]
    if n <= _WHOLE:
        return jax.scipy.linalg.solve_triangular(root, jnp.eye(n, dtype=root.dtype), lower=True)
    h = n // 2
    first, last = _inverse(root[:h, :h]), _inverse(root[h:, h:])
    zero = jnp.zeros((h, n - h), root.dtype)
    return jnp.block([[first, zero], [-product(last, product(root[h:, :h], first)), last]])


def _inner(lower: Array, weights: Array) -> Array:
    """Xᵀ diag(ω) X of a lower triangle, half by half."""
    n = lower.shape[0]
    if n <= _WHOLE:
        return product(lower.T, weights[:, None] * lower)
    h = n // 2
    below = weights[h:, None] * lower[h:, :h]
    first = _inner(lower[:h, :h], weights[:h]) + product(lower[h:, :h].T, below)
    cross = product(below.T, lower[h:, h:])
    return jnp.block([[first, cross], [cross.T, _inner(lower[h:, h:], weights[h:])]])


def _backward(block: int, residuals: tuple[Array, Array, Array], cotangent: tuple[Array, Array]) -> tuple[Array, Array]:
    root, half, weights = residuals
    inverse = _inverse(root) * half[None, :]
    upper, lower = cotangent
    if block == 1:
        squares = jnp.square(jnp.diagonal(root))
        omega = upper * weights * squares / (weights - 1 + squares) + lower
        return _inner(inverse, omega), jnp.zeros_like(weights)
    pivots = _blocks(root, block)
    transposed = jnp.swapaxes(pivots, 1, 2)
    w = weights[:, None, None]
    inner = (w - 1) * jnp.eye(block, dtype=root.dtype)[None] + product(pivots, transposed)
    solved = product(transposed, jnp.linalg.solve(inner, pivots))
    omega = upper * w * solved + lower * jnp.eye(block, dtype=root.dtype)[None]
    middle = product(omega, inverse.reshape(len(weights), block, -1)).reshape(inverse.shape)
    return product(inverse.T, middle), jnp.zeros_like(weights)


_sides = jax.custom_vjp(_primal, nondiff_argnums=(2,))
_sides.defvjp(_chain, _backward)


def log_determinant(kernel: Float[Array, "rows rows"]) -> Float[Array, ""]:
    """log|I + K|, K positive semidefinite; d/dK = (I + K)⁻¹."""
    return chain(kernel, jnp.ones(kernel.shape[0], kernel.dtype), 1)[1]
