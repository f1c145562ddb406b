"""Roots of the curvature: vectors ℓ_k with Λ = Σ_k ℓ_k ℓ_kᵀ, each a row of the kernel by one backward pass."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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

    def times(
        self, likelihood: AbstractLikelihood, f: Float[Array, " c"], q: Float[Array, "s b"]
    ) -> Float[Array, "c b"]:
        """S q."""
        return product(self.matrix(likelihood, f), q)

    def squares(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, " r"]:
        """The squared lengths of the columns of S Q."""
        rows = product(self.matrix(likelihood, f), self.rotation(likelihood, f))
        return jnp.sum(jnp.square(rows), axis=0)

    def column(self, likelihood: AbstractLikelihood, f: Float[Array, " c"], row: Int[Array, ""]) -> Float[Array, " s"]:
        """Column `row` of Q."""
        return self.rotation(likelihood, f)[:, row]

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

    def times(
        self, likelihood: AbstractLikelihood, f: Float[Array, " c"], q: Float[Array, "s b"]
    ) -> Float[Array, "c b"]:
        return likelihood.root_times(f, q) if self.covariance else super().times(likelihood, f, q)

    def squares(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, " r"]:
        return likelihood.squares(f) if self.covariance else super().squares(likelihood, f)

    def column(self, likelihood: AbstractLikelihood, f: Float[Array, " c"], row: Int[Array, ""]) -> Float[Array, " s"]:
        return jax.nn.one_hot(row, f.size, dtype=f.dtype)


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

    def _broken(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> tuple[Array, Array, Array, Array]:
        """The classes in their order; there log p and log r, and √(p r'/r) of all but the last."""
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
        log_left = jnp.flip(jax.lax.cumlogsumexp(jnp.flip(log_p)))  # by logarithms, since r may underflow
        return places, log_p, log_left, jnp.exp(0.5 * (log_p[:-1] + log_left[1:] - log_left[:-1]))

    def matrix(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "c s"]:
        if likelihood.independent:
            return likelihood.root(f)
        places, log_p, log_left, scale = self._broken(likelihood, f)
        classes = f.size
        later = jnp.tril(jnp.exp(jnp.minimum(log_p[:, None] - log_left[None, 1:], 0.0)), -1)
        broken = (jnp.eye(classes, classes - 1, dtype=f.dtype) - later) * scale[None]
        return jnp.zeros_like(broken).at[places].set(broken)

    def rotation(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, "s r"]:
        return jnp.eye(f.size if likelihood.independent else f.size - 1, dtype=f.dtype)

    def times(
        self, likelihood: AbstractLikelihood, f: Float[Array, " c"], q: Float[Array, "s b"]
    ) -> Float[Array, "c b"]:
        if likelihood.independent:
            return likelihood.root_times(f, q)
        places, log_p, log_left, scale = self._broken(likelihood, f)
        own = scale[:, None] * q
        # b_c = Σ_{j earlier than c} (r_c/r'_j) own_j by its recurrence, all of whose factors are at most 1.
        shrunk = jnp.exp(log_left[1:] - log_left[:-1])[:, None]

        def after(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
            return one[0] * two[0], one[1] * two[0] + two[1]

        shrunk = shrunk.at[0].set(1)  # b_1 = own_0 and nothing before it
        _, before = jax.lax.associative_scan(after, (jnp.broadcast_to(shrunk, own.shape), own))
        share = jnp.exp(jnp.minimum(log_p - log_left, 0.0))[1:, None]
        nothing = jnp.zeros_like(own[:1])
        found = jnp.concatenate([own, nothing]) - jnp.concatenate([nothing, share * before])
        return jnp.zeros_like(found).at[places].set(found)

    def squares(self, likelihood: AbstractLikelihood, f: Float[Array, " c"]) -> Float[Array, " r"]:
        if likelihood.independent:
            return likelihood.squares(f)
        _, log_p, log_left, scale = self._broken(likelihood, f)
        # 1 + Σ_{d later} (p_d/r')²
        log_later = jnp.flip(jax.lax.cumlogsumexp(jnp.flip(2 * log_p)))[1:]
        return jnp.square(scale) * (1 + jnp.exp(jnp.minimum(log_later - 2 * log_left[1:], 0.0)))

    def column(self, likelihood: AbstractLikelihood, f: Float[Array, " c"], row: Int[Array, ""]) -> Float[Array, " s"]:
        return jax.nn.one_hot(row, f.size if likelihood.independent else f.size - 1, dtype=f.dtype)
