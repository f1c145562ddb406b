"""Constrained hyperparameters: round trips, derivatives in unconstrained coordinates, extremes, errors."""

import re

import equinox as eqx
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import hyprax as hx
from hyprax._hyper import validated

EPS = np.finfo(np.float64).eps

shapes = st.sampled_from([(), (1,), (5,), (0,), (2, 3), (2, 1, 4)])  # few, since every shape is compiled for
positive = st.floats(min_value=float(np.finfo(np.float64).tiny), max_value=1e308)
coordinates = st.floats(min_value=-30.0, max_value=30.0)


@st.composite
def intervals(draw) -> tuple[np.ndarray, float, float]:
    """Values strictly inside an interval, some of them very close to an end."""
    lo = draw(st.floats(min_value=-1e6, max_value=1e6))
    hi = lo + draw(st.floats(min_value=1e-3, max_value=1e6))
    near = draw(hnp.arrays(np.float64, draw(shapes), elements=st.floats(min_value=1e-12, max_value=0.5)))
    from_above = draw(hnp.arrays(np.bool_, near.shape))
    x = np.where(from_above, hi - near * (hi - lo), lo + near * (hi - lo))
    hypothesis.assume(np.all((x > lo) & (x < hi)))
    return x, lo, hi


@st.composite
def log_intervals(draw) -> tuple[np.ndarray, float, float]:
    """Values strictly inside an interval of up to 60 orders of magnitude, some of them very close to an end."""
    lo = 10.0 ** draw(st.floats(min_value=-30.0, max_value=30.0))
    hi = lo * 10.0 ** draw(st.floats(min_value=1e-3, max_value=60.0))
    near = draw(hnp.arrays(np.float64, draw(shapes), elements=st.floats(min_value=1e-12, max_value=0.5)))
    x = np.where(draw(hnp.arrays(np.bool_, near.shape)), hi * (lo / hi) ** near, lo * (hi / lo) ** near)
    hypothesis.assume(np.all((x > lo) & (x < hi)))
    return x, lo, hi


@st.composite
def weights(draw) -> np.ndarray:
    """Points inside simplices, with ratios up to e^40 between their entries."""
    shape = draw(st.sampled_from([(2,), (3,), (12,), (2, 5), (2, 3, 4)]))
    logits = draw(hnp.arrays(np.float64, shape, elements=st.floats(min_value=-20.0, max_value=20.0)))
    x = np.exp(logits - logits.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def central_difference(f, u: np.ndarray, direction: np.ndarray, step: float) -> np.ndarray:
    """Fourth-order central difference of f at u along `direction`."""

    def at(t: float) -> np.ndarray:
        return np.asarray(f(jnp.asarray(u + t * direction)))

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def value_at(leaf: hx.core.AbstractConstrained):
    """u -> the value of `leaf` with coordinates u."""
    return lambda u: eqx.tree_at(lambda one: one.raw, leaf, u).value


# Round trips


@hypothesis.given(hnp.arrays(np.float64, shapes, elements=positive))
def test_positive_round_trip(x):
    leaf = hx.Positive(x)
    assert leaf.raw.shape == x.shape
    error = np.abs(np.asarray(leaf.value) - x) / x
    assert np.all(error <= (4 + np.abs(np.log(x))) * EPS)


@hypothesis.given(intervals())
def test_interval_round_trip(case):
    x, lo, hi = case
    value = np.asarray(hx.Interval(x, lo, hi).value)
    nearest = np.minimum(x - lo, hi - x)
    relative = (8 + np.abs(np.log((x - lo) / (hi - x)))) * EPS * nearest
    spacing = 4 * EPS * max(abs(lo), abs(hi))  # of the numbers themselves: differences from lo and hi are rounded to it
    assert np.all(np.abs(value - x) <= relative + spacing)
    assert np.all((value >= lo) & (value <= hi))


@hypothesis.given(log_intervals())
def test_log_interval_round_trip(case):
    x, lo, hi = case
    value = np.asarray(hx.LogInterval(x, lo, hi).value)
    distance = np.minimum(np.log(x / lo), np.log(hi / x))
    coordinate = np.abs(np.log(np.log1p((x - lo) / lo) / np.log1p((hi - x) / x)))
    assert np.all(np.abs(value / x - 1) <= (8 + distance * (8 + coordinate)) * EPS)


def test_log_interval_next_to_its_ends():
    for lo, hi in [(1.0, 10.0), (1.9999, 3.0), (1e-30, 1e30)]:
        for x in (np.nextafter(lo, hi), np.nextafter(hi, lo)):
            leaf = hx.LogInterval(x, lo, hi)
            assert np.isfinite(leaf.raw)
            assert abs(float(leaf.value) / x - 1) <= 4 * EPS


@pytest.mark.parametrize("tiny", [1e-300, 1e-100, 1e-20, 1e-8])
def test_interval_keeps_the_digits_of_a_value_near_zero(tiny):
    value = hx.Interval(tiny, 0.0, 1.0).value
    assert abs(float(value) / tiny - 1) <= (4 + abs(np.log(tiny))) * EPS


@hypothesis.given(weights())
def test_simplex_round_trip_and_coordinates(x):
    leaf = hx.Simplex(x)
    basis = scipy.linalg.helmert(x.shape[-1])  # (K - 1) x K, orthonormal rows that are orthogonal to the ones
    np.testing.assert_allclose(leaf.raw, np.log(x) @ basis.T, rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(leaf.value, x, rtol=1e-12)
    np.testing.assert_allclose(np.sum(leaf.value, -1), 1.0, rtol=x.shape[-1] * EPS)


def test_simplex_normalises_what_is_one_up_to_rounding():
    np.testing.assert_allclose(hx.Simplex([0.1, 0.2, 0.7004]).value, np.array([0.1, 0.2, 0.7004]) / 1.0004, rtol=1e-14)


# Derivatives with respect to the unconstrained coordinates


@hypothesis.given(hnp.arrays(np.float64, shapes, elements=coordinates))
def test_positive_derivative(u):
    leaf = eqx.tree_at(lambda one: one.raw, hx.Positive(np.ones(u.shape)), jnp.asarray(u))
    slope = jax.grad(lambda one: jnp.sum(one.value))(leaf).raw
    np.testing.assert_allclose(slope, np.exp(u), rtol=1e-14)
    np.testing.assert_allclose(leaf.slope, slope, rtol=1e-14)
    np.testing.assert_allclose(central_difference(value_at(leaf), u, np.ones(u.shape), 1e-3), slope, rtol=1e-9)


@hypothesis.given(
    hnp.arrays(np.float64, shapes, elements=coordinates),
    st.floats(min_value=-1e3, max_value=1e3),
    st.floats(min_value=1e-2, max_value=1e3),
)
def test_interval_derivative(u, lo, width):
    hi = lo + width
    leaf = eqx.tree_at(lambda one: one.raw, hx.Interval(np.full(u.shape, (lo + hi) / 2), lo, hi), jnp.asarray(u))
    slope = jax.grad(lambda one: jnp.sum(one.value))(leaf).raw
    # w s(u) s(-u), in the form that cancels nowhere
    exact = (hi - lo) * np.exp(-np.abs(u)) / (1 + np.exp(-np.abs(u))) ** 2
    np.testing.assert_allclose(slope, exact, rtol=1e-13)
    np.testing.assert_allclose(leaf.slope, exact, rtol=1e-13)
    difference = central_difference(value_at(leaf), u, np.ones(u.shape), 1e-2)
    np.testing.assert_allclose(difference, exact, rtol=1e-7, atol=1e-11 * max(abs(lo), abs(hi)))


@hypothesis.given(
    hnp.arrays(np.float64, shapes, elements=coordinates),
    st.floats(min_value=-10.0, max_value=10.0),
    st.floats(min_value=0.1, max_value=20.0),
)
def test_log_interval_derivative(u, exponent, decades):
    lo, hi = 10.0**exponent, 10.0 ** (exponent + decades)
    middle = np.full(u.shape, np.sqrt(lo) * np.sqrt(hi))
    leaf = eqx.tree_at(lambda one: one.raw, hx.LogInterval(middle, lo, hi), jnp.asarray(u))
    width = np.log(hi) - np.log(lo)
    x = np.where(u < 0, lo * np.exp(width / (1 + np.exp(-u))), hi * np.exp(-width / (1 + np.exp(u))))
    np.testing.assert_allclose(leaf.value, x, rtol=1e-13)
    slope = jax.grad(lambda one: jnp.sum(one.value))(leaf).raw
    exact = x * width * np.exp(-np.abs(u)) / (1 + np.exp(-np.abs(u))) ** 2
    np.testing.assert_allclose(slope, exact, rtol=1e-12)
    np.testing.assert_allclose(leaf.slope, exact, rtol=1e-12)
    # The difference of the values is rounded to their spacing.
    difference = central_difference(value_at(leaf), u, np.ones(u.shape), 1e-3)
    assert np.all(np.abs(difference - exact) <= 1e-6 * exact + 1e-11 * x)


@pytest.mark.slow
@hypothesis.given(weights().filter(lambda x: x.ndim == 1))
def test_simplex_derivative(x):
    leaf = hx.Simplex(x)
    jacobian = jax.jacobian(value_at(leaf))(leaf.raw)
    exact = (np.diag(x) - np.outer(x, x)) @ scipy.linalg.helmert(len(x)).T
    np.testing.assert_allclose(jacobian, exact, atol=1e-13)
    direction = np.random.default_rng(len(x)).standard_normal(len(x) - 1)
    difference = central_difference(value_at(leaf), np.asarray(leaf.raw), direction, 1e-3)
    np.testing.assert_allclose(difference, exact @ direction, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_simplex_coordinates_are_isometric(size):
    # The logarithms of the weights, centred, have the norm of the coordinates: no direction is favoured.
    rng = np.random.default_rng(size)
    for _ in range(20):
        x = rng.dirichlet(np.ones(size))
        logs = np.log(x)
        np.testing.assert_allclose(
            np.linalg.norm(hx.Simplex(x).raw), np.linalg.norm(logs - logs.mean()), rtol=1e-12, atol=1e-12
        )


# Extreme magnitudes


@pytest.mark.parametrize("x", [np.finfo(np.float64).tiny, 1e-300, 1e-30, 1e30, 1e300, np.finfo(np.float64).max / 2])
def test_positive_extremes(x):
    leaf = hx.Positive(x)
    assert np.isfinite(leaf.raw)
    assert np.isfinite(leaf.value)
    assert leaf.value > 0
    assert np.isfinite(jax.grad(lambda one: one.value)(leaf).raw)


@pytest.mark.parametrize("u", [-1e4, -800.0, -40.0, 40.0, 800.0, 1e4])
def test_far_coordinates_stay_in_the_set_with_finite_derivatives(u):
    interval = eqx.tree_at(lambda one: one.raw, hx.Interval(0.5, -1.0, 2.0), jnp.asarray(u))
    assert -1.0 <= interval.value <= 2.0
    slope = jax.grad(lambda one: one.value)(interval).raw
    np.testing.assert_allclose(slope, 3.0 * np.exp(-abs(u)), rtol=1e-13)

    decades = eqx.tree_at(lambda one: one.raw, hx.LogInterval(1.0, 1e-8, 1e8), jnp.asarray(u))
    assert 1e-8 * (1 - 4 * EPS) <= decades.value <= 1e8 * (1 + 4 * EPS)
    assert np.isfinite(jax.grad(lambda one: one.value)(decades).raw)

    simplex = eqx.tree_at(lambda one: one.raw, hx.Simplex([0.2, 0.3, 0.5]), jnp.asarray([u, -u]))
    assert np.all(np.asarray(simplex.value) >= 0)
    np.testing.assert_allclose(np.sum(simplex.value), 1.0, rtol=4 * EPS)
    assert np.all(np.isfinite(jax.jacobian(value_at(simplex))(simplex.raw)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_dtypes_are_kept(dtype):
    x = np.array([0.25, 0.75], dtype)
    for leaf in (hx.Positive(x), hx.Interval(x, 0.0, 1.0), hx.LogInterval(x, 0.1, 1.0), hx.Simplex(x)):
        assert leaf.raw.dtype == dtype
        assert leaf.value.dtype == dtype
        np.testing.assert_allclose(leaf.value, x, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("x", [2, 2.0, [1, 2], np.arange(1, 4), np.int32(3)])
def test_plain_numbers_take_the_default_floating_dtype(x):
    assert hx.Positive(x).raw.dtype == np.float64
    with jax.enable_x64(False):
        assert hx.Positive(x).raw.dtype == np.float32


# Pytrees and transformations


def some_hyper() -> dict:
    return {
        "penalty": hx.Positive([[0.1, 1.0, 10.0]]),
        "momentum": hx.Interval(0.9, 0.0, 1.0),
        "mixture": hx.Simplex([0.2, 0.3, 0.5]),
        "shift": jnp.asarray([1.0, -1.0]),
    }


def test_natural_gives_plain_arrays_in_the_same_places():
    values = hx.natural(some_hyper())
    assert all(isinstance(value, jax.Array) for value in values.values())
    np.testing.assert_allclose(values["penalty"], [[0.1, 1.0, 10.0]], rtol=1e-14)
    np.testing.assert_allclose(values["momentum"], 0.9, rtol=1e-14)
    np.testing.assert_allclose(values["mixture"], [0.2, 0.3, 0.5], rtol=1e-14)
    np.testing.assert_array_equal(values["shift"], [1.0, -1.0])


def test_a_gradient_has_the_structure_of_the_hyperparameters():
    hyper = some_hyper()

    def loss(hyper):
        values = hx.natural(hyper)
        return (
            jnp.sum(values["penalty"] ** 2)
            + values["momentum"] ** 3
            + jnp.sum(values["mixture"] * jnp.arange(3.0))
            + jnp.sum(values["shift"])
        )

    gradient = jax.grad(loss)(hyper)
    assert jax.tree.structure(gradient) == jax.tree.structure(hyper)
    np.testing.assert_allclose(gradient["penalty"].raw, 2 * np.array([[0.1, 1.0, 10.0]]) ** 2, rtol=1e-13)
    np.testing.assert_allclose(gradient["momentum"].raw, 3 * 0.9**2 * 0.9 * 0.1, rtol=1e-13)
    np.testing.assert_array_equal(gradient["shift"], [1.0, 1.0])
    jitted = jax.jit(jax.grad(loss))(hyper)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15), gradient, jitted)


def test_vmap_over_coordinates_equals_one_at_a_time():
    stack = [hx.Interval(x, 0.0, 1.0) for x in (0.1, 0.5, 0.9)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)
    values = jax.vmap(lambda leaf: hx.natural({"a": leaf})["a"])(batch)
    np.testing.assert_array_equal(values, [leaf.value for leaf in stack])


def test_leaves_can_be_made_inside_a_transformation():
    made = jax.jit(lambda x: {"a": hx.Positive(x), "b": hx.Interval(x / (1 + x), 0.0, 1.0)})(jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(made["a"].value, [1.0, 2.0], rtol=1e-15)
    np.testing.assert_allclose(made["b"].value, [1 / 2, 2 / 3], rtol=1e-15)


def test_the_settings_of_a_leaf_are_not_searched():
    leaf = hx.Interval([0.2, 0.4], 0.0, 1.0)
    assert len(jax.tree.leaves(leaf)) == 1
    assert jax.tree.structure(leaf) != jax.tree.structure(hx.Interval([0.2, 0.4], 0.0, 2.0))


@pytest.mark.parametrize("start", [1.0, 2, np.float64(1.0), jnp.asarray(1.0), jnp.ones(3)], ids=repr)
def test_updates_do_not_change_the_type_that_a_step_was_compiled_for(start):
    hyper = validated({"constrained": hx.Positive(start), "plain": start})
    traces = []

    @jax.jit
    def step(hyper):
        traces.append(None)
        gradient = jax.grad(lambda h: sum(jnp.sum(x**2) for x in jax.tree.leaves(hx.natural(h))))(hyper)
        return optax.apply_updates(hyper, jax.tree.map(lambda g: -0.1 * g, gradient))

    for _ in range(3):
        hyper = step(hyper)
    assert len(traces) == 1


def test_repr_shows_natural_units_and_coordinates_and_never_raises():
    assert repr(hx.Positive([1.0, 2.0])) == "Positive([1. 2.], raw=[0.     0.6931])"
    assert repr(hx.Interval(0.25, 0.0, 1.0)) == "Interval(0.25, raw=-1.0986)"
    leaf = hx.Positive(np.ones(1000))
    assert len(repr(leaf)) < 150
    for odd in (None, object(), "text", jax.ShapeDtypeStruct((2,), np.float64)):
        assert repr(jax.tree.map(lambda _, odd=odd: odd, leaf)).startswith("Positive(raw=")
    seen = []
    jax.jit(lambda one: (seen.append(repr(one)), one.raw)[1])(leaf)
    assert seen[0].startswith("Positive(raw=")


# Errors


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hx.Positive(0.0), ["Positive", "got 0.0", "> 0"]),
        (lambda: hx.Positive([1.0, -2.0, -3.0]), ["got -2.0", "2 such entries"]),
        (lambda: hx.Positive(np.nan), ["got nan"]),
        (lambda: hx.Positive(np.inf), ["got inf"]),
        (lambda: hx.Positive(1e-320), ["got 1e-320"]),
        (lambda: hx.Positive("a"), ["Positive", "real numbers"]),
        (lambda: hx.Positive(1j), ["complex", "real numbers"]),
        (lambda: hx.Positive(True), ["bool", "real numbers"]),
        (lambda: hx.Positive(None), ["object", "real numbers"]),
        (lambda: hx.Interval(0.0, 0.0, 1.0), ["got 0.0", "strictly between 0.0 and 1.0"]),
        (lambda: hx.Interval(1.0, 0.0, 1.0), ["got 1.0"]),
        (lambda: hx.Interval(np.nan, 0.0, 1.0), ["got nan"]),
        (lambda: hx.Interval(0.5, 1.0, 0.0), ["lo = 1.0", "lo must be below hi"]),
        (lambda: hx.Interval(0.5, 0.0, np.inf), ["hi = inf", "finite"]),
        (lambda: hx.Interval(0.5, np.nan, 1.0), ["lo = nan"]),
        (lambda: hx.Interval(0.5, -1e308, 1e308), ["hi - lo finite"]),
        (lambda: hx.LogInterval(0.1, 0.1, 1.0), ["LogInterval", "got 0.1", "strictly between 0.1 and 1.0"]),
        (lambda: hx.LogInterval(0.5, 0.0, 1.0), ["lo = 0.0", "0 < lo < hi"]),
        (lambda: hx.LogInterval(0.5, -1.0, 1.0), ["lo = -1.0"]),
        (lambda: hx.LogInterval(0.5, 1.0, 0.1), ["lo = 1.0"]),
        (lambda: hx.LogInterval(1.0, 1e-300, 1e300), ["hi / lo finite"]),
        (lambda: hx.LogInterval(1.0, 0.1, np.nan), ["hi = nan"]),
        (lambda: hx.Simplex(0.5), ["shape ()", "at least 2"]),
        (lambda: hx.Simplex([1.0]), ["shape (1,)", "at least 2"]),
        (lambda: hx.Simplex([0.0, 1.0]), ["got 0.0", "> 0"]),
        (lambda: hx.Simplex([0.5, 0.6]), ["got 1.1", "sum is 1"]),
        (lambda: hx.Simplex([[0.5, 0.5], [0.4, 0.5]]), ["got 0.9"]),
    ],
)
def test_values_outside_the_set_are_refused(make, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        make()
    for word in words:
        assert word in str(raised.value)


def test_validated_turns_numbers_into_arrays_and_keeps_the_rest():
    leaf = hx.Positive(2.0)
    hyper = validated({"a": 1, "b": [0.5, np.float32(2.0)], "c": leaf, "nothing": None})
    assert hyper["a"].dtype == np.float64
    assert hyper["b"][1].dtype == np.float32
    assert hyper["c"] is leaf
    assert hyper["nothing"] is None


@pytest.mark.parametrize(
    ("hyper", "words"),
    [
        ({}, ["without leaves"]),
        (None, ["without leaves"]),
        ({"a": [1.0, "x"]}, ["hyper['a'][1]", "real numbers"]),
        ({"a": np.nan}, ["hyper['a']", "got nan", "finite"]),
        ({"a": np.array([1.0, np.inf])}, ["hyper['a']", "got inf"]),
        ({"rate": (1.0, True)}, ["hyper['rate'][1]", "bool"]),
        ({"f": np.sin}, ["hyper['f']"]),
        ({"a": eqx.tree_at(lambda one: one.raw, hx.Positive(1.0), jnp.asarray(np.nan))}, ["hyper['a']", "nan"]),
    ],
)
def test_hyperparameters_that_cannot_be_tuned_are_refused_by_name(hyper, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        validated(hyper)
    for word in words:
        assert word in str(raised.value)
