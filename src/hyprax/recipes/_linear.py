"""Linear models: families with penalties and example weights, differentiated at their optimum or along the way."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._objective import AbstractObjective
from ..implicit import (
    CG,
    FISTA,
    LBFGS,
    MINRES,
    SABA,
    SOBA,
    AbstractAdjointSolver,
    AbstractCertifier,
    AbstractInnerSolver,
    AdjointGradientDescent,
    AdjointHeavyBall,
    AmIGO,
    Cholesky,
    EhrhardtRoberts,
    GradientDescent,
    HeavyBall,
    ImplicitObjective,
    Jacobi,
    LookAhead,
    LookAheadEstimate,
    Neumann,
    Newton,
    NoCertifier,
    NoPreconditioner,
    Nystrom,
    NystromSolver,
    OneStep,
    Optimum,
    ResidualCertifier,
    families,
)
from ._data import Splits, check_batch_size
from ._engine_tables import Objective
from ._errors import RecipeError, as_error
from ._hyper_tables import Penalty
from ._leaves import feature_groups, inside, leaf, weights
from ._problem import Problem
from ._schema import Recipe

FAMILIES: dict[str, Any] = {
    "softmax": families.Softmax,
    "logistic": families.Logistic,
    "ridge": families.Squared,
    "poisson": families.Poisson,
    "pseudo-huber": families.PseudoHuber,
}


def linear(recipe: Recipe, splits: Splits) -> Problem:
    """The problem of a linear model: F(λ, ω) is the mean validation loss of the weights that fit the training part.

    **Raises:** `RecipeError`.
    """
    kind, penalty = recipe.model.kind, recipe.penalty
    assert penalty is not None  # a linear model has one in any case
    if kind == "logistic" and len(splits.classes) != 2:
        raise RecipeError(f"given {len(splits.classes)} classes, allowed for logistic are 2", key="model.kind")
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
    return Problem(objective, start, lambda params, inputs: inputs @ np.asarray(params), with_penalty)


def _shape(shape: str, splits: Splits, softmax: bool, groups: int | None) -> tuple[int, ...]:
    features, classes = len(splits.features), len(splits.classes)
    if shape == "group":
        assert groups is not None  # the schema asks for them
        return (groups,)
    if shape == "feature":
        return (features, 1) if softmax else (features,)
    return {"global": (), "class": (classes,), "weight": (features, classes)}[shape]


def full_or_stochastic(
    recipe: Recipe, optimum: Optimum, outer: Any, outer_data: PyTree, certificate: str, examples: int
) -> AbstractObjective:
    """The objective that the table [objective] asks for.

    **Raises:** `RecipeError` for a batch that is larger than the training part, or a rate that is missing.
    """
    asked = recipe.objective
    exact = ImplicitObjective(
        optimum,
        outer,
        outer_data,
        adjoint=adjoint_solver(asked),
        certifier=bound(certificate if asked.certificate == "auto" else asked.certificate),
    )
    if recipe.method == "implicit":
        return exact
    check_batch_size(asked.batch_size, examples, "objective.batch_size")
    method = {"soba": SOBA, "saba": SABA, "amigo": AmIGO}[recipe.method]
    try:
        return method(
            exact.optimum,
            exact.outer_loss,
            exact.outer_data,
            rate=asked.rate,
            batch_size=asked.batch_size,
            key=jax.random.key(asked.seed),
        )
    except ValueError as error:
        raise RecipeError(as_error(error), key="objective.rate") from None


def inner_solver(asked: Objective, usual: str) -> AbstractInnerSolver:
    """The solver of the training problem, by its name."""
    solvers = {
        "newton": Newton,
        "lbfgs": LBFGS,
        "gradient-descent": GradientDescent,
        "heavy-ball": HeavyBall,
        "fista": FISTA,
    }
    return solvers[usual if asked.solver == "auto" else asked.solver](tolerance=asked.inner_tolerance)


def adjoint_solver(asked: Objective) -> AbstractAdjointSolver:
    """The solver of the adjoint system, by its name."""
    tolerance = asked.adjoint_tolerance
    match asked.adjoint:
        case "cg":
            nystrom = Nystrom(asked.rank)
            named = {"auto": None, "none": NoPreconditioner(), "jacobi": Jacobi(), "nystrom": nystrom}
            return CG(tolerance=tolerance, preconditioner=named[asked.preconditioner])
        case "minres":
            return MINRES(tolerance=tolerance)
        case "cholesky":
            return Cholesky(tolerance=tolerance)
        case "gradient-descent":
            return AdjointGradientDescent(tolerance=tolerance)
        case "heavy-ball":
            return AdjointHeavyBall(tolerance=tolerance)
        case "neumann":
            return Neumann(terms=asked.terms)
        case "one-step":
            return OneStep()
        case _:
            return NystromSolver(rank=asked.rank)


def bound(name: str) -> AbstractCertifier:
    """The certificate, by its name."""
    bounds: dict[str, type[AbstractCertifier]] = {
        "look-ahead": LookAhead,
        "ehrhardt-roberts": EhrhardtRoberts,
        "free": ResidualCertifier,
        "estimate": LookAheadEstimate,
        "none": NoCertifier,
    }
    return bounds[name]()
