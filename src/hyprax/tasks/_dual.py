"""The duals of one task that share their inner solutions: the squared loss, and the 0-1 loss of a classifier."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._bernstein import Array
from ._piecewise import PiecewiseFunction
from ._series import Scores, certain_signs

_RESOLUTION = 2.0**-30
"""Width, as a part of its piece, of the bracket that a change of the 0-1 loss is caught in."""


@dataclass(frozen=True)
class ReadoutDuals:
    """What one sweep over the hyperparameter gives for a task with a linear read-out."""

    squared: PiecewiseFunction
    """`alpha -> mean_j ||out_j(alpha) - y_j||^2` over the validation rows."""
    zero_one: PiecewiseFunction | None
    """`alpha -> share of the validation rows predicted wrongly`, piecewise constant; a change of a prediction is caught in
    a bracket of 2^-30 of a piece, on which the loss is only enclosed. `None` for a regression."""

    def __repr__(self) -> str:
        return f"<ReadoutDuals: squared {self.squared}, zero_one {self.zero_one}>"


def encode(labels: Any, n_rows: int, name: str) -> tuple[Array, Array | None, Array]:
    """Targets (n, K), classes (n,) or None, and the class values, from what the user gave.

    Integers (or booleans or strings) are classes: two become one column of -1 and +1, more become one-hot columns. Floats,
    (n,) or (n, K), are the targets of a regression.
    """
    y = np.asarray(labels)
    if y.shape[:1] != (n_rows,) or y.ndim > 2 or (y.ndim == 2 and y.dtype.kind != "f"):
        raise ValueError(f"{name} must hold one label (or one row of float targets) for each of {n_rows} rows; got {y.shape}.")
    if y.dtype.kind == "f":
        if not np.all(np.isfinite(y)):
            raise ValueError(f"{name} must be finite; entry {np.argwhere(~np.isfinite(y))[0].tolist()} is not.")
        return y.astype(np.float64).reshape(n_rows, -1), None, np.zeros(0)
    classes, index = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{name} holds {len(classes)} class; at least two are needed (floats mean a regression).")
    if len(classes) == 2:
        return (2.0 * index - 1.0)[:, None], index, classes
    return np.eye(len(classes))[index], index, classes


def encode_pair(train: Any, n_train: int, validation: Any, n_validation: int) -> tuple[Array, Array, Array | None]:
    """Training targets, validation targets and validation classes, coded alike."""
    if n_train == 0 or n_validation == 0:
        raise ValueError(f"a task needs training and validation rows; got {n_train} and {n_validation}.")
    y = np.asarray(train)
    v = np.asarray(validation)
    if (y.dtype.kind == "f") != (v.dtype.kind == "f"):
        raise ValueError("training and validation labels must both be floats (regression) or both classes.")
    if y.dtype.kind == "f":
        targets, check = encode(y, n_train, "y_train")[0], encode(v, n_validation, "y_val")[0]
        if targets.shape[1] != check.shape[1]:
            raise ValueError(f"y_train has {targets.shape[1]} outputs and y_val {check.shape[1]}: they must agree.")
        return targets, check, None
    if v.shape != (n_validation,):
        raise ValueError(f"y_val must hold one label for each of {n_validation} rows; got {v.shape}.")
    targets, _, classes = encode(y, n_train, "y_train")
    known = np.isin(v, classes)
    if not np.all(known):
        raise ValueError(f"y_val holds the class {v[~known][0]!r}, which the training rows do not; allowed are {classes.tolist()}.")
    index = np.searchsorted(classes, v)
    check = (2.0 * index - 1.0)[:, None] if len(classes) == 2 else np.eye(len(classes))[index]
    return targets, check, index


def assemble(pieces: list[tuple[float, float, Scores]], n_rows: int, classifies: bool) -> ReadoutDuals:
    """Join the scores of the pieces of a domain."""
    edges = np.array([pieces[0][0], *(hi for _, hi, _ in pieces)])
    squared = PiecewiseFunction(
        edges,
        np.concatenate([s.loss for _, _, s in pieces]),
        None,
        np.array([s.loss_radius for _, _, s in pieces]),
    )
    if not classifies:
        return ReadoutDuals(squared, None)
    parts = [_zero_one(lo, hi, s, n_rows) for lo, hi, s in pieces]
    breaks = np.concatenate([parts[0][0][:1], *(b[1:] for b, _, _ in parts)])
    low, high = np.concatenate([x for _, x, _ in parts]), np.concatenate([x for _, _, x in parts])
    # Neighbours that say the same are one piece.
    keep = np.concatenate([[True], (np.diff(low) != 0) | (np.diff(high) != 0)])
    breaks = np.append(breaks[:-1][keep], breaks[-1])
    return ReadoutDuals(squared, PiecewiseFunction.from_enclosures(breaks, low[keep], high[keep]))


def _zero_one(lo: float, hi: float, scores: Scores, n_rows: int) -> tuple[Array, Array, Array]:
    """Breakpoints and bounds of the 0-1 loss on one piece: rows certainly wrong, and rows possibly wrong."""
    per_row = len(scores.margins) // n_rows
    who, start, end, sign = certain_signs(scores.margins, scores.margin_radius, _RESOLUTION)
    ticks = np.unique(np.concatenate([[0.0, 1.0], start, end]))
    wrong = np.zeros((len(ticks) - 1, n_rows), dtype=bool)
    right = np.ones_like(wrong)
    first, last = np.searchsorted(ticks, start), np.searchsorted(ticks, end)
    # A row is wrong where one of its margins is negative, right where all are positive.
    for w, i, j, s in zip(who // per_row, first, last, sign, strict=True):
        if s < 0:
            wrong[i:j, w] = True
        if s <= 0:
            right[i:j, w] = False
    breaks = lo + ticks * (hi - lo)
    breaks[0], breaks[-1] = lo, hi
    # On pieces so thin that ticks fall on one number, the bounds of the parts that vanish are kept by their neighbours.
    low, high = np.sum(wrong, axis=1) / n_rows, np.sum(~right, axis=1) / n_rows
    group = np.searchsorted(np.unique(breaks), breaks[:-1])
    distinct = np.unique(breaks)
    lows, highs = np.full(len(distinct) - 1, np.inf), np.full(len(distinct) - 1, -np.inf)
    group = np.minimum(group, len(distinct) - 2)
    np.minimum.at(lows, group, low)
    np.maximum.at(highs, group, high)
    return distinct, lows, highs
