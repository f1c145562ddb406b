"""Data that float64 finds hard: offsets, columns of other sizes, nearly equal columns, against exact arithmetic."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from hyprax.tasks import Task, elastic_net_dual, ridge_dual

DOMAIN = (1e-3, 2.0)


def exact_matrix(x):
    return [[Fraction(float(v)) for v in row] for row in x]


def solve(a, b):
    """Gauss's elimination in fractions."""
    n = len(b)
    rows = [[*a[i], b[i]] for i in range(n)]
    for i in range(n):
        pivot = next(j for j in range(i, n) if rows[j][i] != 0)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for j in range(i + 1, n):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [u - factor * v for u, v in zip(rows[j], rows[i], strict=True)]
    out = [Fraction(0)] * n
    for i in reversed(range(n)):
        out[i] = (rows[i][n] - sum((rows[i][j] * out[j] for j in range(i + 1, n)), Fraction(0))) / rows[i][i]
    return out


def exact_loss(task, l1, l2, intercept):
    """The validation loss of the elastic net's solution in fractions, by trying every pattern of signs."""
    (s,) = task.splits
    X, y, V, v = exact_matrix(s.X), [r[0] for r in exact_matrix(s.y)], exact_matrix(s.X_val), exact_matrix(s.y_val)
    n, d = len(X), len(X[0])
    mean = [sum((r[j] for r in X), Fraction(0)) / n * intercept for j in range(d)]
    middle = sum(y, Fraction(0)) / n * intercept
    X, V = ([[r[j] - mean[j] for j in range(d)] for r in m] for m in (X, V))
    y = [t - middle for t in y]
    gram = [[sum((r[i] * r[j] for r in X), Fraction(0)) / n + l2 * (i == j) for j in range(d)] for i in range(d)]
    pull = [sum((r[j] * t for r, t in zip(X, y, strict=True)), Fraction(0)) / n for j in range(d)]
    for signs in itertools.product((-1, 0, 1), repeat=d):
        active = [j for j in range(d) if signs[j]]
        some = solve([[gram[i][j] for j in active] for i in active], [pull[j] - l1 * signs[j] for j in active])
        w = [Fraction(0)] * d
        for j, value in zip(active, some, strict=True):
            w[j] = value
        g = [pull[i] - sum((gram[i][j] * w[j] for j in range(d)), Fraction(0)) for i in range(d)]
        if all(w[j] * signs[j] > 0 if signs[j] else abs(g[j]) <= l1 for j in range(d)):
            errors = [
                t[0] - middle - sum((r[j] * w[j] for j in range(d)), Fraction(0)) for r, t in zip(V, v, strict=True)
            ]
            return float(sum((e * e for e in errors), Fraction(0)) / len(V))
    raise AssertionError("no pattern of signs is optimal")


def hard(rng, kind):
    """A task of two columns and eight rows, and a validation part of four."""
    X = rng.normal(size=(12, 2))
    y = X[:, 0] - 0.5 * X[:, 1] + 0.3 * rng.normal(size=12)
    if kind == "offset":
        X[:, 1] += 1.7e9
    elif kind == "scales":
        X *= [1e-6, 1e5]
    elif kind == "year":
        X[:, 0] = 2000 + rng.integers(0, 20, 12)
        y = y + 1e6
    else:  # nearly equal columns
        X[:, 1] = X[:, 0] + float(kind) * rng.normal(size=12)
    return Task.hold_out(X[:8], y[:8], X[8:], y[8:])


KINDS = ["offset", "scales", "year", "1e-4", "1e-6", "1e-8", "1e-11"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["ridge", "lasso", "elastic net"])
def test_the_truth_lies_in_an_enclosure_that_says_something(kind, method):
    rng = np.random.default_rng(KINDS.index(kind))
    task = hard(rng, kind)
    if method == "ridge":
        f, fixed = ridge_dual(task, DOMAIN), lambda x: (Fraction(0), Fraction(x))
    elif method == "lasso":
        f, fixed = elastic_net_dual(task, DOMAIN), lambda x: (Fraction(x), Fraction(0))
    else:
        f, fixed = elastic_net_dual(task, DOMAIN, penalty2=0.5), lambda x: (Fraction(x), Fraction(0.5))
    assert f.certified
    for x in np.exp(rng.uniform(np.log(DOMAIN[0]), np.log(DOMAIN[1]), 4)).tolist():
        truth = exact_loss(task, *fixed(x), True)
        lo, hi = f.enclose(x)
        assert lo <= truth * (1 + 1e-15)
        assert truth <= hi * (1 + 1e-15)
    assert np.max(f.radius) <= 1e-4 * f.maximise().value  # it used to be 1e12 times the loss


def test_columns_that_are_one_quantity_in_two_units():
    """Celsius and Fahrenheit, rounded to six digits: the path exists, and its loss is known."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        c, x = rng.normal(size=30).round(6), rng.normal(size=30).round(6)
        y = c - x + rng.normal(size=30)
        task = Task.k_fold(np.column_stack([c, (1.8 * c + 32).round(6), x]), y, np.arange(30) % 5).standardised()
        f = elastic_net_dual(task, (1e-4, 1.0))
        assert f.certified
        assert np.max(f.radius) <= 1e-3 * f.maximise().value


def test_scaling_looks_at_training_rows_only():
    rng = np.random.default_rng(3)
    X, y, fold = rng.normal(size=(20, 3)) + 5, rng.normal(size=20), np.arange(20) % 4
    task = Task.k_fold(X, y, fold).standardised()
    for part in task.splits:
        np.testing.assert_allclose(part.X.mean(axis=0), 0, atol=1e-14)
        np.testing.assert_allclose(part.X.std(axis=0), 1, rtol=1e-14)
    moved = X.copy()
    moved[fold == 0, 0] *= 1e3
    other = Task.k_fold(moved, y, fold).standardised()
    np.testing.assert_array_equal(task.splits[0].X, other.splits[0].X)
    assert not np.array_equal(task.splits[0].X_val, other.splits[0].X_val)
    assert not np.array_equal(task.splits[1].X, other.splits[1].X)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "d", "q"), [(12, 3, 1), (25, 4, 2), (6, 9, 1)])
def test_leaving_one_out_by_its_closed_form_is_leaving_one_out(n, d, q, intercept):
    rng = np.random.default_rng(n)
    task = Task.leave_one_out(rng.normal(size=(n, d)) + 2, rng.normal(size=(n, q)))
    closed, one_by_one = (ridge_dual(t, DOMAIN, intercept=intercept) for t in (task, Task(task.splits)))
    x = np.geomspace(*DOMAIN, 200).clip(*DOMAIN)
    (low, high), (lo, hi) = closed.enclose(x), one_by_one.enclose(x)
    assert np.all((low <= hi) & (lo <= high))
    np.testing.assert_allclose(closed(x), one_by_one(x), rtol=1e-9)
    assert np.max(closed.radius) <= 1e-8 * closed.maximise().value


def test_points_an_ulp_outside_the_domain_are_its_ends():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(20, 3))
    f = elastic_net_dual(Task.hold_out(X, X[:, 0], X, X[:, 0]), (0.1, 100.0))
    x = np.exp(np.linspace(np.log(0.1), np.log(100.0), 7))
    assert x[0] < 0.1 or x[-1] > 100
    np.testing.assert_array_equal(f(x), f(x.clip(0.1, 100.0)))
    with pytest.raises(ValueError, match="must lie in the domain"):
        f(0.1 * (1 - 1e-9))
