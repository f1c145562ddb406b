"""Products of matrices in the full precision of their dtype.

Some accelerators multiply float32 with ten bits unless told otherwise: that spoils a Cholesky factor that follows, and
breaks a bound whose proof counts the rounding. A user's own model keeps whatever precision it asks for.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def product(a: Array, b: Array) -> Array:
    """a b, over leading axes."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def einsum(equation: str, *operands: Array) -> Array:
    """`jnp.einsum`."""
    return jnp.einsum(equation, *operands, precision=lax.Precision.HIGHEST)
