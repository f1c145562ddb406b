"""NumPy generators made from JAX keys: what is random here is drawn on the host, in float64."""

from typing import Any

import jax
import numpy as np

from .._keys import checked_key


def generator(owner: str, key: Any) -> np.random.Generator:
    """A generator whose draws are a function of the key's data; `owner` names who asked, for the error."""
    return np.random.default_rng(np.asarray(jax.random.key_data(checked_key(owner, key))).ravel())
