"""Minibatches: a permutation of the examples an epoch, random access by step, uniformity, errors."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import hyprax as hx
from hyprax._batches import permuted

# One size of each number of bits, and those beside a power of two; the sizes between them are slow tests.
EDGES = [1, 2, 3, 4, 5, 8, 16, 17, 33, 64, 257, 4096, 65537]
BETWEEN = [6, 7, *range(9, 16), 18, 19, 31, 32, 63, 65, 255, 256, 1000, 4095, 4097]


def batches(size: int, batch_size: int, seed: int = 0) -> hx.Minibatches:
    return hx.Minibatches(jnp.arange(size), batch_size, key=jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def images(size: int, keys: jax.Array) -> jax.Array:
    """Permutations of 0..size-1, one a key: one program, where each operation of its own would be many."""
    return jax.vmap(lambda key: permuted(jnp.arange(size), size, key))(keys)


@pytest.mark.parametrize("size", [*EDGES, *(pytest.param(size, marks=pytest.mark.slow) for size in BETWEEN)])
def test_permuted_is_a_bijection(size):
    found = np.sort(images(size, jax.random.split(jax.random.key(0), 3)), axis=1)
    np.testing.assert_array_equal(found, np.tile(np.arange(size), (3, 1)))


@jax.jit
def an_epoch(source: hx.Minibatches, first: jax.Array) -> jax.Array:
    return jax.vmap(source.indices)(first + jnp.arange(source.per_epoch))


@pytest.mark.parametrize(
    ("size", "batch_size"), [(1, 1), (2, 1), (3, 2), (5, 5), (16, 3), (50, 7), (97, 96), (128, 32), (200, 1)]
)
@hypothesis.given(seed=st.integers(0, 2**31), epoch=st.integers(0, 10**6))
def test_an_epoch_visits_every_example_at_most_once(size, batch_size, seed, epoch):
    source = batches(size, batch_size, seed)
    assert source.per_epoch == size // batch_size
    assert source.size == size
    seen = np.asarray(an_epoch(source, jnp.asarray(epoch * source.per_epoch)))
    assert seen.shape == (source.per_epoch, batch_size)
    assert np.unique(seen).size == seen.size
    assert seen.min() >= 0
    assert seen.max() < size


@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (10, 3), (10, 10)])
def test_random_access_gives_the_bits_of_sequential_access(size, batch_size):
    source = batches(size, batch_size)
    steps = 3 * source.per_epoch + 2
    sequential = np.stack([source(step) for step in range(steps)])
    order = np.random.default_rng(0).permutation(steps)
    for step in [*order, *reversed(range(steps))]:
        np.testing.assert_array_equal(source(int(step)), sequential[step])
    np.testing.assert_array_equal(jax.vmap(source)(jnp.arange(steps)), sequential)
    np.testing.assert_array_equal(jax.lax.map(source, jnp.arange(steps)), sequential)
    jitted = jax.jit(lambda source, step: source(step))
    np.testing.assert_array_equal(np.stack([jitted(source, step) for step in range(steps)]), sequential)


@pytest.mark.parametrize("step", [7, np.int8(7), np.uint8(7), np.uint32(7), jnp.asarray(7, jnp.int32), jnp.asarray(7)])
def test_the_integer_type_of_a_step_does_not_matter(step):
    source = batches(11, 3)
    np.testing.assert_array_equal(source(step), source(7))


def test_the_width_of_the_default_types_does_not_matter():
    wide = np.stack([batches(11, 3)(step) for step in range(9)])
    with jax.enable_x64(False):
        narrow = np.stack([batches(11, 3)(step) for step in range(9)])
    np.testing.assert_array_equal(wide, narrow)


def test_data_is_any_pytree_and_its_leaves_stay_together():
    x, y = np.random.default_rng(0).standard_normal((20, 3, 2)), np.arange(20)
    source = hx.Minibatches({"x": x, "y": (y,)}, 6, key=jax.random.key(1))
    batch = source(5)
    np.testing.assert_array_equal(batch["x"], x[np.asarray(batch["y"][0])])
    np.testing.assert_array_equal(batch["y"][0], source.indices(5))


def test_epochs_and_keys_differ():
    def epoch(number: int, seed: int) -> tuple[int, ...]:
        return tuple(np.asarray(batches(50, 50, seed)(number)))

    assert len({epoch(number, seed) for number in range(10) for seed in range(10)}) == 100


def test_what_an_epoch_leaves_over_differs():
    left = {frozenset(range(10)) - frozenset(np.asarray(batches(10, 7)(epoch)).tolist()) for epoch in range(30)}
    assert len(left) > 10


@pytest.mark.parametrize(
    "size", [2, 5, 17, *(pytest.param(size, marks=pytest.mark.slow) for size in (3, 4, 7, 8, 13, 16, 100))]
)
def test_every_position_is_uniform_over_keys(size):
    # Bonferroni over the positions; the keys are fixed, so this either always passes or never.
    keys = jax.random.split(jax.random.key(size), 20_000)
    found = np.asarray(images(size, keys))
    for position in range(size):
        counts = np.bincount(found[:, position], minlength=size)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3 / size


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 11, 16, 30])
def test_every_pair_of_positions_is_uniform_over_keys(size):
    keys = jax.random.split(jax.random.key(100 + size), 40_000)
    found = np.asarray(images(size, keys))
    allowed = ~np.eye(size, dtype=bool).ravel()
    for i, j in [(0, 1), (0, size - 1), (size - 2, size - 1)]:
        if i != j:
            counts = np.bincount(found[:, i] * size + found[:, j], minlength=size * size)
            assert scipy.stats.chisquare(counts[allowed]).pvalue > 1e-3 / 3


@pytest.mark.parametrize("size", [3, 4])
def test_all_permutations_of_a_few_examples_are_equally_likely(size):
    keys = jax.random.split(jax.random.key(200 + size), 40_000)
    found = np.asarray(images(size, keys))
    _, counts = np.unique(found @ (size ** np.arange(size)), return_counts=True)
    assert counts.size == (6 if size == 3 else 24)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_neighbours_are_not_kept_together():
    # The number of i with pi(i + 1) = pi(i) + 1 has mean (n - 1)/n and variance close to 1.
    keys = jax.random.split(jax.random.key(3), 2_000)
    found = np.asarray(images(300, keys))
    kept = np.sum(np.diff(found, axis=1) == 1, axis=1)
    assert abs(kept.mean() - 299 / 300) < 5 / np.sqrt(len(keys))


@pytest.mark.parametrize("size", [2**20 + 1, 2**30])
def test_large_sizes_need_no_array_of_their_size(size):
    index = jnp.asarray([0, 1, 2, size // 2, size - 1])
    image = np.asarray(jax.jit(permuted, static_argnums=1)(index, size, jax.random.key(0)))
    assert np.unique(image).size == 5
    assert image.min() >= 0
    assert image.max() < size


@pytest.mark.parametrize(
    ("data", "batch_size", "error", "words"),
    [
        ({}, 1, ValueError, ["leading axes []"]),
        (np.zeros(()), 1, ValueError, ["leading axes [()]"]),
        ([np.zeros(3), np.zeros(4)], 1, ValueError, ["(3,)", "(4,)", "the same length"]),
        ([np.zeros(3), np.zeros(())], 1, ValueError, ["()", "(3,)"]),
        (np.zeros((0, 2)), 1, ValueError, ["got 0"]),
        (np.zeros(5), 0, ValueError, ["between 1 and 5", "got 0"]),
        (np.zeros(5), 6, ValueError, ["between 1 and 5", "got 6"]),
        (np.zeros(5), -1, ValueError, ["batch_size", "got -1"]),
        (np.zeros(5), 2.5, TypeError, ["float", "integer"]),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_refused(data, batch_size, error, words):
    with pytest.raises(error) as raised:
        hx.Minibatches(data, batch_size, key=jax.random.key(0))
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("step", [1.0, np.float32(2.0), jnp.asarray(1.5), True])
@pytest.mark.usefixtures("unchecked")
def test_a_step_is_an_integer(step):
    with pytest.raises(TypeError, match="step must be an integer"):
        batches(10, 3)(step)
