"""Small MNIST, moved at random by known affine maps, and the network that looks at it."""

import gzip
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from experiments._common import data_file
from jaxtyping import Array

from hyprax import evidence as ev

SIDE, CLASSES, HIDDEN = 14, 10, 64
NAMES = ev.AffineInvariance.names

TRUTH = {
    "plain": {},
    "fully rotated": {"rotation": np.pi},
    "half rotated": {"rotation": np.pi / 2},
    "translated": {"translation_x": 8 / 14, "translation_y": 8 / 14},
}
"""The ranges by which each version of the data is moved; translations are up to 8 of the 28 pixels."""


def true_ranges(version: str) -> np.ndarray:
    return np.array([TRUTH[version].get(name, 0.0) for name in NAMES], np.float32)


def _read(kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(data_file(f"mnist/{kind}-images-idx3-ubyte.gz")) as stream:
        images = np.frombuffer(stream.read(16 + 784 * count)[16:], np.uint8).reshape(-1, 28, 28)
    with gzip.open(data_file(f"mnist/{kind}-labels-idx1-ubyte.gz")) as stream:
        labels = np.frombuffer(stream.read(8 + count)[8:], np.uint8)
    return images, labels.astype(np.int32)


def moved(version: str, kind: Literal["train", "t10k"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images, each moved once by a map drawn uniformly, at full size, then averaged to 14 x 14."""
    images, labels = _read(kind, count)
    rng = np.random.default_rng(0 if kind == "train" else 1)
    weights = rng.uniform(-1, 1, (count, len(NAMES))) * true_ranges(version)
    images = jnp.asarray(images, jnp.float32) / 255
    out = jax.jit(jax.vmap(lambda x, w: ev.warp(x, ev.affine_map(w))))(images, jnp.asarray(weights, jnp.float32))
    return np.asarray(out).reshape(count, SIDE, 2, SIDE, 2).mean((2, 4)), labels


def network(params: dict[str, Array], hyper: Any, x: Array) -> Array:
    """tanh(x W / 14 + b) V / 8 + c, so that prior precisions of one are a sensible start."""
    hidden = jnp.tanh(x.ravel() @ params["w"] * (1 / SIDE) + params["b"])
    return hidden @ params["v"] * (1 / np.sqrt(HIDDEN)) + params["c"]


def weights(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"w": (SIDE * SIDE, HIDDEN), "b": (HIDDEN,), "v": (HIDDEN, CLASSES), "c": (CLASSES,)}
    return {name: jnp.asarray(rng.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}
