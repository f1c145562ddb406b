"""The path of a linear support vector machine in its cost C, exact, and its validation losses."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ._active_set import Factor, negligible, tied_direction
from ._bernstein import UNIT, Array
from ._piecewise import PiecewiseFunction
from ._task import Task, check_domain, check_labels, check_unweighted, checked_weights
from ._zero_one import zero_one_loss

_TIE = 1e-10
"""Margins this close to 1 count as tied."""
_AT_BOUND = 1e-15
"""Dual variables this close to a bound, in parts of it, count as at it."""
KKT_TOLERANCE = 1e-9
"""The largest violation of the optimality conditions (in units of the margin) that is let through, beyond rounding."""


@dataclass(frozen=True, eq=False)
class SVMPath:
    r"""`w(C) = argmin_w ‖w‖^2 / 2 + C sum_i max(0, 1 - y_i x_i w)`, piecewise linear in C.

    With an intercept, `x_i` ends in a constant 1 and w in the intercept, which is penalised like any weight.
    `SVMPath.of(X, y, domain)` finds it.
    """

    costs: Float[Array, " K_plus_1"]
    """Ends of the domain and the kinks between, ascending."""
    weights: Float[Array, "K_plus_1 d"]
    """w at the costs."""
    intercept: bool
    """Whether the last weight is an intercept."""
    violation: float
    """The largest violation of the optimality conditions at all kinks and midpoints, in units of the margin."""
    weight_error: Float[Array, " K"]
    """A proven bound of `‖w - w_true‖` on each piece."""

    def __call__(self, cost: float) -> Float[Array, " d"]:
        """w at a cost in the domain."""
        a, b = self.costs[0], self.costs[-1]
        if not a <= cost <= b:
            raise ValueError(f"the path was computed for costs in [{a:.17g}, {b:.17g}]; got {cost!r}.")
        k = min(int(np.searchsorted(self.costs, cost, side="right")) - 1, len(self.costs) - 2)
        t = (cost - self.costs[k]) / (self.costs[k + 1] - self.costs[k])
        return (1 - t) * self.weights[k] + t * self.weights[k + 1]

    @classmethod
    def of(
        cls, X: Any, y: Any, domain: tuple[float, float], *, intercept: bool = True, weights: Any = None
    ) -> "SVMPath":
        r"""The path of the support vector machine in C, by a parametric active set.

        The dual variables are `0 <= a_i <= C`, `w = sum_i a_i y_i x_i`, with margins `m_i = y_i x_i w`: `a_i = C` where
        `m_i < 1`, `a_i = 0` where `m_i > 1`, in between where `m_i = 1`. From C = 0, where every a_i = C, they are
        followed upwards; at a kink the next direction solves one small quadratic problem for all ties at once, so that
        any number of examples may reach the margin, leave it, or both (Hastie et al., 2004, assume one). Equal examples
        are one, with a bound that counts them.

        The conditions are checked at every kink and midpoint; as margins and variables are linear between, that covers
        the path.

        *Proof of `weight_error`.* The computed a fulfils the conditions of the problem whose margins 1 are replaced by
        `1 + e_i`, `|e_i| <= e`, e the violation with the rounding of its computation (once a_i within 1e-15 of a bound
        are moved to it, which is counted too). Adding the variational inequalities of both problems gives `‖w -
        w_true‖^2 <= e sum_i |a_i - a_true_i| <= e n C`, a square root that costs half the digits. With it, examples
        further than `‖x_i‖ ‖w - w_true‖` from the margin are at the same bound in both solutions. Let U hold the
        others, and s be the smallest singular value of their rows: as `w - w_true = sum_U (a_i - a_true_i) y_i x_i`,
        `‖w - w_true‖ >= s ‖a - a_true‖_U`, and the first inequality becomes `‖w - w_true‖ <= e |U|^(1/2) / s`.

        **Arguments:**

        - `X`, `y`: (n, d) and (n,), labels -1 and +1.
        - `domain`: (a, b), the range of C, 0 <= a < b.
        - `intercept`: whether a constant column is added; its weight is penalised.
        - `weights`: (n,), positive: an example has the cost C times its weight over the mean of all.

        **Raises:** `ValueError` for bad input; `ArithmeticError`, with the place, where the optimality conditions fail.
        """
        task = Task.hold_out(X, y, X, y)
        split = task.splits[0]
        check_labels(split.y, "SVMPath.of")
        domain = check_domain(domain, "SVMPath.of", "0 <= ")
        rows = _extended(split.X, intercept) * split.y
        heavy = np.ones(len(rows)) if weights is None else checked_weights(weights, len(rows), "weights")
        heavy = heavy / np.mean(heavy)
        Z, first, same = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        order = np.argsort(first)  # the order of the data, so that the path does not depend on sorting
        Z, size = Z[order], np.bincount(same.ravel(), heavy)[order]
        Q = Z @ Z.T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            costs, a = _follow(Q, size, domain[1])
        costs, a = _from(costs, a, domain[0])
        worst, place, off = _check(Z, Q, size, costs, a)
        if not np.all(np.isfinite(a)) or worst > KKT_TOLERANCE:
            raise ArithmeticError(
                f"the support vector machine's path violates its optimality conditions by {worst:.3g} at "
                f"C = {place:.17g}: the data are too ill-conditioned; rescale columns or lower C."
            )
        moved = _AT_BOUND * np.linalg.norm(size @ np.abs(Z)) * costs[1:] + _rounding(Z, a)
        error = np.sqrt(off * size.sum() * costs[1:]) * (1 + 1e-12)
        return cls(costs, a @ Z, intercept, worst, (_sharpened(Z, a, off, error + moved, error) + moved) * (1 + 1e-12))


def svm_dual(
    task: Task,
    domain: tuple[float, float],
    *,
    intercept: bool = True,
    loss: Literal["hinge", "zero-one"] = "hinge",
) -> PiecewiseFunction:
    r"""`f(C) = (1/M) sum max(0, 1 - y_i x_i w(C))` over validation examples, w the path on each training part.

    Exact: margins are linear between kinks, so f is piecewise linear, with more kinks where a validation margin meets
    1. The radius holds the proven error of w: near rounding where the examples at the margin are independent (always,
    in general position), else the square root of that.

    **Arguments:** as for [`SVMPath.of`][hyprax.tasks.SVMPath.of], and

    - `task`: one target column of labels -1 and +1.
    - `loss`: `"hinge"`, or `"zero-one"`: the share of examples with `y_i x_i w <= 0`.
    """
    domain = check_domain(domain, "svm_dual", "0 <= ")
    if loss not in ("hinge", "zero-one"):
        raise ValueError(f"loss must be 'hinge' or 'zero-one'; got {loss!r}.")
    if loss == "zero-one":
        check_unweighted(task, "svm_dual")
    parts = []
    for split in task.splits:
        check_labels(np.concatenate([split.y, split.y_val]), "svm_dual")
        path = SVMPath.of(split.X, split.y[:, 0], domain, intercept=intercept, weights=split.weights)
        rows = _extended(split.X_val, intercept) * split.y_val
        margins = rows @ path.weights.T  # (m, K + 1)
        lost = (rows.shape[1] + 4) * UNIT * (np.abs(rows) @ np.abs(path.weights).T)
        error = (
            np.maximum(lost[:, 1:], lost[:, :-1]) + np.linalg.norm(rows, axis=1)[:, None] * path.weight_error * 1.001
        )
        if loss == "zero-one":
            both = np.stack([margins[:, :-1], margins[:, 1:]], axis=-1).swapaxes(0, 1)
            part = zero_one_loss(path.costs, both, error.T)
        else:
            part = _hinge(path.costs, margins, error, split.weights_val)
        parts.append(part * (len(rows) / task.n_validation * len(task.splits)) if len(task.splits) > 1 else part)
    return PiecewiseFunction.mean(parts) if len(parts) > 1 else parts[0]


def _extended(X: Array, intercept: bool) -> Array:
    return np.hstack([X, np.ones((len(X), 1))]) if intercept else X


def _follow(Q: Array, size: Array, stop: float) -> tuple[Array, Array]:
    """Kinks from C = 0 to `stop`, ascending, and the dual variables there; `size` counts the equal examples."""
    n = len(Q)
    cost, a = 0.0, np.zeros(n)
    # Where each variable is: at its bound size * C (where `base` is its size), at 0 (where that is 0), or between them.
    free, base, way_in, factor = np.zeros(n, dtype=bool), size.copy(), np.full(n, -1.0), Factor(Q, np.zeros(n, bool))
    kinks, values = [cost], [a]
    for _ in range(200 * (n + 2)):
        slack = 1 - Q @ a
        tied = np.abs(slack) <= _TIE
        tied[factor.free] = False
        # d = base + v: v is free, >= 0 at the lower bound, <= 0 at the upper one.
        pull = -(Q @ base)
        flat = negligible(pull)
        v, factor = tied_direction(factor, pull, way_in, tied, flat)
        d = base + v
        at = factor.free
        free[at] = True
        base[at] = 0.0
        rate = Q @ d
        own, way, most = a[at], d[at], size[at]
        beyond = way - most
        to_zero = np.where(way < 0, -own / way, np.inf)
        to_bound = np.where(beyond > 0, (most * cost - own) / beyond, np.inf)
        leaves = np.minimum(to_zero, to_bound)
        step = float(leaves.min(initial=stop - cost))
        meets = (way_in * rate < -flat) & ~(free | tied)
        near = meets.nonzero()[0]
        if near.size:
            step = min(step, float((slack[near] / rate[near]).min()))
        step = max(step, 0.0)
        at_end = step >= (stop - cost) * (1 - 1e-12)
        cost = stop if at_end else cost + step
        if at.size:
            limit = step * (1 + 1e-10) + 1e-14 * cost
            gone = leaves <= limit
            if gone.any():
                high = at[gone & (to_bound <= to_zero)]
                free[at[gone]] = False
                way_in[at[gone]] = 1.0
                way_in[high] = -1.0
                base[high] = size[high]
                factor = Factor(Q, free)
                at = factor.free
        a = base * cost
        if at.size:
            rhs = 1 - (Q @ a)[at]
            x = factor.inner(rhs)
            x += factor.inner(rhs - factor.block @ x)
            # Beyond a bound by rounding only; the check would tell.
            a[at] = np.minimum(np.maximum(x, 0.0), size[at] * cost)
        if cost > kinks[-1]:
            kinks.append(cost)
            values.append(a)
        else:
            values[-1] = a
        if at_end:
            return np.array(kinks), np.array(values)
    raise ArithmeticError(
        f"the support vector machine's path did not reach C = {stop:.6g} within {200 * (n + 2)} kinks; it stands at "
        f"{cost:.17g}. The data are too ill-conditioned; rescale columns or lower C."
    )


def _from(costs: Array, a: Array, start: float) -> tuple[Array, Array]:
    """The part of the path from `start` on."""
    k = int(np.searchsorted(costs, start, side="right")) - 1
    t = (start - costs[k]) / (costs[k + 1] - costs[k])
    at_start = (1 - t) * a[k] + t * a[k + 1]
    return np.append(start, costs[k + 1 :]), np.concatenate([at_start[None], a[k + 1 :]])


def _check(Z: Array, Q: Array, size: Array, costs: Array, a: Array) -> tuple[float, float, Array]:
    """Largest violation of the margin conditions, where, and the violation with its rounding on each piece.

    The midpoint of a piece says which variables are at a bound on it; margins are linear, so its ends say the rest.
    """
    middle, between = 0.5 * (costs[1:] + costs[:-1]), 0.5 * (a[1:] + a[:-1])
    bound = middle[:, None] * size
    above, below = between > _AT_BOUND * bound, between < (1 - _AT_BOUND) * bound
    worst, lost = [], []
    for x in (a[:-1], a[1:], between):
        slack = 1 - (x @ Z) @ Z.T
        # Short of the margin counts where a could grow, beyond it where a could fall.
        off = np.maximum(np.where(below, slack, 0.0), np.where(above, -slack, 0.0))
        worst.append(np.max(np.maximum(off, 0.0), axis=1))
        lost.append((sum(Z.shape) + 4) * UNIT * np.max((x @ np.abs(Z)) @ np.abs(Z).T, axis=1) + 4 * UNIT)
    worst = np.array(worst)
    where, piece = np.unravel_index(int(np.argmax(worst)), worst.shape)
    place = (costs[:-1], costs[1:], middle)[where][piece]
    moved = _AT_BOUND * np.max(costs[1:, None] * size @ np.abs(Q), axis=1)  # what moving those to the bound changes
    return float(worst[where, piece]), float(place), np.max(worst, axis=0) + np.max(lost, axis=0) + moved


def _sharpened(Z: Array, a: Array, off: Array, radius: Array, error: Array) -> Array:
    """The error of w on each piece, at most `error`, from the examples that may be at the margin (see `SVMPath.of`).

    Each piece is looked at in two halves: an example that comes to the margin at one end and one that leaves it at the
    other are at it together nowhere.
    """
    norms = np.linalg.norm(Z, axis=1)
    slack = 1 - (np.stack([a[:-1], 0.5 * (a[1:] + a[:-1]), a[1:]]) @ Z) @ Z.T  # (3, K, n)
    needed = radius[:, None] * norms + 2 * off[:, None]
    sets: list[Array] = []
    for half in (0, 1):
        near = (slack[half] * slack[half + 1] <= 0) | (np.minimum(*np.abs(slack[half : half + 2])) <= needed)
        sets.append(near)
    either = np.concatenate(sets)
    _, first, which = np.unique(np.packbits(either, axis=1), axis=0, return_index=True, return_inverse=True)
    members = either[first]
    count = members.sum(axis=1)
    spread = np.where(count > Z.shape[1], np.inf, 0.0)  # `sqrt(|U|) / s` of each set of examples
    backward = 4 * UNIT * np.sqrt(members @ norms**2) * (1 + 1e-12)  # Weyl, with the SVD's backward error
    for size in np.unique(count[(count > 0) & (count <= Z.shape[1])]):
        at = np.flatnonzero(count == size)
        rows = Z[np.nonzero(members[at])[1].reshape(len(at), size)]
        least = np.linalg.svd(rows, compute_uv=False)[:, -1]
        with np.errstate(divide="ignore"):
            spread[at] = np.sqrt(size) / np.maximum(least - (size + Z.shape[1]) * backward[at], 0.0)
    worst = off * spread[which.ravel()].reshape(2, -1).max(axis=0)
    return np.minimum(error, worst)


def _rounding(Z: Array, a: Array) -> Array:
    """Rounding of `w = a Z`, the larger of the two ends of each piece."""
    lost = (len(Z) + 2) * UNIT * np.linalg.norm(np.abs(a) @ np.abs(Z), axis=1)
    return np.maximum(lost[1:], lost[:-1])


def _hinge(costs: Array, margins: Array, error: Array, weights: Array | None) -> PiecewiseFunction:
    """The weighted mean of `max(0, 1 - margin)`, linear between kinks of the path and places where a margin meets 1."""
    slack, heavy = 1 - margins, np.ones((len(margins), 1)) if weights is None else weights[:, None]
    start, end = slack[:, :-1], slack[:, 1:]
    i, k = np.nonzero(start * end < 0)
    width = np.diff(costs)
    crossing = costs[k] + start[i, k] / (start[i, k] - end[i, k]) * width[k]
    edges = np.union1d(costs, crossing.clip(costs[k], costs[k + 1]))
    piece = np.minimum(np.searchsorted(costs, edges[:-1], side="right") - 1, len(width) - 1)
    total = np.zeros((len(edges) - 1, 2))
    for side, x in enumerate((edges[:-1], edges[1:])):
        t = np.clip((x - costs[piece]) / width[piece], 0.0, 1.0)
        total[:, side] = np.mean(heavy * np.maximum((1 - t) * start[:, piece] + t * end[:, piece], 0.0), axis=0)
    # A crossing is off by rounding, and between floats the hinge may bend inside a piece: 8 u of the size of the slack.
    size = np.mean(heavy * (np.maximum(np.abs(start), np.abs(end)) + 1), axis=0)
    radius = np.mean(heavy * error, axis=0) + (8 + len(margins)) * UNIT * size
    return PiecewiseFunction(edges, total, None, radius[piece])
