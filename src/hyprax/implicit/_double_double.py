"""Double-double arithmetic: numbers hi + lo with |lo| <= ulp(hi)/2, about 2^-104 relative error an operation.

Error-free transformations of Dekker (Numer. Math. 18, 1971) and Knuth; operations as in Hida, Li and Bailey (ARITH 15,
2001). Products are split by masking bits, not by Dekker's multiplication, so a compiler that contracts a product and a
sum into one rounding changes nothing: every product here that is not exact is meant to be rounded once or not at all.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LN2 = (0.6931471805599453, 2.3190468138462996e-17)
TAYLOR = (  # 1/k! for k = 1..9, each as hi + lo
    (1.0, 0.0),
    (0.5, 0.0),
    (0.16666666666666666, 9.25185853854297e-18),
    (0.041666666666666664, 2.3129646346357427e-18),
    (0.008333333333333333, 1.1564823173178714e-19),
    (0.001388888888888889, -5.300543954373577e-20),
    (0.0001984126984126984, 1.7209558293420705e-22),
    (2.48015873015873e-05, 2.1511947866775882e-23),
    (2.7557319223985893e-06, -1.858393274046472e-22),
)
HALVINGS = 9


class DoubleDouble(eqx.Module):
    """hi + lo, unevaluated."""

    hi: Float[Array, "..."]
    lo: Float[Array, "..."]

    def __add__(self, other: "DoubleDouble") -> "DoubleDouble":
        s, e = two_sum(self.hi, other.hi)
        t, f = two_sum(self.lo, other.lo)
        s, e = fast_two_sum(s, e + t)
        return DoubleDouble(*fast_two_sum(s, e + f))

    def __neg__(self) -> "DoubleDouble":
        return DoubleDouble(-self.hi, -self.lo)

    def __sub__(self, other: "DoubleDouble") -> "DoubleDouble":
        return self + (-other)

    def __mul__(self, other: "DoubleDouble") -> "DoubleDouble":
        p, e = two_product(self.hi, other.hi)
        return DoubleDouble(*fast_two_sum(p, e + (self.hi * other.lo + self.lo * other.hi)))

    def __truediv__(self, other: "DoubleDouble") -> "DoubleDouble":
        """Three quotient digits: q1 = hi/hi, and two of the remainders."""
        q1 = self.hi / other.hi
        rest = self - lifted(q1) * other
        q2 = rest.hi / other.hi
        rest = rest - lifted(q2) * other
        q3 = rest.hi / other.hi
        return DoubleDouble(*fast_two_sum(q1, q2)) + lifted(q3)


def lifted(x: Float[Array, "..."]) -> DoubleDouble:
    """x, exactly."""
    return DoubleDouble(x, jnp.zeros_like(x))


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """s = fl(a + b) and e with s + e = a + b exactly."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def fast_two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The same for |a| >= |b| or a = 0."""
    s = a + b
    return s, b - (s - a)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """s + e = a b to 2^-105, from halves of 26 and 27 bits.

    All but the smallest of the four products are exact, so a compiler that contracts a product and a sum into one
    rounding changes nothing. (In the usual a1 b1 - fl(a b) it may contract the wrong product.)
    """
    a1, b1 = _upper_half(a), _upper_half(b)
    a2, b2 = a - a1, b - b1
    s, e = two_sum(a1 * b1, a1 * b2)
    s, f = two_sum(s, a2 * b1)
    return fast_two_sum(s, (e + f) + a2 * b2)


def _upper_half(x: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint64)
    return jax.lax.bitcast_convert_type(bits & jnp.uint64(0xFFFFFFFFF8000000), x.dtype)


def total(x: DoubleDouble, axis: int) -> DoubleDouble:
    """The sum along a short axis, kept."""
    parts = [
        DoubleDouble(hi, lo)
        for hi, lo in zip(jnp.split(x.hi, x.hi.shape[axis], axis), jnp.split(x.lo, x.lo.shape[axis], axis), strict=True)
    ]
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def power_of_two(k: Int[Array, "..."]) -> Float[Array, "..."]:
    """2^k exactly, for -1022 <= k <= 1023; k is clipped to that."""
    bits = (jnp.clip(k, -1022, 1023).astype(jnp.int64) + 1023) << 52
    return jax.lax.bitcast_convert_type(bits, jnp.float64)


def exp(x: DoubleDouble) -> DoubleDouble:
    """e^x to about 2^-94 relative: x = k ln 2 + 2^9 r, Taylor to degree 9 for e^r - 1, squared 9 times.

    e^r - 1 is carried rather than e^r, so that nothing is lost beside the 1. Below e^-700 the result is 0.
    """
    clipped = DoubleDouble(jnp.clip(x.hi, -700.0, 700.0), jnp.where(jnp.abs(x.hi) <= 700.0, x.lo, 0.0))
    k = jnp.round(clipped.hi / LN2[0])
    ln2 = DoubleDouble(jnp.full_like(k, LN2[0]), jnp.full_like(k, LN2[1]))
    r = clipped - lifted(k) * ln2
    scale = 2.0**-HALVINGS
    r = DoubleDouble(r.hi * scale, r.lo * scale)
    coefficients = jnp.asarray(TAYLOR[::-1])
    start = DoubleDouble(jnp.zeros_like(k), jnp.zeros_like(k))

    def horner(i: Array, sum_: DoubleDouble) -> DoubleDouble:
        here = DoubleDouble(
            jnp.broadcast_to(coefficients[i, 0], k.shape), jnp.broadcast_to(coefficients[i, 1], k.shape)
        )
        return (sum_ + here) * r

    def square(_: Array, e: DoubleDouble) -> DoubleDouble:
        return DoubleDouble(2 * e.hi, 2 * e.lo) + e * e

    e = jax.lax.fori_loop(0, len(TAYLOR), horner, start)
    e = jax.lax.fori_loop(0, HALVINGS, square, e)
    e = e + lifted(jnp.ones_like(k))
    factor = jnp.where(x.hi < -700.0, 0.0, power_of_two(k.astype(jnp.int64)))
    factor = jnp.where(x.hi > 700.0, jnp.inf, factor)
    return DoubleDouble(e.hi * factor, jnp.where(jnp.isinf(factor), 0.0, e.lo * factor))


def sqrt(x: DoubleDouble) -> DoubleDouble:
    """√x for x > 0: one Newton step from the rounded root, s + (x - s²)/(2s)."""
    s = jnp.sqrt(x.hi)
    rest = x - lifted(s) * lifted(s)
    return DoubleDouble(*fast_two_sum(s, rest.hi / (2 * s)))
