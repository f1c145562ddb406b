"""Words and their units: factors that are not rounded, bits that are put away and come back."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.unroll._fixed_point import (
    LIMB_BITS,
    Long,
    Seen,
    as_wide,
    decode,
    encode,
    to_long,
    to_word,
    watch,
    wide,
    zeros_like,
)
from hyprax.unroll._scales import SHIFT_BITS, Store, make_scale, shifted, unshifted
from thoroughness import examples

pytestmark = pytest.mark.optimised  # rounding and bits are those of the compiler that users have

FINEST = 2.0**-50


@examples(50, 150)
@given(seed=st.integers(0, 2**32 - 1), above=st.booleans())
def test_units_take_every_factor_as_it_is_and_stay_in_their_range(seed, above):
    """U_{t+1} = γ_t U_t to the last place; after a step between 2^-F and 2^(8 - F)."""
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(1, 60))
    factors = rng.uniform(2.0**-8, 1.0, (steps, 2)) ** rng.uniform(0.01, 1)
    if above:
        factors = np.where(rng.random((steps, 2)) < 0.3, rng.uniform(1, 2, (steps, 2)), factors)
    scale = make_scale(factors, steps, 50)
    np.testing.assert_allclose(scale.after, factors * scale.units[:-1], rtol=3e-16)
    assert np.all(scale.after >= FINEST * (1 - 1e-12))
    assert np.all(scale.after <= FINEST * 2.0**SHIFT_BITS * (1 + 1e-12))
    for group, shifts in enumerate(scale.shifts):
        moved = dict(shifts)
        for t in range(1, steps):
            assert scale.units[t, group] == scale.after[t - 1, group] * 2.0 ** moved.get(t, 0)


@examples(15, 100)
@given(seed=st.integers(0, 2**32 - 1), place=st.sampled_from(["device", "host"]), long=st.booleans())
def test_a_state_under_factors_and_increments_comes_back_bit_for_bit(seed, place, long):
    """v ← γ v + g over 60 steps, undone; and v is what the recursion gives, to within the units."""
    rng = np.random.default_rng(seed)
    steps = 60
    factors = np.where(rng.random(steps) < 0.2, rng.uniform(1, 1.5, steps), rng.uniform(0.1, 1, steps))[:, None]
    scale, store = make_scale(factors, steps, 50), Store(place)
    moved, increments = dict(scale.shifts[0]), rng.standard_normal((steps, 16))
    word: Any = zeros_like(jnp.zeros(16), 2) if long else jnp.zeros(16, jnp.int64)
    made: Any = (lambda x, unit: to_long(x * unit, 2)) if long else encode
    true = np.zeros(16)
    for t in range(steps):
        word = store.shift(word, moved[t]) if t in moved else word
        word = word + made(jnp.asarray(increments[t]), 1 / scale.after[t, 0])
        true = factors[t, 0] * true + increments[t]
    np.testing.assert_allclose(decode(word, scale.after[-1, 0], jnp.float64), true, atol=steps * 2.0 ** (9 - 50))
    assert store.bytes == 16 * sum(k > 0 for k in moved.values()) == 16 * scale.kept(0) / 8
    for t in reversed(range(steps)):
        word = word - made(jnp.asarray(increments[t]), 1 / scale.after[t, 0])
        word = store.unshift(word, moved[t]) if t in moved else word
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(word))
    assert not len(store)


@pytest.mark.parametrize("momentum", [0.01, 0.3, 0.9, 0.99, 0.999])
def test_what_is_kept_is_the_logarithm_of_the_factor(momentum):
    """But for the bits that are still in the words when the run ends."""
    steps = 20_000
    scale = make_scale(np.array([[momentum]]), steps, 50)
    theory = steps * math.log2(1 / momentum)
    assert scale.theory[0] == pytest.approx(theory, rel=1e-12)
    assert theory - 8 <= scale.kept(0) <= theory + 1e-6


def test_factors_of_at_least_one_store_nothing():
    scale = make_scale(np.linspace(1, 2, 500)[:, None], 500, 50)
    assert scale.kept(0) == 0
    assert make_scale(np.ones((1, 3)), 500, 50).units.shape == (1, 3)


def test_short_runs_are_as_fine_as_they_can_be():
    """A β2 of .999 takes .14 bits in 100 steps: the unit starts at most twice as coarse as the finest."""
    scale = make_scale(np.array([[0.999]]), 100, 58)
    assert scale.units.max() == 2.0**-57
    assert scale.shifts == ((),)


@examples(100, 100)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=20))
def test_encoding_is_exact_to_the_last_place(values):
    values = values + [0.0] * (20 - len(values))  # one length, so that all examples share their programs
    x = jnp.asarray(values, jnp.float64)
    back = decode(encode(x, 2.0**48), 2.0**-48, jnp.float64)
    assert np.all(np.abs(np.asarray(back - x)) <= 2.0**-49)
    same = jnp.asarray(values, jnp.float32)
    assert np.all(np.abs(np.asarray(decode(encode(same, 2.0**48), 2.0**-48, jnp.float32) - same)) <= 2.0**-48)


@pytest.mark.parametrize(("value", "bits"), [(1, 50), (1 << 49, 50), (1 << 53, 54), (-(1 << 60), 60), (1 << 62, 63)])
def test_the_watch_sees_the_highest_bit(value, bits):
    word = jnp.asarray([0, value, 3], jnp.int64)
    seen = watch(jnp.zeros(3, jnp.int64), [jnp.zeros(3, jnp.int64), word], jnp.zeros(3))
    assert Seen([np.asarray(seen)]).bits == [50, bits, 50, 50]
    assert Seen([np.asarray(seen)]).finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_watch_sees_what_is_not_finite(bad):
    zero = jnp.zeros(2, jnp.int64)
    seen = watch(zero, [zero], jnp.asarray([0.0, bad], jnp.float32))
    assert not Seen([np.asarray(seen)]).finite


@pytest.mark.parametrize("value", [2.0**63 - 1024, 2.0**63, 1e30, -(2.0**63), -1e30, np.inf, -np.inf])
@pytest.mark.parametrize("word", [-(2**62), -(2**62) + 1, -1, 0, 1, 2**62 - 1])
def test_increments_that_do_not_fit_are_seen_in_what_they_are_added_to(value, word):
    """From no word in range does a sum with them, or a difference, come back into the range."""
    kick, zero = to_word(jnp.asarray([value])), jnp.zeros(1, jnp.int64)
    for total in (jnp.asarray([word]) + kick, jnp.asarray([word]) - kick):
        fits = Seen([np.asarray(watch(zero, [total], jnp.zeros(1)))]).bits[0] <= 62
        assert not fits or int(total[0]) in (word + int(kick[0]), word - int(kick[0]))
        assert not (fits and abs(value) >= 2.0**63)


@examples(50, 300)
@given(seed=st.integers(0, 2**32 - 1))
def test_words_are_rounded_once_to_the_nearest_both_ways(seed):
    """As NumPy's conversions, of numbers of every magnitude and of ties."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, 64) * 2.0 ** rng.integers(-3, 64, 64)
    x[:16] = rng.integers(-(2**50), 2**50, 16) + 0.5
    assert np.array_equal(to_word(jnp.asarray(x)), np.rint(x).astype(np.int64))
    words = rng.integers(-(2**63), 2**63 - 1, 64) >> rng.integers(0, 63, 64)
    assert np.array_equal(as_wide(jnp.asarray(words)), words.astype(np.float64))


def as_integers(number):
    """Exactly, as Python's integers."""
    return [
        sum(int(limb) << (LIMB_BITS * i) for i, limb in enumerate(limbs)) for limbs in zip(*number.limbs, strict=True)
    ]


def canonical(number):
    half = 2.0 ** (LIMB_BITS - 1)
    return all(np.all((-half <= limb) & (limb < half)) for limb in number.limbs[:-1])


@examples(30, 300)
@given(seed=st.integers(0, 2**32 - 1), limbs=st.sampled_from([2, 3]))
def test_long_numbers_are_those_of_pythons_integers(seed, limbs):
    """Sums, differences and shifts of 104 and 156 bits, of every magnitude and at the edges of limbs."""
    rng = np.random.default_rng(seed)
    kicks = rng.uniform(-1, 1, (5, 40)) * 2.0 ** rng.integers(-3, 52 * limbs - 4, (5, 40))
    kicks[:, :12] = rng.choice([-1.0, 1.0], (5, 12)) * 2.0 ** rng.choice([0, 44, 50, 51, 52, 95, 100], (5, 12))
    kicks[:, 6:12] += rng.integers(-2, 3, (5, 6))
    expected = np.asarray([[int(np.rint(x)) if abs(x) < 2**52 else int(x) for x in row] for row in kicks], object)
    numbers = [zeros_like(jnp.zeros(40), limbs)]
    for kick in kicks:
        numbers.append(numbers[-1] + to_long(jnp.asarray(kick), limbs))
        assert canonical(numbers[-1])
    total = np.sum(expected, 0)
    assert as_integers(numbers[-1]) == total.tolist()
    np.testing.assert_allclose(as_wide(numbers[-1]), total.astype(float), rtol=3e-16)
    back = numbers[-1]
    for kick, before in zip(kicks[::-1], numbers[-2::-1], strict=True):
        back = back - to_long(jnp.asarray(kick), limbs)
        assert jax.tree.all(jax.tree.map(np.array_equal, back, before))
    for bits in (8, 0, -1):
        moved, low = shifted(numbers[-1], bits)
        assert as_integers(moved) == [x >> bits if bits >= 0 else x << -bits for x in total]
        assert low.tolist() == [x & 255 for x in total]
        assert canonical(moved)
        assert jax.tree.all(jax.tree.map(np.array_equal, unshifted(moved, low, bits), numbers[-1]))


@pytest.mark.parametrize("value", [2.0**105, 1e40, np.inf])
@pytest.mark.parametrize("high", [-(2.0**52) + 1, 0.0, 2.0**52 - 1])
def test_long_increments_that_do_not_fit_are_seen(value, high):
    for sign in (1, -1):
        total = Long((jnp.zeros(1), jnp.asarray([high]))) + to_long(jnp.asarray([sign * value]), 2)
        seen = watch(jnp.zeros(1, jnp.int64), [jnp.zeros(1, jnp.int64), total], jnp.zeros(1))
        assert Seen([np.asarray(seen)]).bits[1] > 62


def test_words_exist_with_64_bit_types_off():
    with jax.enable_x64(False), wide():
        assert encode(jnp.ones(2, jnp.float32), 2.0**40).dtype == jnp.int64
    assert jnp.zeros(()).dtype == jnp.float64
