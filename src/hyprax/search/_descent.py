"""What the searches that choose accuracies and step sizes share: the move itself, and the account of what it took."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._objective import AbstractObjective, Hypergradient, Value
from .._result import succeeded
from .._stats import Accuracy, Effort
from .._trees import tree_axpy, tree_dtype

SMALLEST_FACTOR = 1e-4


@eqx.filter_jit
def descend(hyper: PyTree, grad: PyTree, step_size: Float[Array, ""]) -> PyTree:
    """θ - α h, in unconstrained coordinates."""
    return tree_axpy(-step_size, grad, hyper)


@eqx.filter_jit
def _gradient_numbers(answer: Hypergradient) -> tuple[Array, Array, Array, Array, Effort]:
    return answer.value, answer.norm, answer.certificate.bound, succeeded(answer.result), answer.stats.effort()


@eqx.filter_jit
def _value_numbers(answer: Value) -> tuple[Array, Array, Array, Effort]:
    return answer.value, answer.certificate.bound, succeeded(answer.result), answer.stats.effort()


@dataclasses.dataclass(frozen=True)
class Measured:
    """The numbers of one evaluation on the host; `inner` and `adjoint` are the residuals reached, infinite if unknown.

    `norm` is that of a hypergradient, and NaN for a value alone; `bound` is that of whichever was evaluated.
    """

    value: float
    norm: float
    bound: float
    solved: bool
    sound: bool
    inner: float
    adjoint: float


class Account:
    """Evaluates an objective, and counts: what one step of a search took."""

    def __init__(self, objective: AbstractObjective, dtype: Any):
        self.objective, self.dtype = objective, dtype
        self.gradients = self.values = self.products = 0

    def array(self, x: float) -> Float[Array, ""]:
        """A scalar of the hyperparameters' dtype, never weakly typed, so that nothing is compiled twice."""
        return jnp.asarray(x, self.dtype)

    def accuracy(self, inner: float | None, adjoint: float | None) -> Accuracy | None:
        """As arrays; `None` for the objective's own settings."""
        if inner is None or adjoint is None:
            return None
        return Accuracy(self.array(inner), self.array(adjoint))

    def value_and_grad(
        self, hyper: PyTree, state: Any, inner: float | None, adjoint: float | None
    ) -> tuple[Hypergradient, Measured, Any]:
        """The hypergradient at an accuracy, with its numbers."""
        answer, state = self.objective.value_and_grad(hyper, state, self.accuracy(inner, adjoint))
        value, norm, bound, solved, effort = jax.device_get(_gradient_numbers(answer))
        self.gradients += 1
        return answer, self._measured(value, norm, bound, solved, effort), state

    def value(
        self, hyper: PyTree, state: Any, inner: float | None, adjoint: float | None
    ) -> tuple[Value, Measured, Any]:
        """The value at an accuracy, with its numbers."""
        answer, state = self.objective.value(hyper, state, self.accuracy(inner, adjoint))
        value, bound, solved, effort = jax.device_get(_value_numbers(answer))
        self.values += 1
        return answer, self._measured(value, math.nan, bound, solved, effort), state

    def _measured(self, value: Any, norm: Any, bound: Any, solved: Any, effort: Effort) -> Measured:
        self.products += int(effort.work)
        reached = effort.reached
        inner, adjoint = (math.inf, math.inf) if reached is None else (float(reached.inner), float(reached.adjoint))
        sound = bool(solved) or bool(effort.inaccurate)
        return Measured(float(value), float(norm), float(bound), bool(solved), sound, inner, adjoint)

    def numbers(self, **numbers: float) -> dict[str, Array]:
        """What the step took, and `numbers`, for the history."""
        counts = {"gradients": self.gradients, "values": self.values, "search_products": self.products}
        return {name: jnp.asarray(x) for name, x in counts.items()} | {n: self.array(x) for n, x in numbers.items()}


def account(objective: AbstractObjective, hyper: PyTree) -> Account:
    """A fresh account, for one step at `hyper`."""
    return Account(objective, tree_dtype(hyper))


def check_positive(name: str, **settings: float) -> None:
    """Refuse settings that are not finite numbers > 0."""
    for setting, number in settings.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name}: {setting} must be a finite number > 0; got {number}.")


def tightening(wanted: float, had: float) -> float:
    """By what to multiply tolerances so that a bound proportional to them falls from `had` to `wanted`."""
    return min(max(wanted / had, SMALLEST_FACTOR), 0.5) if math.isfinite(had) else 0.05


def tighter(factor: float, tolerance: float, reached: float) -> float:
    """`factor` of the tolerance, or of the residual reached where that is less.

    The tolerance as it is where the solver came only to more than that: at rounding or its last step, it gives no less.
    """
    if 2 * tolerance < reached < math.inf:
        return tolerance
    return factor * min(tolerance, reached)
