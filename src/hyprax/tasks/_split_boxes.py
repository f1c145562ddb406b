r"""The split certificate for several hyperparameters: boxes of a tree in place of intervals.

The theorem of `_split.py` asks nothing of the sets S_i and C_ij but that they cover the domain and that the certifying
tasks have no say in them. Here they are nodes of a tree of boxes. The choosing tasks halve the domain where they cannot
rule the optimum out, until the loss of a task is known on each box to about the price of one more cell. A cut of the
tree gives the S_i, and for each of them the cut with the smallest sum of shares gives the C_ij, by recursion from the
leaves: a node is either one cell, or the cells of its two halves. The largest loss on S_i and the least on C_ij are
those of enclosures, from above and from below, so the bound holds, and is wider by what the enclosures are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ._bernstein import Array
from ._bounds import check_sample
from ._box_dual import BoxDual, together
from ._boxes import Axes, ranges
from ._random import generator
from ._split import BETS, EQUAL, PLANNERS, Means, SplitCertificate, choosing_of, mean_bound

_LEAVES = 320
"""Boxes of the tree, at most about so many."""
_AT_ONCE = 16
"""Boxes halved in a round."""
_FINE = 0.5
"""Boxes are halved down to so much of the price `range / n` of a cell."""


class _Tree(NamedTuple):
    """Boxes; the halves of a box stand after it."""

    low: Array
    """(nodes, p)."""
    high: Array
    halves: Array
    """(nodes, 2): the first -1 for a leaf."""

    @property
    def leaves(self) -> Array:
        """The boxes that are not halved."""
        return np.flatnonzero(self.halves[:, 0] < 0)

    def raised(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Ranges (n, nodes) of all nodes from those of the leaves (n, leaves)."""
        n, nodes = len(lo), len(self.low)
        below, above = np.empty((n, nodes)), np.empty((n, nodes))
        below[:, self.leaves], above[:, self.leaves] = lo, hi
        for node in np.flatnonzero(self.halves[:, 0] >= 0)[::-1]:
            below[:, node] = below[:, self.halves[node]].min(axis=1)
            above[:, node] = above[:, self.halves[node]].max(axis=1)
        return below, above

    def cut(self, stop: Array) -> list[int]:
        """The nodes met first, from the root, that are leaves or where `stop` says so: they cover the domain."""
        met, open_ = [], [0]
        while open_:
            node = open_.pop()
            if stop[node] or self.halves[node, 0] < 0:
                met.append(node)
            else:
                open_ += self.halves[node].tolist()
        return sorted(met)


@dataclass(frozen=True, eq=False)
class BoxGround:
    """What the choosing tasks have settled, and the ranges of all tasks."""

    tree: _Tree
    sets: list[int]
    """The nodes S_i."""
    shares: Array
    """Their parts of delta."""
    lo: Array
    """(n, nodes)."""
    hi: Array
    choosing: Array
    certifying: Array
    range: float

    @classmethod
    def of(cls, duals: Sequence[BoxDual], range: float, fraction: float, key: Any) -> "BoxGround":
        """Draw the tasks that choose, let them choose, and look at the others."""
        n = len(duals)
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie in (0, 1); got {fraction!r}.")
        count = choosing_of(n, fraction)
        order = generator("a split bound", key).permutation(n)
        choosing, certifying = order[:count], order[count:]
        tree = _grown([duals[i] for i in choosing], range / n)
        p = tree.low.shape[1]
        lo, hi = ranges(together(duals), p, tree.low[tree.leaves], tree.high[tree.leaves])[:2]
        lo, hi = tree.raised(np.minimum(lo, range), np.minimum(hi, range))
        sets, shares = _sets(tree, lo[choosing], hi[choosing], range / n)
        return cls(tree, sets, shares, lo, hi, choosing, certifying, range)

    def holding(self, hyper: Array) -> int:
        """Which S_i holds a point."""
        tree = self.tree
        inside = [i for i, s in enumerate(self.sets) if np.all((tree.low[s] <= hyper) & (hyper <= tree.high[s]))]
        if not inside:
            raise ValueError(f"hyper must lie in the domain of the dual functions; got {hyper!r}.")
        return inside[0]

    def excess(self, hyper: Array, delta: float, means: Means) -> SplitCertificate:
        """`L(λ) - inf L <= max(0, max_j m_ij)` for all λ in the S_i that holds `hyper`."""
        i = self.holding(hyper)
        share = delta * float(self.shares[i])
        cells, shares, bets = self._plan(self.sets[i], share)
        bound, top = 0.0, self.hi[self.certifying, self.sets[i]]
        for cell, part, bet in zip(cells, shares, bets, strict=True):
            difference = np.minimum(top - self.lo[self.certifying, cell], self.range)
            bound = max(bound, mean_bound(difference, part, (-self.range, self.range), int(bet), means))
        return self._certificate(i, bound, len(cells))

    def risk(self, hyper: Array, delta: float, means: Means) -> SplitCertificate:
        """`L(λ) <= m_i` for all λ in the S_i that holds `hyper`."""
        i = self.holding(hyper)
        share, top = delta * float(self.shares[i]), self.hi[:, self.sets[i]]
        price = np.log(1 / share) / len(self.certifying)
        bet = int(np.argmin(price * self.range / BETS + 0.5 * BETS / self.range * np.var(top[self.choosing])))
        return self._certificate(i, mean_bound(top[self.certifying], share, (0.0, self.range), bet, means), 0)

    def _certificate(self, i: int, bound: float, cells: int) -> SplitCertificate:
        box = zip(self.tree.low[self.sets[i]].tolist(), self.tree.high[self.sets[i]].tolist(), strict=True)
        return SplitCertificate(tuple(box), float(bound), cells, len(self.choosing), len(self.certifying))

    def _plan(self, s: int, share: float) -> tuple[Array, Array, Array]:
        """The cells C_ij (nodes), their shares of delta, and the index of the bet of each."""
        n, planners = len(self.certifying), self.choosing[:PLANNERS]
        differences = np.minimum(self.hi[planners, s][:, None] - self.lo[planners], self.range) / self.range
        inner = np.flatnonzero(self.tree.halves[:, 0] >= 0)[::-1]

        def cost(tau: float) -> tuple[Array, Array, Array]:
            """The least sum of shares below each node, whether it is one cell, and its bet."""
            wealth = n * np.stack([np.mean(np.log1p(bet * (tau - differences)), axis=0) for bet in BETS])
            alone = np.exp(-wealth.max(axis=0))
            total, single = alone.copy(), np.ones(len(alone), dtype=bool)
            for node in inner:
                parts = total[self.tree.halves[node]].sum()
                if parts < total[node]:
                    total[node], single[node] = parts, False
            return np.where(single, alone, total), single, wealth.argmax(axis=0)

        low, high = 0.0, 1.0
        for _ in np.arange(14):
            tau = 0.5 * (low + high)
            low, high = (low, tau) if cost(tau)[0][0] <= share else (tau, high)
        total, single, bets = cost(high)
        cells = np.array(self.tree.cut(single))
        shares = share * ((1 - EQUAL) * total[cells] / np.sum(total[cells]) + EQUAL / cells.size)
        return cells, shares, bets[cells]


def _grown(known: Sequence[BoxDual], price: float) -> _Tree:
    """The tree of these tasks: halved where they cannot rule the optimum out."""
    boxes, axes = together(known), Axes(np.array(known[0].domain), np.array(known[0].logarithmic))
    p = len(known[0].domain)
    low, high = (x[None] for x in axes.domain.T)
    halves = np.full((1, 2), -1)
    lo, hi, movement = ranges(boxes, p, low, high)
    while True:
        tree = _Tree(low, high, halves)
        leaves = tree.leaves
        if len(leaves) >= _LEAVES:
            return tree
        best = leaves[int(np.argmin(hi[:, leaves].mean(axis=0)))]
        # Boxes that may hold the optimum: not behind the best one by two standard errors.
        behind = lo[:, leaves] - hi[:, [best]]
        possible = behind.mean(axis=0) <= 2 * behind.std(axis=0, ddof=1) / np.sqrt(len(known))
        width = (hi[:, leaves] - lo[:, leaves]).mean(axis=0)
        thick = axes.width(low[leaves], high[leaves]).max(axis=1) > 1e-3
        able = np.flatnonzero(possible & (width > _FINE * price) & thick)
        if not able.size:
            return tree
        chosen = leaves[able[np.argsort(-width[able], kind="stable")[:_AT_ONCE]]]
        sides = np.where(axes.width(low[chosen], high[chosen]) > 0, movement[chosen], -1.0)
        side = np.argmax(sides + 1e-12 * axes.width(low[chosen], high[chosen]), axis=1)
        cut = axes.middle(low[chosen], high[chosen])[np.arange(len(chosen)), side]
        new_low, new_high = np.repeat(low[chosen], 2, axis=0), np.repeat(high[chosen], 2, axis=0)
        first = np.arange(0, 2 * len(chosen), 2)
        new_high[first, side], new_low[first + 1, side] = cut, cut
        halves[chosen] = len(low) + np.stack([first, first + 1], axis=1)
        more = ranges(boxes, p, new_low, new_high)
        low, high = np.concatenate([low, new_low]), np.concatenate([high, new_high])
        halves = np.concatenate([halves, np.full((len(new_low), 2), -1)])
        lo, hi = np.concatenate([lo, more[0]], axis=1), np.concatenate([hi, more[1]], axis=1)
        movement = np.concatenate([movement, more[2]])


def _sets(tree: _Tree, lo: Array, hi: Array, price: float) -> tuple[list[int], Array]:
    """The nodes S_i and their parts of delta.

    The cut balances the mean width of brackets near the optimum against `price ln(number)`; the parts are proportional
    to `exp(-z^2 / 2)`, z the standard errors by which the best leaf of S_i is behind.
    """
    leaves, count = tree.leaves, len(lo)
    middle = 0.5 * (lo + hi)[:, leaves]
    behind = middle - middle[:, [int(np.argmin(middle.mean(axis=0)))]]
    error, mean = behind.std(axis=0, ddof=1) / np.sqrt(count), behind.mean(axis=0)
    z = np.divide(mean, error, out=np.where(mean > 0, np.inf, 0.0), where=error > 0)
    least = -tree.raised(-z[None], -z[None])[1][0]  # of each node, over its leaves
    width = (hi - lo).mean(axis=0)
    best, sets = np.inf, [0]
    for widest in np.geomspace(width[leaves].min() + 1e-12, width[0] + 1e-12, 24):
        nodes = tree.cut(width <= widest)
        near = [s for s in nodes if least[s] <= 2]
        cost = float(np.mean(width[near])) + price * np.log(len(near))
        if cost < best:
            best, sets = cost, nodes
    chance = np.exp(-0.5 * least[sets] ** 2)
    return sets, (1 - EQUAL) * chance / np.sum(chance) + EQUAL / len(sets)


def check_boxes(duals: Sequence[BoxDual], n: int, delta: float, width: float) -> None:
    """Raise unless there are n duals of the same hyperparameters, with losses cut at `width`."""
    check_sample(n, delta)
    if len(duals) != n:
        raise ValueError(f"gap: duals must be one for each of n = {n} tasks; got {len(duals)}.")
    first = duals[0]
    for i, f in enumerate(duals):
        if not isinstance(f, BoxDual) or (f.domain, f.hyper_names) != (first.domain, first.hyper_names):
            raise ValueError(f"gap: all duals must have the same hyperparameters and domain; got {f!r} as dual {i}.")
        if float(f.boxes.clip.max()) > width:
            raise ValueError(
                f"gap: losses must lie in [0, {width:g}], the range of the structure, whatever the task; dual {i} is "
                f"not cut there. Use its method `clip`."
            )
