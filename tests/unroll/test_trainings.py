"""What a training may hold beside loss and optimizer, against `jax.grad` of a Python loop.

Gradients that are clipped, averaged over microbatches, of keys, of casts, of a part of the weights; optimizers that
look at the loss; many tasks in one program.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_nets import (
    BATCHES,
    HELD,
    KEY,
    MODES,
    STEPS,
    X,
    Y,
    agrees,
    by_hand,
    init,
    momentum,
    net,
    plain_loss,
    quickly,
    run,
    start,
)

import hyprax as hx
from trainings import relative_error


def noisy_loss(params, hyper, batch, key):
    """Dropout of inputs and an augmentation, of one key."""
    drop, shake = jax.random.split(key)
    x = jnp.where(jax.random.bernoulli(drop, 0.8, batch[0].shape), batch[0], 0.0)
    return plain_loss(params, hyper, (x + 0.1 * jax.random.normal(shake, x.shape), batch[1]))


def clipped(hyper):
    """By norm and by value, with limits that are hyperparameters."""
    return optax.chain(optax.clip_by_global_norm(hyper["norm"]), optax.clip(hyper["most"]))


def averaged(state, params):
    return jax.tree.map(lambda a, w: 0.9 * a + 0.1 * w, state, params)


def loss(params, hyper, batch, key, state):
    return noisy_loss(params, hyper, batch, key), averaged(state, params)


def outer(params, hyper, data, state):
    return plain_loss(state, hyper, data)


ALL = hx.Training(
    loss,
    init,
    momentum,
    BATCHES,
    STEPS,
    keyed=True,
    state=lambda params, hyper: params,
    transform=clipped,
    microbatches=2,
)


def clipped_gradient(params, hyper, t, key, state):
    """Of two microbatches, with keys of their own; then clipped, by the formulas."""
    x, y = BATCHES(t)
    total = jax.tree.map(jnp.zeros_like, params)
    for j in range(2):
        part = x[4 * j : 4 * j + 4], y[4 * j : 4 * j + 4]
        grads = jax.grad(noisy_loss)(params, hyper, part, jax.random.fold_in(key, j))
        total, state = jax.tree.map(lambda a, g: a + g / 2, total, grads), averaged(state, params)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(total)))
    shrunk = jax.tree.map(lambda g: g * jnp.minimum(1.0, hyper["norm"] / norm), total)
    return jax.tree.map(lambda g: jnp.clip(g, -hyper["most"], hyper["most"]), shrunk), state


@pytest.mark.parametrize("mode", quickly("store_all"))
def test_keys_clipping_microbatches_and_averages_at_once(mode):
    hyper = start(norm=0.4, most=0.1)
    answer = run(ALL, MODES[mode], hyper, outer)
    agrees(answer, by_hand(clipped_gradient, hyper, outer, lambda params, hyper: params), 1e-7)
    assert all(float(jnp.abs(answer.grad[name])) > 0 for name in ("norm", "most"))
    assert hasattr(answer.certificate, "exact") == mode.startswith("reversible")


def test_a_gradient_of_zero_is_clipped_without_a_nan():
    training = hx.Training(
        lambda params, hyper, batch: 0 * jnp.sum(params["in"]),
        init,
        momentum,
        BATCHES,
        STEPS,
        transform=lambda hyper: optax.clip_by_global_norm(hyper["norm"]),
    )
    assert float(run(training, MODES["store_all"], start(norm=0.4)).grad["norm"]) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transform": lambda hyper: optax.trace(0.9)}, "keeps no state from step to step; got one with a state"),
        ({"transform": lambda hyper: jnp.tanh}, "must return a transformation of optax"),
        ({"transform": optax.clip(1.0)}, "transform must be a function"),
        ({"microbatches": 3}, r"must divide the first axis .* got 3 for batch\[0\] of shape \(8, 4\)"),
        ({"microbatches": 0}, "microbatches must be an integer from 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_is_refused_before_the_run(settings, words):
    def asked():
        run(hx.Training(plain_loss, init, momentum, BATCHES, STEPS, **settings), MODES["store_all"], start())

    with pytest.raises(ValueError, match=words):
        asked()


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def half_loss(params, hyper, batch):
    """bfloat16 forwards and backwards; the sum, the penalty and the weights in their own precision."""
    small, x = cast(params, jnp.bfloat16), jnp.asarray(batch[0], jnp.bfloat16)
    wide = params["in"].dtype
    errors = (net(small, x) - jnp.asarray(batch[1], jnp.bfloat16)).astype(wide)
    return jnp.mean(errors**2) + hyper["decay"] * jnp.sum(params["in"] ** 2)


@pytest.mark.parametrize("mode", quickly())
def test_bfloat16_forwards_with_master_weights(mode):
    answer = run(hx.Training(half_loss, init, momentum, BATCHES, STEPS), MODES[mode], start(), half_loss)
    value, grads = by_hand(
        lambda params, hyper, t, key, state: (jax.grad(half_loss)(params, hyper, BATCHES(t)), None),
        start(),
        half_loss,
    )
    assert abs(float(answer.value - value)) <= 2.0**-7 * float(value)
    assert relative_error(answer.grad, grads) <= 2.0**-4  # compilers keep more digits between casts than are asked for
    assert hasattr(answer.certificate, "exact") == mode.startswith("reversible")


def on_top(body, params, hyper, batch):
    return plain_loss({"in": body, "out": params["out"]}, hyper, batch)


@pytest.mark.parametrize("mode", quickly())
def test_frozen_weights_are_an_argument_of_the_loss(mode):
    """What `init` does not return does not move; `Partial` hands it over as data."""
    body = jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)))
    loss = jax.tree_util.Partial(on_top, body)
    training = hx.Training(loss, lambda hyper, key: {"out": init(hyper, key)["out"]}, momentum, BATCHES, STEPS)
    objective = hx.UnrolledObjective(training, loss, HELD, mode=MODES[mode], key=KEY)

    def gradient(params, hyper, t, key, state):
        return {**jax.grad(on_top, 1)(body, params, hyper, BATCHES(t)), "in": jnp.zeros((4, 5))}, None

    answer = hx.hypergradient(objective, start())[0]
    agrees(answer, by_hand(gradient, start(), lambda p, h, data: on_top(body, p, h, data)), 1e-7)


@pytest.mark.slow
def test_parts_of_the_weights_have_optimizers_of_their_own():
    def optimizer(hyper):
        parts: Any = {"a": optax.sgd(hyper["rate"][0], momentum=hyper["momentum"]), "b": optax.sgd(hyper["rate"][1])}
        return hx.unroll.OptaxOptimizer(optax.partition(parts, {"in": "a", "out": "b"}))

    def move(hyper, t, grads, velocity, params):
        after = {"in": hyper["momentum"] * velocity["in"] - grads["in"], "out": -grads["out"]}
        rate = {"in": hyper["rate"][0], "out": hyper["rate"][1]}
        return jax.tree.map(lambda w, v, r: w + r * v, params, after, rate), after

    def gradient(params, hyper, t, key, state):
        return jax.grad(plain_loss)(params, hyper, BATCHES(t)), None

    training = hx.Training(plain_loss, init, optimizer, BATCHES, STEPS)
    agrees(run(training, MODES["store_all"], start()), by_hand(gradient, start(), move=move))


def polyak(hyper):
    return hx.unroll.OptaxOptimizer(optax.polyak_sgd(max_learning_rate=hyper["rate"][0], scaling=hyper["momentum"]))


def by_polyak(hyper, t, grads, moments, params):
    value = plain_loss(params, hyper, BATCHES(t))
    square = hyper["momentum"] ** 2 * sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))
    rate = hyper["momentum"] * jnp.minimum(hyper["rate"][0], value / square)
    return jax.tree.map(lambda w, g: w - rate * g, params, grads), moments


@pytest.mark.parametrize("mode", quickly("store_all"))
def test_an_optimizer_that_asks_for_the_value(mode):
    if mode.startswith("reversible"):
        return
    hyper = start() | {"rate": jnp.full(STEPS, 10.0)}

    def gradient(params, hyper, t, key, state):
        return jax.grad(plain_loss)(params, hyper, BATCHES(t)), None

    answer = run(hx.Training(plain_loss, init, polyak, BATCHES, STEPS), MODES[mode], hyper)
    agrees(answer, by_hand(gradient, hyper, move=by_polyak))


def searching(hyper):
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=5, decrease_factor=0.5)
    return hx.unroll.OptaxOptimizer(optax.chain(optax.sgd(hyper["rate"][0] * hyper["momentum"]), search))


def test_a_line_search_is_refused_backwards():
    training = hx.Training(plain_loss, init, searching, BATCHES, STEPS)
    with pytest.raises(ValueError, match=r"no loop of a length that is not fixed, .* but for hx.unroll.ForwardMode"):
        run(training, MODES["store_all"], start())


@pytest.mark.slow
def test_a_line_search_goes_forwards():
    training = hx.Training(plain_loss, init, searching, BATCHES, STEPS)
    objective = hx.UnrolledObjective(training, plain_loss, HELD, mode=MODES["forward"], key=KEY)
    state = objective.init(start())
    slope = objective.value_and_grad(start(), state)[0].grad["decay"]
    low, high = (objective.value(start(decay=0.01 + s), state)[0].value for s in (-1e-5, 1e-5))
    np.testing.assert_allclose(slope, (high - low) / 2e-5, rtol=1e-6)


def few_steps(hyper, support, query):
    training = hx.Training(
        plain_loss,
        lambda hyper, key: hyper["start"],
        lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], 0.0, form="polyak"),
        hx.FullBatch(support),
        3,
    )
    return hx.UnrolledObjective(training, plain_loss, query, mode=MODES["store_all"], key=KEY)


def test_many_tasks_in_one_program():
    """MAML: `vmap` over tasks of a hypergradient through a few steps, compiled as one."""
    hyper = {"start": init(start(), KEY), "rate": jnp.asarray(0.1), "decay": jnp.asarray(0.01)}
    tasks = [(jnp.asarray(X[6 * i : 6 * i + 6]), jnp.asarray(Y[6 * i : 6 * i + 6])) for i in range(4)]
    supports, queries = (jax.tree.map(lambda *x: jnp.stack(x), *tasks[i : i + 2]) for i in (0, 2))

    @jax.jit
    def each(hyper, supports, queries):
        def one(support, query):
            objective = few_steps(hyper, support, query)
            return objective.value_and_grad(hyper, objective.init(hyper))[0]

        return jax.vmap(one)(supports, queries)

    def by_hand(hyper, support, query):
        params = hyper["start"]
        for _ in range(3):
            grads = jax.grad(plain_loss)(params, hyper, support)
            params = jax.tree.map(lambda w, g: w - hyper["rate"] * g, params, grads)
        return plain_loss(params, hyper, query)

    answers = each(hyper, supports, queries)
    expected = jax.jit(jax.vmap(jax.value_and_grad(by_hand), (None, 0, 0)))(hyper, supports, queries)
    agrees_each(answers, expected)
    assert bool(jnp.all(answers.result == hx.unroll.RESULTS.successful))


def agrees_each(answers, expected):
    np.testing.assert_allclose(answers.value, expected[0], rtol=1e-12)
    assert relative_error(answers.grad, expected[1]) <= 1e-10


def test_reversal_says_that_it_cannot_be_traced():
    objective = hx.UnrolledObjective(
        hx.Training(plain_loss, init, momentum, BATCHES, STEPS), plain_loss, HELD, mode=MODES["reversible"], key=KEY
    )
    state = objective.init(start())
    with pytest.raises(ValueError, match=r"hyper and key must have values.* Under jax.jit and jax.vmap use"):
        jax.jit(lambda hyper: objective.value(hyper, state)[0].value)(start())
