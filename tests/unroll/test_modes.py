"""Every mode and driver against `jax.grad` through a Python loop, and against finite differences."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from trainings import MODELS, make_problem, oracle, relative_error, written_out

MODES = {
    "store_all": hx.unroll.StoreAll("loop"),
    "store_all_host": hx.unroll.StoreAll("host"),
    "sqrt": hx.unroll.Checkpointed(driver="loop"),
    "binomial": hx.unroll.Checkpointed(states=3, driver="loop"),
    "two_states": hx.unroll.Checkpointed(states=2, driver="loop"),
    "sqrt_host": hx.unroll.Checkpointed(driver="host"),
    "forward": hx.unroll.ForwardMode("loop"),
    "forward_host": hx.unroll.ForwardMode("host"),
    "all_of_them": hx.unroll.Truncated(1000, driver="loop"),
}
QUICK = ("store_all", "binomial", "sqrt_host", "forward", "all_of_them")
CASES = [
    ("mlp", "adam", True),
    pytest.param("cnn", "sgd", False, marks=pytest.mark.slow),
    pytest.param("attention", "nesterov", True, marks=pytest.mark.slow),
    pytest.param("attention", "adamw", False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "optimizer", "dropout"), CASES)
def test_every_mode_agrees_with_a_python_loop(model, optimizer, dropout):
    problem = make_problem(model, optimizer, seed=len(model) + len(optimizer), dropout=dropout)
    value, grads = oracle(problem, optimizer)
    modes = {name: MODES[name] for name in (QUICK if (model, optimizer) == ("mlp", "adam") else ("sqrt",))}
    for name, mode in modes.items():
        answer = hx.hypergradient(problem.objective(mode), problem.hyper)[0]
        assert relative_error(answer.grad, grads) <= 1e-10, name
        assert abs(float(answer.value - value)) <= 1e-12 * (1 + abs(float(value))), name
        assert answer.certificate.kind == "none"


@pytest.mark.slow
def test_the_other_drivers_and_plans_agree_with_a_python_loop():
    problem = make_problem("mlp", "adam", seed=7, dropout=True)
    grads = oracle(problem, "adam")[1]
    for name in MODES.keys() - QUICK:
        answer = hx.hypergradient(problem.objective(MODES[name]), problem.hyper)[0]
        assert relative_error(answer.grad, grads) <= 1e-10, name


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_derivatives_agree_with_differences(model):
    """Along random directions of all hyperparameters at once: central differences of the value alone."""
    problem = make_problem(model, "adamw", seed=3, steps=7, dropout=True)
    objective = problem.objective(hx.unroll.Checkpointed())
    answer = hx.hypergradient(objective, problem.hyper)[0]
    state = objective.init(problem.hyper)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = jax.tree.map(lambda x: jnp.asarray(0.01 * rng.normal(size=x.shape)), problem.hyper)
        ends = [
            objective.value(jax.tree.map(lambda x, v, s=s: x + s * v, problem.hyper, direction), state)[0].value
            for s in (-1e-3, 1e-3)
        ]
        slope = sum(
            jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(answer.grad), jax.tree.leaves(direction), strict=True)
        )
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-3, rtol=1e-4, atol=1e-9)


def test_constrained_leaves_are_chained():
    """dF/du = dF/dx dx/du for every kind of leaf; the run is the same program."""
    training = hx.Training(
        lambda params, hyper, batch: jnp.sum(hyper["penalty"] * params**2) - jnp.sum(params),
        lambda hyper, key: jnp.ones(3),
        lambda hyper: hx.unroll.MomentumSGD(hx.unroll.Schedule(hyper["lr"]), hyper["momentum"]),
        lambda t: None,
        4,
    )
    plain = {"lr": jnp.full(4, 0.1), "momentum": jnp.asarray(0.8), "penalty": jnp.asarray([0.1, 0.2, 0.3])}
    hyper = {**plain, "lr": hx.Positive(plain["lr"]), "momentum": hx.Interval(plain["momentum"], 0, 1)}
    objective = hx.UnrolledObjective(
        training, lambda params, hyper, data: jnp.sum(params**2), key=jax.random.key(0), mode=hx.unroll.StoreAll()
    )
    natural, raw = (hx.hypergradient(objective, h)[0].grad for h in (plain, hyper))
    np.testing.assert_allclose(raw["lr"].raw, natural["lr"] * plain["lr"], rtol=1e-10)
    np.testing.assert_allclose(raw["momentum"].raw, natural["momentum"] * 0.8 * 0.2, rtol=1e-10)
    np.testing.assert_allclose(raw["penalty"], natural["penalty"], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_truncation_keeps_the_last_steps_alone(seed):
    """h_K is the gradient of the last K steps from a constant start, and its bias is measured."""
    problem = make_problem("mlp", "adamw", seed=seed, steps=8, dropout=True)
    training = problem.training
    init_key, step_key = jax.random.split(problem.key)

    def train(hyper, params, moments, steps):
        for t in steps:
            grads = jax.grad(training.loss)(params, hyper, training.batches(t), jax.random.fold_in(step_key, t))
            params, moments = written_out("adamw", hyper, grads, moments, params, t)
        return params, moments

    start = training.init(problem.hyper, init_key)
    zeros = jax.tree.map(jnp.zeros_like, start)
    middle = train(problem.hyper, start, (zeros, zeros), range(5))

    def tail(hyper):
        return problem.outer_loss(train(hyper, *middle, range(5, 8))[0], hyper, problem.outer_data)

    expected = jax.jit(jax.grad(tail))(problem.hyper)
    answer = hx.hypergradient(problem.objective(hx.unroll.Truncated(3, bias=True)), problem.hyper)[0]
    assert relative_error(answer.grad, expected) <= 1e-9
    exact = oracle(problem, "adamw")[1]
    gap, whole, cut = (
        jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (jax.tree.map(jnp.subtract, expected, exact), exact, expected)
    )
    assert answer.certificate.kind == "estimated"
    np.testing.assert_allclose(answer.certificate.bound, jnp.linalg.norm(gap), rtol=1e-8)
    np.testing.assert_allclose(answer.stats.norm_ratio, jnp.linalg.norm(cut) / jnp.linalg.norm(whole), rtol=1e-8)
    np.testing.assert_allclose(
        answer.stats.cosine, cut @ whole / jnp.linalg.norm(cut) / jnp.linalg.norm(whole), rtol=1e-8
    )
    plain = hx.hypergradient(problem.objective(hx.unroll.Truncated(3)), problem.hyper)[0]
    assert plain.certificate.kind == "none"
    assert relative_error(plain.grad, answer.grad) == 0


@pytest.mark.slow
def test_one_step_and_one_state():
    """T = 1, where loops, schedules and segments are shortest."""
    problem = make_problem("mlp", "nesterov", seed=1, steps=1)
    grads = oracle(problem, "nesterov")[1]
    for name in ("sqrt", "forward"):
        answer = hx.hypergradient(problem.objective(MODES[name]), problem.hyper)[0]
        assert relative_error(answer.grad, grads) <= 1e-10, name


def test_a_diverged_run_says_so():
    problem = make_problem("mlp", "sgd", seed=0, steps=5)
    hyper = {**problem.hyper, "scale": jnp.asarray(1e200)}
    answer = hx.hypergradient(problem.objective(hx.unroll.Checkpointed()), hyper, throw=False)[0]
    assert bool(answer.result == hx.unroll.RESULTS.training_loss_not_finite)
    with pytest.raises(hx.HypergradientError, match=r"at step `failed_step`.*failed_step = 0"):
        hx.hypergradient(problem.objective(hx.unroll.Checkpointed()), hyper)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hx.unroll.StoreAll(cast(Any, "scan")), "driver must be"),
        (lambda: hx.unroll.Checkpointed(states=1), "states must be .* got 1"),
        (lambda: hx.unroll.Checkpointed(states=3, memory=10), "got both"),
        (lambda: hx.unroll.Truncated(0), "steps must be .* got 0"),
        (lambda: hx.unroll.ChaosGauge(0.0), "limit must be .* got 0.0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_memory_too_small_for_two_states_is_refused():
    problem = make_problem("mlp", "sgd", seed=0)
    with pytest.raises(ValueError, match=r"memory must be at least .* got 10"):
        hx.hypergradient(problem.objective(hx.unroll.Checkpointed(memory=10)), problem.hyper)[0]
