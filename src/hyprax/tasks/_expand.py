"""Rational pieces expanded in polynomials with a proven radius."""

from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

import numpy as np

from . import _bernstein as bernstein
from ._bernstein import UNIT, Array
from ._pieces import Pieces

P = TypeVar("P", bound=Pieces)

_HALVINGS = 40


@lru_cache(maxsize=64)
def interpolation(degree: int) -> tuple[Array, Array]:
    """Chebyshev points of the first kind on [0, 1], and the matrix from values there to Bernstein coefficients."""
    nodes = 0.5 - 0.5 * np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    basis = np.stack(
        [bernstein.evaluate(np.broadcast_to(row, (degree + 1, degree + 1)), nodes) for row in np.eye(degree + 1)]
    )
    return nodes, np.linalg.inv(basis)


def interpolate(values: Array, degree: int) -> Array:
    """Bernstein coefficients of the polynomials with the given values (rows) at the points of `interpolation`.

    Refined once, so that the polynomials meet the values up to the rounding of their evaluation.
    """
    nodes, inverse = interpolation(degree)
    rows = values @ inverse
    met = np.stack([bernstein.evaluate(rows, np.full(len(rows), t)) for t in nodes], axis=1)
    return rows + (values - met) @ inverse


def expand_rationals(f: P, degree: int, tolerance: float) -> P:
    """See [`PiecewiseFunction.to_polynomials`][hyprax.tasks.PiecewiseFunction.to_polynomials]."""
    nodes, _ = interpolation(degree)
    size = float(np.max(np.abs(f.hull())))
    for attempt in range(_HALVINGS + 1):
        top, bottom = f.numerator, f.denominator
        assert bottom is not None
        t = np.broadcast_to(nodes, (f.n_pieces, nodes.size))
        values = np.stack([bernstein.evaluate(top, x) / bernstein.evaluate(bottom, x) for x in t.T], axis=1)
        p = interpolate(values, degree)
        known = bernstein.product(p, bottom)
        rest = bernstein.elevate(top, known.shape[1] - 1) - known
        # Rounding of the product and of the elevation: at most 4 (n + 1) operations on terms of these sizes.
        lost = (
            4
            * known.shape[1]
            * UNIT
            * (np.max(np.abs(top), axis=1) + np.max(np.abs(p), axis=1) * np.max(bottom, axis=1))
        )
        grown = (_largest(rest) + lost) / np.min(bottom, axis=1)
        bad = grown > tolerance * size
        middle = 0.5 * (f.breakpoints[:-1] + f.breakpoints[1:])
        bad &= (middle > f.breakpoints[:-1]) & (middle < f.breakpoints[1:])
        if attempt == _HALVINGS or not bad.any():
            return replace(f, numerator=p, denominator=None, radius=np.nextafter(f.radius + grown, np.inf))
        f = f.refine(np.union1d(f.breakpoints, middle[bad]))
    raise AssertionError("unreachable")


def _largest(rows: Array) -> Array:
    """Bound of `max |p|` of each row: the largest coefficient after cutting [0, 1] in eight, rounding included."""
    lost = 3 * bernstein.rounding(rows)
    parts = [rows]
    for _ in range(3):
        parts = [half for part in parts for half in bernstein.split(part, np.full(len(part), 0.5))]
    return np.max([np.max(np.abs(part), axis=1) for part in parts], axis=0) + lost
