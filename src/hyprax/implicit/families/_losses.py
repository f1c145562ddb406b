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
    def mean_rounding(
        self, u: Float[Array, "n *C"], p: Float[Array, "n *C"], du: Float[Array, "n *C"]
    ) -> Float[Array, "n *C"]:
        """A bound on the error of the computed p, entry by entry, when the computed u is off by at most du."""


class SquaredLoss(AbstractPointLoss):
    """ℓ = ½ |u - y|², with p = u; the curvature is constant."""

    curvature: ClassVar[float] = 1.0
    third: ClassVar[float] = 0.0

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

    def mean_rounding(self, u, p, du):
        return du


class LogisticLoss(AbstractPointLoss):
    """ℓ = log(1 + e^u) - y u for y in {0, 1}, with p = 1/(1 + e^-u).

    ℓ'' = p(1 - p) <= 1/4; ℓ''' = p(1 - p)(1 - 2p), at most 1/(6√3).
    """

    curvature: ClassVar[float] = 0.25
    third: ClassVar[float] = 0.09622504486493763

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

    def mean_rounding(self, u, p, du):
        # |dp/du| = p(1 - p), which changes by a factor of at most e^du within du; and 8 units for the function itself.
        unit = jnp.finfo(u.dtype).eps / 2
        return p * ((1 - p) * du * jnp.exp(du) + 8 * unit)


class SoftmaxLoss(AbstractPointLoss):
    """ℓ = log Σ_c e^{u_c} - u_y for labels y in 0..C-1, with p = softmax(u).

    ∇²ℓ = diag(p) - ppᵀ <= ½ I. D³ℓ[a, b, c] is the third cumulant E[(a-ā)(b-b̄)(c-c̄)] under p, at most
    osc(c)·‖a‖_D‖b‖_D <= √2 · ½ for unit vectors (osc(c) = max c - min c <= √2 ‖c‖, D <= ½ I).
    """

    curvature: ClassVar[float] = 0.5
    third: ClassVar[float] = 0.7071067811865476

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

    def mean_rounding(self, u, p, du):
        # log p moves by at most osc(du) <= 2 max du; the shift by max u inside softmax rounds once more; and 8 units
        # for exp, the sum and the division.
        unit = jnp.finfo(u.dtype).eps / 2
        wide = 2 * jnp.max(du + unit * jnp.abs(u), axis=-1, keepdims=True)
        classes = u.shape[-1]
        return p * (jnp.expm1(wide) + (8 + classes) * unit)
