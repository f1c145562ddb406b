"""A recipe made ready: an objective, where its search starts, what its weights predict, how it is searched."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from jaxtyping import PyTree

from .._objective import AbstractObjective
from ..search import HOAG, MAID, AbstractSearch, FixedTolerance, Optax, Stopping
from ._data import Splits
from ._errors import Source
from ._hyper_tables import Penalty
from ._schema import Recipe

GRADIENT_TRANSFORMATIONS = {
    "adam": optax.adam,
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "rmsprop": optax.rmsprop,
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A recipe made ready: nothing has been computed or written yet.

    - `source`, `recipe`, `splits`: the file, what it says, and the data it names (`None` without data).
    - `objective`: what is tuned for.
    - `hyper`: the hyperparameters to start from; `None` where a penalty starts from the baseline's best.
    - `predict`: `(params, inputs)` to what the model says of examples; `None` where that is not known.
    - `with_penalty`: the hyperparameters with every penalty at one strength, spread and held as a table says; of linear
        models.
    """

    source: Source
    recipe: Recipe
    splits: Splits | None
    objective: AbstractObjective
    hyper: PyTree | None
    predict: Callable[[PyTree, np.ndarray], np.ndarray] | None = None
    with_penalty: Callable[[float, Penalty], PyTree] | None = None

    @property
    def search(self) -> AbstractSearch:
        """How the hyperparameters move."""
        asked = self.recipe.search
        match asked.optimizer:
            case "maid":
                return MAID()
            case "hoag":
                return HOAG(asked.schedule)
            case "fixed":
                assert asked.inner is not None  # the schema asks for both
                assert asked.adjoint is not None
                return FixedTolerance(asked.inner, asked.adjoint, asked.step_size)
            case name:
                return Optax(GRADIENT_TRANSFORMATIONS[name](asked.learning_rate))

    @property
    def stop(self) -> Stopping:
        """When the search stops before all of its steps are made."""
        return Stopping(**self.recipe.stop.model_dump())

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
        assert self.with_penalty is not None  # linear models alone have a baseline
        assert table is not None
        return self.with_penalty(strength, table)
