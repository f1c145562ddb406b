"""Elementary functions of numbers in fixed point, arrays of Python integers of any length, with proved errors.

A number x is an integer m, x = m 2^-p. Every function here takes integers at p bits and returns integers at p bits and
a bound of their errors in units of 2^-p. Inside, guard bits take up the roundings, which are counted beside the code.
"""

import functools
import math
from typing import Any

import numpy as np

LARGEST_EXPONENT = 128
"""exp(x) is not computed above 2^128: no answer is wanted that large."""
isqrt = np.frompyfunc(math.isqrt, 1, 1)
bit_length = np.frompyfunc(int.bit_length, 1, 1)


def integers(x: Any) -> np.ndarray:
    """An array of Python integers, of NumPy's operations on such, which return a bare number for shape ()."""
    if isinstance(x, np.integer):
        x = int(x)
    return x if isinstance(x, np.ndarray) and x.dtype == object else np.asarray(x, dtype=object)


class TooLarge(ArithmeticError):
    """A number that float64 does not hold."""


def where(condition: Any, a: Any, b: Any) -> np.ndarray:
    """`np.where` of arrays of Python integers."""
    return integers(np.where(condition, integers(a), integers(b)))


def floats(x: Any) -> np.ndarray:
    """Integers as float64, to half a unit in the last place.

    **Raises:** `TooLarge`.
    """
    try:
        return integers(x).astype(np.float64)
    except OverflowError as error:
        raise TooLarge("a number that is too large") from error


@functools.cache
def log_2(bits: int) -> int:
    """log 2 = 18 atanh(1/26) - 2 atanh(1/4801) + 8 atanh(1/8749), at `bits` bits, to 1 unit."""
    guard = bits + 32

    def atanh(n: int) -> int:
        power, total, k = (1 << guard) // n, 0, 1
        while power:  # each term is off by less than 2 units, the rest by less than 1: fewer than 2^10 in all
            total += power // k
            power //= n * n
            k += 2
        return total

    return (18 * atanh(26) - 2 * atanh(4801) + 8 * atanh(8749)) >> 32


def exp(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """e^x = 2^k (e^(r 2^-j))^(2^j), r = x - k log 2; entries above 2^128 have an infinite bound.

    Of the units of the inner 2^-w: a term of Taylor's series is off by at most 3, their sum by 3 n + 1 < 2^9, and
    squaring multiplies an error by 2 e^(r 2^-j 2^i) and adds 1: j times, by at most 1.5 2^j, so 2^(j + 10) in all with
    the roundings of r; w - bits is j + 40.
    """
    halvings = max(6, math.isqrt(bits) // 2)
    inner = bits + halvings + 40
    two = log_2(inner)
    x = integers(x << (inner - bits))
    k = integers((x + (two >> 1)) // two)
    r = integers((x - k * two) >> halvings)
    terms, reach = 1, 0.0
    while reach < inner + 2:  # |r 2^-j| < 2^-(j + 1)
        terms += 1
        reach = (halvings + 1) * terms + math.lgamma(terms + 1) / math.log(2)
    one = 1 << inner
    total = term = integers(np.full(x.shape, one, dtype=object))
    for n in range(1, terms):
        term = integers(((term * r) >> inner) // n)
        total = integers(total + term)
    for _ in range(halvings):
        total = integers((total * total) >> inner)
    k = integers(np.clip(k, -(bits + 64), LARGEST_EXPONENT + 1))
    shift = integers(k - (inner - bits))
    made = where(shift >= 0, total << integers(np.maximum(shift, 0)), total >> integers(np.maximum(-shift, 0)))
    powers = floats(k)
    errors = 1 + np.exp2(np.minimum(powers, LARGEST_EXPONENT + 1) - 28)
    return made, np.where(powers > LARGEST_EXPONENT, np.inf, errors)


def log(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """log x = e log 2 + 2^6 log(f^(2^-5))/2 of x = f 2^e, 1 <= f < 2; the last log is 2 atanh(z), z = (g - 1)/(g + 1).

    For x > 0; other entries have an infinite bound. Of the units of the inner 2^-w: a root is off by at most 2, z by 3,
    the sum by 2 n + 4 < 2^9, times 2^6, and e log 2 by 2^10 at most; w - bits is 40.
    """
    positive = integers(x) > 0
    x = where(positive, x, 1)
    inner = bits + 40
    length = integers(bit_length(x)).astype(np.int64)
    up = np.maximum(inner + 1 - length, 0)
    f = integers(x << integers(up))
    f = integers(f >> integers(bit_length(f) - (inner + 1)))
    for _ in range(5):
        f = integers(isqrt(f << inner))
    one = 1 << inner
    z = integers(((f - one) << inner) // (f + one))  # below 2^-6.4
    square = integers((z * z) >> inner)
    total, power, k = z, z, 1
    while k * 6 < inner + 8:
        k += 2
        power = integers((power * square) >> inner)
        total = integers(total + power // k)
    e = integers(length - 1 - bits)
    made = integers(((total << 6) + e * log_2(inner)) >> (inner - bits))
    return made, np.where(positive.astype(bool), 2.0, np.inf)


def tanh(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """sign(x) (1 - t)/(1 + t), t = exp(-2 |x|), whose derivative in t is at most 2."""
    t, errors = exp(integers(-2 * abs(x)), bits)
    one = 1 << bits
    made = integers(((one - t) << bits) // (one + t))
    return where(x < 0, -made, made), 2 * errors + 1


def logistic(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """1/(1 + t) for x >= 0 and t/(1 + t) below, t = exp(-|x|), whose derivatives in t are at most 1."""
    t, errors = exp(integers(-abs(x)), bits)
    one = 1 << bits
    made = integers((where(x < 0, t, one) << bits) // (one + t))
    return made, errors + 1
