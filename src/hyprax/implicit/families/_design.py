"""Data matrices: dense arrays, and sparse ones kept by row and by column."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..._products import product


class SparseDesign(eqx.Module):
    """A sparse matrix X `(n, d)`: its entries sorted by row for X v, and again by column for Xᵀv.

    Two copies, so that both products are sums over sorted segments, with nothing scattered. Made from a SciPy sparse
    matrix or array by [`hyprax.families.SparseDesign`][]`.from_scipy`, or from any `(data, rows, columns)`.

    **Arguments:**

    - `entries`: the non-zero entries, `(nnz,)`; those of one place are summed, integers made floating.
    - `rows`, `columns`: their places, integers.
    - `shape`: (n, d).

    **Raises:** `ValueError` for places out of range.
    """

    by_row: tuple[Float[Array, " nnz"], Int[Array, " nnz"], Int[Array, " nnz"]]
    by_column: tuple[Float[Array, " nnz"], Int[Array, " nnz"], Int[Array, " nnz"]]
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, entries: Any, rows: Any, columns: Any, shape: tuple[int, int]):
        entries, rows, columns = np.asarray(entries), np.asarray(rows), np.asarray(columns)
        for places, size, name in ((rows, shape[0], "rows"), (columns, shape[1], "columns")):
            if places.size and (places.min() < 0 or places.max() >= size):
                raise ValueError(f"SparseDesign: given {name} outside 0 to {size - 1}, allowed are places inside.")
        self.shape = (int(shape[0]), int(shape[1]))
        if entries.dtype.kind != "f":
            entries = entries.astype(jnp.result_type(float))
        # Norms, and with them every bound, are those of the matrix: an entry a + b is not an a and a b.
        places, of_entry = np.unique(rows.astype(np.int64) * self.shape[1] + columns, return_inverse=True)
        if len(places) < len(entries):
            summed = np.zeros(len(places), entries.dtype)
            np.add.at(summed, of_entry, entries)
            entries, rows, columns = summed, places // self.shape[1], places % self.shape[1]

        def ordered(order: np.ndarray) -> tuple[Array, Array, Array]:
            places = (rows[order].astype(np.int32), columns[order].astype(np.int32))
            return jnp.asarray(entries[order]), jnp.asarray(places[0]), jnp.asarray(places[1])

        self.by_row = ordered(np.lexsort((columns, rows)))
        self.by_column = ordered(np.lexsort((rows, columns)))

    @classmethod
    def from_scipy(cls, matrix: Any) -> "SparseDesign":
        """From a `scipy.sparse` matrix or array; zeros are dropped."""
        matrix = matrix.tocsr().copy()
        matrix.eliminate_zeros()
        coordinates = matrix.tocoo()
        return cls(coordinates.data, coordinates.row, coordinates.col, coordinates.shape)

    @property
    def dtype(self) -> Any:
        return self.by_row[0].dtype

    @property
    def ndim(self) -> int:
        return 2


Design = Float[Array, "n d"] | SparseDesign


def _summed(entries: Array, source: Array, target: Array, size: int, v: Array) -> Array:
    picked = jnp.expand_dims(entries, tuple(range(1, v.ndim))) * v[source]
    return jax.ops.segment_sum(picked, target, num_segments=size, indices_are_sorted=True)


def forward(x: Design, v: Float[Array, "d *C"]) -> Float[Array, "n *C"]:
    """X v."""
    if isinstance(x, SparseDesign):
        entries, rows, columns = x.by_row
        return _summed(entries, columns, rows, x.shape[0], v)
    return product(x, v)


def backward(x: Design, v: Float[Array, "n *C"]) -> Float[Array, "d *C"]:
    """Xᵀ v."""
    if isinstance(x, SparseDesign):
        entries, rows, columns = x.by_column
        return _summed(entries, rows, columns, x.shape[1], v)
    return product(x.T, v)


def forward_squared(x: Design, v: Float[Array, "d *C"]) -> Float[Array, "n *C"]:
    """(X∘X) v."""
    if isinstance(x, SparseDesign):
        entries, rows, columns = x.by_row
        return _summed(jnp.square(entries), columns, rows, x.shape[0], v)
    return product(jnp.square(x), v)


def as_design(inputs: Any, name: str) -> Design:
    """An array or a sparse matrix as a design of floating numbers, checked.

    **Raises:** `ValueError` for another shape than (examples, features), no entries, or entries that are not finite.
    """
    if hasattr(inputs, "tocsr"):
        inputs = SparseDesign.from_scipy(inputs)
    if isinstance(inputs, SparseDesign):
        entries, shape = inputs.by_row[0], inputs.shape
    else:
        inputs = jnp.asarray(inputs)
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            inputs = inputs.astype(jnp.result_type(float))
        entries, shape = inputs, inputs.shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name}: given inputs of shape {shape}, allowed is (examples, features), neither 0.")
    if not bool(jnp.all(jnp.isfinite(entries))):
        raise ValueError(f"{name}: given inputs with NaN or infinite entries, allowed are finite numbers.")
    return inputs
