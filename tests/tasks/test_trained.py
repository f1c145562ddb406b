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


@pytest.mark.parametrize("which", ["activation", "gcn"])
def test_network_slopes_match_finite_differences(which):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
    x[:, 0] += 1.5 * y
    if which == "activation":
        t = np.where(y > 0, 1.0, -1.0)
        task = tasks.Task.hold_out(x[:25], t[:25], x[25:], t[25:])
        losses = tasks.activation_losses(task, [4], tasks.Activation.RELU2, tasks.Activation.IDENTITY, penalty=0.05)
    else:
        d = np.sqrt(np.sum((x[:, None] - x[None]) ** 2, axis=2))
        nodes = np.arange(40)
        kernel = tasks.GaussianKernel()
        losses = tasks.gcn_losses(d, x, y, nodes[:15], nodes[15:], kernel, hidden=4, penalty=0.05, activation=jnp.tanh)
    start, h = losses.init(jax.random.key(1)), 1e-3
    found = tasks.trained_dual(losses.inner, losses.outer, [start], [0.6 - h, 0.6, 0.6 + h])
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
