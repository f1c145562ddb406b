"""What a loss carries from step to step beside its weights, against `jax.grad` of a Python loop."""

import jax
import jax.numpy as jnp
import pytest
from small_nets import (
    BATCHES,
    HELD,
    KEY,
    MODES,
    STEPS,
    agrees,
    by_hand,
    init,
    momentum,
    plain_loss,
    quickly,
    run,
    start,
)

import hyprax as hx
from hyprax.unroll._draft import draft
from hyprax.unroll._step import Program

# A batch norm, averages of the weights, a count and what the loss was, all in one state.


def normalised(params, state, x, train):
    z = x @ params["in"]
    mean, var = (jnp.mean(z, 0), jnp.var(z, 0)) if train else (state["mean"], state["var"])
    after = {
        "mean": 0.8 * state["mean"] + 0.2 * jnp.mean(z, 0),
        "var": 0.8 * state["var"] + 0.2 * jnp.var(z, 0),
        "average": jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, state["average"], params),
        "count": state["count"] + 1,
    }
    return jnp.tanh((z - mean[None]) / jnp.sqrt(var + 1e-3)[None]) @ params["out"], after


def passing_loss(params, hyper, batch, state):
    """The state is carried, and nothing of the gradient looks at it."""
    outputs, after = normalised(params, state, batch[0], train=True)
    error = jnp.mean((outputs - batch[1]) ** 2)
    return error + hyper["decay"] * jnp.sum(params["in"] ** 2), after | {"error": error}


def looking_loss(params, hyper, batch, state):
    value, after = passing_loss(params, hyper, batch, state)
    return value + hyper["decay"] * jnp.sum(state["var"] * jnp.sum(params["in"] ** 2, 0)), after


def statistics(params, hyper):
    blank = {"mean": jnp.zeros(5), "var": jnp.full(5, hyper["scale"]), "count": jnp.asarray(0)}
    return {**blank, "average": params, "error": jnp.asarray(0.0)}


def evaluated(params, hyper, data, state):
    outputs, averaged = (normalised(w, state, data[0], train=False)[0] for w in (params, state["average"]))
    return jnp.mean((outputs - data[1]) ** 2) + jnp.mean((averaged - data[1]) ** 2) + 0.1 * state["error"]


def stateful(loss, **settings):
    return hx.Training(loss, init, momentum, BATCHES, STEPS, state=statistics, **settings)


LOOKING = stateful(looking_loss, metrics=lambda params, hyper, batch, state: state["error"], every=2)


def looked():
    def gradient(params, hyper, t, key, state):
        return jax.grad(looking_loss, has_aux=True)(params, hyper, BATCHES(t), state)

    return by_hand(gradient, start(), evaluated, statistics)


@pytest.mark.parametrize("mode", quickly("reversible"))
def test_what_the_loss_carries_is_differentiated(mode):
    answer = run(LOOKING, MODES[mode], start(), evaluated)
    agrees(answer, looked())
    assert hasattr(answer.certificate, "exact") == mode.startswith("reversible")


def test_the_state_and_what_was_recorded_of_it_are_reported():
    objective = hx.UnrolledObjective(LOOKING, evaluated, HELD, mode=MODES["reversible"], key=KEY)
    report = objective.report(start())
    assert int(report.state["count"]) == STEPS
    assert report.metrics.shape == (3,)
    assert float(report.metrics[0]) == 0


def test_reversal_keeps_states_only_where_the_way_back_looks_at_them():
    def keeps(training):
        return draft(Program(training, start(), KEY)).setup.layout.keeps

    assert keeps(LOOKING)
    assert not keeps(stateful(passing_loss))
    assert not keeps(hx.Training(plain_loss, init, momentum, BATCHES, STEPS))


@pytest.mark.slow
def test_a_state_that_passes_is_differentiated_without_being_kept():
    def gradient(params, hyper, t, key, state):
        return jax.grad(passing_loss, has_aux=True)(params, hyper, BATCHES(t), state)

    answer = run(stateful(passing_loss), MODES["reversible"], start(), evaluated)
    agrees(answer, by_hand(gradient, start(), evaluated, statistics))


@pytest.mark.parametrize(
    ("loss", "state", "words"),
    [
        (passing_loss, lambda params, hyper: None, "state must return a pytree of arrays; got None"),
        (passing_loss, lambda params, hyper: {"f": jnp.tanh}, r"at state\['f'\]"),
        (plain_loss, None, "state must be a function"),
        (lambda p, h, b, s: jnp.sum(p["in"]), statistics, "must return .one floating number, the next state."),
        (lambda p, h, b, s: (jnp.sum(p["in"]), {}), statistics, "of the structure that state"),
        (
            lambda p, h, b, s: (jnp.sum(p["in"]), {**s, "count": s["count"] + 0.5}),
            statistics,
            r"at state\['count'\] it turns int64\[\] into float64\[\]",
        ),
        (
            lambda p, h, b, s: (jnp.sum(p["in"]), {**s, "mean": jnp.zeros(6)}),
            statistics,
            r"turns float64\[5\] into float64\[6\]",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_states_that_do_not_fit_are_refused_before_the_run(loss, state, words):
    def asked():
        training = hx.Training(loss, init, momentum, BATCHES, STEPS, state=state or "no function")  # pyright: ignore[reportArgumentType]  # what is tried
        run(training, MODES["store_all"], start(), evaluated)

    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=words):
        asked()


def test_a_state_that_stops_being_finite_is_named():
    def loss(params, hyper, batch, state):
        return plain_loss(params, hyper, batch), {"log": jnp.log(state["log"] - 1)}

    training = hx.Training(loss, init, momentum, BATCHES, STEPS, state=lambda p, h: {"log": jnp.asarray(3.0)})
    objective = hx.UnrolledObjective(
        training, lambda p, h, data, state: plain_loss(p, h, data) + state["log"], HELD, key=KEY
    )
    answer = hx.hypergradient(objective, start(), throw=False)[0]
    assert bool(answer.result == hx.unroll.RESULTS.state_not_finite)
    assert int(answer.stats.failed_step) == 1
