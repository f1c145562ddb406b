"""Which search `tune` takes where none is given: held back where hyperparameters are many and noise is measured."""

import jax
import optax
from jaxtyping import PyTree

from .._objective import AbstractObjective
from ._gate import Gate
from ._gated_lbfgs import GatedLBFGS
from ._lbfgs import LBFGS
from ._measured import measured
from ._optax import Optax
from ._search import AbstractSearch

FEW = 10
"""Hyperparameters that a sample of held-out rows may be trusted to tell apart."""


def holding_back(objective: AbstractObjective, hyper: PyTree) -> AbstractObjective | None:
    """The objective, measuring its noise, where hyperparameters are to be held back by it; `None` where not.

    Few go downhill. Many would follow the noise of the rows that judge them: where it is measured, or can be for
    little, only what rises above it moves.
    """
    if sum(leaf.size for leaf in jax.tree.leaves(hyper)) <= FEW:
        return None
    objective = measured(objective)
    return objective if objective.measures_noise else None


def gated(objective: AbstractObjective) -> AbstractSearch:
    """The search that holds back."""
    return Gate() if objective.noisy else GatedLBFGS()


def default_search(objective: AbstractObjective, hyper: PyTree) -> tuple[AbstractObjective, AbstractSearch]:
    """The objective to tune, and the search to tune it by."""
    held = holding_back(objective, hyper)
    if held is not None:
        return held, gated(held)
    return objective, Optax(optax.adam(0.05)) if objective.noisy else LBFGS()
