"""A loss that torch computes, in trainings: the derivatives of a loop of torch, and a run undone bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax.torch import oracle

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "hyprax[torch]"')

RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(8, 3)), RNG.normal(size=8), RNG.normal(size=3)
EXAMPLE = ({"w": W}, {"rate": np.asarray(0.1), "decay": np.asarray(-3.0)}, (X[:4], Y[:4]))


def loss_in_torch(params, hyper, batch):
    x, y = batch
    decay = torch.exp(hyper["decay"]) * (params["w"] ** 2).sum()
    return ((torch.tanh(x @ params["w"]) - y) ** 2).mean() + decay


def loss_in_jax(params, hyper, batch):
    x, y = batch
    return jnp.mean(jnp.square(jnp.tanh(x @ params["w"]) - y)) + jnp.exp(hyper["decay"]) * jnp.sum(params["w"] ** 2)


def answer(loss, mode):
    training = hx.Training(
        loss,
        init=lambda hyper, key: {"w": jnp.asarray(W)},
        optimizer=lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], 0.9, form="polyak"),
        batches=hx.Minibatches((X, Y), 4, key=jax.random.key(0)),
        steps=6,
    )
    objective = hx.UnrolledObjective(training, loss, (jnp.asarray(X), jnp.asarray(Y)), mode=mode, key=jax.random.key(1))
    return hx.hypergradient(objective, {"rate": jnp.asarray(0.1), "decay": jnp.asarray(-3.0)})[0]


@pytest.mark.parametrize("mode", [hx.unroll.Checkpointed(), hx.unroll.Reversible()], ids=["checkpointed", "reversible"])
def test_the_hypergradient_is_that_of_the_same_loss_in_jax(mode):
    ours, theirs = answer(oracle(loss_in_torch), mode), answer(loss_in_jax, hx.unroll.StoreAll())
    np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-7)
    for name in ("rate", "decay"):
        np.testing.assert_allclose(ours.grad[name], theirs.grad[name], rtol=1e-6)
    assert hx.core.succeeded(ours.result)


def test_a_framework_that_breaks_its_word_is_found_out():
    def draws(params, hyper, batch):
        noise = 1 + 1e-3 * torch.rand(())
        return noise * loss_in_torch(params, hyper, batch)

    with pytest.raises(hx.HypergradientError, match="did not come back to the bits that it started from"):
        answer(oracle(draws), hx.unroll.Reversible())
    with pytest.raises(ValueError, match="grad must give the same bits for the same arguments"):
        oracle(draws, example=EXAMPLE)


def test_with_an_example_torch_is_asked_before_anything_runs():
    def halved(params, hyper, batch):
        """A gradient that is cut off from half of what it depends on."""
        w = params["w"]
        return loss_in_torch({"w": w + 0.5 * (w.detach() - w)}, hyper, batch)

    oracle(loss_in_torch, example=EXAMPLE)
    with pytest.raises(ValueError, match="vjp must be the transposed derivative of grad"):
        oracle(halved, example=EXAMPLE)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_function_is_refused():
    with pytest.raises(ValueError, match="loss must be a function; got a Tensor"):
        oracle(torch.ones(2))
