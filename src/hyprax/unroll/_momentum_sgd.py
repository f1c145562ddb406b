"""Stochastic gradient descent with momentum, in floating point and exactly in fixed point."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Integer, PyTree

from ._fixed_point import Long, as_wide, to_long, to_word
from ._optimizer import lookup
from ._reversible_optimizer import (
    FINER,
    WEIGHTS,
    AbstractReversibleOptimizer,
    Coefficients,
    Words,
    checked_bits,
    positive_factors,
)

Form: TypeAlias = Literal["paper", "polyak", "nesterov"]
FORMS = ("paper", "polyak", "nesterov")
VELOCITY = "velocity"


class MomentumSGD(AbstractReversibleOptimizer):
    r"""v_{t+1} = γ_t v_t - (1 - γ_t) g_t, w_{t+1} = w_t + α_t v_{t+1}, v_0 = 0.

    - `form="paper"`: as above (Maclaurin, Duvenaud, Adams 2015, arXiv 1502.03492).
    - `form="polyak"`: v_{t+1} = γ_t v_t - g_t, as `optax.sgd(α, momentum=γ)`.
    - `form="nesterov"`: v_{t+1} = γ_t v_t - g_t, w_{t+1} = w_t + α_t (γ_t v_{t+1} - g_t), as
        `optax.sgd(α, momentum=γ, nesterov=True)`. Every mode but [`hyprax.unroll.Reversible`][]: to undo its step one
        has to solve y - α ∇L(y) = w for y, whose solution is neither explicit nor always unique.

    **Arguments:**

    - `learning_rate`: α, a number, a [`hyprax.unroll.Schedule`][], a [`hyprax.unroll.PerWeight`][], or a prefix of the
        tree of weights with such leaves.
    - `momentum`: γ, the same. Reversal needs 2^-8 <= γ <= 2; where γ >= 1 it stores nothing.
    - `fraction_bits`: F, for reversal: weights are multiples of 2^-F, of magnitude below 2^(62 - F); velocities
        of units between 2^-(F + 34) and 2^-(F + 26), of magnitude below 2^(70 - F).

    **Raises:** `ValueError` for an unknown form or for bits out of range.
    """

    learning_rate: PyTree
    momentum: PyTree
    form: Form = eqx.field(static=True)
    bits: int = eqx.field(static=True)

    states: ClassVar[Mapping[str, int]] = {VELOCITY: 2}
    pullback_needs_gradient: ClassVar[bool] = False

    def __init__(
        self,
        learning_rate: Any,
        momentum: Any,
        *,
        form: Form = "paper",
        fraction_bits: int = 50,
    ):
        if form not in FORMS:
            raise ValueError(f"MomentumSGD: form must be one of {', '.join(map(repr, FORMS))}; got {form!r}.")
        self.learning_rate, self.momentum = learning_rate, momentum
        self.form, self.bits = form, checked_bits("MomentumSGD", fraction_bits)

    def fraction_bits(self) -> dict[str, int]:
        return {WEIGHTS: self.bits, VELOCITY: self.bits + FINER}

    def hyperparameters(self) -> dict[str, PyTree]:
        return {"learning_rate": self.learning_rate, "momentum": self.momentum}

    def check_reversible(self) -> None:
        if self.form == "nesterov":
            raise ValueError(
                "MomentumSGD: form must be 'paper' or 'polyak' with hx.unroll.Reversible; got 'nesterov', whose step "
                "has no explicit inverse: use hx.unroll.Checkpointed."
            )

    def tables(self, hyper: Coefficients, steps: int) -> Coefficients:
        momentum = hyper["momentum"]
        return {"rate": hyper["learning_rate"], "momentum": momentum, "gain": self._gain(momentum)}

    def factors(self, tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {VELOCITY: positive_factors("momentum", tables["momentum"])}

    def increments(self, tables: Mapping[str, np.ndarray], units: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        velocity = units[VELOCITY]
        return {"kick": tables["gain"] / velocity, "move": tables["rate"] * velocity / units[WEIGHTS]}

    def _gain(self, momentum: Array) -> Array:
        return 1 - momentum if self.form == "paper" else jnp.ones_like(momentum)

    def apply(
        self, c: Coefficients, gradient: Array, states: dict[str, Array], weights: Array
    ) -> tuple[dict[str, Array], Array]:
        velocity = c["momentum"] * states[VELOCITY] - c["gain"] * gradient
        moved = c["momentum"] * velocity - c["gain"] * gradient if self.form == "nesterov" else velocity
        return {VELOCITY: velocity}, weights + c["rate"] * moved

    def update(self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        momentum = lookup(self.momentum, t)
        coefficients = {
            "rate": lookup(self.learning_rate, t),
            "momentum": momentum,
            "gain": jax.tree.map(self._gain, momentum),
        }
        return self._update_leaves(coefficients, grads, state, params)

    def forward(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        velocity = words[VELOCITY] - _kick(k, gradient)
        return {WEIGHTS: words[WEIGHTS] + _move(k, velocity), VELOCITY: velocity}

    def undo_weights(self, k: Coefficients, words: Words) -> Words:
        return {**words, WEIGHTS: words[WEIGHTS] - _move(k, words[VELOCITY])}

    def undo_states(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        return {**words, VELOCITY: words[VELOCITY] + _kick(k, gradient)}


def _kick(k: Coefficients, gradient: Array) -> Long:
    return to_long(gradient.astype(jnp.float64) * k["kick"], 2)


def _move(k: Coefficients, velocity: Long) -> Array:
    return to_word(as_wide(velocity) * k["move"])
