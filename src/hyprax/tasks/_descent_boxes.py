r"""Learning rate and momentum on boxes: gradient descent on linear models, followed in the box's own coordinates.

On a box, `η = c_1 + h_1 s_1` and `β = c_2 + h_2 s_2`, |s| <= 1, a step

    w_{t+1} = w_t + β (w_t - w_{t-1}) + η (b - H w_t),   H = X^T X / n, b = X^T y / n,

takes polynomials in s to polynomials of one degree more. What exceeds degree D is left out, and counts, as rounding
does, as an error ρ_t of that step, in the Euclidean norm: the sum of the norms of its coefficients.

*What an error becomes.* At any (η, β) of the box the recurrence is linear, and acts on an eigenvector of H of
eigenvalue μ as `x_{t+1} = (1 + β - η μ) x_t - β x_{t-1}`. Its response to an impulse after m more steps is
`sum_i r^i q^(m - i)` in the two roots r and q of `r^2 - (1 + β - η μ) r + β`, at most `(m + 1) R^m` with R >= 1 above
both. Complex roots have the modulus sqrt(β) < 1; real positive ones are at most 1; real negative ones grow with η μ and
shrink with β, so R is that of the largest η μ and the least β. So `‖w_T - v‖ <= E = sum_t (T - t) R^(T - 1 - t) ρ_t`.

The loss `f = w^T Q w - 2 q^T w + r` is convex: `f(v) - 2 ‖Q v - q‖ E <= f(w) <= f(v) + 2 ‖Q v - q‖ E + tr(Q) E^2`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._bernstein import UNIT, Array
from ._boxes import Moments, SplitBounds, join
from ._descent import largest_root, top_of
from ._multivariate import monomials, pairs, shifts
from ._signs import times
from ._task import Task

_DEGREE = 5
"""Of the weights, as polynomials on a box."""


class DescentBoxes(NamedTuple):
    """The splits of tasks, padded to as many columns as the widest has; `size` of an array bounds its rounding."""

    sums: Moments
    top: Array
    """(N,): at least the largest eigenvalue of H."""
    first: Array
    """(T,): the first split of each task."""
    clip: Array
    """(T,): losses are cut there."""
    steps: int
    """T."""

    @classmethod
    def of(cls, task: Task, steps: int, intercept: bool) -> "DescentBoxes":
        """The splits of one task."""
        top = np.array([top_of(split.centred(intercept).X) for split in task.splits])
        one = {"first": np.zeros(1, dtype=int), "clip": np.array([np.inf])}
        return cls(Moments.of(task, intercept), top=top, **one, steps=steps)

    @property
    def degree(self) -> int:
        """Of the polynomials of the loss."""
        return 2 * _DEGREE

    @property
    def size(self) -> int:
        """Floats that one box takes."""
        return self.sums.b.size * len(monomials(2, _DEGREE).powers) * 4

    @property
    def splits(self) -> int:
        """N."""
        return len(self.sums.r)

    def clipped(self, height: float) -> "DescentBoxes":
        """With losses cut at a height too."""
        return self._replace(clip=np.minimum(self.clip, height))

    def joined(self, others: "Sequence[DescentBoxes]") -> "DescentBoxes":
        """With those of other tasks after it, padded with columns of zeros, whose weights stay zero."""
        if any(other.steps != self.steps for other in others):
            raise ValueError("erm_box: all duals must be of as many steps; got different ones.")
        return join([self, *others], {})

    def bounds(self, low: Array, high: Array, hint: Array | None, *, points: bool = False) -> SplitBounds:
        """On boxes (m, 2), or at points, where `low` is `high`. At points the coefficients are derivatives."""
        with np.errstate(over="ignore", invalid="ignore"):
            return _follow(self, low, high, points)


def _follow(of: DescentBoxes, low: Array, high: Array, points: bool) -> SplitBounds:
    sums = of.sums
    m, (n, d), degree = len(low), sums.b.shape, 1 if points else _DEGREE
    middle = 0.5 * (low + high)
    half = np.ones_like(low) if points else 0.5 * (high - low) * (1 + 4 * UNIT) + 4 * UNIT * np.abs(middle)
    rate, momentum = (middle[:, h, None, None, None] for h in (0, 1))
    count = len(monomials(2, degree).powers)
    seen = slice(0, 1) if points else slice(None)  # of a point, the value is all that an error may come from
    up = [shifts(2, degree, raised) for raised in ((1, 0), (0, 1))]
    last = monomials(2, degree).level[-1]
    w, before = np.zeros((m, n, d, count)), np.zeros((m, n, d, count))
    error, blame = np.zeros((m, n)), np.zeros((m, n, 2))
    fastest = high[:, 0, None]
    root = largest_root(fastest * of.top, low[:, 1, None])  # (m, n)
    for step in range(of.steps):
        slope, moved = -(sums.H @ w), w - before
        slope[..., 0] += sums.b
        new = w + momentum * moved + rate * slope
        dropped = np.zeros((m, n, 2))
        for h, ((rows, to), by, width) in enumerate(zip(up, (slope, moved), half.T, strict=True)):
            new[..., to] += width[:, None, None, None] * by[..., rows]
            if not points:
                dropped[..., h] = width[:, None] * np.sqrt(np.sum(by[..., last] ** 2, axis=2)).sum(axis=-1)
        size, earlier = np.abs(w[..., seen]).sum(axis=-1), np.abs(before[..., seen]).sum(axis=-1)
        turned = times(sums.H_size, size) + sums.b_size
        made = sums.unit[:, None] * fastest[..., None] * turned
        made += (d + 32) * UNIT * (fastest[..., None] * turned + 2 * size + earlier)
        left = of.steps - step
        growth = left * root ** (left - 1)
        blame += growth[..., None] * dropped
        error += growth * (np.sqrt(np.sum(made**2, axis=2)) + dropped.sum(axis=-1)) * (1 + 1e-9)
        w, before = new, w
    return _loss(of, w, error, blame, degree, points)


def _loss(of: DescentBoxes, w: Array, error: Array, blame: Array, degree: int, points: bool) -> SplitBounds:
    sums = of.sums
    m, n, d, count = w.shape
    seen = slice(0, 1) if points else slice(None)
    slope = sums.Q @ w
    coefficients = (w.swapaxes(-1, -2) @ slope).reshape(m, n, -1) @ pairs(2, degree, degree)
    coefficients[..., :count] -= 2 * np.einsum("nd,mnda->mna", sums.q, w)
    coefficients[..., 0] += sums.r
    slope[..., 0] -= sums.q
    size = np.abs(w[..., seen]).sum(axis=-1)
    turned = times(sums.Q_size, size)
    unit = sums.unit + (4 * d + count + 24) * UNIT
    lost = (np.sum(size * (turned + 2 * sums.q_size), axis=2) + sums.r_size) * unit
    steep = np.sqrt(np.sum(slope[..., seen] ** 2, axis=2)).sum(axis=-1)
    steep += unit * np.sqrt(np.sum((turned + sums.q_size) ** 2, axis=2))
    slack = 2 * steep * error * (1 + 1e-9) + lost
    above = np.einsum("njj->n", sums.Q_size) * (1 + 1e-9) * error**2
    sure = np.isfinite(slack + above) & np.all(np.isfinite(coefficients), axis=-1)
    coefficients = np.where(sure[..., None], coefficients, 0.0)
    if points:
        movement, coefficients = coefficients[..., 1:3], coefficients[..., :1]
    else:
        # What moves the loss, and what was left out of the polynomials.
        share = np.where(np.isfinite(blame), np.minimum(blame, 1e100), 1e100)
        share /= np.maximum(share.sum(axis=-1, keepdims=True), 1e-300)
        movement = np.abs(coefficients) @ (monomials(2, 2 * degree).powers > 0)
        movement += np.where(sure, np.minimum(slack, 1e100), 1e100)[..., None] * share
    slack, above = (np.where(sure, x, np.inf) for x in (slack, above))
    return SplitBounds(coefficients, slack, above, movement, np.zeros((m, n), dtype=np.int8))
