"""The objective over a training run: draws, dtypes, metrics, compilation, gauges, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax.unroll import _drivers
from hyprax.unroll._estimate import estimate, scratch
from hyprax.unroll._step import Program, movable, step_back
from trainings import make_problem


def change(**parts):
    """A training with some of its parts replaced."""
    usual = {
        "loss": lambda params, hyper, batch: jnp.sum(params**2) * hyper["lr"],
        "init": lambda hyper, key: jnp.ones(3),
        "optimizer": lambda hyper: hx.unroll.OptaxOptimizer(optax.sgd(hyper["lr"])),
        "batches": lambda t: None,
        "steps": 4,
    }
    return hx.Training(**{**usual, **parts})


def plain_run(problem):
    """The same training as a user writes it: one compiled step, a Python loop, optax as it is."""
    training = problem.training
    init_key, step_key = jax.random.split(problem.key)
    params = jax.jit(training.init)(problem.hyper, init_key)
    optimizer = training.optimizer(problem.hyper).transformation
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, t):
        grads = jax.grad(training.loss)(params, problem.hyper, training.batches(t), jax.random.fold_in(step_key, t))
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

    for t in range(training.steps):
        params, state = step(params, state, jnp.asarray(t, jnp.int32))
    return params


@pytest.mark.parametrize("x64", [pytest.param(True, marks=pytest.mark.slow), False])
def test_draws_and_dtypes_are_those_of_the_same_training_outside(x64):
    """The weights at the end, bit for bit, in float32; x64 changes what `jax.random` draws by default."""
    with jax.enable_x64(x64):
        problem = make_problem("mlp", "sgd", seed=0, steps=6, dropout=True, dtype=jnp.float32)
        objective = problem.objective(hx.unroll.Checkpointed(driver="host"))
        answer, state = objective.value_and_grad(problem.hyper, objective.init(problem.hyper))
        for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain_run(problem)), strict=True):
            assert ours.dtype == theirs.dtype == jnp.float32
            assert np.array_equal(ours, theirs)
        assert {leaf.dtype for leaf in jax.tree.leaves(answer.grad)} == {jnp.dtype(jnp.float32)}
        assert answer.value.dtype == jnp.float32


def test_nothing_is_compiled_again_for_more_steps_or_another_point():
    """One compilation of each program, whatever the segments are; a second evaluation compiles nothing."""
    traced = []

    def loss(params, hyper, batch):
        traced.append(1)
        return jnp.sum((params - batch) ** 2) * hyper["weight"]

    counts = []
    for steps in (9, 90):
        training = hx.Training(
            loss,
            lambda hyper, key: jax.random.normal(key, (3,)),
            lambda hyper: hx.unroll.OptaxOptimizer(optax.sgd(hyper["lr"])),
            lambda t: t.astype(float),
            steps,
        )
        objective = hx.UnrolledObjective(
            training,
            lambda params, hyper, data: jnp.sum(params**2),
            key=jax.random.key(0),
            mode=hx.unroll.Checkpointed(states=5),
        )
        hyper = {"lr": jnp.asarray(1e-3), "weight": jnp.asarray(1.0)}
        traced.clear()
        _, state = objective.value_and_grad(hyper, objective.init(hyper))
        counts.append(len(traced))
        before = len(traced)
        objective.value_and_grad(jax.tree.map(lambda x: 1.1 * x, hyper), state)
        assert len(traced) == before
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    "mode",
    [
        hx.unroll.Checkpointed(states=3),
        pytest.param(hx.unroll.ForwardMode("host"), marks=pytest.mark.slow),
        hx.unroll.Truncated(2),
    ],
)
def test_metrics_are_recorded_once_from_the_weights_before_each_step(mode):
    """w_t = (1 - lr)^t for L = w²/2: at the steps 0, 3 and 6 of 7, with the batch of the step."""
    training = change(
        loss=lambda params, hyper, batch: jnp.sum(params**2) / 2,
        batches=lambda t: 10 * t,
        steps=7,
        metrics=lambda params, hyper, batch: {"weight": params[0], "batch": batch},
        every=3,
    )
    outer = hx.unroll.Outer(lambda params, hyper, data: jnp.sum(params), None)
    report = mode.value_and_grad(training, outer, {"lr": jnp.asarray(0.1)}, jax.random.key(0))[2]
    np.testing.assert_allclose(report.metrics["weight"], 0.9 ** np.array([0.0, 3.0, 6.0]))
    np.testing.assert_array_equal(report.metrics["batch"], [0, 30, 60])


def test_resampling_draws_afresh_and_repeats_itself():
    problem = make_problem("mlp", "sgd", seed=0, dropout=True)
    fixed, fresh = (problem.objective(hx.unroll.StoreAll(), resample=resample) for resample in (False, True))
    values = {}
    for name, objective in (("fixed", fixed), ("fresh", fresh), ("again", fresh)):
        state, values[name] = objective.init(problem.hyper), []
        for _ in range(3):
            answer, state = objective.value_and_grad(problem.hyper, state)
            values[name].append(float(answer.value))
    assert len(set(values["fixed"])) == 1
    assert len(set(values["fresh"])) == 3
    assert values["fresh"] == values["again"]


def logistic_map(rate: float, steps: int = 60) -> hx.UnrolledObjective:
    """w ← w - ∇L = r w (1 - w): chaotic for r near 4, contracting to a fixed point for r = 2.5."""

    def loss(params, hyper, batch):
        r = hyper["rate"]
        return jnp.sum(params**2) / 2 - r * (jnp.sum(params**2) / 2 - jnp.sum(params**3) / 3)

    training = hx.Training(
        loss,
        lambda hyper, key: jax.random.uniform(key, (400,), minval=0.1, maxval=0.9),
        lambda hyper: hx.unroll.OptaxOptimizer(optax.sgd(1.0)),
        hx.FullBatch(jnp.zeros(1)),
        steps,
    )
    return hx.UnrolledObjective(training, lambda params, hyper, data: jnp.sum(params), key=jax.random.key(0))


def test_the_gauge_tells_chaos_from_contraction():
    """The growth is the Lyapunov exponent of the logistic map: log 2 at r = 4, negative at r = 2.5."""
    hyper = {"rate": jnp.asarray(3.9999)}
    objective = logistic_map(3.9999)
    answer = hx.hypergradient(objective, hyper, throw=False)[0]
    assert answer.result == hx.unroll.RESULTS.chaotic
    assert "hx.unroll.Truncated" in answer.message
    assert 1.6 < float(answer.stats.growth) < 2.4
    assert float(objective.metasmoothness(hyper, {"rate": jnp.asarray(-1.0)}, 1e-5)) < 0.2
    calm = {"rate": jnp.asarray(2.5)}
    answer = hx.hypergradient(objective, calm)[0]
    assert float(answer.stats.growth) < 0.7
    np.testing.assert_allclose(answer.grad["rate"], 400 / 2.5**2, rtol=1e-10)  # the fixed point is 1 - 1/r
    assert float(objective.metasmoothness(calm, answer.grad, 1e-3)) == 1.0
    loose = hx.UnrolledObjective(
        objective.training, objective.outer.loss, key=objective.key, gauge=hx.unroll.ChaosGauge(float("inf"))
    )
    assert hx.hypergradient(loose, hyper)[0].result == hx.unroll.RESULTS.successful
    with pytest.raises(ValueError, match=r"got 0\.01 and 0"):
        objective.metasmoothness(calm, {"rate": jnp.asarray(0.0)})


@pytest.mark.slow
def test_estimate_recommends_what_fits():
    problem = make_problem("mlp", "sgd", seed=0, steps=400, dtype=jnp.float32)
    roomy = estimate(problem.training, problem.hyper, key=problem.key)
    assert any(isinstance(cost.mode, hx.unroll.StoreAll) for cost in roomy.costs)
    tight = estimate(problem.training, problem.hyper, key=problem.key, memory=max(c.memory for c in roomy.costs) // 2)
    assert isinstance(tight.recommended, hx.unroll.Checkpointed)
    assert next(c for c in tight.costs if c.mode is tight.recommended).memory <= tight.budget
    assert "<- recommended" in str(tight)
    answer = hx.hypergradient(problem.objective(tight.recommended), problem.hyper)[0]
    assert bool(jnp.isfinite(answer.value))


def test_an_optimizer_of_ones_own_with_a_schedule_and_groups():
    """d w_T / d lr_t = -∇L_t for a linear loss, exactly, a group each."""

    class Grouped(hx.unroll.AbstractOptimizer):
        lr: dict

        def init(self, params):
            return ()

        def update(self, grads, state, params, t):
            rates = hx.unroll.lookup(self.lr, t, params)
            return jax.tree.map(lambda p, r, g: p - r * g, params, rates, grads), state

    training = hx.Training(
        lambda params, hyper, batch: batch * jnp.sum(params["a"]["w"]) + 2 * batch * jnp.sum(params["b"]),
        lambda hyper, key: {"a": {"w": jnp.ones(3)}, "b": jnp.ones(2)},
        lambda hyper: Grouped({"a": hx.unroll.Schedule(hyper["a"]), "b": hyper["b"]}),
        lambda t: 1.0 + t.astype(float),
        4,
    )
    hyper = {"a": jnp.full(4, 0.1), "b": jnp.asarray(0.2)}
    for mode in (hx.unroll.Checkpointed(driver="loop"), hx.unroll.ForwardMode("loop")):
        objective = hx.UnrolledObjective(
            training, lambda p, h, d: jnp.sum(p["a"]["w"]) + jnp.sum(p["b"]), key=jax.random.key(0), mode=mode
        )
        grad = hx.hypergradient(objective, hyper)[0].grad
        np.testing.assert_allclose(grad["a"], -3 * np.arange(1.0, 5.0))
        np.testing.assert_allclose(grad["b"], -2 * 2 * 10.0)


def test_the_host_loop_is_chosen_where_the_loss_convolves():
    for model, driver in (("cnn", _drivers.HostDriver), ("mlp", _drivers.LoopDriver)):
        problem = make_problem(model, "sgd", seed=0)
        program = Program(problem.training, problem.hyper, problem.key)
        assert isinstance(_drivers.choose_driver("auto", program), driver)


@pytest.mark.slow
def test_scanned_blocks_change_the_memory_of_a_step_and_nothing_else():
    """Eight blocks of a residual network: the same hypergradient, in less than half of the memory of a step."""

    def block(params, x):
        return x + jnp.sin(jnp.tanh(x @ params["in"]) @ params["out"])

    def plainly(block, params, x):
        return jax.lax.scan(lambda x, params: (block(params, x), None), x, params)[0]

    grads, bytes_used = [], []
    for through in (plainly, hx.unroll.scan_blocks):
        training = change(
            loss=lambda params, hyper, batch, through=through: (
                jnp.mean(through(block, params, batch) ** 2) * hyper["lr"]
            ),
            init=lambda hyper, key: {
                "in": 0.1 * jax.random.normal(key, (8, 6, 24)),
                "out": 0.1 * jax.random.normal(key, (8, 24, 6)),
            },
            batches=hx.FullBatch(jax.random.normal(jax.random.key(1), (256, 6))),
            steps=2,
        )
        hyper = {"lr": jnp.asarray(0.5)}
        objective = hx.UnrolledObjective(
            training, lambda params, hyper, data: jnp.sum(params["in"] ** 2), key=jax.random.key(0)
        )
        grads.append(float(hx.hypergradient(objective, hyper)[0].grad["lr"]))
        program = Program(training, hyper, jax.random.key(0))
        carry = _drivers.start(program)
        adjoint, dhyper = (jax.tree.map(jnp.zeros_like, movable(tree)) for tree in (carry, hyper))
        bytes_used.append(scratch(step_back, program, carry, _drivers.index(0), adjoint, dhyper))
    np.testing.assert_allclose(*grads, rtol=1e-12)
    assert bytes_used[1] < bytes_used[0] / 2
