"""The outer loop: found optima, reasons to stop, one compilation, resumption, and what it shows."""

import io
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax._progress import ProgressBar
from hyprax.search import AbstractRecord, Optax, Step, Stopping
from hyprax.search._progress_words import sample_words
from hyprax.search._step import step_text

TRACES: list[int] = []


NOISE = hx.NoNoise("by design")


class Bowl(hx.core.AbstractObjective):
    """F(u) = ½ Σ s_j (u_j - 1)² in the coordinates of one Positive leaf: the optimum is x = e, F = 0."""

    scales: jax.Array
    bound: float = eqx.field(static=True, default=0.0)
    certified: bool = eqx.field(static=True, default=True)
    fail_at: int = eqx.field(static=True, default=-1)
    noisy: bool = eqx.field(static=True, default=False)
    adaptive: bool = eqx.field(static=True, default=False)
    measures_noise: bool = eqx.field(static=True, default=False)
    value_name: str = eqx.field(static=True, default="value")

    def init(self, hyper):
        return jnp.asarray(0)

    @eqx.filter_jit
    def value_and_grad(self, hyper, state, accuracy=None):
        TRACES.append(1)
        u = hyper["x"].raw
        value = 0.5 * jnp.sum(self.scales * (u - 1) ** 2)
        value = jnp.where(state == self.fail_at, jnp.nan, value)
        grad = jax.tree.map(lambda _: self.scales * (u - 1), hyper)
        if self.certified:
            certificate: Any = hx.Certificate(jnp.asarray(self.bound), "certified", "‖grad - dF‖", "by design")
        else:
            certificate = hx.NoCertificate("by design")
        result = hx.RESULTS.where(state == self.fail_at, hx.RESULTS.diverged, hx.RESULTS.successful)
        return hx.Hypergradient(
            value, grad, certificate, NOISE, result, hx.core.NamedStats({"inner_steps": state})
        ), state + 1

    def value(self, hyper, state, accuracy=None):
        raise AssertionError("tune asks for no value alone")

    def params(self, state):
        return None

    def final(self, hyper, state):
        return self.value(hyper, state)


def start() -> dict:
    return {"x": hx.Positive(np.full(3, 0.1))}


def bowl(**options) -> Bowl:
    return Bowl(scales=jnp.asarray([1.0, 2.0, 4.0]), **options)


GRADIENT_DESCENT = Optax(optax.sgd(0.2))


def test_finds_the_optimum_and_says_why_it_stopped():
    tuned = hx.tune(bowl(bound=1e-9), start(), search=GRADIENT_DESCENT, steps=500)
    np.testing.assert_allclose(tuned.best["x"].value, np.e, rtol=1e-5)
    assert bool(tuned.result == hx.search.RESULTS.successful)
    assert tuned.message == ""
    last = tuned.history[-1]
    assert last["gradient_norm"] + last["certificate_bound"] <= 1e-6
    assert len(tuned.history) < 500


def test_history_best_and_last_agree():
    tuned = hx.tune(bowl(), start(), search=GRADIENT_DESCENT, steps=20, stop=Stopping(gradient=0.0))
    values = tuned.column("value")
    assert list(tuned.column("step")) == list(range(20))
    assert tuned.best_value == values.min() == values[tuned.best_step]
    assert bool(tuned.result == hx.search.RESULTS.steps_spent)
    assert "steps" in tuned.message
    again, _ = bowl().value_and_grad(tuned.last, jnp.asarray(0))
    assert float(again.value) == values[-1]
    assert set(tuned.history[0]) >= {"value", "gradient_norm", "certificate_kind", "certificate_bound", "seconds"}


@pytest.mark.parametrize(
    ("options", "stop", "expected"),
    [
        ({"certified": False}, Stopping(gradient=1e-3), hx.search.RESULTS.gradient_small_uncertified),
        ({"bound": 1.0}, Stopping(gradient=1e-3), hx.search.RESULTS.gradient_small_uncertified),
        ({}, Stopping(gradient=0.0, patience=5, improvement=0.5), hx.search.RESULTS.no_progress),
    ],
    ids=("no certificate", "bound too loose", "no progress"),
)
def test_other_reasons_to_stop(options, stop, expected):
    tuned = hx.tune(bowl(**options), start(), search=GRADIENT_DESCENT, steps=400, stop=stop)
    assert bool(tuned.result == expected)
    assert len(tuned.history) < 400
    assert tuned.message


@pytest.mark.slow
def test_hyperparameters_without_effect_are_said_to_have_none():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 2)), rng.permutation(np.repeat([0, 1], 10))
    family = hx.families.Logistic(x, y, penalty=0.1)
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (x, y))
    with pytest.warns(hx.search.TuningWarning, match="a penalty that is a number is not tuned"):
        hx.tune(objective, {"penalty": hx.Positive(0.5)}, steps=5)


def test_what_a_run_found_is_short_to_print_and_its_columns_are_known():
    tuned = hx.tune(bowl(), start(), search=GRADIENT_DESCENT, steps=20, stop=Stopping(gradient=0.0))
    assert len(repr(tuned)) < 500
    with pytest.raises(ValueError, match=r"name must be one of .*value.*; got 'valeu'"):
        tuned.column("valeu")


def test_a_callback_sees_every_step_and_may_stop():
    seen: list[Step] = []

    def callback(step: Step) -> bool:
        seen.append(step)
        return step.step == 4

    tuned = hx.tune(bowl(), start(), search=GRADIENT_DESCENT, steps=50, callbacks=[callback])
    assert [step.step for step in seen] == [0, 1, 2, 3, 4]
    assert bool(tuned.result == hx.search.RESULTS.stopped_by_callback)
    assert seen[-1].row() == tuned.history[-1]


def test_a_diverged_run_keeps_what_it_found():
    with pytest.warns(hx.search.TuningWarning, match="non-finite"):
        tuned = hx.tune(bowl(fail_at=7), start(), search=GRADIENT_DESCENT, steps=50)
    assert bool(tuned.result == hx.search.RESULTS.diverged)
    assert len(tuned.history) == 8
    assert tuned.best_step == 6
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tuned.best))


def test_nothing_is_compiled_after_the_first_step():
    objective = bowl(bound=0.25)
    TRACES.clear()
    hx.tune(objective, start(), search=GRADIENT_DESCENT, steps=10, stop=Stopping(gradient=0.0))
    assert len(TRACES) == 1


def test_warned_once_of_each_failing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40).astype(float)
    family = hx.families.Logistic(x, y, penalty=lambda hyper: hyper["penalty"])
    optimum = hx.Optimum(family, solver=hx.implicit.Newton(tolerance=1e-12, max_steps=1))
    objective = hx.ImplicitObjective(optimum, family.mean_loss, (x, y), certifier=hx.implicit.NoCertifier())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # From a warm start one Newton step is nearly enough, so the penalty is thrown about to need more.
        tuned = hx.tune(objective, {"penalty": hx.Positive(0.01)}, search=Optax(optax.adam(3.0)), steps=6)
    messages = [str(w.message) for w in caught if issubclass(w.category, hx.search.TuningWarning)]
    assert len(messages) == 1
    assert "inner_gradient_norm" in messages[0]
    failed = [row for row in tuned.history if row["result"] == "inner_not_converged"]
    assert len(failed) >= 2
    assert tuned.history[tuned.best_step]["result"] == "successful" or tuned.best_value == np.inf


class Memory(AbstractRecord):
    def __init__(self):
        self.rows, self.state, self.interrupted = [], None, False

    def begin(self, template, problem=None):
        return None if self.state is None else (self.state, list(self.rows))

    def step(self, step, state):
        self.rows.append(step.row())
        self.state = state

    def interrupt(self):
        self.interrupted = True

    def finish(self, tuned):
        pass


def test_a_resumed_run_has_the_same_bits():
    search = Optax(optax.adam(0.1))
    whole = hx.tune(bowl(), start(), search=search, steps=30)
    record = Memory()
    hx.tune(bowl(), start(), search=search, steps=11, run=record)
    resumed = hx.tune(bowl(), start(), search=search, steps=30, run=record)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        assert np.array_equal(a, b)
    assert [row["value"] for row in whole.history] == [row["value"] for row in resumed.history]


def test_an_interrupted_run_is_saved_before_the_interrupt_goes_on():
    record = Memory()

    def interrupt(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hx.tune(bowl(), start(), search=GRADIENT_DESCENT, steps=9, run=record, callbacks=[interrupt])
    assert record.interrupted
    assert len(record.rows) == 4


@pytest.mark.parametrize("bad", [{"gradient": -1.0}, {"improvement": np.nan}, {"patience": 0}])
def test_bad_stopping_is_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        Stopping(**bad)


def test_bad_steps_and_hyperparameters_are_refused():
    with pytest.raises(ValueError, match="steps must be an integer >= 1; got 0"):
        hx.tune(bowl(), start(), steps=0)
    with pytest.raises(ValueError, match="finite"):
        hx.tune(bowl(), {"x": jnp.asarray([1.0, jnp.nan])}, steps=1)
    with pytest.raises(ValueError, match="without leaves"):
        hx.tune(bowl(), {}, steps=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps_of_a_run() -> list[Step]:
    seen: list[Step] = []
    hx.tune(bowl(bound=1e-3), start(), steps=4, callbacks=[seen.append], search=GRADIENT_DESCENT)
    return seen


def test_the_progress_line_holds_value_and_certificate():
    step = steps_of_a_run()[3]
    assert f"F={step.value:.6g}" in step_text(step)
    assert "±1.0e-03 certified" in step_text(step)


def test_the_bar_is_silent_off_a_terminal_and_in_its_first_seconds(monkeypatch):
    steps = steps_of_a_run()
    pipe, terminal = io.StringIO(), Terminal()
    clock = [0.0]
    monkeypatch.setattr("hyprax._progress.time.monotonic", lambda: clock[0])
    bars = [ProgressBar(4, stream=stream) for stream in (pipe, terminal)]
    for step in steps:
        for bar in bars:
            bar.show(step.step + 1, step_text(step))
    assert terminal.getvalue() == ""
    clock[0] = 3.0
    for bar in bars:
        bar.show(steps[-1].step + 1, step_text(steps[-1]))
        bar.close()
    assert pipe.getvalue() == ""
    assert "4/4" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_many_hyperparameters_that_followed_a_sample_into_its_noise_are_told():
    noise = hx.Noise({"x": jnp.full(50, 0.01)}, jnp.asarray(9.0), "validation examples")
    far = sample_words(50, noise, 1e-6)
    assert far.startswith(
        "50 hyperparameters were moved until the hypergradient (1e-06) was far below its noise (0.071;"
    )
    assert "hx.search.Gate" in far
    assert sample_words(50, noise, 0.05) == ""  # left alone where entries are noise
    assert sample_words(5, noise, 1e-6) == ""
    unknown = sample_words(50, hx.NoNoise("it was not asked for", "validation examples"), 1e-6)
    assert "its noise was not measured" in unknown
