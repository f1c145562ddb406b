"""A learning rate for each of forty steps of training, tuned by the gradient through the whole run.

A small network learns digits. Left, the schedule that was found; right, the loss on images kept for judging, while it
trains. The test images took no part in either.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _style import BLUE, GREY, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import hyprax as hx

jax.config.update("jax_enable_x64", True)
STEPS = 40


def init(hyper, key):
    one, two = jax.random.split(key)
    return jax.random.normal(one, (64, 32)) / 8, jax.random.normal(two, (32, 10)) / 6


def scores(params, inputs):
    return jnp.tanh(inputs @ params[0]) @ params[1]


def loss(params, hyper, batch):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores(params, batch[0]), batch[1]))


def main() -> tuple[Figure, Facts]:
    X, y = load_digits(return_X_y=True)
    X, held = X / 16, slice(800, 1300)
    kept = jnp.asarray(X[held]), jnp.asarray(y[held])
    training = hx.Training(
        loss,
        init,
        optimizer=lambda hyper: hx.unroll.MomentumSGD(
            hx.unroll.Schedule(jnp.broadcast_to(hyper["rate"], STEPS)), 0.9, form="polyak"
        ),
        batches=hx.Minibatches((X[:800], y[:800]), 100, key=jax.random.key(0)),
        steps=STEPS,
        metrics=lambda params, hyper, batch: loss(params, hyper, kept),
    )
    objective = hx.UnrolledObjective(training, loss, kept, mode=hx.unroll.Reversible(), key=jax.random.key(1))
    constant = hx.tune(
        objective, {"rate": hx.Positive(jnp.asarray(0.1))}, search=hx.search.Optax(optax.adam(0.1)), steps=30
    )
    rate = float(hx.natural(constant.best)["rate"])
    start = {"rate": hx.Positive(np.full(STEPS, rate))}
    tuned = hx.tune(objective, start, search=hx.search.Optax(optax.adam(0.1)), steps=40)
    figure, (left, right) = canvas(1, 2, height=2.8)
    facts: Facts = {"the constant rate tuned": rate}
    for hyper, name, colour in ((start, "a tuned constant rate", GREY), (tuned.best, "a rate a step", BLUE)):
        value, state = objective.value(hyper, objective.init(hyper))
        left.plot(hx.natural(hyper)["rate"], color=colour)
        right.semilogy(objective.report(hyper).metrics, color=colour, label=name.removeprefix("a tuned "))
        right_ones = np.argmax(scores(objective.params(state), X[1300:]), axis=1) == y[1300:]
        facts |= {f"loss judged by, {name}": float(value.value), f"test accuracy, {name}": float(np.mean(right_ones))}
    left.set(title="learning rate", xlabel="training step", ylim=(0, None))
    right.set(title="loss", xlabel="training step")
    right.legend()
    return figure, facts


if __name__ == "__main__":
    show(main, __file__)
