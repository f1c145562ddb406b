"""Linear models of many tasks, one a task, which share one penalty: tuned globally, with a certificate."""

import csv
import os
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import ClassifierTags, RegressorTags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_consistent_length, check_is_fitted, check_random_state, validate_data

from ..tasks import Task, erm, map_tasks
from ..tasks._models import CLASSIFIES, MODELS, RANGES, Fitted, dual_of, fitted
from ..tasks._task import checked_weights, column_scales

_RANDOM = 2**31 - 1


class SharedPenalty(BaseEstimator):
    r"""A linear model for every task, all with one penalty: of all in a range that with the least mean loss over tasks.

    Every task has weights of its own, fitted to its rows; what the tasks share is the hyperparameter α. Each task is
    split into folds, and `(1/n) sum_i f_i(α)`, f_i the loss of task i on its held-out rows, is minimised globally over
    α in [low, high]: see [`hyprax.tasks.erm`][]. The models, as the page on many tasks says them in the words of
    scikit-learn, glmnet and libsvm:

    | `model` | each task minimises | α |
    | --- | --- | --- |
    | `"ridge"` | `‖y - X w‖² / (2 n) + α ‖w‖² / 2` | the strength |
    | `"lasso"` | `‖y - X w‖² / (2 n) + α ‖w‖_1` | the strength |
    | `"elastic_net"` | `‖y - X w‖² / (2 n) + α ‖w‖_1 + penalty2 ‖w‖² / 2` | the l1 strength |
    | `"logistic"` | `(1/n) sum log(1 + exp(-y x w)) + α ‖w‖² / 2` | the strength |
    | `"hinge"` | `‖w‖² / 2 + α sum max(0, 1 - y x w)` | C |

    **Arguments:**

    - `model`: one of those; the last two are for two classes, and penalise the intercept as the other weights.
    - `low`, `high`: the range of α; by default one for columns of deviation 1. For an l1 penalty it is times the
        deviation of the targets.
    - `penalty2`: the fixed squared penalty of `"elastic_net"`.
    - `cv`: the number of folds of every task, at most its rows.
    - `fit_intercept`; `standardise`: columns to mean 0 and deviation 1, by the training rows of every task and fold.
    - `weight`: `"tasks"`, which all count the same, or `"rows"`, by the rows of each.
    - `feature_weights`: (d,), how many times as much each feature is penalised, as glmnet's `penalty.factor` before
        that is scaled; `None`: all once. Of `"elastic_net"` the squared part counts their squares.
    - `random_state`: of the folds.
    - `n_jobs`: processes; `None` for one, -1 for as many as there are cores.

    **Attributes:** `hyper_`, α; `message_`, a sentence where it lies at an end of its range; `optimum_`, a
    [`hyprax.tasks.GlobalOptimum`][] with its certificate; `tasks_` (T,), `coef_` (T, d) and `intercept_` (T,) in the
    units of the table, a row a task; `classes_` of two classes.

    Without `tasks` all rows are one task, so it stands in pipelines and searches as other estimators do, and passes
    scikit-learn's checks, but for those that ask for weights of 0: such rows would still be dealt to folds.
    """

    n_features_in_: int
    feature_names_in_: np.ndarray
    classes_: np.ndarray

    def __init__(
        self,
        model: Any = "ridge",
        *,
        low: Any = None,
        high: Any = None,
        penalty2: Any = 0.1,
        cv: Any = 5,
        fit_intercept: Any = True,
        standardise: Any = True,
        weight: Any = "tasks",
        feature_weights: Any = None,
        random_state: Any = None,
        n_jobs: Any = None,
    ):
        self.model = model
        self.low = low
        self.high = high
        self.penalty2 = penalty2
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.standardise = standardise
        self.weight = weight
        self.feature_weights = feature_weights
        self.random_state = random_state
        self.n_jobs = n_jobs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.model in CLASSIFIES:
            tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags(multi_class=False)
        else:
            tags.estimator_type, tags.regressor_tags = "regressor", RegressorTags()
        tags.target_tags.required = True
        return tags

    def fit(
        self, X: Any, y: Any, tasks: Any = None, *, sample_weight: Any = None, executor: Executor | None = None
    ) -> "SharedPenalty":
        """Tune the penalty over the tasks, and fit every task with it.

        **Arguments:**

        - `X`, `y`: the rows of all tasks, (n, d) and (n,).
        - `tasks`: (n,), the name or number of each row's task; `None`: all rows are one task.
        - `sample_weight`: (n,), positive: what rows weigh within their task, over the mean of the training rows; in
          validation too. What tasks weigh is `weight`.
        - `executor`: any `concurrent.futures.Executor` in place of `n_jobs`.

        **Raises:** `ValueError` for bad input, a task of fewer than two rows among them.
        """
        self._check()
        X, y = self._read(X, y, reset=True)
        names = np.zeros(len(y), dtype=int) if tasks is None else np.asarray(tasks)
        check_consistent_length(X, names)
        if names.ndim != 1:
            raise ValueError(f"tasks must be one name a row, ({len(y)},); got the shape {names.shape}.")
        if self.model in CLASSIFIES:
            check_classification_targets(y)
            self.classes_ = np.unique(y)
            if len(self.classes_) != 2:
                raise ValueError(
                    f"y must hold two classes for model={self.model!r}; got {len(self.classes_)}. Only binary "
                    f"classification is supported. The type of the target is {type_of_target(y)}."
                )
        targets = self._targets(y)
        self.tasks_, member = np.unique(names, return_inverse=True)
        rows = [np.flatnonzero(member == k) for k in range(len(self.tasks_))]
        if (few := min(rows, key=len)).size < 2:
            raise ValueError(f"task {names[few[0]]!r} must have at least two rows to be split; got {few.size}.")
        unit = float(np.std(targets)) or 1.0 if self.model in ("lasso", "elastic_net") else 1.0
        low, high = (unit * end for end in RANGES[self.model])
        domain = (low if self.low is None else float(self.low), high if self.high is None else float(self.high))
        seeds = check_random_state(self.random_state).randint(_RANDOM, size=len(rows))
        if sample_weight is not None and not np.any(np.asarray(sample_weight)):
            raise ValueError("sample_weight must be positive numbers; got zeros alone.")
        heavy = None if sample_weight is None else checked_weights(sample_weight, len(y), "sample_weight")
        weights = [None if heavy is None else heavy[at] for at in rows]
        pieces = [(X[at], targets[at], int(seed), v) for at, seed, v in zip(rows, seeds, weights, strict=True)]
        work = partial(_dual, model=self.model, domain=domain, penalty2=self.penalty2, cv=self.cv,
                       intercept=self.fit_intercept, standardise=self.standardise,
                       feature_weights=self._feature_weights())  # fmt: skip
        processes = {None: 1, -1: len(os.sched_getaffinity(0))}.get(self.n_jobs, self.n_jobs)
        duals = map_tasks(work, pieces, processes=processes, executor=executor, progress=False)
        if self.weight == "rows":
            mean = len(y) / len(rows)
            duals = [dual * (len(at) / mean) for dual, at in zip(duals, rows, strict=True)]
        self.optimum_ = erm(duals, names=[str(name) for name in self.tasks_.tolist()], progress=False)
        self.hyper_, self.message_ = self.optimum_.hyper, self.optimum_.message
        found = [self._fitted(X[at], targets[at], v) for at, v in zip(rows, weights, strict=True)]
        self.coef_, self.intercept_ = np.stack([f.weights for f in found]), np.array([f.intercept for f in found])
        return self

    def refit(self, X: Any, y: Any, task: Any, *, sample_weight: Any = None) -> "SharedPenalty":
        """Fit one task, new or known, with the shared penalty; its coefficients join the others.

        A known one is replaced. Nothing is tuned again.
        """
        check_is_fitted(self)
        X, y = self._read(X, y, reset=False)
        weights = None if sample_weight is None else checked_weights(sample_weight, len(y), "sample_weight")
        found = self._fitted(X, self._targets(y), weights)
        at = np.flatnonzero(self.tasks_ == task)
        if at.size:
            self.coef_[at[0]], self.intercept_[at[0]] = found.weights, found.intercept
            return self
        self.tasks_ = np.append(self.tasks_, np.asarray([task]))
        self.coef_ = np.vstack([self.coef_, found.weights])
        self.intercept_ = np.append(self.intercept_, found.intercept)
        return self

    @available_if(lambda self: self.model in CLASSIFIES)
    def decision_function(self, X: Any, tasks: Any = None) -> np.ndarray:
        """`x w + intercept`, w of each row's task: of classes, the second where it is above 0."""
        return self._outputs(X, tasks)

    def _outputs(self, X: Any, tasks: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        at = self._places(tasks, len(X))
        return np.sum(X * self.coef_[at], axis=1) + self.intercept_[at]

    def predict(self, X: Any, tasks: Any = None) -> np.ndarray:
        """Predictions of rows of known tasks; of classes, the more likely.

        **Arguments:** `tasks`: (n,), or one name for all rows; `None` where there is one task only.

        **Raises:** `ValueError` for a task that was neither fitted nor refitted.
        """
        out = self._outputs(X, tasks)
        return self.classes_[(out > 0).astype(int)] if self.model in CLASSIFIES else out

    def score(self, X: Any, y: Any, tasks: Any = None) -> float:
        """R² over all rows, or the accuracy."""
        return float((accuracy_score if self.model in CLASSIFIES else r2_score)(y, self.predict(X, tasks)))

    def export(self, path: Any) -> None:
        """Write the coefficients to a CSV file: a line a task, with its intercept and a column a feature."""
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(self.n_features_in_)])
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["task", "intercept", *names])
            for task, shift, row in zip(
                self.tasks_.tolist(), self.intercept_.tolist(), self.coef_.tolist(), strict=True
            ):
                writer.writerow([task, repr(shift), *map(repr, row)])

    def _check(self) -> None:
        for name, allowed in (("model", MODELS), ("weight", ("tasks", "rows"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        if not (isinstance(self.cv, int) and self.cv >= 2):
            raise ValueError(f"cv must be a number of folds, at least 2; got {self.cv!r}.")
        if not (self.n_jobs in (None, -1) or (isinstance(self.n_jobs, int) and self.n_jobs >= 1)):
            raise ValueError(f"n_jobs must be None, -1 or at least 1; got {self.n_jobs!r}.")

    def _read(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        numeric = self.model not in CLASSIFIES
        least = 2 if reset else 1
        read: Any = validate_data(
            self, X, y, dtype=np.float64, y_numeric=numeric, reset=reset, ensure_min_samples=least
        )
        return read

    def _targets(self, y: np.ndarray) -> np.ndarray:
        if self.model not in CLASSIFIES:
            return np.asarray(y, dtype=np.float64)
        if not np.isin(y, self.classes_).all():
            strange = y[~np.isin(y, self.classes_)][0]
            raise ValueError(f"y must hold the classes {self.classes_.tolist()}; got {strange!r}.")
        return np.where(y == self.classes_[1], 1.0, -1.0)

    def _feature_weights(self) -> np.ndarray | None:
        if self.feature_weights is None:
            return None
        found = np.asarray(self.feature_weights, dtype=np.float64)
        if found.shape != (self.n_features_in_,) or not np.all(np.isfinite(found) & (found > 0)):
            raise ValueError(
                f"feature_weights must be a positive number for each of {self.n_features_in_} features; got "
                f"{self.feature_weights!r}."
            )
        return found

    def _fitted(self, X: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> Fitted:
        mean, spread = column_scales(X) if self.standardise else (np.zeros(X.shape[1]), np.ones(X.shape[1]))
        found = fitted(
            self.model, (X - mean) / spread, y, self.hyper_, penalty2=self._penalty2, intercept=self.fit_intercept,
            weights=weights, feature_weights=self._feature_weights(),
        )  # fmt: skip
        weights = found.weights / spread
        return Fitted(weights, found.intercept - float(mean @ weights))

    @property
    def _penalty2(self) -> float:
        return self.penalty2 if self.model == "elastic_net" else 0.0

    def _places(self, tasks: Any, count: int) -> np.ndarray:
        if tasks is None:
            if len(self.tasks_) != 1:
                raise ValueError(f"tasks must say which of the {len(self.tasks_)} tasks each row is of; got None.")
            return np.zeros(count, dtype=int)
        asked = np.asarray(tasks)
        if asked.shape not in ((), (count,)):
            raise ValueError(f"tasks must be one name a row, ({count},), or one for all; got the shape {asked.shape}.")
        known = {task: i for i, task in enumerate(self.tasks_.tolist())}
        for task in np.unique(asked).tolist():
            if task not in known:
                raise ValueError(
                    f"tasks must be among those that were fitted; got {task!r}. refit(X, y, task) adds one, with the "
                    "shared penalty."
                )
        return np.broadcast_to(np.array([known[task] for task in np.atleast_1d(asked).tolist()]), (count,))


def _dual(
    piece: tuple[np.ndarray, np.ndarray, int, np.ndarray | None],
    *,
    model: str,
    domain: tuple[float, float],
    penalty2: float,
    cv: int,
    intercept: bool,
    standardise: bool,
    feature_weights: np.ndarray | None,
) -> Any:
    X, y, seed, weights = piece
    task = Task.k_fold(X, y, min(cv, len(y)), key=jax.random.key(seed), weights=weights)
    task = task.standardised() if standardise else task
    strength = penalty2 if model == "elastic_net" else 0.0
    return dual_of(model, task, domain, penalty2=strength, intercept=intercept, feature_weights=feature_weights)
