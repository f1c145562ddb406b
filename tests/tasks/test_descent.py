"""The learning rate as a hyperparameter: enclosures against gradient descent itself."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.tasks import Task, descent_dual, erm
from thoroughness import examples


def train(X, y, rate, steps, momentum):
    w, before = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for _ in range(steps):
        w, before = w + momentum * (w - before) + rate * X.T @ (y - X @ w) / len(y), w
    return w


def loss(task, rate, steps, momentum, intercept):
    total = 0.0
    for s in task.splits:
        mean, level = (s.X.mean(axis=0), s.y.mean()) if intercept else (0.0, 0.0)
        w = train(s.X - mean, s.y[:, 0] - level, rate, steps, momentum)
        total += np.sum((s.y_val[:, 0] - level - (s.X_val - mean) @ w) ** 2)
    return total / task.n_validation


def random_task(rng, folds):
    n, d = int(rng.integers(6, 30)), int(rng.integers(1, 6))
    X = rng.normal(size=(n, d)) + rng.normal()
    y = X @ rng.normal(size=d) + rng.normal(size=n)
    return Task.k_fold(X, y, np.arange(n) % 3) if folds else Task.hold_out(X[: n // 2], y[: n // 2], X, y)


@given(
    seed=st.integers(0, 2**32),
    steps=st.sampled_from([1, 3, 12]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    folds=st.booleans(),
)
@examples(10, 60)
def test_the_dual_contains_what_training_does(seed, steps, momentum, folds):
    rng = np.random.default_rng(seed)
    task = random_task(rng, folds)
    top = max(float(np.linalg.norm(s.X - s.X.mean(axis=0), 2) ** 2 / len(s.X)) for s in task.splits)
    intercept = bool(rng.integers(2))
    domain = (0.0, 1.9 / top)
    f = descent_dual(task, domain, steps=steps, momentum=momentum, intercept=intercept)
    for rate in np.append(rng.uniform(*domain, 12), domain):
        truth = loss(task, rate, steps, momentum, intercept)
        lo, hi = f.enclose(rate)
        assert lo - 1e-10 * (1 + truth) <= truth <= hi + 1e-10 * (1 + truth)
    assert np.all(f.radius <= 2e-8 * f.maximise().value)


def test_rates_that_diverge_are_enclosed_too():
    rng = np.random.default_rng(1)
    task = random_task(rng, False)
    f = descent_dual(task, (0.0, 20.0), steps=6, tolerance=1e-6)
    for rate in (3.0, 11.0, 20.0):
        lo, hi = f.enclose(rate)
        assert lo <= loss(task, rate, 6, 0.0, True) * (1 + 1e-9)
        assert hi >= loss(task, rate, 6, 0.0, True) * (1 - 1e-9)


def test_one_rate_for_many_tasks_is_no_worse_than_a_grid():
    rng = np.random.default_rng(2)
    tasks_ = [random_task(rng, False) for _ in range(4)]
    best = erm([descent_dual(t, (0.0, 0.5), steps=5, momentum=0.5) for t in tasks_], progress=False)
    grid = [np.mean([loss(t, r, 5, 0.5, True) for t in tasks_]) for r in np.linspace(0, 0.5, 101)]
    assert best.certificate.kind == "certified"
    assert best.lower <= min(grid) + 1e-12
    assert np.mean([loss(t, best.hyper, 5, 0.5, True) for t in tasks_]) <= best.upper + 1e-10


def test_wrong_arguments_of_a_descent_are_named():
    task = random_task(np.random.default_rng(3), False)
    with pytest.raises(ValueError, match="steps must be an integer >= 1"):
        descent_dual(task, (0.0, 1.0), steps=0)
    with pytest.raises(ValueError, match="momentum must lie in"):
        descent_dual(task, (0.0, 1.0), steps=1, momentum=1.0)
    with pytest.raises(ValueError, match="still wider than tolerance"):
        descent_dual(task, (0.0, 1.0), steps=3, tolerance=1e-17)
