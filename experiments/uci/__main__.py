"""Regression without a validation set: `python -m experiments.uci [--quick] [--splits K]`.

A network of one hidden layer with its noise, prior precisions and (in one variant) the scales of its inputs tuned by a
lower bound of the log evidence, on the published splits of three UCI data sets, against scikit-learn's Gaussian process
and its multi-layer perceptron with a cross-validated grid. Test log-likelihood and root mean squared error.

Writes RESULTS.md beside this file; with --quick into out/experiments.
"""

import argparse
import functools
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import data_file, machine, results_folder
from jaxtyping import Array

import hyprax as hx
from hyprax import evidence as ev

HERE = results_folder(__file__)
SETS = ("yacht", "energy", "concrete")
HIDDEN = 50
ROWS, BATCH = 256, 128
HYPER_OPTIMISER = optax.adam(0.05)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def network(params: dict[str, Array], hyper: Any, x: Array) -> Array:
    """tanh(x W / √d + b) v / √H + c: precisions of one for all tensors are then a sensible start."""
    hidden = jnp.tanh(x @ params["w"] / np.sqrt(params["w"].shape[0]) + params["b"])
    return hidden @ params["v"] / np.sqrt(HIDDEN) + params["c"]


SCALED = ev.InputScales(network)


@functools.cache
def optimiser(steps: int) -> optax.GradientTransformation:
    """The same object for all splits, which then share what is compiled."""
    return optax.adam(optax.cosine_decay_schedule(1e-2, steps, 1e-2))


def gaussian(hyper: Any) -> ev.Gaussian:
    return ev.Gaussian(hyper["noise"])


def weights(features: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(features, HIDDEN)).astype(np.float32)),
        "b": jnp.asarray(rng.normal(size=HIDDEN).astype(np.float32)),
        "v": jnp.asarray(rng.normal(size=(HIDDEN, 1)).astype(np.float32)),
        "c": jnp.zeros(1, jnp.float32),
    }


Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]
"""Training inputs and targets, test inputs and targets, all standardised, and the scale of the targets."""


def split(name: str, number: int) -> Split:
    stored = np.load(data_file(f"uci/{name}.npz"), allow_pickle=False)
    x, y, test = stored["X"], stored["y"], stored["test_idx"][number]
    train = np.setdiff1d(np.arange(len(y)), test)
    centre, spread = x[train].mean(0), x[train].std(0)
    spread[spread == 0] = 1
    scale = float(y[train].std())
    x, z = (x - centre) / spread, (y - y[train].mean()) / scale
    return x[train], z[train], x[test], z[test], scale


def by_evidence(data: Split, seed: int, epochs: int, scaled: bool) -> tuple[float, float]:
    """Mean test log-likelihood and error, in standardised units; the posterior is that of all training data."""
    x, y, x_test, y_test, _ = [np.asarray(part, np.float32) for part in data]
    hyper: dict[str, Any] = {"noise": hx.Positive(np.float32(0.5))}
    if scaled:
        hyper["input_scales"] = hx.Positive(np.ones(x.shape[1], np.float32))
    fitted = ev.fit(
        SCALED if scaled else network,
        weights(x.shape[1], seed),
        (x, y[:, None]),
        hyper,
        likelihood=gaussian,
        estimator=ev.Chain(ev.OneRow(min(ROWS, len(y)))),
        batch_size=min(BATCH, len(y)),
        epochs=epochs,
        burn_in=epochs // 10,
        every=5,
        hyper_steps=4,
        optimiser=optimiser(epochs * max(len(y) // BATCH, 1)),
        hyper_optimiser=HYPER_OPTIMISER,
        draws=2,
        key=jax.random.key(seed),
    )
    if fitted.message:
        raise RuntimeError(fitted.message)
    found = ev.posterior(fitted.problem)
    log_likelihood = np.asarray(found.log_likelihood(x_test, y_test[:, None]))
    mean = np.asarray(found.predict(x_test))[:, 0]
    return float(log_likelihood.mean()), float(np.sqrt(np.mean((mean - y_test) ** 2)))


def normal(y: np.ndarray, mean: np.ndarray, deviation: Any) -> tuple[float, float]:
    """Mean log-density of normal predictions, and the root mean squared error."""
    residual = (y - mean) / deviation
    log_density = -0.5 * residual**2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)
    return float(np.mean(log_density)), float(np.sqrt(np.mean((y - mean) ** 2)))


def by_gaussian_process(data: Split, seed: int) -> tuple[float, float]:
    """Squared exponential with a length for each input, and noise, by the exact evidence."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    x, y, x_test, y_test, _ = data
    kernel = ConstantKernel(1.0) * RBF([2.0] * x.shape[1], (1e-2, 1e4)) + WhiteKernel(0.1, (1e-6, 1e1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a length at its bound is an input that does not matter
        model = GaussianProcessRegressor(kernel, random_state=seed).fit(x, y)
    mean, deviation = model.predict(x_test, return_std=True)
    return normal(y_test, mean, deviation)


def by_grid(data: Split, seed: int) -> tuple[float, float]:
    """The penalty by 3-fold cross-validation; the noise is the error of the held-out predictions."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.neural_network import MLPRegressor

    x, y, x_test, y_test, _ = data
    model = MLPRegressor(
        hidden_layer_sizes=[HIDDEN], activation="tanh", solver="lbfgs", max_iter=2000, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some points of the grid stop before they have converged
        search = GridSearchCV(model, {"alpha": PENALTIES}, cv=3, scoring="neg_mean_squared_error").fit(x, y)
    return normal(y_test, search.predict(x_test), np.sqrt(-search.best_score_))


METHODS = ("evidence", "evidence, input scales", "Gaussian process", "grid of 5, 3-fold")


def measure(method: str, data: Split, seed: int, epochs: int) -> tuple[float, float]:
    if method == "Gaussian process":
        return by_gaussian_process(data, seed)
    if method.startswith("grid"):
        return by_grid(data, seed)
    return by_evidence(data, seed, epochs, method.endswith("scales"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, on one split of two sets")
    parser.add_argument("--splits", type=int, default=3, help="the first so many of the published 20")
    given = parser.parse_args()
    epochs = 40 if given.quick else 1000
    sets, splits = (SETS[:2], 1) if given.quick else (SETS, given.splits)
    lines = []
    for name in sets:
        for method in METHODS:
            found, seconds = [], []
            for number in range(splits):
                data = split(name, number)
                began = time.perf_counter()
                log_likelihood, error = measure(method, data, number, epochs)
                seconds.append(time.perf_counter() - began)
                found.append((log_likelihood - np.log(data[4]), error * data[4]))
            mean, spread = np.mean(found, 0), np.std(found, 0, ddof=1 if splits > 1 else 0) / np.sqrt(splits)
            lines.append(
                f"| {name} | {method} | {mean[0]:.3f} ± {spread[0]:.3f} | {mean[1]:.3f} ± {spread[1]:.3f} | "
                f"{np.median(seconds):.1f} |"
            )
            print(lines[-1], flush=True)
    options = "".join([" --quick"] * given.quick + [f" --splits {splits}"] * (not given.quick and splits != 3))
    (HERE / "RESULTS.md").write_text(RESULTS.format(options=options, machine=machine(), splits=splits, epochs=epochs,
                                                    hidden=HIDDEN, rows=ROWS, lines="\n".join(lines)))  # fmt: skip


RESULTS = """# Regression without a validation set

    python -m experiments.uci{options}

Measured on a {machine}, one thread, the machine shared with other work. Reduced: the first {splits} of the 20
published splits of three of the smaller sets, {epochs} epochs. One hidden layer of {hidden} tanh units.
*evidence*: the noise and a prior precision for each tensor (and in the second line the scale of every input) by
the chain bound of {rows} rows on the training data, no data held out; predictions and test log-likelihood from
the linearised Laplace posterior. *Gaussian process*: scikit-learn, squared exponential with a length for each
input. *grid*: scikit-learn's network of the same shape (L-BFGS), its penalty by cross-validation, noise from
the held-out errors. Mean over the splits with its standard error, in the units of the targets; seconds are the
median for one split, compilation included.

| data | method | test log-likelihood | RMSE | seconds |
| --- | --- | --- | --- | --- |
{lines}
"""

if __name__ == "__main__":
    main()
