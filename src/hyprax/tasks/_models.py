"""The linear models of many tasks by name: the dual of one, and one fitted at a given strength."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ._bernstein import Array
from ._lasso import ElasticNetPath, elastic_net_dual
from ._linear import logistic_dual, weighted
from ._linear_chords import LinearProblems
from ._losses import Logistic
from ._piecewise import PiecewiseFunction
from ._ridge import ridge_dual
from ._svm import SVMPath, svm_dual
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
    feature_weights: Array | None = None,
) -> PiecewiseFunction:
    """The validation loss of a task as a function of the model's hyperparameter."""
    if feature_weights is not None:
        task = task.scaled(factors_of(model, feature_weights))
    match model:
        case "ridge":
            return ridge_dual(task, domain, intercept=intercept)
        case "hinge":
            return svm_dual(task, domain, intercept=intercept)
        case "logistic":
            return logistic_dual(task, domain, intercept=intercept, tolerance=tolerance)
        case _:
            return elastic_net_dual(task, domain, penalty2=penalty2, intercept=intercept)


def factors_of(model: str, feature_weights: Array) -> Array:
    """What columns are multiplied by so that penalties weigh them by `feature_weights`: an l1 penalty v times as much,
    with an l2 part v^2 times; a squared one alone v times."""
    weights = np.asarray(feature_weights, dtype=np.float64)
    return 1 / weights if model in ("lasso", "elastic_net") else 1 / np.sqrt(weights)


def fitted(
    model: str,
    X: Array,
    y: Array,
    hyper: float,
    *,
    penalty2: float = 0.0,
    intercept: bool = True,
    weights: Array | None = None,
    feature_weights: Array | None = None,
) -> Fitted:
    """The optimum of one task's training objective, as the duals define it."""
    if feature_weights is not None:
        factors = factors_of(model, feature_weights)
        found = fitted(model, X * factors, y, hyper, penalty2=penalty2, intercept=intercept, weights=weights)
        return Fitted(found.weights * factors, found.intercept)
    split = Split(X, y, X, y, weights, weights)
    ways: dict[str, Callable[[], Fitted]] = {
        "ridge": lambda: _ridge(split, hyper, intercept),
        "hinge": lambda: _ended(
            SVMPath.of(X, y, (0.0, hyper), intercept=intercept, weights=weights).weights[-1], intercept
        ),
        "logistic": lambda: _logistic(split, hyper, intercept),
    }
    return ways.get(model, lambda: _elastic_net(split, hyper, penalty2, intercept))()


def _ridge(split: Split, hyper: float, intercept: bool) -> Fitted:
    centred = split.centred(intercept)
    rows, targets = centred.X.values, centred.y.values[:, 0]
    u, s, vt = np.linalg.svd(rows, full_matrices=False)
    w = vt.T @ (s * (u.T @ targets) / (s**2 + len(rows) * hyper))
    return Fitted(w, float(centred.y.mean[0, 0] - (centred.X.mean[0] @ w if intercept else 0.0)))


def _elastic_net(split: Split, hyper: float, penalty2: float, intercept: bool) -> Fitted:
    centred = split.centred(intercept)
    X, y = (centred.X.values, centred.y.values[:, 0]) if split.weights is not None else (split.X, split.y[:, 0])
    path = ElasticNetPath.of(X, y, (hyper, 2 * hyper), penalty2=penalty2, intercept=intercept and split.weights is None)
    if split.weights is None:
        return Fitted(path.weights[0], float(path.intercepts[0]))
    w = path.weights[0]
    return Fitted(w, float(centred.y.mean[0, 0] - centred.X.mean[0] @ w) if intercept else 0.0)


def _logistic(split: Split, hyper: float, intercept: bool) -> Fitted:
    X = np.hstack([split.X, np.ones((len(split.X), 1))]) if intercept else split.X
    splits, loss = [split.changed(X, X)], Logistic()
    problem = LinearProblems(*(weighted(splits, loss) if split.weights is not None else (splits, loss)), 0.0)
    at = problem.solve(np.zeros(1, dtype=int), np.array([hyper]), np.zeros((1, X.shape[1], 1)))
    return _ended(at.w[0, :, 0], intercept)


def _ended(w: Array, intercept: bool) -> Fitted:
    return Fitted(w[:-1], float(w[-1])) if intercept else Fitted(w, 0.0)
