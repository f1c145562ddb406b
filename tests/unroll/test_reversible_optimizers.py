"""Single steps of MomentumSGD, Adam and AdamW: the formulas of optax in floating point, bijections in fixed point."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import hyprax as hx
from hyprax.unroll._fixed_point import decode, encode
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
    words = {key: encode(jnp.asarray(v), 1 / scales[key].units[0, 0]) for key, v in values.items()}
    gradient = jnp.asarray(rng.normal(size=50) * 10.0 ** rng.integers(-6, 1), jnp.float32)
    return optimizer, c, k, scales, words, gradient


@pytest.mark.parametrize("name", ["paper", "polyak", "adam", "adamw"])
@examples(15, 25)
@given(data=st.data())
def test_a_step_in_fixed_point_is_undone_and_is_the_step_in_floating_point(name, data):
    """To within the units of the words: no factor is rounded."""
    optimizer, c, k, scales, words, gradient = exact_step(name, data)
    after, _ = optimizer.forward(k, gradient, words)
    undone = optimizer.undo_states(k, gradient, optimizer.undo_weights(k, after))
    for x, y in zip(jax.tree.leaves(undone), jax.tree.leaves(words), strict=True):
        assert np.array_equal(x, y)
    before = {key: decode(word, scales[key].units[0, 0], jnp.float64) for key, word in words.items()}
    moved = {key: decode(word, scales[key].after[0, 0], jnp.float64) for key, word in after.items()}
    weights = before.pop("weights")
    states, _ = optimizer.apply(c, gradient.astype(jnp.float64), before, weights)
    for key, expected in states.items():
        assert jnp.all(jnp.abs(moved[key] - expected) <= scales[key].after[0, 0] + 1e-14 * jnp.abs(expected)), key
    if "velocity" in moved:  # from the states as they are: where s is small, the step amplifies their rounding
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
