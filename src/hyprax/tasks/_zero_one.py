"""The 0-1 loss of a classifier whose margins are piecewise polynomials of the hyperparameter, one for each example.

Roots are isolated to rounding, on all pieces at once; `_margins` serves several margins an example.
"""

import numpy as np

from . import _bernstein as bernstein
from ._bernstein import Array
from ._piecewise import PiecewiseFunction

_SAFETY = 4
"""Roundings of a margin counted before its sign is certain."""


def zero_one_loss(edges: Array, margins: Array, radius: Array, certified: bool = True) -> PiecewiseFunction:
    r"""`f(α) = (1/m) #{i : margin_i(α) <= 0}`, constant between the roots of the margins.

    An example is certainly right where `margin - r > 0` and certainly wrong where `margin + r < 0`, r its radius with
    the rounding; the roots of both are isolated by subdivision. Between them it is undecided and counts as [0, 1]:
    slivers of the width of the rounding around each jump, whose enclosure has both values.

    **Arguments:**

    - `edges`: (K + 1,), the pieces.
    - `margins`: (K, m, D + 1), Bernstein coefficients of the margin of each example on each piece.
    - `radius`: (K, m), how far the margin may be from it.
    - `certified`: whether those radii are proved.
    """
    n_pieces, m, _ = margins.shape
    flat = margins.reshape(n_pieces * m, -1)
    shift = (radius.ravel() + _SAFETY * bernstein.rounding(flat))[:, None]
    right = _signs(edges, flat - shift, m)  # steps of #{certainly right}
    wrong = _signs(edges, -flat - shift, m)  # steps of #{certainly wrong}
    cuts = np.union1d(edges, np.concatenate([right[0], wrong[0]]))
    n_right, n_wrong = _count(cuts, *right), _count(cuts, *wrong)
    lo, hi = n_wrong / m, 1.0 - n_right / m
    return steps(cuts, lo, np.maximum(lo, hi), certified)


def steps(edges: Array, low: Array, high: Array, certified: bool = True) -> PiecewiseFunction:
    """A function between `low` and `high` on each piece; neighbours that say the same are one piece."""
    fresh = np.append(True, (np.diff(low) != 0) | (np.diff(high) != 0))
    return PiecewiseFunction.from_enclosures(
        np.append(edges[:-1][fresh], edges[-1]), low[fresh], high[fresh], certified
    )


def _signs(edges: Array, rows: Array, m: int) -> tuple[Array, Array]:
    """Where each row (piece k, example i at k m + i) is positive: places, and steps +1 (begins) or -1 (ends)."""
    who, where = bernstein.roots(rows, np.zeros(len(rows)))
    every = np.arange(len(rows))
    owner, t = np.concatenate([every, who]), np.concatenate([np.zeros(len(rows)), where])
    # Order by example, then by piece, then by place, so that neighbours in time are neighbours in the list.
    order = np.lexsort((t, owner // m, owner % m))
    owner, t = owner[order], t[order]
    last = np.append(owner[1:] != owner[:-1], True)
    end = np.where(last, 1.0, np.append(t[1:], 1.0))
    state = (bernstein.evaluate(rows[owner], 0.5 * (t + end)) > 0).astype(int)
    begins = np.append(True, owner[1:] % m != owner[:-1] % m)
    step = state - np.where(begins, 0, np.append(0, state[:-1]))
    left, right = edges[owner // m], edges[owner // m + 1]
    place = np.minimum(left + t * (right - left), right)
    return place[step != 0], step[step != 0]


def _count(cuts: Array, place: Array, step: Array) -> Array:
    """The running sum of the steps on each of the pieces between `cuts`."""
    total = np.zeros(len(cuts))
    np.add.at(total, np.searchsorted(cuts, place), step)
    return np.cumsum(total)[:-1]
