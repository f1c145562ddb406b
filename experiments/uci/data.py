"""The published splits, and the network."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from experiments._common import data_file
from jaxtyping import Array

HIDDEN = 50


@dataclasses.dataclass(frozen=True)
class Split:
    """Inputs and targets to train on and to test on, as published."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def split(name: str, number: int) -> Split:
    stored = np.load(data_file(f"uci/{name}.npz"), allow_pickle=False)
    x, y, test = stored["X"], stored["y"], stored["test_idx"][number]
    train = np.setdiff1d(np.arange(len(y)), test)
    return Split(x[train], y[train], x[test], y[test])


def network(params: dict[str, Array], hyper: Any, x: Array) -> Array:
    """tanh(x W / √d + b) v / √H + c: precisions of one for all tensors are then a sensible start."""
    hidden = jnp.tanh(x @ params["w"] / np.sqrt(params["w"].shape[0]) + params["b"])
    return hidden @ params["v"] / np.sqrt(HIDDEN) + params["c"]


def weights(features: int, seed: int) -> dict[str, Array]:
    """Of variance one over the number of inputs, as usual; biases 0."""
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(features, HIDDEN)) / np.sqrt(features)),
        "b": jnp.zeros(HIDDEN),
        "v": jnp.asarray(rng.normal(size=(HIDDEN, 1)) / np.sqrt(HIDDEN)),
        "c": jnp.zeros(1),
    }
