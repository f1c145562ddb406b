"""Stochastic single-loop directions: unbiased, and in the limit the hypergradient of a dense float64 reference."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
import oracles
from hyprax._noise import NoNoise
from hyprax.implicit._single_loop._base import SingleLoopState, spread_of
from hyprax.implicit._single_loop._blocks import Blocks
from hyprax.search import Optax, Stopping
from problems import Problem, random_problem, select_penalty
from thoroughness import slow

KEY = jax.random.key(7)
KINDS = [("logistic", 1), ("softmax", 3), ("squared", 0)]


def softplus_loss(w, data):
    x, y = data
    u = x @ w
    return jnp.mean(jax.nn.softplus(u) - y * u)


def inner_loss(w, hyper, data):
    return softplus_loss(w, data) + 0.5 * jnp.sum(hyper["penalty"] * jnp.square(w))


def outer_loss(w, hyper, data):
    return softplus_loss(w, data)


def family_of(problem: Problem) -> Any:
    """Its inner loss, a family."""
    return problem.objective.optimum.loss


def as_functions(problem: Problem) -> tuple[hx.Optimum, Any, Any]:
    """A logistic problem without its structure."""
    family = family_of(problem)
    optimum = hx.Optimum(inner_loss, family.start(), data=(family.inputs, family.targets))
    return optimum, outer_loss, problem.objective.outer_data


def as_family(problem: Problem) -> tuple[hx.Optimum, Any, Any]:
    return problem.objective.optimum, problem.objective.outer_loss, problem.objective.outer_data


def forms(problem: Problem) -> list[tuple[Any, dict[str, Any]]]:
    return [(as_family, {})] + ([(as_functions, {"rate": 0.1})] if problem.kind == "logistic" else [])


def full_directions(problem: Problem, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """D_w, D_v and D_λ over all data, by the dense reference's formulas; D_λ with respect to log-strengths."""
    family, (xv, yv) = family_of(problem), problem.objective.outer_data
    x, y, xv, yv = (np.asarray(a) for a in (family.inputs, family.targets, xv, yv))
    strengths = np.asarray(family.strengths(problem.hyper)).reshape(len(w), -1)
    w2, v2 = w.reshape(len(w), -1), v.reshape(len(v), -1)
    full = np.broadcast_to(strengths, w2.shape)
    d_w = oracles.gradient(problem.kind, x, y, w2) + strengths * w2
    d_v = (oracles.hessian(problem.kind, x, y, w2, full) @ v2.ravel()).reshape(v2.shape)
    d_v = d_v - oracles.gradient(problem.kind, xv, yv, w2)
    shape = problem.hyper["penalty"].raw.shape
    wide = shape if problem.kind == "softmax" or shape == () else (*shape, 1)
    d_hyper = oracles.sum_to(-strengths * w2 * v2, wide).reshape(shape)
    return d_w.reshape(w.shape), d_v.reshape(v.shape), d_hyper


SIZES = [(11, 4, 5), slow(12, 4, 6), *(slow(*sizes) for sizes in ((7, 3, 2), (3, 1, 1), (9, 9, 4)))]
"""Examples, and batch sizes of the inner and the outer loss: dividing them, not dividing them, one, all."""


@pytest.mark.parametrize(("n", "batch", "outer_batch"), SIZES)
@pytest.mark.parametrize(("kind", "shape_index"), KINDS)
def test_directions_are_unbiased_whatever_the_batch_size(kind, shape_index, n, batch, outer_batch):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, kind, shape_index, n=n, d=4, smallest=0.01)
        for form, options in forms(problem)[: 2 if seed == 0 else 1]:
            outer_batch = min(outer_batch, n // 2)
            objective = hx.implicit.SOBA(
                *form(problem),
                **{**options, "rate": 0.1},
                adjoint_rate=0.2,
                batch_size=batch,
                outer_batch_size=outer_batch,
                key=jax.random.key(1),
            )
            w, v = (rng.normal(size=objective.optimum.params0.shape) for _ in range(2))
            # Every inner and every outer block equally often, in whole epochs.
            steps = jnp.arange(math.lcm(objective.inner.blocks.count, objective.outer.blocks.count), dtype=jnp.int32)
            found = _directions(objective, problem.hyper, jnp.asarray(w), jnp.asarray(v), steps)
            for drawn, exact in zip(found, full_directions(problem, w, v), strict=True):
                assert drawn.shape[0] == len(steps)
                np.testing.assert_allclose(np.mean(drawn, axis=0), exact, rtol=1e-9, atol=1e-9)


@eqx.filter_jit
def _directions(objective, hyper, w, v, steps):
    """D_w, D_v, D_λ of each step at the same point, the first two read off what the step did."""

    def at(step):
        answer, new = objective.value_and_grad(hyper, SingleLoopState(w, v, step))
        return (w - new.params) / 0.1, (v - new.adjoint) / 0.2, answer.grad["penalty"].raw

    return jax.vmap(at)(steps)


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (2, 1), (12, 4), (13, 4), (101, 7), (300, 299), (300, 300)])
def test_blocks_are_a_partition_and_every_epoch_visits_each_once(size, batch):
    blocks = Blocks("test", size, batch, jax.random.key(size))
    every = jnp.arange(blocks.count, dtype=jnp.int32)
    rows = np.asarray(jax.vmap(blocks.rows)(every))
    weights = np.asarray(jax.vmap(lambda k: blocks.weights(k, jnp.float64))(every))
    assert sorted(rows[weights > 0]) == list(range(size))
    assert (weights > 0).sum(axis=1).max() <= batch
    np.testing.assert_allclose(weights[weights > 0], blocks.count / size)
    orders = [np.asarray(jax.vmap(blocks.draw)(every + e * blocks.count)) for e in (0, 3)]
    for order in orders:
        assert sorted(order) == list(range(blocks.count))
    assert blocks.count < 10 or list(orders[0]) != list(orders[1])


@pytest.mark.parametrize("seed", [0, slow(1)])
@pytest.mark.parametrize(("kind", "shape_index"), [KINDS[0], *(slow(*kind) for kind in KINDS[1:])])
@pytest.mark.slow
def test_saba_at_fixed_hyperparameters_ends_at_the_exact_hypergradient(kind, shape_index, seed):
    problem = random_problem(np.random.default_rng(seed), kind, shape_index, n=40, smallest=0.3)
    for form, options in forms(problem):
        objective = hx.implicit.SABA(*form(problem), **options, batch_size=7, steps=500, key=jax.random.key(seed))
        state = objective.init(problem.hyper)
        for _ in range(40):
            answer, state = objective.value_and_grad(problem.hyper, state)
            if float(answer.stats.inner_direction_norm) < 1e-14:
                break
        # The answer is a mean over the steps of the call, and the last call has converged.
        answer, state = objective.value_and_grad(problem.hyper, state)
        assert problem.error(answer) <= 1e-8 * (1 + np.linalg.norm(problem.grad))
        np.testing.assert_allclose(float(answer.value), float(problem.truth.value), rtol=1e-9)
        residuals = objective.residuals(problem.hyper, state)
        assert max(map(float, residuals.values())) < 1e-8
        assert answer.certificate.kind == "none"
        assert np.isinf(answer.certificate.bound)


def tuned_gradient(problem: Problem, hyper) -> float:
    """‖dF/d log λ‖ of the dense reference, at other strengths than the problem's own."""
    family, (xv, yv) = family_of(problem), problem.objective.outer_data
    strengths = np.asarray(family.strengths(hyper)).reshape(family.shape[0], -1)
    x, y, xv, yv = (np.asarray(a) for a in (family.inputs, family.targets, xv, yv))
    truth = oracles.reference(problem.kind, x, y, xv, yv, strengths)
    shape = hyper["penalty"].raw.shape
    return float(np.linalg.norm(oracles.sum_to(truth.per_weight, (*shape, 1) if shape else ()).astype(float)))


@eqx.filter_jit
def descended(objective: hx.core.AbstractObjective, hyper, rate: "Falling", calls: int):
    """Hyperparameters after so many steps of gradient descent, `rate` a function of the step."""

    def step(carry, number):
        hyper, state = carry
        answer, state = objective.value_and_grad(hyper, state)
        return (jax.tree.map(lambda a, b: a - rate(number) * b, hyper, answer.grad), state), None

    (hyper, _), _ = jax.lax.scan(step, (hyper, objective.init(hyper)), jnp.arange(calls))
    return hyper


REGULAR = (2, 3, 4)
"""Seeds for which the best strength of `regular_problem` is neither 0 nor infinite."""


def regular_problem(seed: int) -> Problem:
    """A logistic problem with one strength: few examples of a noisy linear rule."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=5)
    x, xv = rng.normal(size=(20, 5)), rng.normal(size=(400, 5))
    y, yv = ((a @ w + 4 * rng.normal(size=len(a)) > 0).astype(float) for a in (x, xv))
    family = hx.families.Logistic(x, y, penalty=select_penalty)
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (jnp.asarray(xv), jnp.asarray(yv)))
    hyper = {"penalty": hx.Positive(0.3)}
    truth = oracles.reference("logistic", x, y, xv, yv, np.full((5, 1), 0.3))
    return Problem("logistic", objective, hyper, truth)


@pytest.mark.parametrize("seed", [REGULAR[0], *map(slow, REGULAR[1:])])
def test_saba_finds_the_optimum_with_constant_steps(seed):
    problem = regular_problem(seed)
    objective = hx.implicit.SABA(*as_family(problem), batch_size=10, outer_batch_size=40, key=jax.random.key(seed))
    found = descended(objective, problem.hyper, Falling(jnp.asarray(0.0)), 20_000)
    assert tuned_gradient(problem, found) < 1e-6 * tuned_gradient(problem, problem.hyper)


class Falling(eqx.Module):
    """0.3 (1 + t/100)^-power; a module, so that other powers compile nothing anew."""

    power: jax.Array

    def __call__(self, step):
        return 0.3 * (1 + step.astype(float) / 100.0) ** -self.power


@pytest.mark.slow
def test_soba_settles_with_decreasing_steps_and_hovers_with_constant_ones():
    ends = {0.0: [], 0.6: []}
    for seed in REGULAR:
        problem = regular_problem(seed)
        first = tuned_gradient(problem, problem.hyper)
        for power, found in ends.items():
            rate = Falling(jnp.asarray(power))
            objective = hx.implicit.SOBA(*as_family(problem), batch_size=5, rate=rate, key=jax.random.key(seed))
            found.append(tuned_gradient(problem, descended(objective, problem.hyper, rate, 20_000)) / first)
    assert np.mean(ends[0.6]) < 0.3 * np.mean(ends[0.0])
    assert np.mean(ends[0.6]) < 0.02


@pytest.mark.parametrize("seed", [0, slow(1)])
@pytest.mark.slow
def test_amigo_with_many_steps_on_all_data_is_the_hypergradient(seed):
    problem = random_problem(np.random.default_rng(seed), "logistic", 1, n=30, smallest=0.3)
    for form, options in forms(problem):
        n, m = 30, 15
        objective = hx.implicit.AmIGO(
            *form(problem), **options, batch_size=n, outer_batch_size=m, inner_steps=2000, adjoint_steps=2000, key=KEY
        )
        answer, _ = objective.value_and_grad(problem.hyper, objective.init(problem.hyper))
        assert problem.error(answer) <= 1e-6 * (1 + np.linalg.norm(problem.grad))


@pytest.mark.slow
def test_amigo_comes_nearer_with_more_steps():
    problem = random_problem(np.random.default_rng(1), "logistic", 1, n=30, smallest=0.3)
    errors = []
    for count in (1, 20, 400):
        objective = hx.implicit.AmIGO(
            *as_family(problem), batch_size=30, outer_batch_size=15, inner_steps=count, adjoint_steps=count, key=KEY
        )
        answer, _ = objective.value_and_grad(problem.hyper, objective.init(problem.hyper))
        errors.append(problem.error(answer))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.slow
def test_the_spread_of_draws_that_resemble_their_neighbours_is_that_of_their_mean():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(300, 128))
    for t in range(1, 128):
        draws[:, t] += 0.5 * draws[:, t - 1]
    noises = [spread_of({"a": jnp.asarray(row)}, 128) for row in draws]
    noises = [noise for noise in noises if isinstance(noise, hx.Noise)]
    assert len(noises) == 300
    squares = [float(noise.standard_errors["a"]) ** 2 for noise in noises]
    truth = draws.mean(1).var()
    assert 0.8 * truth < np.mean(squares) < 1.2 * truth
    assert np.mean(draws.var(1) / 128) < 0.5 * truth  # as if they were independent
    assert float(noises[0].degrees_of_freedom) == 3
    assert isinstance(spread_of({"a": jnp.zeros(7)}, 7), NoNoise)


def test_a_call_of_many_steps_says_how_far_its_draws_scatter():
    problem = random_problem(np.random.default_rng(3), "squared", 0)
    optimum, loss, data = as_family(problem)
    for steps, known in ((1, False), (8, True)):
        objective = hx.implicit.SOBA(optimum, loss, data, batch_size=2, steps=steps, key=KEY)
        answer, _ = hx.hypergradient(objective, problem.hyper)
        assert ("rows drawn in 8 steps" in answer.noise.over) is known
        assert bool(jnp.isfinite(answer.noise.norm)) is known


def test_a_better_certificate_is_asked_of_the_full_batch():
    problem = random_problem(np.random.default_rng(5), "logistic", 1, n=40, smallest=0.3)
    objective = hx.implicit.SABA(*as_family(problem), batch_size=8, steps=300, key=KEY)
    _, state = objective.value_and_grad(problem.hyper, objective.init(problem.hyper))
    answer = hx.hypergradient(objective.full_batch(), problem.hyper, objective.warm_start(state))[0]
    assert answer.certificate.kind == "certified"
    assert problem.error(answer) <= float(answer.certificate.bound)
    value, same = objective.value(problem.hyper, state)
    xv, yv = (np.asarray(a) for a in problem.objective.outer_data)
    exact = oracles.mean_loss("logistic", xv @ np.asarray(state.params)[:, None], yv)
    np.testing.assert_allclose(float(value.value), float(exact), rtol=1e-12)
    assert value.certificate.kind == "none"
    assert eqx.tree_equal(same, state)


METHODS = [
    (hx.implicit.SOBA, {"steps": 2}),
    slow(hx.implicit.SABA, {"steps": 2}),
    (hx.implicit.SABA, {"donate": True}),
    slow(hx.implicit.AmIGO, {"inner_steps": 2, "adjoint_steps": 3}),
]


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_run_in_two_parts_gives_the_same_bits(tmp_path, method, options):
    problem = random_problem(np.random.default_rng(2), "softmax", 2, n=30, smallest=0.1)
    objective = method(*as_family(problem), batch_size=4, **options, key=KEY)
    settings = {"search": Optax(optax.adam(0.05)), "stop": Stopping(patience=None), "progress": False}
    whole = hx.tune(objective, problem.hyper, steps=20, **settings)
    hx.tune(objective, problem.hyper, steps=9, run=hx.Run(tmp_path / "run"), **settings)
    resumed = hx.tune(objective, problem.hyper, steps=20, run=hx.Run(tmp_path / "run"), **settings)
    assert eqx.tree_equal(whole.state, resumed.state)
    assert list(whole.column("value")) == list(resumed.column("value"))


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_nothing_is_traced_again(method, options):
    problem = random_problem(np.random.default_rng(2), "logistic", 1, n=30, smallest=0.1)
    optimum, outer, data = as_functions(problem)
    traces = []

    def counted(w, hyper, batch):
        traces.append(1)
        return inner_loss(w, hyper, batch)

    optimum = hx.Optimum(counted, optimum.params0, data=(family_of(problem).inputs, family_of(problem).targets))
    objective = method(optimum, outer, data, batch_size=7, rate=lambda t: 0.1 / (1 + t), **options, key=KEY)
    state = objective.init(problem.hyper)
    hyper = problem.hyper
    answer, state = objective.value_and_grad(hyper, state)
    before = len(traces)
    for _ in range(9):
        hyper = jax.tree.map(lambda a, b: a - 0.1 * b, hyper, answer.grad)
        answer, state = objective.value_and_grad(hyper, state)
    assert len(traces) == before
    assert int(state.step) == 10 * options.get("steps", 1)


@pytest.mark.parametrize("method", [hx.implicit.SOBA, slow(hx.implicit.SABA)])
def test_many_steps_in_one_call_see_the_batches_of_as_many_calls(method):
    problem = random_problem(np.random.default_rng(3), "logistic", 1, n=23, smallest=0.3)
    thrice, singly = (method(*as_family(problem), batch_size=5, steps=n, key=KEY) for n in (3, 1))
    ends = []
    for objective, calls in ((thrice, 2), (singly, 6)):
        state = objective.init(problem.hyper)
        for _ in range(calls):
            _, state = objective.value_and_grad(problem.hyper, state)
        ends.append(state)
    assert [int(end.step) for end in ends] == [6, 6]
    np.testing.assert_allclose(ends[0].params, ends[1].params, rtol=1e-12)
    np.testing.assert_allclose(ends[0].adjoint, ends[1].adjoint, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.optimised
def test_donation_uses_up_the_state_and_changes_nothing_else():
    problem = random_problem(np.random.default_rng(2), "softmax", 2, n=30, smallest=0.1)
    plain, donating = (hx.implicit.SABA(*as_family(problem), batch_size=4, donate=d, key=KEY) for d in (False, True))
    first = donating.init(problem.hyper)
    state, other = plain.init(problem.hyper), first
    for _ in range(5):
        answer, state = plain.value_and_grad(problem.hyper, state)
        same, other = donating.value_and_grad(problem.hyper, other)
        assert eqx.tree_equal(answer.grad, same.grad)
    assert eqx.tree_equal(state, other)
    assert first.memory[0].codes.slope.is_deleted()
    assert not donating.optimum.params0.is_deleted()


def test_the_memory_of_saba_is_as_stated():
    problem = random_problem(np.random.default_rng(2), "logistic", 1, n=40, d=5, smallest=0.1)
    d, hyper_size, inner, outer = 5, 5, 8, 4  # 40 examples in blocks of 5, 20 in blocks of 5

    def codes(objective):
        memory = objective.init(problem.hyper).memory
        return [sum(leaf.size for leaf in jax.tree.leaves(part.codes)) for part in memory]

    assert codes(hx.implicit.SABA(*as_family(problem), batch_size=5, key=KEY)) == [2 * 40, 20 + outer]
    generic = hx.implicit.SABA(*as_functions(problem), rate=0.1, batch_size=5, key=KEY)
    assert codes(generic) == [inner * (2 * d + hyper_size), outer * (d + hyper_size + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("method", [hx.implicit.SOBA, slow(hx.implicit.SABA), slow(hx.implicit.AmIGO)])
def test_inside_a_compiled_loop_and_over_many_starts(method):
    problem = random_problem(np.random.default_rng(4), "logistic", 1, n=30, smallest=0.1)
    objective = method(*as_family(problem), batch_size=7, key=KEY)

    @jax.jit
    def looped(hyper):
        def step(carry, _):
            hyper, state = carry
            answer, state = objective.value_and_grad(hyper, state)
            return (jax.tree.map(lambda a, b: a - 0.5 * b, hyper, answer.grad), state), answer.value

        return jax.lax.scan(step, (hyper, objective.init(hyper)), length=10)

    (hyper, _), values = looped(problem.hyper)
    plain, plain_state = problem.hyper, objective.init(problem.hyper)
    for i in range(10):
        answer, plain_state = objective.value_and_grad(plain, plain_state)
        np.testing.assert_allclose(values[i], answer.value, rtol=1e-10)
        plain = jax.tree.map(lambda a, b: a - 0.5 * b, plain, answer.grad)
    np.testing.assert_allclose(hyper["penalty"].raw, plain["penalty"].raw, rtol=1e-9)
    if method is not hx.implicit.SABA:
        return
    many = {"penalty": hx.Positive(np.stack([problem.hyper["penalty"].value, 2 * problem.hyper["penalty"].value]))}
    (both, _), _ = jax.vmap(looped)(many)
    np.testing.assert_allclose(both["penalty"].raw[0], hyper["penalty"].raw, rtol=1e-9)


@pytest.mark.parametrize("method", [hx.implicit.SOBA, slow(hx.implicit.SABA), slow(hx.implicit.AmIGO)])
def test_a_step_that_is_not_finite_says_so_and_moves_nothing(method):
    problem = random_problem(np.random.default_rng(4), "logistic", 1, n=30, smallest=0.1)
    objective = method(*as_family(problem), batch_size=7, key=KEY)
    answer, state = objective.value_and_grad(problem.hyper, objective.init(problem.hyper))
    assert bool(answer.result == hx.implicit.RESULTS.successful)
    broken = {"penalty": eqx.tree_at(lambda p: p.raw, problem.hyper["penalty"], jnp.full(5, jnp.inf))}
    answer, after = objective.value_and_grad(broken, state)
    assert bool(answer.result == hx.implicit.RESULTS.diverged)
    assert eqx.tree_equal((after.params, after.adjoint), (state.params, state.adjoint))
    answer, after = objective.value_and_grad(problem.hyper, after)
    assert bool(answer.result == hx.implicit.RESULTS.successful)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(after))


def test_losses_without_data_and_pytree_parameters():
    """g = ½‖w - λ‖² and f = ½‖w - c‖² in a pytree: w* = λ, dF/dλ = λ - c."""
    optimum = hx.Optimum(
        lambda w, h, data: 0.5 * jnp.sum((w["a"] - h["x"]) ** 2) + 0.5 * (w["b"] - 1.0) ** 2,
        {"a": jnp.zeros(3), "b": jnp.zeros(())},
    )
    objective = hx.implicit.SABA(
        optimum, lambda w, h, data: 0.5 * jnp.sum((w["a"] - 2.0) ** 2), rate=0.5, steps=100, key=KEY
    )
    hyper = {"x": jnp.asarray([1.0, 2.0, 5.0])}
    state = objective.init(hyper)
    _, state = objective.value_and_grad(hyper, state)
    answer, state = objective.value_and_grad(hyper, state)
    np.testing.assert_allclose(answer.grad["x"], [-1.0, 0.0, 3.0], atol=1e-12)
    np.testing.assert_allclose(state.params["b"], 1.0)


def test_one_example_and_float32():
    x, y = np.asarray([[1.0, -2.0]], np.float32), np.asarray([1.5], np.float32)
    family = hx.families.Squared(x, y, penalty=select_penalty)
    hyper = {"penalty": hx.Positive(np.float32(0.5))}
    data = (jnp.asarray(x), jnp.asarray(y))
    objective = hx.implicit.SABA(hx.Optimum(family), family.mean_loss, data, batch_size=1, steps=200, key=KEY)
    answer, state = objective.value_and_grad(hyper, objective.init(hyper))
    answer, state = objective.value_and_grad(hyper, state)
    assert answer.value.dtype == jnp.float32 == state.params.dtype
    a = np.outer(x[0], x[0]) + 0.5 * np.eye(2)
    w = np.linalg.solve(a, 1.5 * x[0])
    q = np.linalg.solve(a, (x[0] @ w - 1.5) * x[0])
    np.testing.assert_allclose(answer.grad["penalty"].raw, -0.5 * w @ q, rtol=1e-4)


def build(**changes):
    problem = random_problem(np.random.default_rng(4), "logistic", 1, n=30, smallest=0.1)
    form = changes.pop("form", as_family)
    method = changes.pop("method", hx.implicit.SOBA)
    optimum, outer, data = form(problem)
    optimum, outer = changes.pop("optimum", optimum), changes.pop("outer", outer)
    objective = method(optimum, outer, data, key=KEY, **{"batch_size": 4, **changes})
    return objective, problem.hyper


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "from 1 to 30 .*; got 0"),
        ({"batch_size": 31}, "from 1 to 30 .*; got 31"),
        ({"outer_batch_size": 16}, "from 1 to 15 .*; got 16"),
        ({"rate": 0.0}, "SOBA: rate must be a number > 0.*; got 0.0"),
        ({"rate": math.nan}, "rate must be a number > 0.*; got nan"),
        ({"adjoint_rate": -1.0}, "adjoint_rate must be a number > 0.*; got -1.0"),
        ({"form": as_functions}, "rate is required for a loss of unknown smoothness"),
        ({"steps": 0}, "steps must be an integer >= 1; got 0"),
        ({"method": hx.implicit.AmIGO, "inner_steps": 0}, "inner_steps must be an integer >= 1; got 0"),
        ({"method": hx.implicit.AmIGO, "adjoint_steps": 1.5}, "adjoint_steps must be an integer >= 1; got 1.5"),
    ],
)
def test_bad_settings(unchecked, changes, words):
    with pytest.raises(ValueError, match=words):
        build(**changes)


def test_an_accuracy_cannot_be_asked_for():
    objective, hyper = build()
    accuracy = hx.Accuracy(jnp.asarray(1e-3), jnp.asarray(1e-3))
    for method in (objective.value_and_grad, objective.value):
        with pytest.raises(ValueError, match="accuracy must be None"):
            method(hyper, objective.init(hyper), accuracy)


def test_losses_that_are_no_means_are_refused():
    def summed(w, hyper, data):
        return jnp.sum(jax.nn.softplus(data[0] @ w))

    objective, hyper = build(outer=summed, rate=0.1)
    with pytest.raises(ValueError, match=r"outer_loss: a loss must be a mean over .*; got"):
        objective.init(hyper)

    def vector(w, hyper, data):
        return jax.nn.softplus(data[0] @ w)

    objective, hyper = build(outer=vector, rate=0.1)
    with pytest.raises(ValueError, match="must return a scalar"):
        objective.init(hyper)


def test_data_of_different_lengths_is_refused():
    optimum = hx.Optimum(inner_loss, jnp.zeros(2), data=(jnp.zeros((3, 2)), jnp.zeros(4)))
    with pytest.raises(ValueError, match="must have one length"):
        hx.implicit.SOBA(optimum, outer_loss, (jnp.zeros((3, 2)), jnp.zeros(3)), rate=0.1, batch_size=2, key=KEY)
