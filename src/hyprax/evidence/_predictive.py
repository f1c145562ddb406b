"""From a Gaussian over the outputs of a model to its targets, and how good the probabilities are."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._products import einsum
from ._likelihoods import AbstractLikelihood, Bernoulli, Categorical, Gaussian, Poisson

Approximation: TypeAlias = Literal["probit", "bridge", "monte_carlo", "map"]


class Outputs(eqx.Module):
    """N(mean, covariance) of the outputs of each of m examples."""

    mean: Float[Array, "m c"]
    covariance: Float[Array, "m c c"]

    @property
    def variances(self) -> Float[Array, "m c"]:
        """The diagonals, at least 0 whatever the rounding."""
        return jnp.maximum(jnp.diagonal(self.covariance, axis1=1, axis2=2), 0.0)

    def sample(self, key: Array, count: int) -> Float[Array, "s m c"]:
        """`count` draws for each example, independent between examples."""
        values, vectors = jnp.linalg.eigh(self.covariance)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]
        noise = jax.random.normal(key, (count, *self.mean.shape), self.mean.dtype)
        return self.mean[None] + einsum("ncd,snd->snc", root, noise)


def probit(outputs: Outputs) -> Float[Array, "m c"]:
    """f/√(1 + (π/8) v): logits whose softmax or logistic function is the approximate mean probability."""
    return outputs.mean / jnp.sqrt(1 + (np.pi / 8) * outputs.variances)


def bridge(outputs: Outputs) -> Float[Array, "m c"]:
    """log α, α_k = (1 - 2/C + e^{f_k} Σ_l e^{-f_l}/C²)/v_k: their softmax is the mean of Dirichlet(α).

    The Gaussian is first conditioned on Σ_k f_k = 0, which a softmax does not see. Source: Hobbhahn et al. 2022
    (arXiv 2003.01227).
    """
    count = outputs.mean.shape[1]
    sums = jnp.sum(outputs.covariance, axis=2)
    total = jnp.sum(sums, axis=1)
    safe = jnp.where(total > 0, total, 1.0)[:, None]  # a covariance that does not move the sum has nothing to remove
    f = outputs.mean - sums * jnp.sum(outputs.mean, axis=1, keepdims=True) / safe
    v = outputs.variances - jnp.square(sums) / safe
    floor = jnp.finfo(v.dtype).eps * jnp.max(outputs.variances, axis=1, keepdims=True) + jnp.finfo(v.dtype).tiny
    sharp = f - 2 * float(np.log(count)) + jax.nn.logsumexp(-f, axis=1, keepdims=True)
    flat = float(np.log(1 - 2 / count)) if count > 2 else -jnp.inf
    return jnp.logaddexp(jnp.full_like(sharp, flat), sharp) - jnp.log(jnp.maximum(v, floor))


def _known(approximation: str, samples: int) -> None:
    """Refuse what no likelihood has."""
    if approximation not in get_args(Approximation):
        raise ValueError(f"posterior: approximation must be one of {get_args(Approximation)}; got {approximation!r}.")
    if samples < 1:
        raise ValueError(f"posterior: samples must be an integer >= 1; got {samples}.")


def effective_logits(
    likelihood: AbstractLikelihood, outputs: Outputs, approximation: Approximation
) -> Float[Array, "m c"]:
    """Outputs at which the likelihood itself is about its mean under the Gaussian."""
    name = type(likelihood).__name__
    if approximation == "map":
        return outputs.mean
    if approximation == "probit" and isinstance(likelihood, Categorical | Bernoulli):
        return probit(outputs)
    if approximation == "bridge" and isinstance(likelihood, Categorical):
        return bridge(outputs)
    raise ValueError(
        f"posterior: approximation must be 'monte_carlo' or 'map', for Bernoulli and Categorical also 'probit', for "
        f"Categorical also 'bridge'; got {approximation!r} for {name}."
    )


def _mean(likelihood: AbstractLikelihood, f: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """E[y|f]."""
    if isinstance(likelihood, Categorical):
        return jax.nn.softmax(f, axis=-1)
    if isinstance(likelihood, Bernoulli):
        return jax.nn.sigmoid(f)
    return jnp.exp(f) if isinstance(likelihood, Poisson) else f


def mean_prediction(
    likelihood: AbstractLikelihood, outputs: Outputs, approximation: Approximation, samples: int, key: Array
) -> Float[Array, "m c"]:
    """E[y], f being integrated out."""
    _known(approximation, samples)
    if isinstance(likelihood, Gaussian):
        return outputs.mean
    if isinstance(likelihood, Poisson) and approximation != "map":
        return jnp.exp(outputs.mean + 0.5 * outputs.variances)
    if approximation == "monte_carlo":
        return jnp.mean(_mean(likelihood, outputs.sample(key, samples)), axis=0)
    return _mean(likelihood, effective_logits(likelihood, outputs, approximation))


def log_predictive(
    likelihood: AbstractLikelihood,
    outputs: Outputs,
    targets: Array,
    approximation: Approximation,
    samples: int,
    key: Array,
) -> Float[Array, " m"]:
    """log ∫ p(y|f) N(f; mean, covariance) df for each datum."""
    _known(approximation, samples)
    log_likelihood = jax.vmap(likelihood.log_likelihood)
    if isinstance(likelihood, Gaussian) and approximation != "map":
        return jax.vmap(lambda m, v, y: _gaussian(likelihood, m, v, y))(outputs.mean, outputs.covariance, targets)
    if approximation == "monte_carlo":
        each = jax.vmap(log_likelihood, in_axes=(0, None))(outputs.sample(key, samples), targets)
        return jax.nn.logsumexp(each, axis=0) - float(np.log(samples))
    return log_likelihood(effective_logits(likelihood, outputs, approximation), targets)


def _gaussian(likelihood: Gaussian, mean: Array, covariance: Array, target: Array) -> Float[Array, ""]:
    """log N(y; mean, covariance + diag σ²)."""
    noise = jnp.broadcast_to(jnp.square(likelihood.scale).astype(mean.dtype), mean.shape)
    root = jnp.linalg.cholesky(covariance + jnp.diag(noise))
    residual = jax.scipy.linalg.solve_triangular(root, target.astype(mean.dtype) - mean, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root)))
    return -0.5 * jnp.sum(jnp.square(residual)) - log_det - 0.5 * mean.size * float(np.log(2 * np.pi))


def _probabilities(name: str, p: Array) -> Array:
    values = np.asarray(p)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{name}: probabilities must have shape (m, C) with m, C >= 1; got {values.shape}.")
    if not np.all(np.isfinite(values)) or np.any(values < 0) or np.any(np.abs(values.sum(1) - 1) > 1e-3):
        raise ValueError(f"{name}: rows must be probabilities, entries >= 0 with sum 1; got others.")
    return jnp.asarray(p)


def calibration_error(
    probabilities: Float[Array, "m c"], labels: Int[Array, " m"] | Sequence[int], bins: int = 15
) -> Float[Array, ""]:
    """ECE = Σ_b (m_b/m) |accuracy_b - confidence_b| over `bins` equal bins of the largest probability in (0, 1].

    **Arguments:**

    - `probabilities`: (m, C), rows with sum 1.
    - `labels`: (m,), from 0 to C - 1.
    - `bins`: their number.

    **Raises:** `ValueError` for rows that are not probabilities, labels out of range, and for no bins.

    Source: Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017 (arXiv 1706.04599).
    """
    p = _probabilities("calibration_error", probabilities)
    if bins < 1:
        raise ValueError(f"calibration_error: bins must be an integer >= 1; got {bins}.")
    known = np.asarray(labels)
    if known.shape != p.shape[:1]:
        raise ValueError(f"calibration_error: labels must have shape {p.shape[:1]}; got {known.shape}.")
    if not np.all(np.isin(known, np.arange(p.shape[1]))):
        raise ValueError(
            f"calibration_error: labels must be whole numbers from 0 to {p.shape[1] - 1}; got labels from "
            f"{known.min()} to {known.max()}."
        )
    confidence = jnp.max(p, axis=1)
    right = (jnp.argmax(p, axis=1) == known).astype(p.dtype)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    gaps = jax.ops.segment_sum(right - confidence, place, bins)  # m_b (accuracy_b - confidence_b)
    return jnp.sum(jnp.abs(gaps)) / p.shape[0]
