"""Folds as one objective: ridge by closed form, certificates against refits, splitters, redrawn folds, refitting."""

import functools
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold, RepeatedKFold

import hyprax as hx
from conformance import CHECKS, Case
from hyprax.implicit._held_out import HeldOut
from hyprax.search import CrossValidated

RNG = np.random.default_rng(3)
N, D = 24, 4
X = RNG.normal(size=(N, D))
Y = X @ np.array([1.0, -1.0, 0.0, 0.5]) + 0.5 * RNG.normal(size=N)
START = {"penalty": hx.Positive(np.array([0.1, 0.3, 0.02, 1.0]))}
RIDGE = hx.Optimum(hx.families.Squared(X, Y, penalty="penalty"))
NOISE = hx.implicit.ExampleNoise()
PLAIN = hx.implicit.NoCertifier()


def folds(count, seed=0):
    return list(KFold(count, shuffle=True, random_state=seed).split(X))


def closed_form(raw, pairs):
    """The cross-validated loss of ridge with the prior kept, in plain NumPy."""
    losses = []
    for fit, judge in pairs:
        hessian = X[fit].T @ X[fit] / N + np.diag(np.exp(raw))
        w = np.linalg.solve(hessian, X[fit].T @ Y[fit] / N)
        losses.extend(0.5 * (X[judge] @ w - Y[judge]) ** 2)
    return float(np.mean(losses))


def slope(fn, raw, step=1e-6):
    return np.array([(fn(raw + step * e) - fn(raw - step * e)) / (2 * step) for e in np.eye(len(raw))])


def test_folds_of_unequal_sizes_agree_with_the_closed_form_of_ridge():
    pairs = folds(5)  # 24 rows: folds of 5 and of 4
    objective = CrossValidated(RIDGE, pairs, certifier=hx.implicit.LookAhead(extended=False))
    answer, _ = hx.hypergradient(objective, START)
    raw = np.asarray(START["penalty"].raw)
    np.testing.assert_allclose(answer.value, closed_form(raw, pairs), rtol=1e-10)
    np.testing.assert_allclose(answer.grad["penalty"].raw, slope(lambda r: closed_form(r, pairs), raw), rtol=1e-6)
    assert isinstance(answer.certificate, hx.Certificate)
    assert answer.certificate.kind == "certified"
    assert float(answer.certificate.bound) <= 1e-2 * float(answer.norm)
    assert "the bounds of 5 folds" in answer.certificate.method
    value, _ = objective.value(START, objective.init(START))
    assert abs(float(value.value) - closed_form(raw, pairs)) <= float(value.certificate.bound)


def test_the_noise_is_that_of_the_held_out_examples_given_the_fits():
    pairs = folds(5)
    answer, _ = hx.hypergradient(CrossValidated(RIDGE, pairs, noise=NOISE, certifier=PLAIN), START)
    raw, squares = np.asarray(START["penalty"].raw), np.zeros(D)
    for fit, judge in pairs:
        hessian = X[fit].T @ X[fit] / N + np.diag(np.exp(raw))
        w = np.linalg.solve(hessian, X[fit].T @ Y[fit] / N)
        slopes = X[judge] * (X[judge] @ w - Y[judge])[:, None]
        each = -np.exp(raw) * w * np.linalg.solve(hessian, slopes.T).T
        squares += (len(judge) / N) ** 2 * each.var(axis=0, ddof=1) / len(judge)
    assert isinstance(answer.noise, hx.Noise)
    np.testing.assert_allclose(answer.noise.standard_errors["penalty"].raw, np.sqrt(squares), rtol=1e-6)
    assert float(answer.noise.degrees_of_freedom) == N - 5
    assert "given the fits" in answer.noise.over


@pytest.mark.parametrize(
    ("splits", "groups"),
    [(RepeatedKFold(n_splits=3, n_repeats=2, random_state=0), None), (GroupKFold(3), np.arange(N) % 6)],
    ids=("repeated", "grouped"),
)
def test_splitters_of_scikit_learn_are_taken(splits, groups):
    objective = CrossValidated(RIDGE, splits, groups=groups, certifier=PLAIN)
    pairs = list(splits.split(X, Y, groups))
    value, _ = objective.value(START, objective.init(START))
    np.testing.assert_allclose(value.value, closed_form(np.asarray(START["penalty"].raw), pairs), rtol=1e-10)


def test_numbers_of_folds_are_drawn_by_a_key_and_redrawn_by_the_step():
    fixed = CrossValidated(RIDGE, 3, key=jax.random.key(1), certifier=PLAIN)
    drawn = CrossValidated(RIDGE, 3, key=jax.random.key(1), redraw=True, certifier=PLAIN)
    assert not fixed.noisy
    assert drawn.noisy
    first, state = drawn.value(START, drawn.init(START))
    second, _ = drawn.value(START, state)
    again, _ = drawn.value(START, drawn.init(START))
    assert float(first.value) == float(again.value) == float(fixed.value(START, fixed.init(START))[0].value)
    assert float(first.value) != float(second.value)
    with pytest.raises(ValueError, match="must be deterministic"):
        hx.tune(drawn, START, search=hx.search.LBFGS(), steps=2)
    final, _ = drawn.final(START, drawn.init(START))
    assert isinstance(final.noise, hx.Noise)
    assert "sets of folds" in final.noise.over


def test_classes_are_dealt_out_evenly_and_a_fold_without_a_class_is_fitted():
    labels = np.array([0.0] * 20 + [1.0] * 4)
    optimum = hx.Optimum(hx.families.Logistic(X, labels, penalty="penalty"))
    objective = CrossValidated(optimum, 4, key=jax.random.key(0), certifier=PLAIN)
    held = np.stack([np.asarray(cast(HeldOut, part).held_out) for part in objective.parts]).astype(bool)
    assert [labels[mask].sum() for mask in held] == [1.0] * 4
    assert np.all(held.sum(axis=0) == 1)


def test_given_objectives_are_averaged_by_their_sizes():
    def bowl(centre):
        return lambda x: jnp.sum((x - centre) ** 2)

    objective = CrossValidated([bowl(0.0), bowl(1.0)], sizes=[1, 3])
    answer, _ = hx.hypergradient(objective, jnp.asarray([2.0]))
    np.testing.assert_allclose(answer.value, 0.25 * 4 + 0.75 * 1)
    np.testing.assert_allclose(answer.grad, [0.25 * 4 + 0.75 * 2])
    assert answer.certificate.kind == "none"
    assert not objective.adaptive
    with pytest.raises(ValueError, match="needs an hx"):
        hx.search.refit(objective, jnp.asarray([2.0]))


def test_tuned_on_folds_and_refitted_on_all_rows_with_the_prior_kept():
    pairs = folds(5)
    objective = CrossValidated(RIDGE, pairs, certifier=PLAIN)
    found = hx.tune(objective, START, steps=40, stop=hx.search.Stopping(gradient=1e-6))
    raw = np.asarray(found.best["penalty"].raw)
    assert np.all(np.abs(slope(lambda r: closed_form(r, pairs), raw)) <= 1e-5)
    fit = hx.search.refit(objective, found.best)
    expected = np.linalg.solve(X.T @ X / N + np.diag(np.exp(raw)), X.T @ Y / N)
    np.testing.assert_allclose(fit.params, expected, rtol=1e-6)
    assert bool(hx.core.succeeded(fit.result))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (1, "folds must be between 2 and the number of rows, 24; got 1"),
        ([(np.arange(5), np.arange(5))], "must not judge on rows that it is fitted on"),
        ([(np.arange(5), np.array([99]))], "different numbers from 0 to 23"),
        ("five", "folds must be a number, pairs of index arrays"),
        ([], "must not be empty"),
    ],
)
def test_bad_folds_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        CrossValidated(RIDGE, bad, key=jax.random.key(0))


def test_an_own_loss_has_no_rows_to_leave_out():
    optimum = hx.Optimum(lambda w, hyper, data: jnp.sum((w - hyper) ** 2), jnp.zeros(2))
    with pytest.raises(ValueError, match="need a family"):
        CrossValidated(optimum, 3, key=jax.random.key(0))


def test_a_single_split_is_refitted_with_the_validation_rows_and_the_prior_kept():
    family = hx.families.Squared(X[:16], Y[:16], penalty="penalty")
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (X[16:], Y[16:]), certifier=PLAIN)
    fit = hx.search.refit(objective, START)
    hessian = X.T @ X / 16 + np.diag(np.exp(np.asarray(START["penalty"].raw)))
    np.testing.assert_allclose(fit.params, np.linalg.solve(hessian, X.T @ Y / 16), rtol=1e-6)


def fixed() -> Case:
    objective = CrossValidated(RIDGE, folds(3), certifier=hx.implicit.EhrhardtRoberts(), noise=NOISE)
    return Case(objective, START)


def redrawn() -> Case:
    objective = CrossValidated(RIDGE, 3, key=jax.random.key(0), redraw=True, certifier=hx.implicit.EhrhardtRoberts())
    return Case(objective, START)


def held_together() -> Case:
    objective = CrossValidated(RIDGE, folds(3), certifier=hx.implicit.EhrhardtRoberts(), noise=NOISE)
    return Case(hx.search.Towards(objective, 0.3), START)


made: Callable[[Callable[[], Case]], Case] = functools.lru_cache(lambda make: make())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("make", [fixed, redrawn, held_together], ids=lambda make: make.__name__)
def test_objectives_over_folds_keep_to_the_waist(make, check):
    check(made(make))
