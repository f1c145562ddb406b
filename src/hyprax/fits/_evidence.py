"""Weights and hyperparameters from the training data in one call: the evidence, its schedule and a search."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .. import _html as page
from .._batches import Minibatches
from .._hyper import AbstractConstrained, Positive, natural
from .._noise import AbstractNoise
from .._objective import described
from .._result import Result, explain, result_name, succeeded
from .._stats import scalars
from ..evidence import (
    RESULTS,
    AbstractEstimator,
    AbstractLikelihood,
    Categorical,
    EvidenceCertificate,
    EvidenceObjective,
    EvidenceStats,
    Gaussian,
    GaussianPrior,
    HeteroscedasticGaussian,
    LinearisedModel,
    Posterior,
    Schedule,
    posterior,
    precisions,
)
from ..evidence._data import as_data
from ..evidence._estimator import AbstractAdaptive
from ..evidence._standardise import standardised
from ..search import AbstractRecord, Callback, Optax, Step, Stopping, TuneResult, TuningWarning, tune
from ._rates import default_hyper_optimizer, default_optimizer

LEAST_STEPS, LEAST_EPOCHS = 2000, 100
"""Of the weights, where nothing is said."""
SETTLED, MOVING, MOVING_A_DATUM = 1e-4, 0.1, 1e-3
"""Nats a unit of log hyperparameter: below the first they have arrived; above the others they were still moving."""
FAR = 10
"""As many times more of these others promise a better value soon; where none comes, the mode has ended."""
PATIENCE = 8
"""Steps at the mode without a better value, after which there is none to expect."""


@dataclasses.dataclass(frozen=True)
class EvidenceFit:
    """What [`hyprax.fits.fit_evidence`][] found.

    - `params`, `hyper`: the weights, at their mode, and the hyperparameters (constrained leaves) kept. The weights are
        those of `apply` on standardised inputs and targets; `model.apply(params, hx.natural(hyper), x)` is the model of
        the data themselves.
    - `log_evidence`, `standard_error`: of log q(D) in nats, in the units of the targets, from draws that the choice of
        what to keep did not see; the error is 0 where nothing is drawn.
    - `certificate`, `noise`, `stats`: of that value a datum.
    - `model`: the linearised model at what was kept: what [`hyprax.evidence.posterior`][] takes.
    - `result`: `successful`, or what is not as it should be; `message` says it with the numbers and a way out.
    - `tuned`: the run of [`hyprax.tune`][] beneath.
    """

    params: PyTree = dataclasses.field(repr=False)
    hyper: PyTree
    log_evidence: float
    standard_error: float
    certificate: EvidenceCertificate
    noise: AbstractNoise
    stats: EvidenceStats = dataclasses.field(repr=False)
    model: LinearisedModel = dataclasses.field(repr=False)
    result: Result
    message: str
    tuned: TuneResult = dataclasses.field(repr=False)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row (a dictionary) for each evaluation."""
        return self.tuned.history

    def posterior(self, **options: Any) -> Posterior:
        """The Laplace posterior of the weights; the options are those of [`hyprax.evidence.posterior`][]."""
        return posterior(self.model, **options)

    def predict(self, inputs: PyTree, **options: Any) -> Any:
        """E[y | x, D] of new examples, in the units of the data: that of [`hyprax.evidence.Posterior`][]."""
        return self.posterior().predict(inputs, **options)

    def _repr_html_(self) -> str:
        facts = {"log evidence": f"{self.log_evidence:.6g}"}
        if self.standard_error:
            facts["standard error"] = f"{self.standard_error:.3g}"
        return page.card(
            "Fit by the evidence",
            page.badge(result_name(self.result)) + page.badge(self.certificate.kind),
            page.table(list(facts.items())),
            page.curve(self.tuned.column("value").tolist(), "value of the run"),
            page.paragraphs(self.message),
            page.table(page.of_tree(natural(self.hyper)), ("hyperparameters", "shape", "natural units")),
            page.paragraphs(f"Certificate. {self.certificate.meaning()}", f"Noise. {self.noise.meaning()}"),
        )


def fit_evidence(
    apply: Callable[[Any, Any, Any], Array],
    params: PyTree,
    data: Any,
    hyper: PyTree = None,
    *,
    likelihood: AbstractLikelihood | Callable[[Any], AbstractLikelihood] = Categorical(),
    prior: Callable[[Any], GaussianPrior] | None = None,
    temperature: float | Callable[[Any], Any] = 1.0,
    estimator: AbstractEstimator | AbstractAdaptive | None = None,
    standardise: bool | None = None,
    epochs: int | None = None,
    burn_in: int | None = None,
    every: int | None = None,
    hyper_steps: int = 10,
    mode_steps: int = 50,
    finish: bool = True,
    optimizer: optax.GradientTransformation | None = None,
    hyper_optimizer: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
    likelihood_batch: int | None = None,
    run: AbstractRecord | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    key: Array,
) -> EvidenceFit:
    """Weights and hyperparameters by the evidence of the training data: an objective, its schedule and a search.

    Epochs of minibatch steps of the weights at the hyperparameters of the moment; after `burn_in`, every few epochs,
    `hyper_steps` steps λ <- λ + Adam(∇ log q(D; λ, w)), each on its own draw; then up to `mode_steps` steps of λ with
    the weights taken to their mode at each, until λ stands still. It is [`hyprax.tune`][] of an
    [`hyprax.EvidenceObjective`][], so it is recorded, resumed to the same bits and reported like any other run.

    **Arguments:**

    - `apply`: `apply(params, hyper, x)` to the outputs (C,) of one example, hyper in natural units.
    - `params`: the first weights; those of a trained network with `epochs=0`.
    - `data`: (inputs, targets), with a common leading axis of length N; (inputs, targets, weights) with what each
        example counts; or batches of these such as a loader gives, which are joined.
    - `hyper`: where the hyperparameters start, a pytree of arrays and constrained leaves.
    - `likelihood`: a likelihood, or a function of hyper to one: `lambda h: Gaussian(h["noise"])`.
    - `prior`: a function of hyper to a [`hyprax.evidence.GaussianPrior`][]. By default one precision for each tensor,
        `hyper["precision"]`, which is added ([`hyprax.evidence.precisions`][]) where `hyper` has none.
    - `temperature`: T, a number or a function of hyper.
    - `estimator`: of log|I + K|; default as for [`hyprax.evidence.log_evidence`][]: exact where that is cheap.
    - `standardise`: give `apply` the columns of a matrix of inputs with mean 0 and spread 1, and turn its outputs into
        the units of Gaussian targets: priors and rates then mean the same whatever the units. The start of an entry
        "noise" of `hyper` counts spreads of the targets; what is found is in the units
        of the targets. By default done where weights are trained, and not for a network that was trained on the data
        as they are (`epochs=0`).
    - `epochs`, `burn_in`, `every`, `hyper_steps`: of online training; 0 <= burn_in < epochs. By default as many epochs
        as make 2,000 steps, at least 100, a tenth of them before the first stage and a twentieth between stages. With 0
        epochs nothing is trained: the weights go to their mode, and the hyperparameters follow at it.
    - `mode_steps`: the most steps of the hyperparameters at the mode; 0 for none.
    - `finish`: whether the weights go to their mode at the end where `mode_steps` is 0. For networks whose curvature of
        all data is too dear: the result then says how far they are from it.
    - `optimizer`: of the weights; default Adam, its rate falling as a cosine from 1e-2 to 1e-5 over the epochs.
    - `hyper_optimizer`: of the unconstrained coordinates of λ; default Adam from 0.1 to 0.01 over the online steps,
        then secant steps (BFGS) where nothing is drawn, Adam to 1e-3 where it is.
    - `batch_size`: default min(N, 128).
    - `likelihood_batch`: data for Σ log p in a step of the hyperparameters; default all.
    - `run`: a record on disk ([`hyprax.Run`][]).
    - `callbacks`: called with a [`hyprax.search.Step`][] after every step; a true answer stops the run.
    - `progress`: a bar on standard error, after two seconds and on a terminal only.
    - `key`: a JAX random key: batches and draws, so the whole run, depend on nothing else.

    **Returns:** an [`hyprax.fits.EvidenceFit`][] of the best stationary evaluation: the weights and hyperparameters
    of the best value, smoothed where draws are noisy, among those whose weights were at their mode; the last ones
    where none was.

    **Raises:** `ValueError` for data, labels, NaN, constant targets or settings that do not fit.

    Source: Immer et al. 2021 (arXiv 2104.04975), Immer et al. 2023 (arXiv 2306.03968).
    """
    for name, number, least in (("every", every, 1), ("hyper_steps", hyper_steps, 1), ("mode_steps", mode_steps, 0)):
        if number is not None and number < least:
            raise ValueError(f"fit_evidence: {name} must be an integer >= {least}; got {number}.")
    if epochs == 0 and mode_steps == 0:
        raise ValueError("fit_evidence: epochs or mode_steps must be an integer >= 1; got 0 for both.")
    params = jax.tree.map(jnp.asarray, params)
    hyper = _with_precision(hyper, params, prior)
    if batch_size is None and isinstance(data, Minibatches):
        batch_size = data.batch_size
    data = as_data(data)
    if epochs != 0 if standardise is None else standardise:
        apply, hyper = _standardised(apply, data, hyper, likelihood)
    size = len(jax.tree.leaves(data)[-1])
    batch_size = min(size, 128) if batch_size is None else batch_size
    steps = max(size // max(batch_size, 1), 1)
    epochs = max(LEAST_EPOCHS, -(-LEAST_STEPS // steps)) if epochs is None else epochs
    burn_in = epochs // 10 if burn_in is None else burn_in
    every = max(epochs // 20, 1) if every is None else every
    if epochs != 0 and not 0 <= burn_in < epochs:
        raise ValueError(
            f"fit_evidence: burn_in must be >= 0 and below epochs; got burn_in {burn_in}, epochs {epochs}."
        )
    stages = len(range(burn_in + 1, epochs + 1, every)) if epochs else 0
    online = stages * hyper_steps
    schedule = Schedule(
        burn_in=(burn_in + 1) * steps,
        every=every * steps,
        hyper_steps=hyper_steps,
        mode_after=online if mode_steps else None,
        finish=finish,
        newton_steps=300,
    )
    objective = EvidenceObjective(
        apply,
        params,
        data,
        likelihood=likelihood,
        prior=prior,
        temperature=temperature,
        estimator=estimator,
        schedule=schedule,
        optimizer=default_optimizer(max(epochs * steps, 1)) if optimizer is None else optimizer,
        batch_size=batch_size,
        likelihood_batch=likelihood_batch,
        key=key,
    )
    draws, size = objective.draws, objective.examples(hyper)
    if hyper_optimizer is None:
        coordinates = sum(np.size(x) for x in jax.tree.leaves(hyper))
        hyper_optimizer = default_hyper_optimizer(online, mode_steps, draws, coordinates)

    def settled(step: Step) -> bool:
        if draws or mode_steps == 0 or step.step < online:
            return False
        stats = step.hypergradient.stats
        assert isinstance(stats, EvidenceStats)
        kept = -1 if stats.kept is None else int(stats.kept)
        waits = kept >= online and step.step - kept >= PATIENCE
        nats = size * step.gradient_norm
        return waits or _stuck(objective, size, step.step, stats.gained, nats) or nats <= SETTLED

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)  # the result says it, once and for all
        tuned = tune(
            objective,
            hyper,
            search=Optax(hyper_optimizer),
            steps=online + mode_steps,
            stop=Stopping(gradient=0, patience=None),
            run=run,
            callbacks=(*callbacks, settled),
            progress=progress,
        )
    return _judged(objective, tuned, size)


def _judged(objective: EvidenceObjective, tuned: TuneResult, size: int) -> EvidenceFit:
    state = tuned.state.objective_state
    hyper, moving = tuned.best, _gradient_nats(objective, tuned, size)
    kept = state.kept
    if math.isfinite(float(kept.value)):
        hyper, state = kept.hyper, eqx.tree_at(lambda s: s.params, state, kept.params)
        value, after = objective.final(hyper, state)
    elif tuned.final is not None:  # of these hyperparameters and weights already
        value, after = tuned.final, state
    else:
        value, after = objective.final(hyper, state)
    result, numbers = value.result, scalars(value.stats)
    if bool(succeeded(result)):
        numbers["gradient_nats"] = jnp.asarray(moving)
        last = tuned.history[-1]["step"] if tuned.history else 0
        if math.isfinite(float(kept.value)) and _stuck(objective, size, last, kept.gained, moving):
            result = RESULTS.mode_folds
        elif moving > _moving(size):
            result = RESULTS.hyperparameters_still_moving
    if result_name(tuned.result) == "diverged":
        result = RESULTS.diverged
    message = "" if bool(succeeded(result)) else explain(result, numbers)
    error = value.noise.norm if objective.draws else jnp.zeros(())
    certificate, stats = value.certificate, value.stats
    assert isinstance(certificate, EvidenceCertificate)
    assert isinstance(stats, EvidenceStats)
    return EvidenceFit(
        params=after.params,
        hyper=hyper,
        log_evidence=-size * float(value.value),
        standard_error=size * float(error),
        certificate=certificate,
        noise=value.noise,
        stats=stats,
        model=objective.model(hyper, after),
        result=result,
        message=message,
        tuned=tuned,
    )


def _stuck(objective: EvidenceObjective, size: int, step: int, gained: Array | None, nats: float) -> bool:
    """Whether steps at the mode have brought nothing for long, although a gradient of so many nats promises much."""
    since, after = -1 if gained is None else int(gained), objective.schedule.mode_after
    if objective.draws or after is None or since < after:
        return False
    return step - since >= PATIENCE and nats > FAR * _moving(size)


def _moving(size: int) -> float:
    """The nats a unit of log hyperparameter from which the hyperparameters are still moving."""
    return MOVING + MOVING_A_DATUM * size


def _gradient_nats(objective: EvidenceObjective, tuned: TuneResult, size: int) -> float:
    """How log q(D) still changes in the unconstrained coordinates.

    The length of its derivative at what is kept; where draws are noisy, its largest entry at the end beyond three
    standard errors.
    """
    state = tuned.state.objective_state
    if not objective.draws:
        kept = int(state.kept.evaluation) if math.isfinite(float(state.kept.value)) else -1
        return size * float(tuned.history[kept]["gradient_norm"]) if tuned.history else 0.0
    moments = state.moments
    total = float(moments.total)
    if total == 0:
        return 0.0
    mean = np.concatenate([np.ravel(m) for m in jax.tree.leaves(moments.gradient)]) / total
    noise = moments.noise()
    errors = np.concatenate([np.ravel(m) for m in jax.tree.leaves(noise.standard_errors)])
    errors = errors / np.sqrt(1 + float(noise.degrees_of_freedom))
    return size * float(np.max(np.maximum(np.abs(mean) - 3 * errors, 0.0), initial=0.0))


def _with_precision(hyper: PyTree, params: PyTree, prior: Any) -> PyTree:
    """`hyper` with a precision for each tensor, unless it has its own or there is a prior."""
    if prior is not None:
        return hyper
    hyper = {} if hyper is None else hyper
    if not isinstance(hyper, Mapping):
        raise ValueError(
            "fit_evidence: hyper must be a mapping where there is no prior (its entry 'precision' is the prior "
            f"precision); got {described(hyper)}."
        )
    return {"precision": precisions(params), **hyper}


def _standardised(apply: Any, data: Any, hyper: PyTree, likelihood: Any) -> tuple[Any, PyTree]:
    """The model of standardised inputs and targets, and the start of the noise in the units of the targets."""
    inputs, targets = data[:2]
    made = likelihood if isinstance(likelihood, AbstractLikelihood) else likelihood(natural(hyper))
    noisy = isinstance(made, HeteroscedasticGaussian)
    gaussian = isinstance(made, Gaussian) or noisy
    numbers = np.asarray(targets)
    known = gaussian and numbers.ndim == 2 and numbers.dtype.kind in "fiu" and bool(np.all(np.isfinite(numbers)))
    if not all(np.asarray(x).dtype.kind in "fiub" for x in jax.tree.leaves(inputs)):
        return apply, hyper
    apply, spread = standardised(apply, inputs, targets if known else None, noisy)
    if known and isinstance(hyper, Mapping) and "noise" in hyper:
        hyper = {**hyper, "noise": _times(hyper["noise"], spread)}
    return apply, hyper


def _times(leaf: Any, factor: float) -> Any:
    """A start times a number; one with bounds is in the units of these, and stays."""
    if isinstance(leaf, Positive):
        return Positive(leaf.value * factor)
    return leaf if isinstance(leaf, AbstractConstrained) else jnp.asarray(leaf) * factor
