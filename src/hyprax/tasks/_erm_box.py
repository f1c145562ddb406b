"""Several hyperparameters for many tasks: the global minimum of the mean loss on a box, by branch and bound."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from .._certificate import AbstractCertificate
from .._progress import counted
from ._bernstein import Array
from ._bounds import round_up
from ._box_dual import BoxDual, together
from ._boxes import Axes, Boxes, cells, points
from ._erm import OptimalityCertificate, end_words
from ._multivariate import least
from ._random import generator

_WIDEST = math.log(8.0)
"""The widest side of a first box, in logarithms, or in eighths of the range."""
_BATCH = 24
"""Boxes enclosed at once."""
_GAUGE = 4.0
"""What counts as no gap at all, in parts of the width of the enclosure of the loss at the best point."""
_BOXES_UP_TO = 3
"""Hyperparameters up to which `"auto"` looks at boxes."""


class Step(NamedTuple):
    """The state of a search after a round."""

    boxes: int
    """Boxes enclosed so far."""
    lower: float
    """Lower bound of the least mean loss."""
    upper: float
    """Upper bound of the mean loss at the best point so far."""
    seconds: float


@dataclass(frozen=True, eq=False)
class BoxOptimum:
    """The answer of [`erm_box`][hyprax.tasks.erm_box]: `lower <= min mean f <= mean f(hyper) <= upper`."""

    hyper: Float[Array, " p"]
    """The hyperparameters."""
    value: float
    """The mean loss there, as computed."""
    lower: float
    """Lower bound of the mean loss over the whole domain; for `"starts"` no bound, but a guess."""
    upper: float
    """Upper bound of the mean loss at `hyper`."""
    minimisers: Float[Array, "p 2"]
    """The smallest box seen to hold every hyperparameter with the least mean loss; for `"starts"` the domain."""
    reached: bool
    """Whether `upper - lower <= gap * upper` (or what float64 tells apart); for `"starts"`, whether every start came to
    rest. If not, the budget ran out first, and the bounds hold as they stand."""
    hyper_names: tuple[str, ...]
    """What the hyperparameters are."""
    duals: tuple[BoxDual, ...]
    """The duals, one a task."""
    history: tuple[Step, ...]
    """Boxes, bounds and seconds after every round."""
    certificate: AbstractCertificate
    """Bounds `mean f(hyper) - min mean f`."""

    @property
    def message(self) -> str:
        """A sentence where the answer lies at an end of the domain; else nothing."""
        return end_words(self.hyper_names, self.hyper.tolist(), self.duals[0].domain)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} = {x:.6g}" for name, x in zip(self.hyper_names, self.hyper, strict=True))
        within = ", ".join(f"[{a:.4g}, {b:.4g}]" for a, b in self.minimisers)
        where = "" if self.certificate.kind != "certified" else f"; every minimiser in {within}"
        left = "" if self.reached else "; stopped by its budget"
        return (
            f"<BoxOptimum over {len(self.duals)} tasks: {parts}, mean loss {self.value:.8g}{where}{left}; "
            f"{self.certificate!r}>"
        )


def erm_box(
    duals: Sequence[BoxDual],
    *,
    method: Literal["auto", "boxes", "starts"] = "auto",
    gap: float = 1e-3,
    most_boxes: int = 20_000,
    most_seconds: float = math.inf,
    starts: int = 8,
    key: Any = None,
    progress: bool = True,
) -> BoxOptimum:
    r"""`λ_hat = argmin_λ (1/n) sum_i f_i(λ)` over a box of several hyperparameters.

    - `"boxes"`, the global optimum: branch and bound. On a box (in the logarithms of penalties) every loss is a
      polynomial within a proven distance (see [`BoxDual`][hyprax.tasks.BoxDual]); polynomials add up over
      tasks, so the mean is one polynomial p with one slack r, and `min mean f >= min p - r` there. A box where that
      leaves room for a value better than `upper - gap * upper` is halved, across the hyperparameter that moves the loss
      most. `upper` comes from local searches with hypergradients, and from the minima of the polynomials.
    - `"starts"`, for more hyperparameters than boxes can cover: local searches (L-BFGS with the hypergradient of the
      implicit function theorem, in logarithms) from the middle of the domain and from points spread over it. Nothing is
      proved of what they missed. Their certificate is `estimated`: the bound is what the best of all starts gained
      on the best of half of them, on average over the halves.

    **Arguments:**

    - `duals`: one a task, with the same hyperparameters and domain. Tasks weigh the same.
    - `method`: `"auto"` is `"boxes"` up to three hyperparameters.
    - `gap`: the relative gap asked for, `upper - lower <= gap * upper`.
    - `most_boxes`, `most_seconds`: the budget of `"boxes"`. If it runs out, the answer has the gap that was reached.
    - `starts`: the number of local searches; `"boxes"` makes one, from the middle of the domain.
    - `key`: the JAX random key of the starts after the first; needed for `"starts"`.
    - `progress`: whether the starts are counted on a terminal.

    **Returns:** a [`BoxOptimum`][hyprax.tasks.BoxOptimum]. It speaks of these tasks only; for tasks to come, see
    [`gap`][hyprax.tasks.gap].

    **Raises:** `ValueError` for no duals, different hyperparameters or domains, or arguments out of range.
    """
    duals = tuple(duals)
    if not duals or not all(isinstance(f, BoxDual) for f in duals):
        raise ValueError(f"erm_box: duals must be BoxDuals, at least one; got {[type(f).__name__ for f in duals[:3]]}.")
    first = duals[0]
    for i, f in enumerate(duals):
        if (f.domain, f.hyper_names, type(f.boxes)) != (first.domain, first.hyper_names, type(first.boxes)):
            raise ValueError(
                f"erm_box: all duals must have one domain and the same hyperparameters; got {first.domain} of "
                f"{first.hyper_names} and, for dual {i}, {f.domain} of {f.hyper_names}."
            )
    if method not in ("auto", "boxes", "starts"):
        raise ValueError(f"erm_box: method must be 'auto', 'boxes' or 'starts'; got {method!r}.")
    for name, value in (("gap", gap), ("most_boxes", most_boxes), ("most_seconds", most_seconds), ("starts", starts)):
        if not value > 0:
            raise ValueError(f"erm_box: {name} must be positive; got {value!r}.")
    domain = np.array(first.domain)
    boxes, axes = together(duals), Axes(domain, np.array(first.logarithmic))
    if method == "starts" or (method == "auto" and len(domain) > _BOXES_UP_TO):
        return _from_starts(boxes, duals, axes, starts, key, progress)
    return _on_boxes(boxes, duals, axes, gap, most_boxes, most_seconds)


class _Best:
    """The best point so far."""

    def __init__(self, boxes: Boxes, axes: Axes):
        self.boxes, self.axes, self.hyper, self.hint = boxes, axes, np.zeros(0), None
        self.value = self.upper = math.inf
        self.width = 0.0

    def allowed(self, gap: float) -> float:
        """The gap asked for, in units of the loss; not below what float64 tells apart."""
        return max(gap * self.upper, _GAUGE * self.width)

    def offer(self, hypers: Array) -> tuple[Array, Array]:
        """Evaluate points; their values and gradients."""
        found = points(self.boxes, hypers, None if self.hint is None else np.repeat(self.hint, len(hypers), axis=0))
        i = int(np.argmin(found.upper))
        if found.upper[i] < self.upper:
            self.hyper, self.value, self.upper = hypers[i], float(found.value[i]), float(found.upper[i])
            self.hint, self.width = found.hint[i : i + 1], float(found.upper[i] - found.lower[i])
        return found.value, found.gradient

    def descend(self, start: Array, most: int) -> tuple[float, bool]:
        """L-BFGS in the coordinates of the axes from a point; the value, and whether it came to rest."""
        from scipy.optimize import minimize

        low, high = self.axes.domain.T
        if np.all(low == high):
            return float(self.offer(low[None])[0][0]), True

        def both(x: Array) -> tuple[float, Array]:
            value, slope = self.offer(self.axes.back(x)[None])
            return float(value[0]), slope[0]

        bounds = list(zip(self.axes.to(low), self.axes.to(high), strict=True))
        place, options = self.axes.to(start), {"maxiter": most}
        found = minimize(both, place, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
        return float(found.fun), found.status != 1


def _from_starts(
    boxes: Boxes, duals: tuple[BoxDual, ...], axes: Axes, starts: int, key: Any, progress: bool
) -> BoxOptimum:
    """See `erm_box`."""
    begin, best = time.perf_counter(), _Best(boxes, axes)
    domain = axes.domain
    low, high = axes.to(domain.T)
    spread = (
        generator("erm_box", key).random((starts - 1, len(axes.domain)))
        if starts > 1
        else np.zeros((0, len(axes.domain)))
    )
    places = axes.back(np.concatenate([0.5 * (low + high)[None], low + (high - low) * spread]))
    values, rested, history = [], [], []
    for place in counted(places, starts, "starts", progress):
        value, rest = best.descend(place, 200)
        values.append(value)
        rested.append(rest)
        history.append(Step(0, math.nan, best.upper, time.perf_counter() - begin))
    gained = _gain_of_doubling(np.array(values))
    bound = max(gained, best.upper - best.value)
    certificate = OptimalityCertificate(
        bound=round_up(bound), kind="estimated", method=f"{starts} local searches, {sum(rested)} of them at rest"
    )
    return BoxOptimum(
        best.hyper, best.value, best.upper - bound, best.upper, domain, all(rested), duals[0].hyper_names, duals,
        tuple(history), certificate,
    )  # fmt: skip


def _gain_of_doubling(values: Array) -> float:
    """The mean, over all halves of the values, of the least of the half; less the least of all. Infinite for one."""
    n = len(values)
    if n < 2:
        return math.inf
    half, rising = n // 2, np.sort(values)
    # The k-th smallest is the least of a half in C(n - 1 - k, half - 1) of C(n, half) ways.
    ways = [math.comb(n - 1 - k, half - 1) / math.comb(n, half) for k in range(n)]
    return float(rising @ np.array(ways) - rising[0])


class _Open(NamedTuple):
    """Boxes that are not settled: (m, ...)."""

    low: Array
    high: Array
    lower: Array
    """Lower bound of the mean loss."""
    side: Array
    """The hyperparameter to halve."""
    hint: Array

    def take(self, rows: Array) -> "_Open":
        return _Open(*(x[rows] for x in self))

    def with_(self, other: "_Open") -> "_Open":
        return _Open(*(np.concatenate(x) for x in zip(self, other, strict=True)))


def _on_boxes(
    boxes: Boxes,
    duals: tuple[BoxDual, ...],
    axes: Axes,
    gap: float,
    most_boxes: int,
    most_seconds: float,
) -> BoxOptimum:
    begin, best, domain = time.perf_counter(), _Best(boxes, axes), axes.domain
    best.descend(np.clip(axes.middle(*domain.T), *domain.T), 30)
    low, high = _grid(axes)
    open_, settled, history = None, math.inf, []
    count = len(low)
    fresh = _bounded(boxes, axes, low, high, None, best, gap)
    while True:
        open_ = fresh if open_ is None else open_.with_(fresh)
        room = open_.lower < best.upper - best.allowed(gap)
        settled = min(settled, float(np.min(open_.lower[~room], initial=math.inf)))
        # A settled box may still hold the minimiser: it is kept for `minimisers`, not to be halved.
        history.append(Step(count, min(settled, float(np.min(open_.lower))), best.upper, time.perf_counter() - begin))
        thin = axes.width(open_.low, open_.high).max(axis=1) <= 1e-12
        able = room & ~thin
        if not able.any() or count >= most_boxes or time.perf_counter() - begin >= most_seconds:
            break
        rows = np.flatnonzero(able)
        rows = rows[np.argsort(open_.lower[rows], kind="stable")[:_BATCH]]
        halved = open_.take(rows)
        open_ = open_.take(np.setdiff1d(np.arange(len(open_.low)), rows))
        keep = open_.lower <= best.upper
        open_ = open_.take(np.flatnonzero(keep))
        low, high = _halve(axes, halved)
        fresh = _bounded(boxes, axes, low, high, np.repeat(halved.hint, 2, axis=0), best, gap)
        # A half is no worse than the whole.
        fresh = fresh._replace(lower=np.maximum(fresh.lower, np.repeat(halved.lower, 2)))
        count += len(low)
    lower = min(history[-1].lower, best.upper)
    held = open_.take(np.flatnonzero(open_.lower <= best.upper))
    box = np.stack([held.low.min(axis=0), held.high.max(axis=0)], axis=1) if len(held.low) else domain
    bound = max(best.upper - lower, 0.0) * (1 + 1e-15)
    certificate = OptimalityCertificate(
        bound=round_up(bound), kind="certified", method=f"branch and bound, {count} boxes"
    )
    reached = best.upper - lower <= best.allowed(gap)
    return BoxOptimum(
        best.hyper,
        best.value,
        lower,
        best.upper,
        box,
        reached,
        duals[0].hyper_names,
        duals,
        tuple(history),
        certificate,
    )


def _grid(axes: Axes) -> tuple[Array, Array]:
    """The domain cut evenly into boxes with sides of at most `_WIDEST`."""
    sides = []
    wide = axes.width(*axes.domain.T[:, None])[0]
    for (a, b), logarithmic, width in zip(axes.domain, axes.logarithmic, wide, strict=True):
        parts = max(1, math.ceil(width / _WIDEST))
        ends = np.geomspace(a, b, parts + 1) if logarithmic else np.linspace(a, b, parts + 1)
        ends[0], ends[-1] = a, b
        sides.append(ends)
    p = len(sides)
    low = np.stack(np.meshgrid(*(x[:-1] for x in sides), indexing="ij"), axis=-1).reshape(-1, p)
    high = np.stack(np.meshgrid(*(x[1:] for x in sides), indexing="ij"), axis=-1).reshape(-1, p)
    return low, high


def _halve(axes: Axes, boxes: _Open) -> tuple[Array, Array]:
    """Both halves of every box, one after the other."""
    rows = np.arange(len(boxes.low))
    cut = axes.middle(boxes.low, boxes.high)[rows, boxes.side]
    low, high = np.repeat(boxes.low, 2, axis=0), np.repeat(boxes.high, 2, axis=0)
    high[2 * rows, boxes.side] = cut
    low[2 * rows + 1, boxes.side] = cut
    return low, high


def _bounded(boxes: Boxes, axes: Axes, low: Array, high: Array, hint: Array | None, best: _Best, gap: float) -> _Open:
    """Lower bounds on boxes; the best minimum of their polynomials is offered as a point."""
    found = cells(boxes, low, high, hint)
    bottom = least(found.coefficients, low.shape[1], boxes.degree, np.full(len(low), 0.1 * gap * best.upper))
    lower = np.maximum(bottom.lower - found.slack, 0.0)
    i = int(np.argmin(bottom.upper))
    if bottom.upper[i] < best.upper:
        place = 0.5 * (low[i] + high[i]) + 0.5 * (high[i] - low[i]) * bottom.point[i]
        best.offer(np.clip(place, low[i], high[i])[None])
    # What moves the loss most is halved; a side is not halved below a thousandth of the widest.
    width = axes.width(low, high)
    score = np.where(width > 1e-3 * width.max(axis=1, keepdims=True), found.movement + 1e-12 * width, -1.0)
    return _Open(low, high, lower, np.argmax(score, axis=1), found.hint)
