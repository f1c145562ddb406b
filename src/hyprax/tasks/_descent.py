"""Duals of the learning rate: the validation loss after a few steps of gradient descent, a polynomial in the rate."""

from typing import Any, NamedTuple

import numpy as np

from ._bernstein import UNIT, Array
from ._multivariate import to_bernstein
from ._piecewise import PiecewiseFunction
from ._series import gamma
from ._task import Column, Split, Task, check_domain

_DEGREE = 8
"""Degree of the pieces: what is above it is bounded, and paid for by the radius."""
_PIECES = 4000


def descent_dual(
    task: Task,
    domain: tuple[float, float],
    *,
    steps: int,
    momentum: float = 0.0,
    intercept: bool = True,
    tolerance: float = 1e-8,
) -> PiecewiseFunction:
    r"""`f(η) = (1/M) sum (y_i - x_i w_T(η))^2`: training as a hyperparameter, T = `steps` steps at the rate η.

    On each training part `w_0 = 0` and `w_{t+1} = w_t + β (w_t - w_{t-1}) + η X^T (y - X w_t) / n`, gradient descent on
    `‖y - X w‖^2 / (2 n)`, with β = `momentum` as in torch.optim.SGD. So w_T is a polynomial of degree T in η and f one
    of degree 2 T: `complexity.Intervals.rational(2 * T)` counts it. The rate with the best mean over many tasks, for
    tasks to come, is what [`erm`][hyprax.tasks.erm] finds.

    **Certified.** On a piece `η = c + h s`, |s| <= 1, the coefficients of w_t in s follow the recurrence itself. Those
    of f above degree 8 are bounded by their absolute sum, and the piece is halved until that is at most `tolerance` of
    the largest loss there. Rounding: an error ρ_j made in step j moves w_T by at most `(T - j) R^(T - 1 - j) ρ_j`, as
    the recurrence acts on an eigenvector of eigenvalue μ as `x_{t+1} = (1 + β - η μ) x_t - β x_{t-1}`, whose response
    to an impulse is `sum_i r^i q^(m - i)` in the two roots r and q; R is the larger of 1 and the largest root, at the
    largest η μ.

    **Arguments:**

    - `task`: one target column. Standardise columns beforehand: rates depend on their scale.
    - `domain`: (a, b), the range of η, 0 <= a < b. Above `2 (1 + β) / μ_max` training diverges, and the loss is large.
    - `steps`: T >= 1.
    - `momentum`: β in [0, 1). To choose among several, see `choices` of [`gap`][hyprax.tasks.gap].
    - `intercept`: whether both parts are centred by the training means: the intercept is fitted exactly.
    - `tolerance`: the radius allowed, in parts of the largest loss on its piece.

    **Raises:** `ValueError` where the tolerance is not reached, with the place.
    """
    a, b = check_domain(domain, "descent_dual", "0 <= ")
    if not (isinstance(steps, int | np.integer) and steps >= 1):
        raise ValueError(f"descent_dual: steps must be an integer >= 1; got {steps!r}.")
    if not 0 <= momentum < 1:
        raise ValueError(f"descent_dual: momentum must lie in [0, 1); got {momentum!r}.")
    if not tolerance > 0:
        raise ValueError(f"descent_dual: tolerance must be positive; got {tolerance!r}.")
    if task.splits[0].y.shape[1] != 1:
        raise ValueError(f"descent_dual: y must have one column; got {task.splits[0].y.shape[1]}.")
    parts = []
    for split in task.splits:
        f = _of_split(split, a, b, int(steps), float(momentum), intercept, tolerance)
        parts.append(f * (len(split.X_val) / task.n_validation * len(task.splits)))
    return parts[0] if len(parts) == 1 else PiecewiseFunction.mean(parts)


def _of_split(
    split: Split, a: float, b: float, steps: int, momentum: float, intercept: bool, tolerance: float
) -> PiecewiseFunction:
    problem = _Problem.of(split, intercept)
    edges = np.linspace(a, b, 9)
    settled: list[tuple[float, float, Array, float]] = []
    low, high = edges[:-1], edges[1:]
    while low.size:
        rows, radius = problem.loss(low, high, steps, momentum)
        # A loss that overflows, or is far off by rounding, stays wide however thin the piece.
        fine = radius <= tolerance * np.max(np.abs(rows), axis=1)
        thin = high - low <= 1e-9 * b
        if np.any(thin & ~fine) or low.size + len(settled) > _PIECES:
            i = int(np.argmax(~fine))
            raise ValueError(
                f"descent_dual: the enclosure on [{low[i]:.9g}, {high[i]:.9g}] is still wider than tolerance = "
                f"{tolerance:g}. Raise it, take fewer steps, or end the domain before training diverges."
            )
        settled += [
            (x, y, row, r) for x, y, row, r in zip(low[fine], high[fine], rows[fine], radius[fine], strict=True)
        ]
        x, y = low[~fine], high[~fine]
        middle = 0.5 * (x + y)
        low, high = np.concatenate([x, middle]), np.concatenate([middle, y])
    settled.sort(key=lambda piece: piece[0])
    ends = np.array([settled[0][0], *(piece[1] for piece in settled)])
    return PiecewiseFunction(
        ends, np.array([piece[2] for piece in settled]), None, np.array([piece[3] for piece in settled])
    )


class _Problem(NamedTuple):
    """The moments of a training part, and its validation rows; `size` of an array bounds its rounding."""

    H: Array
    H_size: Array
    b: Array
    b_size: Array
    X: Array
    X_size: Array
    y: Array
    y_size: Array
    unit: float
    top: float
    """At least the largest eigenvalue of H."""

    @classmethod
    def of(cls, split: Split, intercept: bool) -> "_Problem":
        X, y, X_val, y_val = split.centred(intercept)
        n, x, sx = len(X.values), X.values, X.size
        H_size, unit = sx.T @ sx / n, gamma(2 * n + 24)
        H = x.T @ x / n
        top = top_of(X)
        b, b_size = x.T @ y.values[:, 0] / n, sx.T @ y.size[:, 0] / n
        return cls(H, H_size, b, b_size, X_val.values, X_val.size, y_val.values[:, 0], y_val.size[:, 0], unit, top)

    def loss(self, low: Array, high: Array, steps: int, momentum: float) -> tuple[Array, Array]:
        """Bernstein rows of the mean loss on the pieces, and their radii: infinite where numbers overflow."""
        d, k, beta = len(self.b), len(low), momentum
        middle = 0.5 * (low + high)
        half = 0.5 * (high - low)
        largest = np.abs(middle) + half
        w, before = np.zeros((k, d, steps + 1)), np.zeros((k, d, steps + 1))
        lost = np.zeros(k)
        root = largest_root(largest * self.top, beta)
        with np.errstate(over="ignore", invalid="ignore"):
            for step in range(steps):
                slope = -(self.H @ w)
                slope[..., 0] += self.b
                new = w + beta * (w - before) + middle[:, None, None] * slope
                new[..., 1:] += half[:, None, None] * slope[..., :-1]
                size, size_before = np.abs(w).sum(axis=2), np.abs(before).sum(axis=2)
                turned = size @ self.H_size
                made = self.unit * largest[:, None] * (turned + self.b_size)
                made += (d + 16) * UNIT * (largest[:, None] * (turned + self.b_size) + 2 * size + size_before)
                left = steps - step
                lost += left * root ** (left - 1) * np.sqrt(np.sum(made**2, axis=1)) * (1 + 1e-9)
                w, before = new, w
            residual = -(self.X @ w)
            residual[..., 0] += self.y
            squares = np.zeros((k, 2 * steps + 1))
            for i in range(steps + 1):
                squares[:, i : i + steps + 1] += np.einsum("km,kmj->kj", residual[..., i], residual)
            m = len(self.y)
            size = self.y_size + np.abs(w).sum(axis=2) @ self.X_size.T
            long = np.sqrt(np.sum(size**2, axis=1))
            off = np.linalg.norm(self.X_size) * lost * (1 + 1e-9) + (d + steps + 16) * UNIT * long
            degree = min(_DEGREE, 2 * steps)
            radius = np.abs(squares[:, degree + 1 :]).sum(axis=1)
            radius += (2 * long + off) * off + 4 * (m + 2 * steps + 16) * UNIT * long**2
            rows = squares[:, : degree + 1] @ to_bernstein(degree) / m
        radius = radius / m * (1 + 1e-9) + 64 * UNIT * np.max(np.abs(rows), axis=1)
        known = np.isfinite(radius) & np.all(np.isfinite(rows), axis=1)
        return np.where(known[:, None], rows, 0.0), np.where(known, radius, np.inf)


def top_of(X: Column) -> float:
    """At least the largest eigenvalue of `X^T X / n`."""
    n = len(X.values)
    height = float(np.sum(X.size**2)) / n
    largest = float(np.linalg.eigvalsh(X.values.T @ X.values / n)[-1])
    return largest * (1 + 1e-9) + 4 * (gamma(2 * n + 24) + 64 * UNIT) * height


def largest_root(height: Array, momentum: Any) -> Array:
    """At least 1 and every |r|, `r^2 - (1 + β - θ) r + β = 0` for θ in [0, height].

    Complex roots have modulus sqrt(β) < 1. Real ones are 1 and β at θ = 0, and shrink until they are complex; beyond
    `(1 + sqrt(β))^2` the larger one grows with θ.
    """
    past = np.maximum(height - 1 - momentum, 0.0)
    grown = 0.5 * (past + np.sqrt(np.maximum(past**2 - 4 * momentum, 0.0)))
    return np.maximum(1.0, grown) * (1 + 1e-12)
