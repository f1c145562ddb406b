"""Ridge and elastic-net duals against direct solves, coordinate descent and the optimality conditions."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.tasks import ElasticNetPath, Task, elastic_net_dual, ridge_dual
from thoroughness import examples

DOMAIN = (1e-3, 1e2)


def solve_ridge(X, y, lam, intercept):
    """Dense normal equations with an unpenalised column of ones."""
    n, d = X.shape
    Z = np.hstack([X, np.ones((n, 1))]) if intercept else X
    P = np.diag([1.0] * d + [0.0] * intercept)
    w = np.linalg.lstsq(
        np.vstack([Z / np.sqrt(n), np.sqrt(lam) * P]), np.vstack([y / np.sqrt(n), np.zeros((len(P), y.shape[1]))])
    )[0]
    return lambda V: (np.hstack([V, np.ones((len(V), 1))]) if intercept else V) @ w


def random_task(rng, outputs=1, labels=False):
    n, d = int(rng.integers(4, 25)), int(rng.integers(1, 30))
    X = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-1, 1, size=d)
    if d > 2:
        X[:, 1], X[:, 2] = -X[:, 0], 3.0  # a duplicate up to sign and a constant
    y = X @ rng.normal(size=(d, outputs)) + rng.normal(size=(n, outputs))
    if labels:
        y = np.where(y - np.median(y) >= 0, 1.0, -1.0)
    way = rng.integers(3)
    if way == 0:
        return Task.leave_one_out(X, y)
    if way == 1:
        return Task.k_fold(X, y, np.arange(n) % 3)
    return Task.hold_out(X, y, rng.normal(size=(5, d)), y[:4].repeat(2, axis=0)[:5])


@given(seed=st.integers(0, 2**32), intercept=st.booleans())
@examples(12, 60)
def test_ridge_dual_contains_the_direct_solve(seed, intercept):
    rng = np.random.default_rng(seed)
    task = random_task(rng, outputs=int(rng.integers(1, 4)))
    f = ridge_dual(task, DOMAIN, intercept=intercept)
    for lam in np.concatenate([[1e-3, 1e2], np.exp(rng.uniform(np.log(1e-3), np.log(1e2), 12))]):
        loss = sum(np.sum((s.y_val - solve_ridge(s.X, s.y, lam, intercept)(s.X_val)) ** 2) for s in task.splits)
        truth = loss / task.n_validation
        lo, hi = f.enclose(lam)
        slack = 1e-9 * truth  # the oracle's own error
        assert lo - slack <= truth <= hi + slack
        assert abs(float(f(lam)) - truth) <= 1e-9 * truth
    assert np.max(f.radius) <= 1e-7 * f.maximise().value


@given(seed=st.integers(0, 2**32))
@examples(12, 40)
def test_ridge_zero_one_counts_the_wrong_signs(seed):
    rng = np.random.default_rng(seed)
    task = random_task(rng, labels=True)
    f = ridge_dual(task, DOMAIN, loss="zero-one")
    for lam in np.exp(rng.uniform(np.log(1e-3), np.log(1e2), 12)):
        margins = np.concatenate([(s.y_val * solve_ridge(s.X, s.y, lam, True)(s.X_val))[:, 0] for s in task.splits])
        lo, hi = f.enclose(lam)
        assert lo <= np.mean(margins < -1e-9)
        assert np.mean(margins <= 1e-9) <= hi + 1e-15 or np.any(np.abs(margins) <= 1e-9)
        if not np.any(np.abs(margins) <= 1e-9):
            assert abs(float(f(lam)) - np.mean(margins <= 0)) < 1e-12


def awkward(rng):
    """Problems full of ties: small integers, one-hot columns, duplicates, low rank, p > n, bad scales."""
    n, d, kind = int(rng.integers(2, 12)), int(rng.integers(1, 16)), int(rng.integers(6))
    if kind == 0:
        return rng.integers(-1, 2, size=(n, d)).astype(float), rng.integers(-2, 3, size=n).astype(float)
    if kind == 1:
        X = rng.normal(size=(n, d))
        return X[:, rng.integers(0, d, size=d)] * rng.choice([-1, 1], size=d), rng.normal(size=n)
    if kind == 2:
        return np.eye(max(n, d))[:n, :d], rng.integers(-2, 3, size=n).astype(float)
    if kind == 3:
        return np.eye(d)[rng.integers(0, d, size=n)], rng.integers(0, 3, size=n).astype(float)
    if kind == 4:
        return rng.normal(size=(n, 2)) @ rng.integers(-2, 3, size=(2, d)), rng.normal(size=n)
    return rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-2, 2, size=d), rng.normal(size=n)


def violation(X, y, w, l1, l2, intercept):
    """Distance of 0 from the subdifferential, largest entry, over the largest |X'y|/n: written anew for the test."""
    if intercept:
        X, y = X - X.mean(axis=0), y - y.mean()
    g = X.T @ (y - X @ w) / len(y) - l2 * w
    off = np.where(w != 0, np.abs(g - l1 * np.sign(w)), np.maximum(np.abs(g) - l1, 0))
    return np.max(off) / max(np.max(np.abs(X.T @ y)) / len(y), 1e-12)


@given(seed=st.integers(0, 2**32), penalty2=st.sampled_from([0.0, 1e-3, 1.0]), intercept=st.booleans())
@examples(120, 400)
def test_paths_survive_ties_and_fulfil_the_optimality_conditions(seed, penalty2, intercept):
    rng = np.random.default_rng(seed)
    X, y = awkward(rng)
    domain = (0.0, 2.0) if rng.integers(2) else (1e-3, 5.0)
    path = ElasticNetPath.of(X, y, domain, penalty2=penalty2, intercept=intercept)
    assert path.penalties[0] == domain[0]
    assert path.penalties[-1] == domain[1]
    for l1 in np.concatenate([path.penalties, rng.uniform(*domain, 10)]):
        assert violation(X, y, path(float(l1)), l1, penalty2, intercept) <= 1e-9


@given(seed=st.integers(0, 2**32))
@examples(8, 25)
def test_elastic_net_against_coordinate_descent(seed):
    from sklearn.linear_model import ElasticNet

    rng = np.random.default_rng(seed)
    X, y = awkward(rng)
    for l1, l2 in ((0.02, 0.1), (0.3, 0.02), (0.1, 1.0)):
        fit = ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), tol=1e-12, max_iter=1_000_000, fit_intercept=False)
        Xc, yc = X - X.mean(axis=0), y - y.mean()
        w = fit.fit(Xc, yc).coef_
        path = ElasticNetPath.of(X, y, (0.01, 1.0), penalty2=l2)
        np.testing.assert_allclose(path(l1), w, atol=1e-7 * (1 + np.max(np.abs(w))))


@given(seed=st.integers(0, 2**32), penalty2=st.sampled_from([0.0, 0.01, 0.5]))
@examples(8, 60)
def test_elastic_net_dual_is_the_loss_of_the_path(seed, penalty2):
    rng = np.random.default_rng(seed)
    task = random_task(rng)
    f = elastic_net_dual(task, (0.01, 3.0), penalty2=penalty2)
    paths = [ElasticNetPath.of(s.X, s.y[:, 0], (0.01, 3.0), penalty2=penalty2) for s in task.splits]
    for l1 in rng.uniform(0.01, 3.0, 10):
        total = 0.0
        for s, path in zip(task.splits, paths, strict=True):
            w = path(float(l1))
            total += np.sum((s.y_val[:, 0] - s.y.mean() - (s.X_val - s.X.mean(axis=0)) @ w) ** 2)
        truth = total / task.n_validation
        lo, hi = f.enclose(l1)
        slack = 1e-11 * (1 + truth)
        assert lo - slack <= truth <= hi + slack
    assert penalty2 == 0 or f.certified


def test_proven_error_of_the_path_contains_a_rational_solution():
    # Orthogonal columns: w_j = soft(c_j, l1) / (1 + l2) exactly.
    X, y = np.eye(4) * 2.0, np.array([3.0, -1.0, 1.0, 0.25]) * 2.0
    path = ElasticNetPath.of(X, y, (0.0, 5.0), penalty2=0.5, intercept=False)
    c = X.T @ y / 4
    for k, l1 in enumerate(path.penalties[:-1]):
        truth = np.sign(c) * np.maximum(np.abs(c) - l1, 0) / (1.0 + 0.5)
        assert np.linalg.norm(path.weights[k] - truth) <= path.weight_error[k] + 1e-15
    assert np.max(path.weight_error) < 1e-12
    assert set(np.abs(c)) <= set(path.penalties)


def test_constant_target_and_constant_inputs():
    X = np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 5.0]])
    path = ElasticNetPath.of(X, np.full(3, 7.0), (0.0, 1.0))
    assert np.all(path.weights == 0)
    np.testing.assert_allclose(path.intercepts, 7.0)
    flat = elastic_net_dual(Task.hold_out(np.ones((3, 2)), [1.0, 2, 3], np.ones((1, 2)), [4.0]), (0.0, 1.0))
    np.testing.assert_allclose(flat([0.0, 0.3, 1.0]), 4.0)
    np.testing.assert_allclose(ridge_dual(Task.leave_one_out(X, np.full(3, 7.0)), (0.1, 1.0))([0.1, 1]), 0, atol=1e-25)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Task.hold_out([[1.0]], [np.nan], [[1.0]], [1.0]), "row 0"),
        (lambda: Task.hold_out(np.zeros((0, 2)), [], np.zeros((1, 2)), [1.0]), "non-empty"),
        (lambda: Task.hold_out([[1.0]], [1.0, 2.0], [[1.0]], [1.0]), "one row an example"),
        (lambda: Task.hold_out([[1.0]], [1.0], [[1.0, 2.0]], [1.0]), "same columns"),
        (lambda: Task.leave_one_out([[1.0]], [1.0]), "two examples"),
        (lambda: Task.k_fold(np.eye(3), np.ones(3), 4), "between 2 and 3"),
        (lambda: ridge_dual(Task.leave_one_out(np.eye(3), np.ones(3)), (1.0, 0.1)), "a < b"),
        (lambda: ridge_dual(Task.leave_one_out(np.eye(3), np.ones(3)), (0.0, 0.1)), "0 < a < b"),
        (lambda: ridge_dual(Task.leave_one_out(np.eye(3), [1.0, 2, 3]), (0.1, 1.0), loss="zero-one"), "labels"),
        (lambda: ElasticNetPath.of(np.eye(3), np.ones(3), (0.0, 1.0), penalty2=-1.0), "penalty2"),
        (lambda: ElasticNetPath.of(np.eye(3), np.ones((3, 2)), (0.0, 1.0)), "one column"),
    ],
)
def test_bad_input_says_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()
