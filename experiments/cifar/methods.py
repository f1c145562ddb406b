"""The ways to a prior precision, and what is measured of the network that each leaves."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hyprax as hx
from hyprax import evidence as ev

from .network import Images, Params, WideResNet

DEFAULT = 1.0
"""The precision of MAP: a weight decay of 1/N."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes and schedules; the numbers of data are those of one draw of an estimator."""

    network: WideResNet
    side: int
    epochs: int
    burn_in: int
    every: int
    hyper_steps: int
    batch: int
    rate: float
    one_row: int
    all_rows: int
    tangent: int
    grid: tuple[float, ...]
    kfac_every: int
    likelihood: int
    """Data for the log-likelihood of a hyper-step."""
    common: tuple[int, int, int]
    """Of the bound that is the same for all: fresh data, reference data, draws."""
    start: float
    """The precision of every tensor at first, and the rate of Adam in its logarithm."""
    hyper_rate: float

    @functools.cached_property
    def optimiser(self) -> Callable[[int], optax.GradientTransformation]:
        """Adam for so many data, its rate falling as a cosine; the same object each time, so compiled once."""

        @functools.cache
        def of(size: int) -> optax.GradientTransformation:
            steps = self.epochs * (size // self.batch)
            return optax.adam(optax.cosine_decay_schedule(self.rate, steps, 1e-3))

        return of

    @functools.cached_property
    def hyper_optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.hyper_rate)

    @functools.cached_property
    def apply(self) -> Any:
        return self.network.apply

    def estimators(self) -> dict[str, tuple[ev.AbstractEstimator | ev.AbstractAdaptive, int, int]]:
        """Each with how often the precisions move, in epochs, and by how many steps: as many steps for all."""
        factor = self.kfac_every // self.every
        usual = self.every, self.hyper_steps
        return {
            "KFAC, all data": (ev.OnlineKFAC(250), self.kfac_every, factor * self.hyper_steps),
            "subset, one output": (ev.Partition(self.one_row, "one", ev.Rows()), *usual),
            "chain, one row": (ev.Chain(ev.OneRow(self.one_row)), *usual),
            "chain, all outputs": (ev.Chain(ev.Blocks(self.all_rows)), *usual),
            "tangent of past draws": (ev.AdaptiveTangent(self.tangent), *usual),
        }


class Outcome(NamedTuple):
    """What one method left: the linearised model, seconds of one core, and mean precisions by time and tensor."""

    problem: ev.Problem
    seconds: float
    precisions: dict[str, float]
    history: list[dict[str, Any]]


def prior(hyper: Any) -> ev.GaussianPrior:
    return ev.GaussianPrior(hyper["precision"])


def by_map(settings: Settings, data: Images, precision: float, seed: int) -> Outcome:
    """The last weights of ordinary training at one fixed precision for all tensors."""
    began = time.process_time()
    params = weights(settings, seed)
    objective = ev.EvidenceObjective(
        settings.apply,
        params,
        (data.x, data.y),
        prior=prior,
        optimiser=settings.optimiser(len(data.y)),
        batch_size=settings.batch,
        key=jax.random.key(seed),
    )
    hyper = {"precision": ev.precisions(params, precision)}
    state = objective.train(hyper, objective.init(hyper), settings.epochs * (len(data.y) // settings.batch))
    found = hx.natural(hyper)
    problem = ev.problem(
        settings.apply, ev.Categorical(), prior(found), state.params, found, (data.x, data.y)
    )  # fmt: skip
    jax.block_until_ready(state.params)
    return Outcome(problem, time.process_time() - began, by_tensor(found), [])


def by_grid(settings: Settings, data: Images, seed: int) -> Outcome:
    """The precision of a grid with the best log-likelihood on a held-out tenth, then all data."""
    began = time.process_time()
    order = np.random.default_rng(seed).permutation(len(data.y))
    held, kept = np.split(order, [len(order) // 10])
    held, kept = Images(data.x[held], data.y[held]), Images(data.x[kept], data.y[kept])
    scores = {}
    for precision in settings.grid:
        found = by_map(settings, kept, precision, seed)
        scores[precision] = log_likelihood(logits(found.problem, held.x), held.y)
    best = max(settings.grid, key=lambda precision: scores[precision])
    print("grid", {precision: round(score, 3) for precision, score in scores.items()}, flush=True)
    return by_map(settings, data, best, seed)._replace(seconds=time.process_time() - began)


def by_evidence(settings: Settings, data: Images, name: str, seed: int) -> Outcome:
    """A precision for each tensor by the log evidence; the weights of the best smoothed bound."""
    began = time.process_time()
    estimator, every, steps = settings.estimators()[name]
    params = weights(settings, seed)
    fitted = ev.fit(
        settings.apply,
        params,
        (data.x, data.y),
        {"precision": ev.precisions(params, settings.start)},
        prior=prior,
        estimator=estimator,
        epochs=settings.epochs,
        burn_in=settings.burn_in,
        every=every,
        hyper_steps=steps,
        optimiser=settings.optimiser(len(data.y)),
        hyper_optimiser=settings.hyper_optimiser,
        batch_size=settings.batch,
        likelihood_batch=min(settings.likelihood, len(data.y)),
        draws=2,
        key=jax.random.key(seed),
    )
    if fitted.message:
        raise RuntimeError(fitted.message)
    found = hx.natural(fitted.hyper)
    history = [{"epoch": row["epoch"], **by_tensor(row["hyper"])} for row in fitted.history]
    print(name, "kept epoch", fitted.epoch, "bound a datum", fitted.log_evidence / len(data.y), flush=True)
    return Outcome(fitted.problem, time.process_time() - began, by_tensor(found), history)


def weights(settings: Settings, seed: int) -> Params:
    return settings.network.init(jax.random.key(seed))


def by_tensor(hyper: Any) -> dict[str, float]:
    pairs = jax.tree_util.tree_leaves_with_path(hyper["precision"])
    return {jax.tree_util.keystr(path, simple=True, separator=" "): float(x) for path, x in pairs}


@functools.partial(jax.jit, static_argnums=0)
def _logits(apply: Any, params: Params, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda one: apply(params, None, one))(x)


def logits(problem: ev.Problem, x: np.ndarray) -> np.ndarray:
    """Of many images, 200 at a time."""
    parts = [_logits(problem.apply, problem.params, x[i : i + 200]) for i in range(0, len(x), 200)]
    return np.concatenate([np.asarray(part) for part in parts])


def log_likelihood(f: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.asarray(jax.nn.log_softmax(jnp.asarray(f)))[np.arange(len(y)), y]))


def last_layer(params: Params) -> dict[str, jax.Array]:
    return params["head"]


def judged(settings: Settings, outcome: Outcome, test: Images) -> dict[str, float]:
    """Accuracy, log-likelihoods and calibration on the test images; a bound that is the same for all methods."""
    problem = outcome.problem
    f = logits(problem, test.x)
    labels = jnp.asarray(test.y)
    posterior = ev.posterior(problem, where=last_layer)
    probabilities = posterior.predict(test.x)
    size, reference, draws = settings.common
    bounds = [
        float(
            ev.log_evidence(
                problem.apply,
                problem.likelihood,
                problem.prior,
                problem.params,
                problem.hyper,
                (problem.inputs, problem.targets),
                ev.Tangent(size, reference),
                jax.random.key(1000 + draw),
            ).value
        )
        for draw in range(draws)
    ]
    return {
        "accuracy": 100 * float(np.mean(f.argmax(1) == test.y)),
        "log_likelihood": log_likelihood(f, test.y),
        "ece": 100 * float(ev.calibration_error(jax.nn.softmax(jnp.asarray(f)), labels)),
        "laplace_log_likelihood": float(np.mean(posterior.log_likelihood(test.x, labels))),
        "laplace_ece": 100 * float(ev.calibration_error(probabilities, labels)),
        "train_log_likelihood": log_likelihood(
            logits(problem, np.asarray(problem.inputs)), np.asarray(problem.targets)
        ),
        "bound": float(np.mean(bounds)) / problem.size,
        "seconds": outcome.seconds,
    }
