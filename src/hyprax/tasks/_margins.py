"""Classification margins along the hyperparameter, several an example, and the 0-1 loss of their certain signs."""

from collections.abc import Sequence

import numpy as np

from ._bernstein import UNIT, Array, rounding, split
from ._piecewise import PiecewiseFunction
from ._zero_one import steps

_RESOLUTION = 2.0**-30
"""Width, as a part of its piece, of the bracket that a change of sign is caught in."""


def classes_of(targets: Array) -> Array | None:
    """(n,): 0 or 1 for one column of -1 and +1, the place of the 1 for one-hot rows; `None` for any other targets."""
    if targets.shape[1] == 1:
        return (targets[:, 0] > 0).astype(int) if np.all(np.abs(targets) == 1) else None
    one_hot = np.all((targets == 0) | (targets == 1)) and np.all(targets.sum(axis=1) == 1)
    return targets.argmax(axis=1) if one_hot else None


def margins(out: Array, targets: Array, truth: Array) -> Array:
    """(..., R) from predictions (..., m, K): `y out` for one output, else `out_y - out_c` for c != y, row by row.

    A row is right where all of its margins are positive.
    """
    if out.shape[-1] == 1:
        return out[..., 0] * targets[:, 0]
    rows, k = np.arange(len(truth)), out.shape[-1]
    others = (truth[:, None] + np.arange(1, k)) % k
    gaps = out[..., rows, truth][..., None] - out[..., rows[:, None], others]
    return gaps.reshape(*out.shape[:-2], -1)


def margin_radius(radius: Array, n_outputs: int) -> Array:
    """(R,) from the Euclidean errors (m,) of rows of outputs: a difference moves by at most sqrt(2) times that."""
    if n_outputs == 1:
        return radius
    return np.sqrt(2.0) * (1 + 1e-15) * np.repeat(radius, n_outputs - 1)


def error_rate(edges: Array, rows: Sequence[Array], radii: Sequence[Array], m: int) -> PiecewiseFunction:
    """`(1/m) #{rows predicted wrongly}`: constant between brackets, in which it is enclosed.

    **Arguments:** `edges` (P + 1,); for each piece Bernstein coefficients (R, D + 1) of the margins and their radii
    (R,), R a multiple of m.
    """
    parts = [_on_piece(*x, m) for x in zip(edges[:-1].tolist(), edges[1:].tolist(), rows, radii, strict=True)]
    ends = np.concatenate([parts[0][0][:1], *(b[1:] for b, _, _ in parts)])
    low, high = np.concatenate([x for _, x, _ in parts]), np.concatenate([x for _, _, x in parts])
    return steps(ends, low, high)


def _on_piece(lo: float, hi: float, rows: Array, radius: Array, m: int) -> tuple[Array, Array, Array]:
    """Breakpoints and bounds on one piece: the share of rows certainly wrong, and of those not certainly right."""
    # A tick is placed on the domain within rounding; what that shift can do to a margin is added to its radius.
    shift = 4 * UNIT * max(abs(lo), abs(hi)) / (hi - lo)
    slope = (rows.shape[1] - 1) * np.max(np.abs(np.diff(rows, axis=1)), axis=1, initial=0.0)
    who, start, end, sign = certain_signs(rows, radius + shift * slope)
    ticks = np.unique(np.concatenate([[0.0, 1.0], start, end]))
    per_row = len(rows) // m
    wrong, right = np.zeros((len(ticks) - 1, m), dtype=bool), np.ones((len(ticks) - 1, m), dtype=bool)
    first, last = np.searchsorted(ticks, start), np.searchsorted(ticks, end)
    for i, j, row, s in zip(first, last, who // per_row, sign, strict=True):
        if s <= 0:
            right[i:j, row] = False
        if s < 0:
            wrong[i:j, row] = True
    low, high = np.sum(wrong, axis=1) / m, np.sum(~right, axis=1) / m
    ends = lo + ticks * (hi - lo)
    ends[0], ends[-1] = lo, hi
    # On a piece so thin that ticks fall on one number, a part that vanishes leaves its bounds to the part after it.
    distinct = np.unique(ends)
    group = np.minimum(np.searchsorted(distinct, ends[:-1]), len(distinct) - 2)
    lows, highs = np.full(len(distinct) - 1, np.inf), np.full(len(distinct) - 1, -np.inf)
    np.minimum.at(lows, group, low)
    np.maximum.at(highs, group, np.maximum(low, high))
    return distinct, lows, highs


def certain_signs(rows: Array, radius: Array) -> tuple[Array, Array, Array, Array]:
    """Parts of [0, 1] on which `p + e`, |e| <= radius, is certainly positive (+1), negative (-1), or undecided (0).

    Halving with the range of the Bernstein coefficients; parts thinner than 2^-30, or on which p stays within the
    radius of zero, are left undecided. Returns rows, starts, ends, signs: for each row a partition of [0, 1].
    """
    owner = np.arange(len(rows))
    lo, hi = np.zeros(len(owner)), np.ones(len(owner))
    # Every halving may round once: thirty of them, and the ticks themselves.
    slack = radius + 40 * rounding(rows)
    found: list[tuple[Array, Array, Array, Array]] = []
    while owner.size:
        least, most, e = rows.min(axis=1), rows.max(axis=1), slack[owner]
        sign = np.where(least > e, 1, np.where(most < -e, -1, 0))
        done = (sign != 0) | (hi - lo <= _RESOLUTION) | ((least >= -e) & (most <= e))
        found.append((owner[done], lo[done], hi[done], sign[done]))
        owner, rows, lo, hi = owner[~done], rows[~done], lo[~done], hi[~done]
        left, right = split(rows, np.full(owner.size, 0.5))
        middle = 0.5 * (lo + hi)
        rows, owner = np.concatenate([left, right]), np.concatenate([owner, owner])
        lo, hi = np.concatenate([lo, middle]), np.concatenate([middle, hi])
    who, start, end, sign = (np.concatenate(x) for x in zip(*found, strict=True))
    return who, start, end, sign
