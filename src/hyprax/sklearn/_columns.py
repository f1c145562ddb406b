"""Columns brought to spread 1, and coefficients back to the user's units: penalties act on the former."""

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

Design = Any
"""A dense float64 matrix, or a CSR matrix."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """x ↦ (x - centre)/scale, column by column; sparse columns are scaled alone, which an intercept makes the same."""

    centre: np.ndarray
    scale: np.ndarray

    def apply(self, x: Design) -> Design:
        if sparse.issparse(x):
            return sparse.csr_array(x @ sparse.diags_array(1 / self.scale))
        return x / self.scale - self.centre / self.scale

    def coefficients(self, weights: np.ndarray, intercept: Any) -> tuple[np.ndarray, Any]:
        """Those of the columns themselves: `weights` is (d,) or (d, C)."""
        scale, centre = (np.expand_dims(v, tuple(range(1, weights.ndim))) for v in (self.scale, self.centre))
        found = weights / scale
        return found, intercept - np.sum(centre * found, axis=0)


def columns(x: Design, weights: np.ndarray | None, intercept: bool, standardise: bool) -> Columns:
    """Weighted means and standard deviations; without an intercept root mean squares, and no means.

    A column that is constant but for rounding has the scale 1: centred it is zero, and so is its coefficient.
    """
    d = x.shape[1]
    plain = Columns(np.zeros(d), np.ones(d))
    if not standardise:
        return plain
    largest = np.abs(x).max(axis=0)
    largest = np.asarray(largest.todense() if sparse.issparse(largest) else largest, float).ravel()
    largest = np.where(largest > 0, largest, 1.0)
    share = np.full(x.shape[0], 1 / x.shape[0]) if weights is None else weights / weights.sum()
    unit = x @ sparse.diags_array(1 / largest) if sparse.issparse(x) else x / largest
    mean = np.asarray(share @ unit).ravel()
    square = np.asarray(share @ (unit.multiply(unit) if sparse.issparse(unit) else unit * unit)).ravel()
    if not intercept:
        return Columns(np.zeros(d), np.where(square > 0, largest * np.sqrt(square), 1.0))
    variance = square - mean**2 if sparse.issparse(x) else share @ (unit - mean) ** 2
    rounding = 10 * x.shape[0] * np.finfo(float).eps * np.abs(mean)
    constant = variance <= (np.finfo(float).eps * 100 if sparse.issparse(x) else rounding**2)
    scale = np.where(constant, 1.0, largest * np.sqrt(np.where(constant, 1.0, variance)))
    centre = np.zeros(d) if sparse.issparse(x) else np.where(constant, x[0], largest * mean)
    return Columns(centre, scale)


def with_blanks(x: Design, ones: np.ndarray | None, rows: int, width: int) -> Design:
    """X beside the column of the intercept, then zeros: rows and columns of zeros change no fit."""
    n, d = x.shape
    if sparse.issparse(x):
        parts = [x] if ones is None else [x, sparse.csr_array(ones[:, None])]
        joined = sparse.csr_array(sparse.hstack(parts))
        joined.resize((rows, width))
        return joined
    out = np.zeros((rows, width))
    out[:n, :d] = x
    if ones is not None:
        out[:n, d] = ones
    return out
