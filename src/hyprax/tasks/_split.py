r"""The split certificate: a few tasks say where to look, the others certify it, at the price of a handful of means.

**Theorem.** Let the tasks be i.i.d. with losses in [0, H], and let a part of them (the *choosing* tasks) determine
intervals `S_1, ..., S_I` that cover the domain; for each i cells `C_i1, ..., C_iJ` that cover it too; shares
`delta_ij` with sum at most delta; and bets. For each of the other, *certifying* tasks put `D_ij(x) = max_{α in
S_i} loss_α(x) - min_{α in C_ij} loss_α(x) <= H`, and let `m_ij` be its wealth bound
(`wealth_bound`) at delta_ij. Then with probability at least 1 - delta

    L(α) - inf L <= max(0, m_i1, ..., m_iJ)        for all α in S_i, for all i at once.

*Proof.* Given the choosing tasks, everything chosen is fixed and the D_ij of the certifying tasks are i.i.d., so
`E D_ij <= m_ij` for all i and j with probability 1 - delta. Let α be in S_i, and α_star in C_ij.
Then `L(α) - L(α_star) = E[loss_α - loss_α_star] <= E D_ij <= m_ij`. ∎ Likewise `L(α) <= m_i` on
S_i, with m_i the wealth bound of `max_{S_i} loss` at a share delta_i, which bounds the deviation.

Why it is small: losses of different tasks differ much, but differences between two αs on one task differ little.
`D_ij` is centred: its variance is small near the optimum, and cells far from it have a mean so negative that they need
next to none of delta. What remains is a small multiple of `H ln(1/delta)/n`, in place of `3 H sqrt(ln(2/delta)/2n)`.
The maxima and minima are exact, because the dual functions are: no net, no Lipschitz constant, no Rademacher term. The
statement is uniform, so α may be the minimiser over all tasks.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ._bernstein import Array
from ._bounds import check_sample, empirical_bernstein_bound, wealth_bound
from ._brackets import cell_ranges, merged_cells, same_domain
from ._piecewise import PiecewiseFunction
from ._random import generator

Means: TypeAlias = Literal["wealth", "bernstein"]
BETS = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 0.99])
_CELLS = 48
"""Cells of the domain, and again of the neighbourhood of the optimum, from which the S_i and C_ij are put together."""
_INTERVALS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Numbers of intervals S_i that the likely part of the domain may be cut into."""
PLANNERS = 150
"""Choosing tasks that the plan is computed from, at most: more would cost time and change it little."""
_TRUST = 0.9
"""Weight of the bet that the choosing tasks recommend; the others share the rest, in case they are not typical."""
EQUAL = 0.02
"""Part of each budget of delta that is given out in equal parts: what the choosing tasks rule out is still covered."""


@dataclass(frozen=True)
class SplitCertificate:
    """What a split bound says of every α in the interval `αs`, with probability 1 - delta."""

    hypers: tuple[float, float] | tuple[tuple[float, float], ...]
    """S_i, an interval or a box: the bound holds for all of it at once."""
    bound: float
    """Upper bound of `L(α) - inf L` (excess), or of `L(α)` (risk)."""
    cells: int
    """J: the number of cells that α_star was confined to (0 for the risk, which has no α_star)."""
    choosing: int
    """Number of choosing tasks."""
    certifying: int
    """Number of certifying tasks."""


@dataclass(frozen=True)
class Ground:
    """Ranges on fine cells, the tasks split, and the interval S_i (fine cells first, ..., last - 1) with its share."""

    edges: Array
    lo: Array
    hi: Array
    choosing: Array
    certifying: Array
    first: int
    last: int
    share: float

    def tops(self) -> Array:
        """`max_{S_i} loss` of every task."""
        return self.hi[:, self.first : self.last].max(axis=1)


def split_excess_bound(
    duals: Sequence[PiecewiseFunction],
    hyper: float,
    delta: float,
    range: float = 1.0,
    *,
    key: Any,
    fraction: float = 0.15,
    means: Means = "wealth",
) -> SplitCertificate:
    """`L(α) - inf L <= max(0, max_j m_ij)`, for the S_i that α lies in, by the theorem of this module.

    The choosing tasks are a random `fraction` of all, drawn by `key`. The cells, shares and bets are those that would
    give the smallest bound if the certifying tasks were like the choosing ones: for a target tau a cell C needs the
    share `exp(-(predicted log-wealth of C at tau))`; dynamic programming finds the partition with the smallest sum of
    shares; and tau is lowered until that sum is the share of S_i.

    **Arguments:**

    - `duals`: the dual functions of the tasks, losses in [0, `range`].
    - `α`: any point of the domain, chosen in any way, also from all of these tasks.
    - `delta`: the probability with which the statement may fail.
    - `key`, `fraction`: a JAX random key and a part of the tasks, which choose. Both must be fixed before looking at
      the bound.
    - `means`: what bounds the means: `"wealth"` (nearly always the smallest) or `"bernstein"` (Maurer and Pontil).
    """
    ground = _split(duals, hyper, delta, range, fraction, key)
    starts, stops, shares, bets, _ = plan(ground, range)
    top = ground.tops()[ground.certifying]
    bound = 0.0
    for start, stop, share, bet in zip(starts, stops, shares, bets, strict=True):
        difference = top - ground.lo[ground.certifying, start:stop].min(axis=1)
        bound = max(bound, mean_bound(np.minimum(difference, range), share, (-range, range), int(bet), means))
    return _certificate(ground, bound, len(starts))


def split_risk_bound(
    duals: Sequence[PiecewiseFunction],
    hyper: float,
    delta: float,
    range: float = 1.0,
    *,
    key: Any,
    fraction: float = 0.15,
    means: Means = "wealth",
) -> SplitCertificate:
    """`L(α) <= m_i`, for the S_i that α lies in: m_i is the wealth bound of `max_{S_i} loss`.

    Arguments as for `split_excess_bound`.
    """
    ground = _split(duals, hyper, delta, range, fraction, key)
    top = np.minimum(ground.tops(), range)
    log_per_task = np.log(1 / ground.share) / len(ground.certifying)
    spread = np.var(top[ground.choosing])
    bet = int(np.argmin(log_per_task * range / BETS + 0.5 * BETS / range * spread))
    return _certificate(ground, mean_bound(top[ground.certifying], ground.share, (0.0, range), bet, means), 0)


def mean_bound(values: Array, delta: float, support: tuple[float, float], bet: int, means: Means) -> float:
    if means == "wealth":
        return wealth_bound(values, delta, support[1], BETS, _weights(bet))
    if means == "bernstein":
        return min(support[1], empirical_bernstein_bound(values, delta, support[1] - support[0]))
    raise ValueError(f"means must be 'wealth' or 'bernstein'; got {means!r}.")


def _certificate(ground: Ground, bound: float, cells: int) -> SplitCertificate:
    ends = float(ground.edges[ground.first]), float(ground.edges[ground.last])
    return SplitCertificate(ends, float(bound), cells, len(ground.choosing), len(ground.certifying))


def _split(
    duals: Sequence[PiecewiseFunction], hyper: float, delta: float, range: float, fraction: float, key: Any
) -> Ground:
    n = len(same_domain(duals))
    check_sample(n, delta, least=4)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1); got {fraction!r}.")
    a, b = duals[0].domain
    if not a <= hyper <= b:
        raise ValueError(f"hyper must lie in the domain [{a:g}, {b:g}] of the dual functions; got {hyper!r}.")
    count = choosing_of(n, fraction)
    order = generator("a split bound", key).permutation(n)
    choosing, certifying = order[:count], order[count:]
    known = [duals[i] for i in choosing]
    # The grid is refined twice around where the choosing tasks see the optimum.
    edges = fine_cells(known, count, _CELLS)
    lo, hi = cell_ranges(duals, edges)
    cuts, shares = intervals(lo[choosing], hi[choosing], range / n, count)
    # A point on an edge has the value of the cell to its right.
    i = min(int(np.searchsorted(edges[cuts], hyper, side="right")) - 1, shares.size - 1)
    return Ground(edges, lo, hi, choosing, certifying, int(cuts[i]), int(cuts[i + 1]), delta * float(shares[i]))


def choosing_of(n: int, fraction: float) -> int:
    """How many of n tasks choose."""
    return min(max(2, round(fraction * n)), n - 2)


def fine_cells(known: Sequence[PiecewiseFunction], count: int, cells: int) -> Array:
    """Edges of cells, refined twice around where `count` tasks like those known see the optimum."""
    a, b = known[0].domain
    coarse = edges = merged_cells(known, cells)
    for _ in (1, 2):
        first, last = _likely(*cell_ranges(known, edges), count)
        reach = edges[last] - edges[first]
        around = np.linspace(max(a, edges[first] - reach), min(b, edges[last] + reach), cells + 1)
        edges = np.union1d(coarse, around)
    return edges


def _behind(lo: Array, hi: Array, count: int) -> Array:
    """By how many standard errors `count` tasks like these place each cell behind the best one."""
    middle = 0.5 * (lo + hi)
    behind = middle - middle[:, [int(np.argmin(middle.mean(axis=0)))]]
    error = behind.std(axis=0, ddof=1) / np.sqrt(count)
    mean = behind.mean(axis=0)
    return np.divide(mean, error, out=np.where(mean > 0, np.inf, 0.0), where=error > 0)


def _likely(lo: Array, hi: Array, count: int) -> tuple[int, int]:
    """First and last + 1 of the cells within two standard errors of the best."""
    alike = np.flatnonzero(_behind(lo, hi, count) <= 2)
    return int(alike[0]), int(alike[-1]) + 1


def intervals(lo: Array, hi: Array, price: float, count: int) -> tuple[Array, Array]:
    """Cuts between the S_i, and their parts of delta.

    The likely cells are cut into as many S_i as balance the mean width of the brackets against `price ln(number)`; the
    parts are proportional to `exp(-z^2 / 2)`, z the standard errors by which the best cell of S_i is behind.
    """
    first, last = _likely(lo, hi, count)
    best, inner = np.inf, np.array([first, last])
    for number in _INTERVALS:
        cuts = np.unique(np.linspace(first, last, number + 1).round().astype(int))
        width = [np.mean(hi[:, p:q].max(axis=1) - lo[:, p:q].min(axis=1)) for p, q in itertools.pairwise(cuts)]
        cost = np.mean(width) + price * np.log(number)
        if cost < best:
            best, inner = cost, cuts
    cuts = np.unique(np.concatenate([[0], inner, [lo.shape[1]]]))
    behind = _behind(lo, hi, count)
    chance = np.exp([-0.5 * np.min(behind[p:q]) ** 2 for p, q in itertools.pairwise(cuts)])
    return cuts, (1 - EQUAL) * chance / np.sum(chance) + EQUAL / chance.size


def _weights(recommended: int) -> Array:
    weights = np.full(BETS.size, (1 - _TRUST) / BETS.size)
    weights[recommended] += _TRUST
    return weights


def plan(ground: Ground, range: float) -> tuple[Array, Array, Array, Array, float]:
    """Cells C_ij (as fine cells start, ..., stop - 1), their shares of delta, the index of the bet of each, and the
    bound that they give if the certifying tasks are like the choosing ones."""
    n, cells = len(ground.certifying), ground.lo.shape[1]
    planners = ground.choosing[:PLANNERS]
    top, lo = ground.tops()[planners], ground.lo[planners]
    rows, columns = np.triu_indices(cells)  # every cell made of the fine cells rows, ..., columns
    lowest = np.concatenate([np.minimum.accumulate(lo[:, start:], axis=1) for start in np.arange(cells)], axis=1)
    differences = np.minimum(top[:, None] - lowest, range) / range

    def log_wealth(tau: float) -> Array:
        return n * np.stack([np.mean(np.log1p(bet * (tau - differences)), axis=0) for bet in BETS])

    def partition(cost: Array) -> tuple[float, Array]:
        """Smallest sum of costs of cells that follow one another from end to end, and where they meet."""
        total, came = np.zeros(cells + 1), np.zeros(cells + 1, dtype=int)
        square = np.full((cells, cells), np.inf)
        square[rows, columns] = cost
        for stop in np.arange(1, cells + 1):
            choices = total[:stop] + square[:stop, stop - 1]
            came[stop] = np.argmin(choices)
            total[stop] = choices[came[stop]]
        cuts = [cells]
        while cuts[-1] > 0:
            cuts.append(int(came[cuts[-1]]))
        return float(total[cells]), np.array(cuts[::-1])

    low, high = 0.0, 1.0
    for _ in np.arange(12):
        tau = 0.5 * (low + high)
        enough = partition(np.exp(-log_wealth(tau).max(axis=0)))[0] <= ground.share
        low, high = (low, tau) if enough else (tau, high)
    wealth = log_wealth(high)
    cost = np.exp(-wealth.max(axis=0))
    cuts = partition(cost)[1]
    index = np.zeros((cells, cells), dtype=int)
    index[rows, columns] = np.arange(rows.size)
    chosen = index[cuts[:-1], cuts[1:] - 1]
    shares = ground.share * ((1 - EQUAL) * cost[chosen] / np.sum(cost[chosen]) + EQUAL / chosen.size)
    return cuts[:-1], cuts[1:], shares, wealth.argmax(axis=0)[chosen], high * range
