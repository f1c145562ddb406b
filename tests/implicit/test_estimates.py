"""Losses of unknown structure: the estimate of the error, and systems that are not the Hessian's."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx


def ridge(rng: np.random.Generator, d: int = 4) -> tuple:
    """g = |Xw - y|²/2n + ½ Σ λ_j w_j² and f = |Vw - z|²/2m as plain functions, and the exact hypergradient."""
    x, y = rng.normal(size=(20, d)) * np.exp(rng.uniform(-2, 1, d)), rng.normal(size=20)
    v, z = rng.normal(size=(10, d)), rng.normal(size=10)
    strengths = np.exp(rng.uniform(-6, 0, d))
    a = x.T @ x / 20 + np.diag(strengths)
    w = np.linalg.solve(a, x.T @ y / 20)
    q = np.linalg.solve(a, v.T @ (v @ w - z) / 10)
    hyper = hx.Positive(jnp.asarray(strengths))
    data = tuple(map(jnp.asarray, (x, y, v, z)))
    return data, hyper, w, -strengths * w * q


def inner(params, hyper, data):
    x, y = data
    return 0.5 * jnp.mean((x @ params - y) ** 2) + 0.5 * jnp.sum(hyper * params**2)


def outer(params, hyper, data):
    v, z = data
    return 0.5 * jnp.mean((v @ params - z) ** 2)


def objective(data, certifier) -> hx.ImplicitObjective:
    x, y, v, z = data
    optimum = hx.Optimum(inner, jnp.zeros(x.shape[1]), data=(x, y))
    return hx.ImplicitObjective(optimum, outer, (v, z), certifier=certifier)


def given_constants() -> hx.implicit.EhrhardtRoberts:
    one = jnp.asarray(1.0)
    return hx.implicit.EhrhardtRoberts(
        hx.implicit.Constants(one, one, one, one), lipschitz_outer=1.0, lipschitz_direct=0.0
    )


def test_the_estimate_is_near_the_error_and_is_never_called_certified():
    rng = np.random.default_rng(3)
    held, ratios = [], []
    for _ in range(10):
        data, hyper, _, exact = ridge(rng)
        plain, made = (
            objective(data, bound)
            for bound in (hx.implicit.NoCertifier(), hx.implicit.LookAheadEstimate(relative=1e-6))
        )
        for inner_accuracy, adjoint_accuracy in 10.0 ** rng.uniform(-7, -1, size=(4, 2)):
            accuracy = hx.Accuracy(jnp.asarray(inner_accuracy), jnp.asarray(adjoint_accuracy))
            answer, _ = made.value_and_grad(hyper, made.init(hyper), accuracy)
            first, _ = plain.value_and_grad(hyper, plain.init(hyper), accuracy)
            error = float(jnp.linalg.norm(first.grad.raw - exact))
            certificate = answer.certificate
            assert isinstance(certificate, hx.implicit.TwoSidedCertificate)
            assert certificate.kind == "estimated"
            rounding = 1e-11 * float(np.linalg.norm(exact))  # of the reference, which is a float64 solve
            held.append(np.linalg.norm(answer.grad.raw - exact) <= float(certificate.bound) + rounding)
            ratios.append(float(certificate.shift) / error)
    assert np.mean(held) >= 0.95
    assert 0.8 <= np.median(ratios) <= 1.25  # the shift is the error of the first answer, nearly


def test_the_estimate_is_the_default_for_a_loss_of_unknown_structure():
    data, hyper, _, exact = ridge(np.random.default_rng(4))
    answer = hx.hypergradient(objective(data, None), hyper)[0]
    assert answer.certificate.kind == "estimated"
    np.testing.assert_allclose(answer.grad.raw, exact, rtol=1e-5)


def network(params, hyper, data):
    x, _ = data
    return jnp.tanh(x @ params["first"]) @ params["second"]


def squared(u, hyper, data):
    return 0.5 * jnp.mean((u - data[1]) ** 2)


def decay(params, hyper):
    return 0.5 * hyper * (jnp.sum(params["first"] ** 2) + jnp.sum(params["second"] ** 2))


def test_gauss_newton_is_its_matrix_and_says_so():
    rng = np.random.default_rng(5)
    data = (jnp.asarray(rng.normal(size=(9, 3))), jnp.asarray(rng.normal(size=9)))
    params = {"first": jnp.asarray(rng.normal(size=(3, 2))), "second": jnp.asarray(rng.normal(size=2))}
    hyper, damping = hx.Positive(0.3), 0.05
    loss = hx.implicit.GaussNewton(network, squared, regulariser=decay, data=data, damping=damping)
    flat, back = jax.flatten_util.ravel_pytree(params)
    jacobian = np.asarray(jax.jacfwd(lambda w: network(back(w), None, data))(flat))
    dense = jacobian.T @ jacobian / 9 + (0.3 + damping) * np.eye(8)
    product = loss.product(loss.at(params, hyper), hyper)
    found = np.stack([jax.flatten_util.ravel_pytree(product(back(row)))[0] for row in jnp.eye(8)])
    np.testing.assert_allclose(found, dense, rtol=1e-9, atol=1e-12)

    def validation(w, hyper, data):
        return squared(network(w, None, data), hyper, data)

    for bound in (hx.implicit.LookAheadEstimate(), hx.implicit.NoCertifier()):
        made = hx.ImplicitObjective(hx.Optimum(loss, params), validation, data, certifier=bound)
        answer = hx.hypergradient(made, hyper, throw=False)[0]
        assert "damped Gauss-Newton system, damping 0.05" in repr(answer.certificate)
    with pytest.raises(ValueError, match="damping"):
        hx.implicit.GaussNewton(network, squared, data=data, damping=-1.0)


def test_no_bound_of_another_system_is_called_certified():
    data = (jnp.ones((4, 3)), jnp.ones(4))
    params = {"first": jnp.ones((3, 2)), "second": jnp.ones(2)}
    loss = hx.implicit.GaussNewton(network, squared, regulariser=decay, data=data, damping=0.1)
    with pytest.raises(ValueError, match="damped Gauss-Newton"):
        hx.ImplicitObjective(hx.Optimum(loss, params), squared, data, certifier=given_constants())


def test_bounds_in_exact_arithmetic_refuse_float32():
    data, _, _, _ = ridge(np.random.default_rng(0))
    x, y, v, z = (part.astype(jnp.float32) for part in data)
    optimum = hx.Optimum(inner, jnp.zeros(4, jnp.float32), data=(x, y))
    with pytest.raises(ValueError, match="float32"):
        hx.ImplicitObjective(optimum, outer, (v, z), certifier=given_constants())


def test_settings_of_the_estimate_are_checked():
    bad: dict[str, Any]
    for bad in ({"rounds": 0}, {"accuracy": 1.0}, {"relative": -1.0}, {"steps": 0}):
        with pytest.raises(ValueError, match="LookAheadEstimate"):
            hx.implicit.LookAheadEstimate(**bad)
