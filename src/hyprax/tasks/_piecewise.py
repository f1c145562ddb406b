"""Piecewise polynomial and rational functions of one variable, with a proven radius of error on every piece."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from . import _bernstein as bernstein, _extrema as extrema
from ._bernstein import UNIT, Array
from ._expand import expand_rationals
from ._pieces import Extremum, Pieces, down, head, quotient_error, up
from ._plot import plot_function

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EXPANSION = 10
"""Degree of the polynomials that a rational piece is expanded in."""
_BLOCK = 100_000
"""Pieces of a sum that are made at a time."""


@dataclass(frozen=True, eq=False)
class PiecewiseFunction(Pieces):
    r"""`f(α) = N_k(t) / D_k(t) ± r_k` for `α` in `[b_k, b_{k+1})`, with `t = (α - b_k) / (b_{k+1} - b_k)`.

    A dual function α -> loss of one task, or a mean of such functions. Every piece is a polynomial `N_k`, or a
    rational function `N_k / D_k` with `D_k > 0`, in its own local coordinate t in [0, 1] and in the Bernstein basis, so
    that thin pieces lose no digits; and the function meant lies within `radius[k]` of it. A radius of 1e-13 says that
    the piece is exact up to rounding; an enclosure `[lo, hi]` is a constant with a wide radius. Arithmetic adds its own
    rounding to the radius, so the bounds of every derived function remain true.

    At a jump the value is that of the piece to the right; extrema and level sets look at both one-sided limits.

    Build one by [`constant`][hyprax.tasks.PiecewiseFunction.constant], `from_polynomials`, `from_rationals` or
    `from_enclosures`; the fields hold what those made.

    Source of the basis: Farouki and Rajan, "On the numerical condition of polynomials in Bernstein form" (1987).
    """

    # -- construction

    @classmethod
    def constant(cls, domain: tuple[float, float], value: float) -> "PiecewiseFunction":
        """`f(α) = value` on `domain = (a, b)`."""
        return cls.from_polynomials(np.asarray(domain), np.array([[value]]))

    @classmethod
    def from_polynomials(cls, breakpoints: Any, coefficients: Any, radius: Any = 0.0) -> "PiecewiseFunction":
        """`f(α) = sum_j coefficients[k, j] t^j` on piece k, t in [0, 1] its local coordinate.

        **Arguments:**

        - `breakpoints`: (K + 1,), strictly ascending.
        - `coefficients`: (K, D + 1), in ascending powers of t.
        - `radius`: how far the function meant may be from these polynomials, a number or (K,).
        """
        breakpoints, coefficients = _floats(breakpoints), _floats(coefficients)
        _check_rows("coefficients", coefficients, breakpoints)
        rows = bernstein.from_monomial(coefficients)
        lost = 4 * coefficients.shape[1] * UNIT * np.sum(np.abs(coefficients), axis=1)
        lost = np.where(np.all(coefficients[:, 1:] == 0, axis=1), 0.0, lost)
        return cls(breakpoints, rows, None, up(lost + radius))

    @classmethod
    def from_rationals(cls, breakpoints: Any, num: Any, den: Any, radius: Any = 0.0) -> "PiecewiseFunction":
        """`f(α) = sum_j num[k, j] t^j / sum_j den[k, j] t^j` on piece k, with a denominator positive on [0, 1].

        A piece is halved until the Bernstein coefficients of its denominator are positive and within a factor of 1000
        of one another (so that the quotient keeps its digits).

        **Arguments:** as for `from_polynomials`; `num` (K, D + 1) and `den` (K, E + 1) in ascending powers of t.

        **Raises:** `ValueError` where a denominator is not positive, with the place.
        """
        breakpoints, num, den = _floats(breakpoints), _floats(num), _floats(den)
        _check_rows("num", num, breakpoints)
        _check_rows("den", den, breakpoints)
        degree = max(num.shape[1], den.shape[1]) - 1
        top = bernstein.elevate(bernstein.from_monomial(num), degree)
        bottom = bernstein.elevate(bernstein.from_monomial(den), degree)
        top_lost = 8 * (degree + 1) * UNIT * np.sum(np.abs(num), axis=1)
        bottom_lost = 8 * (degree + 1) * UNIT * np.sum(np.abs(den), axis=1)
        left, right = breakpoints[:-1], breakpoints[1:]
        radius = np.broadcast_to(_floats(radius), left.shape)
        while True:
            bad = np.min(bottom, axis=1) <= np.maximum(1e-3 * np.max(bottom, axis=1), 2 * bottom_lost)
            if not bad.any():
                lost = quotient_error(top, bottom, top_lost, bottom_lost)
                return cls(np.append(left, right[-1:]), top, bottom, up(lost + radius))
            middle = np.where(bad, 0.5 * (left + right), right)
            hopeless = bad & (np.minimum(bottom[:, 0], bottom[:, -1]) <= 2 * bottom_lost)
            hopeless |= bad & ((middle <= left) | (middle >= right))
            if hopeless.any():
                k = int(np.flatnonzero(hopeless)[0])
                raise ValueError(
                    "from_rationals: a denominator must be positive on its piece, beyond rounding; one is not on "
                    f"[{left[k]:.6g}, {right[k]:.6g}]."
                )
            edges = np.union1d(np.append(left, right[-1:]), middle)
            k = np.searchsorted(left, edges[:-1], side="right") - 1
            t0 = (edges[:-1] - left[k]) / (right[k] - left[k])
            t1 = np.where(edges[1:] == right[k], 1.0, (edges[1:] - left[k]) / (right[k] - left[k]))
            lost = bad[k]
            top_lost = top_lost[k] + lost * bernstein.rounding(top)[k]
            bottom_lost = bottom_lost[k] + lost * bernstein.rounding(bottom)[k]
            top, bottom, radius = bernstein.restrict(top[k], t0, t1), bernstein.restrict(bottom[k], t0, t1), radius[k]
            left, right = edges[:-1], edges[1:]

    @classmethod
    def from_enclosures(cls, breakpoints: Any, lo: Any, hi: Any, certified: bool = True) -> "PiecewiseFunction":
        """A function known only by `lo[k] <= f(α) <= hi[k]` on piece k."""
        breakpoints, lo, hi = _floats(breakpoints), _floats(lo), _floats(hi)
        if lo.shape != hi.shape or lo.ndim != 1 or not np.all(lo <= hi):
            raise ValueError(f"from_enclosures: needs lo <= hi, two arrays of (K,); got {head(lo)} and {head(hi)}.")
        middle = lo + 0.5 * (hi - lo)
        return cls(breakpoints, middle[:, None], None, up(np.maximum(hi - middle, middle - lo)), certified)

    def bounds(self, a: float, b: float) -> tuple[float, float]:
        """`(lo, hi)` with `lo <= f <= hi` on [a, b], one-sided limits included: the hull of the coefficients there."""
        part = self.restrict(a, b)
        hull, error = part.hull(), part.error()
        return float(down(np.min(hull.min(axis=1) - error))), float(up(np.max(hull.max(axis=1) + error)))

    # -- arithmetic

    def __add__(self, other: "PiecewiseFunction | float") -> "PiecewiseFunction":
        if isinstance(other, PiecewiseFunction):
            return _add(self, other)
        return _add(self, PiecewiseFunction.constant(self.domain, float(other)))

    __radd__ = __add__

    def __mul__(self, factor: float) -> "PiecewiseFunction":
        numerator = self.numerator * float(factor)
        hull = np.max(np.abs(self.hull()), axis=1)
        radius = up(abs(factor) * self.radius + 4 * UNIT * abs(factor) * hull)
        exact = np.all(numerator == 0, axis=1) | (np.log2(abs(factor) or 1.0) % 1 == 0)
        radius = np.where(exact, abs(factor) * self.radius, radius)
        return PiecewiseFunction(self.breakpoints, numerator, self.denominator, radius, self.certified)

    __rmul__ = __mul__

    def __neg__(self) -> "PiecewiseFunction":
        return PiecewiseFunction(self.breakpoints, -self.numerator, self.denominator, self.radius, self.certified)

    def __sub__(self, other: "PiecewiseFunction | float") -> "PiecewiseFunction":
        return self + (-other)

    def __rsub__(self, other: float) -> "PiecewiseFunction":
        return (-self) + other

    @classmethod
    def mean(cls, functions: Sequence["PiecewiseFunction"]) -> "PiecewiseFunction":
        """`(1/n) sum_i f_i` on the merged breakpoints.

        The functions are added in pairs, the sums in pairs again: every piece is restricted once a level, so the
        rounding grows with log n, and the work is O(K log n) for K pieces in all.
        """
        if not functions:
            raise ValueError("PiecewiseFunction.mean needs at least one function.")
        level = list(functions)
        while len(level) > 1:
            level = [_add(*level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
        return level[0] * (1.0 / len(functions))

    def to_polynomials(self, tolerance: float = 1e-12) -> "PiecewiseFunction":
        r"""Rational pieces expanded in polynomials of degree 10, with a proven radius: what sums of many are made of.

        A polynomial p interpolates N/D at Chebyshev points of the piece, and `|N/D - p| <= max|N - p D| / min D`,
        where the coefficients of `N - p D` bound its maximum. A piece whose radius grows by more than `tolerance`
        times the largest `|f|` is halved, up to 40 times.
        """
        if self.denominator is None:
            return self
        return expand_rationals(self, _EXPANSION, tolerance)

    # -- questions

    def minimise(self) -> Extremum:
        """The smallest value, over every piece and both limits at jumps; see [`Extremum`][hyprax.tasks.Extremum]."""
        return extrema.minimise(self)

    def maximise(self) -> Extremum:
        """The largest value, likewise."""
        low = (-self).minimise()
        return Extremum(low.hyper, -low.value, -low.upper, -low.lower)

    def level_set(self, z: float) -> Float[Array, "m 2"]:
        """Disjoint closed intervals, ascending, that hold every α where `f(α) <= z` (or a one-sided limit is).

        Where the function is known only within a radius, an α that may satisfy `f <= z` is included.
        """
        return extrema.level_set(self, z)

    def clip(self, upper: float) -> "PiecewiseFunction":
        """`min(f, upper)`: a loss with no natural bound made to lie below `upper`, exactly.

        The pieces are cut where the level set of f ends. The cut is known up to rounding only, so each piece that is
        kept may exceed `upper` a little near it; its radius grows by as much.
        """
        return extrema.clip(self, upper)

    def undecided(self, tolerance: float | None = None) -> Float[Array, "m 2"]:
        """Disjoint closed intervals, ascending, on which the function is known less well than `tolerance`.

        Outside of them it is within `tolerance` of the pieces; inside, it may do anything within its radius: jump,
        turn, oscillate. By default `tolerance` is 1e-8 of the size of the function, which is rounding.
        """
        return extrema.undecided(self, tolerance)

    def jumps(self, tolerance: float | None = None) -> Float[Array, "m 2"]:
        """Disjoint closed intervals, ascending, across each of which the function surely changes: from below.

        A breakpoint where the one-sided limits differ by more than their error (an interval of width 0), or an
        undecided interval with different values on both sides, where the change is caught without being seen. Each
        undecided interval may hold more jumps than the one, so the other side is
        [`undecided`][hyprax.tasks.PiecewiseFunction.undecided]: every jump of more than twice the error lies in one of
        these intervals or in one of those.
        """
        return extrema.jumps(self, tolerance)

    def kinks(self) -> Float[Array, " m"]:
        """Breakpoints where the function is continuous and the derivatives of its pieces differ (by 1e-7 of their
        size).

        From below: breakpoints at undecided pieces do not count, as nothing is known of the slope there.
        """
        return extrema.kinks(self)

    def local_maxima(self) -> Float[Array, " m"]:
        """Places of the local maxima, ends of the domain included, from below: each is certain, others may hide.

        A maximum is certain where the function surely falls on both sides of it, by more than its error. A plateau
        counts once, by its middle. An undecided interval may hide more.
        """
        return extrema.local_maxima(self)

    def oscillations(self) -> int:
        """The largest number, over thresholds z, of sign changes of `f - z` that are certain: from below.

        Rises and falls within the error of the function do not count, so undecided intervals may hide more. It
        describes one function; the B of [`Oscillations`][hyprax.tasks.complexity.Oscillations] has to hold for every
        task that may ever come, and is not to be read off those that did.
        """
        return extrema.oscillations(self)

    def plot(self, ax: "Axes | None" = None, **style: Any) -> "Axes":
        """Draw the function, with its enclosure where it is wide, on `ax` (or on a new figure's)."""
        return plot_function(self, ax, **style)

    def __repr__(self) -> str:
        a, b = self.domain
        kind = "polynomial" if self.denominator is None else "rational"
        return (
            f"<PiecewiseFunction on [{a:.6g}, {b:.6g}]: {self.n_pieces} {kind} pieces of degree "
            f"{self.numerator.shape[1] - 1}, radius up to {np.max(self.radius):.2g}>"
        )


def _add(f: PiecewiseFunction, g: PiecewiseFunction) -> PiecewiseFunction:
    if f.domain != g.domain:
        raise ValueError(f"functions on {f.domain} and on {g.domain} cannot be added: `restrict` them to one domain.")
    f, g = f.to_polynomials(), g.to_polynomials()
    degree = max(f.numerator.shape[1], g.numerator.shape[1]) - 1
    edges = f.breakpoints
    if f.n_pieces == g.n_pieces and np.array_equal(edges, g.breakpoints):
        rows, radius = _summed(f, g, degree)
    else:
        edges = np.union1d(edges, g.breakpoints)
        # A block at a time, as the refined functions and what they are made in are several times as large as the sum.
        rows, radius = np.empty((edges.size - 1, degree + 1)), np.empty(edges.size - 1)
        for start in range(0, edges.size - 1, _BLOCK):
            part = edges[start : start + _BLOCK + 1]
            here = slice(start, start + part.size - 1)
            rows[here], radius[here] = _summed(_between(f, part).refine(part), _between(g, part).refine(part), degree)
    return PiecewiseFunction(edges, rows, None, radius, f.certified and g.certified)


def _summed(f: PiecewiseFunction, g: PiecewiseFunction, degree: int) -> tuple[Array, Array]:
    """Rows of the sum of functions on the same breakpoints, and their radii."""
    radius = f.radius + g.radius
    for part in (f, g):
        if 1 < part.numerator.shape[1] <= degree:
            radius = radius + bernstein.rounding(part.numerator)
    rows = bernstein.elevate(f.numerator, degree) + bernstein.elevate(g.numerator, degree)
    return rows, up(radius + UNIT * np.max(np.abs(rows), axis=1))


def _between(f: PiecewiseFunction, edges: Array) -> PiecewiseFunction:
    """The pieces that `edges` touch."""
    first = int(np.searchsorted(f.breakpoints, edges[0], side="right")) - 1
    last = int(np.searchsorted(f.breakpoints, edges[-1]))
    return PiecewiseFunction(
        f.breakpoints[first : last + 1], f.numerator[first:last], None, f.radius[first:last], f.certified
    )


def _floats(x: Any) -> Array:
    return np.array(x, dtype=np.float64)


def _check_rows(name: str, rows: Array, breakpoints: Array) -> None:
    if rows.ndim != 2 or rows.shape[1] == 0 or len(rows) != breakpoints.size - 1:
        raise ValueError(
            f"{name} must have the shape (K, degree + 1) with K = {breakpoints.size - 1} pieces, one fewer than the "
            f"breakpoints; got {rows.shape}."
        )
