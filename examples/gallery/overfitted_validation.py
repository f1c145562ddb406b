"""640 penalties, one a weight, on 200 validation images of digits: what the search gains there it loses on new images.

The validation loss (dashed) falls and falls; the loss on 1,397 test images turns after a few steps. `Gate` moves only
those penalties whose derivative rises above its noise. The start is the best of nine single penalties.
"""

import jax
import numpy as np
import optax
from _style import BLUE, ORANGE, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import hyprax as hx

jax.config.update("jax_enable_x64", True)


def main() -> tuple[Figure, Facts]:
    X, y = load_digits(return_X_y=True)
    X, fit, judge, test = X / 16, slice(200), slice(200, 400), slice(400, None)
    family = hx.families.Softmax(X[fit], y[fit], penalty="penalty")
    certifier, noise = hx.implicit.ResidualCertifier(), hx.implicit.ExampleNoise()
    objective, new = (
        hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (X[rows], y[rows]), certifier=certifier, noise=noise)
        for rows in (judge, test)
    )

    def loss(target: hx.ImplicitObjective, hyper: dict) -> float:
        return float(target.value(hyper, target.init(hyper))[0].value)

    single = [{"penalty": hx.LogInterval(np.full((64, 10), s), 1e-6, 1.0)} for s in np.geomspace(1e-5, 0.1, 9)]
    start = min(single, key=lambda hyper: loss(objective, hyper))

    figure, axes = canvas(height=3.4)
    facts: Facts = {"the best of nine single penalties": float(hx.natural(start)["penalty"][0, 0])}
    adam = optax.adam(0.3)
    for name, search, colour in (("Adam", hx.search.Optax(adam), ORANGE), ("Gate", hx.search.Gate(2, adam), BLUE)):
        hypers = []
        tuned = hx.tune(
            objective, start, search=search, steps=12, callbacks=[lambda step, to=hypers: to.append(step.hyper)]
        )
        values, losses = tuned.column("value"), [loss(new, hyper) for hyper in hypers]
        axes.plot(values, "--", color=colour)
        axes.plot(losses, color=colour, label=name)
        facts[f"validation loss, {name}, last over first"] = values[-1] / values[0]
        facts[f"test loss, {name}, last over first"] = losses[-1] / losses[0]
        facts[f"test loss, {name}, last over least"] = losses[-1] / min(losses)
    axes.set(xlabel="step", ylabel="loss: test (whole), validation (dashed)")
    axes.legend()
    return figure, facts


if __name__ == "__main__":
    show(main, __file__)
