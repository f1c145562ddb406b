"""MNIST-1000 at a quarter of its resolution, and two small networks trained on it."""

import gzip
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import data_file
from jaxtyping import Array

from hyprax import evidence as ev

CLASSES = 10


def digits(size: int) -> tuple[Array, Array]:
    """The first `size` training images, 28 x 28 averaged to 7 x 7, grey levels from 0 to 1; and their labels."""
    with gzip.open(data_file("mnist/train-images-idx3-ubyte.gz")) as stream:
        images = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:size]
    with gzip.open(data_file("mnist/train-labels-idx1-ubyte.gz")) as stream:
        labels = np.frombuffer(stream.read(), np.uint8, offset=8)[:size]
    small = images.reshape(size, 7, 4, 7, 4).mean(axis=(2, 4)) / 255
    return jnp.asarray(small), jnp.asarray(labels.astype(np.int32))


def mlp(params: dict[str, Any], hyper: None, x: Array) -> Array:
    """49-20-10, tanh."""
    hidden = jnp.tanh(x.ravel() @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["head"]["w"] + params["head"]["b"]


def cnn(params: dict[str, Any], hyper: None, x: Array) -> Array:
    """Two 3 x 3 convolutions of stride 2 with 8 and 16 channels, tanh, and a linear head."""
    y = x[None, :, :, None]
    for name in ("first", "second"):
        y = jax.lax.conv_general_dilated(
            y, params[name]["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        y = jnp.tanh(y + params[name]["b"][None, None, None])
    return y.ravel() @ params["head"]["w"] + params["head"]["b"]


SHAPES = {
    "mlp": {"hidden": (49, 20), "head": (20, CLASSES)},
    "cnn": {"first": (3, 3, 1, 8), "second": (3, 3, 8, 16), "head": (64, CLASSES)},
}
MODELS = {"mlp": mlp, "cnn": cnn}


def trained(name: str, data: tuple[Array, Array], precision: float, steps: int) -> dict[str, Any]:
    """Weights at (nearly) the maximum of the posterior: `steps` of Adam on all data."""
    keys = iter(jax.random.split(jax.random.key(0), len(SHAPES[name])))
    params = {
        layer: {
            "w": jax.random.normal(next(keys), shape) / np.sqrt(np.prod(shape[:-1])),
            "b": jnp.zeros(shape[-1]),
        }
        for layer, shape in SHAPES[name].items()
    }
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    built = ev.linearise(MODELS[name], params, data, likelihood=ev.Categorical(), prior=ev.GaussianPrior(precision))

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        def loss(params: Any) -> Array:
            f = jax.vmap(lambda x: MODELS[name](params, None, x))(data[0])
            fit = jnp.sum(jax.vmap(built.likelihood.log_likelihood)(f, data[1]))
            return 0.5 * built.prior.penalty(params) - fit

        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params
