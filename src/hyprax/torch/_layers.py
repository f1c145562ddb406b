"""Operators of torch that are layers: products, convolutions, pooling, norms, attention, embeddings, dropout."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from .._products import einsum, product
from ._graph import TABLE, Call, at, level, translates

FIRST_ONLY = ("max_pool", "adaptive_max_pool", "native_", "_native_batch_norm", "_embedding_bag")
"""How the names begin of operators whose second and third results, for torch's own derivatives, are not had here."""

TABLE |= {f"aten.{name}.default": lambda _, a, b: product(a, b) for name in ("mm", "bmm", "mv", "dot", "matmul")}


@translates("addmm.default", "baddbmm.default")
def _addmm(call: Call, x: Array, a: Array, b: Array, beta: Any = 1, alpha: Any = 1) -> Array:
    x, y, beta, alpha = level(call, x, product(a, b), beta, alpha)
    return beta * x + alpha * y


@translates("linear.default")
def linear(call: Call, x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = product(x, weight.T)
    return y if bias is None else y + lax.expand_dims(bias, range(y.ndim - 1))


@translates("convolution.default")
def _convolution(
    call: Call,
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Array:
    spatial = x.ndim - 2
    if transposed:  # the adjoint of a convolution: strides become holes, and the kernel is turned round
        inputs, outputs, *kernel = weight.shape
        weight = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
        weight = jnp.flip(weight.reshape(groups * outputs, inputs // groups, *kernel), range(2, 2 + spatial))
        edges = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        pads = [(edge, edge + extra) for edge, extra in zip(edges, output_padding, strict=True)]
        strides, holes = [1] * spatial, stride
    else:
        pads, strides, holes = [(p, p) for p in padding], stride, [1] * spatial
    y = lax.conv_general_dilated(
        x,
        weight,
        strides,
        pads,
        lhs_dilation=holes,
        rhs_dilation=dilation,
        feature_group_count=groups,
        precision=lax.Precision.HIGHEST,
    )
    return y if bias is None else y + bias.reshape(1, -1, *[1] * spatial)


def _windows(
    x: Array, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool, fill: float
) -> Iterator[Array]:
    """The entries of all windows, one place of the window after another."""
    rank = len(kernel)
    sizes, pads = [], []
    for n, k, s, p, d in zip(x.shape[-rank:], kernel, stride, padding, dilation, strict=True):
        free = n + 2 * p - d * (k - 1) - 1
        size = -(-free // s) + 1 if ceil else free // s + 1
        if ceil and (size - 1) * s >= n + p:  # a window must begin inside of the input or of its padding on the left
            size -= 1
        sizes.append(size)
        pads.append((p, max(0, (size - 1) * s + d * (k - 1) + 1 - n - p), 0))
    x = lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0)] * (x.ndim - rank) + pads)
    for place in itertools.product(*map(range, kernel)):
        cut = [
            slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, n, s in zip(place, dilation, sizes, stride, strict=True)
        ]
        yield x[(..., *cut)]


def _spread(value: Any, rank: int) -> list[int]:
    value = [value] if isinstance(value, int) else list(value)
    return value * rank if len(value) == 1 else value


def _max_pool(rank: int) -> Any:
    def pool(
        call: Call, x: Array, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> tuple:
        """The first of several largest entries takes the derivative."""
        kernel = _spread(kernel, rank)
        stride = _spread(stride, rank) if stride else kernel
        parts = _windows(x, kernel, stride, _spread(padding, rank), _spread(dilation, rank), ceil, -jnp.inf)
        stacked = jnp.stack(list(parts))
        best = jnp.argmax(stacked, axis=0, keepdims=True)
        return jnp.take_along_axis(stacked, best, axis=0)[0], None

    return pool


def _avg_pool(rank: int) -> Any:
    def pool(
        call: Call,
        x: Array,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> Array:
        kernel, padding = _spread(kernel, rank), _spread(padding, rank)
        stride = _spread(stride, rank) if stride else kernel
        ones, zeros = [1] * rank, [0] * rank
        total = jnp.asarray(sum(_windows(x, kernel, stride, padding, ones, ceil, 0.0)))
        if divisor is not None:
            return total / jnp.asarray(divisor, x.dtype)
        counted = jnp.ones(x.shape[-rank:], x.dtype)
        if count_include_pad:
            wider = [n + 2 * p for n, p in zip(counted.shape, padding, strict=True)]
            counts = jnp.asarray(sum(_windows(jnp.ones(wider, x.dtype), kernel, stride, zeros, ones, ceil, 0.0)))
            counts = counts[tuple(slice(0, n) for n in total.shape[-rank:])]
        else:
            counts = sum(_windows(counted, kernel, stride, padding, ones, ceil, 0.0))
        return total / lax.expand_dims(counts, range(x.ndim - rank))

    return pool


for _rank in (1, 2, 3):
    TABLE[f"aten.max_pool{_rank}d_with_indices.default"] = _max_pool(_rank)
    TABLE[f"aten.avg_pool{_rank}d.default"] = _avg_pool(_rank)


@translates("_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default", "adaptive_avg_pool1d.default")
def _adaptive_avg_pool(call: Call, x: Array, sizes: list[int]) -> Array:
    """Means over windows of uneven lengths, as a product with a matrix for each axis."""
    for axis, size in enumerate(sizes, start=x.ndim - len(sizes)):
        n = x.shape[axis]
        means = np.zeros((size, n))
        for i in range(size):
            low, high = i * n // size, -(-(i + 1) * n // size)
            means[i, low:high] = 1 / (high - low)
        moved = product(jnp.moveaxis(x, axis, -1), jnp.asarray(means.T, x.dtype))
        x = jnp.moveaxis(moved, -1, axis)
    return x


@translates("adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _adaptive_max_pool(call: Call, x: Array, sizes: list[int]) -> tuple:
    """Maxima over windows of uneven lengths, axis by axis; the first of equal entries takes the derivative."""
    for axis, size in enumerate(sizes, start=x.ndim - len(sizes)):
        n = x.shape[axis]
        parts = []
        for i in range(size):
            window = lax.slice_in_dim(x, i * n // size, -(-(i + 1) * n // size), axis=axis)
            parts.append(jnp.take_along_axis(window, jnp.argmax(window, axis=axis, keepdims=True), axis=axis))
        x = jnp.concatenate(parts, axis=axis)
    return x, None


@translates("_softmax.default")
def _softmax(call: Call, x: Array, dim: int, half_to_float: bool = False) -> Array:
    return jax.nn.softmax(jnp.asarray(x, call.dtype), axis=dim)


@translates("_log_softmax.default")
def _log_softmax(call: Call, x: Array, dim: int, half_to_float: bool = False) -> Array:
    return jax.nn.log_softmax(jnp.asarray(x, call.dtype), axis=dim)


def _normalised(x: Array, dims: Any, epsilon: float) -> tuple[Array, Array, Array]:
    """(x - mean)/sqrt(variance + ε), the mean, and the variance without Bessel's correction."""
    mean = jnp.mean(x, axis=dims, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=dims, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype)), mean, variance


def _scaled(x: Array, weight: Array | None, bias: Array | None, shape: tuple[int, ...]) -> Array:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


@translates("_native_batch_norm_legit_functional.default")
def _batch_norm(
    call: Call,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array,
    running_var: Array,
    training: bool,
    momentum: float,
    epsilon: float,
) -> tuple:
    """Running statistics m ← (1 - μ) m + μ m_batch, with the unbiased variance."""
    if not training:
        y, *_ = _batch_norm_still(call, x, weight, bias, running_mean, running_var, momentum, epsilon)
        return y, None, None, running_mean, running_var
    shape, dims = (1, -1, *[1] * (x.ndim - 2)), (0, *range(2, x.ndim))
    y, mean, variance = _normalised(x, dims, epsilon)
    count = x.size // x.shape[1]
    unbiased = variance.ravel() * jnp.asarray(count / max(count - 1, 1), x.dtype)
    kept, part = jnp.asarray(1 - momentum, x.dtype), jnp.asarray(momentum, x.dtype)
    means = kept * running_mean + part * mean.ravel()
    return _scaled(y, weight, bias, shape), None, None, means, kept * running_var + part * unbiased


@translates("_native_batch_norm_legit_no_training.default")
def _batch_norm_still(
    call: Call,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array,
    running_var: Array,
    momentum: float,
    epsilon: float,
) -> tuple:
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = lax.rsqrt(running_var + jnp.asarray(epsilon, x.dtype))
    y = (x - running_mean.reshape(shape)) * scale.reshape(shape)
    return _scaled(y, weight, bias, shape), None, None


@translates("_native_batch_norm_legit.no_stats")
def _batch_norm_alone(
    call: Call, x: Array, weight: Array | None, bias: Array | None, training: bool, momentum: float, epsilon: float
) -> tuple:
    """Without running statistics, as in instance norm: those of the batch, always."""
    y, *_ = _normalised(x, (0, *range(2, x.ndim)), epsilon)
    return _scaled(y, weight, bias, (1, -1, *[1] * (x.ndim - 2))), None, None


@translates("native_layer_norm.default")
def _layer_norm(
    call: Call, x: Array, shape: list[int], weight: Array | None, bias: Array | None, epsilon: float
) -> tuple:
    y, *_ = _normalised(x, tuple(range(x.ndim - len(shape), x.ndim)), epsilon)
    return _scaled(y, weight, bias, (1,) * (x.ndim - len(shape)) + tuple(shape)), None, None


@translates("native_group_norm.default")
def _group_norm(
    call: Call,
    x: Array,
    weight: Array | None,
    bias: Array | None,
    n: int,
    channels: int,
    area: int,
    groups: int,
    epsilon: float,
) -> tuple:
    y, *_ = _normalised(x.reshape(n, groups, -1), 2, epsilon)
    return _scaled(y.reshape(x.shape), weight, bias, (1, -1, *[1] * (x.ndim - 2))), None, None


def dropped(call: Call, x: Array, p: float) -> Array:
    """x with each entry put to zero with probability p, and the others divided by 1 - p."""
    if p == 0 or call.draws.off:
        return x
    if p == 1:
        return jnp.zeros_like(x)
    return jnp.where(call.draws.kept(x.shape, 1 - p), x / jnp.asarray(1 - p, x.dtype), 0)


@translates("native_dropout.default")
def _dropout(call: Call, x: Array, p: float, train: bool | None = True) -> tuple:
    return (dropped(call, x, p) if train is not False else x), None


@translates("bernoulli.p")
def _bernoulli(call: Call, x: Array, p: float) -> Array:
    """Drawn by the dropout of whole channels, which then divides by p."""
    if call.draws.off:
        return jnp.full(x.shape, p, call.dtype)
    return call.draws.kept(x.shape, p).astype(call.dtype)


@translates("scaled_dot_product_attention.default")
def _attention(
    call: Call,
    q: Array,
    k: Array,
    v: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """softmax(s q kᵀ + mask) v; a row in which everything is masked gives 0."""
    if enable_gqa:
        k, v = (jnp.repeat(x, q.shape[-3] // x.shape[-3], axis=-3) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = einsum("...qd,...kd->...qk", q * jnp.asarray(scale, q.dtype), k)
    allowed = jnp.ones(scores.shape[-2:], bool)
    if is_causal:
        allowed = jnp.tril(allowed)
    if attn_mask is not None:
        if attn_mask.dtype == bool:
            allowed = jnp.logical_and(*level(call, allowed, attn_mask, dtype=bool))
        else:
            scores = jnp.add(*level(call, scores, attn_mask))
            allowed = jnp.logical_and(*level(call, allowed, scores > -jnp.inf, dtype=bool))
    allowed = jnp.broadcast_to(lax.expand_dims(allowed, range(scores.ndim - allowed.ndim)), scores.shape)
    some = jnp.any(allowed, axis=-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(allowed, scores, jnp.where(some, -jnp.inf, 0)), axis=-1)
    weights = dropped(call, jnp.where(some, weights, 0), dropout_p)
    return einsum("...qk,...kd->...qd", weights, v)


def _still(weight: Array, row: int) -> Array:
    """A table whose row takes no derivative: that of padding."""
    return weight.at[row].set(lax.stop_gradient(weight[row]))


@translates("embedding.default")
def _embedding(
    call: Call, weight: Array, index: Array, padding: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Array:
    _plain(scale_grad_by_freq)
    return at(weight if padding < 0 else _still(weight, padding), index)


def _plain(scale_grad_by_freq: bool) -> None:
    if scale_grad_by_freq:
        raise ValueError("from_torch: embeddings must not scale gradients by frequency; got scale_grad_by_freq=True.")


@translates("_embedding_bag.default", "_embedding_bag_forward_only.default")
def _embedding_bag(
    call: Call,
    weight: Array,
    index: Array,
    offsets: Array,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample: Array | None = None,
    include_last_offset: bool = False,
    padding: int = -1,
) -> tuple:
    """Sums (mode 0), means (1) or maxima (2) over bags of rows; padding counts for nothing, an empty bag gives 0."""
    _plain(scale_grad_by_freq)
    bags = offsets.shape[0] - include_last_offset
    bag = jnp.searchsorted(offsets[:bags], jnp.arange(index.shape[0], dtype=offsets.dtype), side="right") - 1
    counted = (index != padding) & (index >= 0)
    count = jax.ops.segment_sum(counted.astype(weight.dtype), bag, bags)[:, None]
    rows = at(weight, index)
    if mode == 2:
        rows = jnp.where(counted[:, None], rows, -jnp.inf)
        return (jnp.where(count > 0, jax.ops.segment_max(rows, bag, bags), 0), None, None, None)
    rows = rows if per_sample is None else rows * per_sample[:, None]
    total = jax.ops.segment_sum(jnp.where(counted[:, None], rows, 0), bag, bags)
    return (total if mode == 0 else total / jnp.maximum(count, 1), None, None, None)


def _sizes(x: Array, size: Any, scales: Any, rank: int) -> list[tuple[int, int, float]]:
    """Axis, new length and step between neighbours, in lengths of the input, of each axis that is resampled."""
    found = []
    for i, axis in enumerate(range(x.ndim - rank, x.ndim)):
        scale: Any = scales[i] if scales else None
        n = size[i] if size else int(x.shape[axis] * scale)
        found.append((axis, n, 1 / scale if scale else x.shape[axis] / n))
    return found


def _nearest(rank: int, middle: float) -> Any:
    def upsample(call: Call, x: Array, size: Any, scales: Any = None) -> Array:
        for axis, n, step in _sizes(x, size, scales, rank):
            places = np.floor((np.arange(n, dtype=np.float32) + np.float32(middle)) * np.float32(step))
            x = jnp.take(x, np.minimum(places.astype(int), x.shape[axis] - 1), axis=axis)
        return x

    return upsample


def _linear(rank: int) -> Any:
    """Each axis by a product with a matrix of two entries a row."""

    def upsample(call: Call, x: Array, size: Any, align_corners: bool, scales: Any = None) -> Array:
        for axis, n, step in _sizes(x, size, scales, rank):
            length = x.shape[axis]
            if align_corners:
                places = np.arange(n) * ((length - 1) / (n - 1) if n > 1 else 0.0)
            else:
                places = np.maximum((np.arange(n) + 0.5) * step - 0.5, 0.0)
            low = np.minimum(np.floor(places).astype(int), length - 1)
            means = np.zeros((n, length))
            np.add.at(means, (np.arange(n), low), 1 - (places - low))
            np.add.at(means, (np.arange(n), np.minimum(low + 1, length - 1)), places - low)
            moved = product(jnp.moveaxis(x, axis, -1), jnp.asarray(means.T, x.dtype))
            x = jnp.moveaxis(moved, -1, axis)
        return x

    return upsample


for _rank, _name in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
    TABLE[f"aten.upsample_nearest{_rank}d.vec"] = _nearest(_rank, 0.0)
    TABLE[f"aten._upsample_nearest_exact{_rank}d.vec"] = _nearest(_rank, 0.5)
    TABLE[f"aten.upsample_{_name}.vec"] = _linear(_rank)
