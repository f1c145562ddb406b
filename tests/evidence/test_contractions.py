"""Gram matrices of one tensor from random factors, in tiles and pieces of every number, against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyprax.evidence import _contractions
from hyprax.evidence._contractions import _by_columns, _pairwise
from hyprax.evidence._plan import Group
from thoroughness import quickly, slow

SIZES = [(1, 1, 1, 2, 3, 2), (2, 3, 2, 3, 4, 5), (5, 2, 3, 4, 2, 3), (6, 1, 1, 5, 3, 2), (7, 2, 1, 3, 5, 4)]
"""M, R, B, S, I, O."""


def factors(sizes: tuple[int, ...], lookup: bool) -> tuple[Group, jax.Array, jax.Array, np.ndarray]:
    """A use with its a and g, and the gradients [M, R, B, O, I] by their definition."""
    m, r, b, s, i, o = sizes
    rng = np.random.default_rng(sizes)
    group = Group((0,), np.arange(b * i * o).reshape(b, i, o), s, lookup)
    g = rng.normal(size=(m, r, b, s, o))
    if lookup:
        ids = rng.integers(-1, i, size=(m, b, s))
        a, full = jnp.asarray(ids), (ids[..., None] == np.arange(i)).astype(float)
    else:
        full = rng.normal(size=(m, b, s, i))
        a = jnp.asarray(full)
    return group, a, jnp.asarray(g), np.einsum("mbsi,mrbso->mrboi", full, g)


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("sizes", quickly(SIZES, *SIZES[::2]))
def test_pairs_in_tiles_of_any_size_are_the_products_of_gradients(sizes: tuple[int, ...], lookup: bool) -> None:
    group, a, g, gradients = factors(sizes, lookup)
    m, r, b, s, _, o = sizes
    pair = 8 * b * s * r * (o + s) * -(-m // 2)
    expected = np.einsum("mrboi,nqboi->mrnq", gradients, gradients)
    for examples in {1, 2, m}:  # in a tile
        found = _pairwise(group, a, g, pair * examples)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("sizes", [*quickly(SIZES, *SIZES[1::2]), (40, 7, 1, 2, 3, 5), slow((70, 2, 1, 2, 5, 3))])
def test_columns_in_pieces_are_the_products_of_gradients(
    sizes: tuple[int, ...], lookup: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, a, g, gradients = factors(sizes, lookup)
    m, r, b, _, i, o = sizes
    variance = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, size=(b, o, i)))
    for pieces in (1, 3, 100):
        monkeypatch.setattr(_contractions, "_TILE", max(1, 8 * m * r * b * i * o // pieces))
        for v in (None, variance):
            weighted = gradients if v is None else gradients * np.asarray(v)
            expected = np.einsum("mrboi,nqboi->mrnq", weighted, gradients)
            found = _by_columns(group, a, g, v, 1 << 30)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
