"""The certified bound against the truth: it must hold in every one of thousands of random problems."""

import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
import oracles
from problems import random_problem, shapes

CASES = [(kind, index) for kind in ("softmax", "logistic", "squared") for index in range(len(shapes(kind, 5, 3)))]


def check_bounds(kind: str, index: int, seed: int, count: int, **options) -> np.ndarray:
    """Bound / true error over `count` problems with four accuracies each; every bound must hold."""
    rng = np.random.default_rng([seed, index, len(kind)])
    ratios = []
    for _ in range(count):
        problem = random_problem(rng, kind, index, **options)
        state = problem.objective.init(problem.hyper)
        scale = float(np.linalg.norm(problem.truth.params.astype(float))) + 1e-3
        for _ in range(4):
            inner, adjoint = scale * 10.0 ** rng.uniform(-14, 0), 10.0 ** rng.uniform(-14, 0)
            accuracy = hx.Accuracy(jnp.asarray(inner), jnp.asarray(adjoint))
            answer, _ = problem.objective.value_and_grad(problem.hyper, state, accuracy)
            error = problem.error(answer)
            assert answer.certificate.kind == "certified"
            bound = float(answer.certificate.bound)
            assert error <= bound, f"{kind} {index} seed {seed}: error {error:.3e} above the bound {bound:.3e}"
            value, _ = problem.objective.value(problem.hyper, state, accuracy)
            off = abs(float(oracles.LONG(float(value.value)) - problem.truth.value))
            assert off <= float(value.certificate.bound), f"{kind} {index}: value off by {off:.3e}"
            ratios.append(bound / max(error, 1e-300))
    return np.asarray(ratios)


@pytest.mark.parametrize(("kind", "index"), CASES)
def test_ehrhardt_roberts_holds(kind, index):
    ratios = check_bounds(kind, index, seed=0, count=75, certificate=hx.EhrhardtRoberts())
    assert np.all(np.isfinite(ratios))
    assert np.min(ratios) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(("kind", "index"), CASES)
def test_ehrhardt_roberts_holds_at_length(kind, index, seed):
    check_bounds(kind, index, seed, count=300, certificate=hx.EhrhardtRoberts())
