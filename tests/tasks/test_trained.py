"""Duals of trained models: slopes against finite differences, branches, honesty of the label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyprax import tasks


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def test_a_quadratic_has_the_value_and_slope_of_its_closed_form():
    # f = (1 + a) |w|^2 / 2 - b w, w* = b / (1 + a); g = (w - 1)^2 + a w.
    b = 1.5
    found = tasks.trained_dual(
        lambda w, a: 0.5 * (1 + a) * jnp.sum(w**2) - b * jnp.sum(w),
        lambda w, a: jnp.sum((w - 1) ** 2) + a * jnp.sum(w),
        [jnp.zeros(1)],
        np.linspace(0, 2, 9),
    )
    a = found.hypers
    w = b / (1 + a)
    np.testing.assert_allclose(found.validation, (w - 1) ** 2 + a * w, atol=1e-9)
    np.testing.assert_allclose(found.slopes, (2 * (w - 1) + a) * (-b / (1 + a) ** 2) + w, atol=1e-6)
    assert not found.dual.certified
    np.testing.assert_allclose(found.dual(a), found.validation, atol=1e-12)
    certificate = tasks.erm([found.dual], progress=False).certificate
    assert certificate.kind == "estimated"


def test_continuation_finds_the_branch_that_a_start_misses():
    # Two wells near -1 and +1; α tilts them. The start at -1 alone stays in the left well, whichever is lower.
    def inner(w, a):
        return jnp.sum((w**2 - 1) ** 2) + a * jnp.sum(w)

    hypers = np.linspace(-3, 3, 31)
    alone = tasks.trained_dual(inner, lambda w, a: jnp.sum(w) + 0 * a, [-jnp.ones(1)], hypers, sweeps=0)
    swept = tasks.trained_dual(inner, lambda w, a: jnp.sum(w) + 0 * a, [-jnp.ones(1)], hypers, sweeps=1)
    dense = np.linspace(-2.5, 2.5, 100_001)
    lowest = np.array([np.min((dense**2 - 1) ** 2 + a * dense) for a in hypers])
    assert np.max(alone.training - lowest) > 0.1
    np.testing.assert_allclose(swept.training, lowest, atol=1e-6)
    assert np.any(swept.start < 0)


def test_slopes_of_a_trained_network_match_finite_differences():
    # A hidden layer of α softplus + (1 - α) tanh, all of whose weights are trained.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    x[:, 0] += 1.5 * y

    def loss(params, hyper, rows):
        z = x[rows] @ params["first"]
        out = (hyper * jax.nn.softplus(z) + (1 - hyper) * jnp.tanh(z)) @ params["second"]
        return jnp.mean(jax.nn.softplus(jnp.where(y[rows] > 0, -1.0, 1.0) * out))

    def inner(params, hyper):
        return loss(params, hyper, np.arange(25)) + 0.025 * sum(jnp.sum(w**2) for w in params.values())

    start, h = {"first": jnp.asarray(rng.normal(size=(3, 4))), "second": jnp.asarray(rng.normal(size=4))}, 1e-3
    outer = lambda params, hyper: loss(params, hyper, np.arange(25, 40))  # noqa: E731
    found = tasks.trained_dual(inner, outer, [start], [0.6 - h, 0.6, 0.6 + h])
    assert np.max(found.stationarity) < 1e-5
    assert found.slopes[1] == pytest.approx((found.validation[2] - found.validation[0]) / (2 * h), rel=1e-2, abs=1e-3)


def test_bad_input_is_named():
    def f(w, a):
        return jnp.sum(w**2) * (1 + a)

    with pytest.raises(ValueError, match="ascending"):
        tasks.trained_dual(f, f, [jnp.ones(1)], [1.0, 0.0])
    with pytest.raises(ValueError, match="at least one start"):
        tasks.trained_dual(f, f, [], [0.0, 1.0])
    with pytest.raises(ValueError, match="not finite from any start"):
        tasks.trained_dual(lambda w, a: jnp.nan * jnp.sum(w) * a, f, [jnp.ones(1)], [0.0, 1.0])
