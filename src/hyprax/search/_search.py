"""What a search is: a rule that moves hyperparameters by what an objective says of them."""

import abc
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, PyTree

from .._objective import AbstractObjective, Hypergradient, described
from .._result import Result


class Move(eqx.Module):
    """One step of a search: what was measured at the old hyperparameters, and where to go next.

    - `hypergradient`: the engine's answer, as it was given.
    - `hyper`, `search_state`, `objective_state`: where to go, and the states to go on with.
    - `ended`: why the search itself can go no further, which ends the run; `None` while it can.
    - `value`: a value at the old hyperparameters that the search knows better than the answer does; `None` for none.
    - `sufficient`: the answer is as accurate as the search needed, though it missed the accuracy asked for.
    - `numbers`: what the search itself took and chose, for the history.
    """

    hypergradient: Hypergradient
    hyper: PyTree
    search_state: PyTree
    objective_state: PyTree
    ended: Result | None = None
    value: Array | None = None
    sufficient: bool = False
    numbers: dict[str, Array] = eqx.field(default_factory=dict)


class AbstractSearch(eqx.Module):
    """A rule for the next hyperparameters. Settings only: the state is in the call.

    Not compiled from outside: an objective compiles its own steps, and so does a search. What a search needs of an
    objective is said by its class: `needs_accuracy`, that accuracies are honoured; `needs_determinism`, that two calls
    at the same hyperparameters agree. `tune` refuses an objective that cannot give it.
    """

    needs_accuracy: ClassVar[bool]
    needs_determinism: ClassVar[bool]

    @abc.abstractmethod
    def init(self, hyper: PyTree) -> PyTree:
        """The state before the first step: a pytree of arrays."""

    @abc.abstractmethod
    def step(self, objective: AbstractObjective, hyper: PyTree, search_state: PyTree, objective_state: Any) -> Move:
        """Evaluate the objective at `hyper` and propose the next hyperparameters."""


def check_fits(search: AbstractSearch, objective: AbstractObjective) -> None:
    """Refuse an objective that cannot give what a search needs.

    **Raises:** `ValueError` naming both.
    """
    name, given = type(search).__name__, described(objective)
    if search.needs_accuracy and not objective.adaptive:
        raise ValueError(
            f"{name} chooses how accurately each hypergradient is computed, so its objective must honour an accuracy; "
            f"got {given}, which has none to choose. Use hx.search.Optax(optax.adam(0.05)) instead."
        )
    if search.needs_determinism and objective.noisy:
        raise ValueError(
            f"{name} compares values at different hyperparameters, so its objective must be deterministic; got {given} "
            "that draws anew at each call (`noisy` is True). Use hx.search.Optax(optax.adam(0.05)) instead."
        )
