"""Tuning on new data: `python -m experiments.generalisation [--sets A,B] [--seeds 0,1] [--methods "M;N"] [--quick]`.

Sets, the splitter (a permutation by NumPy's default generator of the seed; the first rows train, the next 3,000 at most
test; columns standardised by the training rows), the seeds 0 to 9 and the rivals stand in `sets.py` and `methods.py`,
and were committed before the first run. Every method gets the same training rows. What is reported is the test loss
less that of one strength chosen by scikit-learn's 5-fold cross-validation and refitted on all training rows: a
percentage of the mean squared error, or a difference of log-losses; means over seeds ± standard errors. A method counts
as better or worse on a set by two standard errors and half a percent of the loss, on sets with three splits or more.
Optuna has one strength a group (`sets.groups`) and as many processor seconds as our estimator takes on the same split.
Rows that are there are kept in out/experiments/generalisation.jsonl; a run goes on from them, split by split.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from experiments._common import machine, results_folder, rows_of

from .methods import BASELINE, METHODS, SETTINGS, Rows
from .sets import BINARY, EVERY, SEEDS, groups, split

FOUND = Path("out/experiments/generalisation.jsonl")
Cell = tuple[str, int, str]


def measured(name: str, seed: int, method: str) -> dict[str, float | None]:
    began = time.process_time()
    data = split(name, seed)
    rows = Rows(data, name in BINARY, seed, groups(name, data[0].shape[1]))
    losses = METHODS[method](rows)
    return {"loss": None if losses is None else float(np.mean(losses)), "seconds": time.process_time() - began}


def stored() -> dict[Cell, dict]:
    """What earlier runs with these settings have finished."""
    rows = [row for row in map(json.loads, FOUND.read_text().splitlines()) if row["settings"] == SETTINGS]
    return {tuple(row["cell"]): row for row in rows}


def changes(found: dict[Cell, dict], name: str, method: str) -> np.ndarray:
    """The loss over that of the baseline, less 1, for each split that both have; in percent."""
    pairs = [
        (found.get((name, s, method), {}).get("loss"), found.get((name, s, BASELINE), {}).get("loss")) for s in SEEDS
    ]
    return np.array([100 * (a / b - 1) for a, b in pairs if a is not None and b is not None])


def difference(found: dict[Cell, dict], name: str, method: str) -> str:
    """The mean change over the splits at hand, ± its standard error, and how many there are."""
    change, unit = changes(found, name, method), " %"
    if not len(change):
        return ""
    if name in BINARY:
        base = [found[name, s, BASELINE]["loss"] for s in SEEDS if (name, s, method) in found]
        change, unit = change / 100 * np.array(base), ""
    error = f" ± {standard_error(change):.2g}" if len(change) > 1 else ""
    return f"{change.mean():+.{4 if name in BINARY else 1}f}{error}{unit} ({len(change)})"


def standard_error(change: np.ndarray) -> float:
    return float(change.std(ddof=1) / len(change) ** 0.5)


def verdict(change: np.ndarray) -> str:
    """By two standard errors, and half a percent."""
    if abs(change.mean()) <= max(2 * standard_error(change), 0.5):
        return "equal"
    return "better" if change.mean() < 0 else "worse"


def page(found: dict[Cell, dict], command: str) -> str:
    names = [name for name in EVERY if any(cell[0] == name for cell in found)]
    shown = [method for method in METHODS if any(cell[2] == method for cell in found)]
    rivals = [method for method in shown if method != BASELINE]
    seconds = {method: [row["seconds"] for cell, row in found.items() if cell[2] == method] for method in shown}
    lines = [
        "# Tuning on new data",
        "",
        (__doc__ or "").split("\n\n", 1)[1].strip(),
        "",
        f"Run as {command} on a {machine()}, busy with other work. In brackets the number of splits; empty cells were "
        "not run. Negative is better.",
        "",
        f"| data | {' | '.join(rivals)} |",
        f"| --- |{' ---: |' * len(rivals)}",
        *(f"| {name} | {' | '.join(difference(found, name, method) for method in rivals)} |" for name in names),
        "",
        "Not run: " + (", ".join(name for name in EVERY if name not in names) or "none") + ".",
    ]
    table = []
    for method in rivals:
        each = [change for name in names if len(change := changes(found, name, method)) > 2]
        if not each:
            continue
        verdicts, means = [verdict(change) for change in each], np.array([change.mean() for change in each])
        counts = " | ".join(str(verdicts.count(word)) for word in ("better", "equal", "worse"))
        table.append(f"| {method} | {counts} | {np.median(means):+.1f} % | {means.max():+.1f} % |")
    if table:
        lines += ["", "| method | better | equal | worse | median change | worst |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: |", *table]
    lines += ["", "| method | processor seconds a split: median, largest |", "| --- | ---: |"]
    lines += [f"| {method} | {np.median(spent):.1f}, {max(spent):.0f} |" for method, spent in seconds.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(EVERY))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--stored", action="store_true", help="only write down the rows that are there")
    parser.add_argument("--quick", action="store_true", help="write to out/experiments, keep nothing")
    given = parser.parse_args()
    names, methods = given.sets.split(","), given.methods.split(";")
    cells = [(name, int(seed), method) for seed in given.seeds.split(",") for name in names for method in methods]
    if not given.stored:
        cells = list(
            dict.fromkeys(cell for name, seed, m in cells for cell in ((name, seed, BASELINE), (name, seed, m)))
        )
        for row in rows_of(__file__, cells, dict(SETTINGS), measured):
            print(*row["cell"], row["loss"], f"{row['seconds']:.0f} s", flush=True)
    (results_folder(__file__) / "methods.md").write_text(page(stored(), "`python -m experiments.generalisation`"))


if __name__ == "__main__":
    main()
