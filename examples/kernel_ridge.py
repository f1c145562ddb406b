"""Kernel ridge regression with a length scale for each column, by its leave-one-out error in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_diabetes

import hyprax as hx

jax.config.update("jax_enable_x64", True)

X, y = map(np.asarray, load_diabetes(return_X_y=True))
X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
rows = np.random.default_rng(0).permutation(len(y))
(X, X_test), (y, y_test) = (np.split(z[rows[:350]], [250]) for z in (X, y))


def kernel(lengths, a, b):
    a, b = a / lengths, b / lengths
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :] - 2 * a @ b.T
    return jnp.exp(-0.5 * squares)


def left_out(hyper):
    """Mean of ((A⁻¹y)_i / (A⁻¹)_ii)², A = K + λI: the squared errors of n fits, each without one row."""
    inverse = jnp.linalg.inv(kernel(hyper["lengths"], X, X) + hyper["penalty"] * jnp.eye(len(y)))
    return jnp.mean((inverse @ y / jnp.diagonal(inverse)) ** 2)


def test_error(tuned):
    found = hx.natural(tuned.best)
    matrix = kernel(found["lengths"], X, X) + found["penalty"] * jnp.eye(len(y))
    return float(jnp.mean((kernel(found["lengths"], X_test, X) @ jnp.linalg.solve(matrix, y) - y_test) ** 2))


one = hx.tune(left_out, {"lengths": hx.Positive(3.0), "penalty": hx.Positive(1.0)}, steps=50)
spread = hx.Positive(np.full(10, float(hx.natural(one.best)["lengths"])))
many = hx.tune(left_out, {"lengths": spread, "penalty": one.best["penalty"]}, steps=50)
print(f"one length:  left out {one.best_value:.4f}, test {test_error(one):.4f}")
print(f"ten lengths: left out {many.best_value:.4f}, test {test_error(many):.4f}")
