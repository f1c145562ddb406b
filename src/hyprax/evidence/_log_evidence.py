"""The log evidence of a Laplace approximation, from the training data alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._hyper import as_floating
from .._result import explain
from ._certificate import EvidenceCertificate
from ._designs import check_size, subset
from ._estimator import AbstractEstimator, check_part, or_default
from ._likelihoods import AbstractLikelihood, Gaussian, positive
from ._mode import Decrement, decrement
from ._priors import GaussianPrior
from ._problem import Problem, widened
from ._results import RESULTS


NATS, NATS_A_DATUM = 0.1, 1e-3
"""The nats by which weights may lack of their mode: together, and for each datum."""
LARGEST_PRECISION, LEAST_NOISE = 1e8, 1e-4
"""Where a precision makes no more difference, and where noise is none beside the spread of the targets."""


class LogEvidence(eqx.Module):
    """log q(D) = log_likelihood - ½ penalty - ½ log_determinant, and what is known of it."""

    value: Float[Array, ""]
    """The estimate; in expectation at most log q(D) if the estimator is a bound."""
    other_side: Float[Array, ""] | None
    """An estimate in expectation at least log q(D), where the estimator has one."""
    log_likelihood: Float[Array, ""]
    """(1/T) Σ_n log p(y_n|f_n)."""
    penalty: Float[Array, ""]
    """(w - m)ᵀ P0 (w - m)."""
    log_determinant: Float[Array, ""]
    """The estimate of log|I + K|."""
    decrement: Decrement
    """How far the weights are from their mode: about how many nats `value` lacks for that."""
    rounding: Float[Array, ""]
    """About how many nats rounding may have moved the log-determinant by."""
    certificate: EvidenceCertificate
    result: RESULTS
    """`successful`, `not_at_a_mode`, `rounding_too_large`, `noise_vanishing`, `precision_running_away`, `diverged`."""

    @property
    def message(self) -> str:
        """The text of `result` with its numbers; empty for a success."""
        numbers = {"decrement": self.decrement.value, "rounding": self.rounding}
        return explain(self.result, numbers)


def pair(data: Any) -> tuple[PyTree, Array]:
    """(inputs, targets) as arrays, half precision in single.

    **Raises:** `ValueError` for anything but a pair.
    """
    if not (isinstance(data, tuple) and len(data) == 2):
        raise ValueError(
            f"evidence: data: given a {type(data).__name__}, allowed is a pair, the tuple (inputs, targets)."
        )
    for name, part in zip(("inputs", "targets"), data, strict=True):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            where = f"evidence: {name}{jax.tree_util.keystr(path)}"
            if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind in "OSUMm":
                raise ValueError(f"{where}: given values of type {np.asarray(leaf).dtype}, allowed are numbers.")
            if np.ndim(leaf) == 0:
                raise ValueError(f"{where}: given a single number, allowed are arrays; lists are containers of them.")
    return widened(jax.tree.map(jnp.asarray, data))


def problem(
    apply: Callable[[Any, Any, Any], Array],
    likelihood: AbstractLikelihood,
    prior: GaussianPrior,
    params: PyTree,
    hyper: PyTree,
    data: tuple[PyTree, Any],
    temperature: Any = 1.0,
) -> Problem:
    """The linearised model that estimators work on, its parts checked against each other.

    The arguments and errors are those of [`hyprax.evidence.log_evidence`][].
    """
    check_part("evidence: likelihood", likelihood, AbstractLikelihood, "Categorical()")
    check_part("evidence: prior", prior, GaussianPrior, "GaussianPrior(1.0)")
    inputs, targets = pair(data)
    temperature = positive(as_floating(temperature, "evidence: temperature"), "evidence: temperature")
    if temperature.ndim:
        raise ValueError(f"evidence: temperature: given shape {temperature.shape}, allowed is one number.")
    params, hyper = widened((params, hyper))
    built = Problem(apply, likelihood, prior, params, hyper, inputs, targets, temperature)
    built.validate()
    return built


def log_evidence(
    apply: Callable[[Any, Any, Any], Array],
    likelihood: AbstractLikelihood,
    prior: GaussianPrior,
    params: PyTree,
    hyper: PyTree,
    data: tuple[PyTree, Any],
    estimator: AbstractEstimator | None = None,
    key: Array | None = None,
    *,
    temperature: Any = 1.0,
    batch: int | None = None,
) -> LogEvidence:
    """log q(D) = (1/T) Σ_n log p(y_n|f_n) - ½ (w - m)ᵀ P0 (w - m) - ½ log|I + K|, K = (1/T) Lᵀ J P0⁻¹ Jᵀ L.

    The Laplace approximation of log ∫ p(D|w)^(1/T) p(w) dw at the weights w, with the generalised Gauss-Newton matrix:
    f_n the outputs, J their Jacobian in w, L Lᵀ the curvature of the likelihood, N(m, P0⁻¹) the prior, T the
    temperature.

    **Arguments:**

    - `apply`: `apply(params, hyper, x)` to the outputs (C,) of one example. Whatever is to have a derivative must come
        in through `hyper`, not by closure.
    - `likelihood`: [`hyprax.evidence.Categorical`][], [`hyprax.evidence.Gaussian`][], [`hyprax.evidence.Bernoulli`][]
        or [`hyprax.evidence.Poisson`][].
    - `prior`: a [`hyprax.evidence.GaussianPrior`][].
    - `params`: the weights w, a pytree of floating arrays, at a maximum of the posterior.
    - `hyper`: a pytree of arrays handed to `apply`, in natural units.
    - `data`: (inputs, targets), with a common leading axis of length N.
    - `estimator`: of log|I + K|; default [`hyprax.evidence.FullData`][] where a matrix of the smaller side is cheap, else
        [`hyprax.evidence.Chain`][]: one row of each of min(N, 256) data.
    - `key`: a JAX random key for the draw; default `jax.random.key(0)`.
    - `temperature`: T.
    - `batch`: estimate the sum over n by so many data drawn uniformly, unbiased; default all.

    **Returns:** a [`hyprax.evidence.LogEvidence`][]. `jax.grad` of its `value`, in the prior precisions, the noise, T
    and `hyper`, is that of the bound at what was chosen for this draw: the rows with their weights, the eigenbases of
    [`hyprax.evidence.EKFAC`][], the guesses of [`hyprax.evidence.Tangent`][] are held fixed in it. With
    `FullData()` and `FullData(KFAC())` nothing is chosen, and it is the derivative of the value itself.

    **Raises:** `ValueError` for data, labels, precisions or shapes that do not fit, NaN, or a sample larger than the
    data.

    Source: Immer et al. 2023 (arXiv 2306.03968); the chain and tangent bounds are this library's.
    """
    built = problem(apply, likelihood, prior, params, hyper, data, temperature)
    if batch is not None:
        check_size("log_evidence: batch", batch, built.size, "data")
    chosen: AbstractEstimator = or_default(
        "log_evidence", estimator, built.count, built.size, built.outputs, AbstractEstimator
    )
    return evaluate(built, chosen, jax.random.key(0) if key is None else key, batch)


def tempered_fit(built: Problem, batch: int | None, key: Array) -> Float[Array, ""]:
    """(1/T) Σ_n log p(y_n|f_n), from `batch` data drawn uniformly (unbiased) or from all."""
    if batch is None:
        fit = built.log_likelihood()
    else:
        fit = built.size / batch * built.log_likelihood(subset(batch, built.size, key))
    return fit / built.temperature.astype(fit.dtype)


@eqx.filter_jit
def evaluate(built: Problem, estimator: AbstractEstimator, key: Array, batch: int | None) -> LogEvidence:
    """The log evidence of a problem that is known to be sound."""
    draw_key, batch_key = jax.random.split(key)
    sides = estimator(built, draw_key)
    fit = tempered_fit(built, batch, batch_key)
    random = estimator.random(built)
    penalty = random.prior.penalty(random.params).astype(fit.dtype)
    value = fit - 0.5 * penalty - 0.5 * sides.upper
    other = None if sides.lower is None else fit - 0.5 * penalty - 0.5 * sides.lower
    certificate = EvidenceCertificate.of_draw(estimator.kind, sides)
    left = decrement(random, jax.random.fold_in(key, 1))
    rounding = jnp.asarray(sides.rounding, value.dtype)
    result = judged(random, value, left.value, rounding, jnp.isfinite(value))
    known = jax.lax.stop_gradient((left, rounding, certificate, result))
    return LogEvidence(value, other, fit, penalty, sides.upper, *known)


def judged(built: Problem, value: Array, left: Array, rounding: Array, finite: Array) -> RESULTS:
    """What there is to say of a value: the gravest of what is not as it should be."""
    built = built.constant()
    precisions = jax.tree.leaves(built.prior.precision)
    most = jnp.max(jnp.stack([jnp.max(p) for p in precisions]))
    least = jnp.min(jnp.stack([jnp.min(p) for p in precisions]))
    away = (most > LARGEST_PRECISION) | (least < 1 / LARGEST_PRECISION)
    result = RESULTS.where(left <= NATS + NATS_A_DATUM * built.size, RESULTS.successful, RESULTS.not_at_a_mode)
    result = RESULTS.where(away, RESULTS.precision_running_away, result)
    result = RESULTS.where(noise_share(built) < LEAST_NOISE, RESULTS.noise_vanishing, result)
    result = RESULTS.where(rounding <= 1 + NATS_A_DATUM * built.size, result, RESULTS.rounding_too_large)
    return RESULTS.where(finite, result, RESULTS.diverged)


def noise_share(built: Problem) -> Float[Array, ""]:
    """σ over the spread of the targets, for Gaussian noise; infinite for other likelihoods."""
    if not isinstance(built.likelihood, Gaussian):
        return jnp.asarray(jnp.inf, built.dtype)
    spread = jnp.std(built.targets.astype(built.dtype), axis=0)
    return jnp.min(built.likelihood.scale.astype(built.dtype) / jnp.where(spread > 0, spread, 1))
