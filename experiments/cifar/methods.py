"""The ways to a prior precision, and what is measured of the network that each leaves."""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import hyprax as hx
from hyprax import evidence as ev
from hyprax.fits import fit_evidence

from .network import Images, Params, WideResNet

DEFAULT = 1.0
"""The precision of MAP: a weight decay of 1/N."""
MAP, GRID = "MAP", "MAP, grid"
SAMPLES = 1000
"""Draws of the outputs for the mean of their softmax."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes and schedules; the numbers of data are those of one draw of an estimator."""

    network: WideResNet
    side: int
    train: int
    test: int
    epochs: int
    burn_in: int
    every: int
    hyper_steps: int
    batch: int
    rate: float
    one_row: int
    all_rows: int
    tangent: int
    linearised: int
    """Data of the posterior of all weights."""
    grid: tuple[float, ...]
    kfac_every: int
    likelihood: int
    """Data for the log-likelihood of a hyper-step."""
    common: tuple[int, int, int]
    """Of the bound that is the same for all: fresh data, reference data, draws."""
    to_mode: int
    """The most steps of L-BFGS in the last stage."""
    start: float
    """The precision of every tensor at first, and the rate of Adam in its logarithm."""
    hyper_rate: float

    def plain(self) -> dict[str, Any]:
        """As json has it back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @functools.cached_property
    def optimizer(self) -> Callable[[int], optax.GradientTransformation]:
        """Adam for so many data, its rate falling as a cosine; the same object each time, so compiled once."""

        @functools.cache
        def of(size: int) -> optax.GradientTransformation:
            steps = self.epochs * (size // self.batch)
            return optax.adam(optax.cosine_decay_schedule(self.rate, steps, 1e-3))

        return of

    @functools.cached_property
    def hyper_optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.hyper_rate)

    @functools.cached_property
    def apply(self) -> Any:
        return self.network.apply

    def estimators(
        self,
    ) -> dict[str, tuple[ev.AbstractEstimator | ev.AdaptiveTangent | ev.OnlineKFAC, int, int]]:
        """Each with how often the precisions move, in epochs, and by how many steps: as many steps an epoch for all."""
        chain = ev.Chain(ev.designs.OneRow(self.one_row))
        usual = self.every, self.hyper_steps
        return {
            "KFAC, all data": (ev.OnlineKFAC(250), self.kfac_every, self.kfac_every * self.hyper_steps // self.every),
            "released heuristic": (ev.Partition(self.one_row, "one", ev.roots.Rows(covariance=False)), *usual),
            "subset, one output": (ev.Partition(self.one_row, "one", ev.roots.Rows()), *usual),
            "chain, one row": (chain, *usual),
            "chain, midpoint": (ev.Chain(chain.design, chain.root, midpoint=True), *usual),
            "chain, all outputs": (ev.Chain(ev.designs.Blocks(self.all_rows)), *usual),
            "tangent": (ev.Tangent(self.tangent, self.tangent), *usual),
            "tangent of past draws": (ev.AdaptiveTangent(self.tangent), *usual),
        }


class Outcome(NamedTuple):
    """What one method left: the linearised model and its epoch, seconds of one core, precisions kept and over time."""

    problem: ev.LinearisedModel
    epoch: int
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
        optimizer=settings.optimizer(len(data.y)),
        batch_size=settings.batch,
        key=jax.random.key(seed),
    )
    hyper = {"precision": ev.precisions(params, precision)}
    state = objective.train(hyper, objective.init(hyper), settings.epochs * (len(data.y) // settings.batch))
    found = hx.natural(hyper)
    problem = ev.linearise(
        settings.apply, state.params, (data.x, data.y), found, likelihood=ev.Categorical(), prior=prior(found)
    )
    jax.block_until_ready(state.params)
    return Outcome(problem, settings.epochs, time.process_time() - began, by_tensor(found), [])


def by_grid(settings: Settings, data: Images, seed: int) -> Outcome:
    """The precision of a grid with the best log-likelihood on a held-out tenth, then all data."""
    began = time.process_time()
    order = np.random.default_rng(seed).permutation(len(data.y))
    held, kept = np.split(order, [len(order) // 10])
    held, kept = Images(data.x[held], data.y[held]), Images(data.x[kept], data.y[kept])
    scores = {}
    for precision in settings.grid:
        found = by_map(settings, kept, precision, seed)
        scores[precision] = log_likelihood(log_probabilities(logits(found.problem, held.x)), held.y)
    best = max(settings.grid, key=lambda precision: scores[precision])
    return by_map(settings, data, best, seed)._replace(seconds=time.process_time() - began)


def by_evidence(settings: Settings, data: Images, name: str, seed: int) -> Outcome:
    """A precision for each tensor by the log evidence; the weights of the best smoothed bound."""
    began = time.process_time()
    estimator, every, steps = settings.estimators()[name]
    params = weights(settings, seed)
    history: list[dict[str, float]] = []
    fitted = fit_evidence(
        settings.apply,
        params,
        (data.x, data.y),
        {"precision": ev.precisions(params, settings.start)},
        prior=prior,
        estimator=estimator,
        standardise=False,  # the images are
        epochs=settings.epochs,
        burn_in=settings.burn_in,
        every=every,
        hyper_steps=steps,
        optimizer=settings.optimizer(len(data.y)),
        hyper_optimizer=settings.hyper_optimizer,
        batch_size=settings.batch,
        likelihood_batch=settings.likelihood,
        mode_steps=0,
        finish=False,  # the last stage follows, for all methods alike
        callbacks=(lambda step: history.append({"step": step.step, **by_tensor(hx.natural(step.hyper))}),),
        key=jax.random.key(seed),
    )
    if fitted.result == ev.RESULTS.diverged:
        raise RuntimeError(fitted.message)
    found, an_epoch = hx.natural(fitted.hyper), len(data.y) // settings.batch
    rows = [{"epoch": row["trained"] // an_epoch, **moved} for row, moved in zip(fitted.history, history, strict=True)][
        steps - 1 :: steps
    ]  # the last of each stage
    epoch = int(fitted.stats.trained) // an_epoch
    return Outcome(fitted.model, epoch, time.process_time() - began, by_tensor(found), rows)


def weights(settings: Settings, seed: int) -> Params:
    return settings.network.init(jax.random.key(seed))


def by_tensor(hyper: Any) -> dict[str, float]:
    pairs = jax.tree_util.tree_leaves_with_path(hyper["precision"])
    return {jax.tree_util.keystr(path, simple=True, separator=" "): float(x) for path, x in pairs}


@functools.partial(jax.jit, static_argnums=0)
def _logits(apply: Any, params: Params, x: jax.Array) -> jax.Array:
    return jax.vmap(lambda one: apply(params, None, one))(x)


def logits(problem: ev.LinearisedModel, x: np.ndarray) -> np.ndarray:
    """Of many images, 200 at a time."""
    parts = [_logits(problem.apply, problem.params, x[i : i + 200]) for i in range(0, len(x), 200)]
    return np.concatenate([np.asarray(part) for part in parts])


def log_probabilities(f: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(jnp.asarray(f)))


def log_likelihood(log_p: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(log_p[np.arange(len(y)), y]))


def last_layer(params: Params) -> dict[str, jax.Array]:
    return params["head"]


def averaged(posterior: ev.Posterior, x: np.ndarray) -> np.ndarray:
    """log E softmax(f) over f ~ N(f(x; w*), J Σ Jᵀ), by draws."""
    return np.asarray(_averaged(posterior.outputs(x, chunk=100)))


@jax.jit
def _averaged(outputs: Any) -> jax.Array:
    drawn = jax.nn.log_softmax(outputs.sample(jax.random.key(0), SAMPLES))
    return jax.nn.logsumexp(drawn, axis=0) - np.log(SAMPLES)


def judged(settings: Settings, outcome: Outcome, test: Images) -> dict[str, float]:
    """Accuracy, log-likelihood and calibration on the test images by three predictives; the common bound."""
    problem = outcome.problem
    predictives = {
        "": log_probabilities(logits(problem, test.x)),
        "last_layer_": averaged(ev.posterior(problem, where=last_layer), test.x),
        "linearised_": averaged(ev.posterior(problem, size=settings.linearised, key=jax.random.key(0)), test.x),
    }
    found = {}
    for name, log_p in predictives.items():
        found[f"{name}accuracy"] = 100 * float(np.mean(log_p.argmax(1) == test.y))
        found[f"{name}log_likelihood"] = log_likelihood(log_p, test.y)
        found[f"{name}ece"] = 100 * float(ev.calibration_error(jnp.exp(jnp.asarray(log_p)), jnp.asarray(test.y)))
    train = log_probabilities(logits(problem, np.asarray(problem.inputs)))
    size, reference, draws = settings.common
    bounds = [
        float(
            ev.log_evidence(
                problem.apply,
                problem.params,
                (problem.inputs, problem.targets),
                problem.hyper,
                likelihood=problem.likelihood,
                prior=problem.prior,
                estimator=ev.Tangent(size, reference),
                key=jax.random.key(1000 + draw),
            ).value
        )
        for draw in range(draws)
    ]
    return {
        **found,
        "train_log_likelihood": log_likelihood(train, np.asarray(problem.targets)),
        "bound": float(np.mean(bounds)) / problem.size,
        "epoch": outcome.epoch,
        "seconds": outcome.seconds,
    }


def measure(settings: Settings, train: Images, test: Images, name: str, seed: int) -> dict[str, Any]:
    """One method at one seed: what `judged` says after a last stage, which takes the weights towards their mode.

    Beside it the precisions kept, those over the epochs, and what the weights predicted before that stage.
    """
    if name == MAP:
        outcome = by_map(settings, train, DEFAULT, seed)
    elif name == GRID:
        outcome = by_grid(settings, train, seed)
    else:
        outcome = by_evidence(settings, train, name, seed)
    before = log_probabilities(logits(outcome.problem, test.x))
    began = time.process_time()
    arrival = ev.to_mode(outcome.problem, steps=settings.to_mode // 10, tolerance=1e-3 * outcome.problem.size)
    spent = time.process_time() - began
    problem = eqx.tree_at(lambda model: model.params, outcome.problem, arrival.params)
    return {
        **judged(settings, outcome._replace(problem=problem), test),
        "accuracy_before": 100 * float(np.mean(before.argmax(1) == test.y)),
        "log_likelihood_before": log_likelihood(before, test.y),
        "decrement": float(arrival.decrement),
        "seconds_to_mode": spent,
        "precisions": outcome.precisions,
        "history": outcome.history,
    }
