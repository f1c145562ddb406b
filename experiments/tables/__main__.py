"""Tables made at random through `hyprax tune` and `hyprax predict`: a model, or one message, and never a traceback.

    python -m experiments.tables [--tables 10000] [--quick] [--read] [--tune 600 [--varied]]

Each way writes a page of its own, with what it did.
"""

import argparse
import contextlib
import csv
import io
import math
import shutil
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from experiments._common import machine, results_folder, rows_of

from hyprax.cli._commands import run
from hyprax.recipes import RecipeError
from hyprax.recipes._build import recipe_of_table, splits_of

from .made import ALIKE, AT_ONCE, table
from .tuning import STEPS, chosen, forget, tuned

MADE = (
    "Table k depends on k alone: kinds of columns, holes, targets, dialects, encodings, and faults (`made.py`); forty "
    "are of one shape, so that they share compiled programs."
)
WAYS = {  # the page that it writes: the options, with the number of tables, and what was done
    "RESULTS.md": (
        "--tables {}",
        "`hyprax tune FILE --target target` runs as it comes but for three steps and a grid of five penalties. What "
        "ends with exit status 0 must leave a model that predicts a finite number or a class for each row of the same "
        "table; what ends with 2 must have said why. All else is wrong, and listed with its number. Odd tables are "
        "given `--assume`. Done tables stand in out/experiments/tables.jsonl, from where a run goes on.",
    ),
    "READ.md": (
        "--tables {} --read",
        "Every table is read, encoded and split alone, without `--assume` and, where a guess is doubtful, with it: "
        "finite columns and targets in three parts, or one message.",
    ),
    "TUNED.md": (
        "--tune {}",
        "The first tables that can be read, others being left out, go through two steps of tuning, a grid of three "
        "penalties, refits, judgement and a saved model in one process, those of a shape one after the other: finite "
        "losses, outputs and predictions for each row of the same table, probabilities with the sum 1, or one message. "
        "`JAX_DISABLE_MOST_OPTIMIZATIONS=true` makes it a few times quicker.",
    ),
}
WAYS["VARIED.md"] = (
    "--tune {} --varied",
    f"{WAYS['TUNED.md'][1]} Segments, weights of classes, and splits in time or by the groups of some column are drawn "
    "too, many of which ask for what the table cannot give.",
)

SETTINGS = {"tables": 3}
SHORT = ("--set", "search.steps=3", "--set", "baseline.points=5", "--quiet")


def said(*words: str) -> tuple[int, str, str]:
    """Exit status and output of a command; a traceback is status 1."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run(list(words))
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            if status in (130, 143):  # the experiment itself was stopped
                raise
        except Exception:  # what a user would see as a traceback
            traceback.print_exc()
            status = 1
    return status, out.getvalue(), err.getvalue()


def tried(number: int) -> dict[str, Any]:
    """What came of a table."""
    folder = Path(tempfile.mkdtemp(prefix="tables"))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            path, target, about = table(number, folder)
            outcome, words = judged(path, target, folder, ["--assume"] * (number % 2))
        leaks = sorted({f"{one.category.__name__}: {one.message}"[:200] for one in caught})
        return {"outcome": outcome, "words": words[:600], "warnings": leaks, **about}
    finally:
        shutil.rmtree(folder)


def judged(path: Path, target: str, folder: Path, more: list[str]) -> tuple[str, str]:
    status, out, err = said("tune", str(path), "--target", target, "--out", str(folder / "run"), *SHORT, *more)
    if status == 2:
        return ("refused", err) if err.strip() and "Traceback" not in err else ("wrong: no message", err)
    if status != 0:
        return f"wrong: status {status}", out + err
    made = folder / "predicted.csv"
    status, out, err = said("predict", str(folder / "run"), str(path), "--out", str(made))
    if status != 0:
        return f"wrong: predict ends with {status}", out + err
    with made.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    cells = [row[-1] for row in rows[1:]]
    numbers = [cell for cell in cells if _is_number(cell)]
    if not cells or any(not math.isfinite(float(cell)) for cell in numbers):
        return "wrong: no finite prediction", "\n".join(map(str, rows[:3]))
    return "model", ""


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read(number: int) -> dict[str, Any]:
    """What reading alone makes of a table."""
    folder = Path(tempfile.mkdtemp(prefix="tables"))
    try:
        path, target, about = table(number, folder)
        outcome = ready(path, target, assume=False)
        if outcome == "doubtful":
            outcome = f"doubtful, then {ready(path, target, assume=True)}"
        return {"cell": [number], "outcome": outcome, **about}
    finally:
        shutil.rmtree(folder)


def ready(path: Path, target: str, *, assume: bool) -> str:
    try:
        splits = splits_of(*recipe_of_table(path, target, (), assume=assume)[:2])
    except RecipeError as error:
        words = str(error)
        return "doubtful" if "--assume" in words else "refused" if words and "\n" not in words else "wrong: no message"
    except Exception:  # what a user would see as a traceback
        return f"wrong: {traceback.format_exc()[-300:]}"
    assert splits is not None
    parts = [part for part in (splits.train, splits.validation, splits.test) if len(part[1])]
    sound = all(np.all(np.isfinite(x)) and np.all(np.isfinite(y)) and len(x) == len(y) for x, y in parts)
    fits = len(parts) >= 2 and {x.shape[1] for x, _ in parts} == {len(splits.features)}
    return "ready" if sound and fits else "wrong: not finite, or of no shape"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="20 tables; nothing is kept")
    parser.add_argument("--read", action="store_true", help="reading, encoding and splitting alone")
    parser.add_argument("--tune", type=int, default=0, help="so many tables that can be read, through tuning")
    parser.add_argument("--varied", action="store_true", help="with settings that are drawn too")
    given = parser.parse_args()
    count = 20 if given.quick else given.tables
    jax.config.update("jax_enable_x64", True)
    found: list[dict[str, Any]] = []
    if given.read:
        written([read(number) for number in range(count)], "READ.md")
        return
    if given.tune:
        before = ""
        name, more = ("VARIED.md", ("varied",)) if given.varied else ("TUNED.md", ())
        cells = [(*cell, *more) for cell in chosen(given.tune)]
        for row in rows_of(__file__, cells, {"steps": list(STEPS)}, tuned):
            forget(before, before := row["shape"])
            found.append(row)
            _tell(row)
            if len(found) % 50 == 0:
                written(found, name)
        written(found, name)
        return
    for row in rows_of(__file__, ((number,) for number in range(count)), SETTINGS, tried):
        found.append(row)
        _tell(row)
        if len(found) % 50 == 0:
            written(found)
        if len(found) % (ALIKE * AT_ONCE) == 0:
            jax.clear_caches()
    written(found)


def _tell(row: dict[str, Any]) -> None:
    if row["outcome"].startswith("wrong") or row["warnings"]:
        print(row["cell"], row["outcome"], row["warnings"], row["words"][-400:], flush=True)


def written(found: list[dict[str, Any]], name: str = "RESULTS.md") -> None:
    outcomes = Counter(row["outcome"].split("\n")[0] for row in found)
    kinds = sorted(outcomes)
    faults = {
        fault: Counter(row["outcome"].split("\n")[0] for row in found if row["fault"] == fault)
        for fault in sorted({row["fault"] for row in found})
    }
    options, done = WAYS[name]
    lines = [
        "# Tables made at random",
        "",
        f"`python -m experiments.tables {options.format(len(found))}` on a {machine()}. {MADE} {done}",
        "",
        "| outcome | tables |",
        "| --- | ---: |",
        *(f"| {name} | {count} |" for name, count in outcomes.most_common()),
        "",
        f"| fault drawn | {' | '.join(kinds)} |",
        f"| --- |{' ---: |' * len(kinds)}",
        *(f"| {fault} | {' | '.join(str(c[kind]) for kind in kinds)} |" for fault, c in faults.items()),
        "",
        "Wrong: " + (", ".join(str(row["cell"][0]) for row in found if "wrong" in row["outcome"]) or "none") + ".",
        "",
    ]
    (results_folder(__file__) / name).write_text("\n".join(lines))
    print(dict(outcomes), flush=True)


if __name__ == "__main__":
    main()
