"""From a recipe to a job: the table [model] and the method say which file builds it."""

from collections.abc import Iterable
from pathlib import Path

from ..search._search import check_fits
from ._data import Splits, load_splits
from ._engine_tables import LINEAR
from ._errors import RecipeError, Source, as_error
from ._evidenced import evidenced
from ._job import Job
from ._linear import linear
from ._own import custom, loss
from ._read import read_recipe
from ._schema import Recipe
from ._unrolled import unrolled, unrolled_loss


def prepare(path: Path, settings: Iterable[str] = ()) -> Job:
    """Read, check and load everything that a recipe names.

    **Raises:** `RecipeError`, with file, line and key.
    """
    recipe, source = read_recipe(path, settings)
    try:
        splits = None
        if recipe.data is not None:
            splits = load_splits(
                recipe.data,
                recipe.split,
                source.path.parent,
                classify=recipe.model.classifies,
                folds=recipe.folds,
            )
        job = _build(source, recipe, splits)
        try:
            check_fits(job.search, job.objective)
        except ValueError as error:
            raise RecipeError(as_error(error), key="search.optimizer") from None
        if job.objective.noisy and "patience" in recipe.stop.model_fields_set:
            raise RecipeError(
                "must be left out where values are noisy: the best of them is luck, and says nothing of progress",
                key="stop.patience",
            )
    except RecipeError as error:
        raise source.located(error) from None
    return job


def _build(source: Source, recipe: Recipe, splits: Splits | None) -> Job:
    kind = recipe.model.kind
    if kind == "custom":
        return custom(source, recipe, splits)
    if kind == "loss":
        return (unrolled_loss if recipe.method == "unroll" else loss)(source, recipe, splits)
    assert splits is not None  # the schema asks for data
    if kind in LINEAR:
        return linear(source, recipe, splits)
    return (evidenced if recipe.method == "evidence" else unrolled)(source, recipe, splits)
