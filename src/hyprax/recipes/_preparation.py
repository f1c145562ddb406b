"""From inputs as they are read to the columns of a model, by what the training rows say."""

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Columns moved and divided as training rows say: (x 2^-size - low) / spread; `fill` stands where x is NaN."""

    fill: np.ndarray
    size: np.ndarray
    low: np.ndarray
    spread: np.ndarray

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        inputs = np.where(np.isnan(inputs), self.fill, inputs)
        with np.errstate(over="ignore"):
            return (np.ldexp(inputs, -self.size) - self.low) / self.spread  # a power of two a column: exact

    def undone(self, scaled: np.ndarray) -> np.ndarray:
        """The numbers that were scaled to these."""
        return np.ldexp(scaled * self.spread + self.low, self.size)


def scaling(inputs: np.ndarray, scale: str) -> Scaling:
    """By training rows, whatever their size; constant columns are moved alone.

    Not the scalers of scikit-learn: their variances overflow from 1e154 on, and a range below 2e-15 counts as none.
    """
    columns = inputs.shape[1]
    gone = np.isnan(inputs)
    known = np.where(gone, 0.0, inputs)
    top = np.max(np.abs(known), axis=0, initial=0.0)
    size = np.frexp(top)[1]
    counts = np.maximum((~gone).sum(axis=0), 1)
    fill = np.ldexp(np.ldexp(known, -size).sum(axis=0) / counts, size)
    zero, one, none = np.zeros(columns), np.ones(columns), np.zeros(columns, int)
    if scale == "none":
        return Scaling(fill, none, zero, one)
    if scale == "unit":
        return Scaling(fill, none, zero, one * (np.max(top, initial=0.0) or 1.0))
    known = np.ldexp(np.where(gone, fill, inputs), -size)
    low, high = known.min(axis=0), known.max(axis=0)
    middle, spread = (low, high - low) if scale == "minmax" else (known.mean(axis=0), known.std(axis=0))
    constant = low == high
    return Scaling(fill, size, np.where(constant, low, middle), np.where(constant, 1.0, spread))


@dataclasses.dataclass(frozen=True)
class Preparation:
    """From inputs as they are read to the columns of a model: scaled, expanded and scaled again, a column of ones."""

    first: Scaling
    expand: str
    second: Scaling | None
    intercept: bool

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        found = self.first(inputs)
        if self.second is not None:
            found = self.second(expanded(found, self.expand))
        return np.concatenate([found, np.ones((len(found), 1))], axis=1) if self.intercept else found


def expanded(inputs: np.ndarray, expand: str) -> np.ndarray:
    """Columns, their squares, and their pairwise products."""
    pairs = pairs_of(inputs.shape[1], expand)
    left, right = (np.asarray([pair[i] for pair in pairs], int) for i in range(2))
    with np.errstate(over="ignore"):
        return np.concatenate([inputs, inputs**2, inputs[:, left] * inputs[:, right]], axis=1)


def pairs_of(count: int, expand: str) -> list[tuple[int, int]]:
    """The columns that are multiplied."""
    return list(itertools.combinations(range(count), 2)) if expand == "products" else []
