"""Piecewise polynomial and rational functions of one variable, with a proven radius of error on every piece."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from . import _bernstein as bernstein
from ._bernstein import UNIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray
_TIGHT = 1e-8
"""A piece with a radius below this part of its size is exact up to rounding; a wider one is an enclosure."""
_EXPANSION = 10
"""Degree of the polynomials that a rational piece is expanded in."""


@dataclass(frozen=True)
class Extremum:
    """`lower <= min f <= upper`, and a point where `f(alpha) <= upper` (for a maximum: `f(alpha) >= lower`)."""

    alpha: float
    """Where; at a jump the one-sided limit there is meant."""
    value: float
    """The value computed at `alpha`."""
    lower: float
    """Lower bound of the extreme value, rounding included."""
    upper: float
    """Upper bound of the extreme value, rounding included."""


@dataclass(frozen=True, eq=False)
class PiecewiseFunction:
    r"""`f(alpha) = N_k(t) / D_k(t) +- r_k` for `alpha` in `[b_k, b_{k+1})`, with `t = (alpha - b_k) / (b_{k+1} - b_k)`.

    A dual function alpha -> loss of one task, or a mean of such functions. Every piece is a polynomial `N_k`, or a
    rational function `N_k / D_k` with `D_k > 0`, in its own local coordinate t in [0, 1] and in the Bernstein basis, so
    that thin pieces lose no digits; and the function meant lies within `radius[k]` of it. A radius of 1e-13 says that
    the piece is exact up to rounding; an enclosure `[lo, hi]` is a constant with a wide radius. Arithmetic adds its own
    rounding to the radius, so the bounds of every derived function remain true.

    At a jump the value is that of the piece to the right; extrema and level sets look at both one-sided limits.

    Build one by [`constant`][hyprax.tasks.PiecewiseFunction.constant], `from_polynomials`, `from_rationals` or
    `from_enclosures`; the fields hold what those made.

    Source of the basis: Farouki and Rajan, "On the numerical condition of polynomials in Bernstein form" (1987).
    """

    breakpoints: Float[Array, " K_plus_1"]
    """Strictly ascending; the first and the last are the domain."""
    numerator: Float[Array, "K n_plus_1"]
    """Bernstein coefficients of the numerators."""
    denominator: Float[Array, "K n_plus_1"] | None
    """Bernstein coefficients of the denominators, all positive; `None` for polynomials."""
    radius: Float[Array, " K"]
    """How far the function may be from the piece."""
    certified: bool = True
    """Whether the radius is proved; sums are certified if all their terms are."""

    def __post_init__(self):
        b = self.breakpoints
        if b.ndim != 1 or b.size < 2 or not np.all(np.isfinite(b)) or not np.all(np.diff(b) > 0):
            raise ValueError(
                "breakpoints of a PiecewiseFunction must be at least two finite numbers in strictly ascending order; "
                f"got {_head(b)}."
            )
        for name, rows in (("numerator", self.numerator), ("denominator", self.denominator)):
            if rows is not None and (rows.ndim != 2 or len(rows) != b.size - 1 or not np.all(np.isfinite(rows))):
                raise ValueError(
                    f"the {name} of a PiecewiseFunction must hold one row of finite coefficients for each of the "
                    f"{b.size - 1} pieces; got shape {rows.shape}"
                    + ("." if rows.ndim != 2 or len(rows) != b.size - 1 else ", with nan or inf.")
                )
        if self.radius.shape != (b.size - 1,) or not np.all(self.radius >= 0):
            raise ValueError(f"radius must hold {b.size - 1} numbers >= 0; got {_head(self.radius)}.")

    # -- construction

    @classmethod
    def constant(cls, domain: tuple[float, float], value: float) -> "PiecewiseFunction":
        """`f(alpha) = value` on `domain = (a, b)`."""
        return cls.from_polynomials(np.asarray(domain), np.array([[value]]))

    @classmethod
    def from_polynomials(cls, breakpoints: Any, coefficients: Any, radius: Any = 0.0) -> "PiecewiseFunction":
        """`f(alpha) = sum_j coefficients[k, j] t^j` on piece k, t in [0, 1] its local coordinate.

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
        return cls(breakpoints, rows, None, _up(lost + radius))

    @classmethod
    def from_rationals(cls, breakpoints: Any, num: Any, den: Any, radius: Any = 0.0) -> "PiecewiseFunction":
        """`f(alpha) = sum_j num[k, j] t^j / sum_j den[k, j] t^j` on piece k, with a denominator positive on [0, 1].

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
                lost = _quotient_error(top, bottom, top_lost, bottom_lost)
                return cls(np.append(left, right[-1:]), top, bottom, _up(lost + radius))
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
        """A function known only by `lo[k] <= f(alpha) <= hi[k]` on piece k."""
        breakpoints, lo, hi = _floats(breakpoints), _floats(lo), _floats(hi)
        if lo.shape != hi.shape or lo.ndim != 1 or not np.all(lo <= hi):
            raise ValueError(f"from_enclosures: needs lo <= hi, two arrays of (K,); got {_head(lo)} and {_head(hi)}.")
        middle = lo + 0.5 * (hi - lo)
        return cls(breakpoints, middle[:, None], None, _up(np.maximum(hi - middle, middle - lo)), certified)

    # -- what it is

    @property
    def domain(self) -> tuple[float, float]:
        """The interval on which the function is defined, ends included."""
        return float(self.breakpoints[0]), float(self.breakpoints[-1])

    @property
    def n_pieces(self) -> int:
        """Number of pieces."""
        return len(self.numerator)

    @property
    def is_exact(self) -> bool:
        """Whether every piece is known up to rounding (a radius below 1e-8 of the size of the function)."""
        return bool(np.all(self.radius <= _TIGHT * max(float(np.max(np.abs(self._hull()))), np.finfo(float).tiny)))

    def _hull(self) -> Float[Array, "K n_plus_1"]:
        """Numbers whose smallest and largest enclose the piece: the coefficients, or their quotients.

        `N/D = sum_i (N_i/D_i) (D_i B_i) / sum_i D_i B_i` is a convex combination of the quotients, as all `D_i B_i` are
        at least 0.
        """
        return self.numerator if self.denominator is None else self.numerator / self.denominator

    def _error(self) -> Float[Array, " K"]:
        """Radius, with the rounding of one more evaluation or restriction."""
        if self.denominator is None:
            lost = bernstein.rounding(self.numerator) if self.numerator.shape[1] > 1 else np.zeros(self.n_pieces)
        else:
            lost = _quotient_error(
                self.numerator,
                self.denominator,
                bernstein.rounding(self.numerator),
                bernstein.rounding(self.denominator),
            )
        return _up(self.radius + lost)

    # -- values

    def _locate(self, alpha: Any) -> tuple[Array, Array]:
        alpha = np.asarray(alpha, dtype=np.float64)
        a, b = self.domain
        if not np.all((alpha >= a) & (alpha <= b)):  # false for nan too
            raise ValueError(f"alpha must lie in the domain [{a:.17g}, {b:.17g}] of the function; got {_head(alpha)}.")
        k = np.minimum(np.searchsorted(self.breakpoints, alpha, side="right") - 1, self.n_pieces - 1)
        left = self.breakpoints[k]
        return np.asarray(k), np.asarray((alpha - left) / (self.breakpoints[k + 1] - left))

    def __call__(self, alpha: Any) -> Float[Array, "..."]:
        """`f(alpha)`, of the shape of `alpha`; the middle where only an enclosure is known."""
        k, t = self._locate(alpha)
        return self._evaluate(k, t)

    def _evaluate(self, k: Array, t: Array) -> Array:
        value = bernstein.evaluate(self.numerator[k], t)
        return np.asarray(value if self.denominator is None else value / bernstein.evaluate(self.denominator[k], t))

    def enclose(self, alpha: Any) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """`(lo, hi)` with `lo <= f(alpha) <= hi`, rounding included."""
        k, t = self._locate(alpha)
        value, error = self._evaluate(k, t), self._error()[k]
        return _down(value - error), _up(value + error)

    def bounds(self, a: float, b: float) -> tuple[float, float]:
        """`(lo, hi)` with `lo <= f <= hi` on [a, b], one-sided limits included: the hull of the coefficients there."""
        part = self.restrict(a, b)
        hull, error = part._hull(), part._error()
        return float(_down(np.min(hull.min(axis=1) - error))), float(_up(np.max(hull.max(axis=1) + error)))

    # -- arithmetic

    def restrict(self, a: float, b: float) -> "PiecewiseFunction":
        """The same function on the part [a, b] of its domain."""
        lo, hi = self.domain
        if not lo <= a < b <= hi:
            raise ValueError(f"restrict({a!r}, {b!r}): needs {lo!r} <= a < b <= {hi!r}, the domain.")
        first, last = np.searchsorted(self.breakpoints, a, side="right"), np.searchsorted(self.breakpoints, b)
        return self._refine(np.concatenate([[a], self.breakpoints[first:last], [b]]))

    def _refine(self, edges: Array) -> "PiecewiseFunction":
        """The same function with a piece for each of `edges`, which hold every breakpoint between their ends."""
        k = np.searchsorted(self.breakpoints, edges[:-1], side="right") - 1
        left, right = self.breakpoints[k], self.breakpoints[k + 1]
        width = right - left
        t0, t1 = (edges[:-1] - left) / width, np.minimum((edges[1:] - left) / width, 1.0)
        t1 = np.where(edges[1:] == right, 1.0, t1)
        cut = (t0 > 0) | (t1 < 1)
        denominator = None if self.denominator is None else bernstein.restrict(self.denominator[k], t0, t1)
        return PiecewiseFunction(
            edges,
            bernstein.restrict(self.numerator[k], t0, t1),
            denominator,
            np.where(cut, self._error()[k], self.radius[k]),
            self.certified,
        )

    def __add__(self, other: "PiecewiseFunction | float") -> "PiecewiseFunction":
        if isinstance(other, PiecewiseFunction):
            return _add(self, other)
        return _add(self, PiecewiseFunction.constant(self.domain, float(other)))

    __radd__ = __add__

    def __mul__(self, factor: float) -> "PiecewiseFunction":
        numerator = self.numerator * float(factor)
        hull = np.max(np.abs(self._hull()), axis=1)
        radius = _up(abs(factor) * self.radius + 4 * UNIT * abs(factor) * hull)
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
        from ._expand import expand_rationals  # late: it builds PiecewiseFunctions

        return expand_rationals(self, _EXPANSION, tolerance)

    # -- questions

    def minimise(self) -> Extremum:
        """The smallest value, over every piece and both limits at jumps; see [`Extremum`][hyprax.tasks.Extremum]."""
        from ._extrema import minimise

        return minimise(self)

    def maximise(self) -> Extremum:
        """The largest value, likewise."""
        low = (-self).minimise()
        return Extremum(low.alpha, -low.value, -low.upper, -low.lower)

    def level_set(self, z: float) -> Float[Array, "m 2"]:
        """Disjoint closed intervals, ascending, that hold every alpha where `f(alpha) <= z` (or a one-sided limit is).

        Where the function is known only within a radius, an alpha that may satisfy `f <= z` is included.
        """
        from ._extrema import level_set

        return level_set(self, z)

    def jumps(self) -> Float[Array, " m"]:
        """Breakpoints where the one-sided limits differ by more than the error of the function."""
        from ._extrema import jumps

        return jumps(self)

    def kinks(self) -> Float[Array, " m"]:
        """Breakpoints where the function is continuous and its one-sided derivatives differ (by 1e-7 of their size)."""
        from ._extrema import kinks

        return kinks(self)

    def local_maxima(self) -> Float[Array, " m"]:
        """Places of the local maxima, ends of the domain included; a plateau counts once, by its middle.

        Rises and falls within the error of the function do not count.
        """
        from ._extrema import local_maxima

        return local_maxima(self)

    def oscillations(self) -> int:
        """The largest number, over thresholds z, of sign changes of `f - z`: the B of the sample-complexity bounds.

        Rises and falls within the error of the function do not count.
        """
        from ._extrema import oscillations

        return oscillations(self)

    def plot(self, ax: "Axes | None" = None, **style: Any) -> "Axes":
        """Draw the function, with its enclosure where it is wide, on `ax` (or on a new figure's)."""
        from ._plot import plot_function

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
    if f.n_pieces != g.n_pieces or not np.array_equal(f.breakpoints, g.breakpoints):
        edges = np.union1d(f.breakpoints, g.breakpoints)
        f, g = f._refine(edges), g._refine(edges)
    degree = max(f.numerator.shape[1], g.numerator.shape[1]) - 1
    radius = f.radius + g.radius
    for part in (f, g):
        if 1 < part.numerator.shape[1] <= degree:
            radius = radius + bernstein.rounding(part.numerator)
    rows = bernstein.elevate(f.numerator, degree) + bernstein.elevate(g.numerator, degree)
    radius = _up(radius + UNIT * np.max(np.abs(rows), axis=1))
    return PiecewiseFunction(f.breakpoints, rows, None, radius, f.certified and g.certified)


def _quotient_error(top: Array, bottom: Array, top_error: Array, bottom_error: Array) -> Array:
    """`|(N + e)/(D + d) - N/D| <= (|e| + max|N/D| |d|) / (min D - |d|)`, and the division's own rounding."""
    size = np.max(np.abs(top / bottom), axis=1)
    return (top_error + size * bottom_error) / (np.min(bottom, axis=1) - bottom_error) + 2 * UNIT * size


def _floats(x: Any) -> Array:
    return np.array(x, dtype=np.float64)


def _check_rows(name: str, rows: Array, breakpoints: Array) -> None:
    if rows.ndim != 2 or rows.shape[1] == 0 or len(rows) != breakpoints.size - 1:
        raise ValueError(
            f"{name} must have the shape (K, degree + 1) with K = {breakpoints.size - 1} pieces, one fewer than the "
            f"breakpoints; got {rows.shape}."
        )


def _up(x: Any) -> Array:
    """One step of the floating-point grid upwards, zero left alone (a sum of exact zeros is exact)."""
    return np.asarray(np.where(x == 0, x, np.nextafter(x, np.inf)))


def _down(x: Any) -> Array:
    return np.asarray(np.nextafter(x, -np.inf))


def _head(x: Array) -> str:
    return np.array2string(np.asarray(x), threshold=6, edgeitems=2, precision=6)
