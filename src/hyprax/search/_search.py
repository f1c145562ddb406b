"""What a search is: a rule that moves hyperparameters by what an objective says of them."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import PyTree

from .._objective import AbstractObjective, Hypergradient
from .._result import RESULTS


class Move(eqx.Module):
    """One step of a search: what was measured at the old hyperparameters, and where to go next.

    `ended` says why the search itself can go no further, and ends the run; `None` while it can.
    """

    hypergradient: Hypergradient
    hyper: PyTree
    search_state: PyTree
    objective_state: PyTree
    ended: RESULTS | None = None


class AbstractSearch(eqx.Module):
    """A rule for the next hyperparameters. Settings only: the state is in the call.

    Not compiled from outside: an objective compiles its own steps, and so does a search.
    """

    @abc.abstractmethod
    def init(self, hyper: PyTree) -> PyTree:
        """The state before the first step: a pytree of arrays."""

    @abc.abstractmethod
    def step(self, objective: AbstractObjective, hyper: PyTree, search_state: PyTree, objective_state: Any) -> Move:
        """Evaluate the objective at `hyper` and propose the next hyperparameters."""
