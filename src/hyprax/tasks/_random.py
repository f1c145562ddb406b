"""NumPy generators made from JAX keys: what is random here is drawn on the host, in float64."""

from typing import Any

import jax
import numpy as np

from .._keys import checked_key


def generator(owner: str, key: Any) -> np.random.Generator:
    """A generator whose draws are a function of the key's data; `owner` names who asked, for the error."""
    return np.random.default_rng(np.asarray(jax.random.key_data(checked_key(owner, key))).ravel())


def generators(owner: str, key: Any, count: int) -> list[np.random.Generator]:
    """One generator for each of the keys that `key` is split into."""
    data = np.asarray(jax.random.key_data(jax.random.split(checked_key(owner, key), count)))
    return [np.random.default_rng(words) for words in data.reshape(count, -1)]
