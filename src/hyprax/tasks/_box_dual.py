"""The validation loss of a task as a function of several hyperparameters, enclosed on boxes of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from ._activation import Activation, checked_layer
from ._activation_boxes import ActivationBoxes
from ._bernstein import Array
from ._boxes import Boxes, cells, points
from ._descent_boxes import DescentBoxes
from ._multivariate import least
from ._penalty_boxes import PenaltyBoxes
from ._task import Task, check_unweighted


@dataclass(frozen=True, eq=False)
class BoxDual:
    r"""`f(λ)`, the mean loss on the validation examples of a task, for several hyperparameters λ at once.

    Build one with `elastic_net` or `ridge` (penalties of a linear model), `activation` (an activation beside the
    penalty of the read-out) or `descent` (learning rate and momentum of a training), and tune many with
    [`erm_box`][hyprax.tasks.erm_box].

    **On a box** of hyperparameters f is enclosed by a polynomial with a proven radius, from the Taylor polynomial of
    the weights and what it leaves unsolved: see the constructors. The radius is of high order in the width of the box,
    but for signs of weights that change within it, of which few tasks have any on a small box.

    **Certified**, rounding included. Where float64 cannot show the problem to be strongly convex (two columns equal to
    fifteen digits, with next to no square penalty), or where numbers overflow, nothing is known but that losses are not
    negative.
    """

    domain: tuple[tuple[float, float], ...]
    """(a, b) of every hyperparameter."""
    hyper_names: tuple[str, ...]
    """What the hyperparameters are."""
    logarithmic: tuple[bool, ...]
    """Whether boxes are cut in the logarithm of each."""
    boxes: Boxes
    """What is known of the splits."""

    @classmethod
    def elastic_net(cls, task: Task, domain: Sequence[tuple[float, float]], *, intercept: bool = True) -> "BoxDual":
        r"""λ = (l1, l2): squared loss of `argmin_w ‖y - X w‖^2 / (2 n) + l1 ‖w‖_1 + l2 ‖w‖^2 / 2`.

        As [`elastic_net_dual`][hyprax.tasks.elastic_net_dual]. On a box, the Taylor polynomial of w with the signs
        that it has in the middle; where signs change, the distance that strong convexity leaves: the violation of the
        optimality conditions in the norm of A^-1, with `A = X^T X / n + l2 I`. The radius is of order (width)^4 without
        a change of signs. With one it is of order width, and as the share of tasks with a change is of that order too,
        the mean of many tasks is known to (width)^2.

        **Arguments:**

        - `task`: one target column.
        - `domain`: the ranges of l1 and of l2, each (a, b) with 0 < a <= b.
        - `intercept`: whether an unpenalised intercept is fitted.

        scikit-learn's `ElasticNet(alpha, l1_ratio)` has `l1 = alpha l1_ratio` and `l2 = alpha (1 - l1_ratio)`.
        """
        d = task.splits[0].X.shape[1]
        one, zero = np.ones(d), np.zeros(d)
        return cls._of(task, domain, ("l1", "l2"), [one, zero], [zero, one], intercept, "BoxDual.elastic_net")

    @classmethod
    def ridge(
        cls,
        task: Task,
        groups: Int[Array, " d"] | Sequence[int],
        domain: Sequence[tuple[float, float]],
        *,
        intercept: bool = True,
    ) -> "BoxDual":
        """λ = (λ_0, λ_1, ...): the penalty is `sum_j λ_(groups_j) w_j^2 / 2`, one strength for each group of features.

        Squared loss of `argmin_w ‖y - X w‖^2 / (2 n) + penalty`, enclosed as that of `elastic_net`.

        **Arguments:**

        - `task`: one target column.
        - `groups`: the group of each feature, numbered from 0.
        - `domain`: the range of each group's strength, (a, b) with 0 < a <= b.
        - `intercept`: whether an unpenalised intercept is fitted.
        """
        d, member, count = task.splits[0].X.shape[1], np.asarray(groups), len(domain)
        if member.shape != (d,) or member.dtype.kind not in "iu" or not np.all((member >= 0) & (member < count)):
            raise ValueError(
                f"BoxDual.ridge: groups must be a number from 0 to {count - 1} for each of {d} features, one range "
                f"in domain for each group; got {groups!r}."
            )
        square = [np.where(member == g, 1.0, 0.0) for g in range(count)]
        names = tuple(f"group {g}" for g in range(count))
        return cls._of(task, domain, names, [np.zeros(d)] * count, square, intercept, "BoxDual.ridge")

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
    ) -> "BoxDual":
        ranges = _ranges(domain, names, where)
        _one_column(task, where)
        boxes = PenaltyBoxes.of(task, np.array(absolute), np.array(square), intercept)
        return cls(ranges, names, (True,) * len(names), boxes)

    @classmethod
    def activation(
        cls,
        task: Task,
        layer: tuple[Any, Any],
        o1: Activation,
        o2: Activation,
        domain: Sequence[tuple[float, float]] = ((0.0, 1.0), (1e-3, 1.0)),
    ) -> "BoxDual":
        r"""λ = (α, penalty) of a network with the activation `α o1 + (1 - α) o2` and a ridge read-out.

        `w = argmin_w ‖Phi(α) w - Y‖^2 / n + penalty ‖w‖^2`, with Phi one hidden layer of fixed inner weights and a
        column of ones; the loss is `mean_j ‖out_j - y_j‖^2`. As [`activation_dual`][hyprax.tasks.activation_dual],
        whose other hyperparameters stand there fixed. Phi is affine in α, so the matrix of the read-out is a polynomial
        on a box; its Taylor polynomial leaves a residual that is one too, worth `‖residual‖_(A^-1)`, with A at least
        `(1 - rho)` of what it is in the middle, or the least penalty.

        **Arguments:**

        - `task`: targets of any number of columns.
        - `layer`: V (d, k) and b (k,): random features, or a layer trained before.
        - `o1`, `o2`: see [`Activation`][hyprax.tasks.Activation].
        - `domain`: the ranges of α, any, and of the penalty, (a, b) with 0 < a <= b.
        """
        check_unweighted(task, "BoxDual.activation")
        names = ("alpha", "penalty")
        ranges = _ranges(domain, names, "BoxDual.activation", (None, 0.0))
        return cls(
            ranges, names, (False, True), ActivationBoxes.of(task, checked_layer(task, layer, 0), o1, o2, *ranges)
        )

    @classmethod
    def descent(
        cls, task: Task, domain: Sequence[tuple[float, float]], *, steps: int, intercept: bool = True
    ) -> "BoxDual":
        r"""λ = (η, β), learning rate and momentum of T = `steps` steps of gradient descent on a linear model.

        Squared loss at w_T, where `w_0 = 0` and `w_{t+1} = w_t + β (w_t - w_{t-1}) + η X^T (y - X w_t) / n`, as
        [`descent_dual`][hyprax.tasks.descent_dual], in which β is fixed. w_T is a polynomial in both. On a box every
        step is followed in the box's own coordinates up to degree 5; what is above, as all rounding, counts as an error
        of its step, which moves w_T by at most `(T - j) R^(T - 1 - j)` times its norm (see there).

        **Arguments:**

        - `task`: one target column. Standardise columns beforehand: rates depend on their scale.
        - `domain`: the ranges of η, 0 <= a <= b, and of β, 0 <= a <= b < 1.
        - `steps`: T >= 1.
        - `intercept`: whether both parts are centred by the training means: the intercept is fitted exactly.
        """
        names, where = ("rate", "momentum"), "BoxDual.descent"
        ranges = _ranges(domain, names, where, (-1.0, -1.0))
        if not (min(ranges[0][0], ranges[1][0]) >= 0 and ranges[1][1] < 1):
            raise ValueError(f"{where}: domain must hold rates >= 0 and momenta in [0, 1); got {ranges}.")
        if not (isinstance(steps, int | np.integer) and steps >= 1):
            raise ValueError(f"{where}: steps must be an integer >= 1; got {steps!r}.")
        _one_column(task, where)
        return cls(ranges, names, (False, False), DescentBoxes.of(task, int(steps), intercept))

    @property
    def certified(self) -> bool:
        """Whether the bounds are proved: they are."""
        return True

    def clip(self, height: float) -> "BoxDual":
        """`min(f, height)`: a loss with a bound known beforehand, as guarantees need."""
        if not height > 0:
            raise ValueError(f"clip: height must be positive; got {height!r}.")
        return replace(self, boxes=self.boxes.clipped(height))

    def __call__(self, hyper: Any) -> float:
        """The loss at λ (p,), as computed."""
        return float(points(self.boxes, self._checked(hyper), None).value[0])

    def enclose(self, hyper: Any) -> tuple[float, float]:
        """`(lo, hi)` around the loss at λ (p,), rounding included."""
        found = points(self.boxes, self._checked(hyper), None)
        return float(found.lower[0]), float(found.upper[0])

    def lower_on(self, low: Any, high: Any) -> float:
        """A lower bound of the loss on the box of all `low <= λ <= high`."""
        a, b = self._checked(low), self._checked(high)
        if not np.all(a <= b):
            raise ValueError(f"lower_on: low must not exceed high; got {low} and {high}.")
        found = cells(self.boxes, a, b, None)
        bottom = least(found.coefficients, a.shape[1], self.boxes.degree, 1e-4 * np.abs(found.coefficients[:, 0]))
        return float(max(bottom.lower[0] - found.slack[0], 0.0))

    def _checked(self, hyper: Any) -> Array:
        x = np.asarray(hyper, dtype=np.float64)
        low, high = np.array(self.domain).T
        if x.shape != low.shape or not np.all((low <= x) & (x <= high)):
            raise ValueError(f"λ must be {len(low)} numbers in {self.domain}; got {hyper!r}.")
        return x[None]

    def __repr__(self) -> str:
        ranges = ", ".join(f"{n} in [{a:g}, {b:g}]" for n, (a, b) in zip(self.hyper_names, self.domain, strict=True))
        return f"<BoxDual, {self.boxes.splits} splits: {ranges}>"


def together(duals: Sequence[BoxDual]) -> Boxes:
    """The splits of all duals."""
    return duals[0].boxes.joined([f.boxes for f in duals[1:]]) if len(duals) > 1 else duals[0].boxes


def _ranges(
    domain: Sequence[tuple[float, float]],
    names: tuple[str, ...],
    where: str,
    above: tuple[float | None, ...] | None = None,
) -> tuple[tuple[float, float], ...]:
    """The domain as floats; each a is above what `above` says, 0 by default."""
    ranges = tuple((float(a), float(b)) for a, b in domain)
    if len(ranges) != len(names):
        raise ValueError(f"{where}: domain must hold a range for each of {', '.join(names)}; got {len(ranges)}.")
    for (a, b), floor in zip(ranges, above or (0.0,) * len(names), strict=True):
        if not (math.isfinite(a) and math.isfinite(b) and a <= b and (floor is None or a > floor)):
            least = "0 < " if floor == 0 else ""
            raise ValueError(f"{where}: every range in domain must be (a, b) with {least}a <= b; got {ranges}.")
    return ranges


def _one_column(task: Task, where: str) -> None:
    if task.splits[0].y.shape[1] != 1:
        raise ValueError(f"{where}: y must have one column; got {task.splits[0].y.shape[1]}.")
