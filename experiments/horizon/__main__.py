"""How soon do short trainings mislead? `python -m experiments.horizon [--quick] [--steps N]`.

A transformer over bytes is trained on files of Python's standard library. Told are a weight for each file, a
learning-rate schedule and a decay for each tensor; the exact hypergradient of the whole training is compared with those
of shorter ones, and with those of its last steps alone: how alike they rank, what acting on them brings, and how well
they foresee trainings on half of the files.

Writes RESULTS.md and a picture beside this file; with --quick, of a tiny model, into out/experiments.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from experiments._common import results_folder, rows_of
from experiments._transformer import Size

from .measures import (
    DAMPINGS,
    LENGTHS,
    acted,
    datamodelling_score,
    difference,
    gradient,
    influence,
    metasmoothness,
    slope,
    subset,
)
from .problem import KINDS, Problem
from .report import Found, written

SIZE, FILES, ROWS, HORIZONS, SUBSETS = Size(2, 64, 4, 64, 8, 1000), 64, 125, (8, 16, 32, 64, 125, 250, 500), 50
QUICK_SIZE, QUICK_FILES, QUICK_ROWS, QUICK_HORIZONS, QUICK_SUBSETS = Size(1, 16, 2, 16, 4, 24), 8, 24, (8,), 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model; writes into out/experiments")
    parser.add_argument("--steps", type=int, help=f"of a whole training; default {SIZE.steps:,}")
    asked = parser.parse_args()
    if asked.quick:
        size, files, rows, horizons, count = QUICK_SIZE, QUICK_FILES, QUICK_ROWS, QUICK_HORIZONS, QUICK_SUBSETS
    else:
        size, files, rows, horizons, count = SIZE, FILES, ROWS, HORIZONS, SUBSETS
    if asked.steps:
        size = dataclasses.replace(size, steps=asked.steps)
    problem = Problem(size, files, rows)
    horizons = tuple(steps for steps in horizons if steps < size.steps)
    settings = {"size": [size.layers, size.width, size.context, size.batch, size.steps], "files": files, "rows": rows}

    def kept(cells: list[tuple[Any, ...]], measure: Any) -> dict[tuple[Any, ...], dict[str, Any]]:
        found: Iterator[dict[str, Any]] = rows_of(__file__, cells, settings, measure)
        return {tuple(row["cell"]): row for row in found}

    runs = [("whole", size.steps), *((kind, steps) for kind in ("short", "cut") for steps in horizons)]
    grads = kept([("gradient", *run) for run in runs], lambda _, kind, steps: gradient(problem, kind, steps))
    arrays = {run: {name: np.asarray(grads["gradient", *run]["gradient"][name]) for name in KINDS} for run in runs}
    actions = {name: (name,) for name in KINDS} | {"all": KINDS}
    still = kept([("still",)], lambda _: problem.losses(problem.start()))
    acts = kept(
        [("acted", *run, what) for run in runs for what in actions],
        lambda _, kind, steps, what: acted(problem, arrays[kind, steps], actions[what]),
    )
    subsets = list(kept([("subset", i) for i in range(count)], lambda _, i: subset(problem, i)).values())
    influences = kept(
        [("influence", damping) for damping in DAMPINGS],
        lambda _, damping: {"scores": influence(problem, damping).tolist()},
    )
    whole = arrays[runs[0]]
    smooth = kept(
        [("metasmoothness", steps) for steps in (*horizons, size.steps)],
        lambda _, steps: {"value": metasmoothness(problem, steps, whole["weights"])},
    )
    lines = {run: arrays[run]["weights"] for run in (runs[0], runs[-1])}
    differences = kept(
        [("difference", *run, length) for run in lines for length in LENGTHS],
        lambda _, kind, steps, length: {"value": difference(problem, lines[kind, steps], length)},
    )
    slopes = {
        run: [slope(whole["weights"], along), *(differences["difference", *run, h]["value"] for h in LENGTHS)]
        for run, along in lines.items()
    }
    found = Found(
        problem,
        arrays,
        {run: grads["gradient", *run]["seconds"] for run in runs},
        still["still",]["test"],
        {run: {what: acts["acted", *run, what]["test"] for what in actions} for run in runs},
        {run: datamodelling_score(arrays[run]["weights"], subsets) for run in runs},
        {cell[1]: datamodelling_score(np.asarray(row["scores"]), subsets) for cell, row in influences.items()},
        {cell[1]: row["value"] for cell, row in smooth.items()},
        slopes,
        count,
    )
    print(written(results_folder(__file__), found))


if __name__ == "__main__":
    main()
