"""Losses with a weight for each class: every method beside derivatives of c_y ℓ, and bounds that hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax.implicit._double_double import lifted
from hyprax.implicit.families._class_weights import WeightedLogisticLoss, WeightedSoftmaxLoss
from hyprax.implicit.families._losses import LogisticLoss, SoftmaxLoss

WEIGHTS = [0.3, 4.0, 1.7]


@pytest.mark.parametrize("several", [False, True])
def test_every_derivative_is_that_of_the_weighted_loss(several):
    rng = np.random.default_rng(0)
    base, loss = (SoftmaxLoss(), WeightedSoftmaxLoss(WEIGHTS)) if several else (
        LogisticLoss(), WeightedLogisticLoss(WEIGHTS[:2]))  # fmt: skip
    shape = (7, 3) if several else (7,)
    y = np.arange(7) % (3 if several else 2)
    u, v = jnp.asarray(3 * rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))
    u = u.at[0].multiply(1e3)  # probabilities of exactly 0 and 1
    targets = jnp.asarray(y) if several else jnp.asarray(y, float)
    c = np.asarray(WEIGHTS)[y]
    s = loss.statistic(u, targets)

    def total(u):
        return jnp.sum(c * base.value(u, targets))

    np.testing.assert_allclose(loss.value(u, targets), c * base.value(u, targets), rtol=1e-14)
    np.testing.assert_allclose(loss.slope(s, targets), jax.grad(total)(u), rtol=1e-12, atol=1e-15)
    curved = jax.jvp(jax.grad(total), (u,), (v,))[1]
    np.testing.assert_allclose(loss.curve(s, v), curved, rtol=1e-9, atol=1e-14)
    directions = np.eye(3) if several else [jnp.ones(())]
    blocks = np.stack([np.asarray(loss.curve(s, jnp.broadcast_to(e, shape))) for e in directions], axis=-1)
    blocks = blocks if several else blocks[:, 0]
    diagonal = np.diagonal(blocks, axis1=1, axis2=2) if several else blocks
    np.testing.assert_allclose(loss.curve_diagonal(s), diagonal, rtol=1e-9, atol=1e-14)
    largest = np.linalg.eigvalsh(blocks)[:, -1] if several else blocks
    assert np.all(loss.top_curvature(s) >= (1 - 1e-12) * largest)
    slope, curve = loss.extended(lifted(u), lifted(v), targets)
    np.testing.assert_allclose(slope.hi, loss.slope(s, targets), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(curve.hi, curved, rtol=1e-9, atol=1e-14)
    usual = slice(1, None)  # where ∇²ℓ is not 0
    g, none = np.asarray(loss.slope(s, targets)), jnp.zeros(shape)
    dual = [float(a @ np.linalg.pinv(h) @ a) if several else float(a * a / h)
            for a, h in zip(g[usual], blocks[usual], strict=True)]  # fmt: skip
    np.testing.assert_allclose(loss.dual_slope(s, targets, none)[usual], dual, rtol=1e-8)


def test_a_certified_bound_holds_with_weights_of_classes():
    rng = np.random.default_rng(1)
    X, V = rng.normal(size=(40, 3)), rng.normal(size=(20, 3))
    y, z = (rng.random(40) < 0.3).astype(int), (rng.random(20) < 0.3).astype(int)
    weights, strength = np.array([0.5, 3.0]), 0.05
    family = hx.families.Logistic(X, y, penalty="penalty", class_weights=weights.tolist())
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (V, z))
    hyper = {"penalty": hx.Positive(strength)}
    answer, _ = objective.value_and_grad(hyper, objective.init(hyper), hx.Accuracy(1e-4, 1e-4))

    def slopes(w, A, t):
        p = 1 / (1 + np.exp(-A @ w))
        return A.T @ (weights[t] * (p - t)) / len(t), (A.T * (weights[t] * p * (1 - p))) @ A / len(t)

    w = np.zeros(3)
    for _ in range(60):
        first, second = slopes(w, X, y)
        w = w - np.linalg.solve(second + strength * np.eye(3), first + strength * w)
    _, second = slopes(w, X, y)
    exact = -strength * w @ np.linalg.solve(second + strength * np.eye(3), slopes(w, V, z)[0])
    assert answer.certificate.kind == "certified"
    assert abs(float(answer.grad["penalty"].raw) - exact) <= float(answer.certificate.bound) < 0.2 * abs(exact)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, float("inf")]])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ValueError, match="class_weights must be 2 finite numbers > 0; got"):
        hx.families.Logistic(np.ones((4, 1)), [0, 1, 0, 1], penalty="penalty", class_weights=weights)
