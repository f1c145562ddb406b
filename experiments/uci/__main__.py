"""Regression without a validation set: `python -m experiments.uci [--quick] [--splits K] [--methods ...] [--sets ...]`.

A network of one hidden layer by `fit_evidence` with its defaults, on the published splits of six UCI data sets, against
scikit-learn's Gaussian process, its multi-layer perceptron with a cross-validated grid, and Bayesian ridge regression.
Test log-likelihood and root mean squared error.

Smaller sets come first, and each split is kept as it is done, so a run that was cut off goes on where it was. Writes
RESULTS.md beside this file; with --quick into out/experiments.
"""

import argparse
import time
from typing import Any

import jax
from experiments._common import results_folder, rows_of

from .data import split
from .methods import BASELINES, INPUT, SETTINGS, TENSOR, measure
from .report import write

HERE = results_folder(__file__)
SMALL, LARGE = ("yacht", "boston", "energy", "concrete", "wine_red"), ("power",)
OTHERS = tuple(BASELINES)


def cells(splits: int, methods: tuple[str, ...], sets: list[str]) -> list[tuple[str, str, int]]:
    """Data set, method and split of each run; all of one split before those of the next, large sets last.

    Of all sets where none is named.
    """
    return [
        (name, method, number)
        for names, most in ((SMALL, splits), (LARGE, 1))
        for number in range(min(splits, most))
        for name in names
        if not sets or name in sets
        for method in methods
        if name in SMALL or method not in ("Gaussian process", "grid of 5, 3-fold")
    ]


def timed(name: str, method: str, number: int) -> dict[str, Any]:
    """The outcome, in the units of the targets, and the processor time."""
    data = split(name, number)
    began = time.process_time()
    return {**measure(method, data, number), "seconds": time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one split of one set")
    parser.add_argument("--splits", type=int, default=20, help="at most so many of the published 20")
    parser.add_argument("--methods", default="", help="some of the methods, by what their names begin with")
    parser.add_argument("--sets", default="", help="some of the data sets: " + ", ".join(SMALL + LARGE))
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # 1/σ² times the kernel is beyond what single precision can factor
    wanted = [name for name in given.methods.split(",") if name]
    sets, found = [name for name in given.sets.split(",") if name], []
    options = " --quick" if given.quick else f" --splits {given.splits}" + f" --sets {given.sets}" * bool(sets)
    for settings, methods in ((SETTINGS, (TENSOR,)), ({"hidden": SETTINGS["hidden"]}, OTHERS), (SETTINGS, (INPUT,))):
        chosen = tuple(m for m in methods if not wanted or any(m.startswith(name) for name in wanted))
        todo = [("yacht", method, 0) for method in chosen] if given.quick else cells(given.splits, chosen, sets)
        for row in rows_of(__file__, todo, settings, timed):
            found.append(row)
            print(*row["cell"], {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True)
            if not wanted:
                write(HERE, found, options)


if __name__ == "__main__":
    main()
