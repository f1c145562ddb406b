"""MNIST, and tanh networks on it: weights drawn and applied, loss and error."""

import gzip
import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from experiments._common import data_file
from jax import Array
from jax.typing import ArrayLike

Params: TypeAlias = list[dict[str, Array]]
"""A layer each: `w` (inputs, outputs) and `b` (outputs,)."""
Examples: TypeAlias = tuple[Array, Array]
"""Images in [0, 1], (n, 784), and labels 0 to 9, (n,)."""


@lru_cache(maxsize=2)
def _read(part: str) -> tuple[np.ndarray, np.ndarray]:
    """`part` is "train" or "t10k"; IDX files begin with a magic number and sizes, 4 bytes each."""
    with gzip.open(data_file(f"mnist/{part}-images-idx3-ubyte.gz")) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(data_file(f"mnist/{part}-labels-idx1-ubyte.gz")) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images, labels


def examples(part: str, start: int, count: int) -> Examples:
    """Examples start, ..., start + count - 1 of "train" (60,000) or "t10k" (10,000)."""
    images, labels = _read(part)
    chosen = slice(start, start + count)
    return jnp.asarray(images[chosen].astype(np.float32) / 255), jnp.asarray(labels[chosen].astype(np.int32))


def splits(count: int = 10_000, centred: bool = False) -> dict[str, Examples]:
    """The first `count` training images to train on, the next to validate, and as many test images.

    `centred` subtracts the mean of the images to train on from all.
    """
    data = {
        "train": examples("train", 0, count),
        "validation": examples("train", count, count),
        "test": examples("t10k", 0, count),
    }
    mean = jnp.mean(data["train"][0], axis=0) if centred else 0.0
    return {name: (images - mean, labels) for name, (images, labels) in data.items()}


def drawn(sizes: tuple[int, ...], scales: Sequence[Mapping[str, ArrayLike]], key: Array) -> Params:
    """Normal weights and biases with a scale for each array."""
    params = []
    for i, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        key_w, key_b = jax.random.split(jax.random.fold_in(key, i))
        params.append(
            {
                "w": scales[i]["w"] * jax.random.normal(key_w, (rows, columns)),
                "b": scales[i]["b"] * jax.random.normal(key_b, (columns,)),
            }
        )
    return params


def logits(params: Params, images: Array) -> Array:
    """(n, 10), through tanh layers."""
    for layer in params[:-1]:
        images = jnp.tanh(images @ layer["w"] + layer["b"])
    return images @ params[-1]["w"] + params[-1]["b"]


def mean_nll(scores: Array, labels: Array) -> Array:
    """The mean negative log-likelihood of the labels."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], axis=1))


def nll(params: Params, data: Examples) -> Array:
    """The mean negative log-likelihood."""
    return mean_nll(logits(params, data[0]), data[1])


def error(params: Params, data: Examples) -> Array:
    """The part of the examples that are classified wrongly."""
    return jnp.mean((jnp.argmax(logits(params, data[0]), axis=1) != data[1]).astype(jnp.float32))


def show(axis: Any, image: Array | np.ndarray, title: str = "", **colours: Any) -> Any:
    """An image (784,) without ticks; what `imshow` returns."""
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    return axis.imshow(np.asarray(image).reshape(28, 28), **colours)
