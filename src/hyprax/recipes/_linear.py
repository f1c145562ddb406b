"""Linear models: families with penalties and example weights, differentiated at their optimum or along the way."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._hyper import natural
from ..implicit import ExampleNoise, Optimum, families
from ..search import CrossValidated, refit as refitted
from ..search._shrinkage_path import HANDFUL
from ._buckets import Bucketed, blanked
from ._data import Splits
from ._errors import RecipeError, Source, as_error
from ._hyper_tables import Penalty
from ._job import Job
from ._leaves import feature_groups, inside, leaf, weights
from ._schema import Recipe
from ._solvers import adjoint_solver, certifier_of, full_or_stochastic, inner_solver

FAMILIES: dict[str, Any] = {
    "softmax": families.Softmax,
    "logistic": families.Logistic,
    "ridge": families.Squared,
    "poisson": families.Poisson,
    "pseudo-huber": families.PseudoHuber,
}
MEASURED = 400
"""Weights up to which the noise of hypergradients is measured at every step."""


def linear(source: Source, recipe: Recipe, splits: Splits) -> Job:
    """The problem of a linear model: F(λ, ω) is the mean loss on validation rows, or on folds, of the weights that fit
    the others.

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
    if splits.class_weights:
        settings["class_weights"] = splits.class_weights
    if splits.offsets:
        settings["offset"] = splits.offsets[0]
    extra: dict[str, Any] = {}
    if recipe.hyper.weights is not None:
        extra["weights"], groups = weights(recipe.hyper.weights, splits)
        settings |= {"weights": "weights", "weight_groups": groups}
    free = [-1] if splits.intercept and recipe.method == "implicit" else None
    names = splits.features if free is None else splits.features[:-1]
    grouped = _groups(penalty, splits, names, free is not None)
    count = None if grouped is None else int(grouped.max()) + 1

    def with_penalty(strength: float, table: Penalty) -> PyTree:
        if not table.tuned:
            return extra
        shape = _shape(table.shape, splits, kind == "softmax", count)
        return {"penalty": leaf(table, np.full(shape, inside(table, strength)))} | extra

    strength: Any = "penalty" if penalty.tuned else recipe.start
    inputs, targets = splits.train
    if splits.folded:
        inputs, targets, settings = blanked(inputs, targets, settings)
    try:
        family = FAMILIES[kind](inputs, targets, penalty=strength, penalty_groups=grouped, free=free, **settings)
        optimum = Optimum(family, solver=inner_solver(recipe.objective, "newton"))
        problem = Bucketed(optimum, len(splits.train[1])) if splits.folded else None
        if problem is not None:
            objective = _folds(recipe, problem, splits)
        else:
            held, wanted = splits.validation
            held_out = (jnp.asarray(held), jnp.asarray(wanted if kind == "softmax" else wanted.astype(np.float64)))
            held_out += (jnp.asarray(splits.offsets[1]),) if splits.offsets else ()
            objective = full_or_stochastic(recipe, optimum, family.mean_loss, held_out, "look-ahead", len(inputs))
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(as_error(error), key="model.kind") from None
    start = None if recipe.start is None else with_penalty(recipe.start, penalty)
    number = math.prod(_shape(penalty.shape, splits, kind == "softmax", count))
    asked = recipe.search.hold_back
    refit = None
    if recipe.method == "implicit" and not extra:
        refit = functools.partial(refitted, objective if problem is None else problem)
    held_back = splits.folded and penalty.tuned and (asked == "path" or (asked == "auto" and number > HANDFUL))

    def penalties(hyper: PyTree) -> np.ndarray:
        """λ of each weight; 0 for an intercept."""
        found = np.asarray(natural(hyper)["penalty"])
        if grouped is not None and found.ndim:
            found = found[grouped]
            found = found[:, None] if kind == "softmax" else found
        found = np.array(np.broadcast_to(found, optimum.params0.shape))
        if free is not None:
            found[free] = 0.0
        return found

    def losses(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        found = jnp.asarray(outputs)
        known = family.loss.as_targets(targets, "targets")
        known = known if family.loss.labels else known.astype(found.dtype)  # they come in the narrowest that holds them
        return np.asarray(family.loss.value(found, known))

    return Job(
        source,
        recipe,
        splits,
        objective,
        start,
        lambda params, inputs: inputs @ np.asarray(params),
        with_penalty,
        problem=problem,
        held_back=held_back and number > 1,
        refit=refit,
        penalties=penalties,
        losses=losses,
        constant=lambda targets: _constant(kind, targets, splits),
    )


def _folds(recipe: Recipe, problem: Bucketed, splits: Splits) -> CrossValidated:
    """The loss on folds, and the noise of its hypergradients where few weights make it cheap."""
    size = math.prod(problem.optimum.params0.shape)
    return CrossValidated(
        problem,
        recipe.split.folds if splits.pairs is None else splits.pairs,
        key=jax.random.key(recipe.split.seed),
        adjoint=adjoint_solver(recipe.objective),
        certifier=certifier_of(recipe.objective, "look-ahead"),
        noise=ExampleNoise() if size <= MEASURED else None,
    )


def _groups(penalty: Penalty, splits: Splits, names: Sequence[str], free: bool) -> np.ndarray | None:
    """The number of the penalty of each column, where there is not one for all or one for each."""
    if penalty.shape == "kind":
        found = np.asarray(splits.kinds[: len(names)])
    elif penalty.shape == "column":
        found = np.unique(splits.blocks, return_inverse=True)[1].reshape(-1)[: len(names)]
    elif penalty.shape == "feature" and free:
        found = np.arange(len(names))
    else:
        found = feature_groups(penalty, names)
    return np.append(found, 0) if free and found is not None else found


def _constant(kind: str, targets: np.ndarray, splits: Splits) -> np.ndarray:
    """The output that fits the targets best without any column."""
    if kind in ("softmax", "logistic"):
        counts = np.bincount(targets.astype(int), splits.weights_of(targets), minlength=max(len(splits.classes), 2))
        shares = counts / len(targets)
        logs = np.log(np.maximum(shares, 0.5 / len(targets)))
        return logs if kind == "softmax" else np.asarray(logs[1] - logs[0])
    if kind == "poisson":
        offset = splits.fitted_offset
        total = len(targets) if offset is None else np.sum(np.exp(offset))
        return np.asarray(np.log(np.maximum(np.sum(targets), 0.5) / total))
    return np.asarray(np.median(targets) if kind == "pseudo-huber" else np.mean(targets))


def _shape(shape: str, splits: Splits, softmax: bool, groups: int | None) -> tuple[int, ...]:
    features, classes = len(splits.features), len(splits.classes)
    if groups is not None and shape != "global":
        return (groups,)
    if shape == "feature":
        return (features, 1) if softmax else (features,)
    return {"global": (), "class": (classes,), "weight": (features, classes)}[shape]
