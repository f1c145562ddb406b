"""Both penalties of the elastic net, tuned together for ten tasks: the mean loss as a map, and its proved minimum.

A task is a fresh draw of 40 patients from a table. No pair of penalties on the whole map is better than the point by
more than the gap, and all that are as good lie in the box.
"""

import numpy as np
from _style import GREY, ORANGE, Facts, canvas, show
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_diabetes

from hyprax import tasks

BOX = ((0.01, 1.0), (0.01, 10.0))


def main() -> tuple[Figure, Facts]:
    X, y = load_diabetes(return_X_y=True)
    X, y = X / X.std(0), (y - y.mean()) / y.std()
    rng, duals = np.random.default_rng(0), []
    for _ in range(10):
        rows = rng.choice(len(y), 40, replace=False)
        duals.append(tasks.PenaltyDual.elastic_net(tasks.Task.k_fold(X[rows], y[rows], np.arange(40) % 5), BOX))
    best = tasks.erm_box(duals, gap=1e-2, progress=False)
    first, second = (np.geomspace(*ends, 12) for ends in BOX)
    first[-1], second[-1] = 1.0, 10.0
    losses = np.array([[np.mean([f((a, b)) for f in duals]) for a in first] for b in second])
    figure, axes = canvas(height=3.4)
    lines = axes.contour(first, second, losses, best.value + 0.01 * 2.0 ** np.arange(-1, 6), cmap="viridis")
    axes.clabel(lines, fontsize=8, colors=GREY)
    axes.set(xscale="log", yscale="log", xlabel="l1 penalty", ylabel="l2 penalty")
    (left, right), (low, high) = best.minimisers
    axes.add_patch(Rectangle((left, low), right - left, high - low, fill=False, edgecolor=ORANGE))
    axes.plot(*best.hyper, "o", color=ORANGE, clip_on=False)
    return figure, {
        "l1 penalty": best.hyper[0],
        "l2 penalty": best.hyper[1],
        "mean loss": best.value,
        "proved gap": float(best.certificate.bound),
        "least of 144 pairs on a grid": float(losses.min()),
    }


if __name__ == "__main__":
    show(main, __file__)
