"""What a search over several hyperparameters asks of the losses of many tasks: polynomials on boxes, with slack."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ._bernstein import UNIT, Array
from ._multivariate import hulls
from ._series import gamma
from ._task import Task

_MOST = 2_000_000
"""Floats of a batch worked on at once."""


class Axes(NamedTuple):
    """The coordinates that boxes are cut in: logarithms, or the hyperparameter itself in parts of its range."""

    domain: Array
    """(p, 2)."""
    logarithmic: Array
    """(p,) bool."""

    def to(self, hyper: Array) -> Array:
        """Hyperparameters (..., p) in these coordinates."""
        return np.where(self.logarithmic, np.log(np.where(self.logarithmic, hyper, 1.0)), hyper)

    def back(self, place: Array) -> Array:
        """Coordinates as hyperparameters, within the domain."""
        hyper = np.where(self.logarithmic, np.exp(np.where(self.logarithmic, place, 0.0)), place)
        return np.clip(hyper, self.domain[:, 0], self.domain[:, 1])

    def middle(self, low: Array, high: Array) -> Array:
        """The middle of boxes, as hyperparameters."""
        return np.where(self.logarithmic, np.sqrt(low * high), 0.5 * (low + high))

    def width(self, low: Array, high: Array) -> Array:
        """The sides of boxes (m, p): logarithms, or eight times the part of the range."""
        a, b = self.domain.T
        span = np.where(a < b, b - a, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.logarithmic, np.log(high / low), 8.0 * (high - low) / span)


class SplitBounds(NamedTuple):
    """What is known of the loss of every split on every box, (m, N, ...), in the box's own coordinates |s| <= 1."""

    coefficients: Array
    """Of a polynomial in s, (m, N, monomials); a number at a point."""
    slack: Array
    """The loss is at least the polynomial less this."""
    above: Array
    """And at most the polynomial, plus the slack, plus this."""
    movement: Array
    """(m, N, p): how much each hyperparameter moves the loss on the box; at a point the gradient, in the logarithm of
    hyperparameters whose axis is."""
    hint: Array
    """(m, N, ...): what smaller boxes inside may start from."""


@runtime_checkable
class Boxes(Protocol):
    """The splits of many tasks; all arrays but `first` and `clip` have a row a split."""

    @property
    def first(self) -> Array:
        """(T,): the first split of each task."""
        ...

    @property
    def clip(self) -> Array:
        """(T,): losses are cut there."""
        ...

    @property
    def degree(self) -> int:
        """Of the polynomials of the loss."""
        ...

    @property
    def size(self) -> int:
        """Floats that one box takes."""
        ...

    @property
    def splits(self) -> int:
        """N."""
        ...

    def bounds(self, low: Array, high: Array, hint: Array | None, *, points: bool = False) -> SplitBounds:
        """On boxes (m, p), or at points, where `low` is `high`."""
        ...

    def clipped(self, height: float) -> "Boxes":
        """With losses cut at a height too."""
        ...

    def joined(self, others: "Sequence[Any]") -> "Boxes":
        """With those of other tasks after it."""
        ...


class Moments(NamedTuple):
    """Least squares on every split by its moments; `size` of an array bounds its rounding."""

    H: Array
    """(N, d, d): `X^T X / n`."""
    H_size: Array
    b: Array
    """(N, d): `X^T y / n`."""
    b_size: Array
    Q: Array
    """(N, d, d); validation, over the validation rows of the task."""
    Q_size: Array
    q: Array
    q_size: Array
    r: Array
    """(N,)."""
    r_size: Array
    unit: Array
    """(N,): relative rounding of sums over the rows."""

    @classmethod
    def of(cls, task: Task, intercept: bool) -> "Moments":
        """The splits of one task."""
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
                    u @ u / m, su @ su / m, gamma(2 * n + 2 * len(v) + 24),
                )
            )  # fmt: skip
        return cls(*(np.array(x) for x in zip(*rows, strict=True)))

    @property
    def width(self) -> int:
        """d."""
        return self.b.shape[1]

    @classmethod
    def joined(cls, parts: "Sequence[Moments]") -> "Moments":
        """Those of several tasks, with columns of zeros up to the widest."""
        width = max(part.width for part in parts)
        axes = {"H": (1, 2), "Q": (1, 2), "b": (1,), "q": (1,)}
        columns = {name: [getattr(part, name) for part in parts] for name in cls._fields}
        return cls(**{name: stacked(x, axes.get(name.removesuffix("_size"), ()), width) for name, x in columns.items()})


def join(parts: Sequence[Any], axes: Mapping[str, tuple[int, ...]], **fill: float) -> Any:
    """Named tuples of arrays with a row a split, one after another; `axes` of an array grow to those of the widest."""
    joined: dict[str, Any] = {}
    for name in parts[0]._fields:
        values = [getattr(part, name) for part in parts]
        if name == "first":
            starts = np.cumsum([0, *(part.splits for part in parts[:-1])])
            joined[name] = np.concatenate([x + start for x, start in zip(values, starts, strict=True)])
        elif isinstance(values[0], Moments):
            joined[name] = Moments.joined(values)
        elif isinstance(values[0], np.ndarray):
            grows = axes.get(name, ())
            width = max((x.shape[k] for x in values for k in grows), default=0)
            joined[name] = stacked(values, grows, width, fill.get(name, 0.0))
        else:
            joined[name] = values[0]
    return type(parts[0])(**joined)


def stacked(values: Sequence[Array], grows: tuple[int, ...], width: int, fill: float = 0.0) -> Array:
    """Arrays one after another, with these axes grown to a width."""
    more = [[(0, width - x.shape[k] if k in grows else 0) for k in range(x.ndim)] for x in values]
    return np.concatenate([np.pad(x, w, constant_values=fill) for x, w in zip(values, more, strict=True)])


class Cells(NamedTuple):
    """The mean loss over the tasks on boxes: at least a polynomial in s less `slack`."""

    coefficients: Array
    """(m, monomials)."""
    slack: Array
    """(m,)."""
    movement: Array
    """(m, p)."""
    hint: Array


class Points(NamedTuple):
    """The mean loss at points."""

    value: Array
    lower: Array
    upper: Array
    gradient: Array
    """(m, p), in the logarithms of hyperparameters whose axis is logarithmic; where signs change, of one side."""
    hint: Array


def cells(boxes: Boxes, low: Array, high: Array, hint: Array | None) -> Cells:
    """Enclosures from below of the mean loss on boxes (m, p), started from the hints of larger boxes."""
    found = []
    for part in _parts(boxes, len(low)):
        split = boxes.bounds(low[part], high[part], None if hint is None else hint[part])
        total, slack, _ = _by_task(boxes, split)
        rounding = (boxes.splits + 12) * UNIT * np.abs(total).sum(axis=-1).mean(axis=1)
        mean = slack.mean(axis=1) * (1 + 1e-12) + rounding
        found.append(Cells(total.mean(axis=1), mean, split.movement.mean(axis=1), split.hint))
    return Cells(*(np.concatenate(x) for x in zip(*found, strict=True)))


def ranges(boxes: Boxes, variables: int, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """`lo[i, g] <= f_i(λ) <= hi[i, g]` for every λ in box g, by Bernstein coefficients; and the movement (g, p)."""
    lows, highs, moved = [], [], []
    for part in _parts(boxes, len(low)):
        split = boxes.bounds(low[part], high[part], None)
        total, slack, above = _by_task(boxes, split)
        bottom, top = hulls(total.reshape(-1, total.shape[-1]), variables, boxes.degree)
        shape = total.shape[:2]
        lows.append(np.maximum(bottom.reshape(shape) - slack, 0.0))
        with np.errstate(invalid="ignore"):
            highs.append(np.minimum(top.reshape(shape) + slack + above, boxes.clip))
        moved.append(split.movement.mean(axis=1))
    return np.concatenate(lows).T, np.concatenate(highs).T, np.concatenate(moved)


def points(boxes: Boxes, hypers: Array, hint: Array | None) -> Points:
    """The mean loss and its gradient at points (m, p)."""
    found = []
    for part in _parts(boxes, len(hypers)):
        start = None if hint is None else hint[part]
        split = boxes.bounds(hypers[part], hypers[part], start, points=True)
        value, slack, above = (
            np.add.reduceat(x, boxes.first, axis=1) for x in (split.coefficients[..., 0], split.slack, split.above)
        )
        lower = np.minimum(np.maximum(np.where(np.isfinite(slack), value - slack, 0.0), 0.0), boxes.clip)
        upper = np.minimum(np.where(np.isfinite(slack + above), value + slack + above, np.inf), boxes.clip)
        below = value < boxes.clip
        slope = np.where(below[..., None], np.add.reduceat(split.movement, boxes.first, axis=1), 0.0)
        # What overflowed is no small loss.
        value = np.where(np.isfinite(slack), value, np.minimum(1e300, boxes.clip))
        mean = np.minimum(value, boxes.clip).mean(axis=1)
        lost = (boxes.splits + 12) * UNIT * np.abs(mean)
        found.append(
            Points(
                mean, np.maximum(lower.mean(axis=1) - lost, 0.0), upper.mean(axis=1) + lost, slope.mean(axis=1),
                split.hint,
            )
        )  # fmt: skip
    return Points(*(np.concatenate(x) for x in zip(*found, strict=True)))


def _parts(boxes: Boxes, m: int) -> list[slice]:
    step = max(1, _MOST // max(boxes.size, 1))
    return [slice(i, i + step) for i in range(0, m, step)]


def _by_task(boxes: Boxes, split: SplitBounds) -> tuple[Array, Array, Array]:
    """The loss of every task, cut at its clip: polynomials (m, T, monomials), slack below, and what is more above."""
    total, slack, above = (
        np.add.reduceat(x, boxes.first, axis=1) for x in (split.coefficients, split.slack, split.above)
    )
    swing = np.abs(total[..., 1:]).sum(axis=-1)
    bottom = total[..., 0] - swing - slack
    cut = np.isfinite(boxes.clip)
    with np.errstate(invalid="ignore"):
        top = total[..., 0] + swing + slack + above
    # A loss is never negative; one that may pass its clip is known by its least and its largest value alone.
    lost = ~(bottom > 0) | (cut & ~(top <= boxes.clip))
    floor = np.minimum(np.where(bottom > 0, bottom, 0.0), boxes.clip)
    total[lost] = 0.0
    total[lost, 0] = floor[lost]
    above = np.where(lost, np.where(np.isfinite(top), np.maximum(top - floor, 0.0) * (1 + 1e-12), np.inf), above)
    slack[lost] = 0.0
    return total, slack, above
