"""One penalty for many tasks, as an estimator: scikit-learn's own models at the converted strength, and its manners."""

import csv
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from hyprax import tasks
from hyprax.sklearn import SharedPenalty

RNG = np.random.default_rng(3)
SIZES = np.array([14, 25, 18, 31])
NAMES = np.repeat(["north", "south", "east", "west"], SIZES)
X = RNG.normal(size=(SIZES.sum(), 3)) * [1.0, 5.0, 0.2] + [0.0, 3.0, 0.0]
Y = X @ [1.0, -0.2, 2.0] + (NAMES == "east") * 2.0 + RNG.normal(size=len(X))
LABELS = np.where(Y > 0.5, "yes", "no")

THEIRS = {
    "ridge": lambda hyper, n: Ridge(alpha=hyper * n),
    "lasso": lambda hyper, n: Lasso(alpha=hyper, tol=1e-12, max_iter=100_000),
    "elastic_net": lambda hyper, n: ElasticNet(
        alpha=hyper + 0.1, l1_ratio=hyper / (hyper + 0.1), tol=1e-12, max_iter=100_000
    ),
    "hinge": lambda hyper, n: LinearSVC(C=hyper, loss="hinge", tol=1e-10, max_iter=2_000_000, random_state=0),
    "logistic": lambda hyper, n: LogisticRegression(
        C=1 / (hyper * n), solver="liblinear", tol=1e-12, max_iter=10_000, random_state=0
    ),
}


@pytest.mark.parametrize("model", THEIRS)
def test_every_task_has_the_weights_of_scikit_learn_at_the_converted_strength(model):
    y = LABELS if model in ("hinge", "logistic") else Y
    found = SharedPenalty(model, random_state=0, standardise=model != "ridge").fit(X, y, NAMES)
    assert found.optimum_.certificate.kind == "certified"
    assert is_classifier(found) == (model in ("hinge", "logistic"))
    for i, name in enumerate(found.tasks_):
        rows = name == NAMES
        mean, spread = (X[rows].mean(axis=0), X[rows].std(axis=0)) if model != "ridge" else (0.0, 1.0)
        theirs = THEIRS[model](found.hyper_, rows.sum()).fit((X[rows] - mean) / spread, y[rows])
        tolerance = 1e-3 if model == "hinge" else 1e-5  # of liblinear
        expected = theirs.coef_.ravel() / spread
        np.testing.assert_allclose(found.coef_[i], expected, rtol=tolerance, atol=tolerance * 0.1)
        shift = float(np.ravel(theirs.intercept_)[0] - np.sum(expected * mean))
        np.testing.assert_allclose(found.intercept_[i], shift, rtol=tolerance, atol=tolerance)


def test_the_penalty_is_the_global_optimum_of_the_mean_over_tasks(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        found = SharedPenalty(random_state=5, weight="rows").fit(X, Y, NAMES, executor=pool)
    seeds = np.random.RandomState(5).randint(2**31 - 1, size=4)
    mean = []
    for name, seed in zip(np.unique(NAMES), seeds, strict=True):
        rows = name == NAMES
        task = tasks.Task.k_fold(X[rows], Y[rows], 5, key=jax.random.key(int(seed))).standardised()
        mean.append(tasks.ridge_dual(task, (1e-4, 1e2)) * (rows.sum() / SIZES.mean()))
    np.testing.assert_allclose(found.hyper_, tasks.erm(mean).hyper, rtol=1e-9)
    found.export(tmp_path / "weights.csv")
    with (tmp_path / "weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["east", "north", "south", "west"]
    assert [float(row["x1"]) for row in rows] == found.coef_[:, 1].tolist()


def test_a_penalty_at_an_end_of_its_range_is_told():
    assert "an end of the range" in SharedPenalty(low=5.0, high=10.0, random_state=0).fit(X, Y, NAMES).message_
    assert SharedPenalty(random_state=0).fit(X, Y, NAMES).message_ == ""


def test_a_new_task_is_refused_until_it_is_fitted_with_the_shared_penalty():
    found = SharedPenalty(random_state=0).fit(X, Y, NAMES)
    before = found.coef_.copy()
    assert found.score(X, Y, NAMES) > 0.5
    with pytest.raises(ValueError, match=r"tasks must be among those that were fitted; got 'new'. refit"):
        found.predict(X[:3], "new")
    with pytest.raises(ValueError, match="which of the 4 tasks each row is of; got None"):
        found.predict(X[:3])
    rows = NAMES == "west"
    found.refit(X[rows], Y[rows], "new")
    np.testing.assert_array_equal(found.predict(X[:9], "new"), found.predict(X[:9], np.repeat("west", 9)))
    found.refit(X[:20], Y[:20], "west")
    np.testing.assert_array_equal(found.coef_[:3], before[:3])
    assert not np.array_equal(found.coef_[3], before[3])


def test_manners():
    estimator = SharedPenalty("hinge", low=0.01, high=1.0, n_jobs=1)
    same: Any = clone(estimator)
    assert same.get_params() == estimator.get_params()
    alone = SharedPenalty(random_state=0).fit(X[:40], Y[:40])
    assert alone.predict(X[:2]).shape == (2,)
    for change, words in (
        ({"model": "forest"}, "model must be one of ridge, lasso"),
        ({"weight": "area"}, "weight must be one of tasks, rows; got 'area'"),
        ({"cv": 1}, "cv must be a number of folds, at least 2; got 1"),
        ({"n_jobs": 0}, "n_jobs must be None, -1 or at least 1; got 0"),
        ({"low": 2.0, "high": 1.0}, "domain must be"),
    ):
        with pytest.raises(ValueError, match=words):
            SharedPenalty(**{"model": "ridge", **change}).fit(X, Y, NAMES)
    with pytest.raises(ValueError, match="y must hold two classes for model='hinge'; got 3"):
        estimator.fit(X, np.arange(len(X)) % 3, NAMES)
    with pytest.raises(ValueError, match=r"task .*'lone'.* must have at least two rows to be split; got 1"):
        SharedPenalty().fit(X[:5], Y[:5], ["a", "a", "a", "a", "lone"])
    fitted = SharedPenalty("logistic", random_state=0).fit(X[:40], LABELS[:40])
    with pytest.raises(ValueError, match=r"y must hold the classes \['no', 'yes'\]; got"):
        fitted.refit(X[:2], np.array(["no", "perhaps"]), "b")


def test_rows_and_features_that_weigh_differently():
    rows = NAMES == "east"
    v, features = RNG.integers(1, 4, size=len(X)).astype(float), np.array([1.0, 4.0, 0.5])
    found = SharedPenalty(random_state=0, standardise=False, feature_weights=features)
    found.fit(X, Y, NAMES, sample_weight=v)
    factor = 1 / np.sqrt(features)
    n, own = rows.sum(), v[rows] / v[rows].mean()
    theirs = Ridge(alpha=found.hyper_ * n, tol=1e-12).fit(X[rows] * factor, Y[rows], sample_weight=own)
    np.testing.assert_allclose(found.coef_[list(found.tasks_).index("east")], theirs.coef_ * factor, rtol=1e-6)
    before = found.coef_.copy()
    found.refit(X[rows], Y[rows], "east", sample_weight=5 * v[rows])
    np.testing.assert_allclose(found.coef_, before, rtol=1e-9)
    with pytest.raises(ValueError, match="sample_weight must be a positive number for each of 88 rows"):
        found.fit(X, Y, NAMES, sample_weight=-v)
    with pytest.raises(ValueError, match="feature_weights must be a positive number for each of 3 features"):
        SharedPenalty(**{**found.get_params(), "feature_weights": [1.0]}).fit(X, Y, NAMES)


NO_WEIGHT = "a row of weight 0 is refused: it would be dealt to a fold, and a fold of such rows judges nothing"
KNOWN = ("check_sample_weight_equivalence_on_dense_data", "check_classifiers_one_label_sample_weights")


@pytest.mark.usefixtures("unchecked")
@parametrize_with_checks(
    [SharedPenalty("ridge"), SharedPenalty("logistic")],
    expected_failed_checks=lambda estimator: dict.fromkeys(KNOWN, NO_WEIGHT),
)
def test_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)
