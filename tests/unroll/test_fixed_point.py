"""Words and rational factors: bijections, their growth, and the ways to choose the rationals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from hyprax.unroll._fixed_point import Seen, decode, encode, watch, wide
from hyprax.unroll._rational import (
    complement,
    divide,
    dyadic,
    exact_bits,
    floor_divide,
    least_gap,
    limit_bits,
    multiply,
    nearest,
    plan,
)
from hyprax.unroll._spill import Spill

pytestmark = pytest.mark.optimised  # rounding and bits are those of the compiler that users have

multiply_jit = jax.jit(multiply, static_argnums=4)
divide_jit = jax.jit(divide, static_argnums=4)


@settings(max_examples=150)
@given(n=st.integers(1, 1 << 40), data=st.data())
def test_division_by_an_invariant_is_floor_division(n, data):
    largest = min(n << 50, 1 << 62) - 1
    x = data.draw(st.lists(st.integers(-largest, largest), min_size=1, max_size=30))
    x += [-largest, largest, 0, -1, n, -n, n - 1, 1 - n]
    x = [value for value in x if abs(value) <= largest]
    quotient, rest = jax.jit(floor_divide)(jnp.asarray(x, jnp.int64), jnp.asarray(n))
    assert quotient.tolist() == [value // n for value in x]
    assert rest.tolist() == [value % n for value in x]


@settings(max_examples=100)
@given(data=st.data())
def test_multiplication_is_undone_and_is_what_its_formula_says(data):
    shift = data.draw(st.one_of(st.none(), st.integers(2, 20)))
    d = 1 << shift if shift else data.draw(st.integers(1 << 10, 1 << 20))
    n = data.draw(st.integers(1, 4 * d))
    limit = 1 << (limit_bits(np.array([n]), np.array([d])) - 3)
    v = data.draw(st.lists(st.integers(-limit, limit), min_size=1, max_size=20))
    room = min((1 << 62) // d, (n << 50) // d, 1 << 50) - 1  # what a plan lets a buffer hold
    buffer = [data.draw(st.integers(0, room)) for _ in v]
    args = jnp.asarray(v), jnp.asarray(buffer), jnp.asarray(n), jnp.asarray(d)
    after, kept = multiply_jit(*args, shift)
    for i, (value, b) in enumerate(zip(v, buffer, strict=True)):  # Python's own integers
        x = b * d + value % d
        assert (int(after[i]), int(kept[i])) == ((value // d) * n + x % n, x // n)
        assert abs(int(after[i]) - value * n / d) <= n + 1 + abs(value * n / d) * 2.0**-50
    again, empty = divide_jit(after, kept, *args[2:], shift)
    assert again.tolist() == v
    assert empty.tolist() == buffer


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), power=st.sampled_from([None, 8, 12, 16]))
def test_long_chains_of_factors_come_back_within_their_plan(seed, power):
    """Random factors below and above 1, with additions between; buffers spill where the plan says and stay below it."""
    rng = np.random.default_rng(seed)
    steps = 80
    values = np.where(rng.random(steps) < 0.2, rng.uniform(1, 1.5, steps), rng.uniform(0.02, 1, steps))[:, None]
    factor = nearest(values, 10) if power is None else dyadic(values, power)
    planned = plan(factor.n[:, 0], factor.d[:, 0], steps)
    start = rng.integers(-(1 << 40), 1 << 40, 64)
    v, buffer = jnp.asarray(start), jnp.zeros(64, jnp.int64)
    add = rng.integers(-(1 << 38), 1 << 38, (steps, 64))
    spill = Spill("host")
    for t in range(steps):
        for _ in range(planned.steps.count(t)):
            buffer = spill.take(buffer)
        v, buffer = multiply_jit(v, buffer, jnp.asarray(factor.n[t, 0]), jnp.asarray(factor.d[t, 0]), factor.shift)
        v = v + add[t]
    assert int(jnp.max(buffer)) < planned.bound
    assert len(spill) == len(planned.steps)
    for t in reversed(range(steps)):
        v = v - add[t]
        v, buffer = divide_jit(v, buffer, jnp.asarray(factor.n[t, 0]), jnp.asarray(factor.d[t, 0]), factor.shift)
        for _ in range(planned.steps.count(t)):
            buffer = spill.put(buffer)
    assert np.array_equal(v, start)
    assert not np.any(buffer)
    assert not len(spill)


@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("choose", [lambda v: nearest(v, 12), lambda v: dyadic(v, 16)])
def test_what_is_kept_is_the_logarithm_of_the_factor(momentum, choose):
    steps = 20_000
    factor = choose(np.array([[momentum]]))
    planned = plan(factor.n[:, 0], factor.d[:, 0], steps)
    theory = exact_bits(factor.n[:, 0], factor.d[:, 0], steps)
    assert theory / steps == pytest.approx(math.log2(1 / momentum), rel=2.0**-17 / (1 - momentum))
    assert theory <= planned.bits <= theory * 1.03 + 10


def test_factors_of_at_least_one_store_nothing():
    values = np.linspace(1, 2, 500)[:, None]
    for factor in (nearest(values, 10), dyadic(values, 16)):
        planned = plan(factor.n[:, 0], factor.d[:, 0], 500)
        assert planned.steps == ()
        assert planned.bound <= 2


def test_buffers_give_back_what_factors_above_one_take():
    n, d = np.array([900, 1000] * 5000), np.array([1000, 900] * 5000)
    assert plan(n, d, 10_000).steps == ()


@given(values=st.lists(st.floats(0.001, 3.9), min_size=1, max_size=20), bits=st.integers(4, 18))
def test_the_nearest_fraction_is_at_least_as_near_as_a_power_of_two(values, bits):
    given_values = np.array(values)[:, None]
    free, shifted = nearest(given_values, bits), dyadic(given_values, bits)
    assert np.all(np.abs(free.value - given_values) <= np.abs(shifted.value - given_values) + 1e-15)
    assert np.all(free.d >= 1 << 10)
    near = (given_values < 1) & (1 - given_values < 2.0**-bits)
    assert np.all(free.d[~near] < 1 << max(bits + 1, 11))


@given(gap=st.floats(1e-7, 0.5), bits=st.integers(8, 18))
def test_factors_near_one_keep_the_relative_accuracy_of_their_gap(gap, bits):
    """A factor that became 1 would leave a momentum or a second moment without its gain 1 - n/d."""
    assume(gap > 2 * least_gap(bits))
    factor = nearest(np.array([[1 - gap]]), bits)
    kept = float((factor.d - factor.n)[0, 0] / factor.d[0, 0])
    assert abs(kept - gap) <= gap * max(gap, 2.0 ** -(bits - 1))
    assert np.all(factor.d <= 2 / least_gap(bits))


@given(small=st.floats(1e-6, 0.9))
def test_complements_keep_the_relative_accuracy_of_small_decays(small):
    factor = complement(np.array([[small]]), 24)
    decay = float((factor.d - factor.n)[0, 0] / factor.d[0, 0])
    assert abs(decay - small) <= small * max(small / 2 * 1.01, 1e-4)
    assert complement(np.array([[0.0]]), 24).value.item() == 1.0


@settings(max_examples=100)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=20))
def test_encoding_is_exact_to_the_last_place(values):
    x = jnp.asarray(values, jnp.float64)
    back = decode(encode(x, 48), 48, jnp.float64)
    assert np.all(np.abs(np.asarray(back - x)) <= 2.0**-49)
    same = jnp.asarray(values, jnp.float32)
    assert np.all(np.abs(np.asarray(decode(encode(same, 48), 48, jnp.float32) - same)) <= 2.0**-48)


@pytest.mark.parametrize(("value", "bits"), [(1, 50), (1 << 49, 50), (1 << 53, 54), (-(1 << 60), 60), (1 << 62, 63)])
def test_the_watch_sees_the_highest_bit(value, bits):
    word = jnp.asarray([0, value, 3], jnp.int64)
    seen = watch(jnp.zeros(3, jnp.int64), [[jnp.zeros(3, jnp.int64)], [word]], jnp.zeros(3))
    assert Seen([np.asarray(seen)]).bits == [50, bits, 50, 50]
    assert Seen([np.asarray(seen)]).finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_watch_sees_what_is_not_finite(bad):
    zero = jnp.zeros(2, jnp.int64)
    seen = watch(zero, [[zero]], jnp.asarray([0.0, bad], jnp.float32))
    assert not Seen([np.asarray(seen)]).finite


def test_increments_that_do_not_fit_are_seen():
    """They saturate, and so cannot come round to a small word unnoticed."""
    for value in (1e30, -1e30, 2.0**14.5):
        word = encode(jnp.asarray([value]), 48)
        assert Seen([np.asarray(watch(jnp.zeros(1, jnp.int64), [[word]], jnp.zeros(1)))]).bits[0] > 62


def test_words_exist_with_64_bit_types_off():
    with jax.enable_x64(False), wide():
        assert encode(jnp.ones(2, jnp.float32), 40).dtype == jnp.int64
    assert jnp.zeros(()).dtype == jnp.float64
