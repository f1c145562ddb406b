"""From one strength for all to a strength for each of 65 columns: what the criterion says, and what test rows say.

Along the path a prior holds the strengths together less and less. The cross-validated loss only falls, since more and
more is fitted to it; the test rows decide otherwise. The mark is where nested folds stop.
"""

import jax
import numpy as np
from _style import BLUE, GREY, ORANGE, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import PolynomialFeatures

import hyprax as hx

jax.config.update("jax_enable_x64", True)


def main() -> tuple[Figure, Facts]:
    plain, y = load_diabetes(return_X_y=True)
    X = np.asarray(PolynomialFeatures(2, include_bias=False).fit_transform(plain))
    rows = np.random.default_rng(0).permutation(len(y))
    fit, test = rows[:222], rows[222:]
    X = (X - X[fit].mean(0)) / X[fit].std(0)
    y = (y - y[fit].mean()) / y[fit].std()
    optimum = hx.Optimum(hx.families.Squared(X[fit], y[fit], penalty="penalty"))
    start = {"penalty": hx.Positive(np.full(65, 0.3))}
    path = hx.search.shrinkage_path(optimum, start, key=jax.random.key(0), progress=False)
    criteria = 2 * path.criteria  # squared errors, where the family has half of them
    errors = [np.mean((X[test] @ np.asarray(optimum.refit(hyper).params) - y[test]) ** 2) for hyper in path.hypers]
    figure, axes = canvas()
    places = np.arange(len(path.strengths))
    axes.plot(places, criteria, "o--", color=GREY, label="cross-validated loss")
    axes.plot(places, errors, "o-", color=BLUE, label="test loss")
    axes.plot(path.chosen, errors[path.chosen], "*", color=ORANGE, markersize=14, label="chosen by nested folds")
    axes.set_xticks(places, ["one\nfor all", *(f"{s / path.criteria[0]:.1g}" for s in path.strengths[1:-1]), "free"])
    axes.set(xlabel="strength of the prior that holds them together", ylabel="mean squared error")
    axes.legend()
    return figure, {
        "cross-validated loss, one for all": float(criteria[0]),
        "cross-validated loss, free": float(criteria[-1]),
        "test loss, one for all": float(errors[0]),
        "test loss, free": float(errors[-1]),
        "test loss, chosen": float(errors[path.chosen]),
        "least test loss on the path": float(min(errors)),
    }


if __name__ == "__main__":
    show(main, __file__)
