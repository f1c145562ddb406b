"""Kernels against dense float64 Jacobians, and their derivatives against derivatives of those."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyprax.evidence._kernel import kernel, kernel_matvec, kernels_by_tensor, uses
from jax import Array
from jax.flatten_util import ravel_pytree

from architectures import ARCHITECTURES, C, Model

TOLERANCE = 1e-10


def dense(apply: Any, params: Any, hyper: Any, inputs: Any, cotangents: Array, variances: Any) -> Array:
    """K by the Jacobian of all rows at once."""
    flat, unravel = ravel_pytree(params)

    def rows(flat: Array) -> Array:
        f = jax.vmap(lambda x: apply(unravel(flat), hyper, x))(inputs)
        return jnp.einsum("mrc,mc->mr", cotangents, f).reshape(-1)

    jacobian = jax.jacrev(rows)(flat)
    spread = ravel_pytree(jax.tree.map(lambda v, w: jnp.broadcast_to(v, w.shape), variances, params))[0]
    return (jacobian * spread[None, :]) @ jacobian.T


def problem(name: str, seed: int, m: int, r: int, spread: str = "scalars") -> tuple[Model, Array, Any]:
    rng = np.random.default_rng([seed, m, r])
    model = ARCHITECTURES[name](rng, m)
    cotangents = jnp.asarray(rng.normal(size=(m, r, C)))
    shape = {
        "scalars": lambda w: (),
        "arrays": lambda w: w.shape,
        "mixed": lambda w: w.shape if rng.uniform() < 0.5 else (),
    }
    variances = jax.tree.map(lambda w: jnp.asarray(rng.uniform(0.1, 2, size=shape[spread](w))), model.params)
    return model, cotangents, variances


def assert_close(a: Any, b: Any, scale: float | None = None) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.shape == y.shape
        if x.dtype == jax.dtypes.float0:
            continue
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE * (scale or max(1.0, float(jnp.abs(y).max(initial=0)))))


def log_determinant(k: Array) -> Array:
    factor = jnp.linalg.cholesky(jnp.eye(len(k)) + k)
    return 2 * jnp.log(jnp.diag(factor)).sum()


def value_and_gradient(kernel_of: Any, model: Model, cotangents: Array, variances: Any) -> Any:
    """K, log |I + K| and its derivative in everything that is not an integer, compiled."""

    def objective(moving: Any) -> tuple[Array, Array]:
        params, hyper, inputs, cotangents, variances = moving
        if model.inputs_are_integers:
            inputs = model.inputs
        k = kernel_of(model.apply, params, hyper, inputs, cotangents, variances)
        return log_determinant(k), k

    inputs = () if model.inputs_are_integers else model.inputs
    moving = model.params, model.hyper, inputs, cotangents, variances
    return jax.jit(jax.value_and_grad(objective, has_aux=True))(moving)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kernels_and_their_derivatives_are_those_of_the_dense_jacobian(name: str) -> None:
    model, cotangents, variances = problem(name, 0, 7, 2, "mixed")
    (value, k), gradient = value_and_gradient(kernel, model, cotangents, variances)
    (expected, dense_k), dense_gradient = value_and_gradient(dense, model, cotangents, variances)
    assert float(jnp.abs(dense_k).max()) > 1e-3
    assert_close(k, dense_k)
    assert_close(value, expected)
    assert_close(gradient, dense_gradient)
