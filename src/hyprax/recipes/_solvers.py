"""How a hypergradient at an optimum is computed: the solvers, and the certificate, by their names."""

from typing import Any

import jax
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
    Nystrom,
    Optimum,
    ResidualCertifier,
)
from ._data import check_batch_size
from ._engine_tables import Objective
from ._errors import RecipeError, as_error
from ._schema import Recipe


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
        certifier=certifier_of(asked, certificate),
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
            nystrom = Nystrom(asked.rank, key=jax.random.key(asked.seed))
            named = {"auto": None, "none": False, "jacobi": Jacobi(key=jax.random.key(asked.seed)), "nystrom": nystrom}
            return CG(tolerance=tolerance, preconditioner=named[asked.preconditioner])
        case "minres":
            return MINRES(tolerance=tolerance)
        case "cholesky":
            return Cholesky(tolerance=tolerance)
        case "gradient-descent":
            return GradientDescent(tolerance=tolerance)
        case "heavy-ball":
            return HeavyBall(tolerance=tolerance)
        case "neumann":
            return Neumann(terms=asked.terms)
        case "one-step":
            return Neumann(terms=1)
        case _:
            return Nystrom(asked.rank, key=jax.random.key(asked.seed))


def certifier_of(asked: Objective, usual: str) -> AbstractCertifier:
    """The certificate, by its name."""
    bounds: dict[str, type[AbstractCertifier]] = {
        "look-ahead": LookAhead,
        "ehrhardt-roberts": EhrhardtRoberts,
        "free": ResidualCertifier,
        "estimate": LookAheadEstimate,
        "none": NoCertifier,
    }
    return bounds[usual if asked.certificate == "auto" else asked.certificate]()
