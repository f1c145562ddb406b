"""A recipe made ready: an objective, where its search starts, what its weights predict, how it is searched."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from jaxtyping import PyTree

from .._objective import AbstractObjective
from ..search import HOAG, LBFGS, MAID, AbstractSearch, FixedTolerance, Foldable, Optax, Stopping
from ..search._default import gated, holding_back
from ..search._measured import measured
from ._data import Splits
from ._errors import RecipeError, Source
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
    - `problem`: the training problem on all rows but those of the test part, where folds of it are the criterion.
    - `held_back`: whether a prior holds the penalties together, its strength chosen on nested folds.
    - `refit`: hyperparameters to the fit on all rows but those of the test part, the prior kept; of linear models.
    - `penalties`: hyperparameters to the penalty of each weight; of linear models.
    - `losses`: `(outputs, targets)` to the loss of each row, and `constant`: targets to the best constant output; of
        linear models.
    """

    source: Source
    recipe: Recipe
    splits: Splits | None
    objective: AbstractObjective
    hyper: PyTree | None
    predict: Callable[[PyTree, np.ndarray], np.ndarray] | None = None
    with_penalty: Callable[[float, Penalty], PyTree] | None = None
    problem: Foldable | None = None
    held_back: bool = False
    refit: Callable[[PyTree], Any] | None = None
    penalties: Callable[[PyTree], np.ndarray] | None = None
    losses: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    constant: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def optimizer(self) -> str:
        """The optimizer of the search, resolved."""
        asked = self.recipe.search
        if asked.optimizer != "auto":
            return asked.optimizer
        if "learning_rate" in asked.model_fields_set:
            return "adam"
        if not self.held_back and holding_back(self.objective, self.begin) is not None:
            return "gated"
        return "adam" if self.objective.noisy else "lbfgs"

    @property
    def begin(self) -> PyTree:
        """Hyperparameters of the shapes of those that the search starts from."""
        return self.start_at(1.0) if self.hyper is None else self.hyper

    def on_test_rows(self, params: PyTree) -> np.ndarray:
        """What weights say of the test part, offset included."""
        assert self.splits is not None
        assert self.predict is not None
        found = np.asarray(self.predict(params, self.splits.test[0]))
        return found + self.splits.offsets[2] if self.splits.offsets else found

    def measuring(self) -> "Job":
        """With the noise of the hypergradients measured where the search goes by it.

        **Raises:** `RecipeError` where it cannot be.
        """
        if self.optimizer != "gated":
            return self
        objective = measured(self.objective)
        if not objective.measures_noise:
            raise RecipeError(
                'must not be "gated" here: the noise of these hypergradients is not measured', key="search.optimizer"
            )
        return dataclasses.replace(self, objective=objective)

    @property
    def search(self) -> AbstractSearch:
        """How the hyperparameters move."""
        asked = self.recipe.search
        match self.optimizer:
            case "gated":
                return gated(self.objective)
            case "lbfgs":
                return LBFGS()
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
        if config["data"] is not None:
            config["data"].pop("assume", None)  # it changes nothing but whether there is a run
            config["data"].pop("segments", None)  # nor this: a run that has ended may get another table
            if config["data"].get("exposure") is None:  # as in runs that were recorded before there were any
                config["data"].pop("exposure", None)
        config["search"]["optimizer"] = self.optimizer
        config["search"]["hold_back"] = "path" if self.held_back else "none"
        config["objective"]["method"] = self.recipe.method
        config["split"] |= self.recipe.split.fractions | {"criterion": "folds" if self.problem else "hold-out"}
        if self.recipe.penalty is not None:
            config["hyper"]["penalty"] = self.recipe.penalty.model_dump(mode="json")
        if self.splits is not None and self.splits.image_shape is not None:
            config["image_shape"] = list(self.splits.image_shape)
        return config

    @property
    def about(self) -> dict[str, Any]:
        """The recipe as it was given: what a record needs to be gone on with."""
        text, settings = self.source.text, list(self.source.given)
        return {"recipe": {"path": str(self.source.path.resolve()), "text": text, "settings": settings}}

    def start_at(self, strength: float, *, bounded: bool = True) -> PyTree:
        """The hyperparameters with every strength at one value, inside its bounds, or without any."""
        table = self.recipe.penalty
        assert self.with_penalty is not None  # linear models alone have a baseline
        assert table is not None
        if not bounded:
            table = table.model_copy(update={"constraint": "positive", "lo": None, "hi": None})
        return self.with_penalty(strength, table)
