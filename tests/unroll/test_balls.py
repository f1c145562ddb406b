"""Ball arithmetic: elementary functions against `decimal`, operations of JAX against numbers inside of balls."""

from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.unroll import _big_functions as functions
from hyprax.unroll._ball_jaxprs import BallProgram, Unsupported
from hyprax.unroll._balls import Arithmetic, Ball, Undecided

DECIMAL = {
    "exp": lambda x: x.exp(),
    "log": lambda x: x.ln(),
    "tanh": lambda x: 1 - 2 / ((2 * x).exp() + 1),
    "logistic": lambda x: 1 / (1 + (-x).exp()),
}


@pytest.mark.parametrize("name", DECIMAL)
@given(x=st.floats(-60, 60), small=st.integers(-60, 0), bits=st.sampled_from([160, 352, 896]))
def test_elementary_functions_are_within_their_errors(name, x, small, bits):
    x = x * 2.0**small
    whole = int(Fraction(abs(x) + 2.0**-80 if name == "log" else x) * 2**bits)
    made, errors = getattr(functions, name)(np.asarray([whole], dtype=object), bits)
    with localcontext() as context:
        context.prec = 400
        truth = DECIMAL[name](Decimal(whole) / Decimal(2) ** bits) * Decimal(2) ** bits
        assert abs(Decimal(made[0]) - truth) <= Decimal(float(errors[0]))


def as_fractions(ball: Ball, arithmetic: Arithmetic) -> list[tuple[Fraction, Fraction]]:
    """Lowest and highest number of each ball."""
    middles = [Fraction(int(m), 2**ball.scale) for m in ball.middle.ravel()]
    radii = [Fraction(float(r)) / 2**arithmetic.bits if np.isfinite(r) else None for r in ball.radius.ravel()]
    return [
        (m - r, m + r) if r is not None else (Fraction(-(10**400)), Fraction(10**400))
        for m, r in zip(middles, radii, strict=True)
    ]


NUMBERS = st.floats(-8, 8).map(lambda x: round(x, 6))
EXACT = {
    "add": (Arithmetic.add, lambda a, b: a + b),
    "sub": (Arithmetic.sub, lambda a, b: a - b),
    "mul": (Arithmetic.mul, lambda a, b: a * b),
    "div": (Arithmetic.div, lambda a, b: a / b),
    "max": (Arithmetic.larger, max),
    "abs": (lambda ar, a, b: ar.abs(a), lambda a, b: abs(a)),
    "power": (lambda ar, a, b: ar.power(a, 3), lambda a, b: a**3),
    "inverse power": (lambda ar, a, b: ar.power(a, -2), lambda a, b: a**-2),
}


@pytest.mark.parametrize("name", EXACT)
@given(
    a=NUMBERS, b=NUMBERS, u=st.integers(-8, 8), v=st.integers(-8, 8), wide=st.booleans(), radius=st.integers(0, 2**40)
)
def test_arithmetic_holds_all_numbers_of_its_balls(name, a, b, u, v, wide, radius):
    """At 96 bits, radii up to 2^-56 or 2^-10; the numbers are the middles and u/8, v/8 of a radius beside."""
    ar = Arithmetic(96)
    r = float(radius) * (2.0**46 if wide else 1.0)
    balls = [Ball(x.middle, x.scale, x.radius + r) for x in (ar.exact(np.asarray([a])), ar.exact(np.asarray([b])))]
    points = [Fraction(x) + Fraction(k, 8) * Fraction(r) / 2**96 for x, k in ((a, u), (b, v))]
    operation, truth = EXACT[name]
    if {"inverse power": points[0], "div": points[1]}.get(name) == 0:
        return
    low, high = as_fractions(operation(ar, *balls), ar)[0]
    assert low <= truth(*points) <= high


def softplus_net(x):
    return jnp.sum(jax.nn.softplus(x @ jnp.ones((3, 2), x.dtype)) ** 2)


FUNCTIONS: dict[str, Any] = {
    "gradient of a net": jax.grad(softplus_net),
    "softmax": lambda x: jax.nn.log_softmax(x * x, axis=-1),
    "gradient of logsumexp": jax.grad(lambda x: jax.nn.logsumexp(x)),
    "relu": jax.grad(lambda x: jnp.sum(jax.nn.relu(x) ** 3)),
    "roots": lambda x: jnp.sqrt(x * x + 1) + jax.lax.rsqrt(x * x + 2) + jnp.expm1(x / 9) * jnp.log1p(x * x),
    "moves": lambda x: jnp.concatenate([x[::-1, 1:], jnp.pad(x, ((0, 0), (1, 0)))[:, :2]]).T.reshape(2, 3, 2),
    "gathers": jax.grad(lambda x: jnp.sum(x[jnp.array([0, 2, 0]), 1] ** 2) + jnp.sum(jnp.take(x, 1, axis=0) ** 3)),
    "scan": jax.grad(lambda x: jax.lax.scan(lambda c, row: (jnp.tanh(c + row), c * row), x[0], x)[0].sum()),
    "while": lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1])), (0, x))[1],
    "fori": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c + jax.lax.dynamic_index_in_dim(x, i, 0), x),
    "cond": lambda x: jax.lax.cond(jnp.sum(x) > 0, lambda y: y * y, lambda y: -y, x),
    "where": lambda x: jnp.where(x > 0.1, jnp.exp(jnp.minimum(x, 1.0)), jnp.clip(x, -1.0, 0.5)),
    "powers": lambda x: (x * x + 1.0) ** 1.5 + x**4 + 0.9 ** jnp.asarray(3.0) * x,
    "means": lambda x: (x - jnp.mean(x, 0, keepdims=True)) / (jnp.std(x, axis=0, keepdims=True) + 1.0),
    "sums": lambda x: jnp.cumsum(x, axis=0) + jnp.max(x, axis=1, keepdims=True) - jnp.min(x),
    "batched products": lambda x: jnp.einsum("bij,bkj->bik", jnp.stack([x, 2 * x]), jnp.stack([x, x * x])),
    "checkpoint": jax.grad(lambda x: jax.checkpoint(softplus_net)(x) + jnp.abs(x).sum()),
    "second order": jax.grad(lambda x: jnp.sum(jax.grad(softplus_net)(x) ** 2)),
    "draws": lambda x: x * jax.random.normal(jax.random.key(0), x.shape, x.dtype),
    "dropout": lambda x: jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, x.shape), x / 0.5, jnp.zeros_like(x)),
    "cast": lambda x: x.astype(jnp.float32).astype(x.dtype) / 3,
}


QUICK = ("gradient of a net", "scan", "where", "draws")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS]
)
def test_programs_of_jax_in_balls(name):
    """The middle agrees with float64, to 1e-6 after a cast; and balls hold what exact numbers inside of them give."""
    function = FUNCTIONS[name]
    rng = np.random.default_rng(len(name))
    x = jnp.asarray(rng.normal(size=(3, 3)))
    closed = jax.make_jaxpr(function)(x)
    program, fine, coarse = BallProgram(closed, [True]), Arithmetic(512), Arithmetic(192)
    truth = program(fine, fine.exact(x))[0]
    error = np.max(fine.distances(truth, function(x)))
    assert error <= (1e-6 if name == "cast" else 1e-13)
    wide = coarse.exact(x)
    wide = Ball(wide.middle, wide.scale, np.full(x.shape, 2.0**120))
    found = program(coarse, wide)[0]
    for u in (-1.0, 0.3, 1.0):
        shift = fine.exact(u * rng.choice([-1.0, 1.0], size=x.shape) * 2.0**-72)
        inside = program(fine, fine.add(fine.exact(x), shift))[0]
        for (low, high), (a, b) in zip(as_fractions(found, coarse), as_fractions(inside, fine), strict=True):
            assert low <= a
            assert b <= high
    assert np.max(found.radius) < 2.0**140  # and are not absurdly wide


def test_exact_zeros_stay_exact():
    ar = Arithmetic(160)
    third = ar.div(ar.exact(np.ones(2)), ar.exact(np.full(2, 3.0)))
    zero = ar.matmul(ar.exact(np.zeros((1, 2))), third)
    assert zero.radius == 0
    assert not ar.compare(ar.mul(zero, zero), ar.exact(np.zeros(1)), "gt")


def test_what_cannot_be_decided_is_said():
    ar = Arithmetic(160)
    third = ar.div(ar.exact(np.ones(1)), ar.exact(np.full(1, 3.0)))
    with pytest.raises(Undecided, match="too close to tell"):
        ar.compare(ar.add(third, ar.add(third, third)), ar.exact(np.ones(1)), "gt")
    program = BallProgram(jax.make_jaxpr(jax.scipy.special.erf)(1.0), [True])
    with pytest.raises(Unsupported, match="the operation erf"):
        program(ar, ar.exact(np.ones(())))


@jax.jit
def _third(key):
    """Private, and with random bits inside, as functions of `jax.random` are: but what it gives is rounded."""
    return 1.0 / (3.0 + 0.0 * jax.random.uniform(key))


def test_questions_about_data_are_answered_by_their_numbers():
    """Missing values in data that are looked at, and never used as numbers."""
    ar, x, holes = Arithmetic(160), jnp.asarray([1.0, 2.0, 4.0]), jnp.asarray([0.5, np.nan, np.inf])

    def counted(x):
        return jnp.sum(jnp.where(jnp.isnan(holes), 0.0, x)), jnp.sum(jnp.isfinite(holes).astype(x.dtype) * x)

    found = BallProgram(jax.make_jaxpr(counted)(x), [True])(ar, ar.exact(x))
    assert [float(ball.middle) * 2.0**-ball.scale for ball in found] == [5.0, 1.0]
    assert not any(np.any(ball.radius) for ball in found)

    def hidden(x):
        return jnp.sum(jnp.isfinite(holes * x).astype(x.dtype) * x)

    with pytest.raises(Undecided, match="of which nothing is known"):
        BallProgram(jax.make_jaxpr(hidden)(x), [True])(ar, ar.exact(x))


def test_numbers_that_are_rounded_are_not_taken_for_data():
    ar, x = Arithmetic(160), jnp.asarray([1.0, 2.0])
    waves = jnp.asarray([1 + 2j, 3 - 1j])
    for function in (lambda x: jnp.sum(jnp.abs(waves) * x), lambda x: jnp.sum(jnp.real(waves * waves) * x)):
        with pytest.raises(Unsupported):
            BallProgram(jax.make_jaxpr(function)(x), [True])(ar, ar.exact(x))
    key = jax.random.key(0)
    closed = jax.make_jaxpr(lambda x, key: x * _third(key))(x, key)
    ball = BallProgram(closed, [True, False])(ar, ar.exact(x), key)[0]
    assert np.all(ball.radius > 0)
    distance = ar.distances(ball, np.asarray(x) / 3.0)
    assert np.all((distance > 1e-18) & (distance < 1e-16))  # of 1/3 rounded to float64 from 1/3


def test_nothing_is_larger_than_what_is_not_known():
    ar = Arithmetic(896)
    large = ar.exact(np.asarray([2.0**1000]))
    unknown = ar.exact(np.asarray([np.nan]))
    assert not np.isfinite(ar.larger(large, unknown).radius[0])
