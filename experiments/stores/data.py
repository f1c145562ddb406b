"""The School data as stores: one regression task a school, in standardised columns that vary within schools."""

from functools import lru_cache

import numpy as np
from experiments._common import data_file

from hyprax.tasks import Split, Task

COLUMNS = 21
"""Those after them are the same for all pupils of a school."""
GROUPS = np.repeat([0, 1, 2], [5, 5, 11])
"""The year with the intake of that year; sex and band of verbal reasoning; ethnic group."""
FOLDS = 3


@lru_cache(maxsize=1)
def schools() -> list[tuple[np.ndarray, np.ndarray]]:
    """(X, y) of every school; scores in parts of their standard deviation over all pupils."""
    with np.load(data_file("multitask/school.npz")) as data:
        X, y, task = data["X"][:, :COLUMNS], data["y"] / data["y"].std(), data["task"]
    return [(X[task == k], y[task == k]) for k in range(int(task.max()) + 1)]


def halves(school: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a school that train, and those that test."""
    n = len(schools()[school][1])
    order = np.random.default_rng([seed, school]).permutation(n)
    return order[: n // 2], order[n // 2 :]


def folds(count: int) -> np.ndarray:
    """The fold of every training row: rows are in random order already."""
    return np.arange(count) % FOLDS


def tuning_task(school: int, seed: int) -> Task:
    """Folds of the training half of a school; nothing of its test half."""
    X, y = schools()[school]
    train, _ = halves(school, seed)
    return Task.k_fold(X[train], y[train], folds(len(train))).standardised()


def test_split(school: int, seed: int) -> Split:
    """The training half against the test half."""
    X, y = schools()[school]
    train, test = halves(school, seed)
    return Split(X[train], y[train], X[test], y[test]).standardised()


def hold_out(school: int) -> Task:
    """One split of a school, for the timing of the search alone."""
    return Task((test_split(school, 0),))
