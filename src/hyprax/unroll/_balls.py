"""Arithmetic in balls of many bits: a middle and a radius, between which the exact number lies.

A ball is |x - m 2^-s| <= r 2^-p: m a Python integer, s at most p, r a float64. Middles are in fixed point, so nothing
overflows and small numbers lose no more than large ones; radii are in units of 2^-p, computed in float64 and rounded
up. Exact numbers have the radius 0, and an operation whose result fits into p bits leaves it so: a gradient that is 0
for every value of the weights stays an exact 0. What is not defined on all of a ball (a quotient whose divisor may be
0) has an infinite radius, which goes away if the entry is not selected in the end.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _big_functions as functions
from ._big_functions import floats, integers, where

LEAST = 2.0**-20
"""The least radius above 0, in units: with magnitudes of 2^-900 no product of radii is lost to underflow."""
MOST_BITS = 896
ROUNDINGS = 2.0**-50
"""Of a few float64 operations on radii, relative: 4 units are more than any line below makes."""


class Unsupported(ArithmeticError):
    """An operation, or numbers, that are not known in ball arithmetic."""


class Undecided(ArithmeticError):
    """A comparison of balls that overlap."""


@dataclasses.dataclass(frozen=True)
class Ball:
    """An array of balls: middles m 2^-scale, radii in units of the arithmetic that made them."""

    middle: np.ndarray
    scale: int
    radius: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.middle.shape

    def moved(self, move: Callable[[np.ndarray], Any]) -> "Ball":
        """The balls that `move` picks or arranges, which sees middles and radii alike."""
        return Ball(integers(move(self.middle)), self.scale, np.asarray(move(self.radius)))

    def magnitude(self) -> np.ndarray:
        """|m| 2^-scale in float64, rounded up."""
        return np.asarray(floats(abs(self.middle)) * 2.0**-self.scale * (1 + ROUNDINGS))


def settled(radius: Any, operations: int = 1) -> np.ndarray:
    """A radius that was computed by so many sums, rounded up; what is undefined is infinite."""
    radius = np.asarray(radius, np.float64)
    up = np.maximum(radius * (1 + (operations + 8) * ROUNDINGS), LEAST)
    return np.where(radius > 0, up, np.where(np.isnan(radius), np.inf, 0.0))


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Balls with p = `bits` bits after the point."""

    bits: int

    @property
    def unit(self) -> float:
        """2^-p."""
        return 2.0**-self.bits

    # ---- in and out

    def exact(self, x: Any) -> Ball:
        """Real numbers as balls: exact, unless they have more bits than there are; nan and infinity without a bound."""
        x = np.asarray(x)
        if x.dtype.kind == "c":
            raise Unsupported("complex numbers")
        if x.dtype.kind in "iub":
            return Ball(integers(x.astype(object) + 0), 0, np.zeros(x.shape))
        finite = np.isfinite(x := x.astype(np.float64))
        fraction, exponent = np.frexp(np.where(finite, x, 0.0))
        whole = (fraction * 2.0**53).astype(np.int64)
        trailing = np.where(whole == 0, 0, np.frexp((whole & -whole).astype(np.float64))[1] - 1)
        places = np.where(whole == 0, 0, 53 - exponent - trailing)  # x = (whole >> trailing) 2^-places
        scale = int(min(max(places.max(initial=0), 0), self.bits))
        shift = scale - places
        middle = integers((whole >> trailing).astype(object))
        middle = where(shift >= 0, middle << _shifts(shift), middle >> _shifts(-shift))
        return Ball(middle, scale, np.where(finite, np.where(shift >= 0, 0.0, 1.0), np.inf))

    def distances(self, x: Ball, numbers: Any) -> np.ndarray:
        """An upper bound of |x - number| of every entry, in float64."""
        difference = self.sub(x, self.exact(numbers))
        return np.asarray((difference.magnitude() + difference.radius * self.unit) * (1 + ROUNDINGS))

    # ---- moves of the point

    def _rounded(self, middle: Any, scale: int, radius: Any, operations: int = 1) -> Ball:
        """A ball of integers at any scale, cut off to p bits."""
        middle = integers(middle)
        if scale <= self.bits:
            return Ball(middle, scale, settled(radius, operations))
        cut = scale - self.bits
        kept = integers(middle >> cut)
        return Ball(kept, self.bits, settled(radius + ((kept << cut) != middle), operations))

    def at(self, x: Ball) -> np.ndarray:
        """The middles at p bits."""
        return integers(x.middle << (self.bits - x.scale))

    def aligned(self, *balls: Ball) -> tuple[list[np.ndarray], int]:
        """The middles of several at the finest of their scales."""
        scale = max(x.scale for x in balls)
        return [x.middle if x.scale == scale else integers(x.middle << (scale - x.scale)) for x in balls], scale

    def joined(self, balls: Sequence[Ball], join: Callable[[list[np.ndarray]], Any]) -> Ball:
        """Several as one, by `join`, which sees lists of middles and of radii alike."""
        middles, scale = self.aligned(*balls)
        return Ball(integers(join(middles)), scale, np.asarray(join([x.radius for x in balls])))

    # ---- sums and products

    def add(self, a: Ball, b: Ball) -> Ball:
        (x, y), scale = self.aligned(a, b)
        return Ball(integers(x + y), scale, settled(a.radius + b.radius))

    def sub(self, a: Ball, b: Ball) -> Ball:
        (x, y), scale = self.aligned(a, b)
        return Ball(integers(x - y), scale, settled(a.radius + b.radius))

    def neg(self, a: Ball) -> Ball:
        return Ball(integers(-a.middle), a.scale, a.radius)

    def _spread(self, a: Ball, b: Ball, times: Callable[[np.ndarray, np.ndarray], Any]) -> Any:
        """|a| r_b + r_a |b| + r_a r_b for any product `times`; the terms with a radius 0 throughout are left out."""
        total: Any = 0.0
        with np.errstate(invalid="ignore"):  # 0 times infinity is undefined, and `settled` says so
            if np.any(b.radius):
                total = times(a.magnitude() + a.radius * self.unit, b.radius)
            if np.any(a.radius):
                total = total + times(a.radius, b.magnitude())
        return total

    def mul(self, a: Ball, b: Ball) -> Ball:
        middle = integers(a.middle * b.middle)
        radius = np.broadcast_to(self._spread(a, b, np.multiply), middle.shape)
        return self._rounded(middle, a.scale + b.scale, radius)

    def matmul(self, a: Ball, b: Ball) -> Ball:
        """Products of matrices, over leading axes: the sums are exact, so that each entry is rounded once."""
        middle = integers(np.matmul(a.middle, b.middle)) if a.shape[-1] else _zeros(np.matmul(a.radius, b.radius))
        radius = np.broadcast_to(self._spread(a, b, np.matmul), middle.shape)
        return self._rounded(middle, a.scale + b.scale, radius, a.shape[-1])

    def sum(self, a: Ball, axes: tuple[int, ...]) -> Ball:
        count = math.prod(a.shape[i] for i in axes)
        return Ball(
            integers(np.sum(a.middle, axis=axes, initial=0)), a.scale, settled(np.sum(a.radius, axis=axes), count)
        )

    def div(self, a: Ball, b: Ball) -> Ball:
        """|a/b - m_a/m_b| <= (|m_a/m_b| r_b + r_a)/(|m_b| - r_b)."""
        zero = np.asarray(b.middle == 0, bool)
        divisor = where(zero, 1, b.middle)
        numerator = integers(a.middle << (self.bits + b.scale - a.scale))
        middle = integers(numerator // divisor)
        inexact = np.asarray(middle * divisor != numerator, bool)
        lowest = floats(abs(b.middle)) * 2.0**-b.scale * (1 - ROUNDINGS) - b.radius * self.unit
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = (floats(abs(middle)) + 1) * self.unit * (1 + ROUNDINGS)
            radius = (quotient * b.radius + a.radius) / (lowest * (1 - ROUNDINGS))
        radius = np.where((b.radius == 0) & (a.radius == 0), 0.0, radius)
        radius = np.where(zero | (lowest <= 0), np.inf, radius)
        return Ball(middle, self.bits, settled(radius + inexact))

    def power(self, a: Ball, n: int) -> Ball:
        """a^n for an integer n, by squaring."""
        if n < 0:
            return self.div(self.exact(np.ones(())), self.power(a, -n))
        result, square = None, a
        while n:
            if n & 1:
                result = square if result is None else self.mul(result, square)
            n >>= 1
            square = self.mul(square, square) if n else square
        return self.exact(np.ones(a.shape)) if result is None else result

    # ---- elementary functions: f(m + d) - f(m) for |d| <= r

    def _function(self, a: Ball, function: Callable[..., Any], spread: Callable[[np.ndarray, np.ndarray], Any]) -> Ball:
        """f(m), and `spread(f(m), r)` in natural numbers, a bound of how far f moves within r of m."""
        made, errors = function(self.at(a), self.bits)
        close = floats(made) * self.unit
        r = a.radius * self.unit
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            moved = np.where(a.radius > 0, spread(close, r) / self.unit, 0.0)
        return Ball(made, self.bits, settled(moved + errors))

    def exp(self, a: Ball) -> Ball:
        """e^m (e^r - 1) <= e^m r e^r."""
        made = self._function(a, functions.exp, lambda y, r: (y * (1 + ROUNDINGS) + 2 * self.unit) * r * np.exp(r))
        one = (a.middle == 0) & (a.radius == 0)  # e^0 = 1 exactly
        return Ball(where(one, 1 << self.bits, made.middle), self.bits, np.where(one, 0.0, made.radius))

    def log(self, a: Ball) -> Ball:
        """r/(m - r)."""
        lowest = floats(a.middle) * 2.0**-a.scale * (1 - ROUNDINGS) - a.radius * self.unit
        radius = np.where(lowest > 0, 1 / np.where(lowest > 0, lowest * (1 - ROUNDINGS), 1.0), np.inf)
        made = self._function(a, functions.log, lambda y, r: r * radius)
        one = np.asarray((self.at(a) == 1 << self.bits) & (a.radius == 0), bool)
        return Ball(where(one, 0, made.middle), self.bits, np.where(one, 0.0, made.radius))

    def tanh(self, a: Ball) -> Ball:
        """r (f'(m) + r), since |f''| <= 0.77 and f' = 1 - f^2 (with 2^-50 for the rounding of it)."""
        made = self._function(a, functions.tanh, lambda y, r: r * (np.abs(1 - y * y) + ROUNDINGS + r))
        return self._odd(a, made)

    def logistic(self, a: Ball) -> Ball:
        """r (f'(m) + r), since |f''| <= 0.1 and f' = f (1 - f)."""
        return self._function(a, functions.logistic, lambda y, r: r * (np.abs(y * (1 - y)) + ROUNDINGS + r))

    def _odd(self, a: Ball, made: Ball) -> Ball:
        """f(0) = 0 exactly."""
        zero = (a.middle == 0) & (a.radius == 0)
        return Ball(where(zero, 0, made.middle), made.scale, np.where(zero, 0.0, made.radius))

    def sqrt(self, a: Ball) -> Ball:
        """|sqrt(m + d) - sqrt(m)| <= min(r/sqrt(m), sqrt(r)); not defined where m < 0, or m - r < 0 with r > 0."""
        undefined = np.asarray(a.middle < 0, bool)
        wide = where(undefined, 0, a.middle) << (2 * self.bits - a.scale)
        middle = integers(functions.isqrt(wide))
        inexact = np.asarray(middle * middle != wide, bool)
        with np.errstate(divide="ignore", invalid="ignore"):
            root = floats(middle) * self.unit * (1 - ROUNDINGS)
            moved = np.fmin(a.radius / root, np.sqrt(a.radius * self.unit) / self.unit)
        below = floats(a.middle) * 2.0**-a.scale * (1 - ROUNDINGS) < a.radius * self.unit
        moved = np.where(a.radius > 0, np.where(below, np.inf, moved), 0.0)
        return Ball(middle, self.bits, settled(np.where(undefined, np.inf, moved + inexact)))

    def abs(self, a: Ball) -> Ball:
        return Ball(integers(abs(a.middle)), a.scale, a.radius)

    def larger(self, a: Ball, b: Ball, *, sign: int = 1) -> Ball:
        """max(a, b), or min for `sign` = -1: a function with slopes of at most 1 in the largest of both changes."""
        (x, y), scale = self.aligned(a, b)
        pick = np.maximum if sign > 0 else np.minimum
        exact_x, exact_y = (np.broadcast_to(r, np.broadcast_shapes(x.shape, y.shape)) for r in (a.radius, b.radius))
        first, second = self._ordered(a, b, sign)
        radius = np.where(first, exact_x, np.where(second, exact_y, np.maximum(exact_x, exact_y)))
        return Ball(integers(pick(x, y)), scale, radius)

    def _ordered(self, a: Ball, b: Ball, sign: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the first is surely not below (above) the second, and where the second is not below the first."""
        gap, reach = self._gap(a, b)
        gap, known = sign * gap, np.isfinite(a.radius + b.radius)
        return np.asarray(gap >= reach, bool) & known, np.asarray(-gap >= reach, bool) & known

    def _gap(self, a: Ball, b: Ball) -> tuple[np.ndarray, np.ndarray]:
        """m_a - m_b at p bits, and r_a + r_b as integers above; entries without a bound reach everywhere."""
        total = settled(a.radius + b.radius)
        finite = np.isfinite(total)
        reach = integers(np.ceil(np.where(finite, total, 0.0)).astype(object))
        reach = integers(np.frompyfunc(int, 1, 1)(reach))
        return integers(self.at(a) - self.at(b)), where(finite, reach, 1 << (2 * MOST_BITS))

    def compare(self, a: Ball, b: Ball, relation: str) -> np.ndarray:
        """`lt`, `le`, `gt`, `ge`, `eq` or `ne`, where it is decided for all numbers of both balls.

        **Raises:** `Undecided` elsewhere.
        """
        gap, reach = self._gap(a, b)
        below, above = np.asarray(gap < -reach, bool), np.asarray(gap > reach, bool)
        same = np.asarray((gap == 0) & (reach == 0), bool)
        undecided = ~(below | above | same)
        if relation in ("le", "ge"):  # touching balls decide these
            touching = np.asarray(gap == (-reach if relation == "le" else reach), bool)
            undecided &= ~touching
            same |= touching
        if np.any(undecided):
            raise Undecided(f"a comparison ({relation}) of numbers that are equal, or too close to tell")
        found = {"lt": below, "gt": above, "le": below | same, "ge": above | same, "eq": same, "ne": ~same}
        return np.asarray(found[relation])

    def sign(self, a: Ball) -> Ball:
        zero = self.exact(np.zeros(a.shape))
        return self.exact(self.compare(a, zero, "gt") * 1 - self.compare(a, zero, "lt") * 1)


def _shifts(shift: Any) -> np.ndarray:
    """Shifts that may be made, 0 in the place of those that go the other way."""
    return integers(np.maximum(shift, 0).astype(object))


def _zeros(like: Any) -> np.ndarray:
    """Zeros in the shape of an array."""
    return integers(np.zeros(np.shape(like), np.int64).astype(object))
