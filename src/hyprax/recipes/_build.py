"""From a recipe to what `tune` needs: data, model, objective, hyperparameters, search."""

import dataclasses
import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from .._hyper import Interval, LogInterval, Positive, validated
from .._objective import AbstractObjective
from ..implicit import (
    CG,
    LBFGS,
    SABA,
    SOBA,
    AbstractBound,
    AbstractInnerSolver,
    AbstractSingleLoop,
    AmIGO,
    EhrhardtRoberts,
    ImplicitObjective,
    LookAhead,
    Newton,
    NoBound,
    Optimum,
    families,
)
from ..search import HOAG, MAID, AbstractSearch, FixedTolerance, Optax, Stopping
from ._data import Splits, load_splits
from ._errors import RecipeError, Source
from ._read import read_recipe
from ._schema import Penalty, Recipe

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
    objective: AbstractObjective
    hyper: PyTree | None
    search: AbstractSearch
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
    recipe, source = read_recipe(path, settings)
    try:
        return _build(source, recipe)
    except RecipeError as error:
        raise source.located(error) from None


def _build(source: Source, recipe: Recipe) -> Job:
    splits = None
    if recipe.data is not None:
        splits = load_splits(recipe.data, recipe.split, source.path.parent, classify=recipe.model.classifies)
    search = _search(recipe)
    stop = _stopping(recipe)
    if recipe.model.kind == "custom":
        objective, hyper = _custom(source.path, recipe, splits)
        return Job(source, recipe, splits, objective, hyper, search, stop)
    assert splits is not None  # the schema asks for data
    if recipe.model.kind == "logistic" and len(splits.classes) != 2:
        raise RecipeError(f"given {len(splits.classes)} classes, allowed for logistic are 2", key="model.kind")
    objective = _objective(recipe, splits)
    start = recipe.hyper.penalty.start
    hyper = None if start == "grid" else {"penalty": _penalty(recipe, splits, start)}
    return Job(source, recipe, splits, objective, hyper, search, stop)


def _stopping(recipe: Recipe) -> Stopping:
    asked = recipe.stop
    noisy = recipe.objective.method != "implicit"
    # The best of noisy values is luck: it says nothing of progress, unless somebody asks for it.
    patience = None if noisy and "patience" not in asked.model_fields_set else asked.patience
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


def _select_penalty(hyper: PyTree) -> Any:
    return hyper["penalty"]


def _objective(recipe: Recipe, splits: Splits) -> ImplicitObjective | AbstractSingleLoop:
    exact, asked = _exact_objective(recipe, splits), recipe.objective
    if asked.method == "implicit":
        return exact
    examples = len(splits.train[0])
    if asked.batch_size > examples:
        raise RecipeError(
            f"given {asked.batch_size}, allowed are at most {examples}, the rows of the training part",
            key="objective.batch_size",
        )
    method = {"soba": SOBA, "saba": SABA, "amigo": AmIGO}[asked.method]
    return method(
        exact.optimum,
        exact.outer_loss,
        exact.outer_data,
        batch_size=asked.batch_size,
        key=jax.random.key(asked.seed),
    )


def _exact_objective(recipe: Recipe, splits: Splits) -> ImplicitObjective:
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
    folder = path.resolve().parent
    key = "model.function"
    sys.path.insert(0, str(folder))
    try:
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise RecipeError(f"cannot import {module_name!r} ({_in_short(error)})", key=key) from None
        beside = folder / f"{module_name.replace('.', '/')}.py"
        if beside.is_file() and beside != Path(module.__file__ or "").resolve():
            raise RecipeError(
                f"{module_name!r} is the name of another module, {module.__file__ or 'built in'}: rename {beside.name}",
                key=key,
            )
        function = getattr(module, name, None)
        if not callable(function):
            raise RecipeError(f"module {module_name!r} has no function {name!r}", key=key)
        try:
            built: Any = function(splits)
        except Exception as error:
            raise RecipeError(f"{recipe.model.function} failed ({_in_short(error)})", key=key) from error
    finally:
        sys.path.remove(str(folder))
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], AbstractObjective)):
        raise RecipeError(
            f"{recipe.model.function} returned {type(built).__name__}, allowed is (objective, hyper)", key=key
        )
    try:
        return built[0], validated(built[1])
    except ValueError as error:
        raise RecipeError(
            f"{recipe.model.function} returned hyperparameters that cannot be tuned: {error}", key=key
        ) from None


def _in_short(error: Exception) -> str:
    """The type, the text and the last place of an error in somebody else's code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {error}{place}"
