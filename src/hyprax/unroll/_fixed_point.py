"""Fixed-point numbers: int64 words in a stated unit, and what may leave them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64

LIMIT_BITS = 62
"""Words are kept below 2^62 in magnitude, so that a sum of two never wraps unnoticed."""
COARSE_BITS = 50
"""Magnitudes are watched in powers of two from 2^50 on."""
FIELD_BITS = 13
"""The width of one watched magnitude: bits 50..62 of a word."""
FIELDS = 4
"""Watched magnitudes in one word; the bit above them says that something was not finite."""

_LOW, _HIGH = 0x4330 << 48, 0x4530 << 48
"""The bits of 2^52 and 2^84 as float64."""

Word = Int64[Array, "..."]
Wide = Float[Array, "..."]
T = TypeVar("T")


def wide() -> AbstractContextManager[Any]:
    """Within: 64-bit integers and floats, whatever the user's setting."""
    return jax.enable_x64(True)


def as_user(user_x64: bool, function: Callable[..., T]) -> Callable[..., T]:
    """`function`, traced under the user's own setting: under the other, dtypes and random draws would differ."""

    def traced(*args: Any) -> T:
        with jax.enable_x64(user_x64):
            return function(*args)

    return traced


def to_word(x: Array) -> Word:
    """rint(x), as int64; what does not fit becomes -2^63, from which no sum with a word comes back into the range.

    Two halves of 32 bits, each read off the digits of a sum with 1.5 2^52. Processors convert only a number at a time,
    and compilers guard that; this is exact too, and a third of the time of a step in fixed point.
    """
    x = jnp.clip(x, -(2.0**63), 2.0**63)  # which also keeps a product before it apart from the sums here
    high = jnp.rint(x * 2.0**-32)
    return (_digits(high) << 32) + _digits(x - high * 2.0**32)


def _digits(x: Array) -> Word:
    """rint(x) for |x| <= 2^31."""
    shifted = jax.lax.bitcast_convert_type(x + 1.5 * 2.0**52, jnp.int64)
    return shifted - jax.lax.bitcast_convert_type(jnp.asarray(1.5 * 2.0**52, jnp.float64), jnp.int64)


def encode(x: Array, scale: Any) -> Word:
    """rint(x · scale)."""
    return to_word(x.astype(jnp.float64) * scale)


def as_wide(word: Word) -> Wide:
    """The word as a float64, rounded once: by halves, as `to_word`."""
    high = jax.lax.shift_right_logical(word, jnp.full_like(word, 32)) ^ (1 << 31)  # + 2^31, as of no sign
    wide_high = jax.lax.bitcast_convert_type(high | _HIGH, jnp.float64)  # 2^84 + high 2^32
    wide_low = jax.lax.bitcast_convert_type((word & ((1 << 32) - 1)) | _LOW, jnp.float64)  # 2^52 + low
    return (wide_high - (2.0**84 + 2.0**63 + 2.0**52)) + wide_low


def decode(word: Word, unit: Any, dtype: Any) -> Array:
    """word · unit in the user's dtype."""
    return (as_wide(word) * unit).astype(dtype)


def magnitude(word: Word) -> Word:
    """|word|, or |word| - 1 where it is negative: the same highest bit but for exact powers of two."""
    return word ^ (word >> 63)


def watch(seen: Word, words: list[Word], gradient: Array) -> Word:
    """`seen` with the high bits of everything that this step made.

    An elementwise OR costs next to nothing within a step; a running maximum would be a reduction each. What was added
    to words is not looked at: a sum of two int64 that wraps, or one of them that did not fit, leaves the range.

    - `words`: up to four, a field each.
    - `gradient`: flagged where it is not finite, which integers cannot show.
    """
    for field, word in enumerate(words):
        seen = seen | ((magnitude(word) >> COARSE_BITS) << (field * FIELD_BITS))
    return seen | (jnp.where(jnp.isfinite(gradient), 0, 1).astype(jnp.int64) << (FIELDS * FIELD_BITS))


class Seen:
    """What a watch saw: the bits that the magnitudes of each field took (50 or fewer read as 50), and whether all was
    finite."""

    def __init__(self, words: list[np.ndarray]):
        total = 0
        for word in words:
            total |= int(np.bitwise_or.reduce(word.ravel())) if word.size else 0
        field = (1 << FIELD_BITS) - 1
        self.bits = [COARSE_BITS + ((total >> (i * FIELD_BITS)) & field).bit_length() for i in range(FIELDS)]
        self.finite = not (total >> (FIELDS * FIELD_BITS)) & 1
