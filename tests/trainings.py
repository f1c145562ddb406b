"""Random models to train, and their hypergradients by plain JAX through a Python loop: no code of the engine."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import hyprax as hx


@dataclasses.dataclass(frozen=True)
class Problem:
    training: hx.Training
    outer_loss: Callable[..., Any]
    outer_data: Any
    hyper: Any
    key: jax.Array

    def objective(self, mode: hx.unroll.AbstractMode, **settings: Any) -> hx.UnrolledObjective:
        return hx.UnrolledObjective(
            self.training, self.outer_loss, self.outer_data, key=self.key, mode=mode, **settings
        )


def mlp(params, x):
    hidden = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"][None, :])
    return hidden @ params["out"]["w"] + params["out"]["b"][None, :]


def cnn(params, x):
    image = x.reshape(x.shape[0], 1, 6, 6)
    maps = jax.lax.conv_general_dilated(image, params["in"]["w"].reshape(3, 1, 3, 3), (1, 1), "SAME")
    pooled = jnp.tanh(maps + params["in"]["b"][None, :, None, None]).reshape(x.shape[0], -1)
    return pooled @ params["out"]["w"] + params["out"]["b"][None, :]


def attention(params, x):
    tokens = x.reshape(x.shape[0], 6, 6)
    q, k, v = (tokens @ params["in"]["w"][i] for i in range(3))
    weights = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / jnp.sqrt(jnp.asarray(6, x.dtype)), axis=-1)
    mixed = tokens + weights @ v + params["in"]["b"][None, None, :]
    return jnp.mean(jnp.tanh(mixed), axis=1) @ params["out"]["w"] + params["out"]["b"][None, :]


MODELS = {
    "mlp": (mlp, {"in": {"w": (36, 7), "b": (7,)}, "out": {"w": (7, 3), "b": (3,)}}),
    "cnn": (cnn, {"in": {"w": (27,), "b": (3,)}, "out": {"w": (108, 3), "b": (3,)}}),
    "attention": (attention, {"in": {"w": (3, 6, 6), "b": (6,)}, "out": {"w": (6, 3), "b": (3,)}}),
}
OPTIMIZERS = {
    "sgd": lambda hyper: optax.sgd(hx.unroll.Schedule(hyper["lr"]), momentum=hyper["momentum"]),
    "nesterov": lambda hyper: optax.sgd(hx.unroll.Schedule(hyper["lr"]), momentum=hyper["momentum"], nesterov=True),
    "adam": lambda hyper: optax.adam(hx.unroll.Schedule(hyper["lr"]), b1=hyper["momentum"]),
    "adamw": lambda hyper: optax.adamw(
        hx.unroll.Schedule(hyper["lr"]), b1=hyper["momentum"], weight_decay=hyper["decay"]
    ),
}


def make_problem(
    model: str,
    optimizer: str,
    seed: int,
    *,
    steps: int = 5,
    dropout: bool = False,
    dtype: Any = jnp.float64,
    **settings,
) -> Problem:
    """A classification of random points, with penalties, schedules, scales and example weights to tune."""
    apply, shapes = MODELS[model]
    keys = jax.random.split(jax.random.key(seed), 6)
    inputs = jax.random.normal(keys[0], (24, 36), dtype)
    labels = jax.random.randint(keys[1], (24,), 0, 3)

    def init(hyper, key):
        leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
        drawn = [jax.random.normal(jax.random.fold_in(key, i), shape, dtype) for i, shape in enumerate(leaves)]
        return jax.tree.map(lambda x: hyper["scale"] * x, jax.tree.unflatten(structure, drawn))

    def loss(params, hyper, batch, key=None):
        x, y, index = batch
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x, jnp.zeros_like(x)) / 0.7
        each = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
        penalty = jnp.sum(hyper["penalty"] * params["out"]["w"] ** 2)
        return jnp.mean(jax.nn.sigmoid(hyper["weights"])[index] * each) + penalty

    def outer_loss(params, hyper, data):
        x, y = data
        each = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
        return jnp.mean(each) + 0.01 * jnp.sum(hyper["scale"] ** 2)

    hyper = {
        "lr": jnp.full(steps, 0.1, dtype),
        "momentum": jnp.asarray(0.8, dtype),
        "decay": jnp.asarray(0.05, dtype),
        "scale": jnp.asarray(0.4, dtype),
        "penalty": 0.01 * jax.random.uniform(keys[2], shapes["out"]["w"], dtype),
        "weights": jax.random.normal(keys[3], (24,), dtype),
    }
    if optimizer != "adamw":
        del hyper["decay"]
    batches = hx.Minibatches((inputs, labels, jnp.arange(24)), 8, key=keys[4])
    training = hx.Training(
        loss,
        init,
        lambda hyper: hx.unroll.OptaxOptimizer(OPTIMIZERS[optimizer](hyper)),
        batches,
        steps,
        keyed=dropout,
        **settings,
    )
    outer_data = (jax.random.normal(keys[5], (12, 36), dtype), labels[:12])
    return Problem(training, outer_loss, outer_data, hyper, jax.random.key(seed + 1))


def written_out(optimizer: str, hyper: Any, grads: Any, state: Any, params: Any, t: int) -> tuple[Any, Any]:
    """One step of each optimiser from its formula; `state` is (m, v)."""
    m, v = state
    lr, beta = hyper["lr"][t], hyper["momentum"]
    if optimizer in ("sgd", "nesterov"):
        m = jax.tree.map(lambda m, g: beta * m + g, m, grads)
        moved = jax.tree.map(lambda m, g: beta * m + g, m, grads) if optimizer == "nesterov" else m
        return jax.tree.map(lambda p, u: p - lr * u, params, moved), (m, v)
    decay = hyper["decay"] if optimizer == "adamw" else 0.0
    m = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)

    def move(p, m, v):
        scaled = (m / (1 - beta ** (t + 1))) / (jnp.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        return p - lr * (scaled + decay * p)

    return jax.tree.map(move, params, m, v), (m, v)


def oracle(problem: Problem, optimizer: str) -> tuple[Any, Any]:
    """F and dF/dλ in natural units: `jax.grad` through a Python loop, everything stored."""
    training = problem.training

    def value(hyper):
        init_key, step_key = jax.random.split(problem.key)
        params = training.init(hyper, init_key)
        state = (jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))
        for t in range(training.steps):
            extra = (jax.random.fold_in(step_key, t),) if training.keyed else ()
            grads = jax.grad(training.loss)(params, hyper, training.batches(t), *extra)
            params, state = written_out(optimizer, hyper, grads, state, params, t)
        return problem.outer_loss(params, hyper, problem.outer_data)

    return jax.jit(jax.value_and_grad(value))(problem.hyper)


def relative_error(a: Any, b: Any) -> float:
    """The largest ‖a - b‖/‖b‖ over leaves; a leaf far smaller than all others counts against their norm."""
    pairs = [
        [ravel_pytree(leaf)[0].astype(jnp.float64) for leaf in pair]
        for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    whole = float(jnp.linalg.norm(jnp.concatenate([y for _, y in pairs])))
    return max(float(jnp.linalg.norm(x - y)) / max(float(jnp.linalg.norm(y)), 1e-5 * whole) for x, y in pairs)
