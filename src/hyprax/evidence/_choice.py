"""The choice between estimators, by what past draws said of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._estimator import AbstractAdaptive, AbstractEstimator, Chain, EstimatorKind, LogDeterminant, check_part
from ._problem import Problem
from ._tangent import Tangent


class ChoiceState(eqx.Module):
    """Smoothed values of each estimator over past draws, and how many draws there were."""

    means: Float[Array, " k"]
    steps: Int[Array, ""]


class Choice(AbstractAdaptive):
    """The estimator with the least smoothed `upper` over PAST draws, then drawn afresh: a bound if all are.

    The least of several noisy bounds, or a choice by the current draw, is not a bound; a choice that is independent of
    the draw is. Every `refresh` draws all estimators are evaluated and m <- decay m + (1 - decay) upper; in between,
    the chosen one alone.

    **Arguments:**

    - `estimators`: default the chain and the tangent bound.
    - `decay`: of the smoothing, in [0, 1).
    - `refresh`: how often all are evaluated.
    """

    estimators: tuple[AbstractEstimator, ...] = (Chain(), Tangent())
    decay: float = eqx.field(static=True, default=0.7)
    refresh: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if not self.estimators:
            raise ValueError("Choice: given no estimators, allowed is at least one.")
        for estimator in self.estimators:
            check_part("Choice: estimators", estimator, AbstractEstimator, "Chain(OneRow(64))")
        if not (0 <= self.decay < 1) or self.refresh < 1:
            raise ValueError(
                f"Choice: given decay {self.decay}, refresh {self.refresh}, allowed are 0 <= decay < 1, refresh >= 1."
            )

    @property
    def kind(self) -> EstimatorKind:
        """`bound` if all estimators are."""
        return "bound" if all(e.kind == "bound" for e in self.estimators) else "estimated"

    def init(self, problem: Problem, key: Array) -> ChoiceState:
        """The state before the first draw, in which the first estimator is chosen."""
        return ChoiceState(jnp.zeros(len(self.estimators), problem.dtype), jnp.zeros((), jnp.int32))

    def chosen(self, state: ChoiceState) -> Int[Array, ""]:
        """The place of the estimator that the next draw uses."""
        return jnp.argmin(state.means).astype(jnp.int32)

    def __call__(self, problem: Problem, key: Array, state: ChoiceState) -> tuple[LogDeterminant, ChoiceState]:
        """The chosen estimate, and the next state."""

        def branch(estimator: AbstractEstimator):
            def evaluate(problem: Problem, key: Array) -> LogDeterminant:
                sides = estimator(problem, key)
                nothing = jnp.full_like(sides.upper, -jnp.inf)  # a true lower side that says nothing
                rounding = jnp.asarray(sides.rounding, sides.upper.dtype)
                return LogDeterminant(sides.upper, nothing if sides.lower is None else sides.lower, rounding)

            return evaluate

        branches = [branch(estimator) for estimator in self.estimators]
        chosen_key, *keys = jax.random.split(key, 1 + len(branches))
        arrays, static = eqx.partition(problem, eqx.is_array)
        sides = jax.lax.switch(
            self.chosen(state),
            [lambda arrays, key, b=b: b(eqx.combine(arrays, static), key) for b in branches],
            arrays,
            chosen_key,
        )

        def refreshed(means: Array) -> Array:
            now = jnp.stack([b(problem.constant(), k).upper for b, k in zip(branches, keys, strict=True)])
            return jnp.where(state.steps == 0, now, self.decay * means + (1 - self.decay) * now)

        means = jax.lax.cond(state.steps % self.refresh == 0, refreshed, lambda means: means, state.means)
        return sides, ChoiceState(jax.lax.stop_gradient(means), state.steps + 1)
