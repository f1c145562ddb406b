"""Linear models: families with penalties and example weights, differentiated at their optimum or along the way."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..implicit import Optimum, families
from ._data import Splits
from ._errors import RecipeError, Source, as_error
from ._hyper_tables import Penalty
from ._job import Job
from ._leaves import feature_groups, inside, leaf, weights
from ._schema import Recipe
from ._solvers import full_or_stochastic, inner_solver

FAMILIES: dict[str, Any] = {
    "softmax": families.Softmax,
    "logistic": families.Logistic,
    "ridge": families.Squared,
    "poisson": families.Poisson,
    "pseudo-huber": families.PseudoHuber,
}


def linear(source: Source, recipe: Recipe, splits: Splits) -> Job:
    """The problem of a linear model: F(λ, ω) is the mean validation loss of the weights that fit the training part.

    **Raises:** `RecipeError`.
    """
    kind, penalty = recipe.model.kind, recipe.penalty
    assert penalty is not None  # a linear model has one in any case
    if kind == "logistic" and len(splits.classes) != 2:
        raise RecipeError(
            f'must be "softmax" for more than two classes; got "logistic" and {len(splits.classes)} of them',
            key="model.kind",
        )
    of_kinds = {"softmax": {"classes": len(splits.classes)}, "pseudo-huber": {"delta": recipe.model.delta}}
    settings: dict[str, Any] = dict(of_kinds.get(kind, {}))
    extra: dict[str, Any] = {}
    if recipe.hyper.weights is not None:
        extra["weights"], groups = weights(recipe.hyper.weights, splits)
        settings |= {"weights": lambda hyper: hyper["weights"], "weight_groups": groups}
    grouped = feature_groups(penalty, splits.features)
    count = None if grouped is None else int(grouped.max()) + 1

    def with_penalty(strength: float, table: Penalty) -> PyTree:
        if not table.tuned:
            return extra
        shape = _shape(table.shape, splits, kind == "softmax", count)
        return {"penalty": leaf(table, np.full(shape, inside(table, strength)))} | extra

    strength: Any = (lambda hyper: hyper["penalty"]) if penalty.tuned else penalty.start
    inputs, targets = splits.train
    try:
        family = FAMILIES[kind](inputs, targets, penalty=strength, penalty_groups=grouped, **settings)
        held, wanted = splits.validation
        held_out = (jnp.asarray(held), jnp.asarray(wanted if kind == "softmax" else wanted.astype(np.float64)))
        optimum = Optimum(family, solver=inner_solver(recipe.objective, "newton"))
        objective = full_or_stochastic(recipe, optimum, family.mean_loss, held_out, "look-ahead", len(inputs))
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(as_error(error), key="model.kind") from None
    start = None if penalty.start == "grid" else with_penalty(float(penalty.start), penalty)
    return Job(
        source, recipe, splits, objective, start, lambda params, inputs: inputs @ np.asarray(params), with_penalty
    )


def _shape(shape: str, splits: Splits, softmax: bool, groups: int | None) -> tuple[int, ...]:
    features, classes = len(splits.features), len(splits.classes)
    if shape == "group":
        assert groups is not None  # the schema asks for them
        return (groups,)
    if shape == "feature":
        return (features, 1) if softmax else (features,)
    return {"global": (), "class": (classes,), "weight": (features, classes)}[shape]
