"""The validation loss of a task as a function of several penalties of one linear model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from ._bernstein import Array
from ._multivariate import least
from ._penalty_boxes import Stack, cells, points
from ._series import gamma
from ._task import Task


@dataclass(frozen=True, eq=False)
class PenaltyDual:
    r"""`f(λ) = (1/M) sum (y_i - x_i w(λ))^2` over validation examples, for several penalties λ at once.

    On each training part, with an unpenalised intercept if asked for,

        w(λ) = argmin_w ‖y - X w‖^2 / (2 n) + sum_h λ_h (sum_j absolute_hj |w_j| + sum_j square_hj w_j^2 / 2).

    The elastic net has two penalties, `absolute = (1, 0)` and `square = (0, 1)`; ridge regression by groups has one for
    each group of features. Build one with `elastic_net` or `ridge`, and tune many with
    [`erm_box`][hyprax.tasks.erm_box].

    **On a box** of penalties f is enclosed by a polynomial in λ with a proven radius: the Taylor polynomial of w with
    the signs that it has in the middle, its residual bounded by the sum of its coefficients; and, where signs change,
    the distance that strong convexity leaves: the violation of the optimality conditions in the norm of A^-1, with
    `A = X^T X / n + diag(sum_h λ_h square_h)`. The radius is of order (width)^4 without a change of signs. With one it
    is of order width, and as the share of tasks with a change is of that order too, the mean of many tasks is known to
    (width)^2.

    **Certified**, rounding included. Where float64 cannot show the problem to be strongly convex (two columns equal to
    fifteen digits, with next to no square penalty), nothing is known but that losses are not negative.
    """

    domain: tuple[tuple[float, float], ...]
    """(a, b) of every penalty, 0 < a <= b."""
    hyper_names: tuple[str, ...]
    """What the penalties are."""
    stack: Stack
    """The moments of the splits."""

    @classmethod
    def elastic_net(cls, task: Task, domain: Sequence[tuple[float, float]], *, intercept: bool = True) -> "PenaltyDual":
        """λ = (l1, l2): the penalty is `l1 ‖w‖_1 + l2 ‖w‖^2 / 2`, as in
        [`elastic_net_dual`][hyprax.tasks.elastic_net_dual].

        **Arguments:**

        - `task`: one target column.
        - `domain`: the ranges of l1 and of l2, each (a, b) with 0 < a <= b.
        - `intercept`: whether an unpenalised intercept is fitted.

        scikit-learn's `ElasticNet(alpha, l1_ratio)` has `l1 = alpha l1_ratio` and `l2 = alpha (1 - l1_ratio)`.
        """
        d = task.splits[0].X.shape[1]
        one, zero = np.ones(d), np.zeros(d)
        return cls._of(task, domain, ("l1", "l2"), [one, zero], [zero, one], intercept, "PenaltyDual.elastic_net")

    @classmethod
    def ridge(
        cls,
        task: Task,
        groups: Int[Array, " d"] | Sequence[int],
        domain: Sequence[tuple[float, float]],
        *,
        intercept: bool = True,
    ) -> "PenaltyDual":
        """λ = (λ_0, λ_1, ...): the penalty is `sum_j λ_(groups_j) w_j^2 / 2`, one strength for each group of features.

        **Arguments:**

        - `task`: one target column.
        - `groups`: the group of each feature, numbered from 0.
        - `domain`: the range of each group's strength, (a, b) with 0 < a <= b.
        - `intercept`: whether an unpenalised intercept is fitted.
        """
        d, member, count = task.splits[0].X.shape[1], np.asarray(groups), len(domain)
        if member.shape != (d,) or member.dtype.kind not in "iu" or not np.all((member >= 0) & (member < count)):
            raise ValueError(
                f"PenaltyDual.ridge: groups must be a number from 0 to {count - 1} for each of {d} features, one range "
                f"in domain for each group; got {groups!r}."
            )
        square = [np.where(member == g, 1.0, 0.0) for g in range(count)]
        names = tuple(f"group {g}" for g in range(count))
        return cls._of(task, domain, names, [np.zeros(d)] * count, square, intercept, "PenaltyDual.ridge")

    @classmethod
    def _of(
        cls,
        task: Task,
        domain: Sequence[tuple[float, float]],
        names: tuple[str, ...],
        absolute: Sequence[Array],
        square: Sequence[Array],
        intercept: bool,
        where: str,
    ) -> "PenaltyDual":
        ranges = tuple((float(a), float(b)) for a, b in domain)
        if len(ranges) != len(names):
            raise ValueError(f"{where}: domain must hold a range for each of {', '.join(names)}; got {len(ranges)}.")
        if not all(math.isfinite(b) and 0 < a <= b for a, b in ranges):
            raise ValueError(f"{where}: every range in domain must be (a, b) with 0 < a <= b; got {ranges}.")
        if task.splits[0].y.shape[1] != 1:
            raise ValueError(f"{where}: y must have one column; got {task.splits[0].y.shape[1]}.")
        return cls(ranges, names, _moments(task, np.array(absolute), np.array(square), intercept))

    @property
    def certified(self) -> bool:
        """Whether the bounds are proved: they are."""
        return True

    def clip(self, height: float) -> "PenaltyDual":
        """`min(f, height)`: a loss with a bound known beforehand, as guarantees need."""
        if not height > 0:
            raise ValueError(f"clip: height must be positive; got {height!r}.")
        return replace(self, stack=self.stack._replace(clip=np.minimum(self.stack.clip, height)))

    def __call__(self, hyper: Any) -> float:
        """The loss at λ (p,), as computed."""
        return float(points(self.stack, self._checked(hyper), None).value[0])

    def enclose(self, hyper: Any) -> tuple[float, float]:
        """`(lo, hi)` around the loss at λ (p,), rounding included."""
        found = points(self.stack, self._checked(hyper), None)
        return float(found.lower[0]), float(found.upper[0])

    def lower_on(self, low: Any, high: Any, *, degree: int = 3) -> float:
        """A lower bound of the loss on the box of all `low <= λ <= high`, by a polynomial from Taylor terms of w up to
        `degree`."""
        a, b = self._checked(low), self._checked(high)
        if not np.all(a <= b):
            raise ValueError(f"lower_on: low must not exceed high; got {low} and {high}.")
        found = cells(self.stack, a, b, None, degree)
        bottom = least(found.coefficients, a.shape[1], 2 * degree, 1e-4 * np.abs(found.coefficients[:, 0]))
        return float(max(bottom.lower[0] - found.slack[0], 0.0))

    def _checked(self, hyper: Any) -> Array:
        x = np.asarray(hyper, dtype=np.float64)
        low, high = np.array(self.domain).T
        if x.shape != low.shape or not np.all((low <= x) & (x <= high)):
            raise ValueError(f"λ must be {len(low)} numbers in {self.domain}; got {hyper!r}.")
        return x[None]

    def __repr__(self) -> str:
        ranges = ", ".join(f"{n} in [{a:g}, {b:g}]" for n, (a, b) in zip(self.hyper_names, self.domain, strict=True))
        return f"<PenaltyDual of {self.stack.b.shape[1]} features, {len(self.stack.b)} splits: {ranges}>"


def _moments(task: Task, absolute: Array, square: Array, intercept: bool) -> Stack:
    rows = []
    for split in task.splits:
        X, y, X_val, y_val = split.centred(intercept)
        n, m = len(X.values), task.n_validation
        x, t, v, u = X.values, y.values[:, 0], X_val.values, y_val.values[:, 0]
        sx, st, sv, su = X.size, y.size[:, 0], X_val.size, y_val.size[:, 0]
        rows.append(
            (
                x.T @ x / n, sx.T @ sx / n, x.T @ t / n, sx.T @ st / n,
                v.T @ v / m, sv.T @ sv / m, v.T @ u / m, sv.T @ su / m,
                u @ u / m, su @ su / m, np.zeros(x.shape[1]), absolute, square, gamma(2 * n + 2 * len(v) + 24),
            )
        )  # fmt: skip
    parts = [np.array(x) for x in zip(*rows, strict=True)]
    return Stack(*parts, first=np.zeros(1, dtype=int), clip=np.array([np.inf]))


def stacked(duals: Sequence[PenaltyDual]) -> Stack:
    """The splits of all duals, padded with columns that no weight of which leaves zero."""
    d = max(f.stack.b.shape[1] for f in duals)
    parts: dict[str, list[Array]] = {name: [] for name in Stack._fields}
    count = 0
    for f in duals:
        more = d - f.stack.b.shape[1]
        for name, x in f.stack._asdict().items():
            width = {"H": (0, 1, 1), "Q": (0, 1, 1), "absolute": (0, 0, 1), "square": (0, 0, 1)}
            if name in ("first", "clip"):
                parts[name].append(x + count if name == "first" else x)
                continue
            wide = width.get(name.removesuffix("_size"), (0, 1) if x.ndim == 2 else (0,))
            fill = 1.0 if name == "ridge" else 0.0
            parts[name].append(np.pad(x, [(0, more * w) for w in wide], constant_values=fill))
        count += len(f.stack.b)
    return Stack(**{name: np.concatenate(x) for name, x in parts.items()})
