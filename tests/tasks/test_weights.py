"""Rows and features that weigh differently: against scikit-learn's sample weights, and rows written twice."""

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.svm import LinearSVC

from hyprax.tasks import (
    Activation,
    BoxDual,
    Task,
    activation_dual,
    descent_dual,
    elastic_net_dual,
    huber_dual,
    logistic_dual,
    ridge_dual,
    svm_dual,
)
from hyprax.tasks._models import factors_of, fitted


def data(labels=False):
    rng = np.random.default_rng(0)
    X, v = rng.normal(size=(24, 3)) + 5, rng.integers(1, 4, size=24).astype(float)
    y = X[:, 0] - X[:, 1] + rng.normal(size=24)
    return X, np.where(y > np.median(y), 1.0, -1.0) if labels else y, v, np.arange(24) % 3


def square(truth, score):
    return (truth - score) ** 2


KINDS = {
    "ridge": (ridge_dual, lambda a, n: Ridge(alpha=a * n, tol=1e-12), square, "predict"),
    "lasso": (elastic_net_dual, lambda a, n: ElasticNet(alpha=a, l1_ratio=1.0, tol=1e-12), square, "predict"),
    "elastic_net": (
        lambda t, d: elastic_net_dual(t, d, penalty2=0.2),
        lambda a, n: ElasticNet(alpha=a + 0.2, l1_ratio=a / (a + 0.2), tol=1e-12),
        square,
        "predict",
    ),
    "hinge": (
        svm_dual,
        lambda a, n: LinearSVC(C=a, loss="hinge", tol=1e-9, max_iter=1_000_000, intercept_scaling=1),
        lambda y, z: np.maximum(0, 1 - y * z),
        "decision_function",
    ),
    "logistic": (
        lambda t, d: logistic_dual(t, d, tolerance=1e-4),
        lambda a, n: LogisticRegression(C=1 / (a * n), solver="liblinear", tol=1e-10, max_iter=10_000),
        lambda y, z: np.log1p(np.exp(-y * z)),
        "decision_function",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_duals_are_those_of_sample_weights(kind):
    dual, model, loss, scores = KINDS[kind]
    X, y, v, folds = data(kind in ("hinge", "logistic"))
    if kind == "hinge":
        X = X - 5
    f = dual(Task.k_fold(X, y, folds, weights=7 * v), (0.05, 0.5))
    for hyper in (0.06, 0.3):
        total = 0.0
        for k in range(3):
            fit, held = folds != k, folds == k
            learner = model(hyper, fit.sum()).fit(X[fit], y[fit], sample_weight=v[fit] / v[fit].mean())
            total += np.sum(v[held] * loss(y[held], getattr(learner, scores)(X[held])))
        lo, hi = f.enclose(hyper)
        assert lo - 1e-5 <= total / v.sum() <= hi + 1e-5
        learner = model(hyper, len(y)).fit(X, y, sample_weight=v / v.mean())
        own = fitted(kind, X, y, hyper, penalty2=0.2 * (kind == "elastic_net"), weights=v)
        assert X @ own.weights + own.intercept == pytest.approx(getattr(learner, scores)(X), abs=1e-3)


@pytest.mark.parametrize("kind", ["squared boxes", "descent", "huber"])
def test_a_row_of_weight_two_is_a_row_written_twice(kind):
    X, y, v, folds = data()
    more = np.repeat(np.arange(24), v.astype(int))
    heavy, long = Task.k_fold(X, y, folds, weights=v), Task.k_fold(X[more], y[more], folds[more])
    for task_of in (lambda t: t, lambda t: t.scaled([1.0, 0.5, 2.0])):
        a, b = task_of(heavy), task_of(long)
        if kind == "squared boxes":
            box, x = ((0.01, 1.0), (0.01, 1.0)), (0.1, 0.3)
            pairs = [(BoxDual.elastic_net(t, box)(x), BoxDual.descent(t, ((0.0, 0.2), (0.0, 0.9)), steps=5)((0.1, 0.3)))
                     for t in (a, b)]  # fmt: skip
            assert pairs[0] == pytest.approx(pairs[1])
        elif kind == "descent":
            f, g = (descent_dual(t, (0.0, 0.3), steps=4) for t in (a, b))
            assert float(f(0.2)) == pytest.approx(float(g(0.2)))
        else:
            f, g = (huber_dual(t, (0.1, 1.0), tolerance=1e-3) for t in (a, b))
            assert f.enclose(0.3)[0] <= g.enclose(0.3)[1]
            assert g.enclose(0.3)[0] <= f.enclose(0.3)[1]


def test_features_of_larger_weight_are_penalised_more():
    X, y, _, folds = data()
    weights = np.array([1.0, 4.0, 0.5])
    found = fitted("ridge", X, y, 0.3, feature_weights=weights)
    centred, targets = X - X.mean(axis=0), y - y.mean()
    expected = np.linalg.solve(centred.T @ centred / 24 + 0.3 * np.diag(weights), centred.T @ targets / 24)
    assert found.weights == pytest.approx(expected)
    boxes = BoxDual.ridge(Task.k_fold(X, y, folds), [0, 1, 2], ((0.01, 10.0),) * 3)
    line = ridge_dual(Task.k_fold(X, y, folds).scaled(factors_of("ridge", weights)), (0.1, 1.0))
    assert boxes(0.3 * weights) == pytest.approx(float(line(0.3)))
    lasso = fitted("lasso", X, y, 0.3, feature_weights=weights)
    assert np.all(np.abs(centred.T @ (targets - centred @ lasso.weights)) / 24 <= 0.3 * weights + 1e-9)


def test_weights_that_are_none_are_named():
    X, y, v, folds = data(labels=True)
    with pytest.raises(ValueError, match="weights must be a positive number for each of 24 rows"):
        Task.k_fold(X, y, folds, weights=np.append(v[1:], 0.0))
    with pytest.raises(ValueError, match="given both or neither"):
        Task.hold_out(X, y, X, y, weights=v)
    with pytest.raises(ValueError, match="scaled: factors must be a positive number for each of 3"):
        Task.k_fold(X, y, folds).scaled([1.0, 2.0])
    task = Task.k_fold(X, y, folds, weights=v)
    layer = np.ones((3, 2)), np.zeros(2)
    for work in (
        lambda: ridge_dual(task, (0.1, 1.0), loss="zero-one"),
        lambda: svm_dual(task, (0.1, 1.0), loss="zero-one"),
        lambda: activation_dual(task, [layer], Activation.RELU, Activation.IDENTITY, penalty=0.1),
    ):
        with pytest.raises(ValueError, match="rows of the task must not have weights"):
            work()
