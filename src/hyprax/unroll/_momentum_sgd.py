"""Stochastic gradient descent with momentum, in floating point and exactly in fixed point."""

from typing import Any, ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Integer, PyTree

from ._fixed_point import as_wide, to_word
from ._rational import Factor, dyadic, nearest
from ._reversible_optimizer import (
    WEIGHTS,
    AbstractReversibleOptimizer,
    Coefficients,
    StepFactors,
    Words,
    at_step,
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
        has to
        solve y - α ∇L(y) = w for y, whose solution is neither explicit nor always unique.

    **Arguments:**

    - `learning_rate`: α, a scalar, a schedule of shape [T], or a prefix of the tree of weights with such leaves.
    - `momentum`: γ, the same. Reversal needs γ > 0; where γ >= 1 it stores nothing.
    - `fraction_bits`: F, for reversal: weights and velocities are multiples of 2^-F, of magnitude below 2^(62 - F).
    - `denominator_bits`: k, for reversal: γ becomes the nearest fraction with a denominator up to 2^k, mostly within
        2^-2k (.9 exactly), or up to 1/(1 - γ) where that is larger; the derivative passes straight through, and
        `stats` hold the largest change. Velocities carry noise of up to the denominator times 2^-F.
    - `dyadic`: for reversal, whether γ becomes n / 2^k, within 2^-(k + 1): division by shifts makes the fixed-point
        part of a step about a third faster. Then take k = 16 to 20.

    **Raises:** `ValueError` for an unknown form or for bits out of range.
    """

    learning_rate: PyTree
    momentum: PyTree
    form: Form = eqx.field(static=True)
    bits: int = eqx.field(static=True)
    denominator_bits: int = eqx.field(static=True)
    dyadic: bool = eqx.field(static=True)

    states: ClassVar[tuple[str, ...]] = (VELOCITY,)
    pullback_needs_gradient: ClassVar[bool] = False

    def __init__(
        self,
        learning_rate: Any,
        momentum: Any,
        *,
        form: Form = "paper",
        fraction_bits: int = 48,
        denominator_bits: int = 12,
        dyadic: bool = False,
    ):
        if form not in FORMS:
            raise ValueError(f"MomentumSGD: given form {form!r}, allowed are {', '.join(map(repr, FORMS))}.")
        if not (16 <= fraction_bits <= 58 and 2 <= denominator_bits <= 20):
            raise ValueError(
                f"MomentumSGD: given fraction_bits {fraction_bits}, denominator_bits {denominator_bits}, allowed are "
                "16 to 58 and 2 to 20."
            )
        self.learning_rate, self.momentum = learning_rate, momentum
        self.form, self.bits, self.denominator_bits = form, fraction_bits, denominator_bits
        self.dyadic = dyadic

    def fraction_bits(self) -> dict[str, int]:
        return {WEIGHTS: self.bits, VELOCITY: self.bits}

    def hyperparameters(self) -> dict[str, PyTree]:
        return {"learning_rate": self.learning_rate, "momentum": self.momentum}

    def check_reversible(self) -> None:
        if self.form == "nesterov":
            raise ValueError(
                "MomentumSGD: given form 'nesterov' with Reversible, allowed are 'paper' and 'polyak': the step of "
                "Nesterov has no explicit inverse; use hx.unroll.Checkpointed."
            )

    def targets(self, hyper: Coefficients) -> Coefficients:
        return {VELOCITY: hyper["momentum"]}

    def rationals(self, targets: dict[str, np.ndarray]) -> dict[str, Factor]:
        momentum = positive("momentum", targets[VELOCITY], self.denominator_bits)
        return {VELOCITY: (dyadic if self.dyadic else nearest)(momentum, self.denominator_bits)}

    def tables(self, hyper: Coefficients, targets: Coefficients, steps: int) -> Coefficients:
        momentum = targets[VELOCITY]
        return {"rate": hyper["learning_rate"], "momentum": momentum, "gain": self._gain(momentum)}

    def _gain(self, momentum: Array) -> Array:
        return 1 - momentum if self.form == "paper" else jnp.ones_like(momentum)

    def apply(
        self, c: Coefficients, gradient: Array, states: dict[str, Array], weights: Array
    ) -> tuple[dict[str, Array], Array]:
        velocity = c["momentum"] * states[VELOCITY] - c["gain"] * gradient
        moved = c["momentum"] * velocity - c["gain"] * gradient if self.form == "nesterov" else velocity
        return {VELOCITY: velocity}, weights + c["rate"] * moved

    def update(self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        momentum = at_step(self.momentum, t)
        coefficients = {
            "rate": at_step(self.learning_rate, t),
            "momentum": momentum,
            "gain": jax.tree.map(self._gain, momentum),
        }
        return self._update_leaves(coefficients, grads, state, params)

    def _kick(self, c: Coefficients, gradient: Array) -> Array:
        return to_word(gradient.astype(jnp.float64) * (c["gain"] * 2.0**self.bits))

    def _move(self, c: Coefficients, words: Words) -> Array:
        return to_word(as_wide(words.values[VELOCITY]) * c["rate"])

    def forward(
        self, c: Coefficients, factors: StepFactors, gradient: Array, words: Words
    ) -> tuple[Words, dict[str, list[Array]]]:
        kick = self._kick(c, gradient)
        words = factors.multiply(VELOCITY, words).add(VELOCITY, -kick)
        move = self._move(c, words)
        return words.add(WEIGHTS, move), {VELOCITY: [kick], WEIGHTS: [move]}

    def undo_weights(self, c: Coefficients, factors: StepFactors, words: Words) -> Words:
        return words.add(WEIGHTS, -self._move(c, words))

    def undo_states(self, c: Coefficients, factors: StepFactors, gradient: Array, words: Words) -> Words:
        return factors.divide(VELOCITY, words.add(VELOCITY, self._kick(c, gradient)))


def positive(name: str, values: np.ndarray, bits: int) -> np.ndarray:
    """`values`, all of which can be undone.

    **Raises:** `ValueError` where one is 0 at this resolution, negative, above 4, or no number.
    """
    smallest, largest = 2.0 ** -(bits + 1), 4.0
    bad = ~((values > smallest) & (values <= largest))
    if np.any(bad):
        raise ValueError(
            f"{name}: given {values[bad].ravel()[0]:.6g} with Reversible, allowed are numbers above {smallest:.3g} and "
            f"up to {largest:g}: a step with a factor 0 forgets what was before it, and needs hx.unroll.Checkpointed."
        )
    return values
