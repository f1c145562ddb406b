"""The published splits, standardised, and the network."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from experiments._common import data_file
from jaxtyping import Array

HIDDEN = 50


@dataclasses.dataclass(frozen=True)
class Split:
    """Inputs and targets to train on and to test on, standardised by the former; `scale` is that of the targets."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    scale: float


def split(name: str, number: int) -> Split:
    stored = np.load(data_file(f"uci/{name}.npz"), allow_pickle=False)
    x, y, test = stored["X"], stored["y"], stored["test_idx"][number]
    train = np.setdiff1d(np.arange(len(y)), test)
    spread, scale = x[train].std(0), float(y[train].std())
    spread[spread == 0] = 1
    x, z = (x - x[train].mean(0)) / spread, (y - y[train].mean()) / scale
    return Split(x[train], z[train], x[test], z[test], scale)


def network(params: dict[str, Array], hyper: Any, x: Array) -> Array:
    """tanh(x W / √d + b) v / √H + c: precisions of one for all tensors are then a sensible start."""
    hidden = jnp.tanh(x @ params["w"] / np.sqrt(params["w"].shape[0]) + params["b"])
    return hidden @ params["v"] / np.sqrt(HIDDEN) + params["c"]


def weights(features: int, seed: int) -> dict[str, Array]:
    """Smaller than drawn from the prior, so that training starts from a smooth function."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (features, HIDDEN), "b": (HIDDEN,), "v": (HIDDEN, 1), "c": (1,)}
    return {name: jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
