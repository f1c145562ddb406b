"""What is said before the first step, and where a run stopped being finite."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax.unroll import MomentumSGD, OptaxOptimizer, PerWeight, Schedule

made = []


def training_loss(params, hyper, batch):
    jax.debug.callback(lambda x: made.append(1), params["w"][0])
    return jnp.sum((params["w"] - 1) ** 2)


def training(**parts):
    usual = {
        "loss": training_loss,
        "init": lambda hyper, key: {"w": jnp.zeros(4)},
        "optimizer": lambda hyper: MomentumSGD(hyper["rate"], 0.5),
        "batches": lambda t: None,
        "steps": 5,
    }
    return hx.Training(**{**usual, **parts})


def outer_loss(params, hyper, data):
    return jnp.sum(params["w"])


def started(parts, outer=outer_loss, hyper=None, **settings):
    """Everything up to the first step."""
    objective = hx.UnrolledObjective(training(**parts), outer, **{"key": jax.random.key(0), **settings})
    objective.init({"rate": jnp.asarray(0.1)} if hyper is None else hyper)


class Loader:
    def __iter__(self):
        return iter(())


class Own(hx.unroll.AbstractOptimizer):
    rate: Any

    def init(self, params):
        return ()

    def update(self, grads, state, params, t):
        rate = hx.unroll.lookup(self.rate, t)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), state


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"steps": 0}, "steps must be an integer from 1 .* got 0"),
        ({"steps": 2**31}, "got 2147483648"),
        ({"steps": 5.0}, "steps must be an integer .* got 5.0"),
        ({"loss": 3}, "loss must be a function; got an? int"),
        ({"batches": Loader()}, r"got a Loader.*cannot give it"),
        ({"loss": lambda params, hyper, batch: params["w"]}, r"loss must return one floating number; got float64\[4\]"),
        ({"init": lambda hyper, key: jnp.arange(3)}, "got int64"),
        ({"init": lambda hyper, key: ()}, "at least one array"),
        ({"optimizer": lambda hyper: optax.sgd(0.1)}, r"Wrap one of optax in hx\.unroll\.OptaxOptimizer"),
        ({"optimizer": lambda hyper: Own(Schedule(jnp.ones(3)))}, "rate: a Schedule must have .* got 3 entries for 5"),
        (
            {"optimizer": lambda hyper: MomentumSGD(jnp.ones(5), 0.5)},
            r"learning_rate must be .*shape \(5,\), which could",
        ),
        ({"optimizer": lambda hyper: MomentumSGD({"v": 0.1}, 0.5)}, "learning_rate must be .* prefix of the tree"),
        ({"optimizer": lambda hyper: MomentumSGD(PerWeight({"w": jnp.ones(3)}), 0.5)}, "shapes of the weights"),
        (
            {
                "optimizer": lambda hyper: Own(jnp.ones((), jnp.float64)),
                "init": lambda hyper, key: {"w": jnp.ones(3, jnp.float32)},
            },
            "into float64",
        ),
        *(
            (
                {"optimizer": lambda hyper, n=n: OptaxOptimizer(optax.sgd(lambda t: jnp.full(n, 0.1)[t]))},
                f"one of {n} ent",
            )
            for n in (3, 9)
        ),
        ({"optimizer": lambda hyper: OptaxOptimizer(optax.adam(Schedule(jnp.ones(4))))}, "one of 4 entries"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_trainings_that_do_not_fit_are_refused(parts, words):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=words):
        started(parts)
    assert not made


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"outer": lambda p, h, d: p["b"].sum()}, KeyError, "b"),
        (
            {"outer": lambda p, h, d: p["w"]},
            ValueError,
            r"outer_loss must return one floating number; got float64\[4\]",
        ),
        ({"outer": lambda p, h, d: jnp.sum(d[0] @ p["w"])}, ValueError, "needs validation data, give them"),
        ({"outer": lambda p, h, d: jnp.sum(d @ p["w"]), "outer_data": np.ones((2, 3))}, TypeError, "3"),
        ({"mode": "reversible"}, ValueError, "mode must be .*got 'reversible'"),
        ({"mode": hx.unroll.Reversible}, ValueError, "the class Reversible"),
        ({"key": 0}, ValueError, "UnrolledObjective: key must be one JAX random key"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_outer_losses_modes_and_keys_are_looked_at_before_the_first_step(settings, error, words):
    with pytest.raises(error, match=words):
        started({}, **settings)
    assert not made


def test_a_hyperparameter_that_nothing_uses_is_said():
    with pytest.warns(UserWarning, match=r"hyper\['decay'\] is used by neither init"):
        started({}, hyper={"rate": jnp.asarray(0.1), "decay": jnp.asarray(0.1)})


def test_schedules_of_the_right_length_and_of_epochs_are_taken():
    for size, make in (
        (5, lambda rates: lambda t: rates[t]),
        (2, lambda rates: lambda t: rates[t // 3]),
        (5, Schedule),
    ):
        optimizer = lambda hyper, make=make: OptaxOptimizer(optax.sgd(make(hyper["rate"])))  # noqa: E731
        started({"optimizer": optimizer}, hyper={"rate": jnp.full(size, 0.1)})


def test_one_rate_a_weight_is_no_schedule_even_if_there_are_as_many_steps():
    """w ← w - λ_j 2 (w - 1) for every weight j, by hand; λ a tree of arrays in the shapes of the weights."""
    rates = jnp.asarray([0.01, 0.02, 0.03, 0.04])

    def end(rates):
        return 1 - jnp.prod(jnp.stack([1 - 2 * rates] * 4), axis=0)

    for optimizer in (
        lambda hyper: MomentumSGD({"w": PerWeight(hyper["rate"])}, PerWeight({"w": jnp.zeros(4)}), form="polyak"),
        lambda hyper: Own(hyper["rate"]),
    ):
        run = training(loss=lambda p, h, b: jnp.sum((p["w"] - 1) ** 2), optimizer=optimizer, steps=4)
        objective = hx.UnrolledObjective(run, outer_loss, key=jax.random.key(0))
        answer = hx.hypergradient(objective, {"rate": rates})[0]
        np.testing.assert_allclose(answer.value, jnp.sum(end(rates)), rtol=1e-12)
        np.testing.assert_allclose(answer.grad["rate"], jax.grad(lambda r: jnp.sum(end(r)))(rates), rtol=1e-12)
    run = training(optimizer=lambda hyper: MomentumSGD({"w": PerWeight(hyper["rate"])}, 0.5))
    undone, stored = (
        hx.hypergradient(hx.UnrolledObjective(run, outer_loss, key=jax.random.key(0), mode=mode), {"rate": rates})[0]
        for mode in (hx.unroll.Reversible(), hx.unroll.StoreAll())
    )
    np.testing.assert_allclose(undone.grad["rate"], stored.grad["rate"], rtol=1e-9)


@pytest.mark.parametrize(
    ("changed", "name", "step"),
    [
        ({"init": lambda h, k: {"w": jnp.log(jnp.zeros(4))}}, "initial_weights_not_finite", 0),
        ({"loss": lambda p, h, b: jnp.sum(p["w"]) / (3 - b)}, "training_loss_not_finite", 3),
        ({"loss": lambda p, h, b: jnp.sum(p["w"]) + jnp.sqrt(0 * p["w"][0])}, "training_gradient_not_finite", 0),
        ({"optimizer": lambda h: Own(1e200 * h["rate"])}, "training_loss_not_finite", 1),
        ({"optimizer": lambda h: Own(h["rate"] / 0)}, "weights_not_finite", 0),
        ({}, "outer_loss_not_finite", None),
    ],
)
def test_a_run_says_what_stopped_being_finite_and_when(changed, name, step):
    parts = {"loss": lambda p, h, b: jnp.sum((p["w"] - 1) ** 2), "batches": lambda t: t.astype(float), **changed}
    outer = outer_loss if changed else lambda p, h, d: jnp.log(-jnp.sum(p["w"] ** 2))
    objective = hx.UnrolledObjective(training(**parts), outer, key=jax.random.key(0))
    answer = hx.hypergradient(objective, {"rate": jnp.asarray(0.1)}, throw=False)[0]
    assert bool(answer.result == getattr(hx.unroll.RESULTS, name))
    assert isinstance(answer.stats, hx.unroll.UnrollStats)
    assert answer.stats.failed_step == step


def test_equinox_modules_are_weights():
    """Their functions are set aside; the hypergradient is that of the arrays alone."""
    x = jnp.linspace(-1, 1, 12).reshape(6, 2)

    def init(hyper, key):
        return eqx.nn.MLP(2, "scalar", 3, 1, activation=jnp.tanh, key=key, dtype=jnp.float64)

    def loss(model, hyper, batch):
        return jnp.mean((jax.vmap(model)(batch) - batch[:, 0]) ** 2)

    def optimizer(hyper):
        return MomentumSGD(hyper["rate"], 0.9, form="polyak")

    static = eqx.filter(init(None, jax.random.key(0)), eqx.is_array, inverse=True)
    answers = []
    for start, whole in (
        (init, lambda params: params),
        (lambda h, k: eqx.filter(init(h, k), eqx.is_array), lambda params: eqx.combine(params, static)),
    ):
        run = hx.Training(lambda p, h, b, whole=whole: loss(whole(p), h, b), start, optimizer, hx.FullBatch(x), 3)
        objective = hx.UnrolledObjective(
            run, lambda p, h, d, whole=whole: loss(whole(p), h, d), x, key=jax.random.key(1)
        )
        answer, state = hx.hypergradient(objective, {"rate": jnp.asarray(0.05)})
        answers.append(float(answer.grad["rate"]))
        assert np.isfinite(loss(eqx.combine(objective.params(state), static), None, x))
    assert answers[0] == answers[1]
