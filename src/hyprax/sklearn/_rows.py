"""A family on the rows of a table, as folds need it: blank rows and columns, and weights of rows."""

import dataclasses
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree

from .._objective import AbstractObjective, Hypergradient, Value, refuse_accuracy
from .._result import Result
from .._stats import Accuracy
from ..implicit import REML, LeaveOneOut, NoCertifier, Optimum
from ..implicit._folds_together import folds_together
from ..implicit._optimum import family_of
from ..implicit._rows import masked, without
from ..implicit.families._generalised_linear import GeneralisedLinear


class AsItIs(AbstractObjective[PyTree]):
    """F at one accuracy: a search that would choose it, and cannot without certificates, compiles once less."""

    objective: AbstractObjective
    accuracy: Accuracy
    noisy: bool = eqx.field(static=True, default=False)
    adaptive: bool = eqx.field(static=True, default=False)
    value_name: str = eqx.field(static=True, default="held-out loss")

    def __init__(self, *, objective: AbstractObjective, accuracy: Accuracy):
        self.objective, self.accuracy = objective, accuracy

    @property
    def measures_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # known from its parts, where others hold a field
        return self.objective.measures_noise

    def init(self, hyper: PyTree) -> PyTree:
        return self.objective.init(hyper)

    def value_and_grad(
        self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, PyTree]:
        refuse_accuracy(self, accuracy)
        return self.objective.value_and_grad(hyper, state, self.accuracy)

    def value(self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None) -> tuple[Value, PyTree]:
        refuse_accuracy(self, accuracy)
        return self.objective.value(hyper, state, self.accuracy)

    def params(self, state: PyTree) -> PyTree:
        return self.objective.params(state)

    def final(self, hyper: PyTree, state: PyTree) -> tuple[Value, PyTree]:
        return self.value(hyper, state)


MOST_LEFT_OUT = 10_000
"""So many rows are left out in turn at the most, drawn at random."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """A problem that is fitted without some of its rows, for [`hyprax.CrossValidated`][].

    - `optimum`: of a family on the rows and some blank ones after them.
    - `targets`: of the rows themselves.
    - `shares`: weights of the rows with the mean 1 that judge as well as fit; `None` for equal ones, or where they are
        in the data already.
    - `accuracy`: of fits and adjoints.
    """

    optimum: Optimum
    targets: np.ndarray
    classes: bool
    shares: np.ndarray | None
    accuracy: Accuracy

    @property
    def family(self) -> GeneralisedLinear:
        return family_of(self.optimum)

    def labels(self) -> np.ndarray:
        return self.targets

    def stratify(self) -> bool:
        return self.classes

    def held_out(self, training: np.ndarray, held_out: np.ndarray, **settings: Any) -> AbstractObjective:
        blank = np.zeros(self._blanks, bool)
        training, held_out = np.concatenate([training, blank]), np.concatenate([held_out, blank])
        if self.shares is not None:
            settings["weights"] = np.concatenate([self.shares, np.zeros(len(blank))])
        return AsItIs(objective=self.optimum.held_out(training, held_out, **settings), accuracy=self.accuracy)

    def together(self, hyper: PyTree, sets: Any, fine: bool = False) -> Any:
        """All folds in one program, weights of rows included; `None` where they are too large for it."""
        family = self.family
        blank = np.zeros(family.inputs.shape[0] - len(self.targets))
        shares = np.ones(len(self.targets)) if self.shares is None else self.shares

        def weighted(mask: np.ndarray) -> np.ndarray:
            return np.concatenate([mask * shares, blank])

        plain = eqx.tree_at(lambda f: f.weights, family, None, is_leaf=lambda x: x is None)
        weights = [[(weighted(fit), weighted(judge)) for fit, judge in masks] for masks in sets]
        return folds_together(plain, hyper, weights, fine)

    def left_out(self, training: np.ndarray) -> np.ndarray:
        """Which training rows can be left out: without the only row of a class its intercept has no optimum."""
        if not self.classes:
            return training
        kinds, counts = np.unique(self.targets[training], return_counts=True)
        found = training & ~np.isin(self.targets, kinds[counts < 2])
        return found if found.any() else training

    def leave_one_out(self, training: np.ndarray, count: int) -> AbstractObjective:
        """Of the fits on `training` rows, `count` of which are left out in turn: equal counts share a program.

        By one Newton step where it is not of all rows: nested folds ask for many, to compare them alone.
        """
        nested = not training.all()
        left = np.random.default_rng(0).permutation(np.flatnonzero(self.left_out(training)))
        rows = left[: min(count, MOST_LEFT_OUT)]
        training = np.concatenate([training, np.zeros(self._blanks, bool)])
        return LeaveOneOut(without(self.optimum, training), subset=np.sort(rows), approximate=nested)

    def evidence(self, training: np.ndarray, observations: float, dispersion: float | None) -> AbstractObjective:
        """The restricted marginal likelihood of `training` rows, which count as so many observations."""
        training = np.concatenate([training, np.zeros(self._blanks, bool)])
        optimum = without(self.optimum, training)
        family = family_of(optimum)
        if not self.classes:  # a row of zeros says nothing where its target is zero too
            family = eqx.tree_at(lambda f: f.targets, family, masked(family.targets, training))
        optimum = eqx.tree_at(lambda o: o.loss, optimum, family)
        return REML(optimum, observations=observations, dispersion=dispersion)

    @property
    def _blanks(self) -> int:
        return self.family.inputs.shape[0] - len(self.targets)

    def shaped(self, flat: Any) -> Any:
        """Weights of `together` in the shape of the family's."""
        return self.optimum.shaped(flat)

    def refit(self, hyper: PyTree) -> tuple[Array, Result]:
        """The weights fitted on all rows, and whether they arrived: by the program of the folds' values."""
        every = np.ones(len(self.targets), bool)
        objective = self.held_out(every, every, certifier=NoCertifier())
        answer, state = objective.value(hyper, objective.init(hyper))
        return objective.params(state), answer.result
