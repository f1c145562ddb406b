"""The rows that judge: folds of a splitter of scikit-learn, or drawn here, as masks of training and held-out rows."""

import numbers
from typing import Any

import numpy as np

from ..search._cross_validated import dealt_folds, given_folds

Masks = list[tuple[np.ndarray, np.ndarray]]
"""Pairs (training, held out) of booleans, one a row."""


def masks(cv: Any, criterion: str, rows: int, labels: np.ndarray, classes: bool, groups: Any, seed: int) -> Masks:
    """Folds of an estimator's `cv`: drawn and dealt out by class for a number, else the splitter's own.

    A class of fewer than three rows is never held out, so every fold is fitted on all classes.

    **Raises:** `ValueError` for numbers out of range, folds that a splitter cannot make, or that lack a class.
    """
    rng = np.random.default_rng(seed)
    strata = labels if classes else None
    if criterion == "holdout":
        found = dealt_folds(min(3, rows), rng.permutation(rows), strata)[:1]
    elif cv is None or (isinstance(cv, numbers.Integral) and not isinstance(cv, bool)):
        count = 5 if cv is None else int(cv)
        if count < 2:
            raise ValueError(f"cv must be an integer >= 2, a splitter or pairs of index arrays; got {cv}.")
        if groups is not None:
            found = by_group(min(count, rows), groups, rows, rng)
        else:
            found = dealt_folds(min(count, rows), rng.permutation(rows), strata)
    else:
        found = given_folds(cv, labels, groups)
    if not classes:
        return found
    kinds, counts = np.unique(labels, return_counts=True)
    # Nested folds leave out two parts, and need the class in the rest.
    for few in (2, 1):
        alone = np.isin(labels, kinds[counts <= few])
        if not alone.all():
            break
    found = [(training | alone, held & ~alone) for training, held in found]
    found = [(training, held) for training, held in found if held.any()]
    for number, (training, _) in enumerate(found):
        absent = np.setdiff1d(kinds, labels[training])
        if absent.size:
            raise ValueError(
                f"cv must leave every class among the training rows of each fold; fold {number} has none of "
                f"{absent.size} of them. Use a stratified splitter, or fewer folds."
            )
    if not found:
        raise ValueError("cv must hold out rows of some class that has two rows or more; every class has a single row.")
    return found


def by_group(count: int, groups: Any, rows: int, rng: np.random.Generator) -> Masks:
    """Whole groups of rows dealt out over the folds."""
    labels, index = np.unique(np.asarray(groups), return_inverse=True)
    if index.shape != (rows,):
        raise ValueError(f"groups must hold a label for each of the {rows} rows; got the shape {index.shape}.")
    if len(labels) < 2:
        raise ValueError("groups must hold two labels or more; got one.")
    parts = dealt_folds(min(count, len(labels)), rng.permutation(len(labels)), None)
    return [(training[index], held[index]) for training, held in parts]
