"""What the tuned linear estimators share: settings, rows and folds in, penalties and a judgement of them out."""

import abc
import math
import numbers
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch, _safe_indexing, check_random_state
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted, validate_data

from ..search import honest
from ._columns import Design
from ._folds import Masks, masks
from ._tuning import held_back

IN_SAMPLE = ("leave_one_out", "evidence")
"""Criteria of all training rows together."""
CRITERIA = ("folds", "holdout", *IN_SAMPLE)
LARGEST = 2000
"""A covariance is kept for at most so many coefficients."""


class Targets(NamedTuple):
    """Targets as the family takes them: the user's predictor is `unit` times that of the family, plus `shift`."""

    values: np.ndarray
    unit: Any
    shift: Any
    blank: float
    """The target of a blank row."""
    factor: float = 1.0
    """The user's loss is so many times that of the family, at the strengths times this."""


@contextmanager
def arithmetic() -> Iterator[None]:
    """64-bit arithmetic inside, the user's own settings after."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class AbstractTuned(BaseEstimator, abc.ABC):
    """A linear model whose penalties are tuned on folds; see [`hyprax.sklearn.TunedRidge`][] for the arguments."""

    classes = False
    """Whether targets are classes."""
    n_features_in_: int
    classes_: np.ndarray
    feature_names_in_: np.ndarray
    coef_: np.ndarray
    intercept_: Any
    strengths_: np.ndarray
    strength_names_: list[str]
    cv_score_: float
    message_: str
    criteria = CRITERIA
    """What this estimator is tuned by."""

    def __init__(
        self,
        penalties: Any = "one",
        *,
        groups: Any = None,
        free: Any = None,
        cv: Any = None,
        criterion: Any = "folds",
        hold_back: Any = "auto",
        honest: Any = False,
        scoring: Any = None,
        fit_intercept: Any = True,
        standardize: Any = True,
        certify: Any = True,
        max_iter: Any = 50,
        tol: Any = 1e-6,
        random_state: Any = None,
    ):
        self.penalties = penalties
        self.groups = groups
        self.free = free
        self.cv = cv
        self.criterion = criterion
        self.hold_back = hold_back
        self.honest = honest
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.certify = certify
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @abc.abstractmethod
    def _encoded(self, y: np.ndarray) -> np.ndarray:
        """Targets as numbers, of the rows that count; what is learnt of them is kept as attributes."""

    @abc.abstractmethod
    def _targets(self, y: np.ndarray, shares: np.ndarray | None) -> Targets:
        """Targets in the units of the family."""

    @abc.abstractmethod
    def _tune(self, X: Design, y: np.ndarray, shares: np.ndarray | None, folds: Masks, scale: float) -> None:
        """Fit with `shares`, weights of rows of mean 1; the user's are `scale` times those."""

    @abc.abstractmethod
    def _score_of(self, criterion: float, targets: Targets, y: np.ndarray, held: np.ndarray) -> float:
        """The score in the user's units, greater is better; `held` are shares of the rows that judged, of sum 1."""

    @abc.abstractmethod
    def _losses(self, X: Any, y: Any) -> np.ndarray:
        """The loss of every row."""

    @abc.abstractmethod
    def _constant(self) -> Any:
        """An estimator that knows no column."""

    def _read(self, X: Any, y: Any) -> tuple[Design, np.ndarray]:
        read: Any = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, ensure_min_samples=2, y_numeric=not self.classes
        )
        return read

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Any:
        """Tune the penalties, and fit all rows with them; gives back itself.

        - `X`: (n, d), an array, a data frame or a sparse matrix.
        - `y`: (n,), the targets.
        - `sample_weight`: (n,), numbers >= 0. They weigh in the fit and in the criterion alike; n is their sum, and
            rows of weight 0 count as if they were not there.
        - `groups`: (n,), labels of rows that belong together, for `cv`.

        **Raises:** `ValueError` for settings, data or folds that do not fit.
        """
        self._check_settings()
        forget(self, "honest_", "covariance_", "noise_variance_")
        given = X, y, sample_weight, groups
        X, y = self._read(X, y)
        shares = None
        if sample_weight is not None:
            shares = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        own = self.cv is not None and not isinstance(self.cv, numbers.Integral)
        kept = np.ones(X.shape[0], bool) if shares is None else shares > 0
        everything = masks(self.cv, self.criterion, X.shape[0], y, False, groups, seed) if own else []
        X, y = X[kept], y[kept]
        if X.shape[0] < 2:
            raise ValueError("sample_weight must be above zero for two rows or more; got 1 sample.")
        y = self._encoded(y)
        weights = self._weights(y, np.ones(len(y)) if shares is None else shares[kept])
        scale = float(weights.mean())
        shares = None if np.ptp(weights) == 0 else weights / scale
        folds = self._folds(own, everything, kept, y, groups, seed)
        with arithmetic():
            self._tune(X, y, shares, folds, scale)
            if self.honest:
                worth = np.zeros(len(kept))
                worth[kept] = 1.0 if shares is None else shares
                self.honest_ = self._judged(given, folds, worth, seed)
        return self

    def _weights(self, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weights of rows, times those that the estimator's own settings give them."""
        return weights

    def _check_settings(self) -> None:
        if self.criterion not in self.criteria:
            known = ", ".join(map(repr, self.criteria))
            raise ValueError(f"criterion must be one of {known} for {type(self).__name__}; got {self.criterion!r}.")
        if not whole(self.max_iter, 1):
            raise ValueError(f"max_iter must be an integer >= 1; got {self.max_iter!r}.")
        if not (isinstance(self.tol, numbers.Real) and float(self.tol) >= 0):
            raise ValueError(f"tol must be a number >= 0; got {self.tol!r}.")
        held_back(self.hold_back, 1)

    def _folds(self, own: bool, everything: Masks, kept: np.ndarray, y: np.ndarray, groups: Any, seed: int) -> Masks:
        if own:
            parts = [(training[kept], held[kept]) for training, held in everything]
            pairs = [(training, held) for training, held in parts if training.any() and held.any()]
            return masks(pairs, "folds", len(y), y, self.classes, None, seed)
        groups = None if groups is None else np.asarray(groups)[kept]
        return masks(self.cv, self.criterion, len(y), y, self.classes, groups, seed)

    @property
    def penalties_(self) -> dict[str, float]:
        """The strengths by name: of all columns, features, groups, classes or weights."""
        check_is_fitted(self)
        return dict(zip(self.strength_names_, map(float, self.strengths_), strict=True))

    def summary(self) -> str:
        """What was tuned, in words."""
        check_is_fitted(self)
        listed = sorted(self.penalties_.items(), key=lambda pair: pair[1])
        shown = [f"  {name}: {value:.3g}" for name, value in listed[:20]]
        more = [f"  and {len(listed) - 20} more"] if len(listed) > 20 else []
        lines = [self.message_, f"Cross-validated score: {self.cv_score_:.4g}.", "Strengths:", *shown, *more]
        if hasattr(self, "honest_"):
            lines.append(self.honest_.meaning)
        return "\n".join(lines)

    def _feature_names(self) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        return [f"x{j}" for j in range(self.n_features_in_)] if names is None else [str(name) for name in names]

    def _design(self, X: Any) -> Design:
        check_is_fitted(self)
        return validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)

    def _predictor(self, X: Design) -> np.ndarray:
        return np.asarray(X @ self.coef_.T) + self.intercept_

    def _judged(self, given: tuple[Any, ...], folds: Masks, worth: np.ndarray, seed: int) -> Bunch:
        """The whole procedure, judged on rows that it has not seen, each with its worth, beside a simple one."""
        X, y, shares, groups = given
        rows = np.flatnonzero(worth)
        again = self.cv if self.cv is None or isinstance(self.cv, numbers.Integral) or hasattr(self.cv, "split") else 5
        simple = self.penalties != "one"
        quiet = {"honest": False, "certify": False, "cv": again, "random_state": seed}
        tuned_model = copied(self).set_params(**quiet)
        baseline = copied(self).set_params(**quiet, penalties="one") if simple else self._constant()

        def losses(model: Any, fit: np.ndarray, judge: np.ndarray) -> np.ndarray:
            fit, judge = rows[fit], rows[judge]
            more = {}
            if not isinstance(model, AbstractTuned):
                more["sample_weight"] = worth[fit]
            elif shares is not None:
                more["sample_weight"] = np.asarray(shares)[fit]
            if groups is not None and isinstance(model, AbstractTuned):
                more["groups"] = np.asarray(groups)[fit]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = copied(model).fit(_safe_indexing(X, fit), _safe_indexing(y, fit), **more)
            return worth[judge] * type(self)._losses(model, _safe_indexing(X, judge), _safe_indexing(y, judge))

        against = "one strength for all" if simple else "a model without columns"
        found = honest(
            lambda fit, judge: losses(tuned_model, fit, judge),
            lambda fit, judge: losses(baseline, fit, judge),
            _num_samples(rows),
            folds=[(np.flatnonzero(training), np.flatnonzero(held)) for training, held in folds],
            of=type(self).__name__,
            against=against,
            progress=False,
        )
        gain = found.gain
        return Bunch(
            gain=gain.value,
            standard_error=gain.standard_error,
            degrees_of_freedom=float(gain.degrees_of_freedom),
            interval=tuple(map(float, gain.interval())),
            loss=found.loss,
            baseline_loss=found.baseline_loss,
            gains=np.asarray(found.gains),
            against=against,
            meaning=gain.meaning(),
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def forget(model: Any, *names: str) -> None:
    """Drop what an earlier fit has kept and this one may not: it would speak of other data."""
    for name in names:
        vars(model).pop(name, None)


def whole(value: Any, least: int) -> bool:
    """Whether a setting is an integer >= `least`, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least


def copied(model: Any) -> Any:
    """An estimator of the same settings, not fitted."""
    return clone(model)


def mean_and_spread(y: np.ndarray, shares: np.ndarray | None, centred: bool) -> tuple[Any, float]:
    """Weighted means and the root of the mean variance; the means are 0 and the squares those of y without centring."""
    largest = float(np.max(np.abs(y))) or 1.0
    unit = y / largest
    weights = np.full(len(y), 1 / len(y)) if shares is None else shares / shares.sum()
    mean = np.tensordot(weights, unit, 1) if centred else np.zeros(y.shape[1:])
    square = float(np.mean(np.tensordot(weights, (unit - mean) ** 2, 1)))
    spread = math.sqrt(square)
    return largest * mean, largest * spread if spread > 1e-14 else largest
