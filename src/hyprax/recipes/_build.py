"""From a recipe to a job: the table [model] and the method say which file builds it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..runs import Run, RunError, read
from ..search import Callback
from ..search._search import check_fits
from ._data import Splits, load_splits
from ._data_tables import CsvData
from ._doubts import MODEL, refuse, unsettled
from ._engine_tables import LINEAR
from ._errors import RecipeError, Source, as_error
from ._evidenced import evidenced
from ._guess import guessed
from ._job import Job
from ._linear import linear
from ._outcome import Outcome, carry_out
from ._own import custom, loss
from ._read import parse_recipe, read_recipe
from ._schema import Recipe
from ._unrolled import unrolled, unrolled_loss


def prepare(path: Path, settings: Iterable[str] = ()) -> Job:
    """Read, check and load everything that a recipe names.

    **Raises:** `RecipeError`, with file, line and key.
    """
    return _made(*read_recipe(path, settings))


def prepare_text(text: str, path: Path, settings: Iterable[str] = ()) -> Job:
    """The same of a recipe's text; `path` is what it stands for, beside which its data are found.

    **Raises:** `RecipeError`.
    """
    return _made(*parse_recipe(text, path, settings, made=path.suffix != ".toml"))


def prepare_table(
    path: Path,
    target: str | None,
    settings: Iterable[str] = (),
    *,
    exposure: str | None = None,
    assume: bool = False,
) -> Job:
    """The same of a table alone: what it was taken for is the recipe.

    **Raises:** `RecipeError`, also where a guess is doubtful, and neither settled by the settings nor to be assumed.
    """
    recipe, source, said = recipe_of_table(path, target, settings, exposure=exposure, assume=assume)
    job = _made(recipe, source)
    assert job.splits is not None  # a table has data
    return dataclasses.replace(job, splits=dataclasses.replace(job.splits, notes=(*job.splits.notes, *said)))


def recipe_of_table(
    path: Path, target: str | None, settings: Iterable[str], *, exposure: str | None = None, assume: bool = False
) -> tuple[Recipe, Source, list[str]]:
    """The recipe of a table, and what its target was taken for.

    **Raises:** as `prepare_table` does.
    """
    guess = guessed(path, target, exposure)
    recipe, source = parse_recipe(
        guess.recipe(all_kinds=False), path, [*settings, *(["data.assume=true"] if assume else [])], made=True
    )
    open_questions = unsettled(guess.doubts, source.settings)
    assert isinstance(recipe.data, CsvData)  # the guess says so
    if not recipe.data.assume:
        data = recipe.data
        used = guess.table.header if data.features is None else data.features
        others = [name for name in guess.table.header if name not in used]
        aside = [*others, *(data.drop or ()), *(name for name in (data.groups, data.exposure) if name is not None)]
        refuse(unsettled(open_questions, (f"data.kinds.{name}" for name in aside)), path)
    assumed = [f"assumed: {doubt.said}" for doubt in open_questions if doubt.key == MODEL]
    return recipe, source, [f"{target}, the target: {guess.said}", *assumed]


def resume(
    folder: str | Path,
    settings: Iterable[str],
    *,
    progress: bool,
    say: Callable[[str], None],
    callbacks: Sequence[Callback],
) -> Outcome:
    """What `hyprax.resume` says."""
    about = read(folder).about.get("recipe")
    if not (isinstance(about, dict) and isinstance(about.get("text"), str) and isinstance(about.get("path"), str)):
        raise RunError(
            f"{folder}: must hold the run of a recipe; it holds another. Go on with it where it was begun: call "
            "hx.tune again, with run=hx.Run(folder)."
        )
    job = prepare_text(about["text"], Path(about["path"]), [*map(str, about.get("settings", [])), *settings])
    run = Run(folder, config=job.config, about=job.about, resume=True)
    return carry_out(job, run, progress=progress, say=say, callbacks=callbacks)


def splits_of(recipe: Recipe, source: Source) -> Splits | None:
    """The data that a recipe names, read, split and prepared; `None` without any.

    **Raises:** `RecipeError`.
    """
    if recipe.data is None:
        return None
    try:
        return load_splits(
            recipe.data,
            recipe.split,
            source.path.parent,
            classify=recipe.model.classifies,
            folds=recipe.folds,
            intercept=recipe.model.kind in LINEAR and recipe.method == "implicit",
        )
    except RecipeError as error:
        raise source.located(error) from None


def _made(recipe: Recipe, source: Source) -> Job:
    splits = splits_of(recipe, source)
    try:
        job = _build(source, recipe, splits).measuring()
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
