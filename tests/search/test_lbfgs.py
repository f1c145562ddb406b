"""Quasi-Newton steps: as few evaluations as SciPy's, proved decrease, bounds, resumption; how runs say they ended."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from test_adaptive import Uncertain
from test_tune import Memory, bowl, start

import hyprax as hx
from hyprax.search import LBFGS, Optax, Stopping
from hyprax.search._progress_words import progress_words

TO_THE_END = Stopping(gradient=1e-6, patience=None)


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def badly_scaled(x):
    scales = jnp.asarray([1e-2, 1.0, 30.0, 1e3])
    return jnp.sum(scales * (x - 1.0) ** 2) + jnp.sum(x**4) / 10


@pytest.mark.parametrize("fn", [rosenbrock, badly_scaled])
def test_few_hypergradients_beside_scipy(fn):
    begin = jnp.asarray([-1.2, 1.0, 0.5, 2.0])
    found = hx.tune(fn, begin, steps=200, stop=Stopping(gradient=1e-6))
    slope = jax.jit(jax.value_and_grad(fn))
    peer = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(part) for part in slope(jnp.asarray(x))),
        begin,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-6},
    )
    assert found.history[-1]["gradient_norm"] <= 1e-6
    if fn is badly_scaled:  # the other has several minima
        np.testing.assert_allclose(found.best_value, peer.fun, rtol=1e-9)
    assert len(found.history) <= 1.2 * peer.nfev


def test_proved_decrease_is_true_whatever_the_errors_within_the_bounds():
    objective = Uncertain(scales=jnp.asarray([0.1, 1.0, 3.0, 20.0]), looseness=jnp.asarray(3.0))
    points = []
    found = hx.tune(
        objective, jnp.asarray([3.0, -2.0, 0.0, 2.0]), search=LBFGS(), steps=30, stop=TO_THE_END,
        callbacks=[lambda step: points.append(step.hyper)],
    )  # fmt: skip
    truths = [float(objective.truth(point)) for point in points]
    proved = found.column("proved_decrease")
    assert np.all(proved[:-1] > 0)
    for before, after, fall in zip(truths[:-1], truths[1:], proved[:-1], strict=True):
        assert before - after >= fall * (1 - 1e-12)
    assert truths[-1] <= 1e-6 * truths[0]
    # No tighter than was needed: the hypergradient is known to a few hundredths, and no better.
    assert np.all(found.column("certificate_bound") <= 0.03 * found.column("gradient_norm"))
    assert np.median(found.column("certificate_bound") / found.column("gradient_norm")) >= 1e-4


def test_a_run_ends_where_the_certificates_can_tell_no_more():
    objective = Uncertain(scales=jnp.asarray([1.0, 3.0]), looseness=jnp.asarray(1.0), floor=jnp.asarray(1e-4))
    found = hx.tune(objective, jnp.asarray([3.0, -2.0]), steps=200, stop=Stopping(0.0, None))
    assert bool(found.result == hx.search.RESULTS.precision_reached)
    assert float(objective.truth(found.last)) <= 1e-3
    assert len(found.history) < 40


def test_a_strength_rests_at_its_bound_and_this_is_said():
    def drops(hyper):  # falls with the first strength for ever, and has an optimum at 3 in the second
        return 1 / (1 + hyper["penalty"][0]) + jnp.log(hyper["penalty"][1] / 3.0) ** 2

    found = hx.tune(drops, {"penalty": hx.Positive([1.0, 1.0])}, search=LBFGS(strengths=(1e-3, 1e3)), steps=100)
    np.testing.assert_allclose(found.best["penalty"].value, [1e3, 3.0], rtol=1e-3)
    assert "1 at the upper one" in found.message


def test_a_resumed_run_has_the_same_bits():
    begin = jnp.asarray([-1.2, 1.0, 0.5, 2.0])
    whole = hx.tune(rosenbrock, begin, search=LBFGS(), steps=12)
    record = Memory()
    hx.tune(rosenbrock, begin, search=LBFGS(), steps=5, run=record)
    resumed = hx.tune(rosenbrock, begin, search=LBFGS(), steps=12, run=record)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        assert np.array_equal(a, b)


def test_noisy_objectives_are_refused_and_keep_adam():
    with pytest.raises(ValueError, match="must be deterministic"):
        hx.tune(bowl(noisy=True), start(), search=LBFGS(), steps=2)
    with pytest.raises(ValueError, match="memory must be an integer >= 1; got 0"):
        LBFGS(memory=0)
    with pytest.raises(AssertionError, match="no value alone"):  # Adam, and then what `final` gives
        hx.tune(bowl(noisy=True), start(), steps=2)


def rows(values):
    return [{"value": value} for value in values]


def test_messages_speak_of_progress():
    flat = progress_words(rows([3.0, 2.0, 1.0] + [1.0] * 40), noisy=False)
    assert flat == "the value had been flat for 40"
    falling = progress_words(rows(0.98 ** np.arange(100)), noisy=False)
    assert falling == "the value was still falling by 2.2 % a step"
    assert "noisy" in progress_words(rows([1.0, 2.0]), noisy=True)
    tuned = hx.tune(bowl(), start(), search=Optax(optax.sgd(1e-3)), steps=7)
    assert tuned.message.startswith("Stopped after 7 steps (the limit); the value was still falling by ")
