"""A task: the data of one whole learning problem, as pairs of a training part and a validation part."""

import copy
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ._bernstein import UNIT, Array
from ._random import generator


@dataclass(frozen=True, eq=False, init=False)
class Split:
    """One training part and one validation part; a target of shape (n,) is kept as (n, 1)."""

    X: Float[Array, "n d"]
    """Training inputs."""
    y: Float[Array, "n q"]
    """Training targets."""
    X_val: Float[Array, "m d"]
    """Validation inputs."""
    y_val: Float[Array, "m q"]
    """Validation targets."""
    weights: Float[Array, " n"] | None
    """What training rows weigh, with mean 1; `None`: all the same."""
    weights_val: Float[Array, " m"] | None
    """What validation rows weigh; in a task with mean 1 over all of its splits."""

    def __init__(self, X: Any, y: Any, X_val: Any, y_val: Any, weights: Any = None, weights_val: Any = None):
        for name, given in (("X", X), ("y", y), ("X_val", X_val), ("y_val", y_val)):
            value = np.array(given, dtype=np.float64)
            if name.startswith("y") and value.ndim == 1:
                value = value[:, None]
            if value.ndim != 2 or value.size == 0:
                raise ValueError(
                    f"{name} of a task must be a non-empty array of one row an example; got {value.shape}."
                )
            if not np.all(np.isfinite(value)):
                row = int(np.flatnonzero(~np.all(np.isfinite(value), axis=1))[0])
                raise ValueError(f"{name} of a task must be finite; row {row} holds nan or inf.")
            object.__setattr__(self, name, value)
        for inputs, targets in ((self.X, self.y), (self.X_val, self.y_val)):
            if len(inputs) != len(targets):
                raise ValueError(
                    "X and y of a task, and X_val and y_val, must have one row an example each; got "
                    f"{len(inputs)} and {len(targets)}."
                )
        if self.X.shape[1] != self.X_val.shape[1] or self.y.shape[1] != self.y_val.shape[1]:
            raise ValueError(
                "training and validation must have the same columns; got "
                f"X {self.X.shape}, X_val {self.X_val.shape}, y {self.y.shape}, y_val {self.y_val.shape}."
            )
        if (weights is None) != (weights_val is None):
            raise ValueError("weights and weights_val of a task must be given both or neither.")
        for name, given, rows in (("weights", weights, self.X), ("weights_val", weights_val, self.X_val)):
            object.__setattr__(self, name, None if given is None else checked_weights(given, len(rows), name))
        if self.weights is not None:
            object.__setattr__(self, "weights", self.weights / np.mean(self.weights))

    def centred(self, intercept: bool) -> "Centred":
        """The split with the training means taken off both parts, twice over: an unpenalised intercept.

        The first difference is exact to the rounding of its own size, however far the column is from zero (a year, a
        time stamp), and the second takes off what the rounded mean left. So the errors are those of numbers of the size
        of the spread, not of the offset. Rows that have weights are then multiplied by the roots of these.
        """
        if intercept:
            x, x_val = _centred(self.X, self.X_val, self.weights)
            y, y_val = _centred(self.y, self.y_val, self.weights)
        else:
            zero = np.zeros((1, 1))
            x, y, x_val, y_val = (Column(x, np.abs(x), zero) for x in (self.X, self.y, self.X_val, self.y_val))
        if self.weights is None or self.weights_val is None:
            return Centred(x, y, x_val, y_val)
        heavy, heavy_val = np.sqrt(self.weights)[:, None], np.sqrt(self.weights_val)[:, None]
        return Centred(
            *(column.times(h) for column, h in ((x, heavy), (y, heavy), (x_val, heavy_val), (y_val, heavy_val)))
        )

    def weighing(self, weights_val: Array) -> "Split":
        """With other weights of the validation rows."""
        split = copy.copy(self)
        object.__setattr__(split, "weights_val", weights_val)
        return split

    def changed(self, X: Array, X_val: Array) -> "Split":
        """With other inputs."""
        return Split(X, self.y, X_val, self.y_val, self.weights, self.weights_val)

    def standardised(self) -> "Split":
        """Both parts with columns of mean 0 and variance 1 on the training part; constant columns become 0 there."""
        mean, spread = column_scales(self.X)
        return self.changed((self.X - mean) / spread, (self.X_val - mean) / spread)


def column_scales(X: Array) -> tuple[Array, Array]:
    """Means and deviations of the columns; of a constant one itself and 1."""
    mean, spread = X.mean(axis=0), X.std(axis=0)
    constant = np.all(X[0] == X, axis=0) | (spread == 0)
    return np.where(constant, X[0], mean), np.where(constant, 1.0, spread)


class Column(NamedTuple):
    """Columns less their means."""

    values: Array
    size: Array
    """Sizes that their rounding is counted in: of the values, and of what the centring may have left."""
    mean: Array
    """(1, columns)."""

    def times(self, factors: Array) -> "Column":
        """Every row times a factor (n, 1)."""
        return Column(self.values * factors, self.size * factors, self.mean)


class Centred(NamedTuple):
    """A split without its training means."""

    X: Column
    y: Column
    X_val: Column
    y_val: Column


def _centred(train: Array, test: Array, weights: Array | None) -> tuple[Column, Column]:
    # A constant column leaves rounding behind; it must come out as zero, not as noise to be fitted.
    constant = np.all(train[:1] == train, axis=0, keepdims=True)
    heavy = np.ones((len(train), 1)) if weights is None else weights[:, None]
    first = np.where(constant, train[:1], np.mean(heavy * train, axis=0, keepdims=True))
    once = train - first
    # The sum is exact, so the mean is off by the rounding of the differences alone: one rounding, where n are counted.
    sums = [math.fsum(column) for column in (heavy * once).T.tolist()]
    second = np.where(constant, 0.0, np.array([sums]) / math.fsum(heavy[:, 0].tolist()))
    left = np.abs(second) + 2 * np.mean(np.abs(heavy * once), axis=0, keepdims=True) / len(train)

    def column(x: Array) -> Column:
        values = (x - first) - second
        return Column(values, np.abs(values) + left, first + second)

    return column(train), column(test)


def checked_weights(given: Any, rows: int, name: str) -> Array:
    """Weights of rows.

    **Raises:** `ValueError` unless they are positive numbers, one a row.
    """
    weights = np.asarray(given, dtype=np.float64)
    if weights.shape != (rows,) or not np.all(np.isfinite(weights) & (weights > 0)):
        raise ValueError(f"{name} must be a positive number for each of {rows} rows; got {given!r}.")
    return weights


def check_unweighted(task: "Task", name: str) -> None:
    """Raise where rows have weights that a loss knows nothing of."""
    if task.splits[0].weights is not None:
        raise ValueError(f"{name}: the rows of the task must not have weights, which this loss does not take.")


@dataclass(frozen=True, eq=False)
class Task:
    r"""One learning problem; its loss at α is `(1/M) sum_splits sum_{i in validation} loss_i(w_split(α))`.

    M counts the validation examples of all splits. Build one with `hold_out`, `k_fold` or `leave_one_out`.
    """

    splits: tuple[Split, ...]
    """The training parts with their validation parts."""
    whole: tuple[Array, Array] | None = None
    """X (n, d) and y (n, q) where the splits leave out one example each, for closed forms; else `None`."""

    def __post_init__(self):
        if not self.splits:
            raise ValueError("splits of a Task must be at least one; got none.")
        heavy = [s.weights_val for s in self.splits if s.weights_val is not None]
        if heavy and len(heavy) < len(self.splits):
            raise ValueError("splits of a Task must all have weights of their rows, or none.")
        if heavy:
            mean = np.mean(np.concatenate(heavy))
            splits = tuple(s.weighing(u / mean) for s, u in zip(self.splits, heavy, strict=True))
            object.__setattr__(self, "splits", splits)

    def standardised(self) -> "Task":
        """The task with every split's columns scaled by its own training part: no validation row has a say."""
        return Task(tuple(split.standardised() for split in self.splits))

    def scaled(self, factors: Any) -> "Task":
        """The task with every column times a factor, (d,) positive: penalties that weigh features differently.

        A weight of a column times f counts 1/f as much under an l1 penalty and 1/f^2 under a squared one.
        """
        factors = np.asarray(factors, dtype=np.float64)
        if factors.shape != self.splits[0].X.shape[1:] or not np.all(np.isfinite(factors) & (factors > 0)):
            raise ValueError(
                f"scaled: factors must be a positive number for each of {self.splits[0].X.shape[1]} columns; got "
                f"{factors!r}."
            )
        return Task(tuple(s.changed(s.X * factors, s.X_val * factors) for s in self.splits))

    @property
    def n_validation(self) -> int:
        """Validation examples, over all splits."""
        return sum(len(s.X_val) for s in self.splits)

    @classmethod
    def hold_out(
        cls, X: Any, y: Any, X_val: Any, y_val: Any, *, weights: Any = None, weights_val: Any = None
    ) -> "Task":
        """Train on (X, y), validate on (X_val, y_val). `y` may be (n,) or (n, q).

        **Arguments:** `weights`, `weights_val`: what the rows weigh, in training and in validation, as in `k_fold`.
        """
        return cls((Split(X, y, X_val, y_val, weights, weights_val),))

    @classmethod
    def k_fold(cls, X: Any, y: Any, folds: Any, *, key: Any = None, weights: Any = None) -> "Task":
        """Every fold is validated by a model trained on the others.

        **Arguments:**

        - `folds`: their number, or (n,) numbers that say which fold an example is in.
        - `key`: a JAX random key, which a number of folds needs: they are a random partition.
        - `weights`: (n,), positive: what the rows weigh. Training minimises `sum_i v_i loss_i / n`, with v the weights
          over their mean on the training rows, so that penalties keep their meaning; validation is the weighted mean.
          For linear models with the squared, hinge, logistic and Huber losses.
        """
        X, y = np.asarray(X), np.asarray(y)
        n, member = len(X), np.asarray(folds)
        if member.ndim == 0:
            if member.dtype.kind not in "iu" or not 2 <= member <= n:
                raise ValueError(
                    f"k_fold: folds must be a whole number between 2 and {n}, the examples of the task, or the fold of "
                    f"each example; got {folds!r}."
                )
            member = generator("k_fold", key).permutation(n) % member
        elif member.shape != (n,) or np.unique(member).size < 2:
            raise ValueError(
                f"k_fold: the fold numbers must be one for each of {n} examples, of at least two kinds; got shape "
                f"{member.shape} with {np.unique(member).size}."
            )
        parts = [member == k for k in np.unique(member)]
        if weights is None:
            return cls(tuple(Split(X[~part], y[~part], X[part], y[part]) for part in parts))
        v = checked_weights(weights, n, "weights")
        return cls(tuple(Split(X[~part], y[~part], X[part], y[part], v[~part], v[part]) for part in parts))

    @classmethod
    def leave_one_out(cls, X: Any, y: Any) -> "Task":
        """Every example is predicted by a model trained on all others."""
        n = len(np.asarray(X))
        if n < 2:
            raise ValueError(f"leave_one_out: a task must have at least two examples; got {n}.")
        task = cls.k_fold(X, y, np.arange(n))
        inputs, targets = (
            np.concatenate(parts) for parts in zip(*((s.X_val, s.y_val) for s in task.splits), strict=True)
        )
        return cls(task.splits, (inputs, targets))


def check_domain(domain: tuple[float, float], name: str, floor: str = "0 < ") -> tuple[float, float]:
    """The domain as two floats, or a ValueError; `floor` is what a must be: "0 < ", "0 <= ", or "" for any number."""
    a, b = (float(x) for x in domain)
    if not (np.isfinite(a) and np.isfinite(b) and a < b and (a > 0 or not floor or (a == 0 and "=" in floor))):
        raise ValueError(f"{name}: domain must be (a, b) with finite {floor}a < b; got {domain}.")
    return a, b


def check_labels(y: Array, name: str) -> None:
    """Raise unless the targets are labels -1 and +1 in one column."""
    if y.shape[1] != 1:
        raise ValueError(f"{name}: labels must be -1 and +1 in one column; got {y.shape[1]} columns.")
    if not np.all(np.abs(y) == 1):
        seen = ", ".join(f"{x:g}" for x in np.unique(y)[:4])
        way_out = " Labels 0 and 1 become those by 2 y - 1." if set(np.unique(y)) == {0.0, 1.0} else ""
        raise ValueError(
            f"{name}: labels must be -1 and +1; got {seen}{', ...' if np.unique(y).size > 4 else ''}.{way_out}"
        )


def singular_floor(s: Array, size: Array) -> float:
    """A lower bound of the last of the computed singular values s of a matrix: Weyl, with the SVD's backward error.

    `size` are the sizes of the entries, with whatever was taken off them in centring.
    """
    return max(float(s[-1]) - 4 * sum(size.shape) * UNIT * float(np.linalg.norm(size)), 0.0)
