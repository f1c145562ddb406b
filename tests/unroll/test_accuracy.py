"""The run in fixed point is the run that was asked for: its hypergradients beside those of floating point."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from trainings import relative_error

pytestmark = [pytest.mark.optimised, pytest.mark.slow]

RATES = {"paper": 0.3, "polyak": 0.03, "adam": 0.01, "adamw": 0.01}


def evaluate(name, sizes, steps, dtype, mode):
    """Regression by a tanh network: schedules of rates and momenta, a decay, a penalty and a scale."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, sizes[0]))
    y = np.sin(2 * x[:, :3].sum(1))
    start = [(rng.standard_normal((a, b)) / np.sqrt(a), np.zeros(b)) for a, b in itertools.pairwise(sizes)]

    def cast(tree):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)

    rate, momentum = RATES[name] * rng.uniform(0.5, 1, steps), rng.uniform(0.8, 0.95, steps)
    numbers = {"rate": rate, "momentum": momentum, "beta2": 0.999, "decay": 0.3605, "penalty": 1e-3, "scale": 1.0}
    used = {key: value for key, value in numbers.items() if key != "decay" or name == "adamw"}
    hyper = cast({key: value for key, value in used.items() if key != "beta2" or name.startswith("adam")})

    def network(params, x):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b[None])
        return (x @ params[-1][0] + params[-1][1][None])[:, 0]

    def outer(params, hyper, data):
        return jnp.mean((network(params, data[0]) - data[1]) ** 2)

    def loss(params, hyper, batch):
        return outer(params, hyper, batch) + hyper["penalty"] * sum(jnp.sum(w**2) for w, _ in params)

    def optimizer(hyper):
        rate, momentum = hx.unroll.Schedule(hyper["rate"]), hx.unroll.Schedule(hyper["momentum"])
        if name in ("paper", "polyak"):
            return hx.unroll.MomentumSGD(rate, momentum, form=name)
        if name == "adam":
            return hx.unroll.Adam(rate, momentum, hyper["beta2"])
        return hx.unroll.AdamW(rate, momentum, hyper["beta2"], weight_decay=hyper["decay"])

    data, held = cast((x[:150], y[:150])), cast((x[150:], y[150:]))
    training = hx.Training(
        loss,
        lambda hyper, key: jax.tree.map(lambda leaf: hyper["scale"] * leaf, cast(start)),
        optimizer,
        hx.Minibatches(data, 50, key=jax.random.key(0)),
        steps,
    )
    objective = hx.UnrolledObjective(training, outer, held, key=jax.random.key(1), mode=mode)
    return hx.hypergradient(objective, hyper)[0]


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(("sizes", "steps"), [((4, 16, 1), 1000), ((50, 20, 20, 1), 300), ((300, 300, 1), 60)])
def test_no_hyperparameter_is_rounded(name, sizes, steps):
    """To 1e-6 of reverse mode in float64; in float32, to twice the error of reverse mode through the float32 run.

    And to the rounding of one sum over n weights, of about √n units: two programs that sum in their own order, as for
    the derivative of the one penalty, do not share its luck.
    """
    truth = evaluate(name, sizes, steps, jnp.float64, hx.unroll.Checkpointed())
    assert isinstance(truth.stats, hx.unroll.UnrollStats)
    assert truth.stats.amplification is not None
    assert float(truth.stats.amplification) < 1e4
    answer = evaluate(name, sizes, steps, jnp.float64, hx.unroll.Reversible())
    assert relative_error(answer.grad, truth.grad) < 1e-6
    assert isinstance(answer.certificate, hx.unroll.ReversalCertificate)
    assert abs(float(answer.value - truth.value)) < 10 * float(answer.certificate.moved) + 1e-13
    narrow, undone = (
        evaluate(name, sizes, steps, jnp.float32, mode) for mode in (hx.unroll.Checkpointed(), hx.unroll.Reversible())
    )
    rounding = np.finfo(np.float32).eps / 2 * sum(a * b for a, b in itertools.pairwise(sizes)) ** 0.5
    assert relative_error(undone.grad, truth.grad) < 2 * relative_error(narrow.grad, truth.grad) + 1e-6 + rounding
