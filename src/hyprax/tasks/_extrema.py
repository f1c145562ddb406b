"""Extrema, level sets and shape of a piecewise function, with rounding accounted for."""

import numpy as np

from . import _bernstein as bernstein
from ._piecewise import Array, Extremum, PiecewiseFunction

_LEVELS = 60
_SLIVER = 1e-8
_SLOPE = 1e-7
"""One-sided derivatives that differ by less than this part of their size are taken as equal."""


def minimise(f: PiecewiseFunction) -> Extremum:
    """The global minimum: pieces of degree <= 2 in closed form, others by subdivision of those that can hold it."""
    error, hull = f._error(), f._hull()
    if f.denominator is None and f.numerator.shape[1] <= 3:
        t, value = _quadratic_minima(f.numerator)
        best = int(np.argmin(value + error))
        # The computed vertex is within 8 u max|b| / curvature of the true one: a loss below the rounding of the value.
        lower = np.min(np.maximum(value - 2 * error + f.radius, hull.min(axis=1) - f.radius))
        return _extremum(f, best, t[best], value[best], float(lower), error[best])
    ends = np.stack([hull[:, 0], hull[:, -1]])
    best = int(np.argmin(ends.min(axis=0) + error))
    place, upper = float(np.argmin(ends[:, best])), float(np.min(ends[:, best]) + error[best])
    # 60 halvings lose n u max|b| each, so four times the rounding already counted.
    deep = error + 4 * (error - f.radius)
    k = np.flatnonzero(hull.min(axis=1) - deep <= upper)
    top, bottom = f.numerator[k], None if f.denominator is None else f.denominator[k]
    lo, width, lower = np.zeros(k.size), 1.0, upper
    for level in range(_LEVELS + 1):
        quotient = top if bottom is None else top / bottom
        low, small = quotient.min(axis=1), np.minimum(quotient[:, 0], quotient[:, -1])
        i = int(np.argmin(small + error[k]))
        if small[i] + error[k[i]] < upper:
            upper, best = float(small[i] + error[k[i]]), int(k[i])
            place = float(lo[i] if quotient[i, 0] == small[i] else lo[i] + width)
        open_ = low - deep[k] <= upper
        # Parts known up to rounding need no further halving.
        settled = (low >= small - 0.5 * (error[k] - f.radius[k])) | (level == _LEVELS)
        lower = min(lower, float(np.min((low - deep[k])[open_ & settled], initial=np.inf)))
        keep = open_ & ~settled
        if not keep.any():
            break
        half = np.full(int(keep.sum()), 0.5)
        top = np.concatenate(bernstein.split(top[keep], half))
        bottom = None if bottom is None else np.concatenate(bernstein.split(bottom[keep], half))
        width *= 0.5
        lo, k = np.concatenate([lo[keep], lo[keep] + width]), np.concatenate([k[keep], k[keep]])
    # Values are flat at a minimum, so the place is found by the slope.
    where = np.concatenate([[place], _critical(f, np.array([best]))[1]])
    value = f._evaluate(np.full(where.size, best), where)
    i = int(np.argmin(value))
    return _extremum(f, best, where[i], value[i], lower, error[best])


def _extremum(f: PiecewiseFunction, k: int, t: float, value: float, lower: float, error: float) -> Extremum:
    a, b = float(f.breakpoints[k]), float(f.breakpoints[k + 1])
    alpha = b if t == 1.0 else min(a + t * (b - a), b)
    return Extremum(
        float(alpha), float(value), float(np.nextafter(lower, -np.inf)), float(np.nextafter(value + error, np.inf))
    )


def _quadratic_minima(b: Array) -> tuple[Array, Array]:
    """Place in [0, 1] and value of the minimum of every row of degree at most 2."""
    t = np.where(b[:, -1] < b[:, 0], 1.0, 0.0)
    value = np.minimum(b[:, 0], b[:, -1])
    if b.shape[1] == 3:
        drop, curvature = b[:, 0] - b[:, 1], b[:, 0] - 2 * b[:, 1] + b[:, 2]
        inside = (curvature > 0) & (drop > 0) & (drop < curvature)
        vertex = np.divide(drop, curvature, out=t.copy(), where=inside)
        low = bernstein.evaluate(b, vertex)
        better = inside & (low < value)
        t, value = np.where(better, vertex, t), np.where(better, low, value)
    return t, value


def _critical(f: PiecewiseFunction, k: Array) -> tuple[Array, Array]:
    """Places in (0, 1) where the slope of the pieces k vanishes: (index into k, t)."""
    top = f.numerator[k]
    slope, noise = bernstein.derivative(top), 2 * top.shape[1] * bernstein.rounding(top)
    if f.denominator is not None:
        bottom = f.denominator[k]
        size = np.max(np.abs(top), axis=1) * np.max(bottom, axis=1)
        slope = bernstein.product(slope, bottom) - bernstein.product(top, bernstein.derivative(bottom))
        noise = 16 * slope.shape[1] * top.shape[1] * bernstein.UNIT * size
    return bernstein.roots(slope, noise)


def level_set(f: PiecewiseFunction, z: float) -> Array:
    """See [`PiecewiseFunction.level_set`][hyprax.tasks.PiecewiseFunction.level_set]."""
    if not np.isfinite(z):
        raise ValueError(f"level_set needs a finite threshold; got {z!r}.")
    error, hull = f._error(), f._hull()
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
    keep = inside[k] | (f._evaluate(k, 0.5 * (start + end)) <= raised[k])
    k, start, end = k[keep], start[keep], end[keep]
    left, right = f.breakpoints[k], f.breakpoints[k + 1]
    lo = left + start * (right - left)
    hi = np.where(end == 1.0, right, np.minimum(left + end * (right - left), right))
    if not k.size:
        return np.zeros((0, 2))
    apart = lo[1:] > hi[:-1]
    return np.stack([lo[np.append(True, apart)], hi[np.append(apart, True)]], axis=1)


def _known(f: PiecewiseFunction) -> Array:
    """The pieces that say something of the shape: all but undecided slivers, such as those around a jump of a 0-1 loss.

    A sliver is narrower than 1e-8 (of the domain, or of alpha) and a radius above twice the smallest.
    """
    width, error = np.diff(f.breakpoints), f._error()
    span = f.breakpoints[-1] - f.breakpoints[0]
    thin = width <= _SLIVER * np.minimum(span, np.maximum(np.abs(f.breakpoints[1:]), np.abs(f.breakpoints[:-1])))
    return np.flatnonzero(~(thin & (error > 2 * np.min(error))))  # the piece of smallest error is always kept


def _steps(f: PiecewiseFunction) -> tuple[Array, Array, Array]:
    """Between neighbouring known pieces: the place, the step of the value, and the error of the two values."""
    hull, error, k = f._hull(), f._error(), _known(f)
    place = 0.5 * (f.breakpoints[k[:-1] + 1] + f.breakpoints[k[1:]])
    return place, hull[k[1:], 0] - hull[k[:-1], -1], error[k[1:]] + error[k[:-1]]


def jumps(f: PiecewiseFunction) -> Array:
    """See [`PiecewiseFunction.jumps`][hyprax.tasks.PiecewiseFunction.jumps]."""
    place, step, error = _steps(f)
    return place[np.abs(step) > error]


def kinks(f: PiecewiseFunction) -> Array:
    """See [`PiecewiseFunction.kinks`][hyprax.tasks.PiecewiseFunction.kinks]."""
    error = f._error()
    step, error = f._hull()[1:, 0] - f._hull()[:-1, -1], error[1:] + error[:-1]
    width, n = np.diff(f.breakpoints), f.numerator.shape[1] - 1
    if n == 0:
        return np.zeros(0)
    first, last = n * (f.numerator[:, 1] - f.numerator[:, 0]), n * (f.numerator[:, -1] - f.numerator[:, -2])
    if f.denominator is not None:  # (N/D)' = (N' - (N/D) D') / D
        d, h = f.denominator, f._hull()
        first = (first - h[:, 0] * n * (d[:, 1] - d[:, 0])) / d[:, 0]
        last = (last - h[:, -1] * n * (d[:, -1] - d[:, -2])) / d[:, -1]
    before, after = last[:-1] / width[:-1], first[1:] / width[1:]
    noise = 2 * n * f._error() / width
    turn = np.abs(after - before) > _SLOPE * np.maximum(np.abs(after), np.abs(before)) + noise[1:] + noise[:-1]
    return f.breakpoints[1:-1][turn & (np.abs(step) <= error)]


def _turns(f: PiecewiseFunction) -> list[tuple[float, float]]:
    """(place, value) of alternating maxima and minima, ends of the domain included.

    A turn counts when the function moves by more than its error from it. A plateau is one turn, at its middle.
    """
    known = _known(f)
    crossing, where = _critical(f, known)
    k = np.concatenate([known, known[crossing], known])
    t = np.concatenate([np.zeros(known.size), where, np.ones(known.size)])
    order = np.lexsort((t, k))
    k, t = k[order], t[order]
    values, error = f._evaluate(k, t), float(np.max(f._error()[known]))
    places = f.breakpoints[k] + t * (f.breakpoints[k + 1] - f.breakpoints[k])
    tolerance = 2 * error
    turns: list[tuple[float, float]] = []
    direction = 0
    start = [values[0], places[0], places[0]]  # value, first and last place
    top, bottom = list(start), list(start)
    for place, value in zip(places.tolist(), values.tolist(), strict=True):
        for extreme, sign in ((top, 1), (bottom, -1)):
            if sign * (value - extreme[0]) > tolerance:
                extreme[:] = [value, place, place]
            elif sign * (value - extreme[0]) >= 0:
                extreme[0], extreme[2] = value, place
        if direction >= 0 and value < top[0] - tolerance:
            turns.append((0.5 * (top[1] + top[2]), top[0]))
            direction, bottom = -1, [value, place, place]
        elif direction <= 0 and value > bottom[0] + tolerance:
            turns.append((0.5 * (bottom[1] + bottom[2]), bottom[0]))
            direction, top = 1, [value, place, place]
    last = bottom if direction < 0 else top
    turns.append((0.5 * (last[1] + last[2]), last[0]))
    return turns


def local_maxima(f: PiecewiseFunction) -> Array:
    """See [`PiecewiseFunction.local_maxima`][hyprax.tasks.PiecewiseFunction.local_maxima]."""
    turns = _turns(f)
    falling = len(turns) == 1 or turns[0][1] > turns[1][1]
    return np.array([place for place, _ in turns[0 if falling else 1 :: 2]])


def oscillations(f: PiecewiseFunction) -> int:
    """See [`PiecewiseFunction.oscillations`][hyprax.tasks.PiecewiseFunction.oscillations]."""
    values = np.array([value for _, value in _turns(f)])
    if values.size < 2:
        return 0
    lo, hi = np.minimum(values[1:], values[:-1]), np.maximum(values[1:], values[:-1])
    # The most intervals (lo, hi) over one threshold: ends leave before others enter at the same value.
    place = np.concatenate([hi, lo])
    step = np.concatenate([-np.ones(hi.size), np.ones(lo.size)])
    return int(np.max(np.cumsum(step[np.lexsort((step, place))])))
