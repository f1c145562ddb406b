"""Regularised linear models: the validation loss as a function of the penalty, enclosed to a tolerance."""

from typing import Literal

import numpy as np

from ._bernstein import UNIT, Array
from ._linear_chords import Chords, Intervals, LinearProblems, Predictions, take
from ._losses import Huber, LinearLoss, Logistic, Softmax, Weighted
from ._margins import classes_of, error_rate, margin_radius, margins
from ._piecewise import PiecewiseFunction
from ._task import Split, Task, check_domain, check_labels, check_unweighted

_SLIVER = 1e-4
"""Part of the domain (in log λ) that the bracket of one change of the 0-1 loss may take."""
_FINE = 1e-5
"""Part of the tolerance that the gradients of approximate optima may be, in the norm that they count in."""
_MOST_PARTS = 6
"""That an interval is cut into at once."""
_TOGETHER = 16
"""Splits of one shape are worked on together where a block holds so many intervals of each."""


def logistic_dual(
    task: Task,
    domain: tuple[float, float],
    *,
    tolerance: float = 1e-3,
    intercept: bool = True,
    loss: Literal["logistic", "zero-one"] = "logistic",
    most_solves: int = 2000,
) -> PiecewiseFunction:
    r"""`L(λ) = (1/M) sum log(1 + exp(-y_i x_i w(λ)))` over validation examples, within `tolerance`
    everywhere, where

    `w(λ) = argmin_w (1/n) sum log(1 + exp(-y_i x_i w)) + (λ/2) ‖w‖^2` on each training part.

    Enclosed by chords between approximate optima, see [`enclose`][hyprax.tasks.enclose]; the curvature of the data, not
    λ alone, stands in the bound, so small penalties cost few solves more. Rounding is included. Work: about
    `tolerance^-1/2` solves of an inner problem by Newton's method, O(n p^2 + p^3) each: for up to about 2,000 columns.

    **Arguments:**

    - `task`: labels -1 and +1 in one column; or one-hot rows (n, K), for which the loss is the cross entropy `log sum_k
      exp(z_ik) - z_(i, y_i)`, `z_i = x_i W(λ)`, and a solve O(n p^2 K^2 + p^3 K^3), for up to about 2,000 weights.
    - `domain`: (a, b), the range of λ, a > 0.
    - `tolerance`: the largest radius.
    - `intercept`: whether a column of ones is added. Its weight is penalised as the others are (strong convexity needs
      it).
    - `loss`: `"zero-one"` gives the share of validation examples predicted wrongly: piecewise constant; every change is
        caught in a bracket of at most 1e-4 of the domain (in log λ), on which the loss is only enclosed.
    - `most_solves`: for each split.

    **Returns:** a [`PiecewiseFunction`][hyprax.tasks.PiecewiseFunction], certified.

    **Raises:** `ValueError` for bad input, and where the tolerance cannot be reached (the place is named).

    Source of the approach: Shibagaki, Suzuki, Karasuyama, Takeuchi (2015), "Regularization path of cross-validation
    error lower bounds"; the bounds here are of second order.
    """
    if loss not in ("logistic", "zero-one"):
        raise ValueError(f"logistic_dual: loss must be 'logistic' or 'zero-one'; got {loss!r}.")
    several = task.splits[0].y.shape[1] > 1
    for split in task.splits:
        y = np.concatenate([split.y, split.y_val])
        if not several:
            check_labels(y, "logistic_dual")
        elif classes_of(y) is None:
            bad = int(np.flatnonzero(~(np.all((y == 0) | (y == 1), axis=1) & (y.sum(axis=1) == 1)))[0])
            raise ValueError(
                "logistic_dual: targets of several columns must be one-hot rows, a single 1 and zeros; got "
                f"{y[bad].tolist()}."
            )
    model = Softmax() if several else Logistic()
    return _dual(task, model, domain, tolerance, intercept, loss == "zero-one", most_solves, "logistic_dual")


def huber_dual(
    task: Task,
    domain: tuple[float, float],
    *,
    delta: float = 1.0,
    tolerance: float = 1e-3,
    intercept: bool = True,
    most_solves: int = 2000,
) -> PiecewiseFunction:
    """`L(λ) = (1/M) sum huber(x_i w(λ) - y_i)` with the same loss in training, within `tolerance` everywhere.

    `huber(r) = r^2/2` for `|r| <= delta`, else `delta |r| - delta^2/2`. As
    [`logistic_dual`][hyprax.tasks.logistic_dual], for a target of one column.
    """
    for split in task.splits:
        if split.y.shape[1] != 1:
            raise ValueError(f"huber_dual needs one target column; got {split.y.shape[1]}.")
    return _dual(task, Huber(delta), domain, tolerance, intercept, False, most_solves, "huber_dual")


def _dual(
    task: Task,
    loss: LinearLoss,
    domain: tuple[float, float],
    tolerance: float,
    intercept: bool,
    zero_one: bool,
    most_solves: int,
    name: str,
) -> PiecewiseFunction:
    domain = check_domain(domain, name)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive; got {tolerance}.")
    if zero_one:
        check_unweighted(task, name)
    splits = [_with_ones(split) if intercept else split for split in task.splits]
    if splits[0].weights is not None:
        splits, loss = weighted(splits, loss)
    parts: dict[int, PiecewiseFunction] = {}
    for group in _alike(splits, loss):
        problem = LinearProblems([splits[i] for i in group], loss, _FINE * (_SLIVER if zero_one else tolerance))
        found = _zero_one(problem, domain, most_solves) if zero_one else _near(problem, domain, tolerance, most_solves)
        parts.update(zip(group, found, strict=True))
    total: PiecewiseFunction | None = None
    for i, split in enumerate(splits):
        part = parts[i] * (len(split.X_val) / task.n_validation)
        total = part if total is None else total + part
    assert total is not None
    return total


def _alike(splits: list[Split], loss: LinearLoss) -> list[list[int]]:
    """The splits by their shape, one by one where they are large."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, split in enumerate(splits):
        groups.setdefault((len(split.X), len(split.X_val)), []).append(i)
    found = []
    for group in groups.values():
        together = max(1, LinearProblems([splits[group[0]]], loss, 0.0).lanes // _TOGETHER)
        found += [group[i : i + together] for i in range(0, len(group), together)]
    return found


def _near(
    problem: LinearProblems, domain: tuple[float, float], tolerance: float, most_solves: int
) -> list[PiecewiseFunction]:
    """The outer loss of every split, by lines within the tolerance."""

    def parts(chords: Chords, _: Intervals) -> Array:
        # The width of an enclosure is of second order in that of its interval.
        needed = np.sqrt((chords.below + chords.above) / (2 * tolerance))
        return np.where(needed <= 1, 1, np.clip(np.ceil(1.05 * needed), 2, _MOST_PARTS)).astype(int)

    found = []
    for edges, (start, end, below, above) in problem.cover(domain, problem.chords, parts, most_solves):
        # The enclosure is [line - below, line + above]: centred, a line again.
        rows = np.stack([start, end], axis=1) + 0.5 * (above - below)[:, None]
        radius = 0.5 * (above + below) + 8 * UNIT * np.max(np.abs(rows), axis=1)
        found.append(PiecewiseFunction(edges, rows, None, radius))
    return found


def _zero_one(problem: LinearProblems, domain: tuple[float, float], most_solves: int) -> list[PiecewiseFunction]:
    """Predictions along chords, refined until each crossing of a margin is caught in a narrow bracket."""
    targets = problem.y_val
    truth = [classes_of(y) for y in targets]
    octaves = np.log(domain[1] / domain[0])

    def ends(chord: Predictions, which: int) -> tuple[Array, Array, Array]:
        y, known = targets[which], truth[which]
        assert known is not None
        start, end = margins(chord.start, y, known), margins(chord.end, y, known)
        return start, end, np.array([margin_radius(radius, y.shape[1]) for radius in chord.radius]).reshape(start.shape)

    def parts(chord: Predictions, of: Intervals) -> Array:
        good = np.zeros(len(of.a), dtype=bool)
        for which in np.unique(of.which):
            here = of.which == which
            start, end, radius = ends(take(chord, here), int(which))
            crossing = (np.minimum(start, end) <= radius) & (np.maximum(start, end) >= -radius)
            width = np.log(of.b[here] / of.a[here]) / octaves
            thin = (width <= _SLIVER) & np.all(np.isfinite(radius), axis=1)
            sharp = 2 * radius * width[:, None] <= _SLIVER * np.abs(end - start)
            good[here] = thin | np.all(sharp | ~crossing, axis=1)
        return np.where(good, 1, 2)

    found = []
    for which, (edges, chords) in enumerate(problem.cover(domain, problem.predictions, parts, most_solves)):
        start, end, radius = ends(chords, which)
        found.append(error_rate(edges, list(np.stack([start, end], axis=2)), list(radius), targets.shape[1]))
    return found


def _with_ones(split: Split) -> Split:
    ones = [np.ones((len(x), 1)) for x in (split.X, split.X_val)]
    return split.changed(np.hstack([split.X, ones[0]]), np.hstack([split.X_val, ones[1]]))


def weighted(splits: list[Split], loss: LinearLoss) -> tuple[list[Split], Weighted]:
    """The weights of rows as a last column of the targets, and the loss that reads them there."""
    found, heaviest = [], 0.0
    for split in splits:
        assert split.weights is not None
        assert split.weights_val is not None
        targets = (np.hstack([y, v[:, None]]) for y, v in ((split.y, split.weights), (split.y_val, split.weights_val)))
        y, y_val = targets
        found.append(Split(split.X, y, split.X_val, y_val))
        heaviest = max(heaviest, float(split.weights.max()), float(split.weights_val.max()))
    return found, Weighted(loss, heaviest)
