"""Invariances found from the training data alone: `python -m experiments.invariance [--quick] [--plain M F] ...`.

Small MNIST and Fashion-MNIST, plain, rotated fully and by half, and translated: the ranges of six affine generators
learned by the log evidence, against the truth; test accuracy and log-likelihood against no augmentation and the right
fixed one. The weights end near their mode; there the log evidence says whether what was learned is better than none.

Writes RESULTS.md and ranges.png beside this file; with --quick into out/experiments.
"""

import argparse
import functools
import shlex
import sys
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import results_folder, rows_of
from jaxtyping import Array

import hyprax as hx
from hyprax import evidence as ev
from hyprax.fits import fit_evidence

from .data import NAMES, SETS, TRUTH, moved, network, true_ranges, weights
from .report import LEARNED, NONE, RIGHT, write

HERE = results_folder(__file__)
FULL = {"size": 400, "test": 3000, "epochs": 50, "rows": 256, "steps": 600, "first": 3}
QUICK = {"size": 100, "test": 250, "epochs": 12, "rows": 32, "steps": 20, "first": 0}
SETTINGS = {"start": 0.2, "precision": 0.02, "rate": 0.2, "hyper_rate": 0.2, "samples": 5, "batch": 20, "burn_in": 10}
AVERAGED = ev.AffineInvariance(network, samples=SETTINGS["samples"])


class Fixed(eqx.Module):
    """The averaged network at ranges that are not learned."""

    ranges: Array

    def __call__(self, params: Any, hyper: Any, x: Array) -> Array:
        return AVERAGED(params, {"ranges": self.ranges}, x)


def cells(plain: list[int], moved: list[int], versions: list[str], first: int) -> list[tuple[str, str, str, int]]:
    """Data set, version, method and seed of each run, so many seeds for each set: plain images, then those moved."""
    found = []
    for seeds, group in ((plain, ["plain"]), (moved, versions)):
        for seed in range(max(seeds)):
            for name, count in zip(SETS, seeds, strict=True):
                for version in group if seed < count else []:
                    methods = (NONE, LEARNED, RIGHT) if TRUTH[version] else (NONE, LEARNED)
                    found += [(name, version, method, first + seed) for method in methods]
    return found


def model(method: str, version: str) -> Any:
    """The network, averaged over maps or not."""
    if method == NONE:
        return network
    return Fixed(jnp.asarray(true_ranges(version))) if method == RIGHT else AVERAGED


@functools.cache
def optimizers(epochs: int, steps: int) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Of the weights and of the hyperparameters: Adam, its rate falling as a cosine, to 1 % and to 10 %.

    The same objects for all cells of a kind, which then share what is compiled.
    """
    moves = epochs - SETTINGS["burn_in"]
    rate = optax.cosine_decay_schedule(SETTINGS["rate"], epochs * steps, 1e-2)
    return optax.adam(rate), optax.adam(optax.cosine_decay_schedule(SETTINGS["hyper_rate"], moves, 0.1))


def measure(sizes: dict[str, int], name: str, version: str, method: str, seed: int) -> dict[str, Any]:
    data = moved(name, version, "train", sizes["size"], seed)
    params = weights(seed)
    optimizer, hyper_optimizer = optimizers(sizes["epochs"], sizes["size"] // SETTINGS["batch"])
    hyper: dict[str, Any] = {"precision": ev.precisions(params, SETTINGS["precision"])}
    if method == LEARNED:
        # Positive: steps are relative, so that none lands on 0, where the gradient vanishes.
        hyper["ranges"] = hx.Positive(jnp.full(len(NAMES), SETTINGS["start"], jnp.float32))
    began = time.process_time()
    fitted = fit_evidence(
        model(method, version),
        params,
        data,
        hyper,
        estimator=ev.Chain(ev.designs.OneRow(sizes["rows"]), midpoint=True),
        epochs=sizes["epochs"],
        burn_in=SETTINGS["burn_in"],
        every=1,
        hyper_steps=1,
        optimizer=optimizer,
        hyper_optimizer=hyper_optimizer,
        batch_size=SETTINGS["batch"],
        likelihood_batch=sizes["rows"],
        mode_steps=0,
        finish=False,  # the last stage follows, at a number of steps that is said
        key=jax.random.key(seed),
    )
    if fitted.result == ev.RESULTS.diverged:
        raise RuntimeError(fitted.message)
    trained = time.process_time()
    arrival = ev.to_mode(fitted.model, steps=sizes["steps"] // 10, tolerance=1e-3 * sizes["size"])
    built = eqx.tree_at(lambda model: model.params, fitted.model, arrival.params)
    arrived = time.process_time()
    evidence = exact(built) / sizes["size"]
    ended = time.process_time()
    test = moved(name, version, "t10k", sizes["test"], seed)
    found = hx.natural(fitted.hyper)
    return {
        **scored(built, *test),
        "accuracy_before": scored(fitted.model, *test)["accuracy"],
        "evidence": evidence,
        "ranges": np.asarray(found.get("ranges", np.zeros(len(NAMES)))).tolist(),
        "precision": {key: float(value) for key, value in found["precision"].items()},
        "seconds": ended - began,
        "seconds_to_mode": arrived - trained,
        "decrement": float(arrival.decrement),
    }


@eqx.filter_jit
def _log_determinant(problem: ev.LinearisedModel) -> Array:
    return ev.FullData()(problem, jax.random.key(0)).upper


def exact(problem: ev.LinearisedModel) -> float:
    """log q(D) from the whole matrix of all outputs of all images, in nats."""
    fit = float(problem.log_likelihood()) - 0.5 * float(problem.prior.penalty(problem.params))
    return fit - 0.5 * float(_log_determinant(problem))


def scored(problem: ev.LinearisedModel, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy in per cent, and mean log-likelihood."""
    log_p = np.asarray(jax.nn.log_softmax(outputs(problem, x)))
    return {
        "accuracy": 100 * float(np.mean(log_p.argmax(1) == y)),
        "log_likelihood": float(np.mean(log_p[np.arange(len(y)), y])),
    }


def outputs(problem: ev.LinearisedModel, x: np.ndarray) -> np.ndarray:
    """Logits at the weights kept, 250 images at a time."""
    parts = [np.asarray(_logits(problem, jnp.asarray(x[i : i + 250]))) for i in range(0, len(x), 250)]
    return np.concatenate(parts)


@eqx.filter_jit
def _logits(problem: ev.LinearisedModel, x: Array) -> Array:
    return jax.vmap(lambda one: problem.apply(problem.params, problem.hyper, one))(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute: 100 images, one version of MNIST")
    parser.add_argument("--plain", type=int, nargs=2, default=[3, 3], metavar=("M", "F"), help="seeds of plain images")
    parser.add_argument("--moved", type=int, nargs=2, default=[1, 0], metavar=("M", "F"), help="seeds of the others")
    parser.add_argument("--versions", nargs="*", default=list(TRUTH)[1:], choices=list(TRUTH)[1:], help="these others")
    given = parser.parse_args()
    sizes = QUICK if given.quick else FULL
    settings = {**SETTINGS, **sizes}
    counts = ([0, 0], [1, 0], ["fully rotated"]) if given.quick else (given.plain, given.moved, given.versions)
    todo = cells(*counts, sizes["first"])
    found = []
    for row in rows_of(__file__, todo, settings, functools.partial(measure, sizes)):
        found.append(row)
        numbers = f"{row['accuracy']:.1f} {row['log_likelihood']:.3f} {row['evidence']:.3f}"
        rest = f"{row['decrement']:.2f} nats {row['seconds']:.0f} s"
        print(*row["cell"], numbers, np.round(row["ranges"], 2), rest, flush=True)
    options = "".join(f" {shlex.quote(part)}" for part in sys.argv[1:])
    write(HERE, found, settings, options)


if __name__ == "__main__":
    main()
