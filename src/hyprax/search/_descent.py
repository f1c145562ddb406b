"""What the searches that choose accuracies and step sizes share: the move itself, and the account of what it took."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._objective import AbstractObjective, Accuracy, Hypergradient, Value
from .._result import RESULTS
from .._trees import tree_axpy, tree_dtype

MISSED = (RESULTS.inner_not_converged, RESULTS.adjoint_not_converged)


@eqx.filter_jit
def descend(hyper: PyTree, grad: PyTree, step_size: Float[Array, ""]) -> PyTree:
    """θ - α h, in unconstrained coordinates."""
    return tree_axpy(-step_size, grad, hyper)


@eqx.filter_jit
def _gradient_numbers(answer: Hypergradient) -> tuple[Array, Array, Array, RESULTS, dict[str, Array]]:
    return answer.value, answer.norm, answer.certificate.bound, answer.result, _scalars(answer.stats)


@eqx.filter_jit
def _value_numbers(answer: Value) -> tuple[Array, Array, RESULTS, dict[str, Array]]:
    return answer.value, answer.certificate.bound, answer.result, _scalars(answer.stats)


def _scalars(stats: dict[str, Array]) -> dict[str, Array]:
    return {name: stats[name] for name in ("products", "inner_gradient_norm", "adjoint_residual") if name in stats}


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

    def accuracy(self, inner: float, adjoint: float) -> Accuracy:
        """As arrays."""
        return Accuracy(self.array(inner), self.array(adjoint))

    def value_and_grad(
        self, hyper: PyTree, state: Any, inner: float, adjoint: float
    ) -> tuple[Hypergradient, Measured, Any]:
        """The hypergradient at an accuracy, with its numbers."""
        answer, state = self.objective.value_and_grad(hyper, state, self.accuracy(inner, adjoint))
        value, norm, bound, result, stats = jax.device_get(_gradient_numbers(answer))
        self.gradients += 1
        return answer, self._measured(value, norm, bound, result, stats), state

    def value(self, hyper: PyTree, state: Any, inner: float, adjoint: float) -> tuple[Value, Measured, Any]:
        """The value at an accuracy, with its numbers."""
        answer, state = self.objective.value(hyper, state, self.accuracy(inner, adjoint))
        value, bound, result, stats = jax.device_get(_value_numbers(answer))
        self.values += 1
        return answer, self._measured(value, math.nan, bound, result, stats), state

    def _measured(self, value: Any, norm: Any, bound: Any, result: RESULTS, stats: dict[str, Any]) -> Measured:
        self.products += int(stats.get("products", 0))
        inner, adjoint = (float(stats.get(name, math.inf)) for name in ("inner_gradient_norm", "adjoint_residual"))
        solved = bool(result == RESULTS.successful)
        sound = solved or any(bool(result == missed) for missed in MISSED)
        return Measured(float(value), float(norm), float(bound), solved, sound, inner, adjoint)

    def recorded(self, answer: Hypergradient, **numbers: float) -> Hypergradient:
        """The hypergradient with what the step took, and `numbers`, among its statistics."""
        counts = {"gradients": self.gradients, "values": self.values, "search_products": self.products}
        stats = {name: jnp.asarray(count) for name, count in counts.items()}
        stats |= {name: self.array(number) for name, number in numbers.items()}
        return Hypergradient(answer.value, answer.grad, answer.certificate, answer.result, answer.stats | stats)


def account(objective: AbstractObjective, hyper: PyTree) -> Account:
    """A fresh account, for one step at `hyper`."""
    return Account(objective, tree_dtype(hyper))


def check_positive(name: str, **settings: float) -> None:
    """Refuse settings that are not finite numbers > 0."""
    for setting, number in settings.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name}: given {setting} {number}, allowed are finite numbers > 0.")
