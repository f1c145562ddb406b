"""The 45 digit pairs, one binary task each, and their exact duals."""

from itertools import combinations

import numpy as np

from hyprax import tasks

PAIRS = list(combinations(range(10), 2))
FAMILIES = {
    "ReLU, identity": (tasks.Activation.RELU, tasks.Activation.IDENTITY, (0.0, 2.0)),
    "squared ReLU, hard tanh": (tasks.Activation.RELU2, tasks.Activation.HARD_TANH, (0.0, 1.0)),
}
TRAIN, WIDTH, PENALTY = 40, 50, 1e-2


def digit_task(pair: int) -> tasks.Task:
    """A pair of digits, pixels in [0, 1]; targets -1 for the smaller digit and +1 for the larger."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    low, high = PAIRS[pair]
    rows = np.flatnonzero((y == low) | (y == high))
    rows = np.random.default_rng(pair).permutation(rows)
    x, t = x[rows] / 16, np.where(y[rows] == high, 1.0, -1.0)
    return tasks.Task.hold_out(x[:TRAIN], t[:TRAIN], x[TRAIN:], t[TRAIN:])


def layer() -> tuple[np.ndarray, np.ndarray]:
    """The random features, the same for all tasks."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(64, WIDTH)) / 4, rng.normal(size=WIDTH) / 2


def dual(family: str, pair: int) -> tasks.ReadoutDuals:
    """The exact duals of one pair."""
    o1, o2, domain = FAMILIES[family]
    return tasks.activation_dual(digit_task(pair), [layer()], o1, o2, penalty=PENALTY, domain=domain)
