"""Polynomials on [0, 1] in the Bernstein basis, many at a time: one row, one polynomial.

`p(t) = sum_i b_i C(n, i) t^i (1 - t)^(n - i)`. Restriction to a part of [0, 1] and evaluation are convex combinations
of the coefficients, so neither can amplify a rounding error, and `min b <= p <= max b` on [0, 1]: the two reasons for
this basis (Farouki and Rajan, 1987). Global monomials lose every digit where the pieces are thin.
"""

from functools import lru_cache
from math import comb
from typing import TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray
UNIT = 2.0**-53
"""Unit roundoff of float64."""


def rounding(b: Array) -> Array:
    """A bound on the rounding of one restriction or one evaluation of each row: `16 (n + 1) u max_i |b_i|`.

    De Casteljau's scheme makes n levels of `(1 - t) x + t y`, each with a relative error of at most 3 u, and the two
    local coordinates carry at most 3 u each, which moves the value by at most `3 u * 2 n max|b|` apiece. A restriction
    is two such schemes: `6 n u + 6 n u` in all, below 16 (n + 1) u with the second-order terms.
    """
    return 16 * b.shape[-1] * UNIT * np.max(np.abs(b), axis=-1)


@lru_cache(maxsize=256)
def _from_monomial_matrix(n: int) -> Array:
    return np.array([[comb(i, j) / comb(n, j) for i in range(n + 1)] for j in range(n + 1)])


def from_monomial(coefficients: Array) -> Array:
    """`b_i = sum_{j <= i} C(i, j) / C(n, j) a_j`, for `p(t) = sum_j a_j t^j` on [0, 1]."""
    return coefficients @ _from_monomial_matrix(coefficients.shape[-1] - 1)


@lru_cache(maxsize=1024)
def _elevation_matrix(n: int, m: int) -> Array:
    # C(n, j) C(m - n, i - j) / C(m, i): a row i of weights is hypergeometric, so it sums to one.
    return np.array(
        [[comb(n, j) * comb(m - n, i - j) / comb(m, i) if j <= i else 0.0 for i in range(m + 1)] for j in range(n + 1)]
    )


def elevate(b: Array, degree: int) -> Array:
    """The same polynomials, written with a higher degree."""
    n = b.shape[-1] - 1
    if degree == n:
        return b
    if n == 0:
        return np.repeat(b, degree + 1, axis=-1)
    return b @ _elevation_matrix(n, degree)


def evaluate(b: Array, t: Array) -> Array:
    """`p_k(t_k)` for every row k, by de Casteljau's scheme."""
    s = 1.0 - t
    while b.shape[-1] > 1:
        b = s[..., None] * b[..., :-1] + t[..., None] * b[..., 1:]
    return b[..., 0]


def split(b: Array, t: Array) -> tuple[Array, Array]:
    """Coefficients on [0, t] and on [t, 1], each in its own local coordinate."""
    left, right = np.empty_like(b), np.empty_like(b)
    s, t = (1.0 - t)[:, None], t[:, None]
    n = b.shape[1] - 1
    for i in range(n + 1):
        left[:, i], right[:, n - i] = b[:, 0], b[:, -1]
        b = s * b[:, :-1] + t * b[:, 1:]
    return left, right


def restrict(b: Array, t0: Array, t1: Array) -> Array:
    """Coefficients on [t0, t1], rows that keep the whole of [0, 1] unchanged to the bit."""
    part = (t0 > 0.0) | (t1 < 1.0)
    if b.shape[1] == 1 or not part.any():
        return b
    out = b.copy()
    a0, a1 = t0[part], t1[part]
    tail = split(b[part], a0)[1]
    # Of what is left of [t0, 1], the part (t1 - t0) / (1 - t0); a t0 that was rounded to 1 leaves the value there.
    out[part] = split(tail, np.minimum((a1 - a0) / np.maximum(1.0 - a0, UNIT), 1.0))[0]
    return out


def derivative(b: Array) -> Array:
    """Coefficients of dp/dt; a constant has the derivative 0."""
    n = b.shape[-1] - 1
    return n * np.diff(b, axis=-1) if n else np.zeros_like(b)


@lru_cache(maxsize=1024)
def _binomials(n: int) -> Array:
    return np.array([float(comb(n, i)) for i in range(n + 1)])


def product(a: Array, b: Array) -> Array:
    """`c_k = sum_i C(m, i) C(n, k - i) / C(m + n, k) a_i b_(k - i)`."""
    m, n = a.shape[-1] - 1, b.shape[-1] - 1
    x, y = a * _binomials(m), b * _binomials(n)
    out = np.zeros((*np.broadcast_shapes(a.shape[:-1], b.shape[:-1]), m + n + 1))
    for i in range(m + 1):
        out[..., i : i + n + 1] += x[..., i : i + 1] * y
    return out / _binomials(m + n)


def sign_changes(b: Array) -> Array:
    """Sign changes in each row, zeros skipped: by Descartes' rule no fewer than the roots in (0, 1)."""
    sign = np.sign(b)
    # Carry the last non-zero sign over the zeros.
    for i in range(1, sign.shape[1]):
        sign[:, i] = np.where(sign[:, i] == 0, sign[:, i - 1], sign[:, i])
    return np.sum(sign[:, 1:] * sign[:, :-1] < 0, axis=1)


def quadratic_minima(b: Array) -> tuple[Array, Array]:
    """Place in [0, 1] and value of the minimum of every row of degree at most 2."""
    t = np.where(b[:, -1] < b[:, 0], 1.0, 0.0)
    value = np.minimum(b[:, 0], b[:, -1])
    if b.shape[1] == 3:
        drop, curvature = b[:, 0] - b[:, 1], b[:, 0] - 2 * b[:, 1] + b[:, 2]
        inside = (curvature > 0) & (drop > 0) & (drop < curvature)
        vertex = np.divide(drop, curvature, out=t.copy(), where=inside)
        low = evaluate(b, vertex)
        better = inside & (low < value)
        t, value = np.where(better, vertex, t), np.where(better, low, value)
    return t, value


_THINNEST = 2.0**-48
"""A cluster of roots closer than this in the local coordinate is reported as one."""


def roots(b: Array, noise: Array | None = None) -> tuple[Array, Array]:
    """Every root in the open interval (0, 1) of every row, by subdivision and Descartes' rule.

    A part with no sign change of coefficients has no root; one with exactly one has one, found by bisection; any other
    is halved. A part thinner than 2^-48, or one whose coefficients are all below `noise` (by default the rounding of
    the row), cannot be resolved further and is reported as one root at its middle. Rows below the noise everywhere
    have none.

    **Returns:** the rows and the places, sorted by row and then by place.
    """
    floor = rounding(b) if noise is None else noise
    owner = np.flatnonzero((sign_changes(b) > 0) & (np.max(np.abs(b), axis=1) > floor))
    rows, lo, hi, floor = b[owner], np.zeros(owner.size), np.ones(owner.size), floor[owner]
    found: list[tuple[Array, Array]] = []
    while owner.size:
        changes = sign_changes(rows)
        single = (changes == 1) & (rows[:, 0] != 0) & (rows[:, -1] != 0)
        lost = (hi - lo <= _THINNEST) | (np.max(np.abs(rows), axis=1) <= floor)
        done = (single | lost) & (changes > 0)
        found.append((owner[done], lo[done] + (hi[done] - lo[done]) * _bisect(rows[done])))
        # A root exactly at the middle would be an end, and so invisible, in both halves.
        keep = ~done & (changes > 0)
        rows, lo, hi, owner, floor = rows[keep], lo[keep], hi[keep], owner[keep], floor[keep]
        middle = 0.5 * (lo + hi)
        left, right = split(rows, np.full(owner.size, 0.5))
        zero = right[:, 0] == 0
        found.append((owner[zero], middle[zero]))
        rows = np.concatenate([left, right])
        lo, hi = np.concatenate([lo, middle]), np.concatenate([middle, hi])
        owner, floor = np.concatenate([owner, owner]), np.concatenate([floor, floor])
    who = np.concatenate([np.zeros(0, dtype=int), *(w for w, _ in found)])
    where = np.concatenate([np.zeros(0), *(x for _, x in found)])
    order = np.lexsort((where, who))
    who, where = who[order], where[order]
    fresh = (where > 0) & (where < 1)
    fresh[1:] &= (np.diff(who) != 0) | (np.diff(where) > _THINNEST)
    return who[fresh], where[fresh]


def _bisect(b: Array) -> Array:
    """The root of each row that changes sign between its ends; the middle of a row that does not (a cluster)."""
    lo, hi = np.zeros(len(b)), np.ones(len(b))
    rising = np.sign(b[:, -1])
    for _ in range(60):
        middle = 0.5 * (lo + hi)
        above = evaluate(b, middle) * rising > 0
        lo, hi = np.where(above, lo, middle), np.where(above, middle, hi)
    return np.where(np.sign(b[:, 0]) * rising < 0, 0.5 * (lo + hi), 0.5)
