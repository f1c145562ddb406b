"""Pointwise losses ℓ(u; y) of linear predictions u, with the constants that curvature bounds need."""

import abc
import contextlib
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._processes import here
from .. import _double_double as dd
from .._double_double import DoubleDouble, lifted
from ._design import check_finite, narrowest, real_numbers


def _constant(value: float) -> Any:
    """A number that belongs to the class, as a field, since for some losses it depends on a setting."""
    return eqx.field(static=True, default=value)


class AbstractPointLoss(eqx.Module):
    """ℓ(u; y) for the predictions u of n examples: `(n,)`, or `(n, C)` where a prediction has C parts.

    Derivatives are taken from a *statistic* s(u, y), whatever the loss needs of a prediction: it is worked out once a
    point, and kept for all Hessian products there.
    """

    curvature: eqx.AbstractVar[float]
    """sup over u of the largest eigenvalue of ∇²ℓ; infinite where it is unbounded."""
    third: eqx.AbstractVar[float]
    """sup over u and unit vectors of |D³ℓ(u)[a, b, c]|."""
    self_concordance: eqx.AbstractVar[float]
    """M with |D³ℓ(u)[a, b, c]| <= M osc(c) ‖a‖_D ‖b‖_D, D = ∇²ℓ(u); osc(c) = |c|, max c - min c for several parts."""
    third_oscillation: eqx.AbstractVar[float]
    """sup over u and unit vectors a, b of |D³ℓ(u)[a, b, c]|/osc(c)."""

    starts_at_centre: ClassVar[bool] = False
    """Whether a search had better start at the centre of the targets than at 0: where ∇²ℓ changes a lot on the way."""
    labels: ClassVar[bool] = False
    """Whether targets are labels of classes, integers from 0, rather than numbers."""

    def as_targets(self, y: Any, name: str, outputs: int | None = None) -> Array:
        """`y` as an array that holds each target as it was given, looked at where it is concrete.

        **Raises:** `ValueError`, of `name`, for targets that the loss does not understand.
        """
        if self.labels:
            y = y if isinstance(y, jax.Array) else np.asarray(y)
            if y.ndim != 1 or y.dtype.kind not in "biu":
                raise ValueError(f"{name} must be integer labels of shape (n,); got {y.dtype}{list(y.shape)}.")
            found = y
        else:
            found = real_numbers(y, name)
            check_finite(found, name)
            if (y.dtype if isinstance(y, jax.Array) else np.asarray(y).dtype).kind in "biu":
                found = narrowest(found)
        with contextlib.suppress(jax.errors.TracerArrayConversionError):
            complaint = self.complaint(np.asarray(here(found)), outputs)
            if complaint:
                raise ValueError(f"{name} must be {complaint}")
        return jnp.asarray(found, jnp.int32) if self.labels else found

    @abc.abstractmethod
    def complaint(self, y: np.ndarray, outputs: int | None) -> str:
        """What targets must be and what was found instead; empty where there is nothing to say."""

    @abc.abstractmethod
    def centre(self, y: Array, offset: Array) -> Float[Array, "*C"]:
        """The constant c whose predictions c + offset are near the middle of the targets."""

    @abc.abstractmethod
    def value(self, u: Float[Array, "n *C"], y: Array) -> Float[Array, " n"]:
        """ℓ_i(u_i)."""

    @abc.abstractmethod
    def value_size(self, u: Float[Array, "n *C"], y: Array) -> Float[Array, " n"]:
        """The size of the numbers that ℓ_i is summed from: its computed value is off by a few units of this."""

    @abc.abstractmethod
    def statistic(self, u: Float[Array, "n *C"], y: Array) -> Float[Array, "n *C"]:
        """s(u, y)."""

    @abc.abstractmethod
    def slope(self, s: Float[Array, "n *C"], y: Array) -> Float[Array, "n *C"]:
        """∇ℓ_i."""

    @abc.abstractmethod
    def curve(self, s: Float[Array, "n *C"], v: Float[Array, "n *C"]) -> Float[Array, "n *C"]:
        """∇²ℓ_i v_i."""

    @abc.abstractmethod
    def curve_diagonal(self, s: Float[Array, "n *C"]) -> Float[Array, "n *C"]:
        """The diagonal of ∇²ℓ_i."""

    @abc.abstractmethod
    def curve_abs(self, s: Float[Array, "n *C"], v: Float[Array, "n *C"]) -> Float[Array, "n *C"]:
        """|∇²ℓ_i| v_i with the absolute value taken entry by entry, for v >= 0."""

    @abc.abstractmethod
    def top_curvature(self, s: Float[Array, "n *C"]) -> Float[Array, " n"]:
        """An upper bound of the largest eigenvalue of ∇²ℓ_i."""

    @abc.abstractmethod
    def dual_slope(self, s: Float[Array, "n *C"], y: Array, error: Float[Array, "n *C"]) -> Float[Array, " n"]:
        """∇ℓᵀ (∇²ℓ)^† ∇ℓ, of a computed ∇ℓ that is off by `error`: (∇ℓᵀv)² is at most this times ‖v‖²_D for every v."""

    def curve_cancellation(self, s: Float[Array, "n *C"]) -> Float[Array, "n *C"]:
        """How many units the computed ∇²ℓ is off by beyond a relative error: where it is a difference."""
        return jnp.zeros_like(s)

    @abc.abstractmethod
    def oscillation(self, v: Float[Array, "n *C"]) -> Float[Array, " n"]:
        """osc(v_i): |v_i| for one part, max - min over several."""

    @abc.abstractmethod
    def oscillation_norm(self, squares: Float[Array, "n *C"]) -> Float[Array, " n"]:
        """sup of osc over vectors Σ_c (v_ic)²/squares_ic <= 1."""

    @abc.abstractmethod
    def slope_rounding(
        self, s: Float[Array, "n *C"], y: Array, size: Float[Array, "n ..."], du: Float[Array, "n ..."], unit: float
    ) -> Float[Array, "n *C"]:
        """A bound on the error of the computed ∇ℓ, entry by entry.

        For |u| <= size, a computed u that is off by du, and functions good to 8 `unit`s.
        """

    @abc.abstractmethod
    def extended(self, u: DoubleDouble, v: DoubleDouble, y: Array) -> tuple[DoubleDouble, DoubleDouble]:
        """(∇ℓ, ∇²ℓ v) in double-double arithmetic, each to a few 2^-94 of the terms that it is summed from."""


class SquaredLoss(AbstractPointLoss):
    """ℓ = ½ |u - y|², s = u - y; the curvature is constant."""

    curvature: float = _constant(1.0)
    third: float = _constant(0.0)
    self_concordance: float = _constant(0.0)
    third_oscillation: float = _constant(0.0)

    def complaint(self, y, outputs):
        return ""

    def centre(self, y, offset):
        return jnp.mean(y - offset, axis=0)

    def value(self, u, y):
        return 0.5 * jnp.sum(jnp.square(u - y), axis=tuple(range(1, u.ndim)))

    def value_size(self, u, y):
        return self.value(u, y)

    def statistic(self, u, y):
        return u - y

    def slope(self, s, y):
        return s

    def curve(self, s, v):
        return v

    def curve_diagonal(self, s):
        return jnp.ones_like(s)

    def curve_abs(self, s, v):
        return v

    def top_curvature(self, s):
        return jnp.ones(s.shape[:1], s.dtype)

    def dual_slope(self, s, y, error):
        return jnp.sum(jnp.square(jnp.abs(s) + error), axis=tuple(range(1, s.ndim)))

    def oscillation(self, v):
        return jnp.sqrt(jnp.sum(jnp.square(v), axis=tuple(range(1, v.ndim))))

    def oscillation_norm(self, squares):
        return jnp.sqrt(jnp.max(squares, axis=tuple(range(1, squares.ndim))))

    def slope_rounding(self, s, y, size, du, unit):
        return du + 8 * unit * jnp.abs(s)

    def extended(self, u, v, y):
        return u - lifted(y), v


class _ScalarLoss(AbstractPointLoss):
    """What every loss of a scalar prediction shares: ∇²ℓ is a number."""

    def curve(self, s, v):
        return self.curve_diagonal(s) * v

    def curve_abs(self, s, v):
        return self.curve_diagonal(s) * v

    def top_curvature(self, s):
        return self.curve_diagonal(s)

    def oscillation(self, v):
        return jnp.abs(v)

    def oscillation_norm(self, squares):
        return jnp.sqrt(squares)


class LogisticLoss(_ScalarLoss):
    """ℓ = log(1 + e^u) - y u for y in {0, 1}; s = p = 1/(1 + e^-u).

    ℓ'' = p(1 - p) <= 1/4; ℓ''' = p(1 - p)(1 - 2p), at most 1/(6√3), and |ℓ'''| <= ℓ'': self-concordant with M = 1.
    """

    curvature: float = _constant(0.25)
    third: float = _constant(0.09622504486493764)
    self_concordance: float = _constant(1.0)
    third_oscillation: float = _constant(0.09622504486493764)

    def complaint(self, y, outputs):
        bad = y[(y != 0) & (y != 1)] if y.ndim == 1 else y.ravel()
        return f"0 or 1, of shape (n,); got {bad[0]} among {list(y.shape)}." if bad.size else ""

    def centre(self, y, offset):
        return jnp.zeros(())

    def value(self, u, y):
        return jax.nn.softplus(u) - y * u

    def value_size(self, u, y):
        return jax.nn.softplus(u) + jnp.abs(u)

    def statistic(self, u, y):
        return jax.nn.sigmoid(u)

    def slope(self, s, y):
        return s - y

    def curve_diagonal(self, s):
        return s * (1 - s)

    def top_curvature(self, s):
        return s * (1 - s + 20 * jnp.finfo(s.dtype).eps)

    def curve_cancellation(self, s):
        return 20 * s

    def dual_slope(self, s, y, error):
        return jnp.where(y > 0.5, (1 - s + error) / s, s / jnp.maximum(1 - s - error, 0))

    def slope_rounding(self, s, y, size, du, unit):
        # |dp/du| = p(1 - p), which changes by a factor of at most e^du within du; and 8 units for the function itself.
        return s * ((1 - s) * du * jnp.exp(du) + 8 * unit)

    def extended(self, u, v, y):
        one = lifted(jnp.ones_like(u.hi))
        negative = u.hi < 0
        e = dd.exp(_where(negative, u, -u))
        p = _where(negative, e, one) / (one + e)
        return p - lifted(y), p * (one - p) * v


class PoissonLoss(_ScalarLoss):
    """ℓ = e^u - y u for counts y >= 0 (up to log y!); s = e^u.

    ℓ'' = ℓ''' = e^u: self-concordant with M = 1, and no global constant of curvature: only local bounds apply.
    """

    curvature: float = _constant(float("inf"))
    third: float = _constant(float("inf"))
    self_concordance: float = _constant(1.0)
    third_oscillation: float = _constant(float("inf"))

    def complaint(self, y, outputs):
        return f"counts, numbers >= 0; got {y.min()}." if y.size and y.min() < 0 else ""

    starts_at_centre: ClassVar[bool] = True

    def centre(self, y, offset):
        return jnp.log(jnp.maximum(jnp.mean(y), 1e-3)) - jnp.log(jnp.mean(jnp.exp(offset)))

    def value(self, u, y):
        return jnp.exp(u) - y * u

    def value_size(self, u, y):
        return jnp.exp(u) + y * jnp.abs(u)

    def statistic(self, u, y):
        return jnp.exp(u)

    def slope(self, s, y):
        return s - y

    def curve_diagonal(self, s):
        return s

    def dual_slope(self, s, y, error):
        return jnp.square(jnp.abs(s - y) + error) / s

    def slope_rounding(self, s, y, size, du, unit):
        return s * (jnp.expm1(du) + 8 * unit)

    def extended(self, u, v, y):
        mean = dd.exp(u)
        return mean - lifted(y), mean * v


class PseudoHuberLoss(_ScalarLoss):
    """ℓ = δ² (√(1 + ((u - y)/δ)²) - 1): quadratic within about δ of y, linear beyond; s = (u - y)/δ.

    ℓ' = δ s/√(1 + s²), ℓ'' = (1 + s²)^(-3/2) <= 1, ℓ''' = -3 (s/δ) (1 + s²)^(-5/2), at most 0.8587/δ (at s = ½), and
    |ℓ'''|/ℓ'' = 3|s|/(δ (1 + s²)) <= 3/(2δ): self-concordant with M = 3/(2δ).
    """

    delta: float = eqx.field(static=True)
    curvature: float = eqx.field(static=True)
    third: float = eqx.field(static=True)
    self_concordance: float = eqx.field(static=True)
    third_oscillation: float = eqx.field(static=True)

    def __init__(self, delta: float = 1.0):
        self.delta, self.curvature = delta, 1.0
        self.third = self.third_oscillation = 0.8587 / delta
        self.self_concordance = 1.5 / delta

    def complaint(self, y, outputs):
        return ""

    starts_at_centre: ClassVar[bool] = True

    def centre(self, y, offset):
        return jnp.median(y - offset)

    def value(self, u, y):
        square = jnp.square((u - y) / self.delta)
        return self.delta**2 * square / (1 + jnp.sqrt(1 + square))

    def value_size(self, u, y):
        return self.value(u, y)

    def statistic(self, u, y):
        return (u - y) / self.delta

    def slope(self, s, y):
        return self.delta * s / jnp.sqrt(1 + jnp.square(s))

    def curve_diagonal(self, s):
        return (1 + jnp.square(s)) ** -1.5

    def dual_slope(self, s, y, error):
        return jnp.square(jnp.abs(self.slope(s, y)) + error) * (1 + jnp.square(s)) ** 1.5

    def slope_rounding(self, s, y, size, du, unit):
        return du + 8 * unit * jnp.abs(self.slope(s, y))

    def extended(self, u, v, y):
        delta = lifted(jnp.full_like(y, self.delta))
        s = (u - lifted(y)) / delta
        square = lifted(jnp.ones_like(y)) + s * s
        root = dd.sqrt(square)
        return delta * s / root, v / (square * root)


class SoftmaxLoss(AbstractPointLoss):
    """ℓ = log Σ_c e^{u_c} - u_y for labels y in 0..C-1; s = p = softmax(u).

    ∇²ℓ = diag(p) - ppᵀ <= ½ I. D³ℓ[a, b, c] is the third cumulant E[(a-ā)(b-b̄)(c-c̄)] under p, at most
    osc(c)·‖a‖_D‖b‖_D (Cauchy-Schwarz, |c - c̄| <= osc(c)): self-concordant with M = 1, and at most √2 · ½ for unit
    vectors (osc(c) = max c - min c <= √2 ‖c‖, D <= ½ I).
    """

    curvature: float = _constant(0.5)
    third: float = _constant(0.7071067811865476)
    self_concordance: float = _constant(1.0)
    third_oscillation: float = _constant(0.5)

    labels: ClassVar[bool] = True

    def complaint(self, y, outputs):
        if y.size and (y.min() < 0 or (outputs is not None and y.max() >= outputs)):
            allowed = "0, 1, ..." if outputs is None else f"from 0 to {outputs - 1}"
            return f"labels {allowed}; got {y.min()} to {y.max()}."
        return ""

    def centre(self, y, offset):
        return jnp.zeros(())

    def value(self, u, y):
        return jax.nn.logsumexp(u, axis=-1) - jnp.take_along_axis(u, y[:, None], axis=-1)[:, 0]

    def value_size(self, u, y):
        return jnp.log(float(u.shape[-1])) + 2 * jnp.max(jnp.abs(u), axis=-1)

    def statistic(self, u, y):
        return jax.nn.softmax(u, axis=-1)

    def slope(self, s, y):
        return s - jax.nn.one_hot(y, s.shape[-1], dtype=s.dtype)

    def curve(self, s, v):
        return s * (v - jnp.sum(s * v, axis=-1, keepdims=True))

    def curve_diagonal(self, s):
        return s * (1 - s)

    def curve_abs(self, s, v):
        return s * (v + jnp.sum(s * v, axis=-1, keepdims=True))

    def top_curvature(self, s):
        return jnp.minimum(0.5, jnp.max(2 * s * (1 - s), axis=-1))

    def dual_slope(self, s, y, error):
        # ∇ℓ = D(-e_y/p_y), so ∇ℓᵀD^†∇ℓ = -∇ℓ_y/p_y; the remaining mass is summed, where 1 - p_y would cancel.
        chosen = jax.nn.one_hot(y, s.shape[-1], dtype=s.dtype)
        return jnp.sum(s * (1 - chosen), axis=-1) / jnp.sum(s * chosen, axis=-1)

    def oscillation(self, v):
        return jnp.max(v, axis=-1) - jnp.min(v, axis=-1)

    def oscillation_norm(self, squares):
        return jnp.sqrt(jnp.sum(jax.lax.top_k(squares, 2)[0], axis=-1))

    def slope_rounding(self, s, y, size, du, unit):
        # log p moves by at most osc(du) <= 2 max du; the shift by max u inside softmax rounds once more; and 8 units
        # for exp, the sum and the division.
        return s * (jnp.expm1(2 * (du + unit * size)) + (8 + s.shape[-1]) * unit)

    def extended(self, u, v, y):
        top = jnp.broadcast_to(jnp.max(u.hi, axis=-1, keepdims=True), u.hi.shape)
        e = dd.exp(u - lifted(top))
        p = e / _spread(dd.total(e, 1), u.hi.shape)
        mean = _spread(dd.total(p * v, 1), u.hi.shape)
        return p - lifted(jax.nn.one_hot(y, u.hi.shape[-1], dtype=u.hi.dtype)), p * (v - mean)


def _where(condition: Array, a: DoubleDouble, b: DoubleDouble) -> DoubleDouble:
    return DoubleDouble(jnp.where(condition, a.hi, b.hi), jnp.where(condition, a.lo, b.lo))


def _spread(x: DoubleDouble, shape: tuple[int, ...]) -> DoubleDouble:
    return DoubleDouble(jnp.broadcast_to(x.hi, shape), jnp.broadcast_to(x.lo, shape))
