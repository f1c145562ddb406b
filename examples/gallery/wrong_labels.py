"""Which labels are wrong? A weight for each of 500 training images, tuned on 300 clean ones and held back by noise.

Three labels in ten were replaced. `Gate` moves a weight only where its derivative rises above two standard errors, so
the others stay at the start, .5. Above: the ten lowest weights, each with the label given, orange where it is wrong.
"""

import jax
import numpy as np
import optax
from _style import BLUE, ORANGE, Facts, canvas, image, show
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import hyprax as hx

jax.config.update("jax_enable_x64", True)


def main() -> tuple[Figure, Facts]:
    rng = np.random.default_rng(0)
    X, y = load_digits(return_X_y=True)
    X, labels, wrong = X / 16, y[:500].copy(), rng.random(500) < 0.3
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, wrong.sum())) % 10

    family = hx.families.Softmax(X[:500], labels, penalty=1e-3, weights="weights")
    certifier, noise = hx.implicit.ResidualCertifier(), hx.implicit.ExampleNoise()
    objective = hx.ImplicitObjective(
        hx.Optimum(family), family.mean_loss, (X[500:800], y[500:800]), certifier=certifier, noise=noise
    )
    start = {"weights": hx.Interval(np.full(500, 0.5), 0.0, 1.0)}
    tuned = hx.tune(objective, start, search=hx.search.Gate(2, optax.adam(0.5)), steps=15)
    weights = np.asarray(hx.natural(tuned.last)["weights"])

    def accuracy(hyper) -> float:
        _, state = objective.value(hyper, objective.init(hyper))
        return float(np.mean(np.argmax(X[800:] @ np.asarray(objective.params(state)), axis=1) == y[800:]))

    figure, _ = canvas(height=3.6, squeeze=False)
    figure.clear()
    grid = figure.add_gridspec(2, 10, height_ratios=[1, 3])
    for place, i in enumerate(np.argsort(weights)[:10]):
        image(figure.add_subplot(grid[0, place]), X[i].reshape(8, 8), str(labels[i]), ORANGE if wrong[i] else BLUE)
    axes = figure.add_subplot(grid[1, :])
    axes.hist(
        [weights[~wrong], weights[wrong]],
        np.linspace(0, 1, 21).tolist(),
        stacked=True,
        color=[BLUE, ORANGE],
        label=["right", "wrong"],
    )
    axes.set(xlabel="weight found", ylabel="images")
    axes.legend(title="label given")
    below = weights < 0.25
    return figure, {
        "AUC of the weights for wrong labels": float(roc_auc_score(wrong, -weights)),
        "weights below a quarter": int(below.sum()),
        "of them with a wrong label": int(wrong[below].sum()),
        "test accuracy, all weights equal": accuracy(start),
        "test accuracy, weights found": accuracy(tuned.last),
    }


if __name__ == "__main__":
    show(main, __file__)
