"""The School data, one regression task a school, and the duals of its tasks."""

from functools import lru_cache

import jax
import numpy as np
from experiments._common import data_file

from hyprax.tasks import PiecewiseFunction, Task, elastic_net_dual, ridge_dual

PENALTY2 = 0.1
DOMAINS = {"elastic net": (0.001, 1.0), "ridge": (0.001, 100.0)}


@lru_cache(maxsize=1)
def schools() -> list[tuple[np.ndarray, np.ndarray]]:
    """(X, y) of every school."""
    with np.load(data_file("multitask/school.npz")) as data:
        X, y, task = data["X"], data["y"], data["task"]
    return [(X[task == k], y[task == k]) for k in range(int(task.max()) + 1)]


def standardised(X: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the columns of X at mean 0 and variance 1; columns constant in X become 0."""
    constant = np.all(X[0] == X, axis=0)
    mean, scale = X.mean(axis=0), np.where(constant, 1.0, X.std(axis=0))
    return np.where(constant, 0.0, (X - mean) / scale), np.where(constant, 0.0, (other - mean) / scale)


def split_task(school: int, seed: int) -> Task:
    """A random half of a school to train, the other to validate.

    Targets are divided by the standard deviation over all pupils, so that losses are parts of the total variance.
    """
    X, y = schools()[school]
    order = np.random.default_rng([seed, school]).permutation(len(y))
    return _hold_out(X, y / target_scale(), order[: len(y) // 2], order[len(y) // 2 :])


@lru_cache(maxsize=1)
def target_scale() -> float:
    """Standard deviation of the scores of all pupils."""
    return float(np.std(np.concatenate([y for _, y in schools()])))


def _hold_out(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> Task:
    X_train, X_test = standardised(X[train], X[test])
    return Task.hold_out(X_train, y[train], X_test, y[test])


def dual(family: str, task: Task) -> PiecewiseFunction:
    """The exact dual of a task."""
    if family == "ridge":
        return ridge_dual(task, DOMAINS[family])
    return elastic_net_dual(task, DOMAINS[family], penalty2=PENALTY2)


def pair(family: str, seed: int, school: int) -> tuple[PiecewiseFunction, PiecewiseFunction]:
    """The 5-fold dual on one half of a school, and the dual of the test: trained on that half, judged on the other."""
    test = split_task(school, seed)
    (split,) = test.splits
    inner = Task.k_fold(split.X, split.y, 5, key=jax.random.key(seed))
    return dual(family, inner), dual(family, test)
