"""A task: the data of one whole learning problem, as pairs of a training part and a validation part."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ._bernstein import UNIT

Array = np.ndarray


@dataclass(frozen=True, eq=False, init=False)
class Split:
    """One training part and one validation part; a target of shape (n,) is kept as (n, 1)."""

    X: Float[Array, "n d"]
    y: Float[Array, "n q"]
    X_val: Float[Array, "m d"]
    y_val: Float[Array, "m q"]

    def __init__(self, X: Any, y: Any, X_val: Any, y_val: Any):
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

    def centred(self, intercept: bool) -> "Split":
        """The split with the training means taken off both parts: an unpenalised intercept; unchanged without one."""
        if not intercept:
            return self
        mx, my = self.X.mean(axis=0), self.y.mean(axis=0)
        # A constant column leaves rounding behind; it must come out as zero, not as noise to be fitted.
        constant = np.all(self.X[0] == self.X, axis=0)
        mx = np.where(constant, self.X[0], mx)
        return Split(self.X - mx, self.y - my, self.X_val - mx, self.y_val - my)


@dataclass(frozen=True, eq=False)
class Task:
    r"""One learning problem; its loss at alpha is `(1/M) sum_splits sum_{i in validation} loss_i(w_split(alpha))`.

    M counts the validation examples of all splits. Build one with `hold_out`, `k_fold` or `leave_one_out`.
    """

    splits: tuple[Split, ...]

    def __post_init__(self):
        if not self.splits:
            raise ValueError("a Task needs at least one split.")

    @property
    def n_validation(self) -> int:
        """Validation examples, over all splits."""
        return sum(len(s.X_val) for s in self.splits)

    @classmethod
    def hold_out(cls, X: Any, y: Any, X_val: Any, y_val: Any) -> "Task":
        """Train on (X, y), validate on (X_val, y_val). `y` may be (n,) or (n, q)."""
        return cls((Split(X, y, X_val, y_val),))

    @classmethod
    def k_fold(cls, X: Any, y: Any, folds: Any, seed: int = 0) -> "Task":
        """Every fold is validated by a model trained on the others.

        **Arguments:**

        - `folds`: their number (a random partition from `seed`), or (n,) numbers that say which fold an example is in.
        """
        X, y = np.asarray(X), np.asarray(y)
        n = len(X)
        if isinstance(folds, int):
            if not 2 <= folds <= n:
                raise ValueError(f"k_fold: folds must be between 2 and the {n} examples of the task; got {folds}.")
            member = np.random.default_rng(seed).permutation(n) % folds
        else:
            member = np.asarray(folds)
            if member.shape != (n,) or np.unique(member).size < 2:
                raise ValueError(
                    f"k_fold: the fold numbers must be {n}, of at least two kinds; got shape {member.shape}."
                )
        parts = [member == k for k in np.unique(member)]
        return cls(tuple(Split(X[~part], y[~part], X[part], y[part]) for part in parts))

    @classmethod
    def leave_one_out(cls, X: Any, y: Any) -> "Task":
        """Every example is predicted by a model trained on all others."""
        n = len(np.asarray(X))
        if n < 2:
            raise ValueError(f"leave_one_out needs at least two examples; got {n}.")
        return cls.k_fold(X, y, np.arange(n))


def check_domain(domain: tuple[float, float], name: str, positive: bool = True) -> tuple[float, float]:
    """The domain as two floats, or a ValueError that says what is allowed."""
    a, b = (float(x) for x in domain)
    if not (np.isfinite(a) and np.isfinite(b) and a < b and (a > 0 or (a == 0 and not positive))):
        floor = "0 <" if positive else "0 <="
        raise ValueError(f"the domain of {name} must be (a, b) with {floor} a < b, finite; got {domain}.")
    return a, b


def check_labels(y: Array) -> None:
    """Raise unless the targets are labels -1 and +1 in one column."""
    if y.shape[1] != 1 or not np.all(np.abs(y) == 1):
        raise ValueError("a 0-1 or hinge loss needs one target column of labels -1 and +1.")


def singular_floor(s: Array, size: Array) -> float:
    """A lower bound of the last of the computed singular values s of a matrix: Weyl, with the SVD's backward error.

    `size` are the sizes of the entries, with whatever was taken off them in centring.
    """
    return max(float(s[-1]) - 4 * sum(size.shape) * UNIT * float(np.linalg.norm(size)), 0.0)
