"""The pieces of a piecewise polynomial or rational function, with a proven radius of error on each, and their
values."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from . import _bernstein as bernstein
from ._bernstein import UNIT, Array

P = TypeVar("P", bound="Pieces")
TIGHT = 1e-8
"""A piece with a radius below this part of the function's size is exact up to rounding; a wider one is an enclosure."""
_BESIDE = 16 * UNIT
"""How far outside the domain, in parts of its ends, a point is taken for the end: a few units in the last place."""


@runtime_checkable
class BoundedDual(Protocol):
    """What branch and bound asks of a dual function; a [`PiecewiseFunction`][hyprax.tasks.PiecewiseFunction] has it."""

    @property
    def domain(self) -> tuple[float, float]:
        """The range of α."""
        ...

    def enclose(self, hyper: Any) -> tuple[Any, Any]:
        """`(lo, hi)` around the value at α."""
        ...

    def bounds(self, a: float, b: float) -> tuple[float, float]:
        """`(lo, hi)` around all values on [a, b], one-sided limits at jumps included."""
        ...


@dataclass(frozen=True)
class Extremum:
    """A global extreme value: `lower <= min f <= upper`, and a point where `f(α) <= upper` (for a maximum:
    `f(α) >= lower`)."""

    hyper: float
    """Where; at a jump the one-sided limit there is meant."""
    value: float
    """The value computed at `α`."""
    lower: float
    """Lower bound of the extreme value, rounding included."""
    upper: float
    """Upper bound of the extreme value, rounding included."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """`f(α) = N_k(t) / D_k(t) ± r_k` on `[b_k, b_{k+1})`, `t = (α - b_k) / (b_{k+1} - b_k)`.

    What a [`PiecewiseFunction`][hyprax.tasks.PiecewiseFunction] holds, and what can be computed from it piece by piece.
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
                f"got {head(b)}."
            )
        for name, rows in (("numerator", self.numerator), ("denominator", self.denominator)):
            if rows is not None and (rows.ndim != 2 or len(rows) != b.size - 1 or not np.all(np.isfinite(rows))):
                raise ValueError(
                    f"the {name} of a PiecewiseFunction must hold one row of finite coefficients for each of the "
                    f"{b.size - 1} pieces; got shape {rows.shape}"
                    + ("." if rows.ndim != 2 or len(rows) != b.size - 1 else ", with nan or inf.")
                )
        if self.radius.shape != (b.size - 1,) or not np.all(self.radius >= 0):
            raise ValueError(f"radius must hold {b.size - 1} numbers >= 0; got {head(self.radius)}.")

    @property
    def domain(self) -> tuple[float, float]:
        """The interval on which the function is defined, ends included."""
        return float(self.breakpoints[0]), float(self.breakpoints[-1])

    @property
    def n_pieces(self) -> int:
        """Number of pieces."""
        return len(self.numerator)

    @property
    def size(self) -> float:
        """The largest coefficient, or quotient of coefficients: an upper bound of `|f|` less its radius, never 0."""
        return max(float(np.max(np.abs(self.hull()))), np.finfo(float).tiny)

    @property
    def is_exact(self) -> bool:
        """Whether every piece is known up to rounding (a radius below 1e-8 of the size of the function)."""
        return bool(np.all(self.radius <= TIGHT * self.size))

    def hull(self) -> Float[Array, "K n_plus_1"]:
        """Numbers whose smallest and largest enclose the piece: the coefficients, or their quotients.

        `N/D = sum_i (N_i/D_i) (D_i B_i) / sum_i D_i B_i` is a convex combination of the quotients, as all `D_i B_i` are
        at least 0.
        """
        return self.numerator if self.denominator is None else self.numerator / self.denominator

    def error(self) -> Float[Array, " K"]:
        """Radius, with the rounding of one more evaluation or restriction."""
        if self.denominator is None:
            lost = bernstein.rounding(self.numerator) if self.numerator.shape[1] > 1 else np.zeros(self.n_pieces)
        else:
            lost = quotient_error(
                self.numerator,
                self.denominator,
                bernstein.rounding(self.numerator),
                bernstein.rounding(self.denominator),
            )
        return up(self.radius + lost)

    def ranges(self) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
        """`lo[k] <= f <= hi[k]` on piece k: exact up to rounding up to degree 2, the hull of the coefficients above."""
        hull, error = self.hull(), self.error()
        if self.denominator is not None or self.numerator.shape[1] > 3:
            return hull.min(axis=1) - error, hull.max(axis=1) + error
        wide = up(2 * error - self.radius)  # the rounding twice: of the value, and of the place of the extremum
        return down(bernstein.quadratic_minima(hull)[1] - wide), up(-bernstein.quadratic_minima(-hull)[1] + wide)

    def locate(self, hyper: Any) -> tuple[Array, Array]:
        """The piece and the local coordinate of each α; one a few units in the last place outside is at the end."""
        hyper = np.asarray(hyper, dtype=np.float64)
        a, b = self.domain
        if not np.all((hyper >= a - _BESIDE * abs(a)) & (hyper <= b + _BESIDE * abs(b))):  # false for nan too
            raise ValueError(f"hyper must lie in the domain [{a:.17g}, {b:.17g}] of the function; got {head(hyper)}.")
        hyper = np.clip(hyper, a, b)
        k = np.minimum(np.searchsorted(self.breakpoints, hyper, side="right") - 1, self.n_pieces - 1)
        left = self.breakpoints[k]
        return np.asarray(k), np.asarray((hyper - left) / (self.breakpoints[k + 1] - left))

    def evaluate(self, k: Array, t: Array) -> Array:
        """The pieces k at the local coordinates t."""
        value = bernstein.evaluate(self.numerator[k], t)
        return np.asarray(value if self.denominator is None else value / bernstein.evaluate(self.denominator[k], t))

    def __call__(self, hyper: Any) -> Float[Array, "..."]:
        """`f(α)`, of the shape of `α`; the middle where only an enclosure is known."""
        return self.evaluate(*self.locate(hyper))

    def enclose(self, hyper: Any) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """`(lo, hi)` with `lo <= f(α) <= hi`, rounding included."""
        k, t = self.locate(hyper)
        value, error = self.evaluate(k, t), self.error()[k]
        return down(value - error), up(value + error)

    def restrict(self: P, a: float, b: float) -> P:
        """The same function on the part [a, b] of its domain."""
        lo, hi = self.domain
        if not lo <= a < b <= hi:
            raise ValueError(f"restrict({a!r}, {b!r}): [a, b] must lie in the domain [{lo!r}, {hi!r}], with a < b.")
        first, last = np.searchsorted(self.breakpoints, a, side="right"), np.searchsorted(self.breakpoints, b)
        return self.refine(np.concatenate([[a], self.breakpoints[first:last], [b]]))

    def refine(self: P, edges: Array) -> P:
        """The same function with a piece for each of `edges`, which hold every breakpoint between their ends."""
        k = np.searchsorted(self.breakpoints, edges[:-1], side="right") - 1
        left, right = self.breakpoints[k], self.breakpoints[k + 1]
        width = right - left
        t0, t1 = (edges[:-1] - left) / width, np.minimum((edges[1:] - left) / width, 1.0)
        t1 = np.where(edges[1:] == right, 1.0, t1)
        cut = (t0 > 0) | (t1 < 1)
        denominator = None if self.denominator is None else bernstein.restrict(self.denominator[k], t0, t1)
        return replace(
            self,
            breakpoints=edges,
            numerator=bernstein.restrict(self.numerator[k], t0, t1),
            denominator=denominator,
            radius=np.where(cut, self.error()[k], self.radius[k]),
        )


def quotient_error(top: Array, bottom: Array, top_error: Array, bottom_error: Array) -> Array:
    """`|(N + e)/(D + d) - N/D| <= (|e| + max|N/D| |d|) / (min D - |d|)`, and the division's own rounding."""
    size = np.max(np.abs(top / bottom), axis=1)
    return (top_error + size * bottom_error) / (np.min(bottom, axis=1) - bottom_error) + 2 * UNIT * size


def up(x: Any) -> Array:
    """One step of the floating-point grid upwards, zero left alone (a sum of exact zeros is exact)."""
    return np.asarray(np.where(x == 0, x, np.nextafter(x, np.inf)))


def down(x: Any) -> Array:
    """One step of the floating-point grid downwards."""
    return np.asarray(np.nextafter(x, -np.inf))


def head(x: Any) -> str:
    """The first and last of the numbers, for an error sentence."""
    return np.array2string(np.asarray(x), threshold=6, edgeitems=2, precision=6)
