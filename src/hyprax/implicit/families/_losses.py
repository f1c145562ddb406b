"""Pointwise losses ℓ(u; y) of linear predictions u, with the constants that curvature bounds need."""

import abc
from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractPointLoss(eqx.Module):
    """ℓ(u; y) for the predictions u of n examples: `(n,)`, or `(n, C)` where a prediction has C parts."""

    curvature: AbstractClassVar[float]
    """sup over u of the largest eigenvalue of ∇²ℓ."""
    third: AbstractClassVar[float]
    """sup over u and unit vectors of |D³ℓ(u)[a, b, c]|."""
    self_concordance: AbstractClassVar[float]
    """M with |D³ℓ(u)[a, b, c]| <= M osc(c) ‖a‖_D ‖b‖_D, D = ∇²ℓ(u); osc(c) = |c|, max c - min c for several parts."""
    third_oscillation: AbstractClassVar[float]
    """sup over u and unit vectors a, b of |D³ℓ(u)[a, b, c]|/osc(c)."""

    @abc.abstractmethod
    def value(self, u: Float[Array, "n *C"], y: Array) -> Float[Array, " n"]:
        """ℓ_i(u_i)."""

    @abc.abstractmethod
    def mean(self, u: Float[Array, "n *C"]) -> Float[Array, "n *C"]:
        """The predicted mean p(u): ∇ℓ = p(u) - target."""

    @abc.abstractmethod
    def target(self, u: Float[Array, "n *C"], y: Array) -> Float[Array, "n *C"]:
        """What p(u) is compared with: y itself, or its one-hot rows."""

    @abc.abstractmethod
    def curve(self, p: Float[Array, "n *C"], v: Float[Array, "n *C"]) -> Float[Array, "n *C"]:
        """∇²ℓ_i v_i, from the predicted mean p."""

    @abc.abstractmethod
    def curve_diagonal(self, p: Float[Array, "n *C"]) -> Float[Array, "n *C"]:
        """The diagonal of ∇²ℓ_i."""

    @abc.abstractmethod
    def curve_abs(self, p: Float[Array, "n *C"], v: Float[Array, "n *C"]) -> Float[Array, "n *C"]:
        """|∇²ℓ_i| v_i with the absolute value taken entry by entry, for v >= 0."""

    @abc.abstractmethod
    def top_curvature(self, p: Float[Array, "n *C"]) -> Float[Array, " n"]:
        """An upper bound of the largest eigenvalue of ∇²ℓ_i."""

    @abc.abstractmethod
    def oscillation(self, v: Float[Array, "n *C"]) -> Float[Array, " n"]:
        """osc(v_i): |v_i| for one part, max - min over several."""

    @abc.abstractmethod
    def oscillation_norm(self, squares: Float[Array, "n *C"]) -> Float[Array, " n"]:
        """sup of osc over vectors Σ_c (v_ic)²/squares_ic <= 1."""

    @abc.abstractmethod
    def mean_rounding(
        self, p: Float[Array, "n *C"], size: Float[Array, "n ..."], du: Float[Array, "n ..."]
    ) -> Float[Array, "n *C"]:
        """A bound on the error of the computed p, entry by entry, when |u| <= size and the computed u is off by du."""


class SquaredLoss(AbstractPointLoss):
    """ℓ = ½ |u - y|², with p = u; the curvature is constant."""

    curvature: ClassVar[float] = 1.0
    third: ClassVar[float] = 0.0
    self_concordance: ClassVar[float] = 0.0
    third_oscillation: ClassVar[float] = 0.0

    def value(self, u, y):
        return 0.5 * jnp.sum(jnp.square(u - y), axis=tuple(range(1, u.ndim)))

    def mean(self, u):
        return u

    def target(self, u, y):
        return y

    def curve(self, p, v):
        return v

    def curve_diagonal(self, p):
        return jnp.ones_like(p)

    def curve_abs(self, p, v):
        return v

    def top_curvature(self, p):
        return jnp.ones(p.shape[:1], p.dtype)

    def oscillation(self, v):
        return jnp.sqrt(jnp.sum(jnp.square(v), axis=tuple(range(1, v.ndim))))

    def oscillation_norm(self, squares):
        return jnp.sqrt(jnp.max(squares, axis=tuple(range(1, squares.ndim))))

    def mean_rounding(self, p, size, du):
        return jnp.broadcast_to(du, p.shape)


class LogisticLoss(AbstractPointLoss):
    """ℓ = log(1 + e^u) - y u for y in {0, 1}, with p = 1/(1 + e^-u).

    ℓ'' = p(1 - p) <= 1/4; ℓ''' = p(1 - p)(1 - 2p), at most 1/(6√3), and |ℓ'''| <= ℓ'': self-concordant with M = 1.
    """

    curvature: ClassVar[float] = 0.25
    third: ClassVar[float] = 0.09622504486493764
    self_concordance: ClassVar[float] = 1.0
    third_oscillation: ClassVar[float] = 0.09622504486493764

    def value(self, u, y):
        return jax.nn.softplus(u) - y * u

    def mean(self, u):
        return jax.nn.sigmoid(u)

    def target(self, u, y):
        return y

    def curve(self, p, v):
        return p * (1 - p) * v

    def curve_diagonal(self, p):
        return p * (1 - p)

    def curve_abs(self, p, v):
        return p * (1 - p) * v

    def top_curvature(self, p):
        return p * (1 - p)

    def oscillation(self, v):
        return jnp.abs(v)

    def oscillation_norm(self, squares):
        return jnp.sqrt(squares)

    def mean_rounding(self, p, size, du):
        # |dp/du| = p(1 - p), which changes by a factor of at most e^du within du; and 8 units for the function itself.
        unit = jnp.finfo(p.dtype).eps / 2
        return p * ((1 - p) * du * jnp.exp(du) + 8 * unit)


class SoftmaxLoss(AbstractPointLoss):
    """ℓ = log Σ_c e^{u_c} - u_y for labels y in 0..C-1, with p = softmax(u).

    ∇²ℓ = diag(p) - ppᵀ <= ½ I. D³ℓ[a, b, c] is the third cumulant E[(a-ā)(b-b̄)(c-c̄)] under p, at most
    osc(c)·‖a‖_D‖b‖_D (Cauchy-Schwarz, |c - c̄| <= osc(c)): self-concordant with M = 1, and at most √2 · ½ for unit
    vectors (osc(c) = max c - min c <= √2 ‖c‖, D <= ½ I).
    """

    curvature: ClassVar[float] = 0.5
    third: ClassVar[float] = 0.7071067811865476
    self_concordance: ClassVar[float] = 1.0
    third_oscillation: ClassVar[float] = 0.5

    def value(self, u, y):
        return jax.nn.logsumexp(u, axis=-1) - jnp.take_along_axis(u, y[:, None], axis=-1)[:, 0]

    def mean(self, u):
        return jax.nn.softmax(u, axis=-1)

    def target(self, u, y):
        return jax.nn.one_hot(y, u.shape[-1], dtype=u.dtype)

    def curve(self, p, v):
        return p * (v - jnp.sum(p * v, axis=-1, keepdims=True))

    def curve_diagonal(self, p):
        return p * (1 - p)

    def curve_abs(self, p, v):
        return p * (v + jnp.sum(p * v, axis=-1, keepdims=True))

    def top_curvature(self, p):
        return jnp.minimum(0.5, jnp.max(2 * p * (1 - p), axis=-1))

    def oscillation(self, v):
        return jnp.max(v, axis=-1) - jnp.min(v, axis=-1)

    def oscillation_norm(self, squares):
        return jnp.sqrt(jnp.sum(jax.lax.top_k(squares, 2)[0], axis=-1))

    def mean_rounding(self, p, size, du):
        # log p moves by at most osc(du) <= 2 max du; the shift by max u inside softmax rounds once more; and 8 units
        # for exp, the sum and the division.
        unit = jnp.finfo(p.dtype).eps / 2
        return p * (jnp.expm1(2 * (du + unit * size)) + (8 + p.shape[-1]) * unit)
