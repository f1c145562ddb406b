"""The spread of a hypergradient through training over its validation examples, by signs on them at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx

RNG = np.random.default_rng(0)
X, XV = RNG.normal(size=(30, 3)), RNG.normal(size=(20, 3))
Y, YV = (x @ np.array([1.0, -1.0, 0.0]) + RNG.normal(size=len(x)) for x in (X, XV))
START = {"penalty": hx.Positive(np.array([0.3, 0.1, 0.5]))}
TRAINING = hx.Training(
    loss=lambda w, hyper, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2) + jnp.sum(hyper["penalty"] * w**2),
    init=lambda hyper, key: jnp.zeros(3),
    optimizer=lambda hyper: hx.unroll.OptaxOptimizer(optax.sgd(0.1)),
    batches=hx.FullBatch((X, Y)),
    steps=8,
)


def mean_square(w, hyper, data):
    return jnp.mean((data[0] @ w - data[1]) ** 2)


def objective(outer_loss=mean_square, data=(XV, YV), **settings):
    return hx.UnrolledObjective(
        TRAINING, outer_loss, data, mode=hx.unroll.StoreAll(), key=jax.random.key(0), **settings
    )


def each():
    """h_i of every validation example, through a loop in plain JAX."""

    def end(raw):
        w = jnp.zeros(3)
        for _ in range(8):
            w = w - 0.1 * (2 * X.T @ (X @ w - Y) / 30 + 2 * jnp.exp(raw) * w)
        return (jnp.asarray(XV) @ w - YV) ** 2

    return np.asarray(jax.jacrev(end)(START["penalty"].raw))


def test_signs_on_the_examples_estimate_the_variances():
    answer, state = hx.hypergradient(objective(noise=200), START)
    rows = each()
    np.testing.assert_allclose(answer.grad["penalty"].raw, rows.mean(axis=0), rtol=1e-9)
    assert isinstance(answer.noise, hx.Noise)
    ratio = np.asarray(answer.noise.standard_errors["penalty"].raw) ** 2 / (rows.var(axis=0, ddof=1) / 20)
    assert np.all(np.abs(ratio - 1) <= 0.4)  # a chi-squared multiple with 200 degrees: a deviation of 10 %
    assert float(answer.noise.degrees_of_freedom) == 200
    assert "of 3 entries above noise" in repr(answer)
    value, _ = objective(noise=1).value(START, state)
    losses = (XV @ np.asarray(state.params) - YV) ** 2
    assert isinstance(value.noise, hx.Noise)
    np.testing.assert_allclose(value.noise.standard_errors, losses.std(ddof=1) / 20**0.5, rtol=1e-9)


def test_what_is_no_mean_over_examples_says_so():
    answer, _ = hx.hypergradient(
        objective(lambda w, hyper, data: jnp.sum((data[0] @ w - data[1]) ** 2), noise=2), START
    )
    assert isinstance(answer.noise, hx.NoNoise)
    assert "not the mean" in answer.noise.reason
    plain, _ = hx.hypergradient(objective(), START)
    assert "not asked for" in plain.noise.meaning()


def test_what_cannot_be_is_refused(unchecked):
    for bad in (-1, True, 1.5):
        with pytest.raises(ValueError, match="noise must be a number of probes"):
            objective(noise=bad)
    with pytest.raises(ValueError, match="at least two examples"):
        objective(noise=1, data=(XV, YV[:5]))
