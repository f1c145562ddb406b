"""Likelihoods against SciPy, curvatures against automatic differentiation, roots against the curvature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hyprax import evidence as ev
from hyprax.evidence._roots import AbstractRoot
from thoroughness import slow

LIKELIHOODS = {
    "categorical": (ev.Categorical(), jnp.asarray(1)),
    "gaussian": (ev.Gaussian(0.7), jnp.asarray([0.3, -1.0, 2.0, 0.0])),
    "gaussian, a scale each": (ev.Gaussian([0.7, 2.0, 0.1, 1.0]), jnp.asarray([0.3, -1.0, 2.0, 0.0])),
    "bernoulli": (ev.Bernoulli(), jnp.asarray([0, 1, 1, 0])),
    "poisson": (ev.Poisson(), jnp.asarray([0, 1, 7, 2])),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_likelihoods_are_normalised_densities(name: str):
    likelihood, y = LIKELIHOODS[name]
    f = np.array([0.5, -0.4, 1.1, 0.2])
    want = {
        "categorical": lambda: np.log(np.exp(f[1]) / np.exp(f).sum()),
        "gaussian": lambda: scipy.stats.norm.logpdf(y, f, 0.7).sum(),
        "gaussian, a scale each": lambda: scipy.stats.norm.logpdf(y, f, [0.7, 2.0, 0.1, 1.0]).sum(),
        "bernoulli": lambda: scipy.stats.bernoulli.logpmf(y, 1 / (1 + np.exp(-f))).sum(),
        "poisson": lambda: scipy.stats.poisson.logpmf(y, np.exp(f)).sum(),
    }[name]()
    np.testing.assert_allclose(likelihood.log_likelihood(jnp.asarray(f), y), want, rtol=1e-12)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize(
    "root", [ev.roots.Rows(), ev.roots.Eigen(), ev.roots.StickBreaking(), ev.roots.StickBreaking((2, 0, 3, 1))]
)
def test_roots_give_the_curvature(name: str, root: AbstractRoot):
    likelihood, y = LIKELIHOODS[name]
    rng = np.random.default_rng(0)
    check = jax.jit(
        lambda f: (
            root.matrix(likelihood, f) @ root.rotation(likelihood, f),
            -jax.hessian(likelihood.log_likelihood)(f, y),
        )
    )
    for _ in range(100):
        f = jnp.asarray(rng.normal(size=4) * 10 ** rng.uniform(-2, 1.5 if name != "poisson" else 0.3))
        rows, curvature = check(f)
        np.testing.assert_allclose(rows @ rows.T, curvature, atol=1e-14 * (1 + np.abs(curvature).max()))


@pytest.mark.parametrize("name", ["categorical", "gaussian, a scale each"])
@pytest.mark.parametrize("root", [ev.roots.Rows(), ev.roots.Eigen(), ev.roots.StickBreaking((2, 0, 3, 1))])
def test_single_rows_and_their_lengths_are_those_of_the_matrix(name: str, root: Any):
    likelihood, _ = LIKELIHOODS[name]
    rng = np.random.default_rng(3)
    one = jax.jit(
        lambda f, u: (
            root.matrix(likelihood, f),
            root.rotation(likelihood, f),
            root.squares(likelihood, f),
            jnp.stack([root.column(likelihood, f, jnp.asarray(k)) for k in range(3)], 1),
            root.times(likelihood, f, root.rotation(likelihood, f)),
            likelihood.transposed_root_times(f, u),
        )
    )
    for scale in (1.0, 10.0, 1e4):
        f, u = jnp.asarray(scale * rng.normal(size=4)), jnp.asarray(rng.normal(size=4))
        matrix, rotation, squares, columns, rows, transposed = one(f, u)
        np.testing.assert_allclose(rows, matrix @ rotation, atol=1e-13)
        np.testing.assert_allclose(squares, np.sum(np.square(rows), axis=0), atol=1e-12)
        np.testing.assert_array_equal(columns, rotation[:, :3])
        np.testing.assert_allclose(transposed, likelihood.root(f).T @ u, atol=1e-13)


@pytest.mark.parametrize("root", [ev.roots.Rows(), ev.roots.Eigen(), ev.roots.StickBreaking()])
def test_derivatives_of_rows_are_those_of_the_curvature(root: AbstractRoot):
    """With the rotation frozen, d(Σ ℓ ℓᵀ) = dΛ: nothing is lost where a zero eigenvector is left out."""
    likelihood = ev.Categorical()
    rng = np.random.default_rng(1)
    for _ in range(20):
        f, df = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5))
        rotation = root.rotation(likelihood, f)

        def product(f, rotation=rotation):
            rows = root.matrix(likelihood, f) @ rotation
            return rows @ rows.T

        got = jax.jvp(product, (f,), (df,))[1]
        want = jax.jvp(
            lambda f: jnp.diag(jax.nn.softmax(f)) - jnp.outer(jax.nn.softmax(f), jax.nn.softmax(f)), (f,), (df,)
        )[1]
        np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.parametrize("root", [ev.roots.Rows(), slow(ev.roots.Eigen()), ev.roots.StickBreaking()])
@pytest.mark.parametrize("f", [[0.0, 0.0, 0.0], [800.0, 0.0, -800.0], [0.0, 800.0, 800.0], [-1e5, 0.0, 1e5]])
def test_extreme_logits_give_finite_rows_and_derivatives(root: Any, f: list[float]):
    def total(f):
        rows = root.times(ev.Categorical(), f, jax.lax.stop_gradient(root.rotation(ev.Categorical(), f)))
        return jnp.sum(jnp.square(rows))

    value, grad = jax.value_and_grad(total)(jnp.asarray(f))
    p = np.asarray(jax.nn.softmax(jnp.asarray(f)))
    np.testing.assert_allclose(value, np.sum(p * (1 - p)), atol=1e-14)
    assert np.all(np.isfinite(grad))


def test_two_classes_break_into_one_row():
    f = jnp.asarray([0.3, -0.9])
    p = float(jax.nn.softmax(f)[0])
    row = ev.roots.StickBreaking().matrix(ev.Categorical(), f)
    np.testing.assert_allclose(row, np.sqrt(p * (1 - p)) * np.array([[1.0], [-1.0]]), rtol=1e-13)


def test_what_the_released_estimator_drops_is_indefinite():
    f = jnp.asarray([0.5, 0.2, -0.3])
    p = np.asarray(jax.nn.softmax(f))
    rows = ev.roots.Rows(covariance=False).matrix(ev.Categorical(), f)
    np.testing.assert_allclose(rows @ rows.T, np.diag(p * (1 - p)), atol=1e-15)
    dropped = np.linalg.eigvalsh(np.diag(p) - np.outer(p, p) - np.asarray(rows @ rows.T))
    assert dropped[0] < -1e-3
    assert dropped[-1] > 1e-3
    assert not ev.roots.Rows(covariance=False).exact


def test_priors_by_layer_tensor_and_weight():
    params = {"a": {"w": jnp.ones((2, 3)), "b": jnp.full(3, 2.0)}, "c": jnp.full(2, -1.0)}
    cases = [
        (2.0, 0.0, 2.0 * (6 + 12 + 2)),
        ({"a": 2.0, "c": 3.0}, 0.0, 2.0 * 18 + 3.0 * 2),
        ({"a": {"w": jnp.full((2, 3), 0.5), "b": 1.0}, "c": jnp.asarray([1.0, 4.0])}, 0.0, 3.0 + 12.0 + 5.0),
        (1.0, {"a": 1.0, "c": -1.0}, 3.0),
    ]
    for precision, mean, want in cases:
        prior = ev.GaussianPrior(precision, mean)
        np.testing.assert_allclose(prior.penalty(params), want)
        variances = prior.variances(params)
        assert jax.tree.structure(variances) == jax.tree.structure(params)
        assert all(v.shape in ((), w.shape) for v, w in zip(*map(jax.tree.leaves, (variances, params)), strict=True))
