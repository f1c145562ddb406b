"""Log-density and error on the test part of a split, by each method."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hyprax as hx
from hyprax import evidence as ev
from hyprax.fits import fit_evidence

from .data import HIDDEN, Split, network, weights

SETTINGS = {"hidden": HIDDEN, "noise": 1.0}
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TENSOR, INPUT = "evidence", "evidence, precision per input"


def measure(method: str, data: Split, seed: int) -> dict[str, Any]:
    return BASELINES[method](data, seed) if method in BASELINES else by_evidence(method, data, seed)


def gaussian(hyper: Any) -> ev.Gaussian:
    return ev.Gaussian(hyper["noise"])


def by_input(hyper: Any) -> ev.GaussianPrior:
    """One precision for all weights that leave an input."""
    precision = hyper["precision"]
    return ev.GaussianPrior(
        {**precision, "w": jnp.broadcast_to(precision["w"][:, None], (precision["w"].size, HIDDEN))}
    )


def by_evidence(method: str, data: Split, seed: int) -> dict[str, Any]:
    """`fit_evidence` with its defaults, at the data as they are."""
    features = data.x.shape[1]
    params = weights(features, seed)
    hyper: dict[str, Any] = {"noise": hx.Positive(SETTINGS["noise"])}
    if method == INPUT:
        hyper["precision"] = {**ev.precisions(params), "w": hx.Positive(np.ones(features))}
    fitted = fit_evidence(
        network,
        params,
        (data.x, data.y[:, None]),
        hyper,
        likelihood=gaussian,
        prior=by_input if method == INPUT else None,
        progress=False,
        key=jax.random.key(seed),
    )
    found = fitted.posterior()
    residual = np.asarray(found.predict(data.x_test))[:, 0] - data.y_test
    at_work = np.asarray(found.predict(data.x))[:, 0] - data.y
    return {
        "log_likelihood": float(np.mean(found.log_likelihood(data.x_test, data.y_test[:, None]))),
        "error": float(np.sqrt(np.mean(residual**2))),
        "training_error": float(np.sqrt(np.mean(at_work**2))),
        "noise": float(hx.natural(fitted.hyper)["noise"]),
        "log_evidence": fitted.log_evidence / len(data.y),
        "result": fitted.message[:60],
    }


def normal(y: np.ndarray, mean: np.ndarray, deviation: Any) -> dict[str, float]:
    """Mean log-density of normal predictions, and the root mean squared error."""
    residual = (y - mean) / deviation
    log_density = -0.5 * residual**2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)
    return {"log_likelihood": float(np.mean(log_density)), "error": float(np.sqrt(np.mean((y - mean) ** 2)))}


def standardised(data: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Training and test inputs, and targets, by the training part; and what takes targets back."""
    x, y = data.x.astype(float), data.y.astype(float)
    center, spread = x.mean(0), x.std(0)
    spread[spread == 0] = 1
    offset, scale = float(y.mean()), float(y.std())
    return (x - center) / spread, (y - offset) / scale, (data.x_test - center) / spread, offset, scale


def by_gaussian_process(data: Split, seed: int) -> dict[str, Any]:
    """Squared exponential with a length for each input, and noise, by the exact evidence."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    x, y, x_test, offset, scale = standardised(data)
    kernel = ConstantKernel(1.0) * RBF([2.0] * x.shape[1], (1e-2, 1e4)) + WhiteKernel(0.1, (1e-6, 1e1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a length at its bound is an input that does not matter
        model = GaussianProcessRegressor(kernel, random_state=seed).fit(x, y)
    mean, deviation = map(np.asarray, model.predict(x_test, return_std=True))
    log_evidence: Any = model.log_marginal_likelihood_value_
    return {
        **normal(data.y_test, offset + scale * mean, scale * deviation),
        "log_evidence": float(log_evidence) / len(y) - float(np.log(scale)),
    }


def by_grid(data: Split, seed: int) -> dict[str, Any]:
    """The penalty by 3-fold cross-validation; the noise is the error of the held-out predictions."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPRegressor

    x, y, x_test, offset, scale = standardised(data)
    model = MLPRegressor(
        hidden_layer_sizes=[HIDDEN], activation="tanh", solver="lbfgs", max_iter=2000, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some points of the grid stop before they have converged
        search = GridSearchCV(model, {"alpha": PENALTIES}, cv=3, scoring="neg_mean_squared_error").fit(x, y)
    deviation = scale * np.sqrt(-search.best_score_)
    return normal(data.y_test, offset + scale * np.asarray(search.predict(x_test)), deviation)


def by_ridge(data: Split, seed: int) -> dict[str, Any]:
    """scikit-learn's Bayesian ridge regression: the evidence of the linear model."""
    from sklearn.linear_model import BayesianRidge

    x, y, x_test, offset, scale = standardised(data)
    mean, deviation = map(np.asarray, BayesianRidge().fit(x, y).predict(x_test, return_std=True))
    return normal(data.y_test, offset + scale * mean, scale * deviation)


BASELINES: dict[str, Callable[[Split, int], dict[str, Any]]] = {
    "Gaussian process": by_gaussian_process,
    "grid of 5, 3-fold": by_grid,
    "Bayesian ridge": by_ridge,
}
