"""The narrow waist: what an engine gives, and all that the rest of the library knows of it."""

import abc
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._certificate import AbstractCertificate, show
from ._hyper import validated
from ._result import RESULTS, explain
from ._trees import tree_norm

State = TypeVar("State")


class Accuracy(eqx.Module):
    """How accurately an objective is to be evaluated; `None` in its place means the objective's own settings.

    - `inner`: the gradient norm to which the inner problem is solved.
    - `adjoint`: the residual norm to which the adjoint system is solved.

    Arrays, so an adaptive search changes them without recompiling anything.
    """

    inner: Float[Array, ""]
    adjoint: Float[Array, ""]


class Value(eqx.Module):
    """A value of the outer objective: `|value - F(hyper)| <= certificate.bound`."""

    value: Float[Array, ""]
    certificate: AbstractCertificate
    result: RESULTS
    stats: dict[str, Array]

    @property
    def lower(self) -> Float[Array, ""]:
        """value - bound."""
        return self.value - self.certificate.bound

    @property
    def upper(self) -> Float[Array, ""]:
        """value + bound."""
        return self.value + self.certificate.bound


class Hypergradient(eqx.Module):
    """dF/d hyper at one point, with what is known of its error."""

    value: Float[Array, ""]
    """The outer objective at `hyper`."""
    grad: PyTree
    """The structure of `hyper`; its arrays are derivatives with respect to the unconstrained coordinates."""
    certificate: AbstractCertificate
    """What is known of the error of `grad`."""
    result: RESULTS
    """How the computation ended; anything but `successful` is a reason not to use `grad`."""
    stats: dict[str, Array]
    """What it took and what was measured: inner steps, products, residuals."""

    @property
    def norm(self) -> Float[Array, ""]:
        """‖grad‖₂ over all leaves."""
        return tree_norm(self.grad)

    @property
    def relative_bound(self) -> Float[Array, ""]:
        """certificate.bound / ‖grad‖₂."""
        return self.certificate.bound / self.norm

    @property
    def message(self) -> str:
        """The text of `result` with the numbers that it speaks of; empty for a success."""
        return explain(self.result, self.stats)

    def __repr__(self) -> str:
        return f"Hypergradient(value={show(self.value)}, norm={show(self.norm)}, certificate={self.certificate!r})"


class HypergradientError(RuntimeError):
    """A hypergradient could not be computed as asked; `.hypergradient` holds what was computed."""

    def __init__(self, hypergradient: Hypergradient):
        super().__init__(hypergradient.message)
        self.hypergradient = hypergradient


class AbstractObjective(eqx.Module, Generic[State]):
    """A thing that maps hyperparameters to a value and a hypergradient.

    An objective compiles its own steps: call its methods as they are. One that needs no host loop may also be used
    inside `jax.jit` and `jax.vmap`.
    """

    @abc.abstractmethod
    def init(self, hyper: PyTree) -> State:
        """The state before the first call: warm starts, weights, random keys; a pytree of arrays."""

    @abc.abstractmethod
    def value_and_grad(
        self, hyper: PyTree, state: State, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, State]:
        """The value and the hypergradient at `hyper`, and the next state."""

    @abc.abstractmethod
    def value(self, hyper: PyTree, state: State, accuracy: Accuracy | None = None) -> tuple[Value, State]:
        """The value alone, with an enclosure: for line searches."""


def hypergradient(
    objective: AbstractObjective, hyper: PyTree, state: Any = None, *, throw: bool = True
) -> Hypergradient:
    """h ≈ dF/d hyper at `hyper`, with a certificate of ‖h - dF/d hyper‖.

    **Arguments:**

    - `objective`: any [`hyprax.AbstractObjective`][].
    - `hyper`: the hyperparameters, a pytree whose leaves are real arrays or constrained leaves
        ([`hyprax.Positive`][], [`hyprax.Interval`][], [`hyprax.Simplex`][]).
    - `state`: where to start from, as `objective.init` or an earlier call returned it; a cold start if `None`.
    - `throw`: whether a result other than `successful` raises [`hyprax.HypergradientError`][] (inside a JAX
        transformation: a runtime error). With `throw=False`, look at `.result` and `.message`.

    **Returns:** a [`hyprax.Hypergradient`][].
    """
    hyper = validated(hyper)
    state = objective.init(hyper) if state is None else state
    answer, _ = objective.value_and_grad(hyper, state)
    if not throw:
        return answer
    failed = answer.result != RESULTS.successful
    try:
        any_failed = bool(np.any(np.asarray(failed)))
    except jax.errors.TracerArrayConversionError:
        return answer.result.error_if(answer, failed)
    if any_failed:
        raise HypergradientError(answer)
    return answer
