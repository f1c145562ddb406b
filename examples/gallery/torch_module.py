"""A module of PyTorch with a weight decay for each tensor, tuned by the gradient through its training.

Needs `pip install "hyprax[torch,sklearn]"`. The lines go from the start, .01, to the decays found.
"""

# pyright: reportMissingImports=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from _style import BLUE, GREY, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

import hyprax as hx


def main() -> tuple[Figure, Facts]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    net = hx.from_torch(module, torch.from_numpy(X[:2]))

    def outer(params, hyper, batch):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(net(params, batch[0]), batch[1]))

    def inner(params, hyper, batch):
        decay = sum(hyper["decay"][name] * jnp.sum(w**2) / 2 for name, w in params.items())
        return outer(params, hyper, batch) + decay

    training = hx.Training(
        inner,
        init=lambda hyper, key: net.params,
        optimizer=lambda hyper: hx.unroll.MomentumSGD(0.1, 0.9, form="polyak"),
        batches=hx.Minibatches((X[:200], y[:200]), 50, key=jax.random.key(0)),
        steps=150,
    )
    objective = hx.UnrolledObjective(
        training, outer, (jnp.asarray(X[200:700]), jnp.asarray(y[200:700])), key=jax.random.key(1)
    )
    start = {"decay": {name: hx.Positive(np.float32(1e-2)) for name in net.params}}
    tuned = hx.tune(objective, start, search=hx.search.Optax(optax.adam(0.15)), steps=30)

    def accuracy(hyper) -> float:
        state = objective.value(hyper, objective.init(hyper))[1]
        module.load_state_dict(net.to_torch(objective.params(state)))
        with torch.no_grad():
            return float((module(torch.from_numpy(X[700:])).argmax(1).numpy() == y[700:]).mean())

    decays = {name: float(decay) for name, decay in hx.natural(tuned.best)["decay"].items()}
    figure, axes = canvas(height=2.4)
    axes.hlines(list(decays), 1e-2, list(decays.values()), color=BLUE)
    axes.plot(list(decays.values()), list(decays), "o", color=BLUE)
    axes.axvline(1e-2, color=GREY, linestyle="--", label="start")
    axes.set(xlabel="weight decay", xscale="log")
    axes.margins(y=0.2)
    axes.invert_yaxis()
    axes.legend()
    return figure, {
        "validation loss at the start": tuned.history[0]["value"],
        "validation loss, tuned": tuned.best_value,
        "test accuracy at the start": accuracy(start),
        "test accuracy, tuned": accuracy(tuned.best),
        **{f"decay of {name}": decay for name, decay in decays.items()},
    }


if __name__ == "__main__":
    show(main, __file__)
