"""The log evidence of a Laplace approximation, from the training data alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._hyper import as_floating
from .._keys import checked_key
from .._result import Result, explain
from .._stats import scalars
from ._certificate import RESULTS, EvidenceCertificate, EvidenceStats
from ._chain import LogDeterminant
from ._data import as_data, by_token
from ._designs import check_size, subset
from ._estimator import AbstractEstimator, check_part, or_default
from ._likelihoods import AbstractLikelihood, Gaussian, positive
from ._mode import Decrement, decrement
from ._problem import GaussianPrior, LinearisedModel, OneToken, output_shape, widened

NATS, NATS_A_DATUM = 0.1, 1e-3
"""The nats by which weights may lack of their mode: together, and for each datum."""
LARGEST_PRECISION, LEAST_NOISE = 1e8, 1e-4
"""Where a precision makes no more difference, and where noise is none beside the spread of the targets."""


_ITEMS: Any = RESULTS
"""For the type checker, to which inherited members are of the enumeration beneath."""


class LogEvidence(eqx.Module):
    """log q(D) = log_likelihood - ½ penalty - ½ log_determinant, and what is known of it, all in nats."""

    value: Float[Array, ""]
    """The estimate; in expectation at most log q(D) if the estimator is a bound."""
    other_side: Float[Array, ""] | None
    """An estimate in expectation at least log q(D), where the estimator has one."""
    log_likelihood: Float[Array, ""]
    """(1/T) Σ_n log p(y_n|f_n)."""
    penalty: Float[Array, ""]
    """(w - m)ᵀ P0 (w - m), over the weights that are random."""
    log_determinant: Float[Array, ""]
    """The estimate of log|I + K|."""
    decrement: Decrement
    """How far the weights are from their mode: about how many nats `value` lacks for that."""
    stats: EvidenceStats
    certificate: EvidenceCertificate
    result: Result
    """`successful`, `not_at_a_mode`, `rounding_too_large`, `noise_vanishing`, `precision_running_away`, `diverged`."""

    @property
    def message(self) -> str:
        """The text of `result` with its numbers; empty for a success."""
        return explain(self.result, scalars(self.stats))


def linearise(
    apply: Callable[[Any, Any, Any], Array],
    params: PyTree,
    data: Any,
    hyper: PyTree = None,
    *,
    likelihood: AbstractLikelihood,
    prior: GaussianPrior,
    temperature: Any = 1.0,
) -> LinearisedModel:
    """The model linearised at its weights: what estimators, `to_mode` and `posterior` work on, its parts checked.

    The arguments and errors are those of [`hyprax.evidence.log_evidence`][].
    """
    check_part("evidence: likelihood", likelihood, AbstractLikelihood, "Categorical()")
    check_part("evidence: prior", prior, GaussianPrior, "GaussianPrior(1.0)")
    inputs, targets, *rest = as_data(data)
    weights = rest[0] if rest else None
    temperature = positive(as_floating(temperature, "evidence: temperature"), "evidence: temperature")
    if temperature.ndim:
        raise ValueError(f"evidence: temperature must be one number; got shape {temperature.shape}.")
    params, hyper = widened((params, hyper))
    built = LinearisedModel(apply, likelihood, prior, params, hyper, inputs, targets, temperature, weights)
    built.validate_numbers()
    shape = output_shape(apply, params, hyper, built.example)
    if len(shape) == 2:
        targets, weights = by_token(targets, weights, shape, likelihood)
        apply = OneToken(apply)
        built = LinearisedModel(
            apply, likelihood, prior, params, hyper, inputs, targets, built.temperature, weights, shape[0]
        )
    built.validate(shape[-1])
    return built


def log_evidence(
    apply: Callable[[Any, Any, Any], Array],
    params: PyTree,
    data: Any,
    hyper: PyTree = None,
    *,
    likelihood: AbstractLikelihood,
    prior: GaussianPrior,
    temperature: Any = 1.0,
    estimator: AbstractEstimator | None = None,
    batch: int | None = None,
    key: Array | None = None,
) -> LogEvidence:
    """The log evidence of the Laplace approximation at the weights w, from the training data alone.

    log q(D) = (1/T) Σ_n log p(y_n|f_n) - ½ (w - m)ᵀ P0 (w - m) - ½ log|I + K|, K = (1/T) Lᵀ J P0⁻¹ Jᵀ L approximates
    log ∫ p(D|w)^(1/T) p(w) dw with the generalised Gauss-Newton matrix: f_n the outputs, J their Jacobian in w, L Lᵀ
    the curvature of the likelihood, N(m, P0⁻¹) the prior, T the temperature.

    **Arguments:**

    - `apply`: `apply(params, hyper, x)` to the outputs (C,) of one example, or (S, C) of a sequence of S tokens, each
        of which is then an example. Whatever is to have a derivative must come in through `hyper`, not by closure.
    - `params`: the weights w, a pytree of floating arrays, at a maximum of the posterior. Half-precision arrays are
        computed with in float32.
    - `data`: (inputs, targets), with a common leading axis of length N, or (inputs, targets, weights) with what each
        example counts; or batches of these, which are joined. Targets of sequences are (N, S, ...), and labels below 0
        are padding.
    - `hyper`: a pytree of arrays handed to `apply`, in natural units.
    - `likelihood`: [`hyprax.evidence.Categorical`][], [`hyprax.evidence.Gaussian`][],
        [`hyprax.evidence.HeteroscedasticGaussian`][], [`hyprax.evidence.Bernoulli`][] or [`hyprax.evidence.Poisson`][].
    - `prior`: a [`hyprax.evidence.GaussianPrior`][].
    - `temperature`: T.
    - `estimator`: of log|I + K|; default [`hyprax.evidence.FullData`][] where the matrix of the smaller side is cheap,
        else [`hyprax.evidence.Chain`][]: one row of each of min(N, 256) data.
    - `batch`: estimate the sum over n by so many data drawn uniformly, unbiased; default all.
    - `key`: a JAX random key, needed where something is drawn.

    **Returns:** a [`hyprax.evidence.LogEvidence`][]. `jax.grad` of its `value`, in the prior precisions, the noise, T
    and `hyper`, is that at fixed weights, of the bound at what was chosen for this draw: the rows with their weights,
    the eigenbases of [`hyprax.evidence.structures.EKFAC`][], the guesses of [`hyprax.evidence.Tangent`][] are held
    fixed in it. With `FullData()` and `FullData(KFAC())` nothing is chosen, and it is the derivative of the value
    itself.

    **Raises:** `ValueError` for data, labels, precisions or shapes that do not fit, NaN, or a sample larger than the
    data.

    Source: Immer et al. 2023 (arXiv 2306.03968); the chain and tangent bounds are this library's.
    """
    built = linearise(apply, params, data, hyper, likelihood=likelihood, prior=prior, temperature=temperature)
    if batch is not None:
        check_size("log_evidence: batch", batch, built.size, "data")
    chosen: AbstractEstimator = or_default(
        "log_evidence", estimator, built.count, built.size, built.outputs, AbstractEstimator
    )
    if key is None and not chosen.draws and batch is None:
        return evaluate(built, chosen, jax.random.key(0), batch)
    return evaluate(built, chosen, checked_key("log_evidence", key), batch)


def tempered_fit(built: LinearisedModel, batch: int | None, key: Array) -> Float[Array, ""]:
    """(1/T) Σ_n log p(y_n|f_n), from `batch` data drawn uniformly (unbiased) or from all."""
    if batch is None:
        fit = built.log_likelihood()
    else:
        fit = built.size / batch * built.log_likelihood(subset(batch, built.size, key))
    return fit / built.temperature.astype(fit.dtype)


@eqx.filter_jit
def evaluate(built: LinearisedModel, estimator: AbstractEstimator, key: Array, batch: int | None) -> LogEvidence:
    """The log evidence of a model that is known to be sound."""
    draw_key, batch_key = jax.random.split(key)
    sides = estimator(built, draw_key)
    fit = tempered_fit(built, batch, batch_key)
    random = estimator.random(built)
    penalty = random.prior.penalty(random.params).astype(fit.dtype)
    value = fit - 0.5 * penalty - 0.5 * sides.upper
    other = None if sides.lower is None else fit - 0.5 * penalty - 0.5 * sides.lower
    certificate = EvidenceCertificate.of_draw(estimator.kind, estimator.draws, sides)
    left = decrement(random, jax.random.fold_in(key, 1))
    stats = measured(random, sides, left.value, certificate.slack / built.size, jnp.zeros((), jnp.int32))
    result = judged(stats, built.size, jnp.isfinite(value))
    known = jax.lax.stop_gradient((left, stats, certificate, result))
    return LogEvidence(value, other, fit, penalty, sides.upper, *known)


def measured(
    random: LinearisedModel, sides: LogDeterminant, left: Array, slack: Array, trained: Array, chosen: Any = None
) -> EvidenceStats:
    """The statistics of an evaluation, through which no derivative flows."""
    dtype = sides.upper.dtype
    precisions = [p.astype(dtype) for p in jax.tree.leaves(random.prior.precision)]
    numbers = (
        sides.upper,
        left.astype(dtype),
        slack,
        jnp.asarray(sides.rounding, dtype),
        noise_share(random),
        jnp.max(jnp.stack([jnp.max(p) for p in precisions])),
        jnp.min(jnp.stack([jnp.min(p) for p in precisions])),
    )
    return EvidenceStats(*jax.lax.stop_gradient(numbers), trained, chosen)


def judged(stats: EvidenceStats, size: int, finite: Array, training: Any = False) -> Result:
    """What there is to say of an evaluation: the gravest of what is not as it should be.

    Weights that are known to be in training are not at their mode, and that is no news.
    """
    allowed = NATS + NATS_A_DATUM * size
    away = (stats.largest_precision > LARGEST_PRECISION) | (stats.smallest_precision < 1 / LARGEST_PRECISION)
    arrived = jnp.asarray(training) | (stats.decrement <= allowed)
    result: Any = RESULTS.where(arrived, _ITEMS.successful, _ITEMS.not_at_a_mode)
    result = RESULTS.where(away, _ITEMS.precision_running_away, result)
    result = RESULTS.where(stats.noise_share < LEAST_NOISE, _ITEMS.noise_vanishing, result)
    result = RESULTS.where(stats.rounding <= 10 * allowed, result, _ITEMS.rounding_too_large)
    return RESULTS.where(finite, result, _ITEMS.diverged)


def noise_share(built: LinearisedModel) -> Float[Array, ""]:
    """σ over the spread of the targets, for Gaussian noise; infinite for other likelihoods."""
    if not isinstance(built.likelihood, Gaussian):
        return jnp.asarray(jnp.inf, built.dtype)
    spread = jnp.std(built.targets.astype(built.dtype), axis=0)
    return jnp.min(built.likelihood.scale.astype(built.dtype) / jnp.where(spread > 0, spread, 1))
