"""Roots of the curvature: vectors ℓ_k with Λ = Σ_k ℓ_k ℓ_kᵀ, each a row of the kernel by one backward pass."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._products import product
from ._likelihoods import AbstractLikelihood, Categorical


class AbstractRoot(eqx.Module):
    """Λ = S Q Qᵀ Sᵀ: a root S(f), differentiable in the outputs f, and a rotation Q that is held constant.

    The rows are the columns of S Q. Any orthogonal Q gives a bound, so its derivative is not part of the gradient.
    """

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether the rows give Λ, which the proofs need."""

    @abc.abstractmethod
    def matrix(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "c s"]:
        """S."""

    @abc.abstractmethod
    def rotation(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "s r"]:
        """Q; a column that S maps to 0 may be left out."""

    def count(self, likelihood: AbstractLikelihood, outputs: int, dtype: Any) -> int:
        """R, the rows of one datum."""
        f = jax.ShapeDtypeStruct((outputs,), dtype)
        return eqx.filter_eval_shape(self.rotation, likelihood, f).shape[1]


class Rows(AbstractRoot):
    """ℓ_c = √p_c (e_c - p) for the softmax, √Λ_cc e_c for independent outputs: C rows in closed form.

    **Arguments:**

    - `covariance`: whether outputs covary. Without, ℓ_c = √Λ_cc e_c, as in the released code of Immer et al. (2023):
        for the softmax the rest of Λ that is dropped is indefinite, so nothing built on it is a bound. For comparison.
    """

    covariance: bool = eqx.field(static=True, default=True)

    @property
    def exact(self) -> bool:
        return self.covariance

    def matrix(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "c s"]:
        if self.covariance or not isinstance(likelihood, Categorical):
            return likelihood.root(f)
        log_p = jax.nn.log_softmax(f)
        others = jnp.where(jnp.eye(f.size, dtype=bool), -jnp.inf, log_p[None])
        return jnp.diag(jnp.exp(0.5 * (log_p + jax.nn.logsumexp(others, axis=1))))

    def rotation(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "s r"]:
        return jnp.eye(f.size, dtype=f.dtype)


class Eigen(AbstractRoot):
    """ℓ_k = √λ_k v_k with Λ v_k = λ_k v_k, the largest first: C - 1 rows for the softmax, and the tightest chain bound.

    One C x C eigendecomposition a datum: for more than a hundred classes use [`hyprax.evidence.roots.StickBreaking`][].
    Independent outputs are their own eigenvectors.
    """

    @property
    def exact(self) -> bool:
        return True

    def matrix(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "c s"]:
        return likelihood.root(f)

    def rotation(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "s r"]:
        if likelihood.independent:
            return jnp.eye(f.size, dtype=f.dtype)
        root = likelihood.root(f)
        _, vectors = jnp.linalg.eigh(product(root.T, root))
        return vectors[:, :0:-1]  # S maps the last, √p, to 0


class StickBreaking(AbstractRoot):
    """ℓ_c = √(p_c r'/r) (e_c - Σ_{d later} p_d e_d / r'), r = Σ_{d not earlier} p_d, r' = r - p_c: C - 1 rows.

    With one order of the classes for all data. Two classes need one row. Independent outputs break into
    √Λ_cc e_c. For partitions of the outputs it is much tighter than [`hyprax.evidence.roots.Rows`][].

    **Arguments:**

    - `order`: the classes, the first to be broken off first; default 0, 1, ..., C-1. Classes with a large mean
        p_c (1 - p_c) are best placed first (`StickBreaking.ordered`). It must not depend on the sample.
    """

    order: tuple[int, ...] | None = eqx.field(static=True, default=None)

    @property
    def exact(self) -> bool:
        return True

    @classmethod
    def ordered(cls, f: Float[Array, "n c"]) -> "StickBreaking":
        """With the classes by mean p_c (1 - p_c), the largest first, p = softmax(f).

        **Arguments:**

        - `f`: logits of representative data, not of the sample that the bound is evaluated on.
        """
        p = jax.nn.softmax(f)
        return cls(tuple(int(c) for c in jnp.argsort(-jnp.mean(p * (1 - p), axis=0))))

    def matrix(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "c s"]:
        if likelihood.independent:
            return likelihood.root(f)
        if not isinstance(likelihood, Categorical):
            raise ValueError(
                f"StickBreaking: the likelihood must be Categorical or independent; got {type(likelihood).__name__}."
            )
        classes = f.size
        order = tuple(range(classes)) if self.order is None else self.order
        if sorted(order) != list(range(classes)):
            raise ValueError(f"StickBreaking: order must be a permutation of 0..{classes - 1}; got {order}.")
        places = jnp.asarray(order)
        log_p = jax.nn.log_softmax(f)[places]
        log_left = jnp.flip(jax.lax.cumlogsumexp(jnp.flip(log_p)))  # log r; by logarithms, since r may underflow
        scale = jnp.exp(0.5 * (log_p[:-1] + log_left[1:] - log_left[:-1]))
        later = jnp.tril(jnp.exp(jnp.minimum(log_p[:, None] - log_left[None, 1:], 0.0)), -1)
        broken = (jnp.eye(classes, classes - 1, dtype=f.dtype) - later) * scale[None]
        return jnp.zeros_like(broken).at[places].set(broken)

    def rotation(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "s r"]:
        return jnp.eye(f.size if likelihood.independent else f.size - 1, dtype=f.dtype)
