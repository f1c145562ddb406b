"""Chords between optima of regularised linear models, with their proofs: many intervals of many splits at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ._bernstein import UNIT, Array
from ._enclosure import THINNEST, too_wide
from ._losses import LinearLoss, Weighted
from ._series import gamma
from ._task import Split

T = TypeVar("T", bound=tuple)

_NEWTON_STEPS = 60
_BLOCK = 2_000_000
"""Floats in the largest array of a block of intervals."""


class States(NamedTuple):
    """Approximate optima, and what the chords ask of them: B of them, each of one split at one λ."""

    w: Array
    """(B, p, K)."""
    z: Array
    """(B, n, K): training predictions."""
    slope: Array
    """(B, p, K): the gradient of the training objective."""
    slope_error: Array
    """(B,): bound of the norm of its rounding."""
    z_error: Array
    """(B, n): of the training predictions."""
    out: Array
    """(B, m, K): validation predictions."""
    out_error: Array
    """(B, m)."""
    outer_slope: Array
    """(B, p, K): the gradient of the validation loss."""
    outer_slope_error: Array
    """(B,)."""
    value: Array
    """(B,): the validation loss."""
    value_error: Array
    """(B,)."""


class Tubes(NamedTuple):
    """`‖c(t) - w*(λ(t))‖_M <= radius` on each interval; infinite where nothing is proved."""

    radius: Array
    inflation: Array
    """Pays for the rounding of a solve with `factor`, in a norm."""


class Chords(NamedTuple):
    """`start (1 - t) + end t - below <= L(λ) <= start (1 - t) + end t + above`, each of shape (B,)."""

    start: Array
    end: Array
    below: Array
    above: Array


class Predictions(NamedTuple):
    """Validation predictions (B, m, K) along chords, each within `radius` (B, m) of the line from `start` to `end`."""

    start: Array
    end: Array
    radius: Array


class Intervals(NamedTuple):
    """[a, b] of split `which`, with the optima at both ends."""

    which: Array
    a: Array
    b: Array
    left: States
    right: States


def take(arrays: T, at: Any) -> T:
    """The rows `at` of every array of a (nested) tuple."""
    return type(arrays)(*(take(x, at) if isinstance(x, tuple) else x[at] for x in arrays))


def join(parts: Sequence[T]) -> T:
    """The rows of several such tuples, one after another."""
    first = parts[0]
    columns = zip(*parts, strict=True)
    return type(first)(*(join(c) if isinstance(c[0], tuple) else np.concatenate(c) for c in columns))


class LinearProblems:
    r"""`f(w, λ) = (1/n) sum l(x_i w, y_i) + (λ/2) ‖w‖^2`, outer loss `(1/m) sum l(v_j w, y_j)`, for splits of one
    shape.

    *The tube.* Let F_i be a lower bound of `l''` for all predictions within `pad` of the chord of row i, and
    `M = (1/n) sum x_i x_i^T (x) F_i + λ_a I`. On the chord the gradient is the straight line between its values at
    the ends, plus `(1/n) sum x_i (x) v_i` (`v_i`: the loss's `bend`), minus `t (1 - t) D d`, D the step of λ and d
    of w. In the dual norm of M the ends count by their largest, `‖D d‖ / 4` bounds the last, and the sum is at most
    `sqrt((1/n) sum_S v_i^T F_i^+ v_i) + (1/n) sum_(not S) ‖x_i‖ |v_i|`, as `M >= (1/n) sum x_i x_i^T (x) F_i`. Call
    the total rho. f is 1-strongly convex in the norm of M on the ball of radius rho around c(t), if predictions move by
    at most `pad` there, that is if `‖x_i‖ rho < pad`. Then w* lies in that ball: on its surface
    `<grad f(w), w - c> >= ‖w - c‖_M^2 - rho ‖w - c‖_M >= 0`, and f is strictly convex. The condition is checked; no
    constant of the problem is assumed.

    Optima are approximate: their gradients are below `fine` in the dual norm of M, and are counted.

    Nothing here depends on the order in which sums are taken, so the intervals of a block are worked on at once.
    """

    def __init__(self, splits: Sequence[Split], loss: LinearLoss, fine: float):
        self.loss, self.count, self.fine = loss, len(splits), fine
        self.x, self.y, self.x_val, self.y_val = (
            np.stack([getattr(s, name) for s in splits]) for name in ("X", "y", "X_val", "y_val")
        )
        self.size, self.size_val = np.abs(self.x), np.abs(self.x_val)

    @property
    def shape(self) -> tuple[int, int]:
        """(p, K) of the weights."""
        return self.x.shape[2], self.y.shape[2] - isinstance(self.loss, Weighted)

    @property
    def lanes(self) -> int:
        """How many intervals are worked on at once."""
        p, k = self.shape
        return max(1, _BLOCK // (p * k * (k * max(self.x.shape[1], self.x_val.shape[1]) + p * k)))

    def _of(self, which: Array, *arrays: Array) -> Iterator[Array]:
        """The rows of each interval's split; a single split is not copied."""
        yield from arrays if self.count == 1 else (array[which] for array in arrays)

    def solve(self, which: Array, hyper: Array, start: Array) -> States:
        """Damped Newton steps until the gradient is fine, or down to its rounding."""
        n, q = self.x.shape[1], int(np.prod(self.shape))
        w, best, norm_of_best = start, start.copy(), np.full(len(start), np.inf)
        live: Array = np.arange(len(start))
        lam: Array = hyper[:, None, None]
        value: Any = None
        x, y = self._of(which, self.x, self.y)
        y = np.broadcast_to(y, (len(start), *y.shape[1:]))
        for _ in range(_NEWTON_STEPS):
            z = x @ w
            value = self._objective(z, y, lam, w) if value is None else value
            slope = x.swapaxes(1, 2) @ _rows(self.loss.gradient, z, y) / n + lam * w
            norm = _norm(slope)
            better = norm < norm_of_best[live]
            stalled = ~better | (norm > 0.5 * norm_of_best[live])
            best[live[better]], norm_of_best[live[better]] = w[better], norm[better]
            # Near the optimum a step that no longer halves the gradient has met rounding.
            done = norm <= np.maximum(self.fine * np.sqrt(lam[:, 0, 0]), 4 * UNIT * lam[:, 0, 0] * _norm(w))
            done |= stalled & (norm < 1e-11 * (1 + np.abs(value)))
            if done.any():
                live, w, lam, z, y, slope, value = (v[~done] for v in (live, w, lam, z, y, slope, value))
                if not live.size:
                    break
                x = x if self.count == 1 else x[~done]
            hessian = _weighted_gram(x, _rows(self.loss.curvature, z, y)) + lam * np.eye(q)
            step = np.linalg.solve(hessian, slope.reshape(-1, q, 1)).reshape(w.shape)
            drop, length = np.sum(step * slope, axis=(1, 2)), np.ones(len(w))
            new = self._objective(x @ (w - step), y, lam, w - step)
            # The slack lets full steps through where the decrease is below the rounding of the objective.
            while True:
                short = new > value - 1e-4 * length * drop + 8 * UNIT * np.abs(value)
                short &= length >= 1e-10
                if not short.any():
                    break
                length = np.where(short, 0.5 * length, length)
                at = w - length[:, None, None] * step
                new = np.where(short, self._objective(x @ at, y, lam, at), new)
            w, value = w - length[:, None, None] * step, new
        return self._states(which, hyper, best)

    def _objective(self, z: Array, y: Array, lam: Array, w: Array) -> Array:
        return np.mean(_rows(self.loss.value, z, y), axis=1) + 0.5 * lam[:, 0, 0] * np.sum(w * w, axis=(1, 2))

    def _states(self, which: Array, hyper: Array, w: Array) -> States:
        loss, size, p = self.loss, np.abs(w), self.shape[0]

        def predicted(rows: Array, sizes: Array) -> tuple[Array, Array]:
            error = gamma(p + 4) * (sizes @ size)
            return rows @ w, np.sqrt(np.sum(error**2, axis=2)) * (1 + gamma(p + 16))

        def pulled(rows: Array, sizes: Array, y: Array, z: Array, z_error: Array) -> tuple[Array, Array]:
            g, count = _rows(loss.gradient, z, y), rows.shape[1]
            off = loss.smoothness * z_error + _rows(loss.rounding, z, y) + gamma(count + 8) * np.linalg.norm(g, axis=2)
            lost = (sizes.swapaxes(1, 2) @ off[..., None])[..., 0] / count
            slope = rows.swapaxes(1, 2) @ g / count
            return slope, np.linalg.norm(lost, axis=1) * (1 + gamma(count + p + 32))

        x, ax, y, v, av, yv = self._of(which, self.x, self.size, self.y, self.x_val, self.size_val, self.y_val)
        y, yv = (np.broadcast_to(t, (len(w), *t.shape[1:])) for t in (y, yv))
        z, z_error = predicted(x, ax)
        slope, slope_error = pulled(x, ax, y, z, z_error)
        lam = hyper[:, None, None]
        slope = slope + lam * w
        slope_error = slope_error + gamma(8) * _norm(lam * size + np.abs(slope))
        out, out_error = predicted(v, av)
        outer_slope, outer_error = pulled(v, av, yv, out, out_error)
        losses = _rows(loss.value, out, yv)
        m = out.shape[1]
        tilt = np.linalg.norm(_rows(loss.gradient, out, yv), axis=2) + loss.smoothness * out_error
        lost = tilt * out_error + _rows(loss.rounding, out, yv) + gamma(m + 8) * np.abs(losses)
        return States(
            w, z, slope, slope_error, z_error, out, out_error, outer_slope, outer_error,
            np.mean(losses, axis=1), np.mean(lost, axis=1) * (1 + gamma(m + 32)),
        )  # fmt: skip

    def tubes(self, of: Intervals, more: Array) -> tuple[Tubes, Array]:
        """The tubes around the chords; infinite where the interval is too wide for a proof. With `factor^-1 more`."""
        loss, left, right = self.loss, of.left, of.right
        x, y = self._of(of.which, self.x, self.y)
        (p, k), n, lanes = self.shape, x.shape[1], len(of.a)
        y = np.broadcast_to(y, (lanes, *y.shape[1:]))
        count = gamma(4 * (n + p * k) + 200)
        wobble = left.z_error + right.z_error
        pad = np.full((lanes, n), loss.pad)
        gram = _weighted_gram(x, _rows(loss.floor, left.z, right.z, y, pad))
        trace = np.trace(gram, axis1=1, axis2=2) + of.a * p * k
        # Rounding of the Gram matrix and backward error of Cholesky, both in norm; taken off, it leaves M below f''.
        doubt = 2 * gamma(n + p * k + 16) * trace
        known = doubt < 0.1 * of.a
        shifted = gram + (of.a - 2 * doubt)[:, None, None] * np.eye(p * k)
        factor = np.linalg.cholesky(np.where(known[:, None, None], shifted, np.eye(p * k)))
        inflation = (1 + gamma(2 * p * k + 8) * np.sqrt(2 * trace / of.a)) * (1 + count)
        step = (right.w - left.w).reshape(lanes, -1)
        ends = np.stack([left.slope.reshape(lanes, -1), right.slope.reshape(lanes, -1), step], axis=2)
        rows = _columns(x, k)
        solved = _solve(factor, [ends, rows, more])  # at once, as a column more costs little
        first, second, moved = np.linalg.norm(solved[:, :, :3], axis=1).T * inflation
        reach = _row_norms(solved[:, :, 3 : 3 + rows.shape[2]], k) * inflation[:, None]
        rounding = np.maximum(left.slope_error, right.slope_error)
        rounding = (rounding + 4 * UNIT * (of.b - of.a) * np.linalg.norm(step, axis=1)) / np.sqrt(of.a / 2)
        v, energy = _rows(loss.bend, left.z, right.z, y, pad)
        # z at the ends is known within z_error: the exact chord bends by as much more at most, l'' being bounded.
        slack = 2 * loss.smoothness * wobble
        inside = np.isfinite(energy)
        bent = np.sqrt(np.sum(np.where(inside, energy, 0.0), axis=1) / n)
        bent += np.sum(np.where(inside, 0.0, reach * v), axis=1) / n + np.sum(reach * slack, axis=1) / n
        rho = (np.maximum(first, second) + 0.25 * (of.b - of.a) * moved + rounding + bent) * (1 + count)
        known &= np.all(reach * rho[:, None] * (1 + 1e-9) + wobble < pad, axis=1)
        return Tubes(np.where(known, rho, np.inf), inflation), solved[:, :, 3 + rows.shape[2] :]

    def chords(self, of: Intervals) -> Chords:
        """The outer loss along the chords, and how far that on the path may be from it.

        `g(w*) - g(c)` is at most `‖grad g(c)‖ rho + (B/2) rho^2 (1/m) sum ‖v_j‖^2` in the norms of M, the gradient
        on the chord bounded by its ends and the loss's bend; `g(c(t))` is convex, so below the line between its ends,
        by at most 1/8 of the mean of the loss's `bow`.
        """
        loss, left, right = self.loss, of.left, of.right
        rows, y = self._of(of.which, self.x_val, self.y_val)
        lanes, m = len(of.a), rows.shape[1]
        y = np.broadcast_to(y, (lanes, *y.shape[1:]))
        ends = np.stack([left.outer_slope.reshape(lanes, -1), right.outer_slope.reshape(lanes, -1)], axis=2)
        columns = np.broadcast_to(_columns(rows, self.shape[1]), (lanes, ends.shape[1], m * self.shape[1]))
        tube, solved = self.tubes(of, np.concatenate([ends, columns], axis=2))
        reach = _row_norms(solved[:, :, 2:], self.shape[1]) * tube.inflation[:, None]
        wobble = left.out_error + right.out_error
        tilt = np.max(np.linalg.norm(solved[:, :, :2], axis=1), axis=1) * tube.inflation
        tilt += np.maximum(left.outer_slope_error, right.outer_slope_error) / np.sqrt(of.a / 2)
        bend, _ = _rows(loss.bend, left.out, right.out, y, np.zeros((lanes, m)))
        tilt += np.mean(reach * (bend + 2 * loss.smoothness * wobble), axis=1)
        off = tube.radius * tilt + 0.5 * loss.smoothness * tube.radius**2 * np.mean(reach**2, axis=1)
        length = np.linalg.norm(right.out - left.out, axis=2)
        # The predictions at the ends are known within `wobble`; the dip below the line has a slope of at most B length
        # in them.
        bow = _rows(loss.bow, left.out, right.out, y) + 16 * loss.smoothness * wobble * (length + wobble)
        lost = np.maximum(left.value_error, right.value_error) + 4 * UNIT * (left.value + right.value)
        safe = 1 + gamma(4 * m + 200)
        return Chords(left.value, right.value, (np.mean(bow, axis=1) / 8 + off + lost) * safe, (off + lost) * safe)

    def predictions(self, of: Intervals) -> Predictions:
        """Rows of predictions with their radii: for the 0-1 loss."""
        (rows,) = self._of(of.which, self.x_val)
        tube, solved = self.tubes(of, _columns(rows, self.shape[1]))
        reach = _row_norms(solved, self.shape[1]) * tube.inflation[:, None]
        radius = reach * tube.radius[:, None] + np.maximum(of.left.out_error, of.right.out_error)
        radius = np.where(np.isfinite(tube.radius)[:, None], radius * (1 + 1e-12), np.inf)
        return Predictions(of.left.out, of.right.out, radius)

    def cover(
        self,
        domain: tuple[float, float],
        chord: Callable[[Intervals], T],
        parts: Callable[[T, Intervals], Array],
        most_solves: int,
    ) -> list[tuple[Array, T]]:
        """For each split the ends of intervals and their chords, each cut until `parts` says 1: into so many.

        The parts are equal on a logarithmic scale, on which penalties live. The last of the intervals that are open are
        worked on first, so that few optima are held.
        """
        splits = np.arange(self.count)
        low, high = (np.full(self.count, end) for end in domain)
        left = self.solve(splits, low, np.zeros((self.count, *self.shape)))
        open_ = Intervals(splits, low, high, left, self.solve(splits, high, left.w))
        solves = np.full(self.count, 2)
        done: list[tuple[Array, Array, Array]] = []
        kept: list[T] = []
        while len(open_.a):
            block = take(open_, slice(-self.lanes, None))
            open_ = take(open_, slice(None, -self.lanes))
            found = chord(block)
            count = parts(found, block)
            good = count == 1
            done.append((block.which[good], block.a[good], block.b[good]))
            kept.append(take(found, good))
            if good.all():
                continue
            block, count = take(block, ~good), count[~good]
            inner = np.repeat(np.arange(len(count)), count - 1)
            before = np.cumsum(count - 1) - (count - 1)  # cuts of the intervals before
            place = (np.arange(len(inner)) - before[inner] + 1) / count[inner]
            a, b = block.a[inner], block.b[inner]
            cut = a * (b / a) ** place
            np.add.at(solves, block.which, count - 1)
            bad = (solves[block.which[inner]] > most_solves) | ~((a < cut) & (cut < b)) | (b - a <= THINNEST * b)
            if bad.any():
                i = int(np.argmax(bad))
                raise ValueError(too_wide(a[i], b[i], int(solves[block.which[inner[i]]] - count[inner[i]]) + 1))
            t = place[:, None, None]
            start = (1 - t) * block.left.w[inner] + t * block.right.w[inner]
            state = self.solve(block.which[inner], cut, start)
            # Of every interval the left end, what was cut between, and the right end, in their order.
            order = np.argsort(np.concatenate([np.arange(len(count)), inner, np.arange(len(count))]), kind="stable")
            ends, states = np.concatenate([block.a, cut, block.b])[order], join([block.left, state, block.right])
            first = np.ones(len(order), dtype=bool)
            first[np.cumsum(count + 1) - 1] = False  # a right end begins no part
            at = np.flatnonzero(first)
            left, right = take(states, order[at]), take(states, order[at + 1])
            which = np.repeat(block.which, count)
            open_ = join([open_, Intervals(which, ends[at], ends[at + 1], left, right)])
        (which, a, b), chords = (np.concatenate(x) for x in zip(*done, strict=True)), join(kept)
        covers = []
        for split in splits:
            order = np.flatnonzero(which == split)
            order = order[np.argsort(a[order])]
            covers.append((np.append(a[order], b[order[-1]]), take(chords, order)))
        return covers


def _rows(function: Callable[..., Any], *arrays: Array) -> Any:
    """A function of rows (n, ...) on every row of (B, n, ...)."""
    lanes, n = arrays[0].shape[:2]
    found = function(*(a.reshape(lanes * n, *a.shape[2:]) for a in arrays))
    if isinstance(found, tuple):
        return tuple(x.reshape(lanes, n, *x.shape[1:]) for x in found)
    return found.reshape(lanes, n, *found.shape[1:])


def _norm(tensor: Array) -> Array:
    return np.sqrt(np.sum(tensor * tensor, axis=(1, 2)))


def _weighted_gram(x: Array, weights: Array) -> Array:
    """`(1/n) sum_i x_i x_i^T (x) W_i`, (B, p K, p K), for rows (B or 1, n, p) and weights (B, n, K, K)."""
    _, n, p = x.shape
    lanes, k = len(weights), weights.shape[2]
    out = np.empty((lanes, p, k, p, k))
    for i in range(k):
        for j in range(i, k):
            block = (x.swapaxes(1, 2) * weights[:, None, :, i, j]) @ x / n
            out[:, :, i, :, j] = block
            out[:, :, j, :, i] = block
    return out.reshape(lanes, p * k, p * k)


def _solve(factor: Array, right: Sequence[Array]) -> Array:
    """Forward substitution with (B, q, q) and several (B or 1, q, m) side by side."""
    from scipy.linalg import solve_triangular

    lanes, q = factor.shape[:2]
    columns = np.concatenate([np.broadcast_to(part, (lanes, *part.shape[1:])) for part in right], axis=2)
    if lanes * 8 < q:
        for i in range(lanes):
            columns[i] = solve_triangular(factor[i], columns[i], lower=True, check_finite=False)
        return columns
    for i in range(q):
        if i:
            columns[:, i] -= (factor[:, i : i + 1, :i] @ columns[:, :i])[:, 0]
        columns[:, i] /= factor[:, i, i, None]
    return columns


def _columns(rows: Array, k: int) -> Array:
    """`x (x) I` for every row x (B, n, p): (B, p k, n k)."""
    if k == 1:
        return rows.swapaxes(1, 2)
    one, n, p = rows.shape
    right = np.zeros((one, p, k, n, k))
    for j in range(k):
        right[:, :, j, :, j] = rows.swapaxes(1, 2)
    return right.reshape(one, p * k, n * k)


def _row_norms(solved: Array, k: int) -> Array:
    """(B, n): largest `|(x (x) I)^T u|` for `‖u‖_M <= 1`, from `factor^-1 (x (x) I)`: its norm, by Frobenius where k >
    1."""
    squares = np.sum(solved**2, axis=1)
    return np.sqrt(squares.reshape(len(squares), -1, k).sum(axis=2) if k > 1 else squares)
