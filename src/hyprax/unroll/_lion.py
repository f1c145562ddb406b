"""Lion, in floating point and exactly in fixed point."""

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Integer, PyTree

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

MOMENTUM, SIGNS = "momentum", "signs"
BITS = 2
"""A sign is 1, -1 or 0: bit 0 for positive, bit 1 for negative."""


class Lion(AbstractReversibleOptimizer):
    r"""c = β1 m + (1 - β1) g, w ← (1 - α λ) w - α sign(c), m ← β2 m + (1 - β2) g.

    Chen et al. 2023 (arXiv 2302.06675), as `optax.lion`. The sign has derivative 0, so λ, α and w_0 act through the
    weights alone, and β1, β2 not at all where no sign changes.

    A step cannot be undone from weights and momentum: its sign needs the gradient at weights that are not yet known.
    So [`hyprax.unroll.Reversible`][] puts the signs away too, two bits a parameter and step beside the momentum's
    log2(1/β2), where weights in float32 would take 32.

    **Arguments:**

    - `learning_rate`, `beta1`, `beta2`, `weight_decay`: α, β1, β2, λ, each a number, a [`hyprax.unroll.Schedule`][], a
        [`hyprax.unroll.PerWeight`][], or a prefix of the tree of weights with such leaves; all are differentiated.
    - `fraction_bits`: F, for reversal: weights are multiples of units between 2^-F and 2^(8 - F), of magnitude below
        2^(62 - F); m of units 2^34 times as fine, of magnitude below 2^(70 - F).

    **Raises:** `ValueError` for bits out of range.
    """

    learning_rate: PyTree
    beta1: PyTree
    beta2: PyTree
    weight_decay: PyTree
    bits: int = eqx.field(static=True)

    states: ClassVar[Mapping[str, int]] = {MOMENTUM: 2}
    codes: ClassVar[tuple[str, ...]] = (SIGNS,)
    pullback_needs_gradient: ClassVar[bool] = False

    def __init__(
        self,
        learning_rate: Any,
        beta1: Any = 0.9,
        beta2: Any = 0.99,
        weight_decay: Any = 1e-3,
        *,
        fraction_bits: int = 50,
    ):
        self.learning_rate, self.beta1, self.beta2 = learning_rate, beta1, beta2
        self.weight_decay, self.bits = weight_decay, checked_bits("Lion", fraction_bits)

    def fraction_bits(self) -> dict[str, int]:
        return {WEIGHTS: self.bits, MOMENTUM: self.bits + FINER, SIGNS: 0}

    def hyperparameters(self) -> dict[str, PyTree]:
        return {
            "learning_rate": self.learning_rate,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "weight_decay": self.weight_decay,
        }

    def tables(self, hyper: Coefficients, steps: int) -> Coefficients:
        rate, beta1, beta2 = hyper["learning_rate"], hyper["beta1"], hyper["beta2"]
        return {"rate": rate, "decay": rate * hyper["weight_decay"], "beta1": beta1, "beta2": beta2}

    def factors(self, tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        momentum = positive_factors("beta2", tables["beta2"])
        room = np.full((1, momentum.shape[1]), 2.0**-BITS)
        return {MOMENTUM: momentum, WEIGHTS: decay_factors(tables["decay"]), SIGNS: room}

    def increments(self, tables: Mapping[str, np.ndarray], units: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        unit = units[MOMENTUM]
        return {
            "kick": (1 - tables["beta2"]) / unit,
            "old": tables["beta1"] / tables["beta2"] * unit,
            "new": 1 - tables["beta1"],
            "move": tables["rate"] / units[WEIGHTS],
            "place": np.log2(units[SIGNS][0] / units[SIGNS]),
        }

    def apply(
        self, c: Coefficients, gradient: Array, states: dict[str, Array], weights: Array
    ) -> tuple[dict[str, Array], Array]:
        momentum = states[MOMENTUM]
        sign = jnp.sign(c["beta1"] * momentum + (1 - c["beta1"]) * gradient)
        after = c["beta2"] * momentum + (1 - c["beta2"]) * gradient
        return {MOMENTUM: after}, weights - c["rate"] * sign - c["decay"] * weights

    def update(self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        rate, decay = (per_leaf(lookup(x, t), params) for x in (self.learning_rate, self.weight_decay))
        betas = {"beta1": lookup(self.beta1, t), "beta2": lookup(self.beta2, t)}
        coefficients = {"rate": rate, "decay": jax.tree.map(jnp.multiply, rate, decay), **betas}
        return self._update_leaves(coefficients, grads, state, params)

    def forward(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        mixed = as_wide(words[MOMENTUM]) * k["old"] + gradient.astype(jnp.float64) * k["new"]
        code = (mixed > 0).astype(jnp.int64) + ((mixed < 0).astype(jnp.int64) << 1)
        signs = words[SIGNS] + (code << _place(k))
        after = {MOMENTUM: words[MOMENTUM] + _kick(k, gradient), SIGNS: signs}
        return {**after, WEIGHTS: words[WEIGHTS] - _move(k, after)}

    def undo_weights(self, k: Coefficients, words: Words) -> Words:
        return {**words, WEIGHTS: words[WEIGHTS] + _move(k, words)}

    def undo_states(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        signs = words[SIGNS] - (_code(k, words) << _place(k))
        return {**words, MOMENTUM: words[MOMENTUM] - _kick(k, gradient), SIGNS: signs}


def _kick(k: Coefficients, gradient: Array) -> Long:
    return to_long(gradient.astype(jnp.float64) * k["kick"], 2)


def _place(k: Coefficients) -> Array:
    return to_word(k["place"])


def _code(k: Coefficients, words: Words) -> Array:
    """The sign of this step, as it was put away."""
    return (words[SIGNS] >> _place(k)) & (2**BITS - 1)


def _move(k: Coefficients, words: Words) -> Array:
    code = _code(k, words)
    return to_word(((code & 1) - (code >> 1)).astype(jnp.float64) * k["move"])
