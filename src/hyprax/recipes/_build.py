"""From a recipe to what `tune` needs: data, objective, hyperparameters, search."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jaxtyping import PyTree

from .._objective import AbstractObjective
from ..search import HOAG, MAID, AbstractSearch, FixedTolerance, Optax, Stopping
from ._data import Splits, load_splits
from ._engine_tables import LINEAR
from ._errors import RecipeError, Source
from ._evidenced import evidenced
from ._hyper_tables import Penalty
from ._linear import linear
from ._own import custom, loss
from ._problem import Problem
from ._read import read_recipe
from ._schema import Recipe
from ._unrolled import unrolled, unrolled_loss

GRADIENT_TRANSFORMATIONS = {
    "adam": optax.adam,
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "rmsprop": optax.rmsprop,
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A recipe made ready: nothing has been computed or written yet.

    `hyper` is `None` where it starts from the baseline's best strength; see `start_at`.
    """

    source: Source
    recipe: Recipe
    splits: Splits | None
    problem: Problem
    search: AbstractSearch
    stop: Stopping

    @property
    def objective(self) -> AbstractObjective:
        """What is tuned for."""
        return self.problem.objective

    @property
    def hyper(self) -> PyTree | None:
        """Where the search starts."""
        return self.problem.start

    @property
    def predict(self) -> Callable[[PyTree, np.ndarray], np.ndarray] | None:
        """(params, inputs) to what the model says of examples, where that is known."""
        return self.problem.predict

    @property
    def config(self) -> dict[str, Any]:
        """The resolved recipe, but for when to stop: a run may go on beyond that, to the same bits."""
        config = self.recipe.model_dump(mode="json")
        config["search"].pop("steps")
        config.pop("stop")
        config["objective"]["method"] = self.recipe.method
        if self.recipe.penalty is not None:
            config["hyper"]["penalty"] = self.recipe.penalty.model_dump(mode="json")
        if self.splits is not None and self.splits.image_shape is not None:
            config["image_shape"] = list(self.splits.image_shape)
        return config

    def start_at(self, strength: float, penalty: Penalty | None = None) -> PyTree:
        """The hyperparameters with every strength at one value, inside its bounds; spread as another table says."""
        table = self.recipe.penalty if penalty is None else penalty
        assert self.problem.with_penalty is not None  # linear models alone have a baseline
        assert table is not None
        return self.problem.with_penalty(strength, table)


def prepare(path: Path, settings: Iterable[str] = ()) -> Job:
    """Read, check and load everything that a recipe names.

    **Raises:** `RecipeError`, with file, line and key.
    """
    recipe, source = read_recipe(path, settings)
    try:
        return _build(source, recipe)
    except RecipeError as error:
        raise source.located(error) from None


def _build(source: Source, recipe: Recipe) -> Job:
    splits = None
    if recipe.data is not None:
        splits = load_splits(recipe.data, recipe.split, source.path.parent, classify=recipe.model.classifies)
    search, problem = _search(recipe), _problem(source.path, recipe, splits)
    return Job(source, recipe, splits, problem, search, _stopping(recipe))


def _problem(path: Path, recipe: Recipe, splits: Splits | None) -> Problem:
    kind = recipe.model.kind
    if kind == "custom":
        return custom(path, recipe, splits)
    if kind == "loss":
        return (unrolled_loss if recipe.method == "unroll" else loss)(path, recipe, splits)
    assert splits is not None  # the schema asks for data
    if kind in LINEAR:
        return linear(recipe, splits)
    return (evidenced if recipe.method == "evidence" else unrolled)(recipe, splits)


def _stopping(recipe: Recipe) -> Stopping:
    asked = recipe.stop
    # The best of noisy values is luck: it says nothing of progress, unless somebody asks for it.
    patience = None if recipe.noisy and "patience" not in asked.model_fields_set else asked.patience
    return Stopping(asked.gradient, patience, asked.improvement)


def _search(recipe: Recipe) -> AbstractSearch:
    asked = recipe.search
    match asked.optimiser:
        case "maid":
            if recipe.model.kind != "custom" and recipe.objective.certificate == "none":
                raise RecipeError('given "maid", allowed with a certificate other than "none"', key="search.optimiser")
            return MAID()
        case "hoag":
            return HOAG(asked.schedule)
        case "fixed":
            assert asked.inner is not None  # the schema asks for both
            assert asked.adjoint is not None
            return FixedTolerance(asked.inner, asked.adjoint, asked.step_size)
        case name:
            return Optax(GRADIENT_TRANSFORMATIONS[name](asked.learning_rate))
