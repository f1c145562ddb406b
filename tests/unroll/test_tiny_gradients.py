"""Gradients of every size in one network, under `Reversible`: against `jax.grad` through steps written here by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx

pytestmark = pytest.mark.optimised  # rounding and bits are those of the compiler that users have

STEPS, INPUTS = 40, 15
rng = np.random.default_rng(0)
SCALES = 10.0 ** np.linspace(-12, 2, INPUTS)
SCALES[4] = 0.0
X = rng.normal(size=(40, INPUTS))
X[:, 4] = 0.0  # the weights of this input have gradients of exactly 0
Y = np.sin(X.sum(1))
START = {"in": 0.3 * rng.normal(size=(INPUTS, 8)), "out": 0.5 * rng.normal(size=8)}


def fit(params):
    return jnp.mean((jnp.tanh(0.3 * X @ params["in"]) @ params["out"] - Y) ** 2)


def loss(params, hyper, batch):
    each = jnp.sum(SCALES[:, None] * (params["in"] - jnp.sin(3 * params["in"])) ** 2)
    return (
        hyper["share"] * fit(params)
        + hyper.get("each", 1.0) * each
        + 1e-3 * hyper["share"] * jnp.sum(params["out"] ** 2)
    )


def outer(params, hyper, data):
    return fit(params) + jnp.sum(jnp.cos(params["in"]))


def adam(hyper, carry, t):
    (w, m, s), each = carry, jax.tree.map
    g = jax.grad(loss)(w, hyper, None)
    b1, b2 = hyper["beta1"], hyper["beta2"]
    m = each(lambda m, g: b1 * m + (1 - b1) * g, m, g)
    s = each(lambda s, g: b2 * s + (1 - b2) * g * g, s, g)
    first, second = 1 - b1 ** (t + 1), 1 - b2 ** (t + 1)

    def moved(w, m, s):
        root = jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1.0) / second), 0.0)
        return w - hyper["rate"] * (m / first) / (root + hyper["eps"])

    return each(moved, w, m, s), m, s


def momentum(hyper, carry, t):
    (w, v, s), each = carry, jax.tree.map
    g = jax.grad(loss)(w, hyper, None)
    v = each(lambda v, g: hyper["beta1"] * v - g, v, g)
    return each(lambda w, v: w + hyper["rate"] * v, w, v), v, s


def by_hand(step, hyper):
    zeros = {name: jnp.zeros_like(w) for name, w in START.items()}
    start = {name: jnp.asarray(w) for name, w in START.items()}, zeros, zeros
    end, _ = jax.lax.scan(lambda carry, t: (step(hyper, carry, t), None), start, jnp.arange(STEPS, dtype=float))
    return outer(end[0], hyper, None)


def undone(optimizer, hyper):
    training = hx.Training(
        loss, lambda hyper, key: jax.tree.map(jnp.asarray, START), optimizer, hx.FullBatch(jnp.zeros(())), STEPS
    )
    objective = hx.UnrolledObjective(training, outer, 0.0, mode=hx.unroll.Reversible(), key=jax.random.key(0))
    return hx.hypergradient(objective, hyper, throw=False)[0]


def numbers(**given):
    return {name: jnp.asarray(value) for name, value in given.items()}


@pytest.mark.parametrize("eps", [1e-8, pytest.param(1e-12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("share", [1e-9, pytest.param(1e-13, marks=pytest.mark.slow)])
def test_adam_resolves_gradients_of_every_size(share, eps):
    """From 1e-12 to 1e2, and 0: every derivative to 1e-6 of itself."""
    hyper = numbers(rate=0.01, beta1=0.9, beta2=0.999, eps=eps, share=share)
    truth = jax.jit(jax.grad(lambda hyper: by_hand(adam, hyper)))(hyper)
    answer = undone(lambda h: hx.unroll.Adam(h["rate"], h["beta1"], h["beta2"], h["eps"]), hyper)
    assert isinstance(answer.certificate, hx.unroll.ReversalCertificate)
    assert answer.certificate.blurred <= 1e-9
    assert answer.result == hx.unroll.RESULTS.successful
    for name in truth:
        assert abs(answer.grad[name] - truth[name]) <= 1e-6 * abs(truth[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("bits", [58, 75])
def test_digits_that_are_missing_are_said(bits):
    """58 bits after the point are those of a word: β2 is seen by what has none of its digits there."""
    hyper = numbers(rate=0.01, beta1=0.9, beta2=0.999, eps=1e-8, share=1e-9)
    truth = jax.jit(jax.grad(lambda hyper: by_hand(adam, hyper)))(hyper)
    found = undone(lambda h: hx.unroll.Adam(h["rate"], h["beta1"], h["beta2"], h["eps"], variance_bits=bits), hyper)
    assert abs(found.grad["beta2"] - truth["beta2"]) > 1e-2 * abs(truth["beta2"])
    assert isinstance(found.certificate, hx.unroll.ReversalCertificate)
    assert found.certificate.blurred > 1e-3
    assert found.result == hx.unroll.RESULTS.unresolved


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-12, 1e-30])
def test_momentum_with_tiny_gradients_is_right_or_says_that_it_is_not(scale):
    """A loss and a learning rate in other units are the same training."""
    hyper = numbers(rate=1e-3 / scale, beta1=0.9, share=scale, each=0.0)
    truth = jax.jit(jax.grad(lambda hyper: by_hand(momentum, hyper)))(hyper)
    answer = undone(lambda h: hx.unroll.MomentumSGD(h["rate"], h["beta1"], form="polyak"), hyper)
    del truth["each"]
    wrong = max(abs(answer.grad[name] - truth[name]) / abs(truth[name]) for name in truth)
    if scale == 1e-12:
        assert wrong <= 1e-6
        assert answer.result == hx.unroll.RESULTS.successful
    else:
        assert wrong > 0.1
        assert answer.result == hx.unroll.RESULTS.unresolved
