"""What every kind of model becomes: an objective, where its search starts, and what its weights predict."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from .._objective import AbstractObjective
from ._hyper_tables import Penalty


@dataclasses.dataclass(frozen=True)
class Problem:
    """A recipe made ready for `tune`.

    - `start`: the hyperparameters to start from; `None` where a penalty starts from the baseline's best.
    - `with_penalty`: those with every penalty at one strength, spread and held as a table says; of linear models.
    - `predict`: `(params, inputs)` to what the model says of examples; `None` where that is not known.
    """

    objective: AbstractObjective
    start: PyTree | None
    predict: Callable[[PyTree, np.ndarray], np.ndarray] | None = None
    with_penalty: Callable[[float, Penalty], PyTree] | None = None


def accuracy(predicted: Any, targets: np.ndarray) -> float:
    """The part of classes met: of one output the sign decides, of several the largest."""
    predicted = np.asarray(predicted)
    chosen = predicted > 0 if predicted.ndim == 1 else np.argmax(predicted, axis=1)
    return float(np.mean(chosen == targets))


def explained(predicted: Any, targets: np.ndarray) -> float:
    """R² = 1 - Σ (y - f)² / Σ (y - ȳ)²."""
    predicted = np.asarray(predicted).reshape(targets.shape)
    spread = np.sum((targets - np.mean(targets)) ** 2)
    return float(1 - np.sum((targets - predicted) ** 2) / spread) if spread > 0 else float("nan")


def deviance_explained(predicted: Any, targets: np.ndarray) -> float:
    """D² = 1 - D(y, e^f) / D(y, ȳ), D(y, μ) = 2 Σ [y log(y/μ) - y + μ] the deviance of counts."""

    def deviance(mean: np.ndarray) -> float:
        positive = targets > 0
        logs = np.where(positive, targets * np.log(np.where(positive, targets, 1) / mean), 0.0)
        return float(2 * np.sum(logs - targets + mean))

    mean = np.mean(targets)
    if not mean > 0:
        return float("nan")
    null = deviance(np.full(targets.shape, mean))
    return 1 - deviance(np.exp(np.asarray(predicted))) / null if null > 0 else float("nan")
