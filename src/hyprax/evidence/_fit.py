"""Weights and hyperparameters from one training run: MAP steps, and now and then steps of the log evidence."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .._hyper import Positive, natural, validated
from .._interrupt import deferred_interrupt
from .._progress import ProgressBar
from .._result import RESULTS
from .._trees import tree_all_finite
from ._certificate import EvidenceCertificate
from ._estimator import AbstractAdaptive, AbstractEstimator, EstimatorKind
from ._likelihoods import AbstractLikelihood, Categorical
from ._log_evidence import pair
from ._objective import EvidenceObjective, EvidenceState
from ._priors import GaussianPrior
from ._problem import Problem


def precisions(params: PyTree, value: Any = 1.0) -> PyTree:
    """One learned prior precision for each tensor of weights: `params` with [`hyprax.Positive`][] leaves.

    **Arguments:**

    - `params`: the weights.
    - `value`: where every precision starts.
    """
    return jax.tree.map(lambda w: Positive(jnp.asarray(value, w.dtype)), params)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What [`hyprax.evidence.fit`][] found.

    - `params`, `hyper`: the weights and hyperparameters (constrained leaves) kept; `epoch` is theirs.
    - `log_evidence`, `standard_error`: of log q(D) in nats, from draws made afterwards, which the choice of what to
        keep did not see: an unbiased estimate of a lower bound where `certificate.side` is "lower".
    - `certificate`: an [`hyprax.evidence.EvidenceCertificate`][] of that estimate, in nats a datum as everything in
        `history`: half the distance of the two sides, and the standard deviation of one gradient.
    - `history`: one row (a dictionary) for each time that the hyperparameters moved: `epoch`, `value` (-(1/N) log q,
        the mean over its draws), `smoothed`, `slack`, `gradient_deviation`, `seconds` since the start, and `hyper` in
        natural units.
    - `problem`: the linearised model at what was kept: what [`hyprax.evidence.posterior`][] takes.
    - `result`: `successful`, `diverged` (`message` names what was not finite first, and when), or `interrupted`.
    """

    params: PyTree = dataclasses.field(repr=False)
    hyper: PyTree
    epoch: int
    log_evidence: float
    standard_error: float
    certificate: EvidenceCertificate
    history: list[dict[str, Any]] = dataclasses.field(repr=False)
    problem: Problem = dataclasses.field(repr=False)
    result: RESULTS
    message: str


class _NotFinite(Exception):
    """Training ended here; the text says what was not finite."""


def fit(
    apply: Callable[[Any, Any, Any], Array],
    params: PyTree,
    data: tuple[PyTree, Any],
    hyper: PyTree = None,
    *,
    likelihood: AbstractLikelihood | Callable[[Any], AbstractLikelihood] = Categorical(),
    prior: Callable[[Any], GaussianPrior] | None = None,
    temperature: float | Callable[[Any], Any] = 1.0,
    estimator: AbstractEstimator | AbstractAdaptive | None = None,
    epochs: int = 100,
    burn_in: int = 10,
    every: int = 5,
    hyper_steps: int = 10,
    optimiser: optax.GradientTransformation | None = None,
    hyper_optimiser: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
    likelihood_batch: int | None = None,
    smoothing: float = 0.5,
    draws: int = 10,
    progress: bool = True,
    key: Array,
) -> Fitted:
    """w <- MAP steps at λ; after `burn_in`, each `every` epochs, `hyper_steps` times λ <- λ + Adam(∇ log q(D; λ, w)).

    The weights are trained on minibatches of -mean log p(y|f) + ½ T (w - m)ᵀ P0 (w - m)/N at the hyperparameters of the
    moment. Each hyper-step draws its own sample of rows for log|I + K|. What is kept are the weights and
    hyperparameters with the best bound so far, smoothed over the times that λ moved.

    **Arguments:**

    - `apply`: `apply(params, hyper, x)` to the outputs (C,) of one example, hyper in natural units.
    - `params`: the first weights.
    - `data`: (inputs, targets), with a common leading axis of length N.
    - `hyper`: where the hyperparameters start, a pytree of arrays and constrained leaves.
    - `likelihood`: a likelihood, or a function of hyper to one: `lambda h: Gaussian(h["noise"])`.
    - `prior`: a function of hyper to a [`hyprax.evidence.GaussianPrior`][]. By default one precision for each tensor,
        `hyper["precision"]`, which is added ([`hyprax.evidence.precisions`][]) where `hyper` has none.
    - `temperature`: T, a number or a function of hyper.
    - `estimator`: of log|I + K|, an adaptive one too; default [`hyprax.evidence.Chain`][] with one row of each of
        min(N, 256) data.
    - `epochs`, `burn_in`, `every`, `hyper_steps`: the schedule, burn_in < epochs.
    - `optimiser`: of the weights; default Adam, its rate falling as a cosine from 1e-2 to 1e-5 over the run. The
        evidence is that of weights at their optimum: give it, and `epochs`, so that the training loss ends flat.
    - `hyper_optimiser`: of the unconstrained coordinates of λ; default Adam, from 0.1 to 0.01 over all hyper-steps.
    - `batch_size`: default min(N, 128).
    - `likelihood_batch`: data for Σ log p in a hyper-step; default all, one forward pass of them at every step. A part
        makes steps cheaper, and the bound by which the best is chosen noisier.
    - `smoothing`: the weight of the past in the smoothed bound, in [0, 1).
    - `draws`: fresh ones for the final estimate, at least 2.
    - `progress`: a bar on standard error, after two seconds and on a terminal only.
    - `key`: a JAX random key: batches and draws, so the whole run, depend on nothing else.

    **Returns:** a [`hyprax.evidence.Fitted`][]. Each of the two kinds of steps is compiled once, and not again
    for data of the same shapes if functions and optimisers are the same objects.

    **Raises:** `ValueError` for data, labels, NaN or settings that do not fit. A number that is not finite later ends
    the run: the result is `diverged`, the message names it, and what was kept before stands. So it does after an
    interrupt (Ctrl-C), which acts when the epoch in progress is whole; a second one acts at once.

    Source: Immer et al. 2021 (arXiv 2104.04975), Immer et al. 2023 (arXiv 2306.03968).
    """
    for name, number, least in (("every", every, 1), ("hyper_steps", hyper_steps, 1), ("draws", draws, 2)):
        if number < least:
            raise ValueError(f"fit: given {name} = {number}, allowed are integers >= {least}.")
    if not 0 <= burn_in < epochs:
        raise ValueError(f"fit: given burn_in {burn_in}, epochs {epochs}, allowed are 0 <= burn_in < epochs.")
    if not 0 <= smoothing < 1:
        raise ValueError(f"fit: given smoothing {smoothing}, allowed are 0 <= smoothing < 1.")
    params = jax.tree.map(jnp.asarray, params)
    if prior is None:
        prior = _tensor_prior
        hyper = _with_precision(hyper, params)
    inputs, targets = pair(data)
    size = targets.shape[0] if targets.ndim else 0
    batch_size = min(size, 128) if batch_size is None else batch_size
    steps = max(size // max(batch_size, 1), 1)
    moves = range(burn_in + 1, epochs + 1, every)
    if optimiser is None:
        optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, epochs * steps, 1e-3))
    if hyper_optimiser is None:
        hyper_optimiser = optax.adam(optax.cosine_decay_schedule(0.1, len(moves) * hyper_steps, 0.1))
    objective = EvidenceObjective(
        apply,
        params,
        (inputs, targets),
        prior=prior,
        likelihood=likelihood,
        temperature=temperature,
        estimator=estimator,
        optimiser=optimiser,
        batch_size=batch_size,
        likelihood_batch=likelihood_batch,
        key=key,
    )
    hyper = validated(hyper)
    state = objective.init(hyper)
    hyper_state = hyper_optimiser.init(hyper)
    kept, best, past, weight = (0, hyper, state), math.inf, 0.0, 0.0
    history: list[dict[str, Any]] = []
    result, message = RESULTS.successful, ""
    bar = ProgressBar(epochs) if progress else None
    text, began = "", time.perf_counter()
    try:
        with deferred_interrupt() as interrupted:
            for epoch in range(1, epochs + 1):
                trained = objective.train(hyper, state, steps)
                _named_if_not_finite(trained.params, "weights", epoch)
                state = trained
                if not history:
                    kept = (epoch, hyper, state)
                if epoch in moves:
                    evaluated, row, values = hyper, {}, []
                    here = objective.at_weights(hyper, state)
                    for _ in range(hyper_steps):
                        evaluated = hyper
                        value, row, state, hyper, hyper_state = _hyper_step(
                            here, hyper_optimiser, hyper, hyper_state, state, epoch
                        )
                        values.append(value)
                    value = float(np.mean(values))
                    past, weight = smoothing * past + (1 - smoothing) * value, smoothing * weight + 1 - smoothing
                    smoothed = past / weight
                    seconds, plain = time.perf_counter() - began, jax.device_get(natural(evaluated))
                    row = {"epoch": epoch, "value": value, "smoothed": smoothed, **row}
                    history.append({**row, "seconds": seconds, "hyper": plain})
                    if smoothed < best:
                        kept, best = (epoch, evaluated, state), smoothed
                    text = f"log q/N={-smoothed:.5g}  slack {history[-1]['slack']:.2g}"
                if bar is not None:
                    bar.show(epoch, text)
                if _asks_to_stop(interrupted):
                    result, message = RESULTS.interrupted, RESULTS[RESULTS.interrupted]
                    break
    except _NotFinite as error:
        result, message = RESULTS.diverged, f"{RESULTS[RESULTS.diverged]} [{error}]"
    finally:
        if bar is not None:
            bar.close()
    epoch, hyper, chosen = kept
    return _judged(objective, epoch, hyper, chosen, state, draws, history, result, message)


def _judged(
    objective: EvidenceObjective,
    epoch: int,
    hyper: PyTree,
    chosen: EvidenceState,
    last: EvidenceState,
    draws: int,
    history: list[dict[str, Any]],
    result: RESULTS,
    message: str,
) -> Fitted:
    """The estimate from fresh draws: their keys are those that follow the last of the run."""
    clean = jax.tree.map(jnp.zeros_like, last.moments)
    state = eqx.tree_at(lambda s: (s.params, s.moments), last, (chosen.params, clean))
    objective, values = objective.at_weights(hyper, state), []
    answer, state = objective.value_and_grad(hyper, state)
    values.append(float(answer.value))
    for _ in range(draws - 1):
        answer, state = objective.value_and_grad(hyper, state)
        values.append(float(answer.value))
    size = objective.batches.size
    kind: EstimatorKind = objective.estimator.kind
    slack = answer.certificate.slack
    certificate = EvidenceCertificate.of_value(kind, bool(jnp.isfinite(slack)), slack)
    return Fitted(
        params=chosen.params,
        hyper=hyper,
        epoch=epoch,
        log_evidence=-size * float(np.mean(values)),
        standard_error=size * float(np.std(values, ddof=1)) / math.sqrt(draws),
        certificate=certificate,
        history=history,
        problem=objective.problem(hyper, chosen),
        result=result,
        message=message,
    )


def _asks_to_stop(interrupted: Callable[[], None]) -> bool:
    try:
        interrupted()
    except KeyboardInterrupt:
        return True
    return False


def _tensor_prior(hyper: Any) -> GaussianPrior:
    return GaussianPrior(hyper["precision"])


def _with_precision(hyper: PyTree, params: PyTree) -> PyTree:
    """`hyper` with a precision for each tensor, unless it has its own."""
    if hyper is None:
        hyper = {}
    if not isinstance(hyper, Mapping):
        raise ValueError(
            f"fit: given hyper of type {type(hyper).__name__} and no prior, allowed is a mapping (its entry "
            "'precision' is the prior precision), or a prior."
        )
    return {"precision": precisions(params), **hyper}


def _hyper_step(
    objective: EvidenceObjective,
    optimiser: optax.GradientTransformation,
    hyper: PyTree,
    hyper_state: PyTree,
    state: EvidenceState,
    epoch: int,
) -> tuple[float, dict[str, float], EvidenceState, PyTree, PyTree]:
    """The value and what is known of it at `hyper`, and the states and hyperparameters after one step."""
    answer, state = objective.value_and_grad(hyper, state)
    _named_if_not_finite(answer.value, "log evidence", epoch)
    _named_if_not_finite(answer.grad, "gradient of hyper", epoch)
    row = {"slack": float(answer.certificate.slack), "gradient_deviation": float(answer.noise.norm)}
    hyper, hyper_state = _along(optimiser, answer.grad, hyper_state, hyper)
    return float(answer.value), row, state, hyper, hyper_state


@eqx.filter_jit
def _along(
    optimiser: optax.GradientTransformation, grad: PyTree, hyper_state: PyTree, hyper: PyTree
) -> tuple[PyTree, PyTree]:
    """One step of the optimiser."""
    with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes, whatever the user has set
        updates, hyper_state = optimiser.update(grad, hyper_state, hyper)
        return optax.apply_updates(hyper, updates), hyper_state


_all_finite = jax.jit(tree_all_finite)


def _named_if_not_finite(tree: PyTree, name: str, epoch: int) -> None:
    if bool(_all_finite(tree)):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not np.all(np.isfinite(leaf)):
            raise _NotFinite(f"first not finite: {name}{jax.tree_util.keystr(path)}, in epoch {epoch}")
