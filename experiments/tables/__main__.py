"""Tables made at random through `hyprax tune` and `hyprax predict`: a model, or one message, and never a traceback.

    python -m experiments.tables [--tables 10000] [--quick]

Table k depends on k alone: kinds of columns, holes, targets, dialects, encodings, and faults (`made.py`); forty are of
one shape, so that they share compiled programs. `hyprax tune FILE --target target` runs as it comes but for three steps
and a grid of five penalties. What ends with exit status 0 must leave a model that predicts a finite number or a class
for each row of the same table; what ends with 2 must have said why. All else is wrong, and listed with its number. Done
tables stand in out/experiments/tables.jsonl, from where a run goes on. Writes RESULTS.md.
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
from experiments._common import machine, results_folder, rows_of

from hyprax.cli._commands import run

from .made import ALIKE, AT_ONCE, table

SETTINGS = {"tables": 2}
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
            outcome, words = judged(path, target, folder)
        leaks = sorted({f"{one.category.__name__}: {one.message}"[:200] for one in caught})
        return {"outcome": outcome, "words": words[:600], "warnings": leaks, **about}
    finally:
        shutil.rmtree(folder)


def judged(path: Path, target: str, folder: Path) -> tuple[str, str]:
    status, out, err = said("tune", str(path), "--target", target, "--out", str(folder / "run"), *SHORT)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="20 tables; nothing is kept")
    given = parser.parse_args()
    count = 20 if given.quick else given.tables
    jax.config.update("jax_enable_x64", True)
    found: list[dict[str, Any]] = []
    for row in rows_of(__file__, ((number,) for number in range(count)), SETTINGS, tried):
        found.append(row)
        if row["outcome"].startswith("wrong") or row["warnings"]:
            print(row["cell"], row["outcome"], row["warnings"], row["words"][-400:], flush=True)
        if len(found) % 50 == 0:
            written(found)
        if len(found) % (ALIKE * AT_ONCE) == 0:
            jax.clear_caches()
    written(found)


def written(found: list[dict[str, Any]]) -> None:
    outcomes = Counter(row["outcome"] for row in found)
    faults = {
        fault: Counter(row["outcome"] for row in found if row["fault"] == fault)
        for fault in sorted({row["fault"] for row in found})
    }
    lines = [
        "# Tables made at random",
        "",
        f"`python -m experiments.tables --tables {len(found)}` on a {machine()}. "
        + (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        "",
        "| outcome | tables |",
        "| --- | ---: |",
        *(f"| {name} | {count} |" for name, count in outcomes.most_common()),
        "",
        "| fault drawn | model | refused | wrong |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {fault} | {c['model']} | {c['refused']} | {sum(c.values()) - c['model'] - c['refused']} |"
            for fault, c in faults.items()
        ),
        "",
        "Wrong: "
        + (", ".join(str(row["cell"][0]) for row in found if row["outcome"].startswith("wrong")) or "none")
        + ".",
        "",
    ]
    (results_folder(__file__) / "RESULTS.md").write_text("\n".join(lines))
    print(dict(outcomes), flush=True)


if __name__ == "__main__":
    main()
