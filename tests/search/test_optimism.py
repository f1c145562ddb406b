"""Running optimism against the truth: by how much steps that follow a sample flatter its criterion."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax._noise import Noise as Spread, NoNoise
from hyprax._objective import FunctionObjective
from hyprax.search import Optimism, Step

COLUMNS, RATE = 40, 0.02
CURVES = np.geomspace(0.1, 1, COLUMNS)


ANSWER, _ = hx.hypergradient(FunctionObjective(lambda x: jnp.sum(x**2)), jnp.ones(2))
BLANK = {"certificate_kind": "none", "result": "successful", "stats": {}}


def step(number, hyper, value, grad, noise):
    answer = dataclasses.replace(ANSWER, value=jnp.asarray(value), grad=jnp.asarray(grad), noise=noise)
    fields: dict[str, Any] = {field.name: 0.0 for field in dataclasses.fields(Step)} | BLANK
    fields |= {"step": number, "value": value, "hyper": jnp.asarray(hyper), "hypergradient": answer}
    return Step(**fields)


@pytest.mark.parametrize("kind", ["signs", "gradient"])
def test_the_sum_is_the_mean_of_what_the_criterion_flatters(kind):
    """F is ½ Σ_j a_j θ_j²; each step sees its gradient with noise drawn anew, and its value as that noise has it."""
    rng = np.random.default_rng(0)
    errors = np.where(np.arange(COLUMNS) % 2, 0.05, 0.2)
    estimates, truths = [], []
    for _ in range(40):
        optimism, theta, flattered = Optimism(kind), np.full(COLUMNS, 0.3), 0.0
        for number in range(8):
            noise = errors * rng.normal(size=COLUMNS)
            grad = CURVES * theta + noise
            optimism(step(number, theta, 0.0, grad, Spread(jnp.asarray(errors), np.inf, "draws")))
            move = -RATE * (np.sign(grad) if kind == "signs" else grad)
            flattered -= float(noise @ move) if number < 7 else 0.0
            theta = theta + move
        estimates.append(optimism.total)
        truths.append(flattered)
    error = np.hypot(np.std(truths), np.std(estimates)) / 40**0.5
    # φ(ĥ/se) stands for φ(h/se): of an entry that is pure noise it is E φ(Z) = φ(0)/√2 of the truth.
    low, high = (0.65, 1.0) if kind == "signs" else (1.0, 1.0)
    assert low * np.mean(truths) - 4 * error <= np.mean(estimates) <= high * np.mean(truths) + 4 * error


def test_a_run_of_tune_is_followed_and_said():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3))
    optimum = hx.Optimum(hx.families.Squared(x, x[:, 0] + rng.normal(size=40), penalty="penalty"))
    start = {"penalty": hx.Positive(np.full(3, 0.1))}
    objective = optimum.held_out(
        np.arange(40) < 25, np.arange(40) >= 25, noise=hx.implicit.ExampleNoise(), certifier=hx.implicit.NoCertifier()
    )
    optimism = Optimism()
    found = hx.tune(objective, start, steps=3, callbacks=[optimism])
    assert len(optimism.path) == len(found.history)
    assert optimism.path[0] == 0
    assert np.all(np.diff(optimism.path) >= 0)
    np.testing.assert_allclose(optimism.corrected, found.column("value") + np.asarray(optimism.path))
    assert "neither a bound nor a gain" in optimism.meaning()
    bare = Optimism()
    for number in range(2):
        bare(step(number, np.zeros(2), 1.0, np.ones(2), NoNoise("not asked for")))
    assert "not known" in bare.meaning()


def test_other_steps_are_refused(unchecked):
    with pytest.raises(ValueError, match="steps must be 'signs' or 'gradient'; got 'newton'"):
        Optimism("newton")  # pyright: ignore[reportArgumentType]
