"""Losses of classes with a weight for each class."""

import abc
import math
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._double_double import lifted
from ._losses import AbstractPointLoss, LogisticLoss, SoftmaxLoss


class _WeightedClasses(AbstractPointLoss):
    """c_y ℓ(u; y): the loss ℓ of a row times the weight c_y > 0 of its class.

    Every derivative is that of ℓ times c_y, and M is that of ℓ, since both sides of its inequality are linear in ℓ. The
    statistic is that of ℓ, probabilities p >= 0, with the class in its signs: -p where y is. Weights round each
    product once more, by a unit. The weights are arrays, so that tables of other weights share a program; constants,
    which are none, are those of the largest weight rounded up to a power of two.
    """

    weights: Float[Array, " C"]
    base: eqx.AbstractVar[AbstractPointLoss]
    curvature: float = eqx.field(static=True)
    third: float = eqx.field(static=True)
    self_concordance: float = eqx.field(static=True)
    third_oscillation: float = eqx.field(static=True)

    def __init__(self, weights: Sequence[float]):
        self.weights = jnp.asarray(np.asarray(weights, float))
        largest = 2.0 ** math.ceil(math.log2(max(map(float, weights))) + 1e-12)
        self.curvature, self.third = largest * self.base.curvature, largest * self.base.third
        self.self_concordance = self.base.self_concordance
        self.third_oscillation = largest * self.base.third_oscillation

    @abc.abstractmethod
    def of(self, y: Array, dtype: jnp.dtype) -> Float[Array, " n"]:
        """c_y."""

    @abc.abstractmethod
    def signed(self, p: Array, y: Array) -> Float[Array, "n *C"]:
        """p with the class in its signs."""

    @abc.abstractmethod
    def read(self, s: Array) -> tuple[Float[Array, "n *C"], Array]:
        """p, and c_y with as many axes, from what `signed` has made."""

    def complaint(self, y, outputs):
        return self.base.complaint(y, outputs)

    def centre(self, y, offset):
        return self.base.centre(y, offset)

    def value(self, u, y):
        return self.of(y, u.dtype) * self.base.value(u, y)

    def value_size(self, u, y):
        return self.of(y, u.dtype) * self.base.value_size(u, y)

    def statistic(self, u, y):
        return self.signed(self.base.statistic(u, y), y)

    def slope(self, s, y):
        p, weight = self.read(s)
        return weight * self.base.slope(p, y)

    def curve(self, s, v):
        p, weight = self.read(s)
        return weight * self.base.curve(p, v)

    def curve_diagonal(self, s):
        p, weight = self.read(s)
        return weight * self.base.curve_diagonal(p)

    def curve_abs(self, s, v):
        p, weight = self.read(s)
        return weight * self.base.curve_abs(p, v)

    def curve_cancellation(self, s):
        p, weight = self.read(s)
        return weight * (self.base.curve_cancellation(p) + 2 * p)

    def top_curvature(self, s):
        p, weight = self.read(s)
        return self._of_rows(weight) * self.base.top_curvature(p)

    def dual_slope(self, s, y, error):
        p, weight = self.read(s)
        return self._of_rows(weight) * self.base.dual_slope(p, y, error / weight)

    def oscillation(self, v):
        return self.base.oscillation(v)

    def oscillation_norm(self, squares):
        return self.base.oscillation_norm(squares)

    def slope_rounding(self, s, y, size, du, unit):
        p, weight = self.read(s)
        rounded = self.base.slope_rounding(p, y, size, du, unit)
        return weight * (rounded + 2 * unit * jnp.abs(self.base.slope(p, y)))

    def extended(self, u, v, y):
        slope, curve = self.base.extended(u, v, y)
        weight = self.of(y, u.hi.dtype)
        weight = lifted(jnp.broadcast_to(weight[:, None] if u.hi.ndim > weight.ndim else weight, u.hi.shape))
        return weight * slope, weight * curve

    def _of_rows(self, weight: Array) -> Array:
        return weight[..., 0] if self.labels else weight


class WeightedLogisticLoss(_WeightedClasses):
    """c_y times the logistic loss, y in {0, 1}."""

    base: AbstractPointLoss = LogisticLoss()

    def __init__(self, weights: Sequence[float]):
        super().__init__(weights)

    def of(self, y, dtype):
        return jnp.where(y > 0.5, self.weights[1], self.weights[0]).astype(dtype)

    def signed(self, p, y):
        return jnp.where(y > 0.5, -p, p)

    def read(self, s):
        return jnp.abs(s), jnp.where(jnp.signbit(s), self.weights[1], self.weights[0]).astype(s.dtype)


class WeightedSoftmaxLoss(_WeightedClasses):
    """c_y times the softmax loss, y in 0..C-1."""

    labels: ClassVar[bool] = True
    base: AbstractPointLoss = SoftmaxLoss()

    def __init__(self, weights: Sequence[float]):
        super().__init__(weights)

    def of(self, y, dtype):
        return self.weights.astype(dtype)[y]

    def signed(self, p, y):
        return jnp.where(jax.nn.one_hot(y, p.shape[-1], dtype=bool), -p, p)

    def read(self, s):
        weights = jnp.broadcast_to(self.weights.astype(s.dtype), s.shape)
        return jnp.abs(s), jnp.sum(jnp.where(jnp.signbit(s), weights, 0), axis=-1, keepdims=True)


def unweighted(loss: AbstractPointLoss) -> AbstractPointLoss:
    """The loss without its weights of classes."""
    return loss.base if isinstance(loss, _WeightedClasses) else loss
