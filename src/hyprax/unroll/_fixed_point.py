"""Fixed-point numbers: whole numbers in a stated unit, and what may leave them."""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import equinox as eqx
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

_FIELD = 2.0**FIELD_BITS - 1
LIMB_BITS = 52
"""The bits of a limb of a long number: sums of two are whole numbers in float64 still."""
LIMB = 2.0**LIMB_BITS

Word = Int64[Array, "..."]
Wide = Float[Array, "..."]
T = TypeVar("T")


class Long(eqx.Module):
    """The whole number Σ_i limbs[i] 2^(52 i), for states of which some entries are 1e-30 of others.

    Limbs are whole numbers in float64, all but the last within [-2^51, 2^51), which makes them unique. All that is done
    to them is exact, so that no compiler can change it, and cheaper than with integers, which would be converted.
    """

    limbs: tuple[Wide, ...]

    def __add__(self, other: "Long") -> "Long":
        return self._carried([a + b for a, b in zip(self.limbs, other.limbs, strict=True)])

    def __sub__(self, other: "Long") -> "Long":
        return self._carried([a - b for a, b in zip(self.limbs, other.limbs, strict=True)])

    def right(self, bits: Any) -> "Long":
        """floor(number / 2^bits)."""
        power = _power(bits)
        quotients = [jnp.floor(limb / power) for limb in self.limbs]
        above = [limb - quotient * power for limb, quotient in zip(self.limbs[1:], quotients[1:], strict=True)]
        rests = [rest * (LIMB / power) for rest in above]
        return self._carried([a + b for a, b in zip(quotients, [*rests, 0.0], strict=True)])

    def left(self, bits: Any, low: Any = 0.0) -> "Long":
        """number 2^bits + low."""
        raised = [limb * _power(bits) for limb in self.limbs]
        carries = [jnp.floor(limb * (1 / LIMB) + 0.5) for limb in raised[:-1]]
        rests = [limb - carry * LIMB for limb, carry in zip(raised, carries, strict=False)]
        return self._carried([a + b for a, b in zip([*rests, raised[-1]], [low, *carries], strict=True)])

    def low(self, bits: int) -> Array:
        """The lowest bits, as numbers that are not negative."""
        return self.limbs[0] - jnp.floor(self.limbs[0] * 2.0**-bits) * 2.0**bits

    @staticmethod
    def _carried(sums: Sequence[Wide]) -> "Long":
        """The number with such limbs, below 2^53."""
        limbs, carry = [], 0.0
        for limb in sums[:-1]:
            total = limb + carry
            carry = jnp.floor(total * (1 / LIMB) + 0.5)
            limbs.append(total - carry * LIMB)
        return Long((*limbs, sums[-1] + carry))


def _power(bits: Any) -> Array:
    return (jnp.ones((), jnp.int64) << bits).astype(jnp.float64)


def zeros_like(x: Array, limbs: int) -> Long:
    """0 for every entry of an array."""
    return Long((jnp.zeros_like(x, jnp.float64),) * limbs)


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


def to_long(x: Array, limbs: int) -> Long:
    """rint(x); what does not fit leaves the range of whatever it is added to."""
    most = 4 * LIMB**limbs  # no difference with a number in range comes back into the range
    x, found = jnp.clip(x, -most, most), []
    for i in reversed(range(1, limbs)):
        found.append(jnp.rint(x * LIMB**-i))
        x = x - found[-1] * LIMB**i
    return Long((jnp.rint(x), *reversed(found)))


def encode(x: Array, scale: Any) -> Word:
    """rint(x · scale)."""
    return to_word(x.astype(jnp.float64) * scale)


def as_wide(word: Word | Long) -> Wide:
    """The number as a float64, a word rounded once: by halves, as `to_word`."""
    if isinstance(word, Long):
        return functools.reduce(lambda above, limb: above * LIMB + limb, reversed(word.limbs))
    high = jax.lax.shift_right_logical(word, jnp.full_like(word, 32)) ^ (1 << 31)  # + 2^31, as of no sign
    wide_high = jax.lax.bitcast_convert_type(high | _HIGH, jnp.float64)  # 2^84 + high 2^32
    wide_low = jax.lax.bitcast_convert_type((word & ((1 << 32) - 1)) | _LOW, jnp.float64)  # 2^52 + low
    return (wide_high - (2.0**84 + 2.0**63 + 2.0**52)) + wide_low


def decode(word: Word | Long, unit: Any, dtype: Any) -> Array:
    """word · unit in the user's dtype."""
    return (as_wide(word) * unit).astype(dtype)


def magnitude(word: Word) -> Word:
    """|word|, or |word| - 1 where it is negative: the same highest bit but for exact powers of two."""
    return word ^ (word >> 63)


def watch(seen: Word, words: list[Word | Long], gradient: Array) -> Word:
    """`seen` with the high bits of everything that this step made.

    An elementwise OR costs next to nothing within a step; a running maximum would be a reduction each. What was added
    to words is not looked at: a sum of two int64 that wraps, or one of them that did not fit, leaves the range.

    - `words`: up to four, a field each; of a long number, the highest limb as if it were 2^10 times as large.
    - `gradient`: flagged where it is not finite, which integers cannot show.
    """
    for field, number in enumerate(words):
        if isinstance(number, Long):
            high = jnp.minimum(jnp.abs(number.limbs[-1]) * 2.0 ** (LIMIT_BITS - LIMB_BITS - COARSE_BITS), _FIELD)
            seen = seen | (_digits(high) << (field * FIELD_BITS))
        else:
            seen = seen | ((magnitude(number) >> COARSE_BITS) << (field * FIELD_BITS))
    return seen | (jnp.where(jnp.isfinite(gradient), 0, 1).astype(jnp.int64) << (FIELDS * FIELD_BITS))


class Seen:
    """What a watch saw: the bits that the magnitudes of each field took (50 or fewer read as 50), and whether all was
    finite."""

    def __init__(self, words: list[np.ndarray]):
        total = 0
        for word in words:
            total |= int(np.bitwise_or.reduce(word.ravel())) if word.size else 0
        field = int(_FIELD)
        self.bits = [COARSE_BITS + ((total >> (i * FIELD_BITS)) & field).bit_length() for i in range(FIELDS)]
        self.finite = not (total >> (FIELDS * FIELD_BITS)) & 1
