"""What a user brings: a loss, or a whole objective."""

from .._hyper import validated
from .._objective import AbstractObjective, described
from ..implicit import Optimum
from ._data import Splits
from ._errors import RecipeError, Source, as_error
from ._functions import as_arrays, called, own_hyper, own_start
from ._job import Job
from ._schema import Recipe
from ._solvers import full_or_stochastic, inner_solver


def custom(source: Source, recipe: Recipe, splits: Splits | None) -> Job:
    """`function(splits)`: an objective and where its search starts."""
    reference, key = recipe.model.function, "model.function"
    assert reference is not None  # the schema asks for it
    built = called(source.path, reference, key, splits)
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], AbstractObjective)):
        raise RecipeError(f"must return (objective, hyper); {reference} returned {described(built)}", key=key)
    try:
        return Job(source, recipe, splits, built[0], validated(built[1]))
    except ValueError as error:
        raise RecipeError(
            f"must return hyperparameters that can be tuned; {reference} did not: {error}", key=key
        ) from None


def loss(source: Source, recipe: Recipe, splits: Splits | None) -> Job:
    """F(λ) = outer(w*(λ), λ, validation), w* the minimiser of the user's `function(params, hyper, train)`."""
    inner, outer, params = own_start(source.path, recipe, splits)
    train, validation = (None, None) if splits is None else (splits.train, splits.validation)
    if splits is None and recipe.method != "implicit":
        raise RecipeError(f'must be given with method = "{recipe.method}"', key="data")
    try:
        optimum = Optimum(inner, params, solver=inner_solver(recipe.objective, "lbfgs"), data=as_arrays(train))
        examples = 0 if train is None else len(train[0])
        objective = full_or_stochastic(recipe, optimum, outer, as_arrays(validation), "estimate", examples)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(as_error(error), key="objective") from None
    return Job(source, recipe, splits, objective, own_hyper(recipe))
