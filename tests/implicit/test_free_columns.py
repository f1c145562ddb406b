"""Columns without penalty and offsets: the same fits as elsewhere, the named results, and what the Hessian is above."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
import oracles
from hyprax.implicit._elimination import eliminated
from hyprax.implicit._held_out import HeldOut

N, D, CLASSES = 60, 4, 3
FAMILIES = {
    "squared": hx.families.Squared,
    "logistic": hx.families.Logistic,
    "softmax": hx.families.Softmax,
    "poisson": hx.families.Poisson,
}


def data(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of unequal scales and means, targets with a level of their own, exposures."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D)) * np.array([1, 3, 0.2, 1]) + np.array([0, 5, 1, -2])
    u = (x - x.mean(axis=0)) @ np.array([0.5, -0.3, 2, 0.1])
    exposure = rng.integers(1, 9, N)
    if kind == "softmax":
        return x, np.digitize(u + rng.normal(size=N), [-0.5, 0.8]), exposure
    if kind == "logistic":
        return x, (u + rng.normal(size=N) > 0).astype(int), exposure
    if kind == "poisson":
        return x, rng.poisson(exposure * np.exp(np.clip(u, -3, 2))), exposure
    return x, u + 10 + rng.normal(size=N), exposure


def with_ones(x: np.ndarray) -> np.ndarray:
    return np.column_stack([x, np.ones(len(x))])


def fit(family, strength: Any = 0.1):
    optimum = hx.Optimum(family, solver=hx.implicit.Newton(tolerance=1e-11))
    return optimum.refit({"penalty": hx.Positive(strength)})


def test_ridge_with_a_free_intercept_is_centred_ridge():
    x, y, _ = data("squared")
    centred = x - x.mean(axis=0)
    slopes = np.linalg.solve(centred.T @ centred / N + 0.1 * np.eye(D), centred.T @ (y - y.mean()) / N)
    found = fit(hx.families.Squared(with_ones(x), y, penalty="penalty", free=[-1]))
    np.testing.assert_allclose(found.params, np.r_[slopes, y.mean() - x.mean(axis=0) @ slopes], rtol=1e-8)


def test_a_free_intercept_is_that_of_scikit_learn():
    models = pytest.importorskip("sklearn.linear_model")
    x, y, _ = data("logistic")
    peer = models.LogisticRegression(C=1 / (0.1 * N), tol=1e-12, max_iter=10_000).fit(x, y)
    found = fit(hx.families.Logistic(with_ones(x), y, penalty="penalty", free=[-1])).params
    np.testing.assert_allclose(found, np.r_[peer.coef_[0], peer.intercept_], atol=1e-5)
    x, y, exposure = data("poisson")
    peer = models.PoissonRegressor(alpha=0.1 * N / exposure.sum(), tol=1e-12, max_iter=10_000)
    peer.fit(x, y / exposure, sample_weight=exposure)
    family = hx.families.Poisson(with_ones(x), y, penalty="penalty", free=[-1], offset=np.log(exposure))
    np.testing.assert_allclose(fit(family).params, np.r_[peer.coef_, peer.intercept_], atol=1e-5)


def test_the_free_weights_of_classes_sum_to_zero():
    models = pytest.importorskip("sklearn.linear_model")
    x, y, _ = data("softmax")
    peer = models.LogisticRegression(C=1 / (0.1 * N), tol=1e-12, max_iter=10_000).fit(x, y)
    found = np.asarray(fit(hx.families.Softmax(with_ones(x), y, penalty="penalty", free=[-1])).params)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-10)
    np.testing.assert_allclose(found[:-1].T, peer.coef_, atol=1e-4)
    np.testing.assert_allclose(found[-1], peer.intercept_ - peer.intercept_.mean(), atol=1e-4)


def test_strengths_and_groups_of_free_columns_do_nothing():
    x, y, _ = data("squared")
    x, new = with_ones(x), (with_ones(x)[:20], y[:20])
    grads = []
    for strengths, mask in (([0.1, 0.2, 0.1, 0.3, 1.0], [0, 0, 0, 0, 1]), ([0.1, 0.2, 0.1, 0.3, 9.0], [0, 0, 0, 0, 1])):
        family = hx.families.Squared(x, y, penalty="penalty", free=np.array(mask, bool))
        hyper = {"penalty": hx.Positive(np.array(strengths))}
        answer, _ = hx.hypergradient(hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, new), hyper)
        assert answer.certificate.kind == "certified"
        assert np.isfinite(answer.certificate.bound)
        grads.append(np.asarray(answer.grad["penalty"].raw))
    assert grads[0][-1] == 0
    np.testing.assert_allclose(grads[0], grads[1], rtol=1e-6)
    grouped = hx.families.Squared(x, y, penalty="penalty", penalty_groups=[1, 0, 1, 1, -7], free=[4])
    found = fit(grouped, np.array([0.2, 0.1]))
    apart = fit(hx.families.Squared(x, y, penalty="penalty", free=[4]), np.array([0.1, 0.2, 0.1, 0.1, 1.0]))
    np.testing.assert_allclose(found.params, apart.params, rtol=1e-9)


@pytest.mark.parametrize("kind", [pytest.param("logistic", marks=pytest.mark.slow), "poisson"])
def test_a_fold_with_free_columns_and_offsets_is_the_fit_on_its_rows(kind):
    x, y, exposure = data(kind)
    x, offset = with_ones(x), np.log(exposure)
    training = np.arange(N) % 3 > 0
    family = FAMILIES[kind](x, y, penalty="penalty", free=[1, 4], offset=offset)
    fold = hx.Optimum(family, solver=hx.implicit.Newton(tolerance=1e-12)).held_out(training, ~training)
    hyper = {"penalty": hx.Positive(0.05)}
    value, state = fold.value(hyper, fold.init(hyper))
    strengths = np.full((D + 1, 1), 0.05)
    strengths[[1, 4]] = 0
    truth = oracles.reference(
        kind, x, y, x[~training], y[~training], strengths, training.astype(float), (offset, offset[~training])
    )
    np.testing.assert_allclose(fold.params(state), truth.params[:, 0].astype(float), rtol=1e-7)
    assert abs(float(value.value) - float(truth.value)) <= float(value.certificate.bound) < 1e-8
    assert value.certificate.kind == "certified"


def result(family, training=None) -> str:
    optimum = hx.Optimum(family)
    if training is not None:
        fold = optimum.held_out(training, ~training)
        assert isinstance(fold, HeldOut)
        optimum = fold.problem.optimum
    return hx.implicit.RESULTS[optimum.refit({"penalty": hx.Positive(0.1)}).result]


def test_free_columns_without_one_optimum_are_a_result_by_name():
    x, y, _ = data("logistic")
    x, message = with_ones(x), hx.implicit.RESULTS[hx.implicit.RESULTS.no_optimum]
    doubled = np.column_stack([x, x[:, -1]])
    assert result(hx.families.Logistic(doubled, y, penalty="penalty", free=[-1, -2])) == message
    order = np.argsort(x[:, 0])
    separated = (np.argsort(order) >= N // 2).astype(int)
    assert result(hx.families.Logistic(x, separated, penalty="penalty", free=[0, -1])) == message
    assert result(hx.families.Logistic(x, separated, penalty="penalty", free=[-1])) == ""
    assert result(hx.families.Logistic(x, y, penalty="penalty", free=[-1]), y == 1) == message
    assert result(hx.families.Logistic(x, y, penalty="penalty"), y == 1) == ""
    x, counts, _ = data("poisson")
    assert result(hx.families.Poisson(with_ones(x), counts, penalty="penalty", free=[-1]), counts == 0) == message
    assert "successful" not in message


def test_separation_by_several_columns_is_found():
    """One feature and an intercept separate two classes where a threshold does."""
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(25):
        x, y = np.round(rng.normal(size=6), 1), np.r_[0, 1, rng.integers(0, 2, 4)]
        above, below = x[y == 1], x[y == 0]
        truth = bool(above.min() >= below.max() or above.max() <= below.min())
        columns = np.column_stack([x, np.ones(6), rng.normal(size=6)])
        for family in (
            hx.families.Logistic(columns, y, penalty=0.1, free=[0, 1]),
            hx.families.Softmax(columns, y, penalty=0.1, free=[0, 1]),
        ):
            assert family.free is not None
            assert bool(family.free.determined) == (not truth)
        found.add(truth)
    assert found == {True, False}


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("squared", "logistic", "poisson")]


@pytest.mark.parametrize("kind", ["softmax", *SLOW])
def test_the_hessian_is_above_what_elimination_says(kind):
    """A - M has no negative eigenvalue, for any weights, strengths over decades, nearly dependent free columns."""
    rng = np.random.default_rng(1)
    x, y, _ = data(kind)
    x = with_ones(x)
    x[:, 2] = x[:, 3] + 10.0 ** rng.uniform(-3, 0) * x[:, 2]
    family = FAMILIES[kind](x, y, penalty="penalty", free=[2, 3, 4])
    below = jax.jit(lambda w, hyper: eliminated(family, family.at(w, hyper), hyper)[0])
    proved = 0
    for _ in range(15):
        hyper = {"penalty": hx.Positive(10.0 ** rng.uniform(-6, 1))}
        w = jnp.asarray(0.3 * rng.normal(size=family.shape))
        full = np.zeros((D + 1, family.shape[-1] if w.ndim == 2 else 1))
        full[:2] = float(hyper["penalty"].value)
        matrix = oracles.hessian(kind, x, y, np.asarray(w).reshape(full.shape), full)
        if kind == "softmax":  # in place of the oracle's own way of fixing the sum over classes
            gauge = oracles.penalty_matrix(full) - np.diag(full.ravel())
            size = 0.5 * np.repeat(np.mean(x**2, axis=0), CLASSES) / CLASSES
            matrix = matrix - gauge + gauge * size[:, None]
        found = np.asarray(below(w, hyper)).ravel()
        if not np.all(np.isfinite(found)):
            continue
        proved += 1
        scale = 1 / np.sqrt(found)
        assert np.linalg.eigvalsh(scale[:, None] * (matrix - np.diag(found)) * scale)[0] > -1e-9
    assert proved >= 12


def test_free_columns_and_offsets_are_checked():
    x, y, _ = data("squared")
    squared = hx.families.Squared
    for free in ([4], [0, 0], [0.5], np.ones(3, bool), "intercept"):
        with pytest.raises(ValueError, match="Squared: free must"):
            squared(x, y, penalty=0.1, free=free)
    with pytest.raises(ValueError, match="at least one column with a penalty"):
        squared(x, y, penalty=0.1, free=np.ones(D, bool))
    with pytest.raises(ValueError, match=r"Squared: offset must have the shape \(60,\)"):
        squared(x, y, penalty=0.1, offset=np.ones(3))
    with pytest.raises(ValueError, match="Squared: offset must be finite"):
        squared(x, y, penalty=0.1, offset=np.full(N, np.nan))
    shifted = squared(x, y, penalty="penalty", offset=np.arange(N))
    with pytest.raises(ValueError, match="the family has an offset, outer_data none"):
        hx.ImplicitObjective(hx.Optimum(shifted), shifted.mean_loss, (x, y))
    with pytest.raises(ValueError, match="must be without an offset"):
        hx.implicit.SOBA(hx.Optimum(shifted), shifted.mean_loss, (x, y, np.ones(N)), key=jax.random.key(0))
    free = squared(x, y, penalty="penalty", free=[0])
    with pytest.raises(ValueError, match="requires a penalty on every column"):
        hx.ImplicitObjective(hx.Optimum(free), free.mean_loss, (x, y), certifier=hx.implicit.EhrhardtRoberts())
    assert squared(x, y, penalty=0.1, free=[]).free is None
