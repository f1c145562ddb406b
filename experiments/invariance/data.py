"""Small MNIST and Fashion-MNIST, moved at random by known affine maps, and the network that looks at them."""

import gzip
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from experiments._common import data_file
from jaxtyping import Array

from hyprax import evidence as ev

SIDE, CLASSES = 14, 10
CHANNELS, TAPS = (8, 16, 32), 9
LAST_PLACES = 2 * 2
"""14, 7, 4 and 2 pixels along a side."""
NAMES = ev.AffineInvariance.names
SETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}

TRUTH = {
    "plain": {},
    "fully rotated": {"rotation": np.pi},
    "half rotated": {"rotation": np.pi / 2},
    "translated": {"translation_x": 4 / 14, "translation_y": 4 / 14},
}
"""The ranges by which each version of the data is moved: translations are by up to 4 of the 28 pixels, half widths of
the image being 1."""


def true_ranges(version: str) -> np.ndarray:
    return np.array([TRUTH[version].get(name, 0.0) for name in NAMES], np.float32)


def _read(name: str, kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(data_file(f"{name}/{kind}-images-idx3-ubyte.gz")) as stream:
        images = np.frombuffer(stream.read(16 + 784 * count)[16:], np.uint8).reshape(-1, 28, 28)
    with gzip.open(data_file(f"{name}/{kind}-labels-idx1-ubyte.gz")) as stream:
        labels = np.frombuffer(stream.read(8 + count)[8:], np.uint8)
    return images, labels.astype(np.int32)


@jax.jit
def _warped(images: Array, weights: Array) -> Array:
    return jax.vmap(lambda x, w: ev.AffineInvariance.warp(x, ev.AffineInvariance.affine_map(w)))(images, weights)


def moved(
    name: str, version: str, kind: Literal["train", "t10k"], count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images, each moved once by a map drawn uniformly, at full size, then averaged to 14 x 14."""
    images, labels = _read(name, kind, count)
    rng = np.random.default_rng([seed, kind == "train"])
    weights = rng.uniform(-1, 1, (count, len(NAMES))) * true_ranges(version)
    out = _warped(jnp.asarray(images, jnp.float32) / 255, jnp.asarray(weights, jnp.float32))
    return np.asarray(out).reshape(count, SIDE, 2, SIDE, 2).mean((2, 4)), labels


def _layer(x: Array, weights: Array, bias: Array) -> Array:
    """tanh of a 3 x 3 convolution, then means of 2 x 2 pixels.

    The convolution is a product with patches: its derivatives under `vmap` are products too, which a CPU does several
    times faster than the grouped convolutions that the rule for `lax.conv` makes of them.
    """
    height, width = x.shape[:2]
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    patches = jnp.concatenate([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=2)
    y = jnp.tanh(patches @ weights / np.sqrt(weights.shape[0]) + bias)
    y = jnp.pad(y, ((0, height % 2), (0, width % 2), (0, 0)))
    return y.reshape(y.shape[0] // 2, 2, y.shape[1] // 2, 2, -1).mean((1, 3))


def network(params: dict[str, Array], hyper: Any, x: Array) -> Array:
    """Three such layers and a linear one, scaled so that prior precisions of one would be a start.

    The third layer looks across the image before the head ties features to places.
    """
    y = 2 * x[:, :, None]
    for i in range(len(CHANNELS)):
        y = _layer(y, params[f"layer{i}"], params[f"layer{i}_bias"])
    return y.ravel() @ params["head"] / np.sqrt(y.size) + params["head_bias"]


def weights(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    inputs = (1, *CHANNELS)
    shapes = {f"layer{i}": (TAPS * inputs[i], out) for i, out in enumerate(CHANNELS)}
    shapes["head"] = (LAST_PLACES * CHANNELS[-1], CLASSES)
    drawn = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    drawn |= {f"{name}_bias": 0.1 * rng.normal(size=shape[1]) for name, shape in shapes.items()}
    return {name: jnp.asarray(value, jnp.float32) for name, value in drawn.items()}
