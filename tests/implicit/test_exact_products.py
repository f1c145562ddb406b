"""Products beyond working precision against rationals, over scales from the smallest numbers to the largest."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from hyprax.implicit._double_double import lifted
from hyprax.implicit.families._exact_products import _scale, exact_forward, extended_unit


@pytest.mark.parametrize("x", [0.0, 5e-324, 1e-310, 2.2e-308, 1.0, 1.5, 2.0, 1e300, 1.7e308])
def test_a_scale_is_the_power_of_two_above_a_number(x):
    scale = float(_scale(jnp.asarray(x, jnp.float64)))
    assert np.frexp(scale)[0] == 0.5
    assert scale >= min(x, 2.0**1023)
    assert scale <= max(2 * x, 2.0**-1021)


@pytest.mark.parametrize("exponent", [0, -300, 300])
def test_products_are_within_their_bound_of_the_rational_ones(exponent):
    rng = np.random.default_rng(abs(exponent))
    rows, columns = 4, 5
    for _ in range(20):
        spread = 10.0 ** rng.uniform(-8, 8, size=(rows, columns))
        x = rng.normal(size=(rows, columns)) * spread * 2.0**exponent
        v = rng.normal(size=columns) * 10.0 ** rng.uniform(-8, 8, size=columns)
        x[0] = 0
        found = exact_forward(jnp.asarray(x), lifted(jnp.asarray(v)))
        for i in range(rows):
            truth = sum((Fraction(a) * Fraction(b) for a, b in zip(x[i], v, strict=True)), Fraction(0))
            error = abs(truth - Fraction(float(found.hi[i])) - Fraction(float(found.lo[i]))) / Fraction(2) ** exponent
            size = np.linalg.norm(x[i] / 2.0**exponent) * np.linalg.norm(v)
            assert float(error) <= (columns + 12) * extended_unit(columns) * size
