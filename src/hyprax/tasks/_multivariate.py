"""Polynomials in a few variables on the cube [-1, 1]^p, many at a time: monomials, Bernstein forms, least values."""

import itertools
from fractions import Fraction
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np

from ._bernstein import UNIT, Array


class Monomials(NamedTuple):
    """The monomials `s^α`, `|α| <= degree`, in `variables` variables, by degree."""

    variables: int
    degree: int
    powers: Array
    """(count, variables)."""
    row_of: dict[tuple[int, ...], int]
    """α -> its row."""
    level: tuple[slice, ...]
    """The rows of each degree."""

    def below(self, row: int) -> list[tuple[int, int]]:
        """(h, row of `α - e_h`) for every variable h that α holds."""
        power = self.powers[row]
        unit = np.eye(self.variables, dtype=int)
        return [(h, self.row_of[tuple(map(int, power - unit[h]))]) for h in range(self.variables) if power[h]]


@lru_cache(maxsize=64)
def monomials(variables: int, degree: int) -> Monomials:
    """All monomials up to a degree; 1 first, then the variables themselves."""
    powers, level = [], []
    for total in range(degree + 1):
        here = [a for a in itertools.product(range(total, -1, -1), repeat=variables) if sum(a) == total]
        level.append(slice(len(powers), len(powers) + len(here)))
        powers += here
    index = {tuple(a): i for i, a in enumerate(powers)}
    return Monomials(variables, degree, np.array(powers, dtype=int).reshape(-1, variables), index, tuple(level))


@lru_cache(maxsize=64)
def pairs(variables: int, degree: int, other: int) -> Array:
    """(count of one degree x count of the other, count of their sum): which monomial the product of two is."""
    large = monomials(variables, degree + other)
    total = monomials(variables, degree).powers[:, None] + monomials(variables, other).powers[None]
    rows = [large.row_of[tuple(map(int, a))] for a in total.reshape(-1, variables)]
    out = np.zeros((len(rows), len(large.powers)))
    out[np.arange(len(rows)), rows] = 1.0
    return out


@lru_cache(maxsize=64)
def shifts(variables: int, degree: int, raised: tuple[int, ...]) -> tuple[Array, Array]:
    """The rows of monomials up to `degree` that stay within it when multiplied by `s^raised`, and what they become."""
    known = monomials(variables, degree)
    rows = [i for i, a in enumerate(known.powers) if a.sum() + sum(raised) <= degree]
    return np.array(rows, dtype=int), np.array(
        [known.row_of[tuple(int(x) + r for x, r in zip(known.powers[i], raised, strict=True))] for i in rows], dtype=int
    )


@lru_cache(maxsize=64)
def to_bernstein(degree: int) -> Array:
    """(degree + 1, degree + 1): row k holds the Bernstein coefficients on [-1, 1] of `s^k`."""
    rows = []
    for k in range(degree + 1):
        # s = 2 t - 1, and t^j has the coefficients C(i, j) / C(degree, j).
        in_t = [Fraction(comb(k, j) * 2**j * (-1) ** (k - j)) for j in range(k + 1)]
        rows.append(
            [
                float(sum((c * Fraction(comb(i, j), comb(degree, j)) for j, c in enumerate(in_t)), Fraction(0)))
                for i in range(degree + 1)
            ]
        )
    return np.array(rows)


@lru_cache(maxsize=64)
def _halves(degree: int) -> tuple[Array, Array]:
    """The coefficients on the two halves of an interval, as matrices."""
    left = np.array([[comb(i, j) / 2**i if j <= i else 0.0 for j in range(degree + 1)] for i in range(degree + 1)])
    return left, left[::-1, ::-1].copy()


def _along(tensor: Array, matrix: Array, axis: int) -> Array:
    """`sum_j matrix[i, j] tensor[..., j, ...]`."""
    return np.moveaxis(np.moveaxis(tensor, axis, -1) @ matrix.T, -1, axis)


def hulls(coefficients: Array, variables: int, degree: int) -> tuple[Array, Array]:
    """The least and the largest Bernstein coefficient of each row: bounds of the polynomial, rounding included."""
    tensor, size = _tensor(coefficients, variables, degree)
    flat, lost = tensor.reshape(len(tensor), -1), 4 * (degree + 3) * (variables + 1) * UNIT * size
    return flat.min(axis=1) - lost, flat.max(axis=1) + lost


def _tensor(coefficients: Array, variables: int, degree: int) -> tuple[Array, Array]:
    """Bernstein coefficients of each row of monomial ones, and their size."""
    known = monomials(variables, degree)
    tensor = np.zeros((len(coefficients), *(degree + 1,) * variables))
    tensor[(slice(None), *known.powers.T)] = coefficients
    matrix = to_bernstein(degree).T
    for axis in range(variables):
        tensor = _along(tensor, matrix, axis + 1)
    return tensor, np.abs(coefficients).sum(axis=1)


class Least(NamedTuple):
    """The least value of each polynomial on the cube, between two bounds, and a point that has the upper one."""

    lower: Array
    """(m,), rounding included."""
    upper: Array
    """(m,), a value that is taken, up to rounding."""
    point: Array
    """(m, p) in [-1, 1]^p."""


def least(coefficients: Array, variables: int, degree: int, slack: Array, *, most: int = 40) -> Least:
    """`min p` on [-1, 1]^p of each row of monomial coefficients, to `slack` (m,) where `most` halvings reach it.

    The smallest Bernstein coefficient on a box bounds p from below, and those at its corners are values of p
    (Garloff 1985). Boxes that may hold less than the best value by more than the slack are halved, in turn along each
    variable.
    """
    m = len(coefficients)
    tensor, size = _tensor(coefficients, variables, degree)
    owner, low, high = np.arange(m), -np.ones((m, variables)), np.ones((m, variables))
    corners = np.array(list(itertools.product((0, degree), repeat=variables)))
    upper, point, lower = np.full(m, np.inf), np.zeros((m, variables)), np.full(m, np.inf)
    halvings = 0
    for halvings in range(most + 1):
        values = tensor[(slice(None), *corners.T)]  # (boxes, corners)
        best = np.argmin(values, axis=1)
        value = values[np.arange(len(values)), best]
        order = np.argsort(-value, kind="stable")  # the last write is the smallest
        better = order[value[order] < upper[owner[order]]]
        at = np.where(corners[best] > 0, high, low)
        upper[owner[better]], point[owner[better]] = value[better], at[better]
        bottom = tensor.reshape(len(tensor), -1).min(axis=1)
        open_ = bottom < upper[owner] - slack[owner]
        if halvings == most or len(owner) > 200_000:
            open_[:] = False
        np.minimum.at(lower, owner[~open_], bottom[~open_])
        if not open_.any():
            break
        tensor, owner, low, high = tensor[open_], owner[open_], low[open_], high[open_]
        axis = halvings % variables
        left, right = _halves(degree)
        middle = 0.5 * (low[:, axis] + high[:, axis])
        tensor = np.concatenate([_along(tensor, left, axis + 1), _along(tensor, right, axis + 1)])
        low, high = np.concatenate([low, low]), np.concatenate([high, high])
        high[: len(owner), axis], low[len(owner) :, axis] = middle, middle
        owner = np.concatenate([owner, owner])
    # Each contraction is a sum of degree + 1 products with weights of sum at most one (those of `s^k` to Bernstein lie
    # in [-1, 1]), so it loses at most (degree + 3) u of the largest sum of absolute coefficients.
    lost = 4 * (degree + 3) * (variables + halvings + 1) * UNIT * size
    return Least(lower - lost, upper + lost, point)
