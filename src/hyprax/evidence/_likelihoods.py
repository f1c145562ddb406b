"""Likelihoods: log p(y|f), and a root of their curvature Λ = -∂² log p(y|f)/∂f² = L Lᵀ."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._hyper import as_floating
from .._products import product


class AbstractLikelihood(eqx.Module):
    """log p(y|f) of one target y given the outputs f in R^C of the model, with Λ = -∂² log p(y|f)/∂f² = L Lᵀ."""

    @property
    @abc.abstractmethod
    def independent(self) -> bool:
        """Whether Λ is diagonal: the outputs do not interact."""

    @abc.abstractmethod
    def log_likelihood(self, f: Float[Array, " c"], target: Array) -> Float[Array, ""]:
        """log p(target|f)."""

    @abc.abstractmethod
    def root(self, f: Float[Array, " c"]) -> Float[Array, "c c"]:
        """L with L Lᵀ = Λ; differentiable in f. Column k is the cotangent of row k."""

    def root_times(self, f: Float[Array, " c"], q: Float[Array, "c b"]) -> Float[Array, "c b"]:
        """L q."""
        return product(self.root(f), q)

    def transposed_root_times(self, f: Float[Array, " c"], u: Float[Array, " c"]) -> Float[Array, " c"]:
        """Lᵀ u."""
        return product(self.root(f).T, u)

    def squares(self, f: Float[Array, " c"]) -> Float[Array, " c"]:
        """The squared lengths of the columns of L."""
        return jnp.sum(jnp.square(self.root(f)), axis=0)

    @abc.abstractmethod
    def validate(self, targets: Any, outputs: int) -> None:
        """Refuse targets that the likelihood cannot have produced.

        **Raises:** `ValueError`.
        """


def _whole_numbers(name: str, targets: np.ndarray) -> None:
    if targets.dtype.kind not in "fiu" or not np.all(np.isfinite(targets)) or np.any(targets != np.round(targets)):
        raise ValueError(f"{name}: targets must be whole numbers; got others, of type {targets.dtype}.")


def _one_per_output(name: str, targets: np.ndarray, outputs: int) -> None:
    if targets.ndim != 2 or targets.shape[1] != outputs:
        raise ValueError(
            f"{name}: targets must have shape (N, {outputs}), one per output of the model; got {targets.shape}."
        )


class Categorical(AbstractLikelihood):
    """log p(y|f) = f_y - log Σ_c exp f_c; Λ = diag(p) - p pᵀ with p = softmax(f), L = diag(√p) - p √pᵀ.

    Targets are labels 0..C-1, C >= 2, or soft labels: rows y of C probabilities, log p(y|f) = Σ_c y_c log p_c.

    **Arguments:**

    - `smoothing`: s in [0, 1): labels are smoothed to (1 - s) y + s/C.
    """

    smoothing: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"Categorical: smoothing must be a number in [0, 1); got {self.smoothing}.")

    @property
    def independent(self) -> bool:
        return False

    def log_likelihood(self, f: Float[Array, " c"], target: Array) -> Float[Array, ""]:
        log_p = jax.nn.log_softmax(f)
        if target.ndim:
            found = jnp.sum(jnp.where(target == 0, 0.0, target.astype(f.dtype) * log_p))
        else:
            found = jnp.take(log_p, target.astype(jnp.int32))
        return found if self.smoothing == 0 else (1 - self.smoothing) * found + self.smoothing * jnp.mean(log_p)

    def root(self, f: Float[Array, " c"]) -> Float[Array, "c c"]:
        log_p = jax.nn.log_softmax(f)
        half = jnp.exp(0.5 * log_p)  # smooth where p underflows, as √p is not
        return jnp.diag(half) - jnp.outer(jnp.exp(log_p), half)

    # In C numbers and no C x C matrix, for vocabularies.

    def root_times(self, f: Float[Array, " c"], q: Float[Array, "c b"]) -> Float[Array, "c b"]:
        log_p = jax.nn.log_softmax(f)
        scaled = jnp.exp(0.5 * log_p)[:, None] * q
        return scaled - jnp.exp(log_p)[:, None] * jnp.sum(scaled, axis=0)[None]

    def transposed_root_times(self, f: Float[Array, " c"], u: Float[Array, " c"]) -> Float[Array, " c"]:
        log_p = jax.nn.log_softmax(f)
        return jnp.exp(0.5 * log_p) * (u - jnp.sum(jnp.exp(log_p) * u))

    def squares(self, f: Float[Array, " c"]) -> Float[Array, " c"]:
        p = jax.nn.softmax(f)
        return p * (jnp.square(1 - p) + jnp.sum(jnp.square(p)) - jnp.square(p))

    def validate(self, targets: Any, outputs: int) -> None:
        if outputs < 2:
            raise ValueError(
                f"Categorical: the model must have at least 2 outputs; got {outputs}. For one logit use Bernoulli."
            )
        targets = np.asarray(targets)
        if targets.ndim == 2 and targets.shape[1] == outputs:
            if not np.all(targets >= 0) or np.any(np.abs(targets.sum(1) - 1) > 1e-3):
                raise ValueError("Categorical: rows of soft labels must be >= 0 with sum 1; got others.")
            return
        if targets.ndim != 1:
            raise ValueError(
                f"Categorical: targets must have shape (N,), one label each, or (N, {outputs}) for soft labels; got "
                f"{targets.shape}."
            )
        _whole_numbers("Categorical", targets)
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= outputs:
            raise ValueError(
                f"Categorical: labels must be from 0 to {outputs - 1}, as the model has {outputs} outputs; got labels "
                f"from {low} to {high}."
            )


class Gaussian(AbstractLikelihood):
    """log p(y|f) = -‖y - f‖²/(2σ²) - (C/2) log 2πσ²; Λ = I/σ².

    **Arguments:**

    - `scale`: σ, in the units of y: one number, or one for each output. An array, so it can be learned.
    """

    scale: Float[Array, "..."]

    def __init__(self, scale: Any):
        self.scale = positive(scale, "Gaussian: scale")

    @property
    def independent(self) -> bool:
        return True

    def log_likelihood(self, f: Float[Array, " c"], target: Array) -> Float[Array, ""]:
        scale = jnp.broadcast_to(self.scale, f.shape)
        residual = (target.astype(f.dtype) - f) / scale
        return -0.5 * jnp.sum(jnp.square(residual)) - jnp.sum(jnp.log(scale)) - 0.5 * f.size * float(np.log(2 * np.pi))

    def root(self, f: Float[Array, " c"]) -> Float[Array, "c c"]:
        return jnp.diag(jnp.broadcast_to(1 / self.scale, f.shape)).astype(f.dtype)

    def validate(self, targets: Any, outputs: int) -> None:
        targets = np.asarray(targets)
        _one_per_output("Gaussian", targets, outputs)
        if targets.dtype.kind not in "fiu":
            raise ValueError(f"Gaussian: targets must be real numbers; got type {targets.dtype}.")
        if not np.all(np.isfinite(targets)):
            raise ValueError("Gaussian: targets must be finite; got NaN or infinite entries.")
        if self.scale.ndim and self.scale.shape != (outputs,):
            raise ValueError(f"Gaussian: scale must be one number or {outputs} of them; got shape {self.scale.shape}.")


class HeteroscedasticGaussian(AbstractLikelihood):
    """log p(y|f) = -Σ_k (y_k - μ_k)²/(2σ_k²) + log σ_k + ½ log 2π: the model gives mean and noise of each target.

    The outputs are f = (μ_1..μ_K, log σ_1..log σ_K), so C = 2K. Λ = diag(1/σ², 2) is the expected curvature (Fisher):
    the curvature at one y need not be positive. Targets are (N, K).

    Source: Nix and Weigend 1994; with Laplace approximations, Immer et al. 2023 (arXiv 2310.19093).
    """

    @property
    def independent(self) -> bool:
        return True

    def log_likelihood(self, f: Float[Array, " c"], target: Array) -> Float[Array, ""]:
        mean, log_scale = jnp.split(f, 2)
        standard = (target.astype(f.dtype) - mean) * jnp.exp(-log_scale)
        return -0.5 * jnp.sum(jnp.square(standard)) - jnp.sum(log_scale) - 0.5 * mean.size * float(np.log(2 * np.pi))

    def root(self, f: Float[Array, " c"]) -> Float[Array, "c c"]:
        _, log_scale = jnp.split(f, 2)
        return jnp.diag(jnp.concatenate([jnp.exp(-log_scale), jnp.full_like(log_scale, float(np.sqrt(2)))]))

    def validate(self, targets: Any, outputs: int) -> None:
        targets = np.asarray(targets)
        if outputs % 2:
            raise ValueError(
                "HeteroscedasticGaussian: the model must have two outputs for each target, its mean and the logarithm "
                f"of its noise; got {outputs}."
            )
        _one_per_output("HeteroscedasticGaussian", targets, outputs // 2)
        if targets.dtype.kind not in "fiu" or not np.all(np.isfinite(targets)):
            raise ValueError("HeteroscedasticGaussian: targets must be real and finite; got others.")


class Bernoulli(AbstractLikelihood):
    """log p(y|f) = Σ_c y_c log s(f_c) + (1 - y_c) log s(-f_c), s the logistic function; Λ = diag(s(f_c) s(-f_c)).

    Targets are 0 or 1, one for each output.
    """

    @property
    def independent(self) -> bool:
        return True

    def log_likelihood(self, f: Float[Array, " c"], target: Array) -> Float[Array, ""]:
        y = target.astype(f.dtype)
        return jnp.sum(y * jax.nn.log_sigmoid(f) + (1 - y) * jax.nn.log_sigmoid(-f))

    def root(self, f: Float[Array, " c"]) -> Float[Array, "c c"]:
        return jnp.diag(jnp.exp(0.5 * (jax.nn.log_sigmoid(f) + jax.nn.log_sigmoid(-f))))

    def validate(self, targets: Any, outputs: int) -> None:
        targets = np.asarray(targets)
        _one_per_output("Bernoulli", targets, outputs)
        if not np.all((targets == 0) | (targets == 1)):
            raise ValueError("Bernoulli: targets must be 0 or 1; got others.")


class Poisson(AbstractLikelihood):
    """log p(y|f) = Σ_c y_c f_c - exp f_c - log y_c!, f the logarithm of the rate; Λ = diag(exp f_c).

    Targets are counts 0, 1, ..., one for each output.
    """

    @property
    def independent(self) -> bool:
        return True

    def log_likelihood(self, f: Float[Array, " c"], target: Array) -> Float[Array, ""]:
        y = target.astype(f.dtype)
        return jnp.sum(y * f - jnp.exp(f) - jax.scipy.special.gammaln(y + 1))

    def root(self, f: Float[Array, " c"]) -> Float[Array, "c c"]:
        return jnp.diag(jnp.exp(0.5 * f))

    def validate(self, targets: Any, outputs: int) -> None:
        targets = np.asarray(targets)
        _one_per_output("Poisson", targets, outputs)
        _whole_numbers("Poisson", targets)
        if np.any(targets < 0):
            raise ValueError(f"Poisson: targets must be counts 0, 1, 2, ...; got {targets.min()}.")


def positive(x: Any, name: str) -> Array:
    """`x` as a floating array.

    **Raises:** `ValueError` for a concrete entry that is not positive and finite.
    """
    x = as_floating(x, name)
    try:
        values = np.asarray(x)
    except jax.errors.TracerArrayConversionError:  # under a transformation there is no number to look at
        return x
    allowed = (values > 0) & np.isfinite(values)
    if not np.all(allowed):
        raise ValueError(f"{name} must be positive and finite; got {values[~allowed].ravel()[0]}.")
    return x
