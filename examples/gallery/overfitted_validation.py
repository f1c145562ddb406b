"""640 penalties, one a weight, on 200 validation images of digits: what the search gains there it loses on new images.

The validation loss falls and falls; the loss on 1,397 test images rises. Entries of the hypergradient that do not rise
above their noise are held back by the search `Gate`.
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
    optimum = hx.Optimum(family)
    settings = {"certifier": hx.implicit.NoCertifier(), "noise": hx.implicit.ExampleNoise()}  # for speed; for Gate
    objective = hx.ImplicitObjective(optimum, family.mean_loss, (X[judge], y[judge]), **settings)
    new = hx.ImplicitObjective(optimum, family.mean_loss, (X[test], y[test]), **settings)
    one = hx.tune(objective, {"penalty": hx.LogInterval(1e-3, 1e-6, 1e-1)}, steps=6)
    strength = float(hx.natural(one.best)["penalty"])
    start = {"penalty": hx.LogInterval(np.full((64, 10), strength), 1e-6, 1e-1)}

    figure, axes = canvas(height=3.4)
    facts: Facts = {"the best single penalty": strength}
    searches = {"the default search": (hx.search.LBFGS(), ORANGE), "Gate": (hx.search.Gate(2, optax.adam(0.3)), BLUE)}
    for name, (search, colour) in searches.items():
        losses: list[float] = []
        state = new.init(start)

        def judged(step: hx.search.Step, losses: list[float] = losses, state=state) -> None:
            losses.append(float(new.value(step.hyper, state)[0].value))

        tuned = hx.tune(objective, start, search=search, steps=12, callbacks=[judged])
        axes.plot(tuned.column("value"), "--", color=colour)
        axes.plot(losses, color=colour, label=name)
        facts[f"validation loss, {name}: last over first"] = tuned.history[-1]["value"] / tuned.history[0]["value"]
        facts[f"test loss, {name}: last over first"] = losses[-1] / losses[0]
    axes.set(xlabel="step", ylabel="loss: test (whole), validation (dashed)")
    axes.legend()
    return figure, facts


if __name__ == "__main__":
    show(main, __file__)
