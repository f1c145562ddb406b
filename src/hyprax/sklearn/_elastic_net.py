"""The tuned elastic net: l1 strengths of columns or groups, one l2 strength, both by gradient on folds."""

import warnings
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch

from .._certificate import details
from .._hyper import Positive
from .._noise import Noise
from .._result import result_name, succeeded
from ..implicit import ElasticNet, ExampleNoise
from ..search import CrossValidated, Stopping, shrinkage_path
from ._columns import Design, columns
from ._folds import Masks
from ._linear import AbstractLeastSquares
from ._penalties import strengths
from ._tuning import ARRIVED, RANGE, at_the_bound, held_back, searched_within

RATIOS = (0.1, 0.5, 0.9)
FALLS = tuple(10.0**-k for k in (0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.4, 3.0))
WEAK = tuple(10.0**-k for k in (4.0, 5.0, 6.0))
"""Tried at the first ratio alone: where so little is wanted, the two penalties are nearly none."""
L1, L2 = "l1", "l2"


class TunedElasticNet(AbstractLeastSquares):
    """Linear regression that drops columns: an l1 and an l2 penalty, tuned on folds by gradient.

        w, b = argmin (1/2n) Σ_i ω_i (y_i - b - x_iᵀw)² + Σ_j α_j |w_j| + ½ λ Σ_j w_j²,    n = Σ ω_i, x standardised

    The search starts from the best of a grid of scikit-learn's kind, ratios of l1 by falling strengths.

    **Arguments:** those of [`hyprax.sklearn.TunedRidge`][], but for `free`, which must be left out; `penalties` are the
    α: `"one"`, one a `"feature"` or a `"group"`. Columns are dense.

    **Attributes:** `coef_`, `intercept_`; `penalties_`, the α by name and λ as `"l2"`; `cv_score_`, the negative mean
    squared error; `certificate_`, `noise_`, `honest_`, `result_`, `message_`, `n_iter_` as there. In units of
    scikit-learn's `ElasticNet` on standardised columns, α is `alpha * l1_ratio`, λ `alpha * (1 - l1_ratio)`.
    """

    criteria = ("folds", "holdout")

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.free is not None:
            raise ValueError("free must be left out for TunedElasticNet: every column has an l1 strength.")
        if self.scoring is not None:
            raise ValueError(f"scoring must be None for TunedElasticNet; got {self.scoring!r}.")
        if self.penalties not in ("one", "feature", "group"):
            raise ValueError(f"penalties must be 'one', 'feature' or 'group'; got {self.penalties!r}.")

    def _tune(self, X: Design, y: np.ndarray, shares: np.ndarray | None, folds: Masks, scale: float) -> None:
        kinds = strengths(self.penalties, self._feature_names(), self.groups, None, None)
        count = len(kinds.names)
        scaled = columns(X, shares, bool(self.fit_intercept), bool(self.standardize))
        targets = self._targets(y, shares)
        weights = np.ones(len(y)) if shares is None else shares
        held = np.sum([each for _, each in folds], axis=0) * weights
        ratio = float(np.sum([each.sum() for _, each in folds]) / held.sum())
        inputs = np.asarray(scaled.apply(X))
        net = ElasticNet(inputs, targets.values, groups=kinds.index, intercept=bool(self.fit_intercept), weights=shares)
        objective = CrossValidated(net, folds)
        stop = Stopping(gradient=float(self.tol) / ratio, patience=4, improvement=1e-9)
        start, _ = _best_of_grid(objective, _heaviest(inputs, targets.values, shares))
        found = searched_within(objective, start, RANGE, int(self.max_iter), stop)
        hyper, steps, said = found.best, len(found.history), "One l1 and one l2 strength were tuned."
        criterion = found.best_value
        if count > 1:
            spread = {L1: Positive(np.full(count, float(hyper[L1].value))), L2: hyper[L2]}
            errors = held_back(self.hold_back, count + 1)
            if errors is None:
                found = searched_within(objective, spread, RANGE, int(self.max_iter), stop)
                hyper, criterion = found.best, found.best_value
                steps, said = steps + len(found.history), f"{count} l1 strengths and one l2 strength were tuned freely."
            else:
                groups = np.r_[np.zeros(count, int), 1]
                path = shrinkage_path(net, spread, folds=folds, errors=errors, groups=groups, steps=int(self.max_iter))
                steps += path.steps
                said = f"Nothing to gain from {count} l1 strengths over one on nested folds: one was kept."
                if path.chosen:
                    hyper, criterion = path.hyper, float(path.criteria[path.chosen])
                    said = f"{count} l1 strengths, as free as nested folds speak for; one l2 strength."
                else:
                    hyper = {L1: Positive(np.full(count, float(hyper[L1].value))), L2: hyper[L2]}
        fit = net.refit(hyper)
        arrived = bool(succeeded(fit.result)) and result_name(found.result) in ARRIVED
        coef, intercept = scaled.coefficients(np.asarray(fit.params), np.asarray(fit.intercept))
        self.coef_ = np.asarray(coef * targets.unit)
        self.intercept_ = float(np.asarray(intercept * targets.unit + targets.shift))
        each = np.broadcast_to(np.asarray(hyper[L1].value, float), (count,))
        self.strengths_ = np.r_[each * targets.unit, float(hyper[L2].value)]
        self.strength_names_ = [*kinds.names, L2]
        self.centre_, self.scale_ = scaled.centre, scaled.scale
        self.n_iter_, self.result_ = max(steps, 1), result_name(found.result)
        self.message_ = (said if arrived else f"{said} {found.message}") + at_the_bound(self.strengths_)
        self.certificate_, self.noise_ = Bunch(), Bunch()
        if self.certify:
            self.certificate_, self.noise_ = _statements(net, folds, hyper)
        self.cv_score_ = float(self._score_of(float(criterion) * ratio, targets, y, held / held.sum()))
        if not arrived:
            warnings.warn(f"{type(self).__name__}: {self.message_}", ConvergenceWarning, stacklevel=4)

    def _read(self, X: Any, y: Any) -> tuple[Design, np.ndarray]:
        if sparse.issparse(X):
            raise TypeError("TunedElasticNet: X must be dense; got a sparse matrix (X.toarray() makes it dense).")
        return super()._read(X, y)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags


def _heaviest(x: np.ndarray, y: np.ndarray, shares: np.ndarray | None) -> float:
    """The l1 strength from which on every column is dropped."""
    weights = np.ones(len(y)) if shares is None else shares
    largest = float(np.max(np.abs(x.T @ (weights * y)))) / float(weights.sum())
    return largest if largest > 0 else 1.0


def _best_of_grid(objective: CrossValidated, heaviest: float) -> tuple[dict[str, Positive], float]:
    """The pair of strengths with the lowest criterion, each fit started from the last."""
    best: tuple[float, dict[str, Positive]] | None = None
    for ratio in RATIOS:
        state = None
        for fall in FALLS + (WEAK if ratio == RATIOS[0] else ()):
            alpha = heaviest * fall / ratio
            hyper = {L1: Positive(alpha * ratio), L2: Positive(alpha * (1 - ratio))}
            state = objective.init(hyper) if state is None else state
            answer, state = objective.value(hyper, state)
            value = float(answer.value)
            if best is None or value < best[0]:
                best = value, hyper
    assert best is not None  # the grid is not empty
    return best[1], best[0]


def _statements(net: ElasticNet, folds: Masks, hyper: Any) -> tuple[Bunch, Bunch]:
    """Certificate and noise of the hypergradient at the strengths found, as names and numbers."""
    objective = CrossValidated(net, folds, noise=ExampleNoise())
    answer, _ = objective.value_and_grad(hyper, objective.init(hyper))
    spread = answer.noise
    words: dict[str, Any] = {"type": type(spread).__name__, "meaning": spread.meaning()}
    if isinstance(spread, Noise):
        for name, tree in (("standard_errors", spread.standard_errors), ("hypergradient", answer.grad)):
            words[name] = np.concatenate([np.atleast_1d(np.asarray(tree[key].raw)) for key in (L1, L2)])
        words["degrees_of_freedom"] = float(spread.degrees_of_freedom)
    return Bunch(**details(answer.certificate)), Bunch(**words)
