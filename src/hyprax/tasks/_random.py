"""NumPy generators made from JAX keys: what is random here is drawn on the host, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def generator(owner: str, key: Any) -> np.random.Generator:
    """A generator whose draws are a function of the key's data; `owner` names who asked, for the error."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"{owner}: key must be a JAX random key, such as jax.random.key(0); got {key!r}.")
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
