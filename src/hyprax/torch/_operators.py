"""Operators of torch that work elementwise, reduce, or move entries about."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ._graph import TABLE, Call, axes, common, level, translates


def _elementwise(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, *xs: fn(*level(call, *xs))


def _predicate(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, *xs: fn(*level(call, *xs, dtype=common(*xs)))


def _logical(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, *xs: fn(*level(call, *(x != 0 for x in xs), dtype=bool))


_UNARY = (
    "abs acos acosh asin asinh atan atanh ceil cos cosh exp expm1 floor log log10 log1p log2 reciprocal round sign sin "
    "sinh sqrt square tan tanh trunc bitwise_not"
)
for _name in _UNARY.split():
    TABLE[f"aten.{_name}.default"] = _elementwise(getattr(jnp, _name))
for _name, _fn in {
    "neg": jnp.negative,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "erfinv": lax.erf_inv,
    "lgamma": lax.lgamma,
    "digamma": lax.digamma,
    "rsqrt": lax.rsqrt,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}.items():
    TABLE[f"aten.{_name}.default"] = _elementwise(_fn)
for _name in ("clone", "alias", "detach_", "contiguous", "_to_copy", "lift_fresh_copy"):
    TABLE[f"aten.{_name}.default"] = _elementwise(lambda x: x)
TABLE["aten.detach.default"] = _elementwise(lax.stop_gradient)
for _name in ("isinf", "isnan", "isfinite"):
    TABLE[f"aten.{_name}.default"] = _predicate(getattr(jnp, _name))
for _name, _fn in {
    "mul": jnp.multiply,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "atan2": jnp.arctan2,
    "fmod": jnp.fmod,
    "remainder": jnp.remainder,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
}.items():
    TABLE |= {f"aten.{_name}.{kind}": _elementwise(_fn) for kind in ("default", "Tensor", "Scalar")}
for _name, _fn in {
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
}.items():
    TABLE |= {f"aten.{_name}.{kind}": _predicate(_fn) for kind in ("Tensor", "Scalar")}
for _name in ("logical_and", "logical_or", "logical_xor", "logical_not"):
    TABLE[f"aten.{_name}.default"] = _logical(getattr(jnp, _name))
for _name in (
    "_assert_scalar.default",
    "_assert_async.msg",
    "_assert_tensor_metadata.default",
    "sym_constrain_range_for_size.default",
    "sym_constrain_range.default",
):
    TABLE[f"aten.{_name}"] = lambda *_, **__: None


@translates("add.Tensor", "add.Scalar")
def _add(call: Call, x: Any, y: Any, alpha: Any = 1) -> Array:
    x, y, alpha = level(call, x, y, alpha)
    return x + alpha * y


@translates("sub.Tensor", "sub.Scalar")
def _sub(call: Call, x: Any, y: Any, alpha: Any = 1) -> Array:
    x, y, alpha = level(call, x, y, alpha)
    return x - alpha * y


@translates("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode")
def _div(call: Call, x: Any, y: Any, rounding_mode: str | None = None) -> Array:
    x, y = level(call, x, y)
    if rounding_mode == "floor":
        return jnp.floor_divide(x, y)
    return x / y if rounding_mode is None else jnp.trunc(x / y)


@translates("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def _pow(call: Call, x: Any, y: Any) -> Array:
    if not isinstance(y, jax.Array) and y == int(y):
        return lax.integer_pow(jnp.asarray(x, call.dtype), int(y))
    return jnp.power(*level(call, x, y))


@translates("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(call: Call, condition: Array, x: Any, y: Any) -> Array:
    x, y, condition = level(call, x, y, condition)
    return jnp.where(condition != 0, x, y)


@translates("clamp.default", "clamp.Tensor", "clamp_min.default", "clamp_max.default")
def _clamp(call: Call, x: Array, low: Any = None, high: Any = None, min: Any = None, max: Any = None) -> Array:
    """Of derivative 1 at the bounds."""
    low, high = min if low is None else low, max if high is None else high
    if low is not None:
        x, low = level(call, x, low)
        x = jnp.where(x < low, low, x)
    if high is not None:
        x, high = level(call, x, high)
        x = jnp.where(x > high, high, x)
    return x


@translates("hardtanh.default")
def _hardtanh(call: Call, x: Array, low: float = -1.0, high: float = 1.0) -> Array:
    """Of derivative 0 at the bounds."""
    x, low_, high_ = level(call, x, low, high)
    return jnp.where(x <= low_, low_, jnp.where(x >= high_, high_, x))


@translates("leaky_relu.default")
def _leaky_relu(call: Call, x: Array, slope: float = 0.01) -> Array:
    x, slope_ = level(call, x, slope)
    return jnp.where(x > 0, x, slope_ * x)


@translates("elu.default")
def _elu(call: Call, x: Array, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0) -> Array:
    x, alpha_, scale_, inner_ = level(call, x, alpha, scale, inner)
    return scale_ * jnp.where(x > 0, x, alpha_ * jnp.expm1(inner_ * jnp.where(x > 0, 0, x)))


@translates("gelu.default")
def _gelu(call: Call, x: Array, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@translates("softplus.default")
def _softplus(call: Call, x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    x, beta_, threshold_ = level(call, x, beta, threshold)
    high = x * beta_ > threshold_
    return jnp.where(high, x, jax.nn.softplus(jnp.where(high, 0, x * beta_)) / beta_)


def _reduction(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, x, dims=None, keepdim=False: fn(
        jnp.asarray(x, call.dtype), axis=axes(x, dims), keepdims=keepdim
    )


for _name, _fn in {
    "sum.dim_IntList": jnp.sum,
    "sum.default": jnp.sum,
    "mean.dim": jnp.mean,
    "mean.default": jnp.mean,
    "amax.default": jnp.max,
    "amin.default": jnp.min,
    "max.default": jnp.max,
    "min.default": jnp.min,
    "prod.default": jnp.prod,
    "prod.dim_int": jnp.prod,
    "any.default": jnp.any,
    "any.dim": jnp.any,
    "any.dims": jnp.any,
    "all.default": jnp.all,
    "all.dim": jnp.all,
}.items():
    TABLE[f"aten.{_name}"] = _reduction(_fn)


@translates("var.correction")
def _var(call: Call, x: Array, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> Array:
    correction = 1 if correction is None else correction
    return jnp.var(x, axis=axes(x, dims), ddof=correction, keepdims=keepdim)


@translates("var_mean.correction")
def _var_mean(call: Call, x: Array, dims: Any = None, correction: Any = 1, keepdim: bool = False) -> tuple:
    return _var(call, x, dims, correction, keepdim), jnp.mean(x, axis=axes(x, dims), keepdims=keepdim)


@translates("linalg_vector_norm.default")
def _norm(call: Call, x: Array, order: float = 2, dims: Any = None, keepdim: bool = False) -> Array:
    if order != 2:
        raise ValueError(f"from_torch: norms must be of order 2; got one of order {order}.")
    return jnp.sqrt(jnp.sum(x * x, axis=axes(x, dims), keepdims=keepdim))


@translates("argmax.default")
def _argmax(call: Call, x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    return jnp.argmax(x, axis=dim, keepdims=keepdim).astype(call.dtype)


@translates("argmin.default")
def _argmin(call: Call, x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    return jnp.argmin(x, axis=dim, keepdims=keepdim).astype(call.dtype)


def _extreme(find: Callable[..., Any]) -> Callable[..., Any]:
    """The largest or smallest entries and where they are: of several equal ones, the first takes the derivative."""

    def extreme(call: Call, x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
        index = find(x, axis=dim, keepdims=True)
        values = jnp.take_along_axis(x, index, axis=dim)
        return (values, index) if keepdim else (jnp.squeeze(values, dim), jnp.squeeze(index, dim))

    return extreme


TABLE |= {"aten.max.dim": _extreme(jnp.argmax), "aten.min.dim": _extreme(jnp.argmin)}


@translates("cumsum.default")
def _cumsum(call: Call, x: Array, dim: int) -> Array:
    return jnp.cumsum(jnp.asarray(x, call.dtype), axis=dim)


@translates("sort.default", "sort.stable")
def _sort(call: Call, x: Array, dim: int = -1, descending: bool = False, stable: bool = True) -> tuple[Array, Array]:
    index = jnp.argsort(x, axis=dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, index, axis=dim), index


@translates("topk.default")
def _topk(call: Call, x: Array, k: int, dim: int = -1, largest: bool = True, ordered: bool = True) -> tuple:
    values, index = _sort(call, x, dim, largest)
    return lax.slice_in_dim(values, 0, k, axis=dim), lax.slice_in_dim(index, 0, k, axis=dim)


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
    return x[tuple(slice(None) if i is None else i for i in indices)]


@translates("index_put.default")
def _index_put(call: Call, x: Array, indices: list[Any], values: Array, accumulate: bool = False) -> Array:
    place = x.at[tuple(slice(None) if i is None else i for i in indices)]
    return place.add(values) if accumulate else place.set(values)


@translates("index_select.default")
def _index_select(call: Call, x: Array, dim: int, index: Array) -> Array:
    return jnp.take(x, index, axis=dim)


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


@translates("sym_size.int")
def _size(call: Call, x: Array, dim: int) -> int:
    return x.shape[dim]


@translates("sym_numel.default")
def _numel(call: Call, x: Array) -> int:
    return x.size


@translates("full.default", "full_like.default", "new_full.default", "scalar_tensor.default")
def _full(call: Call, shape: Any, value: Any = None) -> Array:
    if value is None:  # a number alone
        return jnp.asarray(shape, call.dtype)
    return jnp.full(shape.shape if isinstance(shape, jax.Array) else shape, value, call.dtype)


@translates("zeros.default", "zeros_like.default", "empty.memory_format", "empty_like.default", "new_zeros.default")
def _zeros(call: Call, shape: Any) -> Array:
    return jnp.zeros(shape.shape if isinstance(shape, jax.Array) else shape, call.dtype)


@translates("ones.default", "ones_like.default", "new_ones.default")
def _ones(call: Call, shape: Any) -> Array:
    return jnp.ones(shape.shape if isinstance(shape, jax.Array) else shape, call.dtype)


@translates("arange.start_step")
def _arange(call: Call, start: Any, end: Any, step: Any = 1) -> Array:
    return jnp.arange(start, end, step, dtype=call.dtype)
