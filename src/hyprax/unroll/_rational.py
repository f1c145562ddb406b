"""Multiplication of fixed-point words by rationals n/d that loses nothing: what is cut off goes into a buffer."""

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int64

from ._fixed_point import LIMIT_BITS, as_wide

QUOTIENT_BITS = 50
WORD_BITS = 32
SMALLEST_DENOMINATOR = 1 << 10
NEAR_ONE_BITS = 24
SHIFT = 1.5 * 2.0**52
SHIFT_WORD = int(np.float64(SHIFT).view(np.int64))

Scalar = Int64[Array, ""]


@dataclasses.dataclass(frozen=True)
class Factor:
    """n_t / d_t for every step t and group, exactly. Rows: the steps, or one row for all; columns: the groups.

    `shift` is k where every d is 2^k: division is then by shifts and masks.
    """

    n: np.ndarray
    d: np.ndarray
    shift: int | None

    @property
    def value(self) -> np.ndarray:
        """n/d in float64."""
        return self.n / self.d


def dyadic(values: np.ndarray, bits: int) -> Factor:
    """The nearest n / 2^bits to each value: an error of at most 2^-(bits + 1)."""
    n = np.rint(values * 2.0**bits).astype(np.int64)
    return Factor(n, np.full_like(n, 1 << bits), bits)


def least_gap(bits: int) -> float:
    """How near to 1 a value below it may be for `nearest` to tell them apart; denominators are below its inverse."""
    return 2.0 ** -(min(2 * bits, NEAR_ONE_BITS) + 1)


def nearest(values: np.ndarray, bits: int) -> Factor:
    """The nearest n / d with d <= 2^bits to each value, by continued fractions: mostly within 2^-2 bits.

    Below 1 and within 2^-bits of it, where that would be 1 and a step with the gain 1 - n/d would stand still:
    (d - 1)/d with the integer d nearest to 1/(1 - value), down to `least_gap(bits)`. Small fractions are expanded to
    d >= 2^10, so that words of 60 bits have quotients below 2^50.
    """
    unique, where = np.unique(values, return_inverse=True)
    pairs = []
    for value in unique.tolist():
        if least_gap(bits) < 1 - value < 2.0**-bits:
            d = round(1 / (1 - value))
            fraction = Fraction(d - 1, d)
        else:
            fraction = Fraction(value).limit_denominator(1 << bits)
        times = -(-SMALLEST_DENOMINATOR // fraction.denominator)
        pairs.append((fraction.numerator * times, fraction.denominator * times))
    n, d = np.array(pairs, np.int64).T
    return Factor(n[where].reshape(values.shape), d[where].reshape(values.shape), None)


def complement(values: np.ndarray, bits: int) -> Factor:
    """(d - 1)/d, d the integer nearest to 1/c, for factors 1 - c with small c <= 2^-8; 1 for c < 2^-bits / 2.

    The relative error of c is at most c/2, where n / 2^bits would leave 2^-(bits + 1) / c. Larger c: `nearest`.
    """
    small = values <= 2.0**-8
    general = nearest(1 - np.where(small, 0.0, values), 12)
    d = np.rint(1 / np.where(values > 2.0 ** -(bits + 1), values, 1.0)).astype(np.int64)
    kept = small & (values > 2.0 ** -(bits + 1))
    n = np.where(kept, d - 1, general.n)
    return Factor(n, np.where(kept, d, general.d), None)


def floor_divide(x: Array, n: Scalar) -> tuple[Array, Array]:
    """x div n, x mod n for n >= 1 and |x / n| < 2^50, by a float64 reciprocal.

    x, 1/n and their product are each rounded once, so the product is within 3.1 |x/n| 2^-53 < .4 of x/n; added to
    1.5 2^52 it is rounded to an integer, which then stands in the last bits of the sum. So the estimate is off by less
    than 1, and one correction makes it exact, however the sum was rounded. Processors divide 64-bit integers ten times
    slower, and conversion to an integer is slow for what it does with numbers that do not fit.
    """
    shifted = as_wide(x) * (1.0 / as_wide(n)) + SHIFT
    estimate = jax.lax.bitcast_convert_type(shifted, jnp.int64) - SHIFT_WORD
    rest = x - estimate * n
    low = rest >> 63
    return estimate + low, rest + (low & n)


def multiply(v: Array, buffer: Array, n: Scalar, d: Scalar, shift: int | None) -> tuple[Array, Array]:
    """v <- (v div d) n + (x mod n), B <- x div n, with x = B d + (v mod d).

    A bijection of pairs (v, B): v mod d and B make x, and x is taken apart again in the other radix. v changes by the
    factor n/d to within n units, B grows by log2(d/n) bits. Both B must stay below 2^50, which a plan sees to.

    The barrier keeps a compiler from computing all that stands before it twice, once for v and once for B.
    """
    if shift is None:
        quotient, rest = floor_divide(v, d)
        x = buffer * d + rest
    else:
        quotient, x = v >> shift, (buffer << shift) | (v & ((1 << shift) - 1))
    quotient, x = jax.lax.optimization_barrier((quotient, x))
    buffer, low = floor_divide(x, n)
    return quotient * n + low, buffer


def divide(v: Array, buffer: Array, n: Scalar, d: Scalar, shift: int | None) -> tuple[Array, Array]:
    """The inverse of `multiply`: n and d exchanged."""
    quotient, rest = floor_divide(v, n)
    x = buffer * n + rest
    quotient, x = jax.lax.optimization_barrier((quotient, x))
    if shift is None:
        buffer, low = floor_divide(x, d)
        return quotient * d + low, buffer
    return (quotient << shift) | (x & ((1 << shift) - 1)), x >> shift


def limit_bits(n: np.ndarray, d: np.ndarray) -> int:
    """The bits that |v| may take: 62, or fewer where a small n or d would have quotients pass 2^50."""
    return min(LIMIT_BITS, QUOTIENT_BITS + int(min(n.min(), d.min())).bit_length() - 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """When the buffers of one group are emptied, known before the run starts.

    `steps`: the steps before which the low 32 bits of every buffer go to storage (a step twice: 64 bits).
    `bound`: every buffer is below it at the end of the run.
    """

    steps: tuple[int, ...]
    bound: int

    @property
    def bits(self) -> float:
        """Bits a parameter that the run left: words stored, and what the buffers may hold at the end."""
        return WORD_BITS * len(self.steps) + math.log2(self.bound)


def plan(n: np.ndarray, d: np.ndarray, steps: int) -> Plan:
    """B < b becomes x < b d becomes B < ceil(b d / n): a word is stored when x could pass 2^62 or x div n 2^50."""
    bound, spills = 1, []
    numerators, denominators = n.tolist(), d.tolist()
    constant = len(numerators) == 1
    for t in range(steps):
        i = 0 if constant else t
        numerator, denominator = numerators[i], denominators[i]
        after = -(-bound * denominator // numerator)
        while bound > 1 and (bound * denominator >> LIMIT_BITS or after >> QUOTIENT_BITS):
            bound = -(-bound >> WORD_BITS)
            spills.append(t)
            after = -(-bound * denominator // numerator)
        bound = after
    return Plan(tuple(spills), bound)


def exact_bits(n: np.ndarray, d: np.ndarray, steps: int) -> float:
    """sum over t of log2(d_t / n_t), the bits a parameter that must be kept; factors above 1 give none back here."""
    bits = np.log2(d / n)
    return float(np.sum(np.broadcast_to(bits, (steps,))))
