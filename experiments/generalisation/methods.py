"""The ways of tuning that are compared, on the same rows: each returns the loss of every test row."""

import warnings
from collections.abc import Callable

import jax
import numpy as np
from sklearn.linear_model import ARDRegression, ElasticNetCV, LogisticRegressionCV, RidgeCV

import hyprax as hx

jax.config.update("jax_enable_x64", True)

KEY = "penalty"
ALPHAS = np.logspace(-3, 5, 25)
SETTINGS = {"folds": 5, "outer_folds": 5, "steps": 25, "gate_steps": 100}
FAST = {"certifier": hx.implicit.NoCertifier()}  # bounds cost products, and change nothing here


class Rows:
    """One split: training and test rows, and the loss of predictions on the latter."""

    def __init__(self, data, binary: bool, seed: int):
        self.x, self.y, self.x_test, self.y_test = data
        self.binary, self.key = binary, jax.random.key(seed)
        family = hx.families.Logistic if binary else hx.families.Squared
        self.optimum = hx.Optimum(family(self.x, self.y, penalty=KEY))
        self._simple = None

    def losses(self, u: np.ndarray) -> np.ndarray:
        """Log-losses, or squared errors, of the test rows."""
        if self.binary:
            return np.logaddexp(0, u) - self.y_test * u
        return (u - self.y_test) ** 2

    def refitted(self, hyper) -> np.ndarray:
        return self.losses(self.x_test @ np.asarray(self.optimum.refit(hyper).params))

    def simple(self):
        """scikit-learn's choice of one strength by 5 folds, and its predictions; the strength beside a mean loss."""
        if self._simple is None:
            n = len(self.y)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if self.binary:
                    model = LogisticRegressionCV(Cs=1 / ALPHAS, cv=5, scoring="neg_log_loss", fit_intercept=False)
                    model.fit(self.x, self.y)
                    self._simple = 1 / model.C_[0] / n, self.x_test @ model.coef_[0]
                else:
                    model = RidgeCV(ALPHAS, cv=5, scoring="neg_mean_squared_error", fit_intercept=False)
                    model.fit(self.x, self.y)
                    self._simple = model.alpha_ / n, model.predict(self.x_test)
        return self._simple

    def start(self):
        """One strength a column, all at scikit-learn's."""
        return {KEY: hx.Positive(np.full(self.x.shape[1], self.simple()[0]))}


def one(rows: Rows) -> np.ndarray:
    return rows.losses(rows.simple()[1])


def elastic_net(rows: Rows) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rows.binary:
            model = LogisticRegressionCV(
                Cs=10, cv=5, scoring="neg_log_loss", penalty="elasticnet", solver="saga", l1_ratios=(0.5, 0.9, 1.0),
                fit_intercept=False, max_iter=2000,
            ).fit(rows.x, rows.y)  # fmt: skip
            return rows.losses(rows.x_test @ model.coef_[0])
        model = ElasticNetCV(l1_ratio=(0.1, 0.5, 0.9, 1.0), cv=5, fit_intercept=False).fit(rows.x, rows.y)
        return rows.losses(model.predict(rows.x_test))


def ard(rows: Rows) -> np.ndarray | None:
    if rows.binary:
        return None
    return rows.losses(ARDRegression(fit_intercept=False).fit(rows.x, rows.y).predict(rows.x_test))


def hold_out(rows: Rows) -> np.ndarray:
    """A strength a column, tuned on one third held out; refitted on all."""
    n = len(rows.y)
    order = np.asarray(jax.random.permutation(rows.key, n))
    objective = hx.search.CrossValidated(rows.optimum, [(order[n // 3 :], order[: n // 3])], **FAST)
    return rows.refitted(hx.tune(objective, rows.start(), steps=2 * SETTINGS["steps"], progress=False).best)


def folds(rows: Rows) -> np.ndarray:
    """A strength a column, tuned on five folds; refitted on all."""
    objective = hx.search.CrossValidated(rows.optimum, SETTINGS["folds"], key=rows.key, **FAST)
    return rows.refitted(hx.tune(objective, rows.start(), steps=2 * SETTINGS["steps"], progress=False).best)


def gate(rows: Rows) -> np.ndarray:
    """Five folds redrawn at each step, entries above two standard errors alone; refitted on all."""
    objective = hx.search.CrossValidated(
        rows.optimum, SETTINGS["folds"], key=rows.key, redraw=True, noise=hx.implicit.ExampleNoise(), **FAST
    )
    found = hx.tune(objective, rows.start(), search=hx.search.Gate(2.0), steps=SETTINGS["gate_steps"], progress=False)
    return rows.refitted(found.best)


def path(rows: Rows, errors: float = 1.0) -> np.ndarray:
    """The shrinkage path, its strength by nested folds and one standard error; refitted on all."""
    found = hx.search.shrinkage_path(
        rows.optimum, rows.start(), key=rows.key, folds=SETTINGS["folds"],
        outer_folds=SETTINGS["outer_folds"], errors=errors, steps=SETTINGS["steps"], **FAST,
    )  # fmt: skip
    return rows.refitted(found.hyper)


METHODS: dict[str, Callable[[Rows], np.ndarray | None]] = {
    "one strength (scikit-learn)": one,
    "elastic net (scikit-learn)": elastic_net,
    "ARD (scikit-learn)": ard,
    "per column, hold-out": hold_out,
    "per column, 5 folds": folds,
    "gate 2, new folds": gate,
    "shrinkage path": path,
}
BASELINE = "one strength (scikit-learn)"
