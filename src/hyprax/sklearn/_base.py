"""What the tuned linear estimators share: a table in, strengths tuned on folds, coefficients in its units out."""

import abc
import copy
import math
import numbers
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.utils import Bunch, _safe_indexing, check_random_state
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted, validate_data

from .._stats import Accuracy
from ..implicit import Optimum
from ..search import honest
from ..search._shrinkage_path import Criterion, Score
from ._columns import Columns, Design, columns, padded, with_blanks
from ._folds import Masks, masks
from ._penalties import Strengths, strengths
from ._rows import Known, Rows
from ._tuning import KEY, RANGE, Asked, Tuned, held_back, tuned

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
    criteria = CRITERIA
    """What this estimator is tuned by."""
    likelihood = True
    """Whether the loss is a negative log-likelihood of known dispersion."""
    least_strength = RANGE[0]
    """The weakest strength that is tried."""
    weights_in_data = False
    """Whether rows times the root of their weights are the weighted problem."""

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
    def _family(self, inputs: Any, targets: np.ndarray, **terms: Any) -> Any:
        """The family of the loss."""

    @abc.abstractmethod
    def _score_of(self, criterion: float, targets: Targets, y: np.ndarray, held: np.ndarray) -> float:
        """The score in the user's units, greater is better; `held` are shares of the rows that judged, of sum 1."""

    @abc.abstractmethod
    def _losses(self, X: Any, y: Any) -> np.ndarray:
        """The loss of every row."""

    @abc.abstractmethod
    def _constant(self) -> Any:
        """An estimator that knows no column."""

    def _outputs(self, y: np.ndarray) -> tuple[str, ...] | None:
        """The names of the columns of the weights, where they are several."""
        return None

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

    def _tune(self, X: Design, y: np.ndarray, shares: np.ndarray | None, folds: Masks, scale: float) -> None:
        """Fit with `shares`, weights of rows of mean 1; the user's are `scale` times those."""
        n = X.shape[0]
        features = self._feature_names()
        kinds = strengths(self.penalties, features, self.groups, self.free, self._outputs(y))
        scaled = columns(X, shares, bool(self.fit_intercept), bool(self.standardize))
        targets = self._targets(y, shares)
        inputs = scaled.apply(X)
        problem, rows = self._problem(inputs, targets, y, shares, kinds)
        weights = np.ones(n) if shares is None else shares
        held = np.sum([each for _, each in folds], axis=0) * weights
        ratio = float(np.sum([each.sum() for _, each in folds]) / held.sum())
        unit = rows / n
        asked = Asked(
            problem=problem,
            masks=folds,
            count=len(kinds.names),
            criterion=self._criterion(problem, targets, folds, scale * weights),
            groups=kinds.kinds,
            score=self._score(X, y, scaled, targets),
            unit=unit,
            hold_back=self.hold_back,
            max_iter=int(self.max_iter),
            tol=float(self.tol) / ratio,
            of={"class": "one a class", "weight": "one a weight", "group": "one a group"}.get(
                self.penalties, "one a feature"
            ),
            least=self.least_strength,
        )
        found = tuned(asked, bool(self.certify))
        strength = found.strengths * (unit * targets.factor)
        self.cv_score_ = float(self._score_of(found.criterion * ratio, targets, y, held / held.sum()))
        if found.scores is not None:
            self.cv_score_ = float(np.mean(found.scores))
        self._keep(found, kinds, strength, scaled, targets)
        self._keep_covariance(inputs, y, shares, kinds)
        if not found.arrived:
            warnings.warn(f"{type(self).__name__}: {found.message}", ConvergenceWarning, stacklevel=3)

    def _criterion(self, problem: Rows, targets: Targets, folds: Masks, weights: np.ndarray) -> Criterion | None:
        """What is minimised on given training rows; `None` for the folds."""
        if self.criterion not in IN_SAMPLE:
            return None
        inputs, shape = problem.family.inputs, problem.family.shape
        allowed = "classes" if self.criterion == "leave_one_out" else "two classes"
        several = len(shape) > 1 and not (self.classes and allowed == "classes")
        if several or not isinstance(inputs, jax.Array) or math.prod(shape) > LARGEST:
            raise ValueError(
                f"criterion={self.criterion!r} requires one target or {allowed}, columns that are not sparse and at "
                f"most {LARGEST} weights; got weights of the shape {shape} and {type(inputs).__name__}. Use 'folds'."
            )
        if self.criterion == "evidence":
            dispersion = 1 / (targets.factor * float(weights.mean())) if self.likelihood else None
            return lambda training: problem.evidence(training, float(weights[training].sum()), dispersion)
        every = np.ones(len(problem.targets), bool)
        least = min(int(problem.left_out(training).sum()) for training, _ in folds)
        most = int(problem.left_out(every).sum())
        return lambda training: problem.leave_one_out(training, most if training.all() else least)

    def _problem(
        self, X: Design, targets: Targets, y: np.ndarray, shares: np.ndarray | None, kinds: Strengths
    ) -> tuple[Rows, int]:
        """The family on the rows, with blank rows and columns up to a size that other tables have too."""
        n, d = X.shape
        rows, width = padded(n, 64, 4), padded(d + bool(self.fit_intercept), 8, 8)
        ones = np.ones(n) if self.fit_intercept else None
        values, terms = targets.values, {}
        if shares is not None and self.weights_in_data:
            root = np.sqrt(shares)
            X = sparse.csr_array(sparse.diags_array(root) @ X) if sparse.issparse(X) else root[:, None] * X
            ones = None if ones is None else root
            values = values * root.reshape(-1, *(1,) * (values.ndim - 1))
        elif shares is not None:
            terms["weights"] = Known(jax.numpy.asarray(np.concatenate([shares, np.zeros(rows - n)])))
        blank = np.full((rows - n, *values.shape[1:]), targets.blank, values.dtype)
        index = np.zeros((width, *kinds.index.shape[1:]), int)
        index[:d] = kinds.index
        free = np.zeros(width, bool)
        free[:d], free[d : d + 1] = kinds.free, bool(self.fit_intercept)
        index[free] = -1
        if free.any():
            terms["free"] = free
        family = self._family(
            with_blanks(X, ones, rows, width),
            np.concatenate([values, blank]),
            penalty=KEY,
            penalty_groups=index,
            **terms,
        )
        judged = None if self.weights_in_data else shares
        labels = y if self.classes else targets.values
        return Rows(Optimum(family), labels, self.classes, judged, accuracy(X)), rows

    def _keep(self, found: Tuned, kinds: Strengths, strength: np.ndarray, scaled: Columns, targets: Targets) -> None:
        self._keep_weights(found.params, scaled, targets)
        self.strengths_ = strength
        self.strength_names_ = list(kinds.names)
        self.centre_, self.scale_ = scaled.centre, scaled.scale
        self.n_iter_ = found.steps
        self.result_, self.message_ = found.result, found.message
        self.certificate_, self.noise_ = Bunch(**found.certificate), Bunch(**found.noise)

    def _keep_weights(self, params: np.ndarray, scaled: Columns, targets: Targets) -> None:
        d = len(scaled.scale)
        weights = np.asarray(params)[:d]
        intercept = np.asarray(params)[d] if self.fit_intercept else np.zeros(weights.shape[1:])
        coef, intercept = scaled.coefficients(weights, intercept)
        self.coef_: np.ndarray = np.asarray(coef.T * targets.unit)
        self.intercept_: Any = np.asarray(intercept * targets.unit + targets.shift)
        self._shaped()

    def _score(self, X: Design, y: np.ndarray, scaled: Columns, targets: Targets) -> Score | None:
        """The score that was asked for, of the weights of a fit on held-out rows."""
        if self.scoring is None:
            return None
        scorer = check_scoring(self, scoring=self.scoring)
        labels = self.classes_[y] if self.classes else y

        def score(params: Any, held: np.ndarray) -> float:
            model = copy.copy(self)
            forget(model, "feature_names_in_")
            model._keep_weights(params, scaled, targets)
            return float(scorer(model, X[held], labels[held]))  # pyright: ignore[reportOptionalCall, reportArgumentType]  # a scorer gives a number

        return score

    def _each(self, kinds: Strengths) -> np.ndarray:
        """The strength of every weight; 0 where there is none."""
        return np.where(kinds.index >= 0, self.strengths_[kinds.index], 0.0)

    def _shaped(self) -> None:
        """Coefficients in the shapes that scikit-learn gives them."""
        if self.intercept_.ndim == 0:
            self.intercept_ = float(self.intercept_)

    def _keep_covariance(self, X: Design, y: np.ndarray, shares: np.ndarray | None, kinds: Strengths) -> None:
        """Nothing, where predictions have no standard deviation."""

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


def accuracy(x: Design) -> Accuracy:
    """Norms for fits and adjoints to stop at: by the smallest column, and above the rounding of the largest."""
    squares = np.asarray((x.multiply(x) if sparse.issparse(x) else x * x).mean(axis=0)).ravel()
    sizes = np.sqrt(squares[squares > 0]) if np.any(squares > 0) else np.ones(1)
    least, most = float(sizes.min()), float(sizes.max())
    return Accuracy(max(1e-11 * least, 1e-13 * most), max(1e-9 * least, 1e-12 * most))


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
