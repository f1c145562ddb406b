"""What models say of the test rows beside what is true there: probabilities, classes, numbers. For the report."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ._job import Job

BINS = 10
MOST_POINTS = 400
MOST_CLASSES = 20


def diagnosed(job: Job, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the report draws of outputs on the test part, by the names of the models.

    Of classes: `calibration`, bins of equal size by the probability said (of two classes that of the second, of more
    that of the likeliest) with the share that came true, and `confusion`, the counts of true by predicted class of the
    last model. Of numbers: `predictions`, pairs of prediction and truth of the last model in the units of the target,
    at most `MOST_POINTS` of them.
    """
    assert job.splits is not None
    targets, classes = np.asarray(job.splits.test[1]), job.splits.classes
    last = outputs[list(outputs)[-1]]
    if len(targets) == 0 or not np.all(np.isfinite(last)):
        return {}
    if job.recipe.model.classifies:
        labels, weights = targets.astype(int), job.splits.weights_of(targets)
        curves = {name: calibration(probabilities(each), labels, weights) for name, each in outputs.items()}
        found: dict[str, Any] = {"calibration": curves}
        if len(classes) <= MOST_CLASSES:
            said = np.argmax(probabilities(last), axis=1)
            counts = np.zeros((len(classes), len(classes)), int)
            np.add.at(counts, (targets.astype(int), said), 1)
            found["confusion"] = {"classes": list(classes), "counts": counts.tolist()}
        return found
    predicted, true = last.reshape(targets.shape), targets
    if job.recipe.model.kind == "poisson":
        predicted = np.exp(np.clip(predicted, -700, 700))
    elif job.splits.units is not None:
        predicted, true = job.splits.units.undone(predicted), job.splits.units.undone(true)
    every = -(-len(true) // MOST_POINTS)
    return {"predictions": {"said": predicted[::every].tolist(), "true": true[::every].tolist(), "rows": len(true)}}


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Of each class, `(rows, C)`: from log odds `(rows,)` of the second of two, or logits `(rows, C)`."""
    logits = np.column_stack([np.zeros(len(outputs)), outputs]) if outputs.ndim == 1 else outputs
    return np.asarray(jax.nn.softmax(logits, axis=1))


def calibration(said: np.ndarray, true: np.ndarray, weights: np.ndarray) -> list[list[float]]:
    """Bins of equal numbers of rows: mean probability said, share that came true, by what rows count; rows."""
    if said.shape[1] == 2:
        sure, right = said[:, 1], true == 1
    else:
        sure, right = said.max(axis=1), said.argmax(axis=1) == true
    order = np.argsort(sure, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    return [[*(float(np.average(x[part], weights=weights[part])) for x in (sure, right)), len(part)] for part in parts]


def area_under_curve(outputs: np.ndarray, true: np.ndarray) -> float:
    """The area under the receiver operating characteristic of two classes; NaN where the rows have only one."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(true)) < 2 or not np.all(np.isfinite(outputs)):
        return float("nan")
    score = outputs if outputs.ndim == 1 else outputs[:, 1] - outputs[:, 0]
    return float(roc_auc_score(true, score))
