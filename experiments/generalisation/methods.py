"""The ways of tuning that are compared, on the same rows: each returns the loss of every test row."""

import time
import warnings
from collections.abc import Callable

import jax
import numpy as np
from sklearn.linear_model import ARDRegression, ElasticNetCV, LogisticRegression, LogisticRegressionCV, RidgeCV

import hyprax as hx
from hyprax.sklearn import TunedLogisticRegression, TunedRidge

jax.config.update("jax_enable_x64", True)

KEY = "penalty"
ALPHAS = np.logspace(-3, 5, 25)
SETTINGS = {"folds": 5, "outer_folds": 5, "steps": 25, "gate_steps": 100, "rivals": 3}
LOG_STRENGTHS = (-7.0, 2.0)  # of Optuna: decimal logarithms of strengths beside a mean loss
FAST = {"certifier": hx.implicit.NoCertifier()}  # bounds cost products, and change nothing here


class Rows:
    """One split: training and test rows, and the loss of predictions on the latter."""

    def __init__(self, data, binary: bool, seed: int, groups: np.ndarray):
        self.x, self.y, self.x_test, self.y_test = data
        self.binary, self.seed, self.key, self.groups = binary, seed, jax.random.key(seed), groups
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
    """The elastic net; for classes, where its solver takes minutes, the lasso alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rows.binary:
            model = LogisticRegressionCV(
                Cs=10, cv=5, scoring="neg_log_loss", penalty="l1", solver="liblinear", fit_intercept=False
            ).fit(rows.x, rows.y)
            return rows.losses(rows.x_test @ model.coef_[0])
        model = ElasticNetCV(l1_ratio=(0.1, 0.5, 0.9, 1.0), cv=5, fit_intercept=False).fit(rows.x, rows.y)
        return rows.losses(model.predict(rows.x_test))


def ard(rows: Rows) -> np.ndarray | None:
    if rows.binary:
        return None
    return rows.losses(ARDRegression(fit_intercept=False).fit(rows.x, rows.y).predict(rows.x_test))


def followed(objective, rows: Rows):
    """Quasi-Newton steps with nothing held back."""
    steps = 2 * SETTINGS["steps"]
    return hx.tune(objective, rows.start(), search=hx.search.LBFGS(), steps=steps, progress=False).best


def hold_out(rows: Rows) -> np.ndarray:
    """A strength a column, tuned on one third held out; refitted on all."""
    n = len(rows.y)
    order = np.asarray(jax.random.permutation(rows.key, n))
    objective = hx.search.CrossValidated(rows.optimum, [(order[n // 3 :], order[: n // 3])], **FAST)
    return rows.refitted(followed(objective, rows))


def folds(rows: Rows) -> np.ndarray:
    """A strength a column, tuned on five folds; refitted on all."""
    return rows.refitted(
        followed(hx.search.CrossValidated(rows.optimum, SETTINGS["folds"], key=rows.key, **FAST), rows)
    )


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


def default(rows: Rows, penalties: str = "feature") -> np.ndarray:
    """The estimators as they come, a strength a column (the column of ones is their intercept)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rows.binary:
            model = TunedLogisticRegression(penalties, certify=False, random_state=rows.seed)
            return rows.losses(model.fit(rows.x[:, :-1], rows.y).decision_function(rows.x_test[:, :-1]))
        model = TunedRidge(penalties, certify=False, random_state=rows.seed)
        return rows.losses(model.fit(rows.x, rows.y).predict(rows.x_test))


def default_one(rows: Rows) -> np.ndarray:
    """The estimators with one strength for all columns."""
    return default(rows, "one")


def tuned(rows: Rows) -> np.ndarray:
    """A strength a column on five folds, by `hx.tune` as it comes, which holds back; refitted on all."""
    objective = hx.search.CrossValidated(rows.optimum, SETTINGS["folds"], key=rows.key, **FAST)
    return rows.refitted(hx.tune(objective, rows.start(), steps=2 * SETTINGS["steps"], progress=False).best)


def evidence(rows: Rows) -> np.ndarray:
    """A strength a column by the (restricted, Laplace's) marginal likelihood of all training rows."""
    found = hx.tune(hx.implicit.REML(rows.optimum), rows.start(), steps=2 * SETTINGS["steps"], progress=False)
    return rows.refitted(found.best)


def fitted(rows: Rows, train: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Weights on the rows `train`, the prior kept: (1/n) sum of their losses, n all rows, by SciPy and scikit-learn."""
    x, y, n = rows.x[train], rows.y[train], len(rows.y)
    if not rows.binary:
        return np.linalg.solve(x.T @ x / n + np.diag(strengths), x.T @ y / n)
    scale = 1 / np.sqrt(n * strengths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1.0, fit_intercept=False, max_iter=500).fit(x * scale, y)
    return model.coef_[0] * scale


def tpe(rows: Rows) -> np.ndarray:
    """Optuna's TPE, a strength a group, the loss on five folds; as many processor seconds as `default` takes here."""
    import optuna

    began = time.process_time()
    default(rows)
    seconds = time.process_time() - began
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folds = np.array_split(np.random.default_rng(rows.seed).permutation(len(rows.y)), SETTINGS["folds"])
    count, start = int(rows.groups.max()) + 1, float(np.log10(rows.simple()[0]))

    def strengths(values: dict[str, float]) -> np.ndarray:
        return 10.0 ** np.array([values[f"group {group}"] for group in rows.groups])

    def criterion(trial) -> float:
        for group in range(count):
            trial.suggest_float(f"group {group}", *LOG_STRENGTHS)
        total = 0.0
        for part in folds:
            w = fitted(rows, np.setdiff1d(np.arange(len(rows.y)), part), strengths(trial.params))
            u, y = rows.x[part] @ w, rows.y[part]
            total += float(np.sum(np.logaddexp(0, u) - y * u if rows.binary else (u - y) ** 2))
        return total / len(rows.y)

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=rows.seed))
    study.enqueue_trial({f"group {group}": float(np.clip(start, *LOG_STRENGTHS)) for group in range(count)})
    began = time.process_time()
    while time.process_time() - began < seconds:
        study.optimize(criterion, n_trials=1)
    return rows.losses(rows.x_test @ fitted(rows, np.arange(len(rows.y)), strengths(study.best_params)))


METHODS: dict[str, Callable[[Rows], np.ndarray | None]] = {
    "one strength (scikit-learn)": one,
    "elastic net (scikit-learn)": elastic_net,
    "ARD (scikit-learn)": ard,
    "per column, hold-out": hold_out,
    "per column, 5 folds": folds,
    "gate 2, new folds": gate,
    "shrinkage path": path,
    "per column, 5 folds, tune as it comes": tuned,
    "evidence": evidence,
    "estimator, one strength": default_one,
    "estimator as it comes": default,
    "Optuna TPE on groups": tpe,
}
BASELINE = "one strength (scikit-learn)"
