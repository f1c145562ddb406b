"""Norms of data matrices, bounded from above with the rounding of their computation."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DENSE_LIMIT = 2000


def gram_norm_bound(x: np.ndarray) -> float:
    """An upper bound of ‖XᵀX‖₂ = ‖X‖₂², for X of shape (n, d); 0 for an empty X.

    For min(n, d) <= 2,000 the largest eigenvalue of the smaller Gram matrix G, raised by a bound of its error:
    forming G in floating point moves it by at most γ_k trace(G) in norm (k the summed dimension, γ_k = k u/(1 - k
    u)), and a backward stable symmetric eigenvalue solver by a small multiple of m u ‖G‖ (m its order; 10 is used).
    Beyond that the smaller of the trace and ‖X‖₁‖X‖_∞, each raised by γ of its own summation. A power iteration would
    bound it from BELOW.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), chapters 3 and 6.
    """
    x = np.asarray(x, dtype=np.float64)
    if x.size == 0:
        return 0.0
    n, d = x.shape
    unit = np.finfo(np.float64).eps / 2
    trace = float(np.sum(np.square(x))) * (1 + 2 * (n * d + 12) * unit)
    absolute = np.abs(x)
    product = float(absolute.sum(axis=0).max() * absolute.sum(axis=1).max()) * (1 + 2 * (n + d + 12) * unit)
    bound = min(trace, product)
    small, summed = min(n, d), max(n, d)
    if small <= DENSE_LIMIT:
        gram = x.T @ x if d <= n else x @ x.T
        top = float(np.linalg.eigvalsh(gram)[-1])
        bound = min(bound, top + ((summed + 12) + 10 * small) * unit * trace)
    return max(bound, 0.0)


class DesignNorms(eqx.Module):
    """Upper bounds of norms of a data matrix X `(n, d)`, worked out once: products with |X| are then never needed.

    - `gram`: of ‖XᵀX‖₂.
    - `rows`, `columns`: of the Euclidean norms of its rows and columns, so that (|X||v|)_i <= rows_i ‖v‖₂ and
      (|X|ᵀ|e|)_j <= columns_j ‖e‖₂; for dense data both are near equality.
    """

    gram: Float[Array, ""]
    rows: Float[Array, " n"]
    columns: Float[Array, " d"]

    def __init__(self, inputs: Array):
        x = np.asarray(inputs, dtype=np.float64)
        raised = 1 + (max(x.shape) + 12) * np.finfo(np.float64).eps
        self.gram = jnp.asarray(gram_norm_bound(x))
        self.rows = jnp.asarray(raised * np.sqrt(np.sum(np.square(x), axis=1)))
        self.columns = jnp.asarray(raised * np.sqrt(np.sum(np.square(x), axis=0)))
