"""A data matrix that is read in chunks of rows, whenever it is multiplied with: it need not fit into memory."""

import mmap
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree, UInt32

from ..._products import product
from .._double_double import DoubleDouble
from ._parquet_rows import ParquetRows

T = TypeVar("T", bound=PyTree)


@runtime_checkable
class Rows(Protocol):
    """What rows are read from: `np.memmap`, a dataset of h5py or zarr, a loader of one's own."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)."""
        ...

    @property
    def dtype(self) -> Any:
        """Of the numbers."""
        ...

    def __getitem__(self, rows: slice, /) -> Any:
        """Those rows, as an array. The same ones whenever they are asked for."""
        ...


class _Source:
    """Rows that are read as they are asked for; compared by identity."""

    def __init__(self, rows: Rows, size: int, dtype: Any):
        self.rows, self.size, self.dtype = rows, size, np.dtype(dtype)

    def block(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop`, in memory."""
        rows = self.rows
        if isinstance(rows, np.memmap) and _is_the_file(rows):
            # Read, not mapped: pages of a map count as memory of the process for as long as it lasts.
            width = rows.shape[1]
            offset = rows.offset + start * width * rows.dtype.itemsize
            found = np.fromfile(str(rows.filename), rows.dtype, (stop - start) * width, offset=offset)
            return found.reshape(stop - start, width)
        return np.asarray(rows[start:stop])

    def read(self, start: Any) -> np.ndarray:
        """A chunk, for a compiled program."""
        start = int(start)
        found = self.block(start, start + self.size)
        if found.shape != (self.size, self.rows.shape[1]):
            raise ValueError(
                f"Chunked: rows {start} to {start + self.size} must come as {(self.size, self.rows.shape[1])}; got "
                f"{found.shape}."
            )
        return np.ascontiguousarray(found, self.dtype)


def _is_the_file(rows: np.memmap) -> bool:
    """Whether a map is of a file as it stands there, row after row, and not a part of it or a copy."""
    whole = isinstance(rows.base, mmap.mmap) and rows.flags.c_contiguous and rows.filename is not None
    return whole and rows.mode in ("r", "r+")


class Chunked(eqx.Module):
    r"""A data matrix X `(n, d)` that is read in chunks of rows: every product with it is a pass over them.

        X v = (X_1 v; ...; X_K v),   X^T r = sum_k X_k^T r_k

    Memory holds one chunk, and numbers for each row (targets, predictions: some tens of them), not the matrix. What
    rests on products is as it is for arrays in memory, certificates with the rounding of their sums included, as their
    bounds hold for any order of summation. Given to a family in place of its inputs, or to its mean loss:

        rows = hx.families.Chunked(np.load("rows.npy", mmap_mode="r"))
        family = hx.families.Logistic(rows, labels, penalty="penalty")

    It is read twice when it is made and measured: entries are looked at, and norms taken for the certificates.

    **Arguments:**

    - `rows`: what has a `shape`, a `dtype` and gives rows for a slice: `np.memmap`, a dataset of h5py or zarr, a loader
        of yours. Integers and half precision are widened chunk by chunk. It must give the same rows every time; a
        change of what it holds is not seen.
    - `size`: the rows of a chunk.

    **Raises:** `ValueError` for another shape than (examples, features), and entries that are not finite real numbers.
    """

    source: _Source = eqx.field(static=True)
    shape: tuple[int, int] = eqx.field(static=True)
    size: int = eqx.field(static=True)
    largest: float = eqx.field(static=True)
    """Of the sizes of the entries."""
    checksum: UInt32[Array, ""]
    unit: Float[Array, ""]
    """1, in the dtype of products: what is cast with the other arrays of a problem is this."""

    def __init__(self, rows: Rows, size: int = 65_536):
        from ._design import check_finite, real_numbers  # which knows this class

        name = "Chunked: rows"
        shape = tuple(int(x) for x in rows.shape)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"{name} must have the shape (examples, features), at least 1 of each; got {shape}.")
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"Chunked: size must be an integer >= 1; got {size!r}.")
        self.shape = (shape[0], shape[1])
        narrow = np.dtype(jax.dtypes.canonicalize_dtype(rows.dtype))
        self.size = min(size, shape[0])
        self.source = _Source(rows, self.size, narrow)
        checksum, largest, dtype = 0, 0.0, narrow
        for start in range(0, shape[0], self.size):
            block = self.source.block(start, min(start + self.size, shape[0]))
            numbers = real_numbers(block, name)
            check_finite(numbers, f"{name} from {start} on")
            largest = max(largest, float(jnp.max(jnp.abs(numbers))))
            dtype = numbers.dtype
            checksum = zlib.crc32(np.ascontiguousarray(block).data, checksum)
        self.largest, self.checksum = largest, jnp.asarray(checksum, jnp.uint32)
        self.unit = jnp.ones((), dtype)

    @classmethod
    def parquet(cls, path: str | Path, columns: Sequence[str] | None = None, size: int | None = None) -> "Chunked":
        """Columns of a Parquet file (extra `parquet`), all by default, in chunks of its largest row group."""
        rows = ParquetRows(path, columns)
        return cls(rows, rows.largest if size is None else size)

    @property
    def dtype(self) -> Any:
        """Of products."""
        return self.unit.dtype

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    def astype(self, dtype: Any) -> "Chunked":
        """The same matrix, widened chunk by chunk."""
        return eqx.tree_at(lambda x: x.unit, self, self.unit.astype(dtype))

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return self.source.block(start, stop)

    def blocks(self) -> Iterator[np.ndarray]:
        """The matrix on the host, chunk by chunk."""
        for start in range(0, self.shape[0], self.size):
            yield self[start : start + self.size]

    def fold(self, step: Callable[[Float[Array, "b d"], Integer[Array, ""], Any, T], T], total: T) -> T:
        """`step(chunk, start, own, total)` for each chunk in turn, in a compiled program.

        The last chunk is as long as the others: what it shares with the one before it is not its own, `own` (b,).
        """
        n, size = self.shape[0], self.size
        like = jax.ShapeDtypeStruct((size, self.shape[1]), self.source.dtype)

        def one(k: Array, total: T) -> T:
            start = jnp.minimum(k * size, n - size)
            chunk = jax.pure_callback(self.source.read, like, start).astype(self.dtype)
            own = jnp.arange(size) >= k * size - start
            return step(chunk, start, own, total)

        return jax.lax.fori_loop(0, -(-n // size), one, total)

    def part(self, rows: PyTree, start: Integer[Array, ""]) -> PyTree:
        """What belongs to the chunk at `start`, of arrays with an entry for each row."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, self.size), rows)

    def placed(self, rows: PyTree, part: PyTree, start: Integer[Array, ""]) -> PyTree:
        """The same arrays with that part replaced."""
        put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, 0)  # noqa: E731
        return jax.tree.map(put, rows, part)

    def forward(self, v: Float[Array, "d *C"], power: int = 1) -> Float[Array, "n *C"]:
        """X v, or of the powers of its entries; linear in v, as derivatives see it."""
        return jax.custom_derivatives.linear_call(
            lambda x, v: x._forward(v, power), lambda x, r: x._backward(r, power), self, v
        )

    def backward(self, rows: Float[Array, "n *C"], power: int = 1) -> Float[Array, "d *C"]:
        """Xᵀ rows, likewise."""
        return jax.custom_derivatives.linear_call(
            lambda x, r: x._backward(r, power), lambda x, v: x._forward(v, power), self, rows
        )

    def _forward(self, v: Array, power: int) -> Array:
        def step(chunk: Array, start: Array, own: Array, found: Array) -> Array:
            return self.placed(found, product(chunk**power, v), start)

        return self.fold(step, jnp.zeros((self.shape[0], *v.shape[1:]), v.dtype))

    def _backward(self, rows: Array, power: int) -> Array:
        def step(chunk: Array, start: Array, own: Array, total: Array) -> Array:
            return total + product((chunk**power).T, _where(own, self.part(rows, start)))

        return self.fold(step, jnp.zeros((self.shape[1], *rows.shape[1:]), rows.dtype))

    def woven(
        self, row: Callable[[Array, PyTree], tuple[Array, PyTree]], v: Array, rows: PyTree
    ) -> tuple[Array, PyTree]:
        """`(X^T r, kept)` for `r, kept = row(X v, rows)`, a function of rows, one by one: in one pass.

        Derivatives take several.
        """
        n, size = self.shape[0], self.size
        like = jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype)
        few = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), rows)
        r, kept = jax.eval_shape(row, like, few)
        none = jax.tree.map(lambda x: jnp.zeros((n, *x.shape[1:]), x.dtype), kept)

        def step(chunk: Array, start: Array, own: Array, total: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
            r, kept = row(product(chunk, v), self.part(rows, start))
            return total[0] + product(chunk.T, _where(own, r)), self.placed(total[1], kept, start)

        return self.fold(step, (jnp.zeros((self.shape[1], *r.shape[1:]), r.dtype), none))

    def gram(self, weights: Float[Array, " n"]) -> Float[Array, "d d"]:
        """Xᵀ diag(weights) X."""
        d = self.shape[1]

        def step(chunk: Array, start: Array, own: Array, total: Array) -> Array:
            return total + product((chunk * _where(own, self.part(weights, start))[:, None]).T, chunk)

        return self.fold(step, jnp.zeros((d, d), weights.dtype))

    def exact(
        self, contract: Callable[[Array, DoubleDouble], DoubleDouble], v: DoubleDouble, by_row: bool
    ) -> DoubleDouble:
        """The product that `contract` makes of a dense matrix, chunk by chunk; sums of chunks in double-double."""
        axis = self.shape[0 if by_row else 1]
        zero = jax.tree.map(lambda x: jnp.zeros((axis, *x.shape[1:]), x.dtype), v)

        def step(chunk: Array, start: Array, own: Array, total: DoubleDouble) -> DoubleDouble:
            if by_row:
                return self.placed(total, contract(chunk, v), start)
            return total + contract(chunk, jax.tree.map(lambda x: _where(own, x), self.part(v, start)))

        return self.fold(step, zero)


def _where(own: Array, rows: Array) -> Array:
    """Zeros in the rows that are not the chunk's own."""
    return jnp.where(jnp.expand_dims(own, tuple(range(1, rows.ndim))), rows, 0)
