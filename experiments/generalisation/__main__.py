"""Tuning on new data: `python -m experiments.generalisation [--sets A,B] [--seeds 0,1] [--methods "M;N"] [--quick]`.

Sets, the splitter (a permutation by NumPy's default generator of the seed; the first rows train, the next 3,000 at most
test; columns standardised by the training rows), the seeds 0 to 9 and the rivals stand in `sets.py` and `methods.py`,
and were committed before the first run. Every method gets the same training rows. What is reported is the test loss
less that of one strength chosen by scikit-learn's 5-fold cross-validation and refitted on all training rows: a
percentage of the mean squared error, or a difference of log-losses; means over seeds ± standard errors. Optuna has
one strength a group (`sets.groups`) and as many processor seconds as our estimator takes on the same split. Sets
without a result stand in methods.md as not run. Rows that are there are kept in out/experiments/generalisation.jsonl.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from experiments._common import machine, results_folder, rows_of

from .methods import BASELINE, METHODS, SETTINGS, Rows
from .sets import BINARY, NAMES, SEEDS, groups, split


def measured(name: str, seed: int, method: str) -> dict[str, float | None]:
    began = time.process_time()
    data = split(name, seed)
    rows = Rows(data, name in BINARY, seed, groups(name, data[0].shape[1]))
    losses = METHODS[method](rows)
    return {"loss": None if losses is None else float(np.mean(losses)), "seconds": time.process_time() - began}


def stored(settings: dict) -> list[dict]:
    """What earlier runs with these settings have finished."""
    lines = Path("out/experiments/generalisation.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["settings"] == settings]


def change(found: dict[tuple, float], name: str, method: str, seeds: list[int]) -> str:
    """The mean change over the seeds at hand, ± its standard error."""
    pairs = [(found.get((name, s, method)), found.get((name, s, BASELINE))) for s in seeds]
    pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not pairs:
        return ""
    changes = np.array([a - b if name in BINARY else 100 * (a / b - 1) for a, b in pairs])
    error = f" ± {changes.std(ddof=1) / len(changes) ** 0.5:.2g}" if len(changes) > 1 else ""
    number = f"{changes.mean():+.4f}" if name in BINARY else f"{changes.mean():+.1f}"
    return f"{number}{error}{'' if name in BINARY else ' %'} ({len(changes)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default=",".join(NAMES))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--stored", action="store_true", help="only write down the rows that are there")
    parser.add_argument("--quick", action="store_true", help="write to out/experiments, keep nothing")
    given = parser.parse_args()
    names, methods = given.sets.split(","), given.methods.split(";")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    cells = [(name, seed, method) for seed in seeds for name in names for method in (BASELINE, *methods)]
    cells = list(dict.fromkeys(cells))
    found, seconds = {}, {}
    settings = dict(SETTINGS)
    for row in stored(settings) if given.stored else rows_of(__file__, cells, settings, measured):
        cell = tuple(row["cell"])
        found[cell], seconds[cell] = row["loss"], row["seconds"]
        print(*cell, row["loss"], f"{row['seconds']:.0f} s", flush=True)
    shown = [method for method in METHODS if method != BASELINE]
    lines = [
        "# Tuning on new data",
        "",
        __doc__.split("\n\n", 1)[1].strip(),
        "",
        f"Run as `python -m experiments.generalisation --sets {given.sets!r} --seeds {given.seeds}` on a {machine()}, "
        "busy with other work. In brackets the number of seeds; empty cells were not run. Negative is better.",
        "",
        f"| data | {' | '.join(shown)} |",
        f"| --- |{' ---: |' * len(shown)}",
        *(
            f"| {name} | {' | '.join(change(found, name, method, seeds) for method in shown)} |"
            for name in NAMES
            if any(cell[0] == name for cell in found)
        ),
        "",
        "Not run: " + ", ".join(name for name in NAMES if not any(cell[0] == name for cell in found)) + ".",
        "",
        "| method | processor seconds a split, mean (compilation included) |",
        "| --- | ---: |",
        *(
            f"| {method} | {np.mean([s for cell, s in seconds.items() if cell[2] == method]):.0f} |"
            for method in METHODS
            if any(cell[2] == method for cell in seconds)
        ),
        "",
    ]
    (results_folder(__file__) / "methods.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
