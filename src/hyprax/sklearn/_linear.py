"""The tuned linear estimators: ridge, logistic, Poisson and robust regression."""

from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax, xlogy
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from ..implicit import families
from ._base import CRITERIA, LARGEST, AbstractTuned, Targets, mean_and_spread
from ._columns import Design
from ._of_family import AbstractOfFamily
from ._penalties import Strengths
from ._uncertainty import covariance, deviation

LEAST = 1e-10
"""A (nearly) quadratic loss bears so weak a strength, and nearly noiseless targets want it."""


class AbstractTunedRegressor(RegressorMixin, AbstractTuned):
    """What the regressors share."""

    centre_: np.ndarray
    scale_: np.ndarray

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        return np.asarray(y, float)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictions, (n,) or (n, targets); with `return_std` a pair with their standard deviations."""
        design = self._design(X)
        found = self._mean(self._predictor(design))
        return (found, self._deviation(design, found)) if return_std else found

    def _mean(self, predictor: np.ndarray) -> np.ndarray:
        return predictor

    def _standardised_predictor(self, X: Design) -> np.ndarray:
        """The linear predictor, (n,), of rows whose columns are standardised already."""
        return np.asarray(X @ (self.coef_ * self.scale_)) + self.intercept_ + float(np.sum(self.centre_ * self.coef_))

    def _deviation(self, design: Design, mean: np.ndarray) -> np.ndarray:
        covariance = getattr(self, "covariance_", None)
        if covariance is None:
            raise ValueError(
                f"return_std requires one target and at most {LARGEST} coefficients; got coefficients of the shape "
                f"{self.coef_.shape}."
            )
        return deviation(design, self.centre_, self.scale_, covariance, self.fit_intercept)


class AbstractLeastSquares(AbstractTunedRegressor):
    """Regressors by squared loss."""

    likelihood = False  # the variance of the noise is not known
    least_strength = LEAST

    def _targets(self, y: np.ndarray, shares: np.ndarray | None) -> Targets:
        mean, spread = mean_and_spread(y, shares, bool(self.fit_intercept))
        return Targets(y / spread - mean / spread, spread, mean, 0.0)

    def _score_of(self, criterion: float, targets: Targets, y: np.ndarray, held: np.ndarray) -> float:
        return -2 * criterion * targets.unit**2 / (1 if y.ndim == 1 else y.shape[1])

    def _losses(self, X: Any, y: Any) -> np.ndarray:
        off = (np.asarray(y, float) - self.predict(X)) ** 2
        return off if off.ndim == 1 else off.mean(axis=1)

    def _constant(self) -> Any:
        return DummyRegressor()


class TunedRidge(AbstractLeastSquares, AbstractOfFamily):
    """Ridge regression, its penalties tuned on folds by gradient.

        w, b = argmin (1/2n) Σ_i ω_i (y_i - b - x_iᵀw)² + ½ Σ_j λ_j w_j²,    n = Σ ω_i, x standardised, b free

    **Arguments:**

    - `penalties`: `"one"` strength for all columns, one a `"feature"`, a `"group"` of features, a `"class"` (a target,
        of several), a `"weight"`.
    - `groups`: for `"group"`, and for `"feature"` as kinds of columns (columns and their products, say) towards whose
        strengths those of features may be held: `"auto"` (the block of names like block__column, as a
        ColumnTransformer gives), a label for each column, or a mapping of names to columns (names or numbers).
    - `free`: columns without a penalty, by name or number.
    - `cv`: a number of folds, which are shuffled and stratified for classes (default 5); a splitter; or pairs of index
        arrays.
    - `criterion`: what strengths are tuned by: `"folds"`; `"holdout"`, one third that judges; `"leave_one_out"`, each
        row judged by the fit on all others; or `"evidence"`, the restricted marginal likelihood of the training rows
        ([`hyprax.implicit.REML`][]). The last two are for one target or classes (two for the evidence), and columns
        that are not sparse; folds of `cv` still judge, for `cv_score_` and for holding back. Of more than 10,000 rows,
        so many at random are left out, and none that is alone in its class. To the evidence a row of weight 2 is two
        rows.
    - `hold_back`: many strengths start from the best single one and leave it only where, on nested folds, the gain
        exceeds one standard error (or the number given). `"auto"`: for more than three strengths; `False`: they are
        tuned freely; `True`: always.
    - `honest`: judge the whole procedure on rows that it has not seen, beside one strength for all (beside a model
        without columns where there is but one): `honest_`. About as many times the work as there are folds.
    - `scoring`: a scorer of scikit-learn, by name or as a function `(estimator, X, y)`, greater being better. It is
        what `cv_score_` reports (the mean over folds), and chooses how freely many strengths move; gradients use the
        loss. Row weights are not passed to it.
    - `fit_intercept`: an intercept, never penalised.
    - `standardize`: penalties act on columns with mean 0 and standard deviation 1; coefficients are in your units.
        Without an intercept, and for sparse columns, they are scaled alone.
    - `certify`: a certificate and the noise of the hypergradient at the end: `certificate_`, `noise_`.
    - `max_iter`: the most steps of each search; `tol`: the norm of the hypergradient at which it stops.
    - `random_state`: of the folds that are drawn.

    **Attributes:** `coef_`, `intercept_`; `penalties_`, the strengths by name; `cv_score_`, the cross-validated score
    (that of `scoring`; by default the negative mean squared error; greater is better); `certificate_`, of the
    computation, and `noise_`, of the sample, as names and numbers; `honest_`, of new data, where asked for; `result_`,
    `message_` and `summary()`, what was done; `n_iter_`, steps in all; `n_features_in_`, `feature_names_in_`;
    `covariance_`, of the coefficients of the standardised columns and the intercept.

    `predict(return_std=True)` gives the standard deviation of a new observation under the Gaussian model in which the
    penalties are a prior: that of the posterior, σ² H⁻¹/n, plus the noise σ², estimated from the residuals. The choice
    of the penalties is not in it.
    """

    weights_in_data = True

    def _read(self, X: Any, y: Any) -> tuple[Design, np.ndarray]:
        read: Any = validate_data(
            self, X, y, accept_sparse="csr", dtype=np.float64, ensure_min_samples=2, y_numeric=True, multi_output=True
        )
        return read

    def _outputs(self, y: np.ndarray) -> tuple[str, ...] | None:
        return None if y.ndim == 1 else tuple(f"y{k}" for k in range(y.shape[1]))

    def _family(self, inputs: Any, targets: np.ndarray, **terms: Any) -> Any:
        return families.Squared(inputs, targets, **terms)

    def _keep_covariance(self, X: Design, y: np.ndarray, shares: np.ndarray | None, kinds: Strengths) -> None:
        if y.ndim > 1 or X.shape[1] > LARGEST:
            return
        n = len(y)
        cov, freedom = covariance(X, np.ones(n) if shares is None else shares, self._each(kinds), self.fit_intercept)
        off = y - self._standardised_predictor(X)
        squares = float(np.sum(off**2 if shares is None else shares * off**2))
        self.noise_variance_ = squares / max(n - freedom, 1e-3 * n)
        self.covariance_ = self.noise_variance_ * cov

    def _deviation(self, design: Design, mean: np.ndarray) -> np.ndarray:
        return np.sqrt(super()._deviation(design, mean) ** 2 + self.noise_variance_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class TunedLogisticRegression(ClassifierMixin, AbstractOfFamily):
    """Logistic regression, binary or multinomial, its penalties tuned on folds by gradient.

        W, b = argmin -(1/n) Σ_i ω_i log p_{y_i}(x_i) + ½ Σ_jc λ_jc W_jc²,    p = softmax(Wᵀx + b), or a sigmoid for two

    **Arguments:** those of [`hyprax.sklearn.TunedRidge`][], and

    - `class_weight`: a mapping of classes to weights of their rows (1 where a class is not named), or `"balanced"` for
        weights inversely proportional to how often a class occurs. They multiply `sample_weight`, in the fit and in the
        criterion alike; probabilities are then those of the weighted classes. Certificates are as without weights.

    Folds hold the classes in equal shares; a class of fewer than three rows is never held out.

    **Attributes:** those of [`hyprax.sklearn.TunedRidge`][], and `classes_`; `cv_score_` is the negative log-loss.
    """

    classes = True

    def __init__(
        self,
        penalties: Any = "one",
        *,
        class_weight: Any = None,
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
        super().__init__(
            penalties,
            groups=groups,
            free=free,
            cv=cv,
            criterion=criterion,
            hold_back=hold_back,
            honest=honest,
            scoring=scoring,
            fit_intercept=fit_intercept,
            standardize=standardize,
            certify=certify,
            max_iter=max_iter,
            tol=tol,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def _weights(self, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        if self.class_weight is None:
            return weights
        names = self.classes_[y]
        of_class = np.asarray(
            compute_class_weight(self.class_weight, classes=self.classes_, y=names, sample_weight=weights)
        )
        if not (np.all(np.isfinite(of_class)) and np.all(of_class > 0)):
            raise ValueError(f"class_weight must hold finite numbers > 0; got {self.class_weight!r}.")
        return of_class[y] * weights

    def _read(self, X: Any, y: Any) -> tuple[Design, np.ndarray]:
        X, y = super()._read(X, y)
        check_classification_targets(y)
        return X, y

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs rows of two classes or more; got one class, {self.classes_[0]}."
            )
        return labels

    def _outputs(self, y: np.ndarray) -> tuple[str, ...] | None:
        return None if len(self.classes_) == 2 else tuple(str(name) for name in self.classes_)

    def _targets(self, y: np.ndarray, shares: np.ndarray | None) -> Targets:
        return Targets(y.astype(float) if len(self.classes_) == 2 else y, 1.0, 0.0, 0.0)

    def _family(self, inputs: Any, targets: np.ndarray, **terms: Any) -> Any:
        if len(self.classes_) == 2:
            return families.Logistic(inputs, targets, **terms)
        return families.Softmax(inputs, targets, classes=len(self.classes_), **terms)

    def _score_of(self, criterion: float, targets: Targets, y: np.ndarray, held: np.ndarray) -> float:
        return -criterion

    def _shaped(self) -> None:
        if len(self.classes_) == 2:
            self.coef_, self.intercept_ = self.coef_[None], np.atleast_1d(self.intercept_)

    def decision_function(self, X: Any) -> np.ndarray:
        """x_iᵀw + b: (n,) for two classes, where above 0 the second is predicted, else (n, classes)."""
        found = self._predictor(self._design(X))
        return found[:, 0] if len(self.classes_) == 2 else found

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of every row."""
        found = self.decision_function(X)
        return self.classes_[(found > 0).astype(int) if found.ndim == 1 else found.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of every class, (n, classes), in the order of `classes_`."""
        return softmax(self._scores(X), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of `predict_proba`, exact where it is 0."""
        return log_softmax(self._scores(X), axis=1)

    def _scores(self, X: Any) -> np.ndarray:
        found = self.decision_function(X)
        return np.stack([np.zeros_like(found), found], axis=1) if found.ndim == 1 else found

    def _losses(self, X: Any, y: Any) -> np.ndarray:
        logs = np.log(np.maximum(self.predict_proba(X), 1e-15))
        place = np.searchsorted(self.classes_, np.asarray(y))
        known = self.classes_[np.minimum(place, len(self.classes_) - 1)] == np.asarray(y)
        return np.where(known, -logs[np.arange(len(logs)), np.minimum(place, logs.shape[1] - 1)], -np.log(1e-15))

    def _constant(self) -> Any:
        return DummyClassifier(strategy="prior")


class TunedPoissonRegressor(AbstractTunedRegressor, AbstractOfFamily):
    """Poisson regression with a log link, for counts and rates, its penalties tuned on folds by gradient.

        w, b = argmin (1/n) Σ_i ω_i (e^{u_i} - y_i u_i) + ½ Σ_j λ_j w_j²,    u = Xw + b

    **Arguments** and **attributes:** those of [`hyprax.sklearn.TunedRidge`][]; `cv_score_` is the negative mean
    deviance. Targets must be numbers >= 0, not all 0. With `return_std`, `predict` gives the standard deviation of the
    mean e^u by the posterior of w (H⁻¹/n) and the delta method, without the spread of the counts.
    """

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        y = super()._encoded(y)
        if np.any(y < 0) or not np.any(y > 0):
            raise ValueError(
                f"{type(self).__name__}: y must be numbers >= 0, not all 0; got numbers from {y.min()} to {y.max()}."
            )
        return y

    def _targets(self, y: np.ndarray, shares: np.ndarray | None) -> Targets:
        mean = float(np.average(y, weights=shares)) if self.fit_intercept else 1.0
        return Targets(y / mean, 1.0, np.log(mean), 1.0, mean)

    def _family(self, inputs: Any, targets: np.ndarray, **terms: Any) -> Any:
        return families.Poisson(inputs, targets, **terms)

    def _score_of(self, criterion: float, targets: Targets, y: np.ndarray, held: np.ndarray) -> float:
        constant = float(np.sum(held * (xlogy(y, y) - y - y * targets.shift)))
        return -2 * (targets.factor * criterion + constant)

    def _mean(self, predictor: np.ndarray) -> np.ndarray:
        return np.exp(predictor)

    def _deviation(self, design: Design, mean: np.ndarray) -> np.ndarray:
        return mean * super()._deviation(design, mean)

    def _losses(self, X: Any, y: Any) -> np.ndarray:
        mean, y = self.predict(X), np.asarray(y, float)
        return 2 * (xlogy(y, y / mean) - y + mean)

    def _constant(self) -> Any:
        return DummyRegressor()

    def _keep_covariance(self, X: Design, y: np.ndarray, shares: np.ndarray | None, kinds: Strengths) -> None:
        if X.shape[1] > LARGEST:
            return
        means = np.exp(self._standardised_predictor(X))
        curves = means if shares is None else shares * means
        self.covariance_, _ = covariance(X, curves, self._each(kinds), self.fit_intercept)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags


class TunedHuberRegressor(AbstractTunedRegressor, AbstractOfFamily):
    """Robust regression by the pseudo-Huber loss, its penalties tuned on folds by gradient.

        w, b = argmin (δ²/n) Σ_i ω_i [√(1 + (r_i/δ)²) - 1] + ½ Σ_j λ_j w_j²,    r = y - Xw - b

    Smooth where scikit-learn's `HuberRegressor` has a corner; folds are judged by the same robust loss.

    **Arguments:** those of [`hyprax.sklearn.TunedRidge`][], and

    - `delta`: δ, the residual beyond which the loss grows linearly, in units of y; `"auto"` for 1.35 robust standard
        deviations of the targets (1.4826 times the median absolute deviation).

    **Attributes:** those of [`hyprax.sklearn.TunedRidge`][], and `delta_`; `cv_score_` is the negative pseudo-Huber
    loss, in squared units of y.
    """

    criteria = tuple(name for name in CRITERIA if name != "evidence")  # the loss is no likelihood
    least_strength = LEAST

    def __init__(
        self,
        penalties: Any = "one",
        *,
        delta: Any = "auto",
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
        super().__init__(
            penalties,
            groups=groups,
            free=free,
            cv=cv,
            criterion=criterion,
            hold_back=hold_back,
            honest=honest,
            scoring=scoring,
            fit_intercept=fit_intercept,
            standardize=standardize,
            certify=certify,
            max_iter=max_iter,
            tol=tol,
            random_state=random_state,
        )
        self.delta = delta

    def _check_settings(self) -> None:
        super()._check_settings()
        number = isinstance(self.delta, int | float) and not isinstance(self.delta, bool) and 0 < self.delta < np.inf
        if not (number or (isinstance(self.delta, str) and self.delta == "auto")):
            raise ValueError(f"delta must be 'auto' or a finite number > 0; got {self.delta!r}.")

    def _targets(self, y: np.ndarray, shares: np.ndarray | None) -> Targets:
        centre = _median(y, shares)
        spread = 1.4826 * _median(np.abs(y - centre), shares)
        if not spread > 0:
            spread = mean_and_spread(y, shares, True)[1]
        self.delta_ = float(1.35 * spread if self.delta == "auto" else self.delta)
        shift = centre if self.fit_intercept else 0.0
        # In units of δ, so that tables of all units share one program.
        return Targets(y / self.delta_ - shift / self.delta_, self.delta_, shift, 0.0)

    def _family(self, inputs: Any, targets: np.ndarray, **terms: Any) -> Any:
        return families.PseudoHuber(inputs, targets, delta=1.0, **terms)

    def _score_of(self, criterion: float, targets: Targets, y: np.ndarray, held: np.ndarray) -> float:
        return -criterion * targets.unit**2

    def _losses(self, X: Any, y: Any) -> np.ndarray:
        off = (np.asarray(y, float) - np.asarray(self.predict(X)).ravel()) / self.delta_
        return self.delta_**2 * off**2 / (1 + np.sqrt(1 + off**2))

    def _constant(self) -> Any:
        return DummyRegressor(strategy="median")

    def _deviation(self, design: Design, mean: np.ndarray) -> np.ndarray:
        raise ValueError(f"return_std must be false for {type(self).__name__}: the loss is no model of the noise.")


def _median(y: np.ndarray, shares: np.ndarray | None) -> float:
    """The middle of the targets, each as often as its weight."""
    if shares is None:
        return float(np.median(y))
    order = np.argsort(y, kind="stable")
    total = np.cumsum(shares[order])
    low, high = (np.searchsorted(total, total[-1] / 2, side=side) for side in ("left", "right"))
    return float((y[order[low]] + y[order[min(high, len(y) - 1)]]) / 2)
