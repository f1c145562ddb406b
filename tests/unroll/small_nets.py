"""A small problem for many kinds of training, and its hypergradient by `jax.grad` of a Python loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from trainings import relative_error

STEPS, KEY = 5, jax.random.key(3)
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(24, 4)), np.sin(rng.normal(size=24))
BATCHES = hx.Minibatches((X[:16], Y[:16]), 8, key=jax.random.key(0))
HELD = (jnp.asarray(X[16:]), jnp.asarray(Y[16:]))
MODES = {
    "store_all": hx.unroll.StoreAll("loop"),
    "forward": hx.unroll.ForwardMode("loop"),
    "reversible": hx.unroll.Reversible("loop"),
    "checkpointed": hx.unroll.Checkpointed(states=3, driver="host"),
    "reversible_host": hx.unroll.Reversible("host"),
}


def init(hyper, key):
    a, b = jax.random.split(key)
    return {"in": hyper["scale"] * jax.random.normal(a, (4, 5)), "out": hyper["scale"] * jax.random.normal(b, (5,))}


def net(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def plain_loss(params, hyper, batch):
    x, y = batch
    return jnp.mean((net(params, x) - y) ** 2) + hyper["decay"] * jnp.sum(params["in"] ** 2)


def momentum(hyper):
    return hx.unroll.MomentumSGD(hx.unroll.Schedule(hyper["rate"]), hyper["momentum"], form="polyak")


def start(**more):
    plain = {"rate": jnp.full(STEPS, 0.05), "momentum": jnp.asarray(0.8), "scale": jnp.asarray(0.5)}
    return {**plain, "decay": jnp.asarray(0.01), **{name: jnp.asarray(x) for name, x in more.items()}}


def run(training, mode, hyper, outer=plain_loss, **settings):
    objective = hx.UnrolledObjective(training, outer, HELD, mode=mode, key=KEY, **settings)
    return hx.hypergradient(objective, hyper)[0]


def by_momentum(hyper, t, grads, velocity, params):
    velocity = jax.tree.map(lambda v, g: hyper["momentum"] * v - g, velocity, grads)
    return jax.tree.map(lambda w, v: w + hyper["rate"][t] * v, params, velocity), velocity


def by_hand(gradient, hyper, outer=plain_loss, state=lambda params, hyper: None, move=by_momentum):
    """F and dF/dλ through a Python loop.

    `gradient(params, hyper, t, key, state)` gives (g, the next state), `move(hyper, t, g, moments, params)` the weights
    and the moments after a step, of which there is one a weight, 0 at the start.
    """

    def value(hyper):
        first, step = jax.random.split(KEY)
        params = init(hyper, first)
        moments, m = jax.tree.map(jnp.zeros_like, params), state(params, hyper)
        for t in range(STEPS):
            grads, m = gradient(params, hyper, t, jax.random.fold_in(step, t), m)
            params, moments = move(hyper, t, grads, moments, params)
        return outer(params, hyper, HELD, *(() if m is None else (m,)))

    return jax.jit(jax.value_and_grad(value))(hyper)


def agrees(answer, expected, tolerance=1e-9):
    value, grads = expected
    assert abs(float(answer.value) - float(value)) <= 1e-11
    assert relative_error(answer.grad, grads) <= tolerance


def quickly(*quick: str) -> list[Any]:
    """All modes, those that are not among `quick` as slow ones."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in MODES]
