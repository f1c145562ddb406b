"""Log-density and error on the test part of a split, in standardised units, by each method."""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hyprax as hx
from hyprax import evidence as ev
from hyprax.fits import fit_evidence

from .data import HIDDEN, Split, network, weights

SETTINGS = {
    "steps": 4000,
    "batch": 1024,
    "every": 10,
    "rate": 0.03,
    "hyper_rate": 0.05,
    "noise": 0.1,
    "rows": 256,
    "mode_steps": 30,
}
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TENSOR, INPUT, EXACT = "evidence", "evidence, precision per input", "evidence, precision per input, exact"
SCALES, PROCESS, GRID = "evidence, input scales", "Gaussian process", "grid of 5, 3-fold"
METHODS = (TENSOR, INPUT, EXACT, SCALES, PROCESS, GRID)
MOVED = "scales moved"
SCALED = ev.InputScales(network)


def measure(method: str, data: Split, seed: int, steps: int) -> dict[str, float]:
    if method == MOVED:
        return by_moving(data, seed, steps)
    if method == PROCESS:
        return by_gaussian_process(data, seed)
    return by_grid(data, seed) if method == GRID else by_evidence(method, data, seed, steps)


@functools.cache
def optimizers(steps: int, moves: int) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The same objects for all splits, which then share what is compiled."""
    rate = optax.cosine_decay_schedule(SETTINGS["rate"], steps, 1e-2)
    return optax.adam(rate), optax.adam(optax.cosine_decay_schedule(SETTINGS["hyper_rate"], moves, 0.05))


def gaussian(hyper: Any) -> ev.Gaussian:
    return ev.Gaussian(hyper["noise"])


def by_input(hyper: Any) -> ev.GaussianPrior:
    """One precision for all weights that leave an input."""
    precision = hyper["precision"]
    return ev.GaussianPrior(
        {**precision, "w": jnp.broadcast_to(precision["w"][:, None], (precision["w"].size, HIDDEN))}
    )


def by_evidence(method: str, data: Split, seed: int, steps: int) -> dict[str, float]:
    """The posterior and everything in it are those of all training data."""
    x, y, x_test, y_test = [jnp.asarray(part, jnp.float32) for part in (data.x, data.y, data.x_test, data.y_test)]
    size, features = x.shape
    params = weights(features, seed)
    hyper: dict[str, Any] = {"noise": hx.Positive(np.float32(SETTINGS["noise"])), "precision": ev.precisions(params)}
    if method in (INPUT, EXACT):
        hyper["precision"]["w"] = hx.Positive(np.ones(features, np.float32))
    if method == SCALES:
        hyper["input_scales"] = hx.Positive(np.ones(features, np.float32))
    batch = min(SETTINGS["batch"], size)
    an_epoch = size // batch
    epochs, every = steps // an_epoch, max(SETTINGS["every"] // an_epoch, 1)
    burn_in = epochs // 10
    optimizer, hyper_optimizer = optimizers(epochs * an_epoch, len(range(burn_in + 1, epochs + 1, every)))
    chain = ev.Chain(ev.designs.OneRow(min(SETTINGS["rows"], size)))
    fitted = fit_evidence(
        SCALED if method == SCALES else network,
        params,
        (x, y[:, None]),
        hyper,
        likelihood=gaussian,
        prior=by_input if method in (INPUT, EXACT) else None,
        estimator=ev.FullData() if method == EXACT else chain,
        batch_size=batch,
        epochs=epochs,
        burn_in=burn_in,
        every=every,
        hyper_steps=1,
        mode_steps=SETTINGS["mode_steps"],
        standardise=False,  # done by `data`, by the training part
        optimizer=optimizer,
        hyper_optimizer=hyper_optimizer,
        key=jax.random.key(seed),
    )
    if fitted.result == ev.RESULTS.diverged:
        raise RuntimeError(fitted.message)
    found = fitted.posterior()
    residual = np.asarray(found.predict(x_test))[:, 0] - data.y_test
    at_work = np.asarray(found.predict(x))[:, 0] - data.y
    return {
        "log_likelihood": float(np.mean(found.log_likelihood(x_test, y_test[:, None]))),
        "error": float(np.sqrt(np.mean(residual**2))),
        "training_error": float(np.sqrt(np.mean(at_work**2))),
        "noise": float(hx.natural(fitted.hyper)["noise"]),
        "log_evidence": fitted.log_evidence / size,
        "decrement": float(fitted.stats.decrement),
    }


def by_moving(data: Split, seed: int, steps: int) -> dict[str, float]:
    """The training error of a network at fixed hyperparameters, and once each input is multiplied by exp(±rate).

    That is one step of Adam on the logarithms of the scales; the mean over 20 choices of the signs.
    """
    x, y = jnp.asarray(data.x, jnp.float32), jnp.asarray(data.y, jnp.float32)
    params = weights(x.shape[1], seed)
    objective = ev.EvidenceObjective(
        network,
        params,
        (x, y[:, None]),
        prior=lambda hyper: ev.GaussianPrior(hyper["precision"]),
        likelihood=ev.Gaussian(0.03),
        estimator=ev.FullData(),
        optimizer=optimizers(steps, 1)[0],
        batch_size=min(SETTINGS["batch"], len(y)),
        key=jax.random.key(seed),
    )
    hyper = {"precision": jnp.float32(0.3)}
    params = objective.train(hyper, objective.init(hyper), steps).params

    def error(scales: np.ndarray) -> float:
        f = jax.vmap(lambda one: network(params, None, one))(x * jnp.asarray(scales, jnp.float32))
        return float(jnp.sqrt(jnp.mean(jnp.square(f[:, 0] - y))))

    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (20, x.shape[1]))
    moved = [error(np.exp(SETTINGS["hyper_rate"] * one)) for one in signs]
    return {"training_error": error(np.ones(x.shape[1])), "moved_error": float(np.mean(moved))}


def normal(y: np.ndarray, mean: np.ndarray, deviation: Any) -> dict[str, float]:
    """Mean log-density of normal predictions, and the root mean squared error."""
    residual = (y - mean) / deviation
    log_density = -0.5 * residual**2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)
    return {"log_likelihood": float(np.mean(log_density)), "error": float(np.sqrt(np.mean((y - mean) ** 2)))}


def by_gaussian_process(data: Split, seed: int) -> dict[str, float]:
    """Squared exponential with a length for each input, and noise, by the exact evidence."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    kernel = ConstantKernel(1.0) * RBF([2.0] * data.x.shape[1], (1e-2, 1e4)) + WhiteKernel(0.1, (1e-6, 1e1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a length at its bound is an input that does not matter
        model = GaussianProcessRegressor(kernel, random_state=seed).fit(data.x, data.y)
    mean, deviation = map(np.asarray, model.predict(data.x_test, return_std=True))
    log_evidence: Any = model.log_marginal_likelihood_value_
    return {**normal(data.y_test, mean, deviation), "log_evidence": float(log_evidence) / len(data.y)}


def by_grid(data: Split, seed: int) -> dict[str, float]:
    """The penalty by 3-fold cross-validation; the noise is the error of the held-out predictions."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPRegressor

    model = MLPRegressor(
        hidden_layer_sizes=[HIDDEN], activation="tanh", solver="lbfgs", max_iter=2000, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some points of the grid stop before they have converged
        search = GridSearchCV(model, {"alpha": PENALTIES}, cv=3, scoring="neg_mean_squared_error").fit(data.x, data.y)
    return normal(data.y_test, search.predict(data.x_test), np.sqrt(-search.best_score_))
