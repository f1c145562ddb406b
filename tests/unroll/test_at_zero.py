"""Updates of optax where a gradient is always 0: they have the derivative that differences see."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hyprax.unroll._at_zero import differentiable_at_zero


def end(rate, dtype):
    """Adafactor on three weights, of which the first has never a gradient."""
    transformation = optax.adafactor(rate)
    params: Any = jnp.asarray([1.0, 2.0, 3.0], dtype)
    mask = jnp.asarray([0.0, 1.0, -0.5], dtype)
    state = transformation.init(params)
    for _ in range(2):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = differentiable_at_zero(transformation.update)(mask * params, state, params)
            params = optax.apply_updates(params, updates)
    return jnp.sum(jnp.sin(params))


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)])
def test_adafactor_at_a_gradient_of_zero(dtype):
    value, slope = jax.value_and_grad(lambda rate: end(rate, dtype))(jnp.asarray(0.1, dtype))
    ahead, behind = (end(jnp.asarray(0.1 + h), jnp.float64) for h in (1e-6, -1e-6))
    np.testing.assert_allclose(value, (ahead + behind) / 2, rtol=1e-5)
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-3 if dtype == jnp.float32 else 1e-6)


def test_the_values_stay_what_they_were():
    """Negative powers, quotients and roots of usual numbers, and their derivatives."""

    def function(x):
        return jnp.sum(x * (x**2 + 1e-30) ** -0.5 / jnp.sqrt(x + 3) + 1 / x)

    x = jnp.asarray([0.5, -2.0, 1.5])
    for f in (lambda x: x, jax.grad, lambda g: jax.grad(lambda x: jnp.sum(jax.grad(g)(x) ** 2))):
        np.testing.assert_allclose(f(differentiable_at_zero(function))(x), f(function)(x), rtol=1e-12)
