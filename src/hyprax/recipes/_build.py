"""From a recipe to what `tune` needs: data, model, objective, hyperparameters, search."""

import dataclasses
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from .._hyper import Interval, LogInterval, Positive
from .._objective import AbstractObjective
from ..implicit import (
    CG,
    LBFGS,
    AbstractBound,
    AbstractInnerSolver,
    EhrhardtRoberts,
    ImplicitObjective,
    LookAhead,
    Newton,
    NoBound,
    Optimum,
    families,
)
from ..search import Optax, Stopping
from ._data import Splits, load_splits
from ._errors import RecipeError
from ._schema import Penalty, Recipe, read_recipe

OPTIMISERS = {
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

    path: Path
    recipe: Recipe
    splits: Splits | None
    objective: AbstractObjective
    hyper: PyTree | None
    search: Optax
    stop: Stopping

    @property
    def config(self) -> dict[str, Any]:
        """The resolved recipe, but for the number of steps: a run may go on for more."""
        config = self.recipe.model_dump(mode="json")
        config["search"].pop("steps")
        if self.splits is not None and self.splits.image_shape is not None:
            config["image_shape"] = list(self.splits.image_shape)
        return config

    def start_at(self, strength: float) -> PyTree:
        """The hyperparameters with every strength at one value, inside its bounds."""
        assert self.splits is not None  # a custom model brings its own start
        return {"penalty": _penalty(self.recipe, self.splits, strength)}


def prepare(path: Path, settings: Iterable[str] = ()) -> Job:
    """Read, check and load everything that a recipe names.

    **Raises:** `RecipeError`, with file, line and key.
    """
    recipe, text = read_recipe(path, settings)
    try:
        return _build(path, recipe)
    except RecipeError as error:
        raise error.located(path, text) from None


def _build(path: Path, recipe: Recipe) -> Job:
    classify = recipe.model.kind in ("softmax", "logistic")
    splits = None
    if recipe.data is not None:
        splits = load_splits(recipe.data, recipe.split, path.parent, classify=classify)
    search = Optax(OPTIMISERS[recipe.search.optimiser](recipe.search.learning_rate))
    stop = Stopping(recipe.stop.gradient, recipe.stop.patience, recipe.stop.improvement)
    if recipe.model.kind == "custom":
        objective, hyper = _custom(path, recipe, splits)
        return Job(path, recipe, splits, objective, hyper, search, stop)
    assert splits is not None  # the schema asks for data
    if recipe.model.kind == "logistic" and len(splits.classes) != 2:
        raise RecipeError(f"given {len(splits.classes)} classes, allowed for logistic are 2", key="model.kind")
    objective = _objective(recipe, splits)
    start = recipe.hyper.penalty.start
    hyper = None if start == "grid" else {"penalty": _penalty(recipe, splits, start)}
    return Job(path, recipe, splits, objective, hyper, search, stop)


def _select_penalty(hyper: PyTree) -> Any:
    return hyper["penalty"]


def _objective(recipe: Recipe, splits: Splits) -> ImplicitObjective:
    inputs, targets = splits.train
    match recipe.model.kind:
        case "softmax":
            family = families.Softmax(inputs, targets, penalty=_select_penalty, classes=len(splits.classes))
        case "logistic":
            family = families.Logistic(inputs, targets, penalty=_select_penalty)
        case _:
            family = families.Squared(inputs, targets, penalty=_select_penalty)
    asked = recipe.objective
    solvers: dict[str, AbstractInnerSolver] = {
        "newton": Newton(tolerance=asked.inner_tolerance),
        "lbfgs": LBFGS(tolerance=asked.inner_tolerance),
    }
    bounds: dict[str, AbstractBound] = {
        "look-ahead": LookAhead(),
        "ehrhardt-roberts": EhrhardtRoberts(),
        "none": NoBound(),
    }
    targets = splits.validation[1] if recipe.model.kind == "softmax" else splits.validation[1].astype(np.float64)
    return ImplicitObjective(
        Optimum(family, solver=solvers[asked.solver]),
        family.mean_loss,
        (jnp.asarray(splits.validation[0]), jnp.asarray(targets)),
        adjoint=CG(tolerance=asked.adjoint_tolerance),
        certificate=bounds[asked.certificate],
    )


def _penalty(recipe: Recipe, splits: Splits, strength: float) -> Positive | Interval | LogInterval:
    asked: Penalty = recipe.hyper.penalty
    features = splits.train[0].shape[1]
    classes = len(splits.classes)
    shape: tuple[int, ...] = ()
    if recipe.model.kind == "softmax":
        shape = {"global": (), "class": (classes,), "feature": (features, 1), "weight": (features, classes)}[
            asked.shape
        ]
    elif asked.shape == "feature":
        shape = (features,)
    if asked.lo is None or asked.hi is None:
        return Positive(np.full(shape, strength))
    # A start on the grid may lie outside, or on the edge where nothing moves: bring it inside.
    if asked.constraint == "interval":
        inset = 0.01 * (asked.hi - asked.lo)
        return Interval(np.full(shape, np.clip(strength, asked.lo + inset, asked.hi - inset)), asked.lo, asked.hi)
    inset = (asked.hi / asked.lo) ** 0.01
    return LogInterval(np.full(shape, np.clip(strength, asked.lo * inset, asked.hi / inset)), asked.lo, asked.hi)


def _custom(path: Path, recipe: Recipe, splits: Splits | None) -> tuple[AbstractObjective, PyTree]:
    """`function(splits)` of the user's module, found beside the recipe: an objective and where its search starts."""
    assert recipe.model.function is not None  # the schema asks for it
    module_name, _, name = recipe.model.function.partition(":")
    folder = str(path.resolve().parent)
    key = "model.function"
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise RecipeError(f"cannot import {module_name!r} ({type(error).__name__}: {error})", key=key) from None
    finally:
        sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"module {module_name!r} has no function {name!r}", key=key)
    try:
        built = function(splits)
    except Exception as error:
        raise RecipeError(f"{recipe.model.function} failed ({type(error).__name__}: {error})", key=key) from error
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], AbstractObjective)):
        raise RecipeError(
            f"{recipe.model.function} returned {type(built).__name__}, allowed is (objective, hyper)", key=key
        )
    return built
