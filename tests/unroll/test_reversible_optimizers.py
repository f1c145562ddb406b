"""Single steps of MomentumSGD, Adam and AdamW: the formulas of optax in floating point, bijections in fixed point."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import hyprax as hx
from hyprax.unroll._fixed_point import decode, encode, to_long
from hyprax.unroll._muon import direction
from hyprax.unroll._scales import fixed_scale, make_scale
from thoroughness import examples

pytestmark = pytest.mark.optimised  # rounding and bits are those of the compiler that users have

PEERS = {
    "polyak": (
        lambda: hx.unroll.MomentumSGD(0.1, 0.8, form="polyak"),
        lambda: optax.sgd(0.1, momentum=0.8),
    ),
    "nesterov": (
        lambda: hx.unroll.MomentumSGD(0.1, 0.8, form="nesterov"),
        lambda: optax.sgd(0.1, momentum=0.8, nesterov=True),
    ),
    "adam": (lambda: hx.unroll.Adam(0.01, 0.8, 0.95, 1e-4), lambda: optax.adam(0.01, 0.8, 0.95, 1e-4)),
    "adamw": (
        lambda: hx.unroll.AdamW(0.01, 0.8, 0.95, 1e-4, 0.3),
        lambda: optax.adamw(0.01, 0.8, 0.95, 1e-4, weight_decay=0.3),
    ),
    "lion": (lambda: hx.unroll.Lion(0.01, 0.8, 0.95, 0.3), lambda: optax.lion(0.01, 0.8, 0.95, weight_decay=0.3)),
}


@pytest.mark.parametrize("name", PEERS)
def test_in_floating_point_they_are_those_of_optax(name):
    ours, theirs = (make() for make in PEERS[name])
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=(3, 2))), "b": (jnp.asarray(rng.normal(size=4)),)}
    state, other, others = ours.init(params), params, theirs.init(params)
    for t in range(6):
        grads = jax.tree.map(lambda p, t=t: jnp.cos(3 * p + t), params)
        params, state = ours.update(grads, state, params, t)
        with jax.numpy_dtype_promotion("standard"):
            updates, others = theirs.update(grads, others, other)
            other = optax.apply_updates(other, updates)
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
            assert np.allclose(x, y, rtol=1e-12)


def test_muon_is_that_of_optax_on_matrices():
    """Wide, tall and square ones, with the scaling by shape that the whole of it has there."""
    ours = hx.unroll.Muon(0.02, 0.9)
    shapes, rng = {"a": (2, 5), "b": (4, 3), "c": (3, 3)}, np.random.default_rng(1)
    matrices = dict.fromkeys(shapes, optax.contrib.MuonDimensionNumbers())
    theirs = optax.contrib.scale_by_muon(beta=0.9, nesterov=False, weight_dimension_numbers=matrices)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    state, others = ours.init(params), theirs.init(params)
    for t in range(4):
        grads = jax.tree.map(lambda p, t=t: jnp.cos(3 * p + t), params)
        with jax.numpy_dtype_promotion("standard"):
            updates, others = theirs.update(grads, others)
        moved, state = ours.update(grads, state, params, t)
        for name in shapes:
            x = np.asarray(updates[name])  # pyright: ignore[reportIndexIssue]
            wide = np.sqrt(max(1, x.shape[1] / x.shape[0]))
            assert np.allclose(moved[name], params[name] - 0.02 * wide * x, rtol=1e-6)
        params = moved


def test_a_vector_of_muon_moves_along_itself_and_one_without_a_gradient_not_at_all():
    ours = hx.unroll.Muon(jnp.asarray(0.1), 0.5)
    params = {"v": jnp.zeros(4), "still": jnp.ones((2, 3)), "number": jnp.asarray(1.0)}
    grads = {"v": jnp.asarray([3.0, 0.0, 0.0, 4.0]), "still": jnp.zeros((2, 3)), "number": jnp.asarray(-2.0)}
    moved, _ = ours.update(grads, ours.init(params), params, 0)
    length = jnp.linalg.norm(moved["v"])
    assert np.allclose(moved["v"] / length, [-0.6, 0, 0, -0.8])
    assert 0.6 <= length / (0.1 * 2) <= 1.3
    assert np.array_equal(moved["still"], params["still"])
    assert moved["number"] > 1


def test_the_papers_form_is_its_formula():
    rates, momenta = jnp.asarray([0.1, 0.2, 0.3]), jnp.asarray([0.5, 0.7, 0.9])
    optimizer = hx.unroll.MomentumSGD(
        {"a": hx.unroll.Schedule(rates), "b": jnp.asarray(0.05)}, hx.unroll.Schedule(momenta)
    )
    params = {"a": jnp.asarray([1.0, 2.0]), "b": {"c": jnp.asarray([3.0])}}
    state = optimizer.init(params)
    v, a, c = np.zeros(3), np.array([1.0, 2.0]), np.array([3.0])
    for t in range(3):
        params, state = optimizer.update(params, state, params, t)
        v = momenta[t] * v - (1 - momenta[t]) * np.concatenate([a, c])
        a, c = a + rates[t] * v[:2], c + 0.05 * v[2:]
        assert np.allclose(params["a"], a, rtol=1e-14)
        assert np.allclose(params["b"]["c"], c, rtol=1e-14)


def exact_step(name, data):
    """A random optimiser with the coefficients of one step, and random words."""
    momentum, beta2 = (data.draw(st.floats(0.05, 0.999)) for _ in range(2))
    rate, decay = data.draw(st.floats(1e-5, 2)), data.draw(st.sampled_from([0.0, 1e-4, 0.2]))
    optimizer = {
        "paper": lambda: hx.unroll.MomentumSGD(rate, momentum),
        "polyak": lambda: hx.unroll.MomentumSGD(rate, momentum, form="polyak"),
        "adam": lambda: hx.unroll.Adam(rate, momentum, beta2),
        "adamw": lambda: hx.unroll.AdamW(rate, momentum, beta2, 1e-8, decay),
        "lion": lambda: hx.unroll.Lion(rate, momentum, beta2, decay),
        "muon": lambda: hx.unroll.Muon(rate, momentum, decay),
    }[name]()
    hyper = {key: jnp.full((1, 1), value) for key, value in optimizer.hyperparameters().items()}
    tables = {key: np.asarray(table) for key, table in optimizer.tables(hyper, 1).items()}
    bits = optimizer.fraction_bits()
    scales = {key: fixed_scale(1, bits[key]) for key in bits}
    scales |= {key: make_scale(factor, 1, bits[key]) for key, factor in optimizer.factors(tables).items()}
    increments = optimizer.increments(tables, {key: scale.after for key, scale in scales.items()})
    c, k = ({key: jnp.asarray(table[0, 0]) for key, table in rows.items()} for rows in (tables, increments))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = {"weights": rng.normal(size=50), **{state: rng.normal(size=50) for state in optimizer.states}}
    if "variance" in values:
        values["variance"] = values["variance"] ** 2 * 0.1
    words: dict[str, Any] = {"weights": encode(jnp.asarray(values["weights"]), 1 / scales["weights"].units[0, 0])}
    for key, limbs in optimizer.states.items():
        words[key] = to_long(jnp.asarray(values[key]) / scales[key].units[0, 0], limbs)
    words |= {key: jnp.zeros(50, jnp.int64) for key in optimizer.codes}
    gradient = jnp.asarray(rng.normal(size=50) * 10.0 ** rng.integers(-6, 1), jnp.float32)
    return optimizer, c, k, scales, words, gradient


@eqx.filter_jit  # as in a training, and compiled once for all examples
def forward(optimizer, increments, gradient, words):
    return optimizer.forward(increments, gradient, words)


@eqx.filter_jit
def backward(optimizer, increments, gradient, words):
    return optimizer.undo_states(increments, gradient, optimizer.undo_weights(increments, words))


@pytest.mark.parametrize("name", ["paper", "polyak", "adam", "adamw", "lion", "muon"])
@examples(15, 25)
@given(data=st.data())
def test_a_step_in_fixed_point_is_undone_and_is_the_step_in_floating_point(name, data):
    """To within the units of the words: no factor is rounded."""
    optimizer, c, k, scales, words, gradient = exact_step(name, data)
    after = forward(optimizer, k, gradient, words)
    undone = backward(optimizer, k, gradient, after)
    for x, y in zip(jax.tree.leaves(undone), jax.tree.leaves(words), strict=True):
        assert np.array_equal(x, y)
    kinds = ("weights", *optimizer.states)
    before = {key: decode(words[key], scales[key].units[0, 0], jnp.float64) for key in kinds}
    moved = {key: decode(after[key], scales[key].after[0, 0], jnp.float64) for key in kinds}
    weights = before.pop("weights")
    states, floating = optimizer.apply(c, gradient.astype(jnp.float64), before, weights)
    for key, expected in states.items():
        g = gradient.astype(jnp.float64)
        terms = jnp.abs(before[key]) + (g**2 if key == "variance" else jnp.abs(g))  # they may cancel
        assert jnp.all(jnp.abs(moved[key] - expected) <= scales[key].after[0, 0] + 4e-15 * terms), key
    if name == "lion":
        move = floating - (1 - c["decay"]) * weights
    elif name == "muon":
        move = -c["rate"] * direction(moved["velocity"])
    elif "velocity" in moved:  # from the states as they are: where s is small, the step amplifies their rounding
        move = c["rate"] * moved["velocity"]
    else:
        move = -c["rate"] * moved["mean"] / (jnp.sqrt(moved["variance"]) + c["eps"])
    expected = (1 - c.get("decay", 0.0)) * weights + move
    error = jnp.abs(moved["weights"] - expected)
    inside = jnp.abs(move) < 2.0 ** (61 - 50)  # what is beyond the format is for the watch to see
    assert jnp.all(~inside | (error <= 2 * scales["weights"].after[0, 0] + 1e-13 * (jnp.abs(expected) + jnp.abs(move))))


def test_weights_without_a_gradient_have_derivatives_of_zero():
    """A pixel that is always 0: √s has no derivative there, and Adam moves nothing."""

    def end(rate):
        optimizer = hx.unroll.Adam(rate, eps=0.0)
        params = {"w": jnp.asarray([1.0, 2.0])}
        state = optimizer.init(params)
        for t in range(3):
            params, state = optimizer.update({"w": params["w"] * jnp.asarray([0.0, 1.0])}, state, params, t)
        return jnp.sum(params["w"])

    value, slope = jax.value_and_grad(end)(jnp.asarray(0.1))
    assert np.isfinite(value)
    assert np.isfinite(slope)
    assert slope != 0


def test_a_schedule_of_beta_is_corrected_by_its_running_product():
    """With m and s started at 0, the corrected moments of a constant gradient are that gradient and its square."""
    betas = jnp.asarray([0.3, 0.9, 0.7, 0.95])
    optimizer = hx.unroll.Adam(jnp.asarray(0.1), hx.unroll.Schedule(betas), hx.unroll.Schedule(betas[::-1]), 0.0)
    params = jnp.asarray([1.0, -2.0])
    state = optimizer.init(params)
    for t in range(4):
        moved, state = optimizer.update(jnp.asarray([0.3, -7.0]), state, params, t)
        assert np.allclose(moved - params, [-0.1, 0.1], rtol=1e-12)
        params = moved
