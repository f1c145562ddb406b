"""Muon, in floating point and exactly in fixed point."""

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Integer, PyTree

from .._products import product
from ._at_zero import smooth_ratio, smooth_root
from ._fixed_point import Long, as_wide, to_long, to_word
from ._optimizer import lookup, per_leaf
from ._reversible_optimizer import (
    FINER,
    WEIGHTS,
    AbstractReversibleOptimizer,
    Coefficients,
    Words,
    checked_bits,
    decay_factors,
    positive_factors,
)

VELOCITY = "velocity"
QUINTIC, ITERATIONS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-8


class Muon(AbstractReversibleOptimizer):
    r"""v ← γ v + g, w ← (1 - α λ) w - α √max(1, n/m) O(v), O the nearest orthogonal matrix, about.

    O is five quintic Newton-Schulz iterations from v/‖v‖, X ← a X + (b A + c A²) X with A = X Xᵀ, which bring all
    singular values near 1 (Jordan 2024). Weights of shape (m, n) are m inputs by n outputs; with more axes, all but the
    last are inputs; a vector is one input by n outputs, and moves along v/‖v‖. As `optax.contrib.scale_by_muon` without
    `nesterov`, whose step has no explicit inverse. Undone, it needs nothing of O but to compute it again.

    **Arguments:**

    - `learning_rate`, `momentum`, `weight_decay`: α, γ, λ, each a number, a [`hyprax.unroll.Schedule`][], a
        [`hyprax.unroll.PerWeight`][], or a prefix of the tree of weights with such leaves; all are differentiated.
    - `fraction_bits`: F, for reversal: weights are multiples of units between 2^-F and 2^(8 - F), of magnitude below
        2^(62 - F); v of units 2^34 times as fine, of magnitude below 2^(70 - F).

    **Raises:** `ValueError` for bits out of range.

    Source: K. Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024.
    """

    learning_rate: PyTree
    momentum: PyTree
    weight_decay: PyTree
    bits: int = eqx.field(static=True)

    states: ClassVar[Mapping[str, int]] = {VELOCITY: 2}
    pullback_needs_gradient: ClassVar[bool] = True
    by_leaf: ClassVar[bool] = True

    def __init__(self, learning_rate: Any, momentum: Any = 0.95, weight_decay: Any = 0.0, *, fraction_bits: int = 50):
        self.learning_rate, self.momentum = learning_rate, momentum
        self.weight_decay, self.bits = weight_decay, checked_bits("Muon", fraction_bits)

    def fraction_bits(self) -> dict[str, int]:
        return {WEIGHTS: self.bits, VELOCITY: self.bits + FINER}

    def hyperparameters(self) -> dict[str, PyTree]:
        return {"learning_rate": self.learning_rate, "momentum": self.momentum, "weight_decay": self.weight_decay}

    def tables(self, hyper: Coefficients, steps: int) -> Coefficients:
        rate = hyper["learning_rate"]
        return {"rate": rate, "decay": rate * hyper["weight_decay"], "momentum": hyper["momentum"]}

    def factors(self, tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {VELOCITY: positive_factors("momentum", tables["momentum"]), WEIGHTS: decay_factors(tables["decay"])}

    def increments(self, tables: Mapping[str, np.ndarray], units: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"kick": 1 / units[VELOCITY], "unit": units[VELOCITY], "move": tables["rate"] / units[WEIGHTS]}

    def apply(
        self, c: Coefficients, gradient: Array, states: dict[str, Array], weights: Array
    ) -> tuple[dict[str, Array], Array]:
        velocity = c["momentum"] * states[VELOCITY] + gradient
        return {VELOCITY: velocity}, weights - c["rate"] * direction(velocity) - c["decay"] * weights

    def update(self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        rate, decay = (per_leaf(lookup(x, t), params) for x in (self.learning_rate, self.weight_decay))
        shrunk = jax.tree.map(jnp.multiply, rate, decay)
        return self._update_leaves(
            {"rate": rate, "decay": shrunk, "momentum": lookup(self.momentum, t)}, grads, state, params
        )

    def forward(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        velocity = words[VELOCITY] + _kick(k, gradient)
        return {VELOCITY: velocity, WEIGHTS: words[WEIGHTS] - _move(k, velocity)}

    def undo_weights(self, k: Coefficients, words: Words) -> Words:
        return {**words, WEIGHTS: words[WEIGHTS] + _move(k, words[VELOCITY])}

    def undo_states(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        return {**words, VELOCITY: words[VELOCITY] - _kick(k, gradient)}


def _kick(k: Coefficients, gradient: Array) -> Long:
    return to_long(gradient.astype(jnp.float64) * k["kick"], 2)


def _move(k: Coefficients, velocity: Long) -> Array:
    """A branch of a conditional whose outcome no compiler knows, so that it is the same program in both sweeps."""
    found = jax.lax.cond(k["unit"] > 0, direction, jnp.zeros_like, as_wide(velocity) * k["unit"])
    return to_word(found * k["move"])


def direction(velocity: Array) -> Array:
    """√max(1, n/m) O(v)."""
    matrix = velocity.reshape(-1, velocity.shape[-1] if velocity.ndim else 1)
    inputs, outputs = matrix.shape
    x = matrix.T if inputs > outputs else matrix
    x = smooth_ratio(x, jnp.broadcast_to(smooth_root(jnp.sum(x * x)) + EPS, x.shape))
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        square = product(x, x.T)
        x = a * x + product(b * square + c * product(square, square), x)
    found = x.T if inputs > outputs else x
    return max(1.0, outputs / inputs) ** 0.5 * found.reshape(velocity.shape)
