"""The restricted marginal likelihood beside dense Gaussian integrals, quadrature, finite differences and mgcv."""

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given, settings, strategies as st

import hyprax as hx
from hyprax.implicit import REML, RESULTS

N, P = 24, 4


def ridge(seed: int = 0, free: object = (0,), rows: int = N, **more: object) -> tuple[np.ndarray, np.ndarray, REML]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, P))
    x[:, 0] = 1
    y = x @ rng.normal(size=P) + 0.3 * rng.normal(size=rows) + 2
    family = hx.families.Squared(x, y, penalty="penalty", free=list(free) if free else None, **more)  # pyright: ignore[reportArgumentType]
    return x, y, REML(hx.Optimum(family))


def hyper(strengths: np.ndarray, **more: object) -> dict[str, object]:
    return {"penalty": hx.Positive(strengths), **more}


def covariance(x: np.ndarray, strengths: np.ndarray, free: list[int], noise: np.ndarray) -> np.ndarray:
    """Ω⁻¹ + X_p (NΛ)⁻¹ X_pᵀ."""
    held = [j for j in range(x.shape[1]) if j not in free]
    return np.diag(noise) + x[:, held] @ np.diag(1 / (len(x) * strengths[held])) @ x[:, held].T


def integrated(x: np.ndarray, y: np.ndarray, strengths: np.ndarray, free: list[int], noise: np.ndarray) -> float:
    """-log p(y) of y ~ N(X_f b, σ² (Ω⁻¹ + X_p (NΛ)⁻¹ X_pᵀ)), b integrated out under a flat prior, σ² at its best."""
    n, v = len(y), covariance(x, strengths, free, noise)
    inverse = np.linalg.inv(v)
    fixed = x[:, free]
    inner = fixed.T @ inverse @ fixed
    project = inverse - inverse @ fixed @ np.linalg.solve(inner, fixed.T @ inverse)
    left = n - len(free)
    variance = y @ project @ y / left
    logs = np.linalg.slogdet(v)[1] + (np.linalg.slogdet(inner)[1] if free else 0.0)
    return 0.5 * (left * np.log(2 * np.pi * variance) + logs + left)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.lists(st.floats(-6, 3), min_size=P, max_size=P))
def test_of_ridge_is_the_gaussian_integral(seed, logs):
    strengths = 10.0 ** np.array(logs)
    x, y, objective = ridge(seed)
    given_ = hyper(strengths)
    answer, state = objective.value_and_grad(given_, objective.init(given_))
    truth = integrated(x, y, strengths, [0], np.ones(N)) / N
    rounding = 1e-16 * np.linalg.cond(covariance(x, strengths, [0], np.ones(N)))  # of the inverse in `integrated`
    value, _ = objective.value(given_, state)
    assert abs(float(value.value) - truth) <= float(value.certificate.bound) + (1e-12 + rounding) * (1 + abs(truth))
    assert answer.result == RESULTS.successful

    def at(u: np.ndarray) -> float:
        return integrated(x, y, np.exp(u), [0], np.ones(N)) / N

    u = np.log(strengths)
    slopes = [(at(u + 1e-4 * e) - at(u - 1e-4 * e)) / 2e-4 for e in np.eye(P)]
    np.testing.assert_allclose(answer.grad["penalty"].raw, slopes, atol=1e-7 * (1 + np.max(np.abs(slopes))))


def test_weights_of_rows_are_precisions_and_may_be_tuned():
    groups = np.arange(N) % 2
    x, y, objective = ridge(3, weights="weights", weight_groups=groups)
    strengths, weights = np.full(P, 0.2), np.array([0.5, 3.0])
    given_ = hyper(strengths, weights=hx.Positive(weights))
    answer, _ = objective.value_and_grad(given_, objective.init(given_))
    assert float(answer.value) == pytest.approx(integrated(x, y, strengths, [0], 1 / weights[groups]) / N, rel=1e-10)

    def at(u: np.ndarray) -> float:
        return integrated(x, y, strengths, [0], 1 / np.exp(u)[groups]) / N

    u = np.log(weights)
    slopes = [(at(u + 1e-4 * e) - at(u - 1e-4 * e)) / 2e-4 for e in np.eye(2)]
    np.testing.assert_allclose(answer.grad["weights"].raw, slopes, atol=1e-8)


def test_blank_rows_say_nothing():
    x, y, objective = ridge(5)
    padded = hx.families.Squared(
        np.vstack([x, np.zeros((8, P))]), np.concatenate([y, np.zeros(8)]), penalty="penalty", free=[0]
    )
    wider = REML(hx.Optimum(padded), observations=N)
    strengths = np.array([1.0, 0.3, 0.01, 2.0])
    plain, same = hyper(strengths), hyper(strengths * N / (N + 8))
    assert float(wider.value(same, wider.init(same))[0].value) == pytest.approx(
        float(objective.value(plain, objective.init(plain))[0].value), rel=1e-12
    )


@pytest.mark.parametrize("name", ["Logistic", pytest.param("Poisson", marks=pytest.mark.slow)])
def test_laplace_is_near_the_integral_of_one_weight(name):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 1))
    eta = 0.8 * x[:, 0]
    y = (rng.uniform(size=60) < 1 / (1 + np.exp(-eta))) if name == "Logistic" else rng.poisson(np.exp(eta))
    objective = REML(hx.Optimum(getattr(hx.families, name)(x, y.astype(float), penalty="penalty")))

    def density(w: float) -> float:
        u = x[:, 0] * w
        logs = y * u - (np.logaddexp(0, u) if name == "Logistic" else np.exp(u))
        return float(np.exp(np.sum(logs) - 30 * 0.05 * w**2 + shift) * np.sqrt(60 * 0.05 / (2 * np.pi)))

    given_ = hyper(np.array([0.05]))
    value = float(objective.value(given_, objective.init(given_))[0].value)
    shift = 60 * value
    integral = scipy.integrate.quad(density, -10, 10, points=[0.0, 1.0], epsabs=1e-12)[0]
    assert (shift - np.log(integral)) / 60 == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("name", ["Logistic", pytest.param("Poisson", marks=pytest.mark.slow)])
def test_gradients_of_laplace_are_those_of_finite_differences(name):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(N, P))
    x[:, 0] = 1
    y = (np.arange(N) % 3 == 0) if name == "Logistic" else rng.poisson(1.5, N)
    objective = REML(hx.Optimum(getattr(hx.families, name)(x, y.astype(float), penalty="penalty", free=[0])))
    u = np.log([1.0, 0.1, 0.01, 1.0])

    def at(u: np.ndarray) -> float:
        given_ = hyper(np.exp(u))
        return float(objective.value(given_, objective.init(given_))[0].value)

    answer, _ = objective.value_and_grad(hyper(np.exp(u)), objective.init(None))
    slopes = [(at(u + 1e-4 * e) - at(u - 1e-4 * e)) / 2e-4 for e in np.eye(P)]
    np.testing.assert_allclose(answer.grad["penalty"].raw, slopes, atol=1e-8)
    assert answer.certificate.kind == "estimated"
    assert float(answer.certificate.bound) < 1e-9


def test_the_optimum_is_that_of_mgcv():
    """mgcv 1.8-41: gam(y ~ s(a, bs="ps", k=18) + ..., method="REML"), our knots, scalePenalty=FALSE."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 10, (300, 3))
    y = np.sin(x[:, 0]) + 0.02 * (x[:, 1] - 5) ** 2 + 0.5 * rng.normal(size=300)
    terms = hx.implicit.SplineTerms(x, segments=15)
    strengths = np.array([1.0569031571837, 271.9438708885240, 2056.4347144322919]) * terms.scales / 300
    family = hx.families.Squared(terms.columns, y, penalty="penalty", penalty_groups=terms.groups, free=terms.free)
    objective = REML(hx.Optimum(family))
    given_ = hyper(strengths)
    answer, _ = objective.value_and_grad(given_, objective.init(given_))
    assert float(np.max(np.abs(answer.grad["penalty"].raw))) < 1e-9
    assert float(answer.stats.variance) == pytest.approx(0.24382156786164, rel=1e-7)
    assert float(answer.stats.freedom) == pytest.approx(14.2399858752, rel=1e-7)


def test_an_error_is_estimated_in_single_precision():
    x, y, _ = ridge(7)
    x, y, strengths = x.astype(np.float32), y.astype(np.float32), np.array([1.0, 0.3, 0.01, 2.0], np.float32)
    objective = REML(hx.Optimum(hx.families.Squared(x, y, penalty="penalty", free=[0])))
    given_ = hyper(strengths)
    answer, _ = objective.value(given_, objective.init(given_))
    truth = integrated(x.astype(float), y.astype(float), strengths.astype(float), [0], np.ones(N)) / N
    assert answer.value.dtype == np.float32
    assert abs(float(answer.value) - truth) <= float(answer.certificate.bound) < 1e-2


def test_results_and_refusals_have_names():
    _, _, objective = ridge()
    given_ = {"penalty": np.array([1.0, 0.0, 1.0, 1.0])}
    assert objective.value(given_, objective.init(given_))[0].result == RESULTS.unpenalised
    x = np.random.default_rng(0).normal(size=(N, P))
    with pytest.raises(ValueError, match=r"families\.Squared, Logistic or Poisson"):
        REML(hx.Optimum(hx.families.PseudoHuber(x, x[:, 0], penalty="penalty")))
    with pytest.raises(ValueError, match="observations must be a number above 1"):
        REML(objective.optimum, observations=1)
    with pytest.raises(ValueError, match="one output"):
        REML(hx.Optimum(hx.families.Softmax(x, np.arange(N) % 3, classes=3, penalty="penalty")))
    two = np.ones((N, 2))
    unclear = REML(hx.Optimum(hx.families.Squared(np.hstack([two, x]), x[:, 0], penalty="penalty", free=[0, 1])))
    given_ = hyper(np.ones(P + 2))
    assert unclear.value(given_, unclear.init(given_))[0].result == RESULTS.no_optimum
