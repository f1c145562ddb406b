"""Losses of linear models with what is known of their curvature along a chord of predictions."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ._bernstein import UNIT, Array


@runtime_checkable
class LinearLoss(Protocol):
    """A convex loss `l(z, y)` of the K predictions z of one row. Arrays are (n, K); rows may be chords, from z_a to
    z_b.

    The constants are rounded to the safe side. `pad` (n,) is by how much z may leave the chord, in Euclidean norm.
    """

    @property
    def smoothness(self) -> float:
        """Largest eigenvalue of l''."""
        ...

    @property
    def pad(self) -> float:
        """A `pad` that costs little of the curvature."""
        ...

    def value(self, z: Array, y: Array) -> Array:
        """(n,)."""
        ...

    def gradient(self, z: Array, y: Array) -> Array:
        """(n, K)."""
        ...

    def curvature(self, z: Array, y: Array) -> Array:
        """(n, K, K), for Newton's method."""
        ...

    def rounding(self, z: Array, y: Array) -> Array:
        """(n,): bound of the rounding of `value` and of the norm of `gradient`, at the given z."""
        ...

    def floor(self, za: Array, zb: Array, y: Array, pad: Array) -> Array:
        """(n, K, K): a matrix below l'' at every point within `pad` of the chord."""
        ...

    def bend(self, za: Array, zb: Array, y: Array, pad: Array) -> tuple[Array, Array]:
        """By how much the gradient along the chord leaves the straight line between its ends: the norm (n,) of that v,
        and `v^T F^+ v` with F the `floor` (n,), infinite where F does not bound it."""
        ...

    def bow(self, za: Array, zb: Array, y: Array) -> Array:
        """(n,): bound of `(z_b - z_a)^T l'' (z_b - z_a)` on the chord."""
        ...


_SAFE = 1 + 1e-12
"""Pays for the handful of roundings in a bound made of a few operations."""


def _spread(za: Array, zb: Array) -> tuple[Array, Array, Array]:
    """Smallest and largest |z| on the chord of (n, 1) arrays, and its length."""
    a, b = za[:, 0], zb[:, 0]
    near = np.where(np.sign(a) * np.sign(b) > 0, np.minimum(np.abs(a), np.abs(b)), 0.0)
    return near, np.maximum(np.abs(a), np.abs(b)), np.abs(b - a)


def _bell(z: Array) -> Array:
    """`s(z) s(-z)`, the curvature of the logistic loss: even, falling in |z|."""
    e = np.exp(-np.abs(z))
    return e / (1 + e) ** 2


@dataclass(frozen=True)
class Logistic:
    """`l(z, y) = log(1 + exp(-y z))`, y = -1 or +1.

    `l'' = s(z) s(-z)` falls in |z|, so on a chord it is least at the larger |z|; `|l'''| <= min(l'', 1 / (6 sqrt 3))`.
    """

    smoothness: float = 0.25
    pad: float = 0.25

    def value(self, z: Array, y: Array) -> Array:
        """(n,)."""
        m = (y * z)[:, 0]
        return np.maximum(-m, 0.0) + np.log1p(np.exp(-np.abs(m)))

    def gradient(self, z: Array, y: Array) -> Array:
        """(n, 1): `-y / (1 + exp(y z))`."""
        m = y * z
        e = np.exp(-np.abs(m))
        return -y * np.where(m > 0, e, 1.0) / (1 + e)

    def curvature(self, z: Array, y: Array) -> Array:
        """(n, 1, 1)."""
        return _bell(z)[:, :, None]

    def rounding(self, z: Array, y: Array) -> Array:
        """A few units in the last place of numbers up to 1 + |z|."""
        return 32 * UNIT * (1 + np.abs(z[:, 0]))

    def floor(self, za: Array, zb: Array, y: Array, pad: Array) -> Array:
        """The curvature at the largest |z| that can be reached."""
        return (_bell(_spread(za, zb)[1] + pad) / _SAFE)[:, None, None]

    def bend(self, za: Array, zb: Array, y: Array, pad: Array) -> tuple[Array, Array]:
        """`|l'''| (z_b - z_a)^2 / 8`."""
        near, _, length = _spread(za, zb)
        v = np.minimum(_bell(near), 1 / (6 * np.sqrt(3))) * length**2 / 8 * _SAFE
        floor = self.floor(za, zb, y, pad)[:, 0, 0]
        return v, np.where(floor > 1e-200, v * (v / np.maximum(floor, 1e-200)), np.inf) * _SAFE

    def bow(self, za: Array, zb: Array, y: Array) -> Array:
        """The curvature at the smallest |z|, times the squared length."""
        near, _, length = _spread(za, zb)
        return _bell(near) * length**2 * _SAFE


@dataclass(frozen=True)
class Softmax:
    """`l(z, y) = log sum_k exp(z_k) - y . z`, y one-hot.

    A change s of z multiplies every probability by a factor between `exp(-R)` and `exp(R)`, `R = max s - min s`, and
    `u^T l'' u = min_c sum_k p_k (u_k - c)^2`, so `exp(-R) l''(z) <= l''(z + s) <= exp(R) l''(z)`.
    Along a chord of direction e, `p'' = l''(z) q` with `q = (e - mean_p e)^2`, so
    `p''^T F^+ p'' <= exp(R/2 + R') E q^2` for `F = exp(-R') l''(middle)`, and `E q^2 <= R^2 Var_p(e)`; `|p''|_1 <= 2
    Var_p(e)`.
    """

    smoothness: float = 0.5
    pad: float = 0.25

    def value(self, z: Array, y: Array) -> Array:
        """(n,)."""
        top = z.max(axis=1, keepdims=True)
        return top[:, 0] + np.log(np.sum(np.exp(z - top), axis=1)) - np.sum(y * z, axis=1)

    def gradient(self, z: Array, y: Array) -> Array:
        """(n, K): `p - y`."""
        return self._p(z) - y

    def curvature(self, z: Array, y: Array) -> Array:
        """(n, K, K): `diag(p) - p p^T`."""
        p = self._p(z)
        return p[:, :, None] * (np.eye(z.shape[1]) - p[:, None, :])

    def rounding(self, z: Array, y: Array) -> Array:
        """A few units in the last place, and the rounding of `z - max z`."""
        return (32 + 4 * z.shape[1]) * UNIT * (1 + 2 * np.max(np.abs(z), axis=1))

    def floor(self, za: Array, zb: Array, y: Array, pad: Array) -> Array:
        """`exp(-R/2 - sqrt(2) pad) l''(middle)`: a deviation of norm s has a range of at most sqrt(2) s."""
        less = np.exp(-(0.5 * self._range(za, zb) + np.sqrt(2) * pad)) / _SAFE
        return less[:, None, None] * self.curvature(0.5 * (za + zb), y)

    def bend(self, za: Array, zb: Array, y: Array, pad: Array) -> tuple[Array, Array]:
        """See the class; 1/8 of p''."""
        r, variance = self._range(za, zb), self.bow(za, zb, y)
        grown = np.exp(r + np.sqrt(2) * pad)  # exp(R/2) for l'' on the chord, exp(R/2 + sqrt(2) pad) for F
        return variance / 4 * _SAFE, grown * r**2 * variance / 64 * _SAFE

    def bow(self, za: Array, zb: Array, y: Array) -> Array:
        """`exp(R/2) Var_(p of the middle)(z_b - z_a)`."""
        e, p = zb - za, self._p(0.5 * (za + zb))
        mean = np.sum(p * e, axis=1, keepdims=True)
        return np.exp(0.5 * self._range(za, zb)) * np.sum(p * (e - mean) ** 2, axis=1) * _SAFE

    @staticmethod
    def _p(z: Array) -> Array:
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / np.sum(e, axis=1, keepdims=True)

    @staticmethod
    def _range(za: Array, zb: Array) -> Array:
        e = zb - za
        return e.max(axis=1) - e.min(axis=1)


@dataclass(frozen=True)
class Huber:
    """`l(z, y) = r^2 / 2` for `|r| <= delta`, else `delta |r| - delta^2 / 2`, `r = z - y`.

    The gradient is piecewise linear: on a chord of length e it leaves its line by `t (1 - t) e` for a kink at t, at
    most.
    """

    delta: float = 1.0
    smoothness: float = 1.0

    def __post_init__(self):
        if not self.delta > 0:
            raise ValueError(f"Huber: delta must be positive; got {self.delta}.")

    @property
    def pad(self) -> float:
        """A twentieth of delta."""
        return 0.05 * self.delta

    def value(self, z: Array, y: Array) -> Array:
        """(n,)."""
        r = np.abs(z - y)[:, 0]
        return np.where(r <= self.delta, 0.5 * r**2, self.delta * (r - 0.5 * self.delta))

    def gradient(self, z: Array, y: Array) -> Array:
        """(n, 1): `clip(r, -delta, delta)`."""
        return np.clip(z - y, -self.delta, self.delta)

    def curvature(self, z: Array, y: Array) -> Array:
        """(n, 1, 1): 1 inside, 0 outside."""
        return (np.abs(z - y) <= self.delta).astype(np.float64)[:, :, None]

    def rounding(self, z: Array, y: Array) -> Array:
        """The rounding of r, and of the value, which is at most `delta |r|`."""
        r = np.abs(z - y)[:, 0]
        return 8 * UNIT * (np.abs(z[:, 0]) + np.abs(y[:, 0])) * (1 + np.minimum(self.delta, r))

    def floor(self, za: Array, zb: Array, y: Array, pad: Array) -> Array:
        """1 where the whole chord and its surroundings are inside, else 0."""
        far = np.maximum(np.abs(za - y), np.abs(zb - y))[:, 0] + pad
        return (far * _SAFE < self.delta).astype(np.float64)[:, None, None]

    def bend(self, za: Array, zb: Array, y: Array, pad: Array) -> tuple[Array, Array]:
        """The sum over the two kinks."""
        ra, rb = (za - y)[:, 0], (zb - y)[:, 0]
        length = np.abs(rb - ra)
        v = np.zeros_like(length)
        for kink in (-self.delta, self.delta):
            t = np.clip((kink - ra) / np.where(rb == ra, 1.0, rb - ra), 0.0, 1.0)
            v += t * (1 - t) * length
        # A kink next to an end may be missed by rounding; it is worth as much as that rounding.
        v = v * _SAFE + 8 * UNIT * (np.abs(ra) + np.abs(rb) + self.delta)
        floor = self.floor(za, zb, y, pad)[:, 0, 0]
        return v, np.where(floor > 0, v**2, np.inf)

    def bow(self, za: Array, zb: Array, y: Array) -> Array:
        """The squared length, unless the chord is outside altogether."""
        ra, rb = (za - y)[:, 0], (zb - y)[:, 0]
        outside = (np.minimum(ra, rb) > self.delta) | (np.maximum(ra, rb) < -self.delta)
        return np.where(outside, 0.0, (rb - ra) ** 2 * _SAFE)


@dataclass(frozen=True)
class Weighted:
    """`v l(z, y)`: a loss of rows that weigh differently, the weight v being the last column of the targets."""

    loss: LinearLoss
    heaviest: float
    """The largest weight."""

    @property
    def smoothness(self) -> float:
        """That of the heaviest row."""
        return self.loss.smoothness * self.heaviest

    @property
    def pad(self) -> float:
        """The loss's own."""
        return self.loss.pad

    def value(self, z: Array, y: Array) -> Array:
        """(n,)."""
        return y[:, -1] * self.loss.value(z, y[:, :-1])

    def gradient(self, z: Array, y: Array) -> Array:
        """(n, K)."""
        return y[:, -1:] * self.loss.gradient(z, y[:, :-1])

    def curvature(self, z: Array, y: Array) -> Array:
        """(n, K, K)."""
        return y[:, -1, None, None] * self.loss.curvature(z, y[:, :-1])

    def rounding(self, z: Array, y: Array) -> Array:
        """With one product more, of a value and of a slope that are at most `smoothness |z|` beyond those at 0."""
        own = self.loss.rounding(z, y[:, :-1]) + 4 * UNIT * np.abs(self.loss.value(z, y[:, :-1]))
        return y[:, -1] * (own + 4 * UNIT * np.linalg.norm(self.loss.gradient(z, y[:, :-1]), axis=1))

    def floor(self, za: Array, zb: Array, y: Array, pad: Array) -> Array:
        """(n, K, K)."""
        return y[:, -1, None, None] * self.loss.floor(za, zb, y[:, :-1], pad) / _SAFE

    def bend(self, za: Array, zb: Array, y: Array, pad: Array) -> tuple[Array, Array]:
        """`v^T F^+ v` of a v and an F that are both so many times larger."""
        v, energy = self.loss.bend(za, zb, y[:, :-1], pad)
        return y[:, -1] * v * _SAFE, y[:, -1] * energy * _SAFE**2

    def bow(self, za: Array, zb: Array, y: Array) -> Array:
        """(n,)."""
        return y[:, -1] * self.loss.bow(za, zb, y[:, :-1]) * _SAFE
