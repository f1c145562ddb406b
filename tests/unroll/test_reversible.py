"""Exact reversal: it agrees with a Python loop, comes back bit for bit, and says so only where it did."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reversals import make, oracle

import hyprax as hx
from hyprax.unroll import Outer, ReversalCertificate, _draft, _exact_run, _reversal, _reversible
from trainings import relative_error

pytestmark = pytest.mark.optimised  # rounding and bits are those of the compiler that users have

OPTIMIZERS = ("paper", "polyak", "adam", "adamw")


def outer(problem):
    return Outer(problem.outer_loss, problem.outer_data)


def exact(report) -> bool:
    """Whether the certificate says that the run came back."""
    return isinstance(report.certificate, ReversalCertificate) and report.certificate.exact


def moved(report) -> float:
    """How far the certificate says that rounding has moved the value."""
    assert isinstance(report.certificate, ReversalCertificate)
    return float(report.certificate.moved)


def number(x: Any) -> float:
    """A statistic that this mode has."""
    return float(x)


def run(problem, mode=None):
    return (mode or hx.unroll.Reversible()).value_and_grad(problem.training, outer(problem), problem.hyper, problem.key)


traced = []


@functools.cache
def cached(name, model, dropout, steps=4):
    """A problem, and with it its compiled programs, that several tests may share; traces of its loss are counted."""
    problem = make(name, model, seed=OPTIMIZERS.index(name), dropout=dropout, steps=steps)
    true = problem.training.loss

    def loss(*arguments):
        traced.append(None)
        return true(*arguments)

    return dataclasses.replace(problem, training=eqx.tree_at(lambda t: t.loss, problem.training, loss))


@pytest.mark.parametrize(
    ("name", "model", "dropout", "driver"),
    [
        ("adamw", "mlp", True, "loop"),
        pytest.param("paper", "mlp", True, "loop", marks=pytest.mark.slow),
        pytest.param("adamw", "attention", True, "loop", marks=pytest.mark.slow),
        pytest.param("polyak", "attention", False, "loop", marks=pytest.mark.slow),
        pytest.param("adam", "mlp", False, "loop", marks=pytest.mark.slow),
        pytest.param("paper", "cnn", False, "auto", marks=pytest.mark.slow),
        pytest.param("adamw", "cnn", False, "auto", marks=pytest.mark.slow),
        pytest.param("polyak", "mlp", False, "host", marks=pytest.mark.slow),
        pytest.param("adamw", "mlp", True, "host", marks=pytest.mark.slow),
    ],
)
def test_hypergradients_agree_with_a_python_loop(name, model, dropout, driver):
    problem = cached(name, model, dropout)
    value, grads = oracle(problem, name)
    answer = hx.hypergradient(problem.objective(hx.unroll.Reversible(driver=driver)), problem.hyper)[0]
    assert abs(float(answer.value - value)) <= 1e-10 * abs(float(value))
    assert abs(float(answer.value - value)) <= 10 * moved(answer) + 1e-15
    assert relative_error(answer.grad, grads) <= 1e-7
    assert exact(answer)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), [("paper", "momentum"), ("adam", "beta2")])
def test_factors_near_one_are_not_taken_for_one(name, key):
    """They are factors as all others: no digit of 1 - γ is lost."""
    problem = make(name, fixed={key: jnp.asarray(0.99995, jnp.float64)})
    value, grads = oracle(problem, name)
    answer = hx.hypergradient(problem.objective(hx.unroll.Reversible()), problem.hyper)[0]
    assert abs(float(answer.value - value)) <= 1e-9 * abs(float(value))
    assert relative_error(answer.grad["optimizer"]["rate"], grads["optimizer"]["rate"]) <= 1e-6
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(answer.grad))
    assert exact(answer)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_thousand_steps_come_back(name, dtype):
    problem = make(name, steps=1200, dropout=True, dtype=dtype, seed=3)
    _, grads, report = run(problem)
    assert exact(report)
    assert number(report.stats.attempt) == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(dtype)}
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_both_drivers_and_both_places_for_buffers_give_one_answer():
    problem = make("paper", steps=400, seed=5)
    answers = [
        run(problem, mode)
        for mode in (hx.unroll.Reversible("loop"), hx.unroll.Reversible("loop", "host"), hx.unroll.Reversible("host"))
    ]
    for value, grads, report in answers:
        assert exact(report)
        assert number(report.stats.stored_bytes) > 0
        assert abs(float(value - answers[0][0])) <= 1e-6
        assert relative_error(grads, answers[0][1]) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", ["paper", "adamw"])
def test_the_users_dtypes_and_draws_are_left_alone(name, x64):
    """float32 weights with and without 64-bit types; draws of the default dtype differ between the two settings."""
    with jax.enable_x64(x64):
        problem = make(name, steps=30, dropout=True, dtype=jnp.float32, seed=1)
        dtypes = []

        def loss(params, hyper, batch, key):
            noise = jax.random.uniform(key, ())
            dtypes.append((noise.dtype, jnp.arange(2).dtype, params["in"]["w"].dtype))
            return problem.training.loss(params, hyper, batch, key) * noise.astype(jnp.float32)

        training = hx.Training(
            loss, problem.training.init, problem.training.optimizer, problem.training.batches, 30, keyed=True
        )
        value, grads, report = hx.unroll.Reversible().value_and_grad(
            training, outer(problem), problem.hyper, problem.key
        )
        assert exact(report)
        stored, stored_grads, _ = hx.unroll.StoreAll().value_and_grad(
            training, outer(problem), problem.hyper, problem.key
        )
        assert abs(float(value - stored)) <= 1e-4 * abs(float(stored))
        with jax.enable_x64(True):
            assert relative_error(grads, stored_grads) <= 1e-2
        wide = jnp.float64 if x64 else jnp.float32
        assert set(dtypes) == {(jnp.dtype(wide), jnp.dtype(jnp.int64 if x64 else jnp.int32), jnp.dtype(jnp.float32))}
        arrays = [leaf for leaf in jax.tree.leaves((value, grads, report)) if isinstance(leaf, jax.Array)]
        assert x64 or not any(leaf.dtype in (jnp.int64, jnp.float64, jnp.uint64) for leaf in arrays)
        assert {leaf.dtype for leaf in jax.tree.leaves((grads, report.params))} == {jnp.dtype(jnp.float32)}
        assert bool(jax.config.read("jax_enable_x64")) is x64


def nudge(x):
    """The next number up: one bit of the last place."""
    return jax.tree.map(lambda leaf: jnp.nextafter(leaf, jnp.full_like(leaf, jnp.inf)), x)


@pytest.mark.parametrize("honest", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sabotaged_pair_is_caught_and_made_good(monkeypatch, honest):
    """The gradient of the reverse sweep off by one last place: the start does not come back, the run is repeated."""
    true = _reversal.gradient_along

    def sabotaged(*args):
        grads, products = true(*args)
        return nudge(grads), products

    monkeypatch.setattr(_reversal, "gradient_along", sabotaged)
    value, grads, report = run(make("paper", steps=11, dtype=jnp.float32, seed=11))
    assert exact(report)
    assert number(report.stats.attempt) == 2
    if not honest:
        return
    monkeypatch.undo()
    again, expected, report = run(make("paper", steps=11, dtype=jnp.float32, seed=11))
    assert number(report.stats.attempt) == 1
    assert relative_error(grads, expected) <= 1e-3
    assert abs(float(value - again)) <= 1e-6


@pytest.mark.slow
def test_a_pair_that_failed_is_not_tried_again(monkeypatch):
    """The state of the objective remembers which pair came back: evaluations after it begin there, values too."""
    true, made = _reversal.gradient_along, []

    class Watched(_exact_run.ExactRun):
        def __init__(self, draft, pair, place):
            made.append(pair)
            super().__init__(draft, pair, place)

    monkeypatch.setattr(_reversal, "gradient_along", lambda *args: (nudge(true(*args)[0]), true(*args)[1]))
    monkeypatch.setattr(_reversible, "ExactRun", Watched)
    problem = make("paper", steps=12, dtype=jnp.float32, seed=12)
    objective = problem.objective(hx.unroll.Reversible("loop"))
    state = objective.init(problem.hyper)
    first, state = objective.value_and_grad(problem.hyper, state)
    assert made == ["loop", "isolated"]
    second, state = objective.value_and_grad(problem.hyper, state)
    alone, state = objective.value(problem.hyper, state)
    assert made == ["loop", *["isolated"] * 3]
    assert exact(first)
    assert exact(second)
    assert number(second.stats.attempt) == number(alone.stats.attempt) == 2
    assert float(first.value) == float(second.value) == float(alone.value)
    for a, b in zip(jax.tree.leaves(first.grad), jax.tree.leaves(second.grad), strict=True):
        assert np.array_equal(a, b)
    objective.value_and_grad(problem.hyper, objective.init(problem.hyper))
    assert made[4:] == ["loop", "isolated"], "a new state knows of nothing"


@pytest.mark.slow
def test_a_run_that_never_comes_back_is_named(monkeypatch):
    """Every reverse sweep sabotaged, the one with a shared gradient too."""
    true = _reversal._finish

    def sabotaged(setup, carry, words, t, gradients, product):
        return true(setup, carry, words, t, nudge(gradients), product)

    monkeypatch.setattr(_reversal, "_finish", sabotaged)
    problem = make("polyak", steps=13, dtype=jnp.float32, seed=13)
    objective = problem.objective(hx.unroll.Reversible())
    answer = hx.hypergradient(objective, problem.hyper, throw=False)[0]
    assert bool(answer.result == hx.unroll.RESULTS.not_reversible)
    assert not isinstance(answer.certificate, ReversalCertificate)
    assert number(answer.stats.attempt) == 3
    with pytest.raises(hx.HypergradientError, match=r"did not come back.*hx\.unroll\.Checkpointed"):
        hx.hypergradient(objective, problem.hyper)[0]


@pytest.mark.parametrize("name", ["paper", pytest.param("adam", marks=pytest.mark.slow)])
def test_overflow_is_named(name):
    """Fixed point wraps silently, and wrapped integers come back: only the watch can tell."""
    problem = cached(name, "mlp", name == "paper", 40)
    objective = problem.objective(hx.unroll.Reversible())
    faster = {"rate": jax.tree.map(lambda rate: 1e6 * rate, problem.hyper["optimizer"]["rate"])}
    hyper = problem.hyper | {"optimizer": problem.hyper["optimizer"] | faster}
    answer = hx.hypergradient(objective, hyper, throw=False)[0]
    assert bool(answer.result == hx.unroll.RESULTS.fixed_point_overflow)
    assert float(answer.stats.used_bits["used_bits_weights"]) > float(answer.stats.limit_bits["limit_bits_weights"])
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(answer.grad))
    assert not exact(answer)
    alone, _ = objective.value(hyper, objective.init(hyper))
    assert bool(alone.result == hx.unroll.RESULTS.fixed_point_overflow)


@pytest.mark.parametrize("bad", [jnp.nan, pytest.param(jnp.inf, marks=pytest.mark.slow)])
def test_numbers_that_are_not_finite_are_named(bad):
    """One gradient of one step, which later steps would hide."""
    problem = make("paper", steps=9)
    true = problem.training.batches

    def batches(t):
        x, y, index = true(t)
        return jnp.where(t == 4, jnp.asarray(bad, x.dtype), x), y, index

    training = hx.Training(
        lambda p, h, b: jnp.sum(p["in"]["w"] ** 2) + jnp.sum(p["out"]["w"]) * jnp.sum(b[0]) * 1e-3,
        problem.training.init,
        problem.training.optimizer,
        batches,
        9,
    )
    _, grads, report = hx.unroll.Reversible().value_and_grad(training, outer(problem), problem.hyper, problem.key)
    assert bool(report.result != hx.unroll.RESULTS.successful)
    assert not isinstance(report.certificate, ReversalCertificate)
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_memory_is_what_theory_says():
    """At a constant momentum: stored words, and the bits a parameter and step, against T log2(1/γ)."""
    steps = 3000
    problem = make("paper", steps=steps, fixed={"momentum": jnp.asarray(0.8)}, dtype=jnp.float32)
    _, _, report = run(problem)
    theory = np.log2(1 / 0.8)
    weights = sum(leaf.size for leaf in jax.tree.leaves(report.params))
    assert isinstance(report.certificate, ReversalCertificate)
    assert report.certificate.theory == pytest.approx(theory, rel=1e-6)
    assert theory - 8 / steps <= report.certificate.bits <= theory * (1 + 1e-6)
    bits = number(report.stats.stored_bytes) * 8 / weights / steps
    assert bits == pytest.approx(report.certificate.bits)


@pytest.mark.slow
def test_a_momentum_above_one_stores_nothing():
    problem = make("polyak", steps=60, fixed={"momentum": jnp.asarray(1.01), "rate": jnp.asarray(1e-3)})
    value, grads, report = run(problem)
    assert exact(report)
    assert number(report.stats.stored_bytes) == 0
    expected, expected_grads, _ = run(problem, hx.unroll.StoreAll())
    assert abs(float(value - expected)) <= 1e-5 * abs(float(expected))
    assert relative_error(grads["optimizer"]["rate"], expected_grads["optimizer"]["rate"]) <= 1e-4


@pytest.mark.slow
def test_the_value_alone_is_that_of_the_run_undone():
    problem = make("adamw", steps=25, seed=2)
    value, _, report = run(problem)
    alone, forward = hx.unroll.Reversible().value(problem.training, outer(problem), problem.hyper, problem.key)
    assert float(alone) == float(value)
    for a, b in zip(jax.tree.leaves(forward.params), jax.tree.leaves(report.params), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.slow
def test_metrics_are_those_of_the_other_modes():
    problem = make("paper", steps=10)
    training = hx.Training(
        problem.training.loss,
        problem.training.init,
        problem.training.optimizer,
        problem.training.batches,
        10,
        metrics=lambda params, hyper, batch: {"norm": jnp.sum(params["in"]["w"] ** 2)},
        every=3,
    )
    found = [
        mode.value_and_grad(training, outer(problem), problem.hyper, problem.key)[2].metrics["norm"]
        for mode in (hx.unroll.Reversible(), hx.unroll.StoreAll())
    ]
    assert found[0].shape == found[1].shape == (4,)
    assert np.allclose(*found, rtol=1e-5)


def test_nothing_is_compiled_again():
    """Traces of the loss: none at other hyperparameters, nor for segments of another length."""
    problem = cached("paper", "mlp", True, 40)
    run(problem)
    count = len(traced)
    moved = problem.hyper | {"scale": problem.hyper["scale"] * 1.1}
    hx.unroll.Reversible().value_and_grad(problem.training, outer(problem), moved, problem.key)
    assert len(traced) == count


@pytest.mark.parametrize(
    ("name", "fixed", "message"),
    [
        ("paper", {"momentum": 0.0}, r"momentum must be between .*; got 0\. .*hx\.unroll\.Checkpointed"),
        ("polyak", {"momentum": -0.5}, "got -0.5"),
        ("paper", {"momentum": 1e-6}, "got 1e-06"),
        ("adam", {"momentum": 0.0}, "beta1 must be .*; got 0"),
        ("adam", {"beta2": 1.0}, "beta2 must be below 1; got 1"),
        ("adamw", {"weight_decay": 60.0}, "learning_rate times weight_decay"),
        ("nesterov", {}, "no explicit inverse"),
    ],
)
def test_what_cannot_be_undone_is_refused(name, fixed, message):
    problem = make(name, fixed={key: jnp.asarray(value) for key, value in fixed.items()})
    with pytest.raises(ValueError, match=message):
        run(problem)


def test_optimizers_of_optax_are_refused():
    problem = make("paper")
    training = hx.Training(
        problem.training.loss,
        problem.training.init,
        lambda hyper: hx.unroll.OptaxOptimizer(optax.sgd(0.1)),
        problem.training.batches,
        3,
    )
    with pytest.raises(ValueError, match="must be one that can be undone"):
        hx.unroll.Reversible().value_and_grad(training, outer(problem), problem.hyper, problem.key)


def test_bad_settings_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"driver must be .* got 'scan'"):
        hx.unroll.Reversible(driver="scan")  # pyright: ignore[reportArgumentType]  # to be refused
    with pytest.raises(ValueError, match=r"buffers must be .* got 'disk'"):
        hx.unroll.Reversible(buffers="disk")  # pyright: ignore[reportArgumentType]  # to be refused
    with pytest.raises(ValueError, match=r"form must be .* got 'heavy'"):
        hx.unroll.MomentumSGD(0.1, 0.9, form="heavy")  # pyright: ignore[reportArgumentType]  # to be refused
    with pytest.raises(ValueError, match="fraction_bits must be between 16 and 58"):
        hx.unroll.Adam(0.1, fraction_bits=70)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "adamw"])
def test_ten_thousand_steps_come_back(name):
    problem = make(name, steps=10_000, dropout=True, dtype=jnp.float32, seed=7)
    _, _, report = run(problem)
    assert exact(report)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_any_number_of_threads(threads):
    """In processes of their own: the number of threads is fixed when XLA starts."""
    here = Path(__file__).parent
    cores = set(sorted(os.sched_getaffinity(0))[:threads])
    code = (
        f"import os; os.sched_setaffinity(0, {cores})\n"
        "import jax, jax.numpy as jnp\n"
        "from test_reversible import exact, make, run\n"
        "for name, model in (('paper', 'mlp'), ('adamw', 'mlp'), ('paper', 'cnn'), ('adam', 'attention')):\n"
        "    report = run(make(name, model, steps=300, dropout=True, dtype=jnp.float32))[2]\n"
        "    assert exact(report), (name, model)\n"
    )
    flags = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    paths = [here, here.parent, Path(hx.__file__).parents[1]]
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "NPROC": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_bits_of_a_run_are_averaged_over_groups():
    """Two groups with different β: each leaf keeps what its own factors need."""
    problem = make("adam", steps=500, fixed={"momentum": jnp.asarray(0.9), "beta2": jnp.asarray(0.5)})
    planned = _draft.draft(_reversal.Program(problem.training, problem.hyper, problem.key))
    kept, theory = _draft.kept_bits(planned)
    assert theory == pytest.approx(np.log2(1 / 0.9) + 1, rel=1e-6)
    assert theory - 16 / 500 <= kept <= theory
