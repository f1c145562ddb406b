"""Regularised linear models: the validation loss as a function of the penalty, enclosed to a tolerance."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ._bernstein import UNIT, Array
from ._enclosure import Chord, chords_of, enclose
from ._losses import Huber, LinearLoss, Logistic, Softmax
from ._margins import classes_of, error_rate, margin_radius, margins
from ._piecewise import PiecewiseFunction
from ._series import gamma
from ._task import Split, Task, check_domain, check_labels

_NEWTON_STEPS = 60
_SLIVER = 1e-4
"""Part of the domain (in log λ) that the bracket of one change of the 0-1 loss may take."""


class _State(NamedTuple):
    """An approximate optimum, and what the chords ask of it."""

    w: Array
    """(p, K)."""
    z: Array
    """(n, K): training predictions."""
    slope: Array
    """(p, K): the gradient of the training objective."""
    slope_error: float
    """Bound of the norm of its rounding."""
    z_error: Array
    """(n,): of the training predictions."""
    out: Array
    """(m, K): validation predictions."""
    out_error: Array
    """(m,)."""
    outer_slope: Array
    """(p, K): the gradient of the validation loss."""
    outer_slope_error: float
    value: float
    """The validation loss."""
    value_error: float


class _Tube(NamedTuple):
    """`‖c(t) - w*(λ(t))‖_M <= radius` on the interval, `M = factor factor^T`."""

    factor: Array
    radius: float
    inflation: float
    """Pays for the rounding of a solve with `factor`, in a norm."""


@dataclass(frozen=True, eq=False)
class _LinearProblem:
    r"""`f(w, λ) = (1/n) sum l(x_i w, y_i) + (λ/2) ‖w‖^2`, outer loss `(1/m) sum l(v_j w, y_j)`.

    *The tube.* Let F_i be a lower bound of `l''` for all predictions within `pad` of the chord of row i, and
    `M = (1/n) sum x_i x_i^T (x) F_i + λ_a I`. On the chord the gradient is the straight line between its values at
    the ends, plus `(1/n) sum x_i (x) v_i` (`v_i`: the loss's `bend`), minus `t (1 - t) D d`, D the step of λ and d
    of w. In the dual norm of M the ends count by their largest, `‖D d‖ / 4` bounds the last, and the sum is at most
    `sqrt((1/n) sum_S v_i^T F_i^+ v_i) + (1/n) sum_(not S) ‖x_i‖ |v_i|`, as `M >= (1/n) sum x_i x_i^T (x) F_i`. Call
    the total rho. f is 1-strongly convex in the norm of M on the ball of radius rho around c(t), if predictions move by
    at most `pad` there, that is if `‖x_i‖ rho < pad`. Then w* lies in that ball: on its surface
    `<grad f(w), w - c> >= ‖w - c‖_M^2 - rho ‖w - c‖_M >= 0`, and f is strictly convex. The condition is checked; no
    constant of the problem is assumed.
    """

    split: Split
    loss: LinearLoss

    def solve(self, hyper: float, start: Array | None) -> _State:
        """Damped Newton steps down to the rounding of the gradient."""
        x, y, loss = self.split.X, self.split.y, self.loss
        n, p = x.shape
        k = y.shape[1]
        w = np.zeros((p, k)) if start is None else start

        def objective(w: Array) -> float:
            return float(np.mean(loss.value(x @ w, y))) + 0.5 * hyper * float(np.sum(w * w))

        value = objective(w)
        best, best_norm = w, np.inf
        for _ in range(_NEWTON_STEPS):
            z = x @ w
            slope = x.T @ loss.gradient(z, y) / n + hyper * w
            norm = float(np.linalg.norm(slope))
            if norm < best_norm:
                stalled, best, best_norm = norm > 0.5 * best_norm, w, norm
            else:
                stalled = True
            # Near the optimum a step that no longer halves the gradient has met rounding.
            if norm <= 4 * UNIT * hyper * float(np.linalg.norm(w)) or (stalled and norm < 1e-11 * (1 + np.abs(value))):
                break
            hessian = _weighted_gram(x, loss.curvature(z, y)) + hyper * np.eye(p * k)
            step = np.linalg.solve(hessian, slope.ravel()).reshape(p, k)
            drop, length = float(np.sum(step * slope)), 1.0
            # The slack lets full steps through where the decrease is below the rounding of the objective.
            while (new := objective(w - length * step)) > value - 1e-4 * length * drop + 8 * UNIT * abs(value):
                length *= 0.5
                if length < 1e-10:
                    break
            w, value = w - length * step, new
        return self._state(hyper, best)

    def _state(self, hyper: float, w: Array) -> _State:
        x, y, loss, s = self.split.X, self.split.y, self.loss, self.split
        p = x.shape[1]
        size = np.abs(w)

        def predicted(rows: Array) -> tuple[Array, Array]:
            error = gamma(p + 4) * (np.abs(rows) @ size)
            return rows @ w, np.sqrt(np.sum(error**2, axis=1)) * (1 + gamma(p + 16))

        def pulled(rows: Array, targets: Array, z: Array, z_error: Array) -> tuple[Array, float]:
            g = loss.gradient(z, targets)
            off = (
                loss.smoothness * z_error + loss.rounding(z, targets) + gamma(len(rows) + 8) * np.linalg.norm(g, axis=1)
            )
            lost = np.abs(rows).T @ off / len(rows)
            return rows.T @ g / len(rows), float(np.linalg.norm(lost)) * (1 + gamma(len(rows) + p + 32))

        z, z_error = predicted(x)
        slope, slope_error = pulled(x, y, z, z_error)
        slope = slope + hyper * w
        slope_error += gamma(8) * float(np.linalg.norm(hyper * size + np.abs(slope)))
        out, out_error = predicted(s.X_val)
        outer_slope, outer_error = pulled(s.X_val, s.y_val, out, out_error)
        losses = loss.value(out, s.y_val)
        tilt = np.linalg.norm(loss.gradient(out, s.y_val), axis=1) + loss.smoothness * out_error
        lost = tilt * out_error + loss.rounding(out, s.y_val) + gamma(len(out) + 8) * np.abs(losses)
        return _State(
            w, z, slope, slope_error, z_error, out, out_error, outer_slope, outer_error,
            float(np.mean(losses)), float(np.mean(lost)) * (1 + gamma(len(out) + 32)),
        )  # fmt: skip

    def between(self, left: _State, right: _State) -> Array:
        """The middle of the chord."""
        return 0.5 * (left.w + right.w)

    def middle(self, a: float, b: float) -> float:
        """The geometric middle: penalties live on a logarithmic scale."""
        return float(np.sqrt(a) * np.sqrt(b))

    def tube(self, a: float, left: _State, b: float, right: _State) -> _Tube | None:
        """The tube around the chord, or `None` where the interval is too wide for a proof."""
        x, y, loss = self.split.X, self.split.y, self.loss
        (n, p), k = x.shape, y.shape[1]
        count = gamma(4 * (n + p * k) + 200)
        wobble = left.z_error + right.z_error
        pad = np.full(n, loss.pad)
        floor = loss.floor(left.z, right.z, y, pad)
        gram = _weighted_gram(x, floor)
        trace = float(np.trace(gram)) + a * p * k
        # Rounding of the Gram matrix and backward error of Cholesky, both in norm; taken off, it leaves M below f''.
        doubt = 2 * gamma(n + p * k + 16) * trace
        if not doubt < 0.1 * a:
            return None
        factor = np.linalg.cholesky(gram + (a - 2 * doubt) * np.eye(p * k))
        inflation = (1 + gamma(2 * p * k + 8) * np.sqrt(2 * trace / a)) * (1 + count)
        reach = _row_norms(factor, x, k) * inflation
        step = (right.w - left.w).ravel()
        ends = np.stack([left.slope.ravel(), right.slope.ravel(), step], axis=1)
        first, second, moved = np.linalg.norm(_solve(factor, ends), axis=0) * inflation
        rounding = (
            max(left.slope_error, right.slope_error) + 4 * UNIT * (b - a) * float(np.linalg.norm(step))
        ) / np.sqrt(a / 2)
        v, energy = loss.bend(left.z, right.z, y, pad)
        # z at the ends is known within z_error: the exact chord bends by as much more at most, l'' being bounded.
        slack = 2 * loss.smoothness * wobble
        inside = np.isfinite(energy)
        bent = np.sqrt(np.sum(energy[inside]) / n) + np.sum((reach * v)[~inside]) / n + np.sum(reach * slack) / n
        rho = float(max(first, second) + 0.25 * (b - a) * moved + rounding + bent) * (1 + count)
        if not np.all(reach * rho * (1 + 1e-9) + wobble < pad):
            return None
        return _Tube(factor, rho, inflation)

    def chord(self, a: float, left: _State, b: float, right: _State) -> Chord:
        """The outer loss along the chord, and how far that on the path may be from it.

        `g(w*) - g(c)` is at most `‖grad g(c)‖ rho + (B/2) rho^2 (1/m) sum ‖v_j‖^2` in the norms of M, the gradient
        on the chord bounded by its ends and the loss's bend; `g(c(t))` is convex, so below the line between its ends,
        by at most 1/8 of the mean of the loss's `bow`.
        """
        tube = self.tube(a, left, b, right)
        if tube is None:
            return Chord(left.value, right.value, np.inf, np.inf)
        rows, y, loss = self.split.X_val, self.split.y_val, self.loss
        reach = _row_norms(tube.factor, rows, y.shape[1]) * tube.inflation
        wobble = left.out_error + right.out_error
        ends = np.stack([left.outer_slope.ravel(), right.outer_slope.ravel()], axis=1)
        tilt = float(np.max(np.linalg.norm(_solve(tube.factor, ends), axis=0))) * tube.inflation
        tilt += max(left.outer_slope_error, right.outer_slope_error) / np.sqrt(a / 2)
        bend, _ = loss.bend(left.out, right.out, y, np.zeros(len(rows)))
        tilt += float(np.mean(reach * (bend + 2 * loss.smoothness * wobble)))
        off = tube.radius * tilt + 0.5 * loss.smoothness * tube.radius**2 * float(np.mean(reach**2))
        length = np.linalg.norm(right.out - left.out, axis=1)
        # The predictions at the ends are known within `wobble`; the dip below the line has a slope of at most B length
        # in them.
        bow = loss.bow(left.out, right.out, y) + 16 * loss.smoothness * wobble * (length + wobble)
        lost = max(left.value_error, right.value_error) + 4 * UNIT * (left.value + right.value)
        safe = 1 + gamma(4 * len(rows) + 200)
        return Chord(left.value, right.value, (float(np.mean(bow)) / 8 + off + lost) * safe, (off + lost) * safe)


class _Predictions(NamedTuple):
    """Validation predictions along a chord, each within `radius` of the line from `start` to `end`."""

    start: Array
    end: Array
    radius: Array


class _ErrorProblem:
    """The same inner problem, with the predictions themselves as the answer: for the 0-1 loss."""

    def __init__(self, problem: _LinearProblem):
        self.problem = problem
        self.solve, self.between, self.middle = problem.solve, problem.between, problem.middle

    def chord(self, a: float, left: _State, b: float, right: _State) -> _Predictions:
        """Rows of predictions with their radii."""
        tube = self.problem.tube(a, left, b, right)
        if tube is None:
            return _Predictions(left.out, right.out, np.full(len(left.out), np.inf))
        reach = _row_norms(tube.factor, self.problem.split.X_val, left.out.shape[1]) * tube.inflation
        radius = (reach * tube.radius + np.maximum(left.out_error, right.out_error)) * (1 + 1e-12)
        return _Predictions(left.out, right.out, radius)


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
    a, b = check_domain(domain, name)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive; got {tolerance}.")
    total: PiecewiseFunction | None = None
    for split in task.splits:
        part = _with_ones(split) if intercept else split
        share = len(split.X_val) / task.n_validation
        problem = _LinearProblem(part, loss)
        if zero_one:
            dual = _zero_one(problem, (a, b), most_solves)
        else:
            dual = enclose(problem, (a, b), tolerance=tolerance, most_solves=most_solves)
        total = dual * share if total is None else total + dual * share
    assert total is not None
    return total


def _zero_one(problem: _LinearProblem, domain: tuple[float, float], most_solves: int) -> PiecewiseFunction:
    """Predictions along chords, refined until each crossing of a margin is caught in a narrow bracket."""
    y = problem.split.y_val
    truth = classes_of(y)
    assert truth is not None
    octaves = np.log(domain[1] / domain[0])

    def narrow(chord: _Predictions, a: float, b: float) -> bool:
        start, end, radius = ends(chord)
        crossing = (np.minimum(start, end) <= radius) & (np.maximum(start, end) >= -radius)
        width = np.log(b / a) / octaves
        if width <= _SLIVER and np.all(np.isfinite(radius)):
            return True
        return bool(np.all(2 * radius[crossing] * width <= _SLIVER * np.abs(end - start)[crossing]))

    def ends(chord: _Predictions) -> tuple[Array, Array, Array]:
        return (
            margins(chord.start, y, truth),
            margins(chord.end, y, truth),
            margin_radius(chord.radius, y.shape[1]),
        )

    edges, chords = chords_of(_ErrorProblem(problem), domain, narrow, most_solves)
    lines = [ends(chord) for chord in chords]
    return error_rate(edges, [np.stack(x[:2], axis=1) for x in lines], [x[2] for x in lines], len(y))


def _with_ones(split: Split) -> Split:
    ones = [np.ones((len(x), 1)) for x in (split.X, split.X_val)]
    return Split(np.hstack([split.X, ones[0]]), split.y, np.hstack([split.X_val, ones[1]]), split.y_val)


def _weighted_gram(x: Array, weights: Array) -> Array:
    """`(1/n) sum_i x_i x_i^T (x) W_i`, (p K, p K), for weights (n, K, K)."""
    n, p = x.shape
    k = weights.shape[1]
    out = np.empty((p, k, p, k))
    for i in range(k):
        for j in range(i, k):
            block = (x.T * weights[:, i, j]) @ x / n
            out[:, i, :, j] = block
            out[:, j, :, i] = block
    return out.reshape(p * k, p * k)


def _solve(factor: Array, right: Array) -> Array:
    from scipy.linalg import solve_triangular

    return solve_triangular(factor, right, lower=True, check_finite=False)


def _row_norms(factor: Array, rows: Array, k: int) -> Array:
    """(n,): largest `|(x (x) I)^T u|` for `‖u‖_M <= 1`: the norm of `factor^-1 (x (x) I)`, by Frobenius where k >
    1."""
    n, p = rows.shape
    total = np.zeros(n)
    for j in range(k):
        right = np.zeros((p, k, n))
        right[:, j, :] = rows.T
        total += np.sum(_solve(factor, right.reshape(p * k, n)) ** 2, axis=0)
    return np.sqrt(total)
