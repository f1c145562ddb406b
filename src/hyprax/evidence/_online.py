"""What training online needs: a schedule of the weights, the moments of past draws, and the state that holds them."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._noise import Noise

OVER = "rows drawn for the log-determinant"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which training steps of the weights precede which evaluation of the evidence.

    Evaluations come in stages of `hyper_steps` at the same weights. Before the first of a stage the weights are trained
    for `every` steps, before the very first stage for `burn_in`. From evaluation `mode_after` on, each is preceded by
    the way to the mode instead, and so is the value that is reported after a run if `finish`.

    **Arguments:**

    - `burn_in`: training steps before the first stage; >= 0, `None` for as many as before the others.
    - `every`: training steps before each stage; >= 0, 0 for frozen weights.
    - `hyper_steps`: evaluations in a stage; >= 1.
    - `mode_after`: the first evaluation at the mode; `None` for never, 0 for always.
    - `finish`: whether weights that are trained go to the mode before the final value.
    - `newton_steps`: the most steps of the way to the mode, `steps` of [`hyprax.evidence.to_mode`][].
    """

    burn_in: int | None = None
    every: int = 0
    hyper_steps: int = 1
    mode_after: int | None = None
    finish: bool = True
    newton_steps: int = 50

    def __post_init__(self):
        for name, least in (("burn_in", 0), ("every", 0), ("hyper_steps", 1), ("newton_steps", 1)):
            number = getattr(self, name)
            if name == "burn_in" and number is None:
                continue
            if not isinstance(number, int | np.integer) or number < least:
                raise ValueError(f"Schedule: {name} must be an integer >= {least}; got {number!r}.")
        if self.mode_after is not None and self.mode_after < 0:
            raise ValueError(f"Schedule: mode_after must be an integer >= 0, or None; got {self.mode_after}.")

    @property
    def frozen(self) -> bool:
        """Whether the weights never move."""
        return not self.burn_in and self.every == 0 and self.mode_after is None

    def at_mode(self, evaluation: int) -> bool:
        """Whether this evaluation is one at the mode."""
        return self.mode_after is not None and evaluation >= self.mode_after

    def steps(self, evaluation: int) -> int:
        """The training steps before this evaluation."""
        if self.at_mode(evaluation) or evaluation % self.hyper_steps:
            return 0
        return self.every if evaluation or self.burn_in is None else self.burn_in


class Moments(eqx.Module):
    """Smoothed moments over past draws: of gradient and squared gradient, value and slack; and the weights' own."""

    gradient: PyTree
    square: PyTree
    value: Float[Array, ""]
    slack: Float[Array, ""]
    total: Float[Array, ""]
    squared_total: Float[Array, ""]

    def updated(self, decay: float, gradient: PyTree, value: Array, slack: Array) -> "Moments":
        """After one more draw."""
        new = 1 - decay
        return Moments(
            jax.tree.map(lambda m, g: decay * m + new * g, self.gradient, gradient),
            jax.tree.map(lambda m, g: decay * m + new * jnp.square(g), self.square, gradient),
            decay * self.value + new * value,
            decay * self.slack + new * slack,
            decay * self.total + new,
            decay**2 * self.squared_total + new**2,
        )

    def noise(self) -> Noise:
        """√ of the unbiased weighted variance of the gradient, entry by entry; infinite for one draw.

        The drift of the hyperparameters during the window counts as variance. The degrees of freedom are those of the
        effective number of draws in the window.
        """
        free = 1 - self.squared_total / jnp.square(self.total)
        tiny = jnp.finfo(free.dtype).eps

        def deviation(first: Array, second: Array) -> Array:
            variance = jnp.maximum(second / self.total - jnp.square(first / self.total), 0.0)
            return jnp.where(free > tiny, jnp.sqrt(variance / jnp.maximum(free, tiny)), jnp.inf)

        errors = jax.tree.map(deviation, self.gradient, self.square)
        draws = jnp.square(self.total) / self.squared_total
        return Noise(errors, jnp.maximum(draws - 1, 0), OVER)


class Kept(eqx.Module):
    """The weights and hyperparameters of the best stationary evaluation so far, by the smoothed value."""

    params: PyTree
    hyper: PyTree
    value: Float[Array, ""]
    evaluation: Int[Array, ""]
    mark: Float[Array, ""]
    """The value when it last fell by more than a trifle, and the evaluation."""
    gained: Int[Array, ""]


class EvidenceState(eqx.Module):
    """The weights and their optimizer, the steps and draws made so far, what past draws said, and the best of them."""

    params: PyTree
    optimizer_state: PyTree
    trained: Int[Array, ""]
    draws: Int[Array, ""]
    moments: Moments
    past: Any
    """The state of an adaptive estimator."""
    kept: Kept
