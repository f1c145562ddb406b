"""Leaves joined to vectors, and taken apart again."""

import jax
import jax.numpy as jnp
import numpy as np

from hyprax.unroll._packing import JOINED, pack


def tree():
    return {
        "a": jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3),
        "b": (jnp.asarray(7.0, jnp.float32), jnp.zeros((0, 4), jnp.float32)),
        "c": jnp.arange(4.0, dtype=jnp.float64),
        "d": jnp.arange(3.0, dtype=jnp.float32),
        "large": jnp.arange(float(JOINED), dtype=jnp.float32).reshape(-1, 2),
    }


def test_trees_come_back_from_vectors_of_one_group_and_dtype():
    packing = pack(tree(), [0, 0, 0, 0, 1, 0])
    leaves = [vector.leaves for vector in packing.vectors]
    assert leaves == [(0, 1, 2), (3,), (4,), (5,)]  # another dtype, another group, a large leaf in its shape
    assert [vector.group for vector in packing.vectors] == [0, 0, 1, 0]
    vectors = packing.join(tree())
    for vector, numbers in zip(packing.vectors, vectors, strict=True):
        assert numbers.shape == vector.shape
        assert numbers.dtype == vector.dtype
    assert packing.size == sum(leaf.size for leaf in jax.tree.leaves(tree()))
    back = packing.split(vectors)
    assert jax.tree.structure(back) == jax.tree.structure(tree())
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree()), strict=True):
        assert np.array_equal(a, b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_words_are_split_as_weights_are():
    packing = pack(tree(), [0] * 6)
    words = [jnp.arange(vector.size) for vector in packing.vectors]
    back = packing.split(words)
    assert back["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert int(back["b"][0]) == 6
    assert back["d"].tolist() == [7, 8, 9]
