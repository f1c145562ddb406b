"""Rows that count by given numbers, in the fit and where they judge: certified, against dense references."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
import oracles
from certificate_cases import FAMILIES, select_penalty, select_weights
from hyprax.implicit import CholeskyCertifier, ExampleNoise, LeaveOneOut
from hyprax.implicit._single_loop._sums import block_codes, mean_terms, outer_sum
from thoroughness import quickly

# Of the shapes of `certificate_cases`, so that programs are shared.
N, D, CLASSES = 40, 5, 3
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, D)) / 2
Y = {
    "squared": X @ np.arange(D) + RNG.normal(size=N),
    "huber": X @ np.arange(D) + RNG.standard_t(2, size=N),
    "logistic": (X[:, 0] + RNG.normal(size=N) > 0).astype(float),
    "poisson": RNG.poisson(np.exp(X[:, 1])).astype(float),
    "softmax": RNG.integers(0, CLASSES, N),
}
FIT = np.where(np.arange(N) % 9 == 0, 0, np.exp(RNG.normal(size=N)))
JUDGE = np.where(np.arange(N) % 7 == 0, 0, np.exp(RNG.normal(size=N)))
STRENGTHS = np.array([0.03, 0.1, 0.02, 0.3, 0.05])
FOLDS = [(np.arange(N) % 4 != k, np.arange(N) % 4 == k) for k in range(4)]


def family(kind, weights: Any = FIT, penalty: Any = select_penalty):
    classes = {"classes": CLASSES} if kind == "softmax" else {}
    return FAMILIES[kind](X, Y[kind], penalty=penalty, weights=weights, **classes)


def hyper(kind):
    return {"penalty": hx.Positive(STRENGTHS[:, None] if kind == "softmax" else STRENGTHS)}


def exact(kind, fit, judged, weights):
    """The mean over the rows `judged`, each times its weight, of the loss of the fit; and dF/d log λ."""
    full = np.broadcast_to(STRENGTHS[:, None], (D, CLASSES if kind == "softmax" else 1))
    y = Y[kind]
    found = oracles.reference(kind, X, y, X[judged], y[judged], full, fit, outer_omega=weights)
    return found.value, found.per_weight.sum(axis=1)


def off(answer, grad):
    return float(np.linalg.norm(np.asarray(answer.grad["penalty"].raw).ravel() - grad))


@pytest.mark.parametrize("kind", quickly(FAMILIES, "poisson"))
def test_folds_are_certified(kind):
    """F = (1/n) Σ_k Σ_{i in k} c_i ℓ_i, fitted with ω on the rows of the other folds."""
    objective = hx.CrossValidated(hx.Optimum(family(kind)), FOLDS, weights=JUDGE)
    parts = [exact(kind, FIT * fit, held, JUDGE[held]) for fit, held in FOLDS]
    value, grad = (np.mean([part[k] for part in parts], axis=0) for k in range(2))
    for accuracy in (None, hx.Accuracy(1e-3, 1e-3)):
        start = hyper(kind)
        answer, state = objective.value_and_grad(start, objective.init(start), accuracy)
        assert answer.certificate.kind == "certified"
        bound = float(answer.certificate.bound)
        assert off(answer, grad) <= bound <= 0.02 * np.linalg.norm(grad)
        found, _ = objective.value(start, state)
        assert found.certificate.kind == "certified"
        assert abs(float(found.value) - value) <= float(found.certificate.bound) <= 0.02 * abs(value)


@pytest.mark.parametrize("kind", quickly(FAMILIES, "huber"))
def test_leaving_one_out_is_certified(kind):
    """F = Σ_i ω_i ℓ_i/Σω, each row judged by the fit without it; rows of weight 0 take no part."""
    objective = LeaveOneOut(hx.Optimum(family(kind)))
    total = FIT.sum()
    value, grad = 0.0, np.zeros(D)
    for i in np.flatnonzero(FIT):
        loss, slope = exact(kind, np.where(np.arange(N) == i, 0, FIT), np.array([i]), np.array([FIT[i] / total]))
        value, grad = value + loss, grad + slope
    start = hyper(kind)
    answer, _ = objective.value_and_grad(start, objective.init(start))
    assert answer.certificate.kind == "certified"
    assert off(answer, grad) <= float(answer.certificate.bound) <= 1e-6 * np.linalg.norm(grad)
    assert abs(float(answer.value) - value) <= 1e-9 * abs(value)


def test_the_noise_is_that_of_the_terms_with_their_weights():
    """h = (1/m) Σ c_i h_i: se² = Σ (c_i h_i - h)²/(m(m - 1)), at the fit."""
    fit, held = FOLDS[0]
    objective = hx.Optimum(family("logistic")).held_out(fit, held, weights=JUDGE, noise=ExampleNoise())
    start = hyper("logistic")
    answer, _ = objective.value_and_grad(start, objective.init(start))
    rows = np.flatnonzero(held)
    each = np.array([exact("logistic", FIT * fit, rows[k : k + 1], JUDGE[rows[k : k + 1]])[1] for k in range(10)])
    np.testing.assert_allclose(np.asarray(answer.grad["penalty"].raw), each.mean(axis=0).astype(float), rtol=1e-6)
    noise: Any = answer.noise
    errors = np.asarray(noise.standard_errors["penalty"].raw)
    np.testing.assert_allclose(errors, (each.std(axis=0, ddof=1) / 10**0.5).astype(float), rtol=1e-6)
    assert float(noise.degrees_of_freedom) == 9


def test_by_a_factor_of_the_hessian_too():
    mean = family("logistic").mean_loss.weighted(JUDGE)
    objective = hx.ImplicitObjective(
        hx.Optimum(family("logistic")), mean, (X, Y["logistic"]), certifier=CholeskyCertifier()
    )
    start = hyper("logistic")
    answer, _ = objective.value_and_grad(start, objective.init(start), hx.Accuracy(1e-4, 1e-4))
    grad = exact("logistic", FIT, np.arange(N), JUDGE)[1]
    assert answer.certificate.kind == "certified"
    assert off(answer, grad) <= float(answer.certificate.bound) <= 0.02 * np.linalg.norm(grad)


def test_strengths_that_are_numbers_leave_the_weights_certified():
    """dF/dω of tuned example weights beside a strength for each column that is not tuned."""
    of_rows = np.where(FIT > 0, FIT, 0.5)
    loss = family("huber", select_weights, STRENGTHS)
    objective = hx.ImplicitObjective(hx.Optimum(loss), loss.mean_loss, (X, Y["huber"]))
    start = {"weights": jnp.asarray(of_rows)}
    answer, _ = objective.value_and_grad(start, objective.init(start))
    truth = oracles.reference("huber", X, Y["huber"], X, Y["huber"], STRENGTHS[:, None], of_rows)
    error = np.linalg.norm(np.asarray(answer.grad["weights"]) - truth.per_example)
    assert answer.certificate.kind == "certified"
    assert error <= float(answer.certificate.bound) <= 1e-3 * np.linalg.norm(truth.per_example)


def test_blocks_of_rows_add_up_to_the_weighted_mean():
    loss = family("poisson")
    mean = loss.mean_loss.weighted(JUDGE)
    data = mean.arrays((X, Y["poisson"]), jnp.zeros(D))
    params = jnp.linspace(-0.3, 0.4, D)
    part = outer_sum("test", mean.of_rows(data), data, 7, jax.random.key(0))
    found = mean_terms(part, block_codes(part, params, {}, params), params, {})
    u = X @ np.asarray(params)
    np.testing.assert_allclose(found.gradient, X.T @ (JUDGE * (np.exp(u) - Y["poisson"])) / N, rtol=1e-12)
    np.testing.assert_allclose(mean(params, {}, data), np.mean(JUDGE * (np.exp(u) - Y["poisson"] * u)), rtol=1e-13)


def test_what_are_no_weights_is_refused():
    for weights in (-FIT, np.full(N, np.nan), np.array(["a"] * N)):
        with pytest.raises(ValueError, match="weights must be a key or attribute of the hyperparameters, a function"):
            family("squared", weights)
        with pytest.raises(ValueError, match=r"mean_loss\.weighted: weights must be finite numbers >= 0, one a row"):
            family("squared").mean_loss.weighted(weights)
    start, short = hyper("squared"), hx.Optimum(family("squared", FIT[:7])).held_out(*FOLDS[0])
    with pytest.raises(ValueError, match=r"weights must have the shape \(\) for one, or \(40,\) for each"):
        short.value_and_grad(start, short.init(start))
    mean = family("squared").mean_loss.weighted(JUDGE)
    with pytest.raises(
        ValueError, match="outer_data must have a row for each of the 40 weights of the mean loss; got 9"
    ):
        hx.ImplicitObjective(hx.Optimum(family("squared")), mean, (X[:9], Y["squared"][:9]))
    with pytest.raises(ValueError, match=r"Optimum.held_out: weights must be a number for each of 40 rows; got \[7\]"):
        hx.Optimum(family("squared")).held_out(*FOLDS[0], weights=JUDGE[:7])
    plain = hx.ImplicitObjective(hx.Optimum(family("squared", None)), mean, (X, Y["squared"]))
    with pytest.raises(ValueError, match="refit: outer_loss must be without weights"):
        plain.refit(hyper("squared"))


def test_rows_that_all_count_nothing_are_refused():
    with pytest.raises(ValueError, match="weights must be above 0 for one row at least; got 0 for all 40"):
        family("logistic", np.zeros(N))
    fit, held = FOLDS[0]
    judge = np.where(held, 0.0, 1.0)
    with pytest.raises(ValueError, match="above 0 for one of the held-out rows at least; got 0 for all 10 of them"):
        hx.Optimum(family("logistic")).held_out(fit, held, weights=judge)


def test_single_loops_follow_the_weighted_mean():
    """Sums over blocks of rows that count differently: variance reduction ends at the hypergradient of all rows."""
    problem = FAMILIES["logistic"](X, Y["logistic"], penalty=select_penalty)
    parts = (hx.Optimum(problem), problem.mean_loss.weighted(JUDGE), (X, Y["logistic"]))
    whole = hx.ImplicitObjective(*parts)
    start = hyper("logistic")
    truth, _ = whole.value_and_grad(start, whole.init(start), hx.Accuracy(1e-12))
    sampled = hx.implicit.SABA(*parts, batch_size=8, key=jax.random.key(0))
    answer, state = sampled.value_and_grad(start, sampled.init(start))
    for _ in range(300):
        answer, state = sampled.value_and_grad(start, state)
    np.testing.assert_allclose(answer.grad["penalty"].raw, truth.grad["penalty"].raw, rtol=1e-6)
    value, _ = sampled.final(start, state)
    assert value.certificate.kind == "certified"
    assert abs(float(value.value - truth.value)) <= float(value.certificate.bound) + 1e-13
