"""Norms of data matrices, bounded from above with the rounding of their computation, in one pass over the data."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._processes import here, is_spread
from ..._products import product
from ._chunked import Chunked
from ._design import Design, SparseDesign, is_dense

DENSE_LIMIT = 2000
CHUNK_ENTRIES = 1 << 23  # 64 MiB of float64


class _Sums(eqx.Module):
    """What one pass over the rows of X gives: sums of squares and of absolute values by row and by column, and XᵀX."""

    row_squares: np.ndarray
    column_squares: np.ndarray
    row_sums: np.ndarray
    column_sums: np.ndarray
    gram: np.ndarray | None


def _row_blocks(x: Any) -> Iterator[np.ndarray]:
    if isinstance(x, Chunked):
        yield from (np.asarray(block, dtype=np.float64) for block in x.blocks())
        return
    rows = max(1, CHUNK_ENTRIES // max(1, x.shape[1]))
    for start in range(0, x.shape[0], rows):
        yield np.asarray(x[start : start + rows], dtype=np.float64)


def _dense_sums(x: Any, with_gram: bool) -> _Sums:
    n, d = x.shape
    row_squares, row_sums, column_squares, column_sums = np.zeros(n), np.zeros(n), np.zeros(d), np.zeros(d)
    gram = np.zeros((d, d)) if with_gram else None
    at = 0
    for block in _row_blocks(x):
        here = slice(at, at + len(block))
        at += len(block)
        absolute, squares = np.abs(block), np.square(block)
        row_squares[here], row_sums[here] = squares.sum(axis=1), absolute.sum(axis=1)
        column_squares += squares.sum(axis=0)
        column_sums += absolute.sum(axis=0)
        if gram is not None:
            gram += block.T @ block
    return _Sums(row_squares, column_squares, row_sums, column_sums, gram)


@eqx.filter_jit
def _device_sums(x: Array, with_gram: bool) -> tuple[Array, ...]:
    """The same where the rows are: for arrays that no process has as a whole."""
    wide = x.astype(jnp.result_type(float))
    absolute, squares = jnp.abs(wide), jnp.square(wide)
    gram = (product(wide.T, wide),) if with_gram else ()
    return squares.sum(axis=1), squares.sum(axis=0), absolute.sum(axis=1), absolute.sum(axis=0), *gram


def _sparse_sums(x: SparseDesign, with_gram: bool) -> _Sums:
    entries, rows, columns = (np.asarray(part) for part in x.by_row)
    entries = entries.astype(np.float64)
    n, d = x.shape
    absolute, squares = np.abs(entries), np.square(entries)
    gram = None
    if with_gram:
        gram = np.zeros((d, d))
        height = max(1, CHUNK_ENTRIES // d)
        for start in range(0, n, height):
            first, last = np.searchsorted(rows, (start, start + height))
            block = np.zeros((min(height, n - start), d))
            block[rows[first:last] - start, columns[first:last]] = entries[first:last]
            gram += block.T @ block
    return _Sums(
        np.bincount(rows, squares, n),
        np.bincount(columns, squares, d),
        np.bincount(rows, absolute, n),
        np.bincount(columns, absolute, d),
        gram,
    )


LARGEST_ENTRY = 1e60


class DesignNorms(eqx.Module):
    """Upper bounds of norms of a data matrix X `(n, d)`, worked out once: products with |X| are then never needed.

    - `gram`: of ‖XᵀX‖₂ = ‖X‖₂². For d <= 2,000 (or n <= 2,000, dense) the largest eigenvalue of the smaller Gram
      matrix G, raised by a bound of its error: forming G in floating point moves it by at most γ_k trace(G) in norm (k
      the summed dimension, γ_k = k u/(1 - k u)), and a backward stable symmetric eigenvalue solver by a small multiple
      of m u ‖G‖ (m its order; 10 is used). Beyond that the smaller of the trace and ‖X‖₁‖X‖_∞, each raised by γ of its
      own summation. A power iteration would bound it from BELOW.
    - `rows`, `columns`: of the Euclidean norms of its rows and columns, so that (|X||v|)_i <= rows_i ‖v‖₂ and
      (|X|ᵀ|e|)_j <= columns_j ‖e‖₂; for dense data both are near equality.

    The data is read once, in blocks of rows.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), chapters 3 and 6.
    """

    gram: Float[Array, ""]
    rows: Float[Array, " n"]
    columns: Float[Array, " d"]


def _spread_norms(x: Array) -> tuple[DesignNorms, np.ndarray | None]:
    """`measured` of such arrays."""
    n, d = x.shape
    sums = _device_sums(x, d <= DENSE_LIMIT)
    row_squares, row_sums = sums[0], sums[2]
    column_squares, column_sums, *gram = (np.asarray(here(part)) for part in (sums[1], sums[3], *sums[4:]))
    unit = float(np.finfo(row_squares.dtype).eps) / 2
    trace = float(jnp.sum(row_squares)) * (1 + 2 * (n * d + 12) * unit)
    bound = min(trace, float(column_sums.max()) * float(jnp.max(row_sums)) * (1 + 2 * (n + d + 12) * unit))
    if gram:
        bound = min(bound, float(np.linalg.eigvalsh(gram[0])[-1]) + ((n + 12) + 10 * d) * unit * trace)
    raised = 1 + (max(n, d) + 12) * 2 * unit
    rows, columns = raised * jnp.sqrt(row_squares), raised * np.sqrt(column_squares)
    norms = DesignNorms(jnp.asarray(max(bound, 0.0)), rows, jnp.asarray(columns))
    return norms, gram[0] if gram else None


def measured(x: Design) -> tuple[DesignNorms, np.ndarray | None]:
    """The norms of X, and XᵀX where it was formed (d <= 2,000)."""
    n, d = x.shape
    unit = np.finfo(np.float64).eps / 2
    if 0 in x.shape:
        return DesignNorms(jnp.zeros(()), jnp.zeros(n), jnp.zeros(d)), None
    if isinstance(x, Chunked):
        largest = x.largest
    else:
        largest = float(jnp.max(jnp.abs(x.by_row[0] if isinstance(x, SparseDesign) else x), initial=0.0))
    if not largest <= LARGEST_ENTRY:
        raise ValueError(
            f"inputs must be at most {LARGEST_ENTRY:g} in size, since bounds take powers of them; got "
            f"{largest:.3g}. Scale the data."
        )
    if isinstance(x, jax.Array) and is_spread(x):
        return _spread_norms(x)
    with_gram = d <= DENSE_LIMIT
    sums = _sparse_sums(x, with_gram) if isinstance(x, SparseDesign) else _dense_sums(x, with_gram)
    trace = float(np.sum(sums.row_squares)) * (1 + 2 * (n * d + 12) * unit)
    bound = min(trace, float(sums.column_sums.max() * sums.row_sums.max()) * (1 + 2 * (n + d + 12) * unit))
    gram = sums.gram
    small, summed = (gram, n) if d <= n or n > DENSE_LIMIT or not is_dense(x) else (None, d)
    if small is None and is_dense(x):
        host = np.asarray(x, dtype=np.float64)
        small = host @ host.T
    if small is not None:
        top = float(np.linalg.eigvalsh(small)[-1])
        bound = min(bound, top + ((summed + 12) + 10 * len(small)) * unit * trace)
    raised = 1 + (max(n, d) + 12) * 2 * unit
    rows, columns = (raised * np.sqrt(squares) for squares in (sums.row_squares, sums.column_squares))
    return DesignNorms(jnp.asarray(max(bound, 0.0)), jnp.asarray(rows), jnp.asarray(columns)), gram
