"""The linear models of many tasks by name: the dual of one, and one fitted at a given strength."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ._bernstein import Array
from ._lasso import elastic_net_dual, elastic_net_path
from ._linear import logistic_dual
from ._linear_chords import LinearProblems
from ._losses import Logistic
from ._piecewise import PiecewiseFunction
from ._ridge import ridge_dual
from ._svm import svm_dual, svm_path
from ._task import Split, Task

Model: TypeAlias = Literal["ridge", "lasso", "elastic_net", "hinge", "logistic"]
MODELS: tuple[str, ...] = get_args(Model)
CLASSIFIES = ("hinge", "logistic")
"""Models of labels -1 and +1."""
RANGES = {"ridge": (1e-4, 1e2), "lasso": (1e-3, 1.0), "elastic_net": (1e-3, 1.0), "hinge": (1e-3, 1.0)}
"""Of the hyperparameter, for columns of deviation 1 and targets of about that size."""
RANGES["logistic"] = RANGES["hinge"]


class Fitted(NamedTuple):
    """One task's model, `x w + intercept`."""

    weights: Array
    intercept: float


def dual_of(
    model: str,
    task: Task,
    domain: tuple[float, float],
    *,
    penalty2: float = 0.0,
    intercept: bool = True,
    tolerance: float = 1e-3,
) -> PiecewiseFunction:
    """The validation loss of a task as a function of the model's hyperparameter."""
    match model:
        case "ridge":
            return ridge_dual(task, domain, intercept=intercept)
        case "hinge":
            return svm_dual(task, domain, intercept=intercept)
        case "logistic":
            return logistic_dual(task, domain, intercept=intercept, tolerance=tolerance)
        case _:
            return elastic_net_dual(task, domain, penalty2=penalty2, intercept=intercept)


def fitted(model: str, X: Array, y: Array, hyper: float, *, penalty2: float = 0.0, intercept: bool = True) -> Fitted:
    """The optimum of one task's training objective, as the duals define it."""
    ways: dict[str, Callable[[], Fitted]] = {
        "ridge": lambda: _ridge(X, y, hyper, intercept),
        "hinge": lambda: _ended(svm_path(X, y, (0.0, hyper), intercept=intercept).weights[-1], intercept),
        "logistic": lambda: _logistic(X, y, hyper, intercept),
    }
    return ways.get(model, lambda: _elastic_net(X, y, hyper, penalty2, intercept))()


def _ridge(X: Array, y: Array, hyper: float, intercept: bool) -> Fitted:
    centred = Split(X, y, X, y).centred(intercept)
    rows, targets = centred.X.values, centred.y.values[:, 0]
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    w = vt.T @ (s * (u.T @ targets) / (s**2 + len(rows) * hyper))
    return Fitted(w, float(centred.y.mean[0, 0] - (centred.X.mean[0] @ w if intercept else 0.0)))


def _elastic_net(X: Array, y: Array, hyper: float, penalty2: float, intercept: bool) -> Fitted:
    path = elastic_net_path(X, y, (hyper, 2 * hyper), penalty2=penalty2, intercept=intercept)
    return Fitted(path.weights[0], float(path.intercepts[0]))


def _logistic(X: Array, y: Array, hyper: float, intercept: bool) -> Fitted:
    rows = np.hstack([X, np.ones((len(X), 1))]) if intercept else X
    problem = LinearProblems([Split(rows, y, rows, y)], Logistic())
    at = problem.solve(np.zeros(1, dtype=int), np.array([hyper]), np.zeros((1, rows.shape[1], 1)))
    return _ended(at.w[0, :, 0], intercept)


def _ended(w: Array, intercept: bool) -> Fitted:
    return Fitted(w[:-1], float(w[-1])) if intercept else Fitted(w, 0.0)
