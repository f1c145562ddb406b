"""One ridge penalty for many tasks: the global optimum of their mean loss, and a guarantee for tasks to come.

A task is two digits, drawn at random, to be told apart by eight principal components of 40 images. Left, the mean loss
of 300 tasks, and single ones in grey; right, what is proved with probability .95 of the loss above the best for *all*
such tasks, beside what 300 further tasks show.
"""

import jax
import numpy as np
from _style import BLUE, GREEN, GREY, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from hyprax import tasks
from hyprax.tasks import complexity

DOMAIN, RANGE = (1e-3, 10.0), 2.0


def main() -> tuple[Figure, Facts]:
    X, y = load_digits(return_X_y=True)
    X = PCA(8, random_state=0).fit_transform(X / 16)
    rng = np.random.default_rng(0)

    def dual() -> tasks.PiecewiseFunction:
        a, b = rng.choice(10, 2, replace=False)
        rows = rng.choice(np.flatnonzero((y == a) | (y == b)), 40, replace=False)
        task = tasks.Task.k_fold(X[rows], np.where(y[rows] == a, 1.0, -1.0), np.arange(40) % 5)
        return tasks.ridge_dual(task, DOMAIN).clip(RANGE)

    seen, new = [dual() for _ in range(300)], [dual() for _ in range(300)]
    best_of_new, line = tasks.erm(new, progress=False), np.geomspace(1e-3, 2, 40)
    counts, best, proved, shown = (10, 30, 100, 300), best_of_new, [], []
    for n in counts:
        best = tasks.erm(seen[:n], progress=False)
        promise = tasks.gap(complexity.Bounded(range=RANGE), n, 0.05, seen[:n], key=jax.random.key(0))
        proved.append(promise.value)
        shown.append(float(np.mean([f(best.hyper) for f in new])) - best_of_new.value)
    figure, (left, right) = canvas(1, 2, height=2.8)
    for f in seen[:6]:
        left.semilogx(line, f(line), color=GREY, linewidth=0.5)
    left.plot(line, np.mean([f(line) for f in seen], axis=0), color=BLUE)
    left.plot(best.hyper, best.value, "o", color=BLUE)
    left.set(xlabel="penalty", title="loss", ylim=(0, 0.6))
    right.loglog(counts, proved, "o-", color=BLUE, label="proved")
    right.loglog(counts, np.maximum(shown, 1e-6), "o--", color=GREEN, label="on new tasks")
    right.set(xlabel="tasks", title="loss above the best")
    right.legend(loc="center")
    return figure, {
        "penalty": best.hyper,
        "its mean loss is the least within": float(best.certificate.bound),
        "proved for new tasks after 30": proved[1],
        "proved for new tasks after 300": proved[-1],
        "seen on 300 new tasks after 300": shown[-1],
    }


if __name__ == "__main__":
    show(main, __file__)
