"""From a Gaussian over the outputs of a model to its targets, and how good the probabilities are."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._products import einsum
from ._likelihoods import AbstractLikelihood, Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson

Approximation: TypeAlias = Literal["scaled", "probit", "bridge", "monte_carlo", "map"]


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


class Prediction(eqx.Module):
    """How outputs become predictions: by which approximation, draws, and scale of the variances."""

    approximation: Approximation = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    key: Array
    scale: Float[Array, ""]

    def __check_init__(self):
        known = get_args(Approximation)
        if self.approximation not in known:
            raise ValueError(f"posterior: approximation must be one of {known}; got {self.approximation!r}.")
        if self.samples < 1:
            raise ValueError(f"posterior: samples must be an integer >= 1; got {self.samples}.")

    def believed(self, outputs: Outputs) -> Outputs:
        """The Gaussian that the approximation believes in."""
        factor = {"scaled": self.scale, "map": jnp.zeros_like(self.scale)}.get(self.approximation)
        return (
            outputs if factor is None else Outputs(outputs.mean, factor.astype(outputs.mean.dtype) * outputs.covariance)
        )


def default_approximation(likelihood: AbstractLikelihood) -> Approximation:
    """That of `predict` where none is asked for."""
    return "scaled" if isinstance(likelihood, Categorical | Bernoulli) else "probit"


def effective_logits(likelihood: AbstractLikelihood, outputs: Outputs, how: Prediction) -> Float[Array, "m c"]:
    """Outputs at which the likelihood itself is about its mean under the Gaussian."""
    if how.approximation == "map":
        return outputs.mean
    if how.approximation in ("probit", "scaled") and isinstance(likelihood, Categorical | Bernoulli):
        return probit(how.believed(outputs))
    if how.approximation == "bridge" and isinstance(likelihood, Categorical):
        return bridge(outputs)
    raise ValueError(
        "posterior: approximation must be 'monte_carlo' or 'map', for Bernoulli and Categorical also 'scaled' or "
        f"'probit', for Categorical also 'bridge'; got {how.approximation!r} for {type(likelihood).__name__}."
    )


def _mean(likelihood: AbstractLikelihood, f: Float[Array, "... c"]) -> Float[Array, "... k"]:
    """E[y|f]."""
    if isinstance(likelihood, Categorical):
        return jax.nn.softmax(f, axis=-1)
    if isinstance(likelihood, Bernoulli):
        return jax.nn.sigmoid(f)
    if isinstance(likelihood, HeteroscedasticGaussian):
        return f[..., : f.shape[-1] // 2]
    return jnp.exp(f) if isinstance(likelihood, Poisson) else f


def predicted(
    likelihood: AbstractLikelihood, outputs: Outputs, how: Prediction, deviations: bool
) -> tuple[Float[Array, "m k"], Float[Array, "m k"]]:
    """E[y], f being integrated out, and a standard deviation (0 where none is asked for)."""
    mean = _mean_prediction(likelihood, outputs, how)
    if not deviations:
        return mean, jnp.zeros_like(mean)
    believed = how.believed(outputs)
    v = believed.variances
    if isinstance(likelihood, Gaussian):
        return mean, jnp.sqrt(v + jnp.square(likelihood.scale).astype(v.dtype))
    if isinstance(likelihood, HeteroscedasticGaussian):
        _, log_scale = jnp.split(outputs.mean, 2, axis=1)
        of_mean, of_scale = jnp.split(v, 2, axis=1)
        return mean, jnp.sqrt(of_mean + jnp.exp(2 * log_scale + 2 * of_scale))
    if isinstance(likelihood, Poisson):
        return mean, jnp.sqrt(mean + jnp.square(mean) * jnp.expm1(v))
    return mean, jnp.std(_mean(likelihood, believed.sample(how.key, how.samples)), axis=0)


def _mean_prediction(likelihood: AbstractLikelihood, outputs: Outputs, how: Prediction) -> Float[Array, "m k"]:
    if isinstance(likelihood, Gaussian | HeteroscedasticGaussian):
        return _mean(likelihood, outputs.mean)
    if isinstance(likelihood, Poisson) and how.approximation != "map":
        return jnp.exp(outputs.mean + 0.5 * outputs.variances)
    if how.approximation == "monte_carlo":
        return jnp.mean(_mean(likelihood, outputs.sample(how.key, how.samples)), axis=0)
    return _mean(likelihood, effective_logits(likelihood, outputs, how))


def log_predictive(
    likelihood: AbstractLikelihood, outputs: Outputs, targets: Array, how: Prediction
) -> Float[Array, " m"]:
    """log ∫ p(y|f) N(f; mean, covariance) df for each datum; Σ_c y_c log E p_c for labels, hard or soft."""
    if isinstance(likelihood, Categorical):
        likelihood = Categorical()  # a new label is not smoothed
    log_likelihood = jax.vmap(likelihood.log_likelihood)
    if isinstance(likelihood, Gaussian) and how.approximation != "map":
        return jax.vmap(lambda m, v, y: _gaussian(likelihood, m, v, y))(outputs.mean, outputs.covariance, targets)
    if isinstance(likelihood, HeteroscedasticGaussian) and how.approximation not in ("map", "monte_carlo"):
        return jax.vmap(_of_unknown_noise)(outputs.mean, outputs.covariance, targets)
    if how.approximation == "monte_carlo" and isinstance(likelihood, Categorical):
        draws = jax.nn.log_softmax(outputs.sample(how.key, how.samples), axis=-1)
        return log_likelihood(jax.nn.logsumexp(draws, axis=0), targets)
    if how.approximation == "monte_carlo":
        each = jax.vmap(log_likelihood, in_axes=(0, None))(outputs.sample(how.key, how.samples), targets)
        return jax.nn.logsumexp(each, axis=0) - float(np.log(how.samples))
    return log_likelihood(effective_logits(likelihood, outputs, how), targets)


def _of_unknown_noise(mean: Array, covariance: Array, target: Array) -> Float[Array, ""]:
    """Σ_k log ∫ N(y_k; μ_k, σ_k²), over log σ_k by 20 nodes of Gauss and Hermite, over μ_k given it in closed form.

    What different targets have in common is left out.
    """
    count = target.size
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    index = jnp.arange(count)
    v_mean, v_log = (jnp.maximum(covariance[index + k, index + k], 0.0) for k in (0, count))
    both = covariance[index, index + count]
    slope = jnp.where(v_log > 0, both / jnp.where(v_log > 0, v_log, 1.0), 0.0)
    away = jnp.sqrt(v_log)[:, None] * jnp.asarray(nodes, mean.dtype)[None]
    center = mean[:count, None] + slope[:, None] * away
    variance = jnp.maximum(v_mean - slope * both, 0.0)[:, None] + jnp.exp(2 * (mean[count:, None] + away))
    square = jnp.square(target.astype(mean.dtype)[:, None] - center)
    each = -0.5 * (square / variance + jnp.log(2 * np.pi * variance))
    return jnp.sum(jax.nn.logsumexp(each + jnp.log(jnp.asarray(weights / weights.sum(), mean.dtype))[None], axis=1))


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
