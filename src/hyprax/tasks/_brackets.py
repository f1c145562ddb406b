"""Certified ranges of many dual functions on many cells of the domain, and what is computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from . import _bernstein as bernstein
from ._bernstein import Array
from ._bounds import ROUNDING, Target, check_sample, rademacher_bound
from ._piecewise import PiecewiseFunction
from ._random import generator

_BLOCK = 2_000_000
"""Floats that a block of sign vectors times cells may hold."""


def cell_ranges(
    duals: Sequence[PiecewiseFunction], edges: Float[Array, " G_plus_1"]
) -> tuple[Float[Array, "n G"], Float[Array, "n G"]]:
    """`lo[i, g] <= f_i(α) <= hi[i, g]` for every α in `[edges[g], edges[g + 1]]`, one-sided limits included.

    Exact up to rounding for pieces of degree at most 2, else the hull of the Bernstein coefficients, which is wider
    than the range by a term of second order in the width of the cell.
    """
    lo, hi = np.empty((len(duals), edges.size - 1)), np.empty((len(duals), edges.size - 1))
    for i, dual in enumerate(duals):
        parts = dual.refine(np.union1d(dual.breakpoints, edges))
        low, high = parts.ranges()
        first = np.searchsorted(parts.breakpoints[:-1], edges[:-1])
        lo[i], hi[i] = np.minimum.reduceat(low, first), np.maximum.reduceat(high, first)
    return lo, hi


def merged_cells(duals: Sequence[PiecewiseFunction], most: int) -> Float[Array, " G_plus_1"]:
    """Edges of at most about `most` cells: all breakpoints if few, else quantiles of them; and even steps."""
    a, b = duals[0].domain
    points = np.unique(np.concatenate([dual.breakpoints for dual in duals]))
    if points.size > most // 2:
        points = np.quantile(points, np.linspace(0, 1, most // 2 + 1), method="nearest")
    even = np.linspace(a, b, most // 4 + 1)
    geometric = np.geomspace(a, b, most // 4 + 1) if a > 0 else even
    edges = np.unique(np.concatenate([points, even, geometric]))
    edges = edges[(edges > a) & (edges < b)]
    return np.concatenate([[a], edges, [b]])


@dataclass(frozen=True)
class Complexity:
    """Empirical Rademacher complexity of the duals of n tasks, in units of the loss, and the bound that it gives."""

    n: int
    """How many tasks."""

    estimate: float
    """Mean over the drawn signs of the inner maximum."""
    upper: float
    """Upper bound of the expectation over signs that holds with probability 1 - `delta` over the draw of the signs."""
    delta: float
    """The probability with which `upper` may fail, over the draw of the signs."""
    draws: int
    """How many signs were drawn."""

    def bound(self, delta: float, *, range: float = 1.0, target: Target = "excess") -> float:
        r"""`2 R + 3 H sqrt(ln(2/δ) / 2n)` for the deviation, `2 R + 4 H sqrt(ln(2/δ) / 2n)` for the excess.

        R is `upper`. It holds with probability 1 - `delta`, δ = `delta` less the part that `upper` has used; losses
        lie in [0, H], H = `range`.

        *Proof.* `E sup (L - M) <= 2 E R`; exchanging one task moves R by at most H/n, so `E R <= R + H sqrt(ln(2/δ) /
        2n)` with probability 1 - δ/2; bounded differences with the other half of δ. ∎ Centring leaves R as it is
        (`E s_i = 0`), and so helps the confidence term only through variance: that is what the split bounds are for.

        **Raises:** `ValueError` for a `delta` that does not lie between that of `upper` and 1.

        Source: Bartlett and Mendelson (2002).
        """
        if not self.delta < delta < 1:
            raise ValueError(f"delta must lie between {self.delta:g}, that of the complexity, and 1; got {delta}.")
        return rademacher_bound(self.upper, self.n, delta - self.delta, range, target)


def rademacher_complexity(
    duals: Sequence[PiecewiseFunction], *, key: Any, draws: int = 2000, delta: float = 0.005
) -> Complexity:
    r"""`R = E_s max_α (1/n) sum_i s_i f_i(α)`, s_i = ±1: inner maximum exact, expectation by Monte Carlo.

    On the merged breakpoints a signed sum is one polynomial a piece, `sum_i s_i b_ik`, whose Bernstein coefficients
    are signed sums of those of the duals: one matrix product for all draws. Its maximum is exact up to degree 2 and
    the hull of the coefficients above (an upper bound, tight to second order in the width of the piece). All radii are
    added.

    `upper` adds `sqrt(2 sum_i c_i^2 ln(1/delta) / m)` to the mean over m draws: from each dual the middle of its range
    is taken off, which leaves the expectation as it is (`E s_i = 0`); then the inner maximum moves by at most `2 c_i`
    when sign i flips, c_i half the range of dual i over n, and McDiarmid's inequality applies to the m n independent
    signs.

    **Arguments:** `duals` of one domain; `draws` of the signs; `delta` for the Monte-Carlo error; `key`, a JAX random
    key.
    """
    check_sample(len(duals), delta)
    check_sample(draws, delta, least=2)
    n = len(duals)
    polynomials = [dual.to_polynomials() for dual in same_domain(duals)]
    edges = np.unique(np.concatenate([p.breakpoints for p in polynomials]))
    degree = max(p.numerator.shape[1] for p in polynomials) - 1
    lows, highs = zip(*(p.ranges() for p in polynomials), strict=True)
    low, high = np.array([np.min(x) for x in lows]), np.array([np.max(x) for x in highs])
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    signs = np.where(generator("rademacher_complexity", key).random((draws, n)) < 0.5, -1.0, 1.0)
    best = np.full(draws, -np.inf)
    step = max(1, _BLOCK // (max(n, draws) * (degree + 1)))
    for start in range(0, edges.size - 1, step):
        parts = [p.refine(edges[start : start + step + 1]) for p in polynomials]
        rows = np.stack([bernstein.elevate(p.numerator, degree) for p in parts]) - middle[:, None, None]
        radius = np.sum([p.error() for p in parts], axis=0)
        sums = (signs @ rows.reshape(n, -1)).reshape(-1, degree + 1)
        tops = _row_maxima(sums).reshape(draws, -1) + radius
        best = np.maximum(best, tops.max(axis=1))
    estimate = float(np.mean(best)) / n
    doubt = float(np.sqrt(2 * np.sum((half / n) ** 2) * np.log(1 / delta) / draws))
    return Complexity(n, estimate, estimate + doubt + ROUNDING * float(np.max(half)), delta, draws)


def _row_maxima(b: Array) -> Array:
    """Maximum on [0, 1] of each row of Bernstein coefficients: exact up to degree 2, the largest coefficient above."""
    return -bernstein.quadratic_minima(-b)[1] if b.shape[1] <= 3 else b.max(axis=1)


def same_domain(duals: Sequence[PiecewiseFunction]) -> Sequence[PiecewiseFunction]:
    """The duals, or a `ValueError` if there are none or their domains differ."""
    if not duals:
        raise ValueError("duals must hold at least one dual function; got none.")
    for i, dual in enumerate(duals):
        if not isinstance(dual, PiecewiseFunction):
            raise ValueError(f"dual function {i} must be a PiecewiseFunction; got a {type(dual).__name__}.")
        if dual.domain != duals[0].domain:
            raise ValueError(
                f"dual functions must share one domain; number 0 has {duals[0].domain} and number {i} {dual.domain}."
            )
    return duals
