"""Tables through whole tuning in one process: those of one shape after another, so that programs are compiled once."""

import itertools
import json
import shutil
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import hyprax as hx
from hyprax import report
from hyprax.recipes import RecipeError, carry_out, load
from hyprax.recipes._build import prepare_table, recipe_of_table, splits_of
from hyprax.recipes._tables import read_table
from hyprax.runs import RunError

from .made import table

STEPS = ("search.steps=2", "baseline.points=3", "baseline.lo=1e-3")
FIRST_LOOK = 40
"""Of every so many numbers the first is reported too: drawing costs more than tuning."""


def chosen(count: int) -> list[tuple[int, str]]:
    """The first `count` tables that can be read and split, with their shapes, in the order of these."""
    found: list[tuple[tuple[Any, ...], int]] = []
    for number in itertools.count():
        folder = Path(tempfile.mkdtemp(prefix="tables"))
        try:
            path, target, _ = table(number, folder)
            recipe, source, _ = recipe_of_table(path, target, (), assume=True)
            splits = splits_of(recipe, source)
            assert splits is not None  # a table has data
            blocks, parts = len(set(splits.blocks)), [len(part[1]) for part in (splits.validation, splits.test)]
            shape = (recipe.model.kind, len(splits.classes), len(splits.features), splits.folded, blocks, parts)
            found.append((shape, number))
        except RecipeError:
            continue
        finally:
            shutil.rmtree(folder)
        if len(found) == count:
            break
    return [
        (number, f"{kind}, {classes} classes, {columns} columns")
        for (kind, classes, columns, *_), number in sorted(found)
    ]


def drawn(number: int, path: Path, target: str) -> list[str]:
    """Settings by the number: segments, weights of classes, rows split in time or by the groups of some column."""
    header = [name for name in read_table(path).header if name]
    names = [json.dumps(name, ensure_ascii=False) for name in header]
    found = [f"data.segments={names[number % len(names)]}"]
    if number % 2 and recipe_of_table(path, target, (), assume=True)[0].model.classifies:
        found.append("data.class_weight=balanced")
    by = ("time", "groups", "rows")[number % 3]
    return [*found, f"split.by={by}", *([f"data.groups={names[number // 7 % len(names)]}"] if by == "groups" else [])]


def tuned(number: int, shape: str, how: str = "") -> dict[str, Any]:
    """What came of a table that can be read: a model that predicts its own rows, or one message.

    `how`: "varied" for settings that are drawn too.
    """
    folder = Path(tempfile.mkdtemp(prefix="tables"))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            path, target, about = table(number, folder)
            try:
                more = drawn(number, path, target) if how else []
                outcome, words = _judged(number, path, target, folder, more)
            except (RecipeError, RunError) as error:
                words = str(error)
                outcome = "refused" if words and "\n" not in words else "wrong: no message"
            except Exception:  # what a user would see as a traceback
                outcome, words = "wrong: traceback", traceback.format_exc()[-1500:]
        leaks = sorted({f"{one.category.__name__}: {one.message}"[:200] for one in caught})
        return {"outcome": outcome, "words": words, "warnings": leaks, "shape": shape, **about}
    finally:
        shutil.rmtree(folder)


def _judged(number: int, path: Path, target: str, folder: Path, more: list[str]) -> tuple[str, str]:
    job = prepare_table(path, target, [*STEPS, *more], assume=True)
    run = hx.Run(folder / "run", config=job.config, about=job.about)
    outcome = carry_out(job, run, progress=False)
    if number % FIRST_LOOK == 0:
        report.write(folder / "run")
    if outcome.judgement is None:
        return ("no model", outcome.message) if outcome.message else ("wrong: no message", "")
    losses = [model.losses for model in outcome.judgement.models]
    if not all(np.all(np.isfinite(each)) for each in losses):
        return "wrong: losses", str([each[~np.isfinite(each)][:3] for each in losses])
    model = load(folder / "run")
    outputs, found = model.outputs(path), model.predict(path)
    if not np.all(np.isfinite(outputs)):
        return "wrong: outputs", str(outputs[:5])
    if model.classes:
        chances = model.predict_proba(path)
        if not (np.all(chances >= 0) and np.allclose(chances.sum(axis=1), 1, rtol=1e-9)):
            return "wrong: probabilities", str(chances[:3])
        if not set(found.tolist()) <= set(model.classes):
            return "wrong: classes", str(found[:3])
    elif not np.all(np.isfinite(found)):
        return "wrong: no finite prediction", str(found[:5])
    if not found.size:
        return "wrong: no prediction", ""
    return "model", ""


def forget(before: str, shape: str) -> None:
    """Drop the programs of another shape."""
    if before and before != shape:
        jax.clear_caches()
