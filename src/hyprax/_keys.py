"""Random keys, as arguments."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def checked_key(owner: str, key: Any) -> Array:
    """`key` if it is one JAX random key, new style or old.

    **Raises:** `ValueError` for anything else, in the name of `owner`.
    """
    if isinstance(key, jax.Array):
        new = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()
        old = key.dtype == jnp.uint32 and key.ndim == 1
        if new or old:
            return key
        got = f"an array of {key.dtype} and shape {key.shape}"
    else:
        got = repr(key) if isinstance(key, int | float | str | None) else f"a {type(key).__name__}"
    raise ValueError(f"{owner}: key must be one JAX random key, such as jax.random.key(0); got {got}.")
