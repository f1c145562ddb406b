"""The support vector machine's path against coordinate descent, closed forms and its own optimality."""

import warnings

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.tasks import SVMPath, Task, svm_dual
from thoroughness import examples

DOMAIN = (0.01, 10.0)


def awkward(rng):
    """Random, small-integer, repeated and one-hot examples; random or separable labels."""
    n, d, kind = int(rng.integers(2, 25)), int(rng.integers(1, 8)), int(rng.integers(4))
    if kind == 0:
        X = rng.normal(size=(n, d))
    elif kind == 1:
        X = rng.integers(-1, 2, size=(n, d)).astype(float)
    elif kind == 2:
        X = rng.normal(size=(n, d))[rng.integers(0, n, size=n)]
    else:
        X = np.eye(d)[rng.integers(0, d, size=n)]
    return X, rng.choice([-1.0, 1.0], size=n) if rng.integers(2) else np.where(X[:, 0] > 0, 1.0, -1.0)


def objective(X, y, w, cost):
    Z = np.hstack([X, np.ones((len(X), 1))])
    return 0.5 * w @ w + cost * np.sum(np.maximum(0, 1 - y * (Z @ w)))


@given(seed=st.integers(0, 2**32))
@examples(70, 200)
def test_path_survives_ties_and_is_optimal(seed):
    """Zero is in the subdifferential of the objective at w: some dual variables in [0, C] show it."""
    from scipy.optimize import lsq_linear

    rng = np.random.default_rng(seed)
    X, y = awkward(rng)
    path = SVMPath.of(X, y, (1e-3, 20.0))
    assert path.violation <= 1e-9
    Z = np.hstack([X, np.ones((len(X), 1))]) * y[:, None]
    for cost in np.concatenate([path.costs[:3], np.exp(rng.uniform(np.log(1e-3), np.log(20), 3))]):
        w = path(float(cost))
        margin = Z @ w
        sure = np.where(margin < 1 - 1e-8, cost, 0.0) @ Z
        tied = np.abs(margin - 1) <= 1e-8
        rest = w - sure
        if tied.any():  # rest must be a combination of the tied examples with weights in [0, C]
            fit = lsq_linear(Z[tied].T, rest, (0.0, cost), method="bvls", tol=1e-14)
            rest = rest - Z[tied].T @ fit.x
        assert np.linalg.norm(rest) <= 1e-9 * (1 + cost * len(y))


@given(seed=st.integers(0, 2**32))
@examples(12, 30)
def test_path_against_liblinear(seed):
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(seed)
    X, y = awkward(rng)
    if np.unique(y).size < 2:
        return
    path = SVMPath.of(X, y, (0.01, 5.0))
    for cost in (0.02, 0.3, 3.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = LinearSVC(loss="hinge", C=cost, tol=1e-9, max_iter=100_000, intercept_scaling=1).fit(X, y)
        theirs = np.append(fit.coef_[0], fit.intercept_)
        ours = path(cost)
        low, high = objective(X, y, ours, cost), objective(X, y, theirs, cost)
        assert low <= high + 1e-10 * (1 + high)
        # Strong convexity: ‖w - w*‖^2 / 2 <= the difference of the objectives.
        assert 0.5 * np.sum((ours - theirs) ** 2) <= high - low + 1e-9 * (1 + high)


@given(seed=st.integers(0, 2**32), folds=st.integers(1, 3))
@examples(20, 60)
def test_duals_are_the_losses_of_the_path(seed, folds):
    rng = np.random.default_rng(seed)
    X, y = awkward(rng)
    if len(y) < 4:
        return
    task = Task.hold_out(X, y, X[:3] + 0.3, y[:3]) if folds == 1 else Task.k_fold(X, y, np.arange(len(y)) % folds)
    hinge, wrong = svm_dual(task, DOMAIN), svm_dual(task, DOMAIN, loss="zero-one")
    paths = [SVMPath.of(s.X, s.y[:, 0], DOMAIN) for s in task.splits]
    for cost in np.exp(rng.uniform(np.log(0.01), np.log(10), 12)):
        margins = np.concatenate(
            [
                s.y_val[:, 0] * (np.hstack([s.X_val, np.ones((len(s.X_val), 1))]) @ path(float(cost)))
                for s, path in zip(task.splits, paths, strict=True)
            ]
        )
        truth = np.mean(np.maximum(0, 1 - margins))
        lo, hi = hinge.enclose(cost)
        assert lo - 1e-12 <= truth <= hi + 1e-12
        assert abs(float(hinge(cost)) - truth) <= 1e-10 * (1 + truth)
        lo, hi = wrong.enclose(cost)
        assert lo - 1e-12 <= np.mean(margins <= 0) <= hi + 1e-12
    assert hinge.certified
    assert wrong.certified


def test_two_points_by_hand():
    # y = ±1 at x = ±1, no intercept: w = 2 C up to C = 1/2, then 1.
    path = SVMPath.of([[1.0], [-1.0]], [1.0, -1.0], (0.1, 2.0), intercept=False)
    np.testing.assert_allclose(path.costs, [0.1, 0.5, 2.0])
    np.testing.assert_allclose(path.weights[:, 0], [0.2, 1.0, 1.0])
    f = svm_dual(Task.hold_out([[1.0], [-1.0]], [1.0, -1.0], [[2.0]], [1.0]), (0.1, 2.0), intercept=False)
    # max(0, 1 - 4 C): zero from 1/4 on.
    np.testing.assert_allclose(f([0.1, 0.2, 0.25, 0.4, 2.0]), [0.6, 0.2, 0, 0, 0], atol=1e-12)
    for k, cost in enumerate(path.costs[:-1]):
        assert abs(path.weights[k, 0] - min(2 * cost, 1.0)) <= path.weight_error[k]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SVMPath.of([[1.0]], [2.0], (0.1, 1.0)), "labels"),
        (lambda: SVMPath.of([[np.inf]], [1.0], (0.1, 1.0)), "finite"),
        (lambda: SVMPath.of([[1.0]], [1.0], (1.0, 0.1)), "a < b"),
    ],
)
def test_bad_input_says_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()
