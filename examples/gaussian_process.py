"""A Gaussian process with a length scale for each column, by its log marginal likelihood; no validation rows."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

import hyprax as hx

jax.config.update("jax_enable_x64", True)

X, y = map(np.asarray, load_diabetes(return_X_y=True))
X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
rows = np.random.default_rng(0).permutation(len(y))
(X, X_test), (y, y_test) = (np.split(z[rows[:350]], [250]) for z in (X, y))


def kernel(hyper, a, b):
    a, b = a / hyper["lengths"], b / hyper["lengths"]
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :] - 2 * a @ b.T
    return hyper["scale"] * jnp.exp(-0.5 * squares)


def lost_evidence(hyper):
    """-log N(y; 0, K + σ² I) / n."""
    factor = jnp.linalg.cholesky(kernel(hyper, X, X) + hyper["noise"] * jnp.eye(len(y)))
    alpha = cho_solve((factor, True), y)
    return (0.5 * y @ alpha + jnp.sum(jnp.log(jnp.diagonal(factor))) + 0.5 * len(y) * jnp.log(2 * jnp.pi)) / len(y)


start = {"lengths": hx.Positive(np.full(10, 3.0)), "scale": hx.Positive(1.0), "noise": hx.Positive(0.5)}
tuned = hx.tune(lost_evidence, start, steps=100)
found = hx.natural(tuned.best)
weights = jnp.linalg.solve(kernel(found, X, X) + found["noise"] * jnp.eye(len(y)), y)
error = float(jnp.mean((kernel(found, X_test, X) @ weights - y_test) ** 2))

one = ConstantKernel() * RBF(3.0) + WhiteKernel(0.5)
isotropic = GaussianProcessRegressor(one).fit(X, y)
theirs = float(np.mean((isotropic.predict(X_test) - y_test) ** 2))
evidence = float(np.asarray(isotropic.log_marginal_likelihood_value_)) / len(y)
print(f"log evidence per row {-tuned.best_value:.4f}; one length: {evidence:.4f}")
print(f"test error {error:.4f}; one length: {theirs:.4f}")
print("lengths", np.round(np.asarray(found["lengths"]), 1))
