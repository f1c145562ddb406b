"""Regression without a validation set: `python -m experiments.uci [--quick] [--splits K]`.

A network of one hidden layer with its noise and prior precisions (one for each tensor, or one for each input) tuned by
the log evidence, on the published splits of six UCI data sets, against scikit-learn's Gaussian process and its
multi-layer perceptron with a cross-validated grid. Test log-likelihood and root mean squared error.

Writes RESULTS.md beside this file; with --quick into out/experiments.
"""

import argparse
import functools
import time

from experiments._common import results_folder, rows_of

from .data import split
from .methods import EXACT, GRID, INPUT, METHODS, MOVED, PROCESS, SCALES, SETTINGS, TENSOR, measure
from .report import write

HERE = results_folder(__file__)
SPLITS = {
    "yacht": {TENSOR: 10, INPUT: 10, EXACT: 10, SCALES: 3, PROCESS: 10, GRID: 10, MOVED: 1},
    "boston": {TENSOR: 10, INPUT: 10, PROCESS: 5, GRID: 5},
    "energy": {TENSOR: 10, INPUT: 10, EXACT: 3, PROCESS: 5, GRID: 5},
    "concrete": {TENSOR: 10, INPUT: 10, EXACT: 3, SCALES: 3, PROCESS: 5, GRID: 5},
    "wine_red": {TENSOR: 2, INPUT: 2, GRID: 1},
    "power": {TENSOR: 1, INPUT: 1},
}
"""How many of the 20 splits each method is run on: the first so many."""


def cells(quick: bool, most: int) -> list[tuple[str, str, int]]:
    """Data set, method and split of each run; all of one split before those of the next."""
    if quick:
        return [("yacht", method, 0) for method in (*METHODS, MOVED)]
    return [
        (name, method, number)
        for number in range(most)
        for name, methods in SPLITS.items()
        for method, count in methods.items()
        if number < count
    ]


def timed(steps: int, name: str, method: str, number: int) -> dict[str, float]:
    """The outcome, the scale that takes it to the units of the targets, and the processor time."""
    data = split(name, number)
    began = time.process_time()
    return {**measure(method, data, number, steps), "scale": data.scale, "seconds": time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute, on one split of one set")
    parser.add_argument("--splits", type=int, default=10, help="at most so many of the published 20")
    given = parser.parse_args()
    settings = {**SETTINGS, "steps": 400} if given.quick else SETTINGS
    found = []
    for row in rows_of(
        __file__, cells(given.quick, given.splits), settings, functools.partial(timed, settings["steps"])
    ):
        found.append(row)
        print(
            *row["cell"], {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}, flush=True
        )
    options = " --quick" if given.quick else "" if given.splits == 10 else f" --splits {given.splits}"
    write(HERE, found, settings, options)


if __name__ == "__main__":
    main()
