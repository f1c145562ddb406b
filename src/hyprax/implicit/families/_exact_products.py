"""Products of a data matrix with a vector far beyond working precision, by error-free splitting.

The contraction of k terms is exact in float64, in any order of summation, when each factor is an integer of at most
β = (53 - log2 k)/2 bits times a power of two common to the contraction. So both factors are cut into two such slices
and a remainder of 2^-2β of their size (Ozaki, Ogita, Oishi and Rump, Numer. Algorithms 59, 2012): four exact products,
added in double-double arithmetic, and two of the remainders, whose rounding is 2^-2β smaller than usual. It runs at the
speed of ordinary matrix products, on dense and on sparse data.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._constants import UNIT
from .._double_double import DoubleDouble, lifted
from ._chunked import Chunked
from ._design import Design, SparseDesign, backward, forward

EXPONENT = 0x7FF0000000000000
"""The bits of a float64 that are its exponent."""


def slice_bits(terms: int) -> int:
    """β for contractions of so many terms."""
    return (53 - math.ceil(math.log2(max(terms, 2)))) // 2


def extended_unit(terms: int) -> float:
    """u' such that these products are off by at most (k + 12) u' ‖x_i‖₂‖v‖₂ for k = `terms`, entry by entry.

    The remainders, of relative size 2^-2β of the largest factors, are multiplied in working precision (γ_k = (k + 12)
    u): with Σ|x| <= √k ‖x‖₂ that is γ_k (4√k 2^-2β + 2u)‖x‖‖v‖; the double-double sums add less than u².
    """
    return UNIT * (8 * math.sqrt(terms) * 2.0 ** (-2 * slice_bits(terms)) + 8 * UNIT)


def _scale(largest: Array) -> Array:
    """The power of two above each number >= 0, from 2^-1021 to 2^1023: its exponent alone, and one more."""
    below = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(largest, jnp.int64) & EXPONENT, largest.dtype)
    return 2 * jnp.clip(below, 2.0**-1022, 2.0**1022)


def _slices(x: Array, scale: Array, bits: int) -> tuple[Array, Array, Array]:
    """x = x1 + x2 + rest exactly, x1 and x2 integers of `bits` bits times powers of two common to equal scales."""
    step = 2.0**bits
    x1 = jnp.round(x / scale * step) / step * scale
    rest = x - x1
    x2 = jnp.round(rest / scale * step * step) / step / step * scale
    return x1, x2, rest - x2


def _design_slices(x: SparseDesign | Array, by_row: bool, bits: int) -> tuple[Design, Design, Design]:
    """Slices with a scale for each row (for X v), or for each column (for Xᵀv)."""
    if isinstance(x, SparseDesign):
        entries, rows, columns = x.by_row if by_row else x.by_column
        places, count = (rows, x.shape[0]) if by_row else (columns, x.shape[1])
        largest = jax.ops.segment_max(jnp.abs(entries), places, num_segments=count, indices_are_sorted=True)
        scale = _scale(jnp.maximum(largest, 0))[places]
        which = (lambda s: s.by_row[0]) if by_row else (lambda s: s.by_column[0])
        x1, x2, rest = _slices(entries, scale, bits)
        return eqx.tree_at(which, x, x1), eqx.tree_at(which, x, x2), eqx.tree_at(which, x, rest)
    scale = _scale(jnp.max(jnp.abs(x), axis=1 if by_row else 0, keepdims=True))
    return _slices(x, scale, bits)


def _contract(x: Design, v: DoubleDouble, by_row: bool) -> DoubleDouble:
    if isinstance(x, Chunked):
        # Chunks have fewer terms, so their remainders are smaller; a sum of them in double-double loses u² for each.
        return x.exact(lambda chunk, part: _contract(chunk, part, by_row), v, by_row)
    terms = x.shape[1] if by_row else x.shape[0]
    bits = slice_bits(terms)
    apply = forward if by_row else backward
    x1, x2, x_rest = _design_slices(x, by_row, bits)
    scale = _scale(jnp.max(jnp.abs(v.hi), axis=0, keepdims=v.hi.ndim > 1))
    v1, v2, v_rest = _slices(v.hi, scale, bits)
    result = lifted(apply(x1, v1))
    for exact in (apply(x1, v2), apply(x2, v1), apply(x2, v2)):
        result = result + lifted(exact)
    return result + lifted(apply(x, v_rest + v.lo) + apply(x_rest, v1 + v2))


def exact_forward(x: Design, v: DoubleDouble) -> DoubleDouble:
    """X v, off by at most (d + 12) `extended_unit(d)` ‖x_i‖‖v‖."""
    return _contract(x, v, by_row=True)


def exact_backward(x: Design, v: DoubleDouble) -> DoubleDouble:
    """Xᵀ v, off by at most (n + 12) `extended_unit(n)` ‖X_j‖‖v‖."""
    return _contract(x, v, by_row=False)
