"""Regression without a validation set: `python -m experiments.uci [--quick] [--splits K]`.

A network of one hidden layer with its noise and prior precisions (one for each tensor, or one for each input) tuned by
the log evidence, on the published splits of six UCI data sets, against scikit-learn's Gaussian process and its
multi-layer perceptron with a cross-validated grid. Test log-likelihood and root mean squared error.

What an earlier run has finished is read back from out/experiments/uci.jsonl, which a change of a setting makes void.
Writes RESULTS.md beside this file; with --quick into out/experiments.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from experiments._common import results_folder

from .data import split
from .methods import EXACT, GRID, INPUT, METHODS, PROCESS, SCALES, SETTINGS, TENSOR, measure
from .report import write

HERE = results_folder(__file__)
STORE = Path("out") / "experiments" / "uci.jsonl"
SPLITS = {
    "yacht": dict.fromkeys(METHODS, 10),
    "boston": dict.fromkeys((TENSOR, INPUT, PROCESS, GRID), 10),
    "energy": {TENSOR: 10, INPUT: 10, EXACT: 3, SCALES: 3, PROCESS: 3, GRID: 5},
    "concrete": {TENSOR: 10, INPUT: 10, EXACT: 3, SCALES: 3, PROCESS: 3, GRID: 5},
    "wine_red": {TENSOR: 5, INPUT: 5, GRID: 3},
    "power": {TENSOR: 2, INPUT: 2},
}
"""How many of the 20 splits each method is run on: the first so many."""


def cells(quick: bool, most: int) -> list[tuple[str, str, int]]:
    """Data set, method and split of each run; all of one split before those of the next."""
    if quick:
        return [("yacht", method, 0) for method in METHODS]
    return [
        (name, method, number)
        for number in range(most)
        for name, methods in SPLITS.items()
        for method, count in methods.items()
        if number < count
    ]


def stored(settings: dict[str, Any]) -> dict[tuple, dict[str, Any]]:
    """What is finished under these settings."""
    lines = STORE.read_text().splitlines() if STORE.exists() else []
    rows = [row for row in map(json.loads, lines) if row["settings"] == settings]
    return {tuple(row["cell"]): row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute, on one split of one set")
    parser.add_argument("--splits", type=int, default=10, help="at most so many of the published 20")
    given = parser.parse_args()
    settings = {**SETTINGS, "steps": 400} if given.quick else SETTINGS
    done, found = {} if given.quick else stored(settings), []
    STORE.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells(given.quick, given.splits):
        name, method, number = cell
        row = done.get(cell)
        if row is None:
            data = split(name, number)
            began = time.process_time()
            row = {"cell": list(cell), **measure(method, data, number, settings["steps"]), "scale": data.scale}
            row |= {"seconds": time.process_time() - began, "settings": settings}
            if not given.quick:
                with STORE.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
        found.append(row)
        print(*cell, {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}, flush=True)
    options = " --quick" if given.quick else "" if given.splits == 10 else f" --splits {given.splits}"
    write(HERE, found, settings, options)


if __name__ == "__main__":
    main()
