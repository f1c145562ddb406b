"""Tuned estimators whose loss is a family: the table as a problem with blank rows, strengths in, coefficients out."""

import abc
import copy
import math
import warnings
from typing import Any

import jax
import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.utils import Bunch

from .._stats import Accuracy
from ..implicit import Optimum
from ..implicit._rows import padded
from ..search._shrinkage_path import Criterion, Score
from ._base import IN_SAMPLE, LARGEST, AbstractTuned, Targets, forget
from ._columns import Columns, Design, columns, with_blanks
from ._folds import Masks
from ._penalties import Strengths, strengths
from ._rows import Rows
from ._tuning import KEY, RANGE, Asked, Tuned, tuned


class AbstractOfFamily(AbstractTuned):
    """A tuned estimator by one of [`hyprax.families`][]."""

    likelihood = True
    """Whether the loss is a negative log-likelihood of known dispersion."""
    least_strength = RANGE[0]
    """The weakest strength that is tried."""
    weights_in_data = False
    """Whether rows times the root of their weights are the weighted problem."""

    @abc.abstractmethod
    def _family(self, inputs: Any, targets: np.ndarray, **terms: Any) -> Any:
        """The family of the loss."""

    def _outputs(self, y: np.ndarray) -> tuple[str, ...] | None:
        """The names of the columns of the weights, where they are several."""
        return None

    def _tune(self, X: Design, y: np.ndarray, shares: np.ndarray | None, folds: Masks, scale: float) -> None:
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
        found = tuned(asked, prove=bool(self.certify))
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
        self,
        X: Design,
        targets: Targets,
        y: np.ndarray,
        shares: np.ndarray | None,
        kinds: Strengths,
    ) -> tuple[Rows, int]:
        """The family on the rows, with blank rows and columns up to a size that other tables have too."""
        n, d = X.shape
        terms: dict[str, Any] = {}
        rows, width = padded(n, 64, 4), padded(d + bool(self.fit_intercept), 8, 8)
        ones = np.ones(n) if self.fit_intercept else None
        values = targets.values
        if shares is not None and self.weights_in_data:
            root = np.sqrt(shares)
            X = sparse.csr_array(sparse.diags_array(root) @ X) if sparse.issparse(X) else root[:, None] * X
            ones = None if ones is None else root
            values = values * root.reshape(-1, *(1,) * (values.ndim - 1))
        elif shares is not None:
            terms["weights"] = np.concatenate([shares, np.zeros(rows - n)])
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


def accuracy(x: Design) -> Accuracy:
    """Norms for fits and adjoints to stop at: by the smallest column, and above the rounding of the largest."""
    squares = np.asarray((x.multiply(x) if sparse.issparse(x) else x * x).mean(axis=0)).ravel()
    sizes = np.sqrt(squares[squares > 0]) if np.any(squares > 0) else np.ones(1)
    least, most = float(sizes.min()), float(sizes.max())
    return Accuracy(max(1e-11 * least, 1e-13 * most), max(1e-9 * least, 1e-12 * most))
