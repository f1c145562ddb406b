"""Data on their way in: real numbers, checked and never demoted; data matrices, dense or sparse; products with them."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..._processes import is_spread
from ..._products import product
from ._chunked import Chunked


def real_numbers(x: Any, name: str) -> Array:
    """`x` as a floating array that holds each of its numbers as it was given.

    Integers and booleans become the default floating dtype, half precision becomes float32; wider dtypes stay.

    **Raises:** `ValueError`, of `name`, for anything but real numbers, and for integers that float64 does not hold.
    """
    if not isinstance(x, jax.Array):
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{name} must be an array of real numbers; got rows of different lengths.") from error
        if x.dtype.kind == "O":
            with contextlib.suppress(TypeError, ValueError):  # nested JAX arrays, columns of Python numbers
                x = x.astype(float) if all(isinstance(entry, int | float) for entry in x.ravel()) else x
    if jnp.issubdtype(x.dtype, jnp.floating):
        narrow, long = x.dtype.itemsize < 4, x.dtype.itemsize > 8
        given, wide = x, jnp.float32 if narrow else jnp.result_type(float) if long else x.dtype
    elif x.dtype.kind in "biu":
        given, wide = x, jnp.result_type(float)
    else:
        raise ValueError(
            f"{name} must be real numbers; got {x.dtype}. Convert the entries first (complex numbers by their parts, "
            "texts and categories by an encoder)."
        )
    numbers = jnp.asarray(given, wide)
    if isinstance(given, np.ndarray) and numbers.dtype == jnp.float64 and given.dtype.itemsize >= 8:
        with np.errstate(invalid="ignore"):
            lost = np.asarray(numbers).astype(given.dtype) != given
        lost &= np.isfinite(given)
        if np.any(lost):
            raise ValueError(f"{name} must be numbers that float64 holds exactly; got {given[lost][0]}. Rescale them.")
    return numbers


def narrowest(x: Array) -> Array:
    """Counts in float32 where that holds them, so that they do not widen float32 inputs; as they are where traced."""
    with contextlib.suppress(jax.errors.TracerArrayConversionError):
        if is_spread(x):
            return x.astype(jnp.float32) if bool(jnp.all(x.astype(jnp.float32) == x)) else x
        narrow = np.asarray(x).astype(np.float32)
        return jnp.asarray(narrow) if np.array_equal(narrow, np.asarray(x)) else x
    return x


def common_dtype(*arrays: Any) -> Any:
    """The widest floating dtype among them."""
    with jax.numpy_dtype_promotion("standard"):  # a question, whatever the user has set
        return jnp.result_type(*(a.dtype for a in arrays))


def check_finite(x: Array, name: str, rows: Any = None) -> None:
    """Refuse NaN and infinity where the array is concrete, and say in which row; `rows` are those of sparse entries."""
    with contextlib.suppress(jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        if bool(jnp.all(jnp.isfinite(x))):
            return
        bad = np.argwhere(~np.isfinite(np.asarray(x)))
        first = tuple(bad[0])
        row = int(first[0]) if rows is None else int(np.asarray(rows)[first[0]])
        count = len(np.unique(bad[:, 0])) if rows is None else len(np.unique(np.asarray(rows)[bad[:, 0]]))
        more = f" (and in {count - 1} other rows)" if count > 1 else ""
        raise ValueError(
            f"{name} must be finite numbers; got {np.asarray(x)[first]} in row {row}{more}. Impute or drop it."
        )


class SparseDesign(eqx.Module):
    """A sparse matrix X `(n, d)`: its entries sorted by row for X v, and again by column for Xᵀv.

    Two copies, so that both products are sums over sorted segments, with nothing scattered. Families make it of a
    `scipy.sparse` matrix or array; entries of one place are summed, and places are checked.
    """

    by_row: tuple[Float[Array, " nnz"], Int[Array, " nnz"], Int[Array, " nnz"]]
    by_column: tuple[Float[Array, " nnz"], Int[Array, " nnz"], Int[Array, " nnz"]]
    shape: tuple[int, int] = eqx.field(static=True)

    def __init__(self, entries: Any, rows: Any, columns: Any, shape: tuple[int, int]):
        entries, rows, columns = np.asarray(entries), np.asarray(rows), np.asarray(columns)
        for places, size, name in ((rows, shape[0], "rows"), (columns, shape[1], "columns")):
            if places.size and (places.min() < 0 or places.max() >= size):
                raise ValueError(f"SparseDesign: {name} must be places from 0 to {size - 1}; got {places.max()}.")
        self.shape = (int(shape[0]), int(shape[1]))
        entries = np.asarray(real_numbers(entries, "sparse inputs"))
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

    def astype(self, dtype: Any) -> "SparseDesign":
        """The same matrix with entries of another dtype."""
        entries = (self.by_row[0].astype(dtype), self.by_column[0].astype(dtype))
        return eqx.tree_at(lambda x: (x.by_row[0], x.by_column[0]), self, entries)


Design = Float[Array, "n d"] | SparseDesign | Chunked


def is_dense(x: Any) -> TypeGuard[Array]:
    """Whether a design is an array in memory."""
    return not isinstance(x, SparseDesign | Chunked)


def _summed(entries: Array, source: Array, target: Array, size: int, v: Array) -> Array:
    picked = jnp.expand_dims(entries, tuple(range(1, v.ndim))) * v[source]
    return jax.ops.segment_sum(picked, target, num_segments=size, indices_are_sorted=True)


def forward(x: Design, v: Float[Array, "d *C"]) -> Float[Array, "n *C"]:
    """X v."""
    if isinstance(x, SparseDesign):
        entries, rows, columns = x.by_row
        return _summed(entries, columns, rows, x.shape[0], v)
    return x.forward(v) if isinstance(x, Chunked) else product(x, v)


def backward(x: Design, v: Float[Array, "n *C"]) -> Float[Array, "d *C"]:
    """Xᵀ v."""
    if isinstance(x, SparseDesign):
        entries, rows, columns = x.by_column
        return _summed(entries, rows, columns, x.shape[1], v)
    return x.backward(v) if isinstance(x, Chunked) else product(x.T, v)


def forward_squared(x: Design, v: Float[Array, "d *C"]) -> Float[Array, "n *C"]:
    """(X∘X) v."""
    if isinstance(x, SparseDesign):
        entries, rows, columns = x.by_row
        return _summed(jnp.square(entries), columns, rows, x.shape[0], v)
    return x.forward(v, 2) if isinstance(x, Chunked) else product(jnp.square(x), v)


def backward_squared(x: Design, v: Float[Array, "n *C"]) -> Float[Array, "d *C"]:
    """(X∘X)ᵀ v."""
    if isinstance(x, SparseDesign):
        entries, rows, columns = x.by_column
        return _summed(jnp.square(entries), rows, columns, x.shape[1], v)
    return x.backward(v, 2) if isinstance(x, Chunked) else product(jnp.square(x).T, v)


def woven(
    x: Design, row: Callable[[Array, PyTree], tuple[Array, PyTree]], v: Float[Array, "d *C"], rows: PyTree
) -> tuple[Float[Array, "d *C"], PyTree]:
    """`(X^T r, kept)` for `r, kept = row(X v, rows)`, a function of rows, one by one: a single pass where X is read in
    chunks.
    """

    def apart(v: Array, rows: PyTree) -> tuple[Array, PyTree]:
        r, kept = row(forward(x, v), rows)
        return backward(x, r), kept

    if not isinstance(x, Chunked):
        return apart(v, rows)

    @jax.custom_jvp
    def together(v: Array, rows: PyTree) -> tuple[Array, PyTree]:
        return x.woven(row, v, rows)

    together.defjvp(lambda primals, tangents: jax.jvp(apart, primals, tangents))
    return together(v, rows)


def as_design(inputs: Any, name: str) -> Design:
    """A matrix of real numbers, an array, a `scipy.sparse` matrix or a `Chunked` one, as a design, checked.

    **Raises:** `ValueError` for another shape than (examples, features), no entries, entries that are not finite.
    """
    if isinstance(inputs, Chunked):
        return inputs  # it has looked at itself
    if hasattr(inputs, "tocsr"):
        inputs = SparseDesign.from_scipy(inputs)
    if not isinstance(inputs, SparseDesign):
        inputs = real_numbers(inputs, name)
    if len(inputs.shape) != 2 or 0 in inputs.shape:
        raise ValueError(f"{name} must have the shape (examples, features), at least 1 of each; got {inputs.shape}.")
    if isinstance(inputs, SparseDesign):
        check_finite(inputs.by_row[0], name, inputs.by_row[1])
    else:
        check_finite(inputs, name)
    return inputs


def as_offset(offset: Any, shape: tuple[int, ...], name: str) -> Array | None:
    """Numbers to add to predictions of `shape`, one a row or one for each of its parts, checked.

    **Raises:** `ValueError` for another shape, and for what is not finite.
    """
    if offset is None:
        return None
    found = real_numbers(offset, name)
    check_finite(found, name)
    if found.shape not in (shape, shape[:1]):
        allowed = f"{shape[:1]} or {shape}" if len(shape) > 1 else f"{shape}"
        raise ValueError(f"{name} must have the shape {allowed}; got {tuple(found.shape)}.")
    if getattr(offset, "dtype", np.asarray(offset).dtype).kind in "biu":
        found = narrowest(found)
    return jnp.broadcast_to(found.reshape(found.shape + (1,) * (len(shape) - found.ndim)), shape)
