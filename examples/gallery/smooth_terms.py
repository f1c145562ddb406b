"""An additive model: smooth effects with 95 % bands, each as curved as the restricted likelihood asks for.

The roughness of an outline (its fractal dimension, in thousandths) from four other measurements of 300 tumours. A
straight effect has one degree of freedom (df). No row is held out to tune; the other tumours only judge.
"""

import jax
import numpy as np
from _style import BLUE, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LinearRegression

import hyprax as hx

jax.config.update("jax_enable_x64", True)
NAMES = {"radius": 0, "smoothness": 4, "compactness": 5, "concavity": 6}  # and their columns


def main() -> tuple[Figure, Facts]:
    table, _ = map(np.asarray, load_breast_cancer(return_X_y=True))
    X, y = table[:, list(NAMES.values())], 1000 * table[:, 9]
    rows = np.random.default_rng(0).permutation(len(y))
    fit, test = rows[:300], rows[300:]
    X = np.clip(X, X[fit].min(0), X[fit].max(0))  # splines end where their rows do

    terms = hx.implicit.SplineTerms(X[fit], segments=10)
    centred = y[fit] - y[fit].mean()
    family = hx.families.Squared(
        terms.columns, centred, penalty="penalty", penalty_groups=terms.groups, free=terms.free
    )
    objective = hx.implicit.REML(hx.Optimum(family))
    tuned = hx.tune(objective, {"penalty": hx.Positive(np.full(terms.count, 0.1))}, steps=40)
    params = objective.refit(tuned.best).params
    smooth = terms.fitted(family, tuned.best, params)

    figure, grid = canvas(2, 2, height=4.2, sharey=True)
    for term, (axes, name) in enumerate(zip(grid.flat, NAMES, strict=True)):
        line = np.linspace(X[fit, term].min(), X[fit, term].max(), 40)
        effect = smooth.effect(term, line)
        axes.plot(line, effect.value, color=BLUE)
        axes.fill_between(line, effect.lower, effect.upper, color=BLUE, alpha=0.25, linewidth=0)
        axes.set_title(f"{name}: {smooth.degrees_of_freedom[term]:.1f} df")
    errors = y[test] - y[fit].mean() - np.asarray(terms.transform(X[test]) @ params)
    straight = y[test] - LinearRegression().fit(X[fit], y[fit]).predict(X[test])
    return figure, {
        **{f"degrees of freedom, {name}": float(smooth.degrees_of_freedom[i]) for i, name in enumerate(NAMES)},
        "test error, smooth effects": float(np.mean(errors**2) ** 0.5),
        "test error, straight effects": float(np.mean(straight**2) ** 0.5),
    }


if __name__ == "__main__":
    show(main, __file__)
