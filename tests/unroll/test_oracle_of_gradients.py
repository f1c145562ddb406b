"""A loss that NumPy differentiates, in trainings: the answers of JAX, and broken promises found out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax.unroll import oracle

RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(8, 3)), RNG.normal(size=8), RNG.normal(size=3)
HYPER = {"rate": jnp.asarray(0.1), "decay": jnp.asarray(-3.0)}
EXAMPLE = ({"w": W}, HYPER, (X[:4], Y[:4]))


def loss_in_jax(params, hyper, batch):
    x, y = batch
    return jnp.mean(jnp.square(jnp.tanh(x @ params["w"]) - y)) + jnp.exp(hyper["decay"]) * jnp.sum(params["w"] ** 2)


def value(params, hyper, batch):
    x, y = batch
    return np.mean((np.tanh(x @ params["w"]) - y) ** 2) + np.exp(hyper["decay"]) * np.sum(params["w"] ** 2)


def grad(params, hyper, batch):
    x, y = batch
    t = np.tanh(x @ params["w"])
    return {"w": 2 / len(y) * x.T @ ((t - y) * (1 - t**2)) + 2 * np.exp(hyper["decay"]) * params["w"]}


def vjp(params, hyper, batch, p):
    x, y = batch
    t = np.tanh(x @ params["w"])
    bend = (1 - t**2) ** 2 - 2 * t * (t - y) * (1 - t**2)
    along = 2 / len(y) * x.T @ (bend * (x @ p["w"])) + 2 * np.exp(hyper["decay"]) * p["w"]
    return {"w": along}, {"rate": np.zeros(()), "decay": 2 * np.exp(hyper["decay"]) * (params["w"] @ p["w"])}


def answer(loss, outer, mode):
    training = hx.Training(
        loss,
        init=lambda hyper, key: {"w": jnp.asarray(W)},
        optimizer=lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], 0.9, form="polyak"),
        batches=hx.Minibatches((X, Y), 4, key=jax.random.key(0)),
        steps=6,
    )
    objective = hx.UnrolledObjective(
        training, outer, (jnp.asarray(X), jnp.asarray(Y)), mode=mode, key=jax.random.key(1)
    )
    return hx.hypergradient(objective, HYPER)[0]


def test_the_hypergradient_is_that_of_the_same_loss_in_jax():
    ours = answer(oracle(grad, vjp, EXAMPLE), loss_in_jax, hx.unroll.Reversible())
    theirs = answer(loss_in_jax, loss_in_jax, hx.unroll.StoreAll())
    np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-7)
    for name in HYPER:
        np.testing.assert_allclose(ours.grad[name], theirs.grad[name], rtol=1e-6)


def test_with_a_value_it_is_a_loss():
    loss = oracle(grad, vjp, EXAMPLE, value=value)
    params, batch = {"w": jnp.asarray(W)}, (jnp.asarray(X), jnp.asarray(Y))
    found, slope = jax.jit(jax.value_and_grad(loss))(params, HYPER, batch)
    expected, expected_slope = jax.value_and_grad(loss_in_jax)(params, HYPER, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(slope["w"], expected_slope["w"], rtol=1e-12)
    assert np.isnan(oracle(grad, vjp, EXAMPLE)(params, HYPER, batch))


class Rows:
    """An array that is read through DLPack alone."""

    def __init__(self, x):
        self._x = np.asarray(x)

    def __dlpack__(self, **given):
        return self._x.__dlpack__(**given)

    def __dlpack_device__(self):
        return self._x.__dlpack_device__()


def test_arrays_of_other_frameworks_come_through_dlpack():
    def theirs(fn):
        return lambda *args: jax.tree.map(Rows, fn(*args))

    params, batch = {"w": jnp.asarray(W)}, (jnp.asarray(X), jnp.asarray(Y))
    loss = oracle(theirs(grad), theirs(vjp), EXAMPLE)
    np.testing.assert_array_equal(jax.grad(loss)(params, HYPER, batch)["w"], grad({"w": W}, HYPER, (X, Y))["w"])


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_right_is_refused_before_any_run():
    def draws(*args):
        return jax.tree.map(lambda x: x * (1 + 1e-12 * RNG.normal()), grad(*args))

    def narrow(*args):
        return jax.tree.map(np.float32, grad(*args))

    def halved(*args):
        return jax.tree.map(lambda x: 0.5 * x, vjp(*args))

    with pytest.raises(ValueError, match="grad must give the same bits for the same arguments"):
        oracle(draws, vjp, EXAMPLE)
    with pytest.raises(ValueError, match=r"grad must have the shapes and dtypes .* float64\[3\]; got float32\[3\]"):
        oracle(narrow, vjp, EXAMPLE)
    with pytest.raises(ValueError, match="vjp must be the transposed derivative of grad"):
        oracle(grad, halved, EXAMPLE)
    half: Any = lambda *args: vjp(*args)[0]  # noqa: E731
    nothing: Any = {}
    with pytest.raises(ValueError, match="vjp must answer in the structure"):
        oracle(grad, half, EXAMPLE)
    with pytest.raises(ValueError, match="grad must be a function; got a dict"):
        oracle(nothing, vjp, EXAMPLE)
    with pytest.raises(ValueError, match=r"example must be a triple \(params, hyper, batch\); got a dict"):
        oracle(grad, vjp, nothing)
