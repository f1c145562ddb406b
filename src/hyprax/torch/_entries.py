"""Operators of torch that move entries about, pick them, or make tensors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ._graph import Call, at, axes, level, translates


@translates("unfold.default")
def _unfold(call: Call, x: Array, dim: int, size: int, step: int) -> Array:
    """Windows along one dimension, as a new last one."""
    starts = np.arange(0, x.shape[dim] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + np.arange(size), axis=dim)
    return jnp.moveaxis(windows, dim % x.ndim + 1, -1)


@translates("view.default", "reshape.default", "_unsafe_view.default")
def _view(call: Call, x: Array, shape: list[int]) -> Array:
    return jnp.reshape(x, shape)


@translates("permute.default")
def _permute(call: Call, x: Array, dims: list[int]) -> Array:
    return jnp.transpose(x, dims)


@translates("unsqueeze.default")
def _unsqueeze(call: Call, x: Array, dim: int) -> Array:
    return jnp.expand_dims(x, dim)


@translates("squeeze.dims", "squeeze.dim", "squeeze.default")
def _squeeze(call: Call, x: Array, dims: Any = None) -> Array:
    return jnp.squeeze(x, tuple(d for d in axes(x, dims) if x.shape[d] == 1))


@translates("expand.default")
def _expand(call: Call, x: Array, shape: list[int]) -> Array:
    (x,) = level(call, lax.expand_dims(x, range(len(shape) - x.ndim)))
    return jnp.broadcast_to(x, [old if new == -1 else new for old, new in zip(x.shape, shape, strict=True)])


def _at(x: Array, dim: int, where: Any) -> tuple:
    return (slice(None),) * (dim % x.ndim) + (where,)


@translates("slice.Tensor")
def _slice(call: Call, x: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Array:
    return x[_at(x, dim, slice(start, end, step))]


@translates("select.int")
def _select(call: Call, x: Array, dim: int, index: int) -> Array:
    return x[_at(x, dim, index)]


@translates("slice_scatter.default")
def _slice_scatter(
    call: Call, x: Array, source: Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Array:
    return x.at[_at(x, dim, slice(start, end, step))].set(source)


@translates("select_scatter.default")
def _select_scatter(call: Call, x: Array, source: Array, dim: int, index: int) -> Array:
    return x.at[_at(x, dim, index)].set(source)


@translates("copy.default")
def _copy(call: Call, x: Array, source: Array) -> Array:
    return jnp.broadcast_to(jnp.asarray(source, x.dtype), x.shape)


@translates("cat.default")
def _cat(call: Call, xs: list[Array], dim: int = 0) -> Array:
    return jnp.concatenate([jnp.asarray(x, call.dtype) for x in xs if x.shape != (0,)], axis=dim)


@translates("stack.default")
def _stack(call: Call, xs: list[Array], dim: int = 0) -> Array:
    return jnp.stack([jnp.asarray(x, call.dtype) for x in xs], axis=dim)


@translates("split_with_sizes.default")
def _split(call: Call, x: Array, sizes: list[int], dim: int = 0) -> list[Array]:
    return jnp.split(x, np.cumsum(sizes)[:-1].tolist(), axis=dim)


@translates("unbind.int")
def _unbind(call: Call, x: Array, dim: int = 0) -> list[Array]:
    return [_select(call, x, dim, i) for i in range(x.shape[dim])]


@translates("repeat.default")
def _repeat(call: Call, x: Array, repeats: list[int]) -> Array:
    return jnp.tile(x, repeats)


@translates("flip.default")
def _flip(call: Call, x: Array, dims: list[int]) -> Array:
    return jnp.flip(x, axes(x, dims)) if dims else x


@translates("roll.default")
def _roll(call: Call, x: Array, shifts: list[int], dims: Any = None) -> Array:
    return jnp.roll(x, shifts, axes(x, dims)) if dims else jnp.roll(jnp.ravel(x), shifts[0]).reshape(x.shape)


@translates("tril.default")
def _tril(call: Call, x: Array, diagonal: int = 0) -> Array:
    return jnp.tril(x, diagonal)


@translates("triu.default")
def _triu(call: Call, x: Array, diagonal: int = 0) -> Array:
    return jnp.triu(x, diagonal)


@translates("diagonal.default")
def _diagonal(call: Call, x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    return jnp.diagonal(x, offset, dim1, dim2)


@translates("constant_pad_nd.default")
def _pad(call: Call, x: Array, pad: list[int], value: float = 0.0) -> Array:
    pairs = [(low, high, 0) for low, high in zip(pad[::2], pad[1::2], strict=True)][::-1]
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0)] * (x.ndim - len(pairs)) + pairs)


@translates("index.Tensor")
def _index(call: Call, x: Array, indices: list[Any]) -> Array:
    return at(x, *_places(indices))


def _places(indices: list[Any]) -> list[Any]:
    """**Raises:** `ValueError` for masks, whose entries are as many as are true."""
    if any(i is not None and i.dtype == bool for i in indices):
        raise ValueError("from_torch: entries must be chosen by integers, or by torch.where; got a mask in brackets.")
    return [slice(None) if i is None else i for i in indices]


@translates("index_put.default")
def _index_put(call: Call, x: Array, indices: list[Any], values: Array, accumulate: bool = False) -> Array:
    values = jnp.asarray(values, x.dtype)
    if len(indices) == 1 and indices[0].dtype == bool and values.size == 1 and not accumulate:  # x[mask] = number
        mask = lax.expand_dims(indices[0], range(indices[0].ndim, x.ndim))
        return jnp.where(mask, values.reshape([1] * x.ndim), x)
    place = x.at[tuple(_places(indices))]
    return place.add(values) if accumulate else place.set(values)


@translates("index_select.default")
def _index_select(call: Call, x: Array, dim: int, index: Array) -> Array:
    return at(x, *[slice(None)] * (dim % x.ndim), index)


@translates("gather.default")
def _gather(call: Call, x: Array, dim: int, index: Array, sparse_grad: bool = False) -> Array:
    dim %= x.ndim
    kept = tuple(slice(None) if d == dim else slice(0, n) for d, n in enumerate(index.shape))
    return jnp.take_along_axis(x[kept], index, axis=dim)


def _scattered(x: Array, dim: int, index: Array) -> Any:
    places = list(jnp.meshgrid(*(jnp.arange(n) for n in index.shape), indexing="ij"))
    places[dim % x.ndim] = index
    return x.at[tuple(places)]


@translates("scatter.src", "scatter.value")
def _scatter(call: Call, x: Array, dim: int, index: Array, source: Any) -> Array:
    if isinstance(source, jax.Array):
        source = source[tuple(slice(0, n) for n in index.shape)]
    return _scattered(x, dim, index).set(jnp.asarray(source, x.dtype))


@translates("scatter_add.default")
def _scatter_add(call: Call, x: Array, dim: int, index: Array, source: Array) -> Array:
    return _scattered(x, dim, index).add(source[tuple(slice(0, n) for n in index.shape)])


@translates("scatter_reduce.two")
def _scatter_reduce(
    call: Call, x: Array, dim: int, index: Array, source: Array, reduce: str, include_self: bool = True
) -> Array:
    if reduce not in ("sum", "mean"):
        raise ValueError(f"from_torch: scatter_reduce must be by 'sum' or 'mean'; got {reduce!r}.")
    source = source[tuple(slice(0, n) for n in index.shape)]
    start = x if include_self else _scattered(x, dim, index).set(jnp.asarray(0, x.dtype))
    total = _scattered(start, dim, index).add(source)
    if reduce == "sum":
        return total
    count = _scattered(jnp.full(x.shape, int(include_self), x.dtype), dim, index).add(jnp.ones_like(source))
    return total / jnp.maximum(count, 1)


@translates("sym_size.int")
def _size(call: Call, x: Array, dim: int) -> int:
    return x.shape[dim]


@translates("sym_numel.default")
def _numel(call: Call, x: Array) -> int:
    return x.size


@translates("full.default", "full_like.default", "scalar_tensor.default")
def _full(call: Call, shape: Any, value: Any = None) -> Array:
    if value is None:  # a number alone
        return jnp.asarray(shape, call.dtype)
    return jnp.full(shape.shape if isinstance(shape, jax.Array) else shape, value, call.dtype)


@translates("zeros.default", "zeros_like.default", "empty.memory_format", "empty_like.default")
def _zeros(call: Call, shape: Any) -> Array:
    return jnp.zeros(shape.shape if isinstance(shape, jax.Array) else shape, call.dtype)


@translates("empty_permuted.default")
def _empty_permuted(call: Call, shape: list[int], layout: list[int]) -> Array:
    return jnp.zeros(shape, call.dtype)


@translates("ones.default", "ones_like.default")
def _ones(call: Call, shape: Any) -> Array:
    return jnp.ones(shape.shape if isinstance(shape, jax.Array) else shape, call.dtype)


@translates("arange.start_step")
def _arange(call: Call, start: Any, end: Any, step: Any = 1) -> Array:
    return jnp.arange(start, end, step, dtype=call.dtype)
