"""The tuned elastic net: strengths as scikit-learn's, columns dropped, groups, weights; its checks."""

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import ElasticNet, ElasticNetCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from hyprax.sklearn import TunedElasticNet

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 20)) * np.logspace(-1, 1, 20) + 3
Y = X @ (np.r_[np.ones(3), np.zeros(17)] / np.logspace(-1, 1, 20)) + RNG.normal(size=90)
PAIRS = list(KFold(5, shuffle=True, random_state=0).split(X))
Z = StandardScaler().fit_transform(X)


def test_strengths_are_those_of_scikit_learn_and_better_than_its_grid_on_the_folds():
    model = TunedElasticNet(cv=PAIRS).fit(X, Y)
    alpha, ridge = model.penalties_["all"], model.penalties_["l2"]
    same = ElasticNet(alpha=alpha + ridge, l1_ratio=alpha / (alpha + ridge), tol=1e-12, max_iter=10**6).fit(Z, Y)
    np.testing.assert_allclose(model.coef_ * X.std(0), same.coef_, atol=1e-8)
    np.testing.assert_allclose(model.predict(X), same.predict(Z), rtol=1e-8)
    assert np.any(model.coef_ == 0)
    ratios: Any = [0.1, 0.5, 0.9]
    grid = ElasticNetCV(l1_ratio=ratios, cv=PAIRS).fit(Z, Y)
    assert -model.cv_score_ <= 1.001 * grid.mse_path_.mean(axis=-1).min()  # its folds keep the ratio, ours the prior
    assert "held-out examples" in model.noise_["meaning"]
    assert model.certificate_["bound"] < 1e-6
    with pytest.raises(ValueError, match="return_std requires"):
        model.predict(X, return_std=True)


@pytest.mark.slow
def test_strengths_of_features_and_groups_are_named_and_held_back():
    free = TunedElasticNet("feature", cv=PAIRS, hold_back=False, certify=False).fit(X, Y)
    one = TunedElasticNet(cv=PAIRS, certify=False).fit(X, Y)
    assert free.cv_score_ > one.cv_score_
    assert list(free.penalties_) == [*(f"x{j}" for j in range(20)), "l2"]
    groups = {"used": range(3), "others": range(3, 20)}
    grouped = TunedElasticNet("group", groups=groups, cv=PAIRS, certify=False).fit(X, Y)
    assert grouped.penalties_["used"] < grouped.penalties_["others"]
    held = TunedElasticNet("feature", cv=PAIRS, certify=False).fit(X, Y)
    assert "nested folds" in held.message_


@pytest.mark.slow
def test_weights_are_repetitions():
    weights = np.arange(90) % 3 + 1
    again = np.repeat(np.arange(90), weights)
    pairs = [tuple(np.flatnonzero(np.isin(again, part)) for part in pair) for pair in PAIRS]
    weighted = TunedElasticNet(cv=PAIRS, certify=False, tol=1e-9).fit(X, Y, weights)
    repeated = TunedElasticNet(cv=pairs, certify=False, tol=1e-9).fit(X[again], Y[again])
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(weighted.cv_score_, repeated.cv_score_, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="free must be left out"):
        TunedElasticNet(free=[0]).fit(X, Y)
    with pytest.raises(ValueError, match="penalties must be 'one', 'feature' or 'group'; got 'weight'"):
        TunedElasticNet("weight").fit(X, Y)
    with pytest.raises(TypeError, match="X must be dense"):
        TunedElasticNet().fit(sparse.csr_array(X), Y)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@parametrize_with_checks([TunedElasticNet(certify=False)])
def test_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)
