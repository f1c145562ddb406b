"""Weights and hyperparameters in one call: where it ends, what it keeps, that it repeats, resumes and compiles once."""

import functools
import html
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.linear_model import BayesianRidge

import hyprax as hx
from hyprax import evidence as ev
from hyprax.fits import fit_evidence
from hyprax.fits._evidence import _stuck
from hyprax.fits._rates import secants
from thoroughness import slow

N, D = 60, 3
TRACES: list[int] = []


def linear(params, hyper, x):
    TRACES.append(1)
    return x @ params["w"]


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    w = np.array([[1.5], [-0.7], [0.4]])
    return x, x @ w + 0.3 * rng.normal(size=(N, 1)) + 2.0


def noise(hyper):
    return ev.Gaussian(hyper["noise"])


DRAWN = {
    "estimator": ev.Chain(ev.designs.OneRow(20)), "epochs": 12, "burn_in": 2, "hyper_steps": 4, "mode_steps": 6,
    "batch_size": N,
}  # fmt: skip


def regression(apply=linear, points=None, **changes):
    options = {
        "likelihood": noise,
        "progress": False,
        "epochs": 12,
        "burn_in": 10,
        "every": 5,
        "key": jax.random.key(0),
    } | changes
    hyper = {"noise": hx.Positive(1.0)}
    return fit_evidence(apply, {"w": jnp.zeros((D, 1))}, data() if points is None else points, hyper, **options)


@functools.cache
def drawn():
    return regression(**DRAWN)


def ridge(x, y):
    """BayesianRidge without priors of its own, on standardised data, mapped back: noise, precision, evidence, means."""
    z, t = (x - x.mean(0)) / x.std(0), (y[:, 0] - y.mean()) / y.std()
    model = BayesianRidge(
        fit_intercept=False, compute_score=True, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-12, max_iter=5000
    ).fit(z, t)
    spread = y.std()
    evidence = model.scores_[-1] - len(y) * np.log(spread)
    return spread / np.sqrt(model.alpha_), model.lambda_, evidence, y.mean() + spread * model.predict(z)


@pytest.mark.parametrize(("of_x", "of_y"), [(1.0, 1.0), slow(1.0, 1e5), slow(1.0, 1e-5), slow(1e4, 1.0)])
def test_a_linear_model_ends_at_the_answer_of_bayesian_ridge_whatever_the_units(of_x: float, of_y: float):
    x, y = data()
    x, y = of_x * (x + 1), of_y * y
    fitted = regression(points=(x, y))
    found = hx.natural(fitted.hyper)
    scale, precision, evidence, means = ridge(x, y)
    np.testing.assert_allclose(found["noise"], scale, rtol=1e-4)
    np.testing.assert_allclose(found["precision"]["w"], precision, rtol=1e-4)
    np.testing.assert_allclose(fitted.log_evidence, evidence, rtol=1e-4)
    np.testing.assert_allclose(fitted.predict(x)[:, 0], means, rtol=1e-4, atol=1e-4 * of_y)
    assert fitted.message == ""
    assert fitted.result == ev.RESULTS.successful
    assert fitted.stats.decrement < 1e-8
    assert fitted.standard_error == 0


def test_a_network_that_is_given_goes_to_its_mode_and_precisions_follow():
    """No epochs: nothing is standardised, and the answer is BayesianRidge's on the data as they are."""
    x, y = data()
    y = y - y.mean()
    model = BayesianRidge(
        fit_intercept=False, compute_score=True, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-12, max_iter=5000
    ).fit(x, y[:, 0])
    fitted = regression(points=[(x[:40], y[:40]), (x[40:], y[40:])], epochs=0)
    found = hx.natural(fitted.hyper)
    np.testing.assert_allclose(found["noise"], 1 / np.sqrt(model.alpha_), rtol=1e-4)
    np.testing.assert_allclose(found["precision"]["w"], model.lambda_, rtol=1e-4)
    np.testing.assert_allclose(fitted.params["w"][:, 0], model.coef_, rtol=1e-4)
    np.testing.assert_allclose(fitted.log_evidence, model.scores_[-1], rtol=1e-4)
    assert fitted.result == ev.RESULTS.successful
    assert fitted.stats.trained == 0


def test_the_final_estimate_is_a_bound_within_its_standard_error():
    fitted = drawn()
    kept = fitted.model
    full = float(
        ev.log_evidence(
            kept.apply, kept.params, (kept.inputs, kept.targets), kept.hyper, likelihood=kept.likelihood,
            prior=kept.prior,
        ).value
    )  # fmt: skip
    assert fitted.standard_error > 0
    assert fitted.log_evidence <= full + 3 * fitted.standard_error
    assert fitted.certificate.kind == "none"
    assert fitted.certificate.side == "lower"
    assert fitted.certificate.slack > 0
    assert fitted.stats.decrement < 1e-4


def test_what_is_kept_is_the_best_evaluation_at_a_mode():
    fitted = drawn()
    rows = fitted.history
    past, weight, stationary = 0.0, 0.0, {}
    for row in rows:
        past, weight = 0.9 * past + 0.1 * row["value"], 0.9 * weight + 0.1
        if row["decrement"] <= 0.1 + 1e-3 * N:
            stationary[row["step"]] = past / weight
    kept = fitted.tuned.state.objective_state.kept
    best = min(stationary, key=lambda step: stationary[step])
    assert int(kept.evaluation) == best
    np.testing.assert_allclose(kept.value, stationary[best], rtol=1e-9)
    assert rows[0]["decrement"] > 1  # weights in training are on the way, and never kept
    assert len(rows) == 2 * 4 + 6
    assert [row["trained"] for row in rows] == [3] * 4 + [8] * 10


def test_an_interrupted_run_is_resumed_to_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    def stopping(run, at):
        step = run.step

        def stopped(row, state):
            step(row, state)
            if row.step == at:
                raise Stop

        object.__setattr__(run, "step", stopped)
        return run

    whole = drawn()
    with pytest.raises(Stop):
        regression(**DRAWN, run=stopping(hx.Run(tmp_path / "run", every=1), 9))
    again = regression(**DRAWN, run=hx.Run(tmp_path / "run", every=1))
    assert [r["value"] for r in again.history] == [r["value"] for r in whole.history]
    np.testing.assert_array_equal(again.params["w"], whole.params["w"])
    assert again.log_evidence == whole.log_evidence


def test_a_fit_shows_itself_with_its_two_statements():
    card = re.sub("</?code>", "`", drawn()._repr_html_())
    for words in (drawn().message, drawn().certificate.meaning(), drawn().noise.meaning()):
        assert html.escape(words) in card
    assert f"{drawn().log_evidence:.6g}" in card
    assert "noise" in card


def test_equal_fits_with_default_optimizers_compile_once():
    drawn()
    before = len(TRACES)
    x, y = data()
    regression(**DRAWN, points=(x + 1, y - 1))
    assert len(TRACES) == before > 0  # nothing of the model is gone through again


def test_a_search_is_stuck_where_much_is_promised_and_nothing_comes():
    def at(**changes):
        options = {"schedule": ev.Schedule(mode_after=4), "likelihood": ev.Gaussian(1.0), "key": jax.random.key(0)}
        return ev.EvidenceObjective(linear, {"w": jnp.zeros((D, 1))}, data(), **options | changes)

    much = 10 * (0.1 + 1e-3 * N) + 0.01
    assert _stuck(at(), N, 20, jnp.asarray(12), much)
    assert not _stuck(at(), N, 20, jnp.asarray(13), much)  # it gained within eight steps
    assert not _stuck(at(), N, 20, jnp.asarray(12), much - 0.02)  # little is promised
    assert not _stuck(at(), 9 * N, 20, jnp.asarray(12), much)  # for as many examples, as of sequences of 9 tokens
    assert not _stuck(at(), N, 20, jnp.asarray(3), much)  # nothing was kept at the mode
    assert not _stuck(at(), N, 20, None, much)
    assert not _stuck(at(schedule=ev.Schedule(every=1)), N, 20, jnp.asarray(12), much)
    assert not _stuck(at(estimator=DRAWN["estimator"]), N, 20, jnp.asarray(12), much)  # one draw says little


@pytest.mark.slow
def test_where_the_mode_ends_the_search_does_and_says_so():
    """A small network on few points: from the best value on, every step along the gradient loses the mode."""
    rng = np.random.default_rng(5)
    x = rng.uniform(-2, 2, size=(20, 1))
    y = np.sin(3 * x) + 0.1 * rng.normal(size=(20, 1))
    params = {"w": rng.normal(size=(1, 8)), "b": rng.normal(size=8), "v": rng.normal(size=(8, 1)) / 3}
    found = fit_evidence(
        lambda p, h, x: jnp.tanh(x @ p["w"] + p["b"]) @ p["v"], params, (x, y), {"noise": hx.Positive(1.0)},
        likelihood=noise, epochs=60, key=jax.random.key(5), progress=False,
    )  # fmt: skip
    values = np.array([row["value"] for row in found.history])
    assert found.result == ev.RESULTS.mode_folds
    assert "ends" in found.message
    assert "gradient_nats" in found.message
    assert found.stats.decrement < 1e-3
    assert len(values) < 180 + 50
    assert len(x) * (values[-9] - np.min(values[-8:])) < 0.05


def test_secant_steps_end_at_the_minimum_and_take_back_what_does_not_lower_the_value():
    """Of a quadratic that only steps of at most 0.2 stay on: beyond, values are high and gradients say nothing."""
    matrix = jnp.asarray(np.diag([1.0, 30.0, 0.2]) + 0.1)
    transformation = secants()
    x = {"a": jnp.ones(2), "b": jnp.asarray(-1.0)}
    state: Any = transformation.init(x)
    taken_back = 0
    move, state = transformation.update(x, state, x, value=jnp.inf)
    assert not np.any(ravel_pytree(move)[0])  # not at a mode yet
    for _ in range(100):
        flat, unravel = ravel_pytree(x)
        beyond = bool(jnp.max(jnp.abs(flat - state.point)) > 0.2)
        value = 0.5 * flat @ matrix @ flat + 1e3 * beyond
        grad = -1e4 * jnp.ones(3) if beyond else matrix @ flat
        before = state
        move, state = transformation.update(unravel(grad), state, x, value=value)
        x = optax.apply_updates(x, move)
        assert float(jnp.max(jnp.abs(ravel_pytree(x)[0] - state.point))) <= 0.5 + 1e-12
        assert state.value <= before.value
        if beyond:
            taken_back += 1
            np.testing.assert_array_equal(state.point, before.point)
            assert state.reach < before.reach
    assert taken_back > 0
    np.testing.assert_allclose(state.point, 0, atol=1e-6)


@pytest.mark.slow
def test_online_kfac_moves_as_kfac_of_all_data_does():
    """With the prior precision alone the factors are the same at all evaluations of a stage."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(N, D)), rng.integers(0, 2, N)
    params = {"w": jnp.asarray(rng.normal(size=(D, 2))), "b": jnp.zeros(2)}

    def run(estimator):
        return fit_evidence(
            lambda p, h, x: x @ p["w"] + p["b"], params, points, estimator=estimator, epochs=8, burn_in=2,
            hyper_steps=3, mode_steps=0, batch_size=20, progress=False, key=jax.random.key(0),
        )  # fmt: skip

    online, usual = run(ev.OnlineKFAC(25)), run(ev.FullData(ev.structures.KFAC()))
    for name in ("w", "b"):
        got, want = (hx.natural(fitted.hyper)["precision"][name] for fitted in (online, usual))
        np.testing.assert_allclose(got, want, rtol=1e-9)
    np.testing.assert_allclose(online.log_evidence, usual.log_evidence, rtol=1e-9)
    assert online.certificate.side == "unknown"
    assert online.result == ev.RESULTS.hyperparameters_still_moving
    assert "gradient_nats" in online.message


@pytest.mark.parametrize("where", ["noise", "model"])
def test_online_kfac_refuses_what_its_factors_are_functions_of(where: str):
    options = {"estimator": ev.OnlineKFAC(), "likelihood": noise if where == "noise" else ev.Gaussian(0.3)}
    model = linear if where == "noise" else lambda p, h, x: linear(p, h, h["noise"] * x)
    with pytest.raises(ValueError, match=r"prior precisions alone.*hyper\['noise'\]"):
        regression(model, **options)


@pytest.mark.slow
def test_a_number_that_is_not_finite_ends_the_run():
    fitted = regression(**DRAWN, optimizer=optax.sgd(math.nan))
    assert fitted.result == ev.RESULTS.diverged
    assert "non-finite" in fitted.message
    assert len(fitted.history) == 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 10}, "burn_in 10, epochs 10"),
        ({"epochs": 0, "mode_steps": 0}, "got 0 for both"),
        ({"burn_in": -1}, "burn_in -1"),
        ({"every": 0}, "every must be an integer >= 1; got 0"),
        ({"hyper_steps": 0}, "hyper_steps must be"),
        ({"mode_steps": -1}, "mode_steps must be"),
        ({"batch_size": N + 1}, f"{N + 1}"),
        ({"key": 0}, "key must be one JAX random key"),
        ({"points": (data()[0], data()[1] * np.nan)}, "NaN"),
        ({"points": (data()[0], np.full((N, 1), 3.0))}, "targets must vary; got targets that are all 3"),
        ({"points": data()[0]}, "pair"),
        ({"estimator": ev.structures.EKFAC()}, "FullData\\(EKFAC"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        regression(**changes)


@pytest.mark.usefixtures("unchecked")
def test_hyper_without_names_needs_a_prior():
    with pytest.raises(ValueError, match="hyper must be a mapping"):
        fit_evidence(linear, {"w": jnp.zeros((D, 1))}, data(), hx.Positive(1.0), key=jax.random.key(0))
