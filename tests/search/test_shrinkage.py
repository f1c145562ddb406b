"""The prior on hyperparameters and its path: closed forms, the choice by nested folds, one number for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax._objective import FunctionObjective
from hyprax.search import Towards, shrinkage_path
from hyprax.search._shrinkage import Together
from hyprax.search._shrinkage_path import choose


def bowl(x):
    return jnp.sum((x - jnp.asarray([0.0, 1.0, 4.0, 5.0])) ** 2)


BOWL = FunctionObjective(bowl)
POINT = jnp.asarray([1.0, 2.0, 3.0, 5.0])


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1]])
def test_the_prior_is_a_variance_within_groups_and_between_them(groups):
    objective = Towards(bowl, 3.0, between=0.5, groups=groups)
    answer, _ = hx.hypergradient(objective, POINT)
    x = np.asarray(POINT)
    if groups is None:
        expected = 1.5 * np.sum((x - x.mean()) ** 2)
    else:
        means = np.repeat([1.5, 4.0], 2)
        expected = 1.5 * np.sum((x - means) ** 2) + 0.25 * np.sum((means - x.mean()) ** 2)
    np.testing.assert_allclose(answer.value, float(bowl(POINT)) + expected, rtol=1e-12)
    value, _ = objective.value(POINT, objective.init(POINT))
    np.testing.assert_allclose(value.value, answer.value, rtol=1e-12)
    for j in range(4):
        step = 1e-5 * np.eye(4)[j]
        ends = [float(objective.value(jnp.asarray(x + s * step), ())[0].value) for s in (1, -1)]
        np.testing.assert_allclose(answer.grad[j], (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="must be numbers >= 0"):
        Towards(bowl, -1.0)


def test_one_number_for_all_has_the_sum_of_the_entries():
    together = Together(BOWL, POINT)
    answer, _ = hx.hypergradient(together, jnp.asarray([2.0]))
    np.testing.assert_allclose(answer.grad, [np.sum(2 * (2.0 - np.array([0.0, 1.0, 4.0, 5.0])))])
    grouped = Together(BOWL, POINT, [0, 0, 1, 1])
    np.testing.assert_allclose(grouped.spread(jnp.asarray([7.0, 8.0])), [7, 7, 8, 8])


def test_the_strength_is_left_at_infinity_unless_a_gain_exceeds_its_error():
    gains = np.array([[0.0, 0.3, 1.0], [0.0, 0.2, -1.0], [0.0, 0.25, 2.0]])
    assert choose(gains, 1.0) == 1  # the last is larger, and not above one error of 0.88
    assert choose(gains * [0, -1, 1], 1.0) == 0
    assert choose(np.zeros((5, 3)), 1.0) == 0
    small = np.asarray([[0.0, 1e-6], [0.0, 1.1e-6], [0.0, 0.9e-6]])  # sure, and next to nothing
    assert (choose(small, 1.0), choose(small, 1.0, least=1e-3)) == (1, 0)


def test_the_path_frees_strengths_where_few_columns_matter():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8))
    y = 2 * x[:, 0] + rng.normal(size=60)
    optimum = hx.Optimum(hx.families.Squared(x, y, penalty="penalty"))
    start = {"penalty": hx.Positive(np.full(8, 0.1))}
    found = shrinkage_path(
        optimum, start, key=jax.random.key(0), strengths=(0.01, 0.0), folds=3, outer_folds=3, steps=15,
        certifier=hx.implicit.NoCertifier(),
    )  # fmt: skip
    np.testing.assert_allclose(found.strengths, np.array([np.inf, 0.01 * found.criteria[0], 0.0]))
    assert found.towards == ("one",) * 3
    assert found.gains.shape == (3, 3)
    np.testing.assert_allclose(np.ptp(np.asarray(found.hypers[0]["penalty"].raw)), 0.0, atol=1e-12)
    assert np.all(np.diff(found.criteria) <= 1e-9)  # freer strengths fit the folds at least as well
    assert found.chosen > 0
    used = np.asarray(found.hyper["penalty"].value)
    assert used[0] < 0.1 * np.median(used[1:])


def test_kinds_are_candidates_beside_one_strength_for_all():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 8))
    groups = np.repeat([0, 1], 4)
    y = x @ np.where(groups, 0.0, 1.0) + rng.normal(size=60)
    optimum = hx.Optimum(hx.families.Squared(x, y, penalty="penalty"))
    start = {"penalty": hx.Positive(np.full(8, 0.1))}
    found = shrinkage_path(
        optimum, start, key=jax.random.key(0), strengths=(0.01, 0.0), folds=3, outer_folds=3, steps=15, kinds=groups
    )
    assert found.towards == ("one",) * 3 + ("kinds",) * 3
    assert found.gains.shape == (3, 6)
    strengths = np.asarray(found.hypers[3]["penalty"].raw)
    np.testing.assert_allclose(strengths[[0, 4]][groups], strengths, rtol=1e-12)
    assert strengths[4] > strengths[0] + 1
    assert found.criteria[0] > found.criteria[3] > found.criteria[5]
    scored = shrinkage_path(
        optimum, start, key=jax.random.key(0), strengths=(0.01, 0.0), folds=3, outer_folds=3, steps=15, kinds=groups,
        score=lambda w, held: -float(np.mean((x[held] @ np.asarray(w) - y[held]) ** 2)) / 2,
    )  # fmt: skip
    np.testing.assert_allclose(scored.gains, found.gains, rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="kinds must be 8 integers from 0 to 7"):
        shrinkage_path(optimum, start, key=jax.random.key(0), kinds=[0, 1])
