"""How an operation that is linear in a weight reads as products of matrices, and which reshufflings keep it one.

A matrix-like use of a weight computes y[b, s, o] = Σ_i a[b, s, i] W[b, i, o]: b counts batches or convolution groups, s
positions. Its gradient for an output cotangent g is W̄[b, i, o] = Σ_s a[b, s, i] g[b, s, o]. A layout says which entry
of the weight is W[b, i, o], and brings the operand and the cotangent into the form a, g.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array

Indices = np.ndarray
"""Integers: at each place of a reshuffled tensor, the flat position in the tensor that it came from."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """`weight`: its places as [B, I, O]; `operand`: raw operand -> a [B, S, I]; `cotangent`: raw -> g [B, S, O].

    With `lookup` the operand becomes row numbers [B, S] instead: a is one-hot in them, and zero where one is negative.
    """

    weight: Indices
    operand: Callable[[Array], Array]
    cotangent: Callable[[Array], Array]
    positions: int
    lookup: bool = False


def input_type(eqn: JaxprEqn, position: int) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an input."""
    aval: Any = eqn.invars[position].aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def output_type(eqn: JaxprEqn) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the first output."""
    aval: Any = eqn.outvars[0].aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _product(sizes: Sequence[int]) -> int:
    return math.prod(int(size) for size in sizes)


def _dot_layout(eqn: JaxprEqn, position: int, index: Indices, data: Any) -> Layout | str:
    contract, batch = eqn.params["dimension_numbers"]
    c_weight, c_data = contract[position], contract[1 - position]
    b_weight, b_data = batch[position], batch[1 - position]
    free_weight = [d for d in range(index.ndim) if d not in (*c_weight, *b_weight)]
    free_data = [d for d in range(len(data.shape)) if d not in (*c_data, *b_data)]
    batches = _product([data.shape[d] for d in b_data])
    inner = _product([data.shape[d] for d in c_data])
    positions = _product([data.shape[d] for d in free_data])
    outputs = _product([index.shape[d] for d in free_weight])
    weight = index.transpose([*b_weight, *c_weight, *free_weight]).reshape(batches, inner, outputs)

    def operand(raw: Array) -> Array:
        return raw.transpose([*b_data, *free_data, *c_data]).reshape(batches, positions, inner)

    def cotangent(raw: Array) -> Array:
        if position == 1:
            return raw.reshape(batches, positions, outputs)
        return raw.reshape(batches, outputs, positions).swapaxes(1, 2)

    return Layout(weight, operand, cotangent, positions)


def _patches(x: Array, kernel: Sequence[int], out: Sequence[int], params: dict[str, Any]) -> Array:
    """[N, *space, C] -> [N, *out, K, C], K = the places of the kernel: strided slices, so exact in any precision.

    Channels stay last, so that what is copied are runs of them.
    """
    spread = [(0, 0, 0)]
    spread += [
        (lo, hi, dilation - 1) for (lo, hi), dilation in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [*spread, (0, 0, 0)])
    strides = params["window_strides"]
    windows = []
    for place in np.ndindex(*kernel):
        start = [p * d for p, d in zip(place, params["rhs_dilation"], strict=True)]
        stop = [s + (o - 1) * stride + 1 for s, o, stride in zip(start, out, strides, strict=True)]
        windows.append(lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1)))
    return jnp.stack(windows, axis=-2)


def _conv_layout(eqn: JaxprEqn, position: int, index: Indices, data: Any) -> Layout | str:
    params = eqn.params
    if position == 0:
        return "the weight is the image of a convolution"
    if params["batch_group_count"] != 1:
        return "convolution in batch groups"
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = [index.shape[d] for d in numbers.rhs_spec[2:]]
    out_shape = output_type(eqn).shape
    out = [out_shape[d] for d in numbers.out_spec[2:]]
    images, channels = (data.shape[d] for d in numbers.lhs_spec[:2])
    outputs, inner = index.shape[numbers.rhs_spec[0]] // groups, channels // groups
    places, positions = _product(kernel), images * _product(out)
    weight = index.transpose(numbers.rhs_spec).reshape(groups, outputs, inner, places)
    weight = weight.transpose(0, 3, 2, 1).reshape(groups, places * inner, outputs)

    def operand(raw: Array) -> Array:
        image, channel, *space = numbers.lhs_spec
        x = _patches(raw.transpose(image, *space, channel), kernel, out, params)
        x = x.reshape(positions, places, groups, inner)
        return x.transpose(2, 0, 1, 3).reshape(groups, positions, places * inner)

    def cotangent(raw: Array) -> Array:
        g = raw.transpose(numbers.out_spec).reshape(images, groups, outputs, _product(out))
        return g.transpose(1, 0, 3, 2).reshape(groups, positions, outputs)

    return Layout(weight, operand, cotangent, positions)


def _gather_layout(eqn: JaxprEqn, position: int, index: Indices, data: Any) -> Layout | str:
    numbers = eqn.params["dimension_numbers"]
    rows, width = index.shape[0], _product(index.shape[1:])
    whole = (1, *index.shape[1:])
    if (
        position != 0
        or tuple(numbers.start_index_map) != (0,)
        or tuple(numbers.collapsed_slice_dims) != (0,)
        or tuple(numbers.operand_batching_dims)
        or tuple(eqn.params["slice_sizes"]) != whole
    ):
        return "a gather that is no look-up of rows"
    positions = _product(data.shape[:-1])
    out_dims = len(output_type(eqn).shape)
    offset = tuple(numbers.offset_dims)
    order = [d for d in range(out_dims) if d not in offset] + list(offset)
    clip = eqn.params["mode"] == lax.GatherScatterMode.CLIP

    def operand(raw: Array) -> Array:
        ids = raw.reshape(1, positions)
        return jnp.clip(ids, 0, rows - 1) if clip else jnp.where((ids >= 0) & (ids < rows), ids, -1)

    def cotangent(raw: Array) -> Array:
        return raw.transpose(order).reshape(1, positions, width)

    return Layout(index.reshape(1, rows, width), operand, cotangent, positions, lookup=True)


def _row_layout(eqn: JaxprEqn, position: int, index: Indices, data: Any) -> Layout | str:
    """One row, by a number that is clamped to the rows that there are; the other axes are whole, so start at 0."""
    rows, width = index.shape[0], _product(index.shape[1:])
    if position != 0 or tuple(eqn.params["slice_sizes"]) != (1, *index.shape[1:]):
        return "a slice that is no row"

    def operand(raw: Array) -> Array:
        return jnp.clip(raw.reshape(1, 1), 0, rows - 1)

    def cotangent(raw: Array) -> Array:
        return raw.reshape(1, 1, width)

    return Layout(index.reshape(1, rows, width), operand, cotangent, 1, lookup=True)


LAYOUTS: dict[str, Callable[[JaxprEqn, int, Indices, Any], Layout | str]] = {
    "dot_general": _dot_layout,
    "conv_general_dilated": _conv_layout,
    "gather": _gather_layout,
    "dynamic_slice": _row_layout,
}
"""Operations linear in their weight: (equation, which input is the weight, its places, the type of the other
input, or the first of the others) -> layout,
or why there is none."""


def reshuffle(eqn: JaxprEqn, index: Indices) -> list[Indices] | None:
    """The places of the outputs of an equation that only moves entries of its one input; None for any other."""
    params: dict[str, Any] = eqn.params
    match eqn.primitive.name:
        case "reshape" if params.get("dimensions") is None:
            return [index.reshape(params["new_sizes"])]
        case "transpose":
            return [index.transpose(params["permutation"])]
        case "squeeze":
            return [np.squeeze(index, tuple(params["dimensions"]))]
        case "rev":
            return [np.flip(index, tuple(params["dimensions"]))]
        case "copy" | "copy_p":
            return [index]
        case "convert_element_type" if input_type(eqn, 0).dtype == output_type(eqn).dtype:
            return [index]
        case "broadcast_in_dim" if len(eqn.invars) == 1:
            shape = [1] * len(params["shape"])
            for d, size in zip(params["broadcast_dimensions"], index.shape, strict=True):
                shape[d] = size
            return [np.broadcast_to(index.reshape(shape), params["shape"])]
        case "slice":
            strides = params["strides"] or (1,) * index.ndim
            cuts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            return [index[tuple(slice(*cut) for cut in cuts)]]
        case "split":
            return np.split(index, np.cumsum(params["sizes"])[:-1], axis=params["axis"])
        case _:
            return None


def stack_steps(layout: Layout, steps: Sequence[tuple[int, bool]], weight: Indices) -> Layout:
    """The layout of a use inside loops: raw operands and cotangents gain a leading axis for each loop, outermost first.

    Where the loop runs over slices of the weight, its steps are further batches b; where it uses the weight afresh in
    each step, they are further positions s. `weight` holds the places [the former steps ..., B, I, O].
    """
    sizes = tuple(size for size, _ in steps)
    sliced = [i for i, (_, is_sliced) in enumerate(steps) if is_sliced]
    shared = [i for i, (_, is_sliced) in enumerate(steps) if not is_sliced]
    n = len(steps)

    def arranged(form: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def arrange(raw: Array) -> Array:
            x = jax.vmap(form)(raw.reshape(-1, *raw.shape[n:]))
            x = x.reshape(*sizes, *x.shape[1:])  # steps..., B, S and, without lookup, one more
            x = x.transpose([*sliced, n, *shared, *range(n + 1, x.ndim)])
            batches = _product(x.shape[: len(sliced) + 1])
            positions = _product(x.shape[len(sliced) + 1 : n + 2])
            return x.reshape(batches, positions, *x.shape[n + 2 :])

        return arrange

    positions = layout.positions * _product([sizes[i] for i in shared])
    places = weight.reshape(-1, *weight.shape[-2:])
    return Layout(places, arranged(layout.operand), arranged(layout.cotangent), positions, layout.lookup)
