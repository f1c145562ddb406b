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
    x, y, test = stored["X"].astype(np.float32), stored["y"].astype(np.float32), stored["test_idx"][number]
    train = np.setdiff1d(np.arange(len(y)), test)
    return Split(x[train], y[train], x[test], y[test])


def network(params: dict[str, Array], hyper: Any, x: Array) -> Array:
    """tanh(x W / √d + b) v / √H + c: precisions of one for all tensors are then a sensible start."""
    hidden = jnp.tanh(x @ params["w"] / np.sqrt(params["w"].shape[0]) + params["b"])
    return hidden @ params["v"] / np.sqrt(HIDDEN) + params["c"]


def weights(features: int, seed: int) -> dict[str, Array]:
    """Drawn from the prior of these precisions."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (features, HIDDEN), "b": (HIDDEN,), "v": (HIDDEN, 1), "c": (1,)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
