"""Two ridge penalties, of body measurements and of blood values, tuned for ten tasks: the least mean loss, proved.

A task is a fresh draw of 60 patients from a table. No pair of penalties on the whole map is better than the dot by more
than the gap, and every best pair lies in the box. Lines are .005, .01, .02, .04, ... above the dot.
"""

import numpy as np
from _style import BLUE, ORANGE, Facts, canvas, show
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_diabetes

from hyprax import tasks

BOX = ((1e-3, 10.0), (1e-3, 10.0))


def main() -> tuple[Figure, Facts]:
    X, y = (np.asarray(part) for part in load_diabetes(return_X_y=True))
    X, y = X / X.std(0), (y - y.mean()) / y.std()
    groups = [0] * 4 + [1] * 6  # age, sex, mass and pressure; six values of the blood
    rng, duals = np.random.default_rng(0), []
    for _ in range(10):
        rows = rng.choice(len(y), 60, replace=False)
        task = tasks.Task.k_fold(X[rows], y[rows], np.arange(60) % 5)
        duals.append(tasks.BoxDual.ridge(task, groups, BOX))
    best = tasks.erm_box(duals, gap=1e-2, progress=False)
    grid = [np.clip(np.geomspace(*ends, 12), *ends) for ends in BOX]
    losses = np.array([[np.mean([f((a, b)) for f in duals]) for a in grid[0]] for b in grid[1]])
    figure, axes = canvas(height=3.4)
    axes.contour(
        *grid, losses, best.value + 0.005 * 2.0 ** np.arange(7), colors=BLUE, linewidths=np.linspace(2, 0.5, 7)
    )
    axes.set(xscale="log", yscale="log", xlabel="penalty of body measurements", ylabel="penalty of blood values")
    (left, right), (low, high) = best.minimisers
    axes.add_patch(Rectangle((left, low), right - left, high - low, fill=False, edgecolor=ORANGE))
    axes.plot(*best.hyper, "o", color=ORANGE, clip_on=False)
    return figure, {
        "penalty of body measurements": best.hyper[0],
        "penalty of blood values": best.hyper[1],
        "mean loss": best.value,
        "proved gap": float(best.certificate.bound),
        "least of 144 pairs on a grid": float(losses.min()),
    }


if __name__ == "__main__":
    show(main, __file__)
