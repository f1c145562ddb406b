"""The spread of a hypergradient over validation examples: against refitted samples of it, dense and by probes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from problems import random_problem

DENSE = hx.implicit.ExampleNoise()


def examples_of(problem):
    """h_i of every validation example in plain NumPy: the outer data one row at a time, at one fit."""
    loss = problem.objective.optimum.loss
    x, y = np.asarray(loss.inputs), np.asarray(loss.targets)
    xv, yv = (np.asarray(part) for part in problem.objective.outer_data)
    n, raw = len(x), np.asarray(problem.hyper["penalty"].raw)
    strengths = np.broadcast_to(np.exp(raw), (x.shape[1],))
    w, hessian = np.zeros(x.shape[1]), np.eye(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        hessian = (x * (p * (1 - p))[:, None]).T @ x / n + np.diag(strengths)
        w -= np.linalg.solve(hessian, x.T @ (p - y) / n + strengths * w)
    pv = 1 / (1 + np.exp(-xv @ w))
    q = np.linalg.solve(hessian, (xv * (pv - yv)[:, None]).T)
    return (-strengths[:, None] * w[:, None] * q).T


@pytest.fixture(scope="module")
def logistic():
    return random_problem(np.random.default_rng(5), "logistic", 1, n=60, d=4, smallest=1e-2)


def answered(problem, noise):
    optimum, outer, data = problem.objective.optimum, problem.objective.outer_loss, problem.objective.outer_data
    objective = hx.ImplicitObjective(optimum, outer, data, noise=noise, certifier=hx.implicit.NoCertifier())
    return hx.hypergradient(objective, problem.hyper)[0]


def test_dense_standard_errors_are_those_of_the_examples(logistic):
    each = examples_of(logistic)
    answer = answered(logistic, DENSE)
    assert isinstance(answer.noise, hx.Noise)
    np.testing.assert_allclose(answer.grad["penalty"].raw, each.mean(axis=0), rtol=1e-6)
    expected = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    np.testing.assert_allclose(answer.noise.standard_errors["penalty"].raw, expected, rtol=1e-6)
    assert float(answer.noise.degrees_of_freedom) == len(each) - 1
    assert "given the fit" in answer.noise.over
    assert "of 4 entries above noise" in repr(answer)


def test_probes_estimate_the_same_variances(logistic):
    each = examples_of(logistic)
    answer = answered(logistic, hx.implicit.ExampleNoise(400, key=jax.random.key(0)))
    assert isinstance(answer.noise, hx.Noise)
    ratio = np.asarray(answer.noise.standard_errors["penalty"].raw) ** 2 / (each.var(axis=0, ddof=1) / len(each))
    # Each is a chi-squared multiple with 400 degrees of freedom: a standard deviation of 7 %.
    assert np.all(np.abs(ratio - 1) <= 0.25)
    assert float(answer.noise.degrees_of_freedom) == 400


def test_noise_is_refused_where_examples_are_not_known():
    optimum = hx.Optimum(lambda w, hyper, data: jnp.sum((w - hyper) ** 2), jnp.zeros(2))
    with pytest.raises(ValueError, match="must be the mean loss of a family"):
        hx.ImplicitObjective(optimum, lambda w, hyper, data: jnp.sum(w), noise=DENSE)
    with pytest.raises(ValueError, match="key must be one JAX random key"):
        hx.implicit.ExampleNoise(4)
    with pytest.raises(ValueError, match="probes must be an integer >= 0; got -1"):
        hx.implicit.ExampleNoise(-1)
