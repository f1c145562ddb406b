"""The pictures of tuning on new data: `python -m experiments.generalisation.pictures [--splits 3]`.

`gains.svg`: for every set that the experiment has run, the mean change of the test loss beside one strength of
scikit-learn, ± one standard error over splits; a dot without a bar is one split. `path.svg`: along the shrinkage path,
from one strength for all to free ones, the criterion (the loss on five folds, which is minimised) and the test loss of
the refit, both beside their value at one strength, for the seeds 0, 1, ...; the points that nested folds choose are
marked. Paths are kept in out/experiments/generalisation.jsonl like everything else. Colours read on white and on
near-black.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from experiments._common import results_folder, rows_of
from matplotlib.figure import Figure

import hyprax as hx

from .__main__ import changes, standard_error, stored
from .methods import BASELINE, FAST, METHODS, SETTINGS, Rows
from .sets import BINARY, EVERY, groups, split

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "gallery"))
from _style import BLUE, GREEN, GREY, ORANGE, PINK, STYLE

SHOWN = {
    "elastic net (scikit-learn)": PINK,
    "evidence": GREEN,
    "estimator, one strength": BLUE,
    "estimator as it comes": ORANGE,
}
PATHS = ("synthetic few", "synthetic alike", "diabetes+int", "yacht+int")


def path(name: str, seed: int) -> dict[str, Any]:
    """Criterion and test loss along the path, and the place chosen."""
    data = split(name, seed)
    rows = Rows(data, name in BINARY, seed, groups(name, data[0].shape[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = hx.search.shrinkage_path(
            rows.optimum, rows.start(), key=rows.key, folds=SETTINGS["folds"], steps=SETTINGS["steps"],
            progress=False, **FAST,
        )  # fmt: skip
    test = [float(np.mean(rows.refitted(hyper))) for hyper in found.hypers]
    return {"criterion": found.criteria.tolist(), "test": test, "chosen": found.chosen}


def gains() -> Figure:
    import matplotlib

    matplotlib.rcParams.update(STYLE)
    found = stored()
    names = [name for name in EVERY if any(len(changes(found, name, method)) for method in SHOWN)]
    height = 0.28 * len(names) + 1
    figure = Figure(figsize=(7, height))
    axes = figure.subplots()
    for place, (method, colour) in enumerate(SHOWN.items()):
        each = [(row, changes(found, name, method)) for row, name in enumerate(names)]
        each = [(row, change) for row, change in each if len(change)]
        if not each:
            continue
        axes.errorbar(
            [change.mean() for _, change in each],
            [row + 0.18 * (place - 1.5) for row, _ in each],
            xerr=[standard_error(change) if len(change) > 1 else 0 for _, change in each],
            fmt="o", markersize=3.5, linewidth=1.2, color=colour, label=method,
        )  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_xscale("symlog", linthresh=2, linscale=1)
    ticks = [-50, -20, -5, -2, -1, 0, 1, 2, 5, 20, 50, 200]
    axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"change of the test loss in %, beside {BASELINE}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.45 / (height - 1)), ncols=2)
    return figure


def paths(splits: int) -> Figure:
    import matplotlib

    matplotlib.rcParams.update(STYLE)
    cells = [("path", name, seed) for name in PATHS for seed in range(splits)]
    rows: dict[str, list[dict]] = {name: [] for name in PATHS}
    for row in rows_of(__file__, cells, {"path": 1}, lambda _, name, seed: path(name, seed)):
        rows[row["cell"][1]].append(row)
        print(*row["cell"], row["chosen"], flush=True)
    figure = Figure(figsize=(6, 4.4))
    for axes, (name, found) in zip(figure.subplots(2, 2, sharex=True).flat, rows.items(), strict=True):
        for key, colour, label in (("criterion", BLUE, "criterion (5 folds)"), ("test", ORANGE, "test")):
            lines = np.array([100 * (np.array(row[key]) / row[key][0] - 1) for row in found])
            place, mean = np.arange(lines.shape[1]), lines.mean(axis=0)
            error = lines.std(axis=0, ddof=1) / len(lines) ** 0.5 if len(lines) > 1 else np.zeros_like(mean)
            axes.plot(place, mean, color=colour, label=label)
            axes.fill_between(place, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
        counts = np.bincount([row["chosen"] for row in found], minlength=len(place))
        axes.plot(place[counts > 0], np.zeros(np.sum(counts > 0)), "v", color=GREY, markersize=5, label="chosen")
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_title(name)
        axes.set_xticks([0, len(place) - 1], ["one\nstrength", "free"])
    figure.supylabel("change of the loss in %", fontsize=9.5)
    figure.axes[1].legend(loc="upper left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="write to out/experiments, keep nothing")
    given = parser.parse_args()
    assert set(SHOWN) <= set(METHODS)
    for name, figure in (("path", paths(given.splits)), ("gains", gains())):
        figure.savefig(results_folder(__file__) / f"{name}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
