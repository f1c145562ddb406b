"""Extrema, level sets and shape of a piecewise function, with rounding accounted for."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from . import _bernstein as bernstein
from ._bernstein import Array
from ._pieces import TIGHT, Extremum, Pieces

P = TypeVar("P", bound=Pieces)

_LEVELS = 60
_TOGETHER = 256
"""Functions whose pieces are worked on at once."""
_SLOPE = 1e-7
"""One-sided derivatives that differ by less than this part of their size are taken as equal."""


def minimise(f: Pieces) -> Extremum:
    """The global minimum: pieces of degree <= 2 in closed form, others by subdivision of those that can hold it."""
    return next(minimise_all([f]))


def minimise_all(functions: Sequence[Pieces]) -> Iterator[Extremum]:
    """The global minimum of each function, in their order: the pieces of many are worked on at once."""
    for start in range(0, len(functions), _TOGETHER):
        block = functions[start : start + _TOGETHER]
        groups: dict[tuple[bool, int], list[int]] = {}
        for i, f in enumerate(block):
            groups.setdefault((f.denominator is None, f.numerator.shape[1]), []).append(i)
        found: dict[int, Extremum] = {}
        for group in groups.values():
            found.update(zip(group, _minima(_Rows([block[i] for i in group])), strict=True))
        yield from (found[i] for i in range(len(block)))


class _Rows:
    """The pieces of several functions, one below another."""

    def __init__(self, functions: Sequence[Pieces]):
        self.functions = functions
        self.top = np.concatenate([f.numerator for f in functions])
        below = [f.denominator for f in functions if f.denominator is not None]
        self.bottom = np.concatenate(below) if below else None
        self.radius = np.concatenate([f.radius for f in functions])
        self.error = np.concatenate([f.error() for f in functions])
        counts = [f.n_pieces for f in functions]
        self.first = np.cumsum([0, *counts[:-1]])
        self.owner = np.repeat(np.arange(len(functions)), counts)

    def least(self, values: Array) -> tuple[Array, Array]:
        """The smallest of the values of each function's pieces, and its first piece with it."""
        low = np.minimum.reduceat(values, self.first)
        at = np.flatnonzero(values == low[self.owner])
        return low, at[np.searchsorted(self.owner[at], np.arange(len(self.first)))]

    def extrema(self, k: Array, t: Array, value: Array, lower: Array) -> list[Extremum]:
        """From the piece k of each, the place t in it, the value there and the lower bound."""
        found = []
        upper = np.nextafter(value + self.error[k], np.inf).tolist()
        lower = np.nextafter(lower, -np.inf).tolist()
        values, places = value.tolist(), t.tolist()
        for i, (f, piece) in enumerate(zip(self.functions, (k - self.first).tolist(), strict=True)):
            a, b = float(f.breakpoints[piece]), float(f.breakpoints[piece + 1])
            hyper = b if places[i] == 1.0 else min(a + places[i] * (b - a), b)
            found.append(Extremum(hyper, values[i], lower[i], upper[i]))
        return found


def _minima(rows: _Rows) -> list[Extremum]:
    error, owner, every = rows.error, rows.owner, np.arange(len(rows.functions))
    hull = rows.top if rows.bottom is None else rows.top / rows.bottom
    if rows.bottom is None and rows.top.shape[1] <= 3:
        t, value = bernstein.quadratic_minima(rows.top)
        _, best = rows.least(value + error)
        # The computed vertex is within 8 u max|b| / curvature of the true one: a loss below the rounding of the value.
        lower, _ = rows.least(np.maximum(value - 2 * error + rows.radius, hull.min(axis=1) - rows.radius))
        return rows.extrema(best, t[best], value[best], lower)
    _, best = rows.least(np.minimum(hull[:, 0], hull[:, -1]) + error)
    ends = hull[best][:, [0, -1]]
    place, upper = np.argmin(ends, axis=1).astype(np.float64), np.min(ends, axis=1) + error[best]
    # 60 halvings lose n u max|b| each, so four times the rounding already counted.
    deep = error + 4 * (error - rows.radius)
    k = np.flatnonzero(hull.min(axis=1) - deep <= upper[owner])
    top, bottom = rows.top[k], None if rows.bottom is None else rows.bottom[k]
    lo, width, lower = np.zeros(k.size), 1.0, upper.copy()
    for level in range(_LEVELS + 1):
        quotient = top if bottom is None else top / bottom
        low, small = quotient.min(axis=1), np.minimum(quotient[:, 0], quotient[:, -1])
        who, reached = owner[k], small + error[k]
        met = upper.copy()
        np.minimum.at(met, who, reached)
        i = np.flatnonzero((reached == met[who]) & (met < upper)[who])
        i = i[np.unique(who[i], return_index=True)[1]]
        upper[who[i]], best[who[i]] = reached[i], k[i]
        place[who[i]] = np.where(quotient[i, 0] == small[i], lo[i], lo[i] + width)
        open_ = low - deep[k] <= upper[who]
        # Parts known up to rounding need no further halving.
        settled = (low >= small - 0.5 * (error[k] - rows.radius[k])) | (level == _LEVELS)
        np.minimum.at(lower, who[open_ & settled], (low - deep[k])[open_ & settled])
        keep = open_ & ~settled
        if not keep.any():
            break
        half = np.full(int(keep.sum()), 0.5)
        top = np.concatenate(bernstein.split(top[keep], half))
        bottom = None if bottom is None else np.concatenate(bernstein.split(bottom[keep], half))
        width *= 0.5
        lo, k = np.concatenate([lo[keep], lo[keep] + width]), np.concatenate([k[keep], k[keep]])
    # Values are flat at a minimum, so the place is found by the slope.
    top, bottom = rows.top[best], None if rows.bottom is None else rows.bottom[best]
    who, where = _critical(top, bottom)
    who, where = np.concatenate([every, who]), np.concatenate([place, where])
    value = bernstein.evaluate(top[who], where)
    value = value if bottom is None else value / bernstein.evaluate(bottom[who], where)
    order = np.lexsort((value, who))
    i = order[np.searchsorted(who[order], every)]
    return rows.extrema(best, where[i], value[i], lower)


def _critical(top: Array, bottom: Array | None) -> tuple[Array, Array]:
    """Places in (0, 1) where the slope of the pieces vanishes: (row, t)."""
    slope, noise = bernstein.derivative(top), 2 * top.shape[1] * bernstein.rounding(top)
    if bottom is not None:
        size = np.max(np.abs(top), axis=1) * np.max(bottom, axis=1)
        slope = bernstein.product(slope, bottom) - bernstein.product(top, bernstein.derivative(bottom))
        noise = 16 * slope.shape[1] * top.shape[1] * bernstein.UNIT * size
    return bernstein.roots(slope, noise)


def level_set(f: Pieces, z: float) -> Array:
    """See [`PiecewiseFunction.level_set`][hyprax.tasks.PiecewiseFunction.level_set]."""
    if not np.isfinite(z):
        raise ValueError(f"level_set needs a finite threshold; got {z!r}.")
    error, hull = f.error(), f.hull()
    raised = z + 2 * error - f.radius  # the rounding twice: of the value, and of the place of the root
    inside, mixed = (
        hull.max(axis=1) <= raised,
        np.flatnonzero((hull.min(axis=1) <= raised) & (hull.max(axis=1) > raised)),
    )
    weight = np.ones_like(f.numerator[mixed]) if f.denominator is None else f.denominator[mixed]
    who, where = bernstein.roots(f.numerator[mixed] - raised[mixed, None] * weight, np.zeros(mixed.size))
    # Cut the mixed pieces at the roots; a part belongs to the set if its middle does.
    k = np.concatenate([np.flatnonzero(inside), mixed[who], mixed])
    start = np.concatenate([np.zeros(int(inside.sum())), where, np.zeros(mixed.size)])
    order = np.lexsort((start, k))
    k, start = k[order], start[order]
    last = np.append(k[1:] != k[:-1], True) if k.size else np.zeros(0, dtype=bool)
    end = np.where(last, 1.0, np.append(start[1:], 1.0)) if k.size else start
    keep = inside[k] | (f.evaluate(k, 0.5 * (start + end)) <= raised[k])
    k, start, end = k[keep], start[keep], end[keep]
    left, right = f.breakpoints[k], f.breakpoints[k + 1]
    lo = left + start * (right - left)
    hi = np.where(end == 1.0, right, np.minimum(left + end * (right - left), right))
    if not k.size:
        return np.zeros((0, 2))
    apart = lo[1:] > hi[:-1]
    return np.stack([lo[np.append(True, apart)], hi[np.append(apart, True)]], axis=1)


def undecided(f: Pieces, tolerance: float | None) -> Array:
    """See [`PiecewiseFunction.undecided`][hyprax.tasks.PiecewiseFunction.undecided]."""
    wide = f.error() > _tolerance(f, tolerance)
    return _merged(f.breakpoints[:-1][wide], f.breakpoints[1:][wide])


def _tolerance(f: Pieces, tolerance: float | None) -> float:
    if tolerance is None:
        return TIGHT * f.size
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be >= 0; got {tolerance!r}.")
    return tolerance


def _merged(left: Array, right: Array) -> Array:
    """Ascending closed intervals joined where they touch."""
    apart = left[1:] > right[:-1]
    return np.stack([left[np.append(True, apart)[: left.size]], right[np.append(apart, True)[: left.size]]], axis=1)


def jumps(f: Pieces, tolerance: float | None) -> Array:
    """See [`PiecewiseFunction.jumps`][hyprax.tasks.PiecewiseFunction.jumps]."""
    hull, error = f.hull(), f.error()
    known = np.flatnonzero(error <= _tolerance(f, tolerance))
    before, after = known[:-1], known[1:]
    step = np.abs(hull[after, 0] - hull[before, -1]) > error[after] + error[before]
    return np.stack([f.breakpoints[before + 1], f.breakpoints[after]], axis=1)[step]


def steps(f: Pieces, tolerance: float) -> tuple[Array, Array, float, float]:
    """Ends of closed intervals outside of which the pieces move by at most `slope width + slack` over a width.

    The intervals are where the pieces' middle steps by more than `tolerance`, and the undecided pieces; `slack` is the
    sum of all smaller steps, and the slope is the largest outside of the undecided pieces.
    """
    wide = f.error() > tolerance
    step = np.abs(f.hull()[1:, 0] - f.hull()[:-1, -1])
    beside = wide[1:] | wide[:-1]  # a step at the end of an undecided piece is in its interval
    large = (step > tolerance) & ~beside
    place = f.breakpoints[1:-1][large]
    left, right = np.concatenate([f.breakpoints[:-1][wide], place]), np.concatenate([f.breakpoints[1:][wide], place])
    order = np.argsort(left, kind="stable")
    slope = np.max(np.abs(bernstein.derivative(f.numerator)), axis=1) / np.diff(f.breakpoints)
    return left[order], right[order], float(np.max(slope[~wide], initial=0.0)), float(np.sum(step[~large & ~beside]))


def kinks(f: Pieces) -> Array:
    """See [`PiecewiseFunction.kinks`][hyprax.tasks.PiecewiseFunction.kinks]."""
    error = f.error()
    wide = error > _tolerance(f, None)
    hull = f.hull()
    step, both = hull[1:, 0] - hull[:-1, -1], error[1:] + error[:-1]
    width, n = np.diff(f.breakpoints), f.numerator.shape[1] - 1
    if n == 0:
        return np.zeros(0)
    first, last = n * (f.numerator[:, 1] - f.numerator[:, 0]), n * (f.numerator[:, -1] - f.numerator[:, -2])
    if f.denominator is not None:  # (N/D)' = (N' - (N/D) D') / D
        d = f.denominator
        first = (first - hull[:, 0] * n * (d[:, 1] - d[:, 0])) / d[:, 0]
        last = (last - hull[:, -1] * n * (d[:, -1] - d[:, -2])) / d[:, -1]
    before, after = last[:-1] / width[:-1], first[1:] / width[1:]
    noise = 2 * n * error / width
    turn = np.abs(after - before) > _SLOPE * np.maximum(np.abs(after), np.abs(before)) + noise[1:] + noise[:-1]
    return f.breakpoints[1:-1][turn & (np.abs(step) <= both) & ~wide[1:] & ~wide[:-1]]


def _turns(f: Pieces) -> list[tuple[float, float]]:
    """(place, value) of alternating maxima and minima, ends of the domain included, each of them certain.

    A maximum counts with the largest lower bound of the function, a minimum with the smallest upper bound, and a turn
    when the function surely falls below the one, or rises above the other. So an undecided piece adds no turn and
    hides none that its neighbours show. A plateau is one turn, at its middle.
    """
    every = np.arange(f.n_pieces)
    crossing, where = _critical(f.numerator, f.denominator)
    k = np.concatenate([every, crossing, every])
    t = np.concatenate([np.zeros(every.size), where, np.ones(every.size)])
    order = np.lexsort((t, k))
    k, t = k[order], t[order]
    values, error = f.evaluate(k, t), f.error()[k]
    places = f.breakpoints[k] + t * (f.breakpoints[k + 1] - f.breakpoints[k])
    turns: list[tuple[float, float]] = []
    direction = 0
    # [sure bound, the other bound where it was met, first and last place], with signs that make both a maximum
    top = [-np.inf, -np.inf, places[0], places[0]]
    bottom = list(top)
    for place, value, e in zip(places.tolist(), values.tolist(), error.tolist(), strict=True):
        for extreme, sign in ((top, 1), (bottom, -1)):
            if sign * value - e > extreme[1]:
                extreme[:] = [sign * value - e, sign * value + e, place, place]
            elif sign * value - e >= extreme[0]:
                extreme[0], extreme[1], extreme[3] = sign * value - e, max(extreme[1], sign * value + e), place
        if direction >= 0 and value + e < top[0]:
            turns.append((0.5 * (top[2] + top[3]), top[0]))
            direction, bottom = -1, [-value - e, -value + e, place, place]
        elif direction <= 0 and value - e > -bottom[0]:
            turns.append((0.5 * (bottom[2] + bottom[3]), -bottom[0]))
            direction, top = 1, [value - e, value + e, place, place]
    last, sign = (bottom, -1) if direction < 0 else (top, 1)
    turns.append((0.5 * (last[2] + last[3]), sign * last[0]))
    return turns


def local_maxima(f: Pieces) -> Array:
    """See [`PiecewiseFunction.local_maxima`][hyprax.tasks.PiecewiseFunction.local_maxima]."""
    turns = _turns(f)
    falling = len(turns) == 1 or turns[0][1] > turns[1][1]
    return np.array([place for place, _ in turns[0 if falling else 1 :: 2]])


def oscillations(f: Pieces) -> int:
    """See [`PiecewiseFunction.oscillations`][hyprax.tasks.PiecewiseFunction.oscillations]."""
    values = np.array([value for _, value in _turns(f)])
    if values.size < 2:
        return 0
    lo, hi = np.minimum(values[1:], values[:-1]), np.maximum(values[1:], values[:-1])
    # The most intervals (lo, hi) over one threshold: ends leave before others enter at the same value.
    place = np.concatenate([hi, lo])
    step = np.concatenate([-np.ones(hi.size), np.ones(lo.size)])
    return int(np.max(np.cumsum(step[np.lexsort((step, place))])))


def clip(dual: P, upper: float) -> P:
    """See [`PiecewiseFunction.clip`][hyprax.tasks.PiecewiseFunction.clip]."""
    low, high = dual.ranges()
    if np.max(high) <= upper:
        return dual
    sets = level_set(dual, upper)
    inside = sets[sets[:, 1] > sets[:, 0]]
    a, b = dual.domain
    cuts = inside.ravel()
    parts = dual.refine(np.union1d(dual.breakpoints, cuts[(cuts > a) & (cuts < b)]))
    middle = 0.5 * (parts.breakpoints[1:] + parts.breakpoints[:-1])
    kept = np.zeros(middle.size, dtype=bool)
    for left, right in inside:
        kept |= (middle >= left) & (middle <= right)
    low, high = parts.ranges()
    numerator = np.where(kept[:, None], parts.numerator, upper * _ones(parts))
    # `min(f, upper)` differs from f by what f exceeds `upper` by, and from `upper` by what f falls short of it.
    slack = np.where(kept, high - upper, upper - low)
    for k in np.flatnonzero(slack > 0):  # the hull of a higher degree is too wide to tell
        one = parts.restrict(*parts.breakpoints[k : k + 2])
        slack[k] = (
            -minimise(replace(one, numerator=-one.numerator)).lower - upper if kept[k] else upper - minimise(one).lower
        )
    slack = np.maximum(slack, 0.0)
    return replace(parts, numerator=numerator, radius=np.where(kept, parts.radius, 0.0) + slack)


def _ones(f: Pieces) -> Array:
    """The numerator of the function 1."""
    return np.ones_like(f.numerator) if f.denominator is None else f.denominator
