"""Operators of torch that work elementwise, reduce, or sort."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._graph import TABLE, Call, axes, common, level, translates


def _elementwise(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, *xs: fn(*level(call, *xs))


def _predicate(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, *xs: fn(*level(call, *xs, dtype=common(*xs)))


def _logical(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, *xs: fn(*level(call, *map(_truth, xs), dtype=bool))


def _truth(x: Any) -> Any:
    return x if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.bool_) else x != 0


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
    if rounding_mode is None:
        return x / y
    return jnp.trunc(x / y) if jnp.issubdtype(x.dtype, jnp.floating) else lax.div(*jnp.broadcast_arrays(x, y))


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
    """Of derivative 0 where it is 0, as torch has it."""
    dims, size = axes(x, dims), jnp.abs(x)
    if abs(order) == float("inf"):
        return (jnp.max if order > 0 else jnp.min)(size, axis=dims, keepdims=keepdim)
    if order == 0:
        return jnp.sum((x != 0).astype(x.dtype), axis=dims, keepdims=keepdim)
    if order == 1:
        return jnp.sum(size, axis=dims, keepdims=keepdim)
    order_ = jnp.asarray(order, x.dtype)
    total = jnp.sum(x * x if order == 2 else size**order_, axis=dims, keepdims=keepdim)
    zero = total == 0
    positive = jnp.where(zero, 1, total)
    return jnp.where(zero, 0, jnp.sqrt(positive) if order == 2 else positive ** (1 / order_))


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


@translates("cumprod.default")
def _cumprod(call: Call, x: Array, dim: int) -> Array:
    return jnp.cumprod(jnp.asarray(x, call.dtype), axis=dim)


@translates("logcumsumexp.default")
def _logcumsumexp(call: Call, x: Array, dim: int) -> Array:
    return lax.cumlogsumexp(x, axis=dim % x.ndim)


@translates("sort.default", "sort.stable")
def _sort(call: Call, x: Array, dim: int = -1, descending: bool = False, stable: bool = True) -> tuple[Array, Array]:
    index = jnp.argsort(x, axis=dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, index, axis=dim), index


@translates("topk.default")
def _topk(call: Call, x: Array, k: int, dim: int = -1, largest: bool = True, ordered: bool = True) -> tuple:
    values, index = _sort(call, x, dim, largest)
    return lax.slice_in_dim(values, 0, k, axis=dim), lax.slice_in_dim(index, 0, k, axis=dim)


@translates("kthvalue.default")
def _kth(call: Call, x: Array, k: int, dim: int = -1, keepdim: bool = False) -> tuple:
    """The k-th smallest, counted from 1, and where it is."""
    found = (lax.slice_in_dim(ordered, k - 1, k, axis=dim) for ordered in _sort(call, x, dim))
    return tuple(y if keepdim else jnp.squeeze(y, dim) for y in found)


@translates("median.dim")
def _median(call: Call, x: Array, dim: int = -1, keepdim: bool = False) -> tuple:
    """The lower of the two in the middle."""
    return _kth(call, x, (x.shape[dim] + 1) // 2, dim, keepdim)


@translates("median.default")
def _median_of_all(call: Call, x: Array) -> Array:
    return _median(call, jnp.ravel(x))[0]
