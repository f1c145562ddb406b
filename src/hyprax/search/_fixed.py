"""Gradient descent at fixed accuracies: the baseline that adaptive searches are compared with."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._objective import AbstractObjective
from .._trees import tree_dtype
from ._descent import account, check_positive, descend
from ._results import RESULTS
from ._search import AbstractSearch, Move

MOST_HALVINGS = 40


class FixedState(eqx.Module):
    """The step size of the last move; 0 before the first."""

    step_size: Float[Array, ""]


class FixedTolerance(AbstractSearch):
    """θ ← θ - α h, h computed with ‖∇g(x̂)‖₂ <= `inner` and ‖A q - ∇f(x̂)‖₂ <= `adjoint` at every step.

    Errors that do not shrink with ‖h‖: the search comes to rest, or wanders, at a distance from the optimum that the
    tolerances set, and which is not known beforehand. [`hyprax.search.MAID`][] chooses them.

    **Arguments:**

    - `inner`, `adjoint`: the two norms, absolute.
    - `step_size`: α; `None` for backtracking: from twice the last α (1/‖h‖ at first) halved until the computed value
        falls by at least `armijo` α‖h‖². Computed values are compared as if they were exact. Where 40 halvings find no
        such step, the run ends with the result `no_descent`.
    - `armijo`: the fraction of the decrease predicted to first order that backtracking asks for.

    **Raises:** `ValueError` for settings that are not finite and positive, or `armijo` >= 1.

    Source: the fixed-tolerance baseline of Ehrhardt and Roberts, arXiv 2301.04764 (2023).
    """

    needs_accuracy: ClassVar[bool] = True
    needs_determinism: ClassVar[bool] = True

    inner: float
    adjoint: float
    step_size: float | None = None
    armijo: float = 1e-4

    def __check_init__(self):
        check_positive("FixedTolerance", inner=self.inner, adjoint=self.adjoint)
        if self.step_size is not None:
            check_positive("FixedTolerance", step_size=self.step_size)
        if not 0 < self.armijo < 1:
            raise ValueError(f"FixedTolerance: armijo must lie between 0 and 1; got {self.armijo}.")

    def init(self, hyper: PyTree) -> FixedState:
        return FixedState(jnp.zeros((), tree_dtype(hyper)))

    def step(
        self, objective: AbstractObjective, hyper: PyTree, search_state: FixedState, objective_state: PyTree
    ) -> Move:
        spent = account(objective, hyper)
        answer, now, objective_state = spent.value_and_grad(hyper, objective_state, self.inner, self.adjoint)
        if self.step_size is not None or not now.norm > 0:
            alpha = 0.0 if self.step_size is None else self.step_size
            moved, ended = descend(hyper, answer.grad, spent.array(alpha)), None
        else:
            last = float(search_state.step_size)
            alpha = 2 * last if last > 0 else 1 / now.norm
            for _ in range(MOST_HALVINGS):
                moved = descend(hyper, answer.grad, spent.array(alpha))
                _, trial, trial_state = spent.value(moved, objective_state, self.inner, self.adjoint)
                if trial.solved and trial.value <= now.value - self.armijo * alpha * now.norm**2:
                    objective_state, ended = trial_state, None
                    break
                alpha /= 2
            else:
                moved, ended = hyper, RESULTS.no_descent
        state = FixedState(spent.array(alpha))
        return Move(answer, moved, state, objective_state, ended, numbers=spent.numbers(step_size=alpha))
