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
    """rint(x), as int64; what does not fit saturates, which the watch notices."""
    return jnp.rint(x).astype(jnp.int64)


def encode(x: Array, scale: Any) -> Word:
    """rint(x · scale)."""
    return to_word(x.astype(jnp.float64) * scale)


def as_wide(word: Word) -> Wide:
    """The word as a float64, rounded once."""
    return word.astype(jnp.float64)


def decode(word: Word, unit: Any, dtype: Any) -> Array:
    """word · unit in the user's dtype."""
    return (as_wide(word) * unit).astype(dtype)


def magnitude(word: Word) -> Word:
    """|word|, or |word| - 1 where it is negative: the same highest bit but for exact powers of two."""
    return word ^ (word >> 63)


def watch(seen: Word, words: list[list[Word]], gradient: Array) -> Word:
    """`seen` with the high bits of everything that this step made.

    An elementwise OR costs next to nothing within a step; a running maximum would be a reduction each.

    - `words`: up to four groups; the magnitudes of a group share one field.
    - `gradient`: flagged where it is not finite, which integers cannot show.
    """
    for field, group in enumerate(words):
        for word in group:
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
