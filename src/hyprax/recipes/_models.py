"""Networks of one example, as plain functions of their weights."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import PyTree

from ._data import Splits
from ._errors import RecipeError, as_error
from ._schema import Recipe
from ._sources import MOST_ENTRIES

Params = dict[str, dict[str, Array]]
"""Weights by layer, and by name within a layer."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}


@dataclasses.dataclass(frozen=True)
class Network:
    """f(w, x): the outputs `(C,)` of one example `(d,)`.

    - `init`: of a random key; weights are normal with variance gain/fan-in, gain 2 before relu and 1 otherwise, biases
      0, gains 1.
    - `apply`: `apply(params, x)`.
    - `last`: the name of the layer that gives the outputs.
    """

    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]
    last: str = "head"


def network(
    kind: str,
    inputs: int,
    outputs: int,
    *,
    width: int,
    depth: int,
    activation: str = "relu",
    norm: str = "fixup",
    image_shape: tuple[int, int] | None = None,
) -> Network:
    """A network by name.

    - `"mlp"`: `depth` hidden layers of `width` units.
    - `"cnn"`: `depth` convolutions 3 x 3, the i-th of 2^i `width` channels, all but the first of stride 2; the
      mean over positions; a linear layer.
    - `"resnet"`: a convolution 3 x 3, three stages of `depth` residual blocks with `width`, 2 `width` and 4 `width`
      channels, the last two beginning with stride 2; the mean over positions; a linear layer. With `norm="group"`
      group normalisation before each activation (Wu and He 2018, arXiv 1803.08494); with `"fixup"` none, but scalar
      biases and multipliers, and initial weights by Zhang, Dauphin and Ma 2019 (arXiv 1901.09321).

    **Raises:** `ValueError` for a network of images without `image_shape`.
    """
    if kind != "mlp" and image_shape is None:
        raise ValueError(f'must be "mlp" for rows of numbers, which are no images; got "{kind}"')
    act, gain = ACTIVATIONS[activation], 2.0 if activation == "relu" else 1.0
    if kind == "mlp":
        return _mlp([inputs, *[width] * depth, outputs], act, gain)
    assert image_shape is not None
    if kind == "cnn":
        return _cnn([1, *(width * 2**i for i in range(depth))], outputs, act, gain, image_shape)
    return _resnet(width, depth, outputs, act, gain, norm, image_shape)


def normal(key: Array, shape: tuple[int, ...], fan_in: int, gain: float) -> Array:
    """Normal numbers of variance gain / fan-in."""
    return math.sqrt(gain / fan_in) * jax.random.normal(key, shape)


def _dense(key: Array, fan_in: int, fan_out: int, gain: float) -> dict[str, Array]:
    return {"w": normal(key, (fan_in, fan_out), fan_in, gain), "b": jnp.zeros(fan_out)}


def _mlp(sizes: list[int], act: Callable[[Array], Array], gain: float) -> Network:
    pairs = list(itertools.pairwise(sizes))

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(pairs))
        gains = [gain] * (len(pairs) - 1) + [1.0]
        return {f"layer{i}": _dense(keys[i], *pair, gains[i]) for i, pair in enumerate(pairs)}

    def apply(params: Params, x: Array) -> Array:
        for i in range(len(pairs)):
            layer = params[f"layer{i}"]
            x = (act(x) if i else x) @ layer["w"] + layer["b"]
        return x

    return Network(init, apply, f"layer{len(pairs) - 1}")


def _conv(x: Array, w: Array, stride: int = 1) -> Array:
    """x (channels, rows, columns) with w (out, in, k, k), zeros around."""
    return lax.conv_general_dilated(x[None], w, (stride, stride), "SAME")[0]


def _kernel(key: Array, fan_in: int, fan_out: int, gain: float, size: int = 3) -> Array:
    return normal(key, (fan_out, fan_in, size, size), fan_in * size * size, gain)


def _image(x: Array, shape: tuple[int, int]) -> Array:
    return x.reshape(1, *shape)


def _cnn(
    channels: list[int], outputs: int, act: Callable[[Array], Array], gain: float, image_shape: tuple[int, int]
) -> Network:
    count = len(channels) - 1

    def init(key: Array) -> Params:
        keys = jax.random.split(key, count + 1)
        params = {
            f"conv{i}": {"w": _kernel(keys[i], channels[i], channels[i + 1], gain), "b": jnp.zeros(channels[i + 1])}
            for i in range(count)
        }
        return params | {"head": _dense(keys[count], channels[-1], outputs, 1.0)}

    def apply(params: Params, x: Array) -> Array:
        z = _image(x, image_shape)
        for i in range(count):
            layer = params[f"conv{i}"]
            z = act(_conv(z, layer["w"], 2 if i else 1) + layer["b"][:, None, None])
        return z.mean((1, 2)) @ params["head"]["w"] + params["head"]["b"]

    return Network(init, apply)


def _group_norm(z: Array, layer: Any, name: str) -> Array:
    channels = z.shape[0]
    groups = math.gcd(channels, 8) if channels > 8 else 1
    flat = z.reshape(groups, -1)
    centred = flat - flat.mean(1, keepdims=True)
    scaled = centred * lax.rsqrt(jnp.square(centred).mean(1, keepdims=True) + 1e-5)
    return scaled.reshape(z.shape) * layer[f"gain{name}"][:, None, None] + layer[f"bias{name}"][:, None, None]


def _resnet(
    width: int,
    depth: int,
    outputs: int,
    act: Callable[[Array], Array],
    gain: float,
    norm: str,
    image_shape: tuple[int, int],
) -> Network:
    widths = [width, 2 * width, 4 * width]
    blocks = [
        (f"stage{stage}_block{i}", widths[max(stage - 1, 0)] if i == 0 else wide, wide, 2 if stage and i == 0 else 1)
        for stage, wide in enumerate(widths)
        for i in range(depth)
    ]
    fixup = norm == "fixup"

    def block(key: Array, narrow: int, wide: int) -> dict[str, Array]:
        first, second, third = jax.random.split(key, 3)
        layer = {"w1": _kernel(first, narrow, wide, gain), "w2": _kernel(second, wide, wide, gain)}
        if fixup:  # each branch starts at 0 and changes slowly: two layers a branch, L = len(blocks) branches
            layer |= {"w1": layer["w1"] / math.sqrt(len(blocks)), "w2": jnp.zeros_like(layer["w2"])}
            layer |= {name: jnp.zeros(()) for name in ("b0", "b1", "b2", "b3")} | {"scale": jnp.ones(())}
        else:
            layer |= {"gain1": jnp.ones(narrow), "bias1": jnp.zeros(narrow)}
            layer |= {"gain2": jnp.ones(wide), "bias2": jnp.zeros(wide)}
        if narrow != wide:
            layer["shortcut"] = _kernel(third, narrow, wide, 1.0, 1)
        return layer

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(blocks) + 2)
        params = {"stem": {"w": _kernel(keys[0], 1, width, gain)}}
        params |= {name: block(k, narrow, wide) for k, (name, narrow, wide, _) in zip(keys[2:], blocks, strict=True)}
        head = _dense(keys[1], widths[-1], outputs, 1.0)
        return params | {"head": {name: jnp.zeros_like(x) for name, x in head.items()} if fixup else head}

    def residual(layer: Any, z: Array, stride: int) -> Array:
        if fixup:
            y = act(_conv(act(z + layer["b0"]), layer["w1"], stride) + layer["b1"])
            return _conv(y + layer["b2"], layer["w2"]) * layer["scale"] + layer["b3"]
        y = _conv(act(_group_norm(z, layer, "1")), layer["w1"], stride)
        return _conv(act(_group_norm(y, layer, "2")), layer["w2"])

    def apply(params: Params, x: Array) -> Array:
        z = _conv(_image(x, image_shape), params["stem"]["w"])
        for name, _, _, stride in blocks:
            layer = params[name]
            short = _conv(z, layer["shortcut"], stride) if "shortcut" in layer else z
            z = short + residual(layer, z, stride)
        return act(z).mean((1, 2)) @ params["head"]["w"] + params["head"]["b"]

    return Network(init, apply)


def scaled(params: Params, factor: Callable[[str], Array]) -> Params:
    """Every matrix and kernel of a layer times a factor of the layer; biases and gains as they are."""
    return {
        name: {key: x * factor(name).astype(x.dtype) if x.ndim >= 2 else x for key, x in layer.items()}
        for name, layer in params.items()
    }


def shifted(image: Array, distance: Array, shape: tuple[int, int]) -> Array:
    """A flat image moved by `distance` (rows, columns), linear between pixels and 0 outside: differentiable in it."""
    rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=image.dtype) for n in shape), indexing="ij")
    at = [rows - distance[0], columns - distance[1]]
    return jax.scipy.ndimage.map_coordinates(image.reshape(shape), at, order=1, cval=0.0).reshape(-1)


@functools.partial(jax.jit, static_argnums=0)
def outputs_of(apply: Callable[[Params, Array], Array], params: Params, inputs: Array) -> Array:
    """f(w, x) of many examples."""
    return jax.vmap(lambda x: apply(params, x))(inputs)


def network_of(recipe: Recipe, splits: Splits) -> Network:
    """The network of the table [model], for these data.

    **Raises:** `RecipeError`.
    """
    model = recipe.model
    try:
        net = network(
            model.kind,
            len(splits.features),
            len(splits.classes) if model.classifies else 1,
            width=model.width,
            depth=model.depth,
            activation=model.activation,
            norm=model.norm,
            image_shape=splits.image_shape,
        )
    except ValueError as error:
        raise RecipeError(as_error(error), key="model.kind") from None
    shapes = jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0)))
    if (count := sum(math.prod(x.shape) for x in shapes)) > MOST_ENTRIES:
        raise RecipeError(f"must give at most {MOST_ENTRIES} weights; got {count}", key="model.width")
    return net


def predictor(net: Network) -> Callable[[PyTree, np.ndarray], np.ndarray]:
    """(params, inputs) to outputs."""
    return lambda params, inputs: np.asarray(outputs_of(net.apply, params, jnp.asarray(inputs)))
