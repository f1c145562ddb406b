"""The chain bound: both sides of log|I + K| from one factorisation of a reweighted sample."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._products import product

_WHOLE = 128
"""Triangles up to this side are inverted and multiplied whole: halves of smaller ones cost more than their zeros."""


class LogDeterminant(eqx.Module):
    """An estimate of F = log|I + K|, and where there is one, a second one from the other side.

    From an estimator of kind `bound`: E upper >= F, and E lower <= F where `lower` is not `None`. The log evidence
    falls with F, so `upper` gives its lower bound. `rounding` is about how far rounding has moved either, in nats.
    """

    upper: Float[Array, ""]
    lower: Float[Array, ""] | None = None
    rounding: Float[Array, ""] | float = 0.0


def chain(kernel: Float[Array, "rows rows"], weights: Float[Array, " m"], block: int = 1) -> LogDeterminant:
    """U = Σ_b w_b log|I + S_b/w_b| and Lo = Σ_b log|I + S_b|, S_b = R_bb R_bbᵀ - I, I + W^½ K W^½ = R Rᵀ.

    The rows come in blocks of `block` (1: single rows, U = Σ w_j log(1 + (R_jj² - 1)/w_j), Lo = 2 Σ log R_jj), each
    with its weight w_b = 1/π_b >= 1, in an order that does not depend on the sample. If π_bc <= π_b π_c for all
    pairs, then E Lo <= log|I + K_all| <= E U; with all weights 1 both are log|I + K|.

    The derivative in K is W^½ R⁻ᵀ diag(Ω_b) R⁻¹ W^½, Ω_b = w_b R_bbᵀ ((w_b - 1) I + R_bb R_bbᵀ)⁻¹ R_bb for U and I for
    Lo. Weights and order are constants: E U is a bound for each.

    Where K is too large for the dtype (its rounding reaches the identity) a multiple of the identity is added until the
    factor exists. Pivots only grow by it, so U stays a bound; `rounding` says what it may have added.
    """
    return LogDeterminant(*_sides(kernel, weights, block))


def chain_of_rows(rows: Float[Array, "rows p"], weights: Float[Array, " m"], block: int = 1) -> LogDeterminant:
    """The same for K = φ φᵀ of rows φ that are at hand, by R from the QR factorisation of [φᵀ W^½; I].

    Nothing is squared, so large rows lose half as many digits: for fewer weights than rows. With Q = [Q_1; Q_2] the
    derivative in W^½ φ is 2 Q_2 Ω Q_1ᵀ.
    """
    return LogDeterminant(*_sides_of_rows(rows, weights, block))


def _blocks(matrix: Array, block: int) -> Array:
    """The diagonal blocks [m, block, block]."""
    m = matrix.shape[0] // block
    return jnp.moveaxis(jnp.diagonal(matrix.reshape(m, block, m, block), axis1=0, axis2=2), -1, 0)


def _values(root: Array, errors: Array, weights: Array, block: int) -> tuple[Array, Array, Array]:
    """U, Lo and the rounding, of a lower triangle R whose squared pivots have the given errors."""
    squares = jnp.square(jnp.diagonal(root))
    if block == 1:
        # A pivot is 1 plus a square; rounding must not make it less.
        upper = jnp.sum(weights * jnp.log1p(jnp.maximum(squares - 1, 0.0) / weights))
    else:
        pivots = _blocks(root, block)
        w = weights[:, None, None]
        inner = jnp.eye(block, dtype=root.dtype)[None] * (1 - 1 / w)
        inner += product(pivots, jnp.swapaxes(pivots, 1, 2)) / w
        diagonals = jnp.diagonal(jnp.linalg.cholesky(inner), axis1=1, axis2=2)
        upper = jnp.sum(weights * 2 * jnp.sum(jnp.log(diagonals), axis=1))
    w = jnp.repeat(weights, block)
    rounding = jnp.sum(w * errors / (w - 1 + squares))
    return upper, jnp.sum(jnp.log(squares)), rounding


def _half(weights: Array, block: int, dtype: Any) -> tuple[Array, Array]:
    return jnp.repeat(jnp.sqrt(weights), block).astype(dtype), weights.astype(dtype)


def _chain(kernel: Array, weights: Array, block: int) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    half, weights = _half(weights, block, kernel.dtype)
    identity = jnp.eye(kernel.shape[0], dtype=kernel.dtype)
    matrix = identity + half[:, None] * kernel * half[None, :]
    sizes = jnp.diagonal(matrix)
    root = jnp.linalg.cholesky(matrix)
    epsilon = jnp.finfo(kernel.dtype).eps
    added = 4 * kernel.shape[0] * epsilon * jnp.max(sizes)
    fails = ~jnp.isfinite(root[-1, -1]) & jnp.all(jnp.isfinite(sizes))
    root = jax.lax.cond(fails, lambda m: jnp.linalg.cholesky(m + added * identity), lambda m: root, matrix)
    errors = epsilon * sizes + jnp.where(fails, added, 0.0)
    return _values(root, errors, weights, block), (root, half, weights)


def _primal(kernel: Array, weights: Array, block: int) -> tuple[Array, Array, Array]:
    return _chain(kernel, weights, block)[0]


def _chain_of_rows(
    rows: Array, weights: Array, block: int
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array, Array]]:
    half, weights = _half(weights, block, rows.dtype)
    identity = jnp.eye(rows.shape[0], dtype=rows.dtype)
    columns = jnp.concatenate([(half[:, None] * rows).T, identity])
    q, r = jnp.linalg.qr(columns)
    signs = jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0).astype(r.dtype)
    q, root = q * signs[None, :], (signs[:, None] * r).T
    lengths = jnp.sqrt(jnp.sum(jnp.square(columns), axis=0))
    errors = 2 * jnp.finfo(rows.dtype).eps * jnp.diagonal(root) * lengths
    return _values(root, errors, weights, block), (root, half, weights, q)


def _primal_of_rows(rows: Array, weights: Array, block: int) -> tuple[Array, Array, Array]:
    return _chain_of_rows(rows, weights, block)[0]


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


def _middle(root: Array, weights: Array, block: int, upper: Array, lower: Array) -> Array:
    """Ω: [m] for single rows, [m, block, block] for blocks."""
    if block == 1:
        squares = jnp.square(jnp.diagonal(root))
        return upper * weights * squares / (weights - 1 + squares) + lower
    pivots = _blocks(root, block)
    transposed = jnp.swapaxes(pivots, 1, 2)
    w = weights[:, None, None]
    inner = (w - 1) * jnp.eye(block, dtype=root.dtype)[None] + product(pivots, transposed)
    solved = product(transposed, jnp.linalg.solve(inner, pivots))
    return upper * w * solved + lower * jnp.eye(block, dtype=root.dtype)[None]


def _times(omega: Array, matrix: Array) -> Array:
    """Ω times a matrix with a row for each row of the sample."""
    if omega.ndim == 1:
        return omega[:, None] * matrix
    m, block = omega.shape[:2]
    return product(omega, matrix.reshape(m, block, -1)).reshape(matrix.shape)


def _backward(block: int, residuals: tuple, cotangent: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    root, half, weights = residuals
    inverse = _inverse(root) * half[None, :]
    omega = _middle(root, weights, block, cotangent[0], cotangent[1])
    if block == 1:
        return _inner(inverse, omega), jnp.zeros_like(weights)
    return product(inverse.T, _times(omega, inverse)), jnp.zeros_like(weights)


def _backward_of_rows(block: int, residuals: tuple, cotangent: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    root, half, weights, q = residuals
    omega = _middle(root, weights, block, cotangent[0], cotangent[1])
    above, below = q[: -root.shape[0]], q[-root.shape[0] :]
    return 2 * half[:, None] * product(below, _times(omega, above.T)), jnp.zeros_like(weights)


_sides = jax.custom_vjp(_primal, nondiff_argnums=(2,))
_sides.defvjp(_chain, _backward)
_sides_of_rows = jax.custom_vjp(_primal_of_rows, nondiff_argnums=(2,))
_sides_of_rows.defvjp(_chain_of_rows, _backward_of_rows)


def log_determinant(kernel: Float[Array, "rows rows"]) -> LogDeterminant:
    """log|I + K|, K positive semidefinite; d/dK = (I + K)⁻¹."""
    sides = chain(kernel, jnp.ones(kernel.shape[0], kernel.dtype), 1)
    assert sides.lower is not None  # all rows were taken
    return LogDeterminant(sides.lower, sides.lower, sides.rounding)
