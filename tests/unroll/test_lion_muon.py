"""Lion and Muon, and learning rates a weight, through every mode against `jax.grad` of a Python loop."""

import jax
import jax.numpy as jnp
import optax
import pytest
from small_nets import BATCHES, KEY, MODES, STEPS, agrees, by_hand, init, plain_loss, quickly, run, start

import hyprax as hx


def gradient(params, hyper, t, key, state):
    return jax.grad(plain_loss)(params, hyper, BATCHES(t)), None


def by_lion(hyper, t, grads, moments, params):
    rate, decay = hyper["rate"][t], hyper["weight_decay"]

    def move(w, m, g):
        return w - rate * (jnp.sign(hyper["momentum"] * m + (1 - hyper["momentum"]) * g) + decay * w)

    params = jax.tree.map(move, params, moments, grads)
    return params, jax.tree.map(lambda m, g: hyper["beta2"] * m + (1 - hyper["beta2"]) * g, moments, grads)


def orthogonal(v):
    """The iteration of optax, of a matrix or a row."""
    x = v if v.ndim == 2 else v[None]
    with jax.numpy_dtype_promotion("standard"):
        coefficients = jnp.asarray((3.4445, -4.7750, 2.0315))
        found = optax.contrib._muon.orthogonalize_via_newton_schulz(x, coefficients)  # pyright: ignore[reportAttributeAccessIssue]  # there is no public one
    return (max(1, x.shape[1] / x.shape[0]) ** 0.5 * found).reshape(v.shape)


def by_muon(hyper, t, grads, moments, params):
    moments = jax.tree.map(lambda v, g: hyper["momentum"] * v + g, moments, grads)
    rate, shrunk = hyper["rate"][t], 1 - hyper["rate"][t] * hyper["weight_decay"]
    return jax.tree.map(lambda w, v: shrunk * w - rate * orthogonal(v), params, moments), moments


def lion(hyper):
    rate = hx.unroll.Schedule(hyper["rate"])
    return hx.unroll.Lion(rate, hyper["momentum"], hyper["beta2"], hyper["weight_decay"])


def muon(hyper):
    return hx.unroll.Muon(hx.unroll.Schedule(hyper["rate"]), hyper["momentum"], hyper["weight_decay"])


OPTIMIZERS = {
    "lion": (lion, by_lion, start(weight_decay=0.1, beta2=0.9)),
    "muon": (muon, by_muon, start(weight_decay=0.1)),
}


@pytest.mark.parametrize("name", ["lion", pytest.param("muon", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", quickly("reversible"))
def test_lion_and_muon(name, mode):
    optimizer, move, hyper = OPTIMIZERS[name]
    answer = run(hx.Training(plain_loss, init, optimizer, BATCHES, STEPS), MODES[mode], hyper)
    agrees(answer, by_hand(gradient, hyper, move=move), 1e-7)
    assert hasattr(answer.certificate, "exact") == mode.startswith("reversible")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_long_runs_come_back(name, dtype):
    """Two bits a parameter and step for the signs of Lion, and nothing but the momentum's for Muon."""
    steps = 300
    wide = {**OPTIMIZERS[name][2], "rate": jnp.full(steps, 0.01)}
    hyper = jax.tree.map(lambda x: x.astype(dtype), wide)
    data = hx.Minibatches(jax.tree.map(lambda x: x.astype(dtype), BATCHES.data), 8, key=KEY)

    def narrow(hyper, key):
        made = init({"scale": hyper["scale"].astype(jnp.float64)}, key)
        return jax.tree.map(lambda x: x.astype(dtype), made)

    training = hx.Training(plain_loss, narrow, OPTIMIZERS[name][0], data, steps)
    objective = hx.UnrolledObjective(
        training,
        lambda params, hyper, data: jnp.sum(params["in"] ** 2),
        key=KEY,
        mode=hx.unroll.Reversible(),
        gauge=hx.unroll.ChaosGauge(float("inf")),  # near its end Muon turns a gradient of nothing to full length
    )
    answer = hx.hypergradient(objective, hyper)[0]
    assert getattr(answer.certificate, "exact")  # noqa: B009  # of a reversal
    theory = float(-jnp.log2(hyper["beta2" if name == "lion" else "momentum"].astype(jnp.float64)))
    decay = 0.01 * 0.1 / jnp.log(2.0)
    kept = theory + (2 if name == "lion" else 0) + decay
    assert abs(float(answer.stats.theory_bits) - kept) <= 1e-2
    assert float(answer.stats.bits_per_parameter_step) <= kept


@pytest.mark.parametrize("mode", quickly("reversible"))
def test_a_learning_rate_for_each_weight(mode):
    """One of a group stands beside them; under reversal too."""
    rates = {"in": jnp.linspace(0.01, 0.1, 20).reshape(4, 5), "out": jnp.asarray(0.05)}
    hyper = {**start(), "rate": rates}

    def optimizer(hyper):
        rate = {"in": hx.unroll.PerWeight(hyper["rate"]["in"]), "out": hyper["rate"]["out"]}
        return hx.unroll.MomentumSGD(rate, hyper["momentum"], form="polyak")

    def move(hyper, t, grads, velocity, params):
        velocity = jax.tree.map(lambda v, g: hyper["momentum"] * v - g, velocity, grads)
        return jax.tree.map(lambda w, v, rate: w + rate * v, params, velocity, hyper["rate"]), velocity

    answer = run(hx.Training(plain_loss, init, optimizer, BATCHES, STEPS), MODES[mode], hyper)
    agrees(answer, by_hand(gradient, hyper, move=move), 1e-7)
    assert hasattr(answer.certificate, "exact") == mode.startswith("reversible")


def test_a_momentum_for_each_weight_is_refused_where_it_cannot_be_undone():
    each = hx.unroll.PerWeight({"in": jnp.full((4, 5), 0.5), "out": jnp.full(5, 0.5)})
    for optimizer in (
        lambda hyper: hx.unroll.MomentumSGD(hyper["rate"][0] * hyper["momentum"], each),
        lambda hyper: hx.unroll.Lion(each, hyper["momentum"], hyper["rate"][0]),
    ):
        with pytest.raises(ValueError, match=r"got a PerWeight. Only a learning rate may be one there"):
            run(hx.Training(plain_loss, init, optimizer, BATCHES, STEPS), MODES["reversible"], start())
