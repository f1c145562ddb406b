"""Smooth terms against dense P-splines: B-splines of SciPy, a difference penalty, normal equations."""

import numpy as np
import pytest
from scipy.interpolate import BSpline

import hyprax as hx

N, SEGMENTS, DEGREE = 80, 8, 3
RNG = np.random.default_rng(0)
X = RNG.uniform(0, 10, size=(N, 2))
Y = np.sin(X[:, 0]) + 0.1 * (X[:, 1] - 5) ** 2 + 0.3 * RNG.normal(size=N)
STRENGTHS = np.array([0.03, 0.2])


def basis(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    low, high = like.min(), like.max()
    knots = low + (high - low) / SEGMENTS * np.arange(-DEGREE, SEGMENTS + DEGREE + 1)
    return BSpline.design_matrix(np.clip(x, low, high), knots, DEGREE, extrapolate=True).toarray()


def dense(scales: np.ndarray) -> np.ndarray:
    """The hat matrix of intercept and both terms: (1/2n)‖y - Xβ‖² + ½ Σ_t (λ_t/s_t)‖D β_t‖², by pseudo-inverse."""
    blocks = [np.ones((N, 1))] + [basis(X[:, t], X[:, t]) for t in range(2)]
    design = np.concatenate(blocks, axis=1)
    penalty, size = np.zeros((design.shape[1],) * 2), SEGMENTS + DEGREE
    differences = np.diff(np.eye(size), n=2, axis=0)
    for t in range(2):
        at = slice(1 + t * size, 1 + (t + 1) * size)
        penalty[at, at] = STRENGTHS[t] / scales[t] * differences.T @ differences
    return design @ np.linalg.pinv(design.T @ design / N + penalty, hermitian=True, rcond=1e-12) @ design.T / N


@pytest.fixture(scope="module")
def fitted():
    terms = hx.implicit.SplineTerms(X, segments=SEGMENTS)
    family = hx.families.Squared(terms.columns, Y, penalty="penalty", penalty_groups=terms.groups, free=terms.free)
    hyper = {"penalty": hx.Positive(STRENGTHS)}
    params = hx.Optimum(family, solver=hx.implicit.Newton(tolerance=1e-12)).refit(hyper).params
    return terms, family, hyper, np.asarray(params)


def test_the_fit_is_that_of_penalised_normal_equations(fitted):
    terms, _, _, params = fitted
    hat = dense(terms.scales)
    np.testing.assert_allclose(np.asarray(terms.columns) @ params, hat @ Y, rtol=1e-7)


def test_terms_are_centred_and_the_first_column_is_the_intercept(fitted):
    terms, _, _, params = fitted
    columns = np.asarray(terms.columns)
    np.testing.assert_allclose(columns[:, 0], 1)
    np.testing.assert_allclose(columns[:, 1:].mean(axis=0), 0, atol=1e-12)
    assert columns.shape[1] == 1 + 2 * (SEGMENTS + DEGREE - 1)
    assert terms.free.sum() == 3
    assert params[0] == pytest.approx(Y.mean())


def test_degrees_of_freedom_and_intervals_are_those_of_the_hat_matrix(fitted):
    """The posterior covariance of all predictions is φ times the hat matrix."""
    terms, family, hyper, params = fitted
    fit = terms.fitted(family, hyper, params)
    hat = dense(terms.scales)
    assert fit.total == pytest.approx(np.trace(hat))
    assert fit.total == pytest.approx(1 + fit.degrees_of_freedom.sum())
    assert fit.dispersion == pytest.approx(np.sum((Y - hat @ Y) ** 2) / (N - np.trace(hat)))
    alone = hx.implicit.SplineTerms(X[:, :1], segments=SEGMENTS)
    single = hx.families.Squared(alone.columns, Y, penalty="penalty", penalty_groups=alone.groups, free=alone.free)
    one = {"penalty": hx.Positive(STRENGTHS[:1])}
    weights = hx.Optimum(single).refit(one).params
    effect = alone.fitted(single, one, weights, dispersion=1.0).effect(0, X[:, 0], level=0.9)
    columns = np.asarray(alone.columns)
    inverse = np.linalg.inv(columns.T @ columns / N + STRENGTHS[0] * np.diag(~alone.free))
    spread = np.sqrt(np.diag(columns @ inverse @ columns.T) / N - 1 / N)  # the intercept is apart: columns are centred
    np.testing.assert_allclose(effect.standard_error, spread, rtol=1e-6)
    np.testing.assert_allclose(effect.upper - effect.lower, 2 * 1.6448536269514722 * spread, rtol=1e-6)
    np.testing.assert_allclose(effect.value + Y.mean(), columns @ np.asarray(weights), rtol=1e-9)


def test_the_optimum_of_gcv_is_that_of_mgcv():
    """mgcv 1.8-41 on these rows: gam(y ~ s(a, bs="ps", k=18) + ..., method="GCV.Cp"), our knots, scalePenalty=FALSE."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 10, (300, 3))
    y = np.sin(x[:, 0]) + 0.02 * (x[:, 1] - 5) ** 2 + 0.5 * rng.normal(size=300)
    terms = hx.implicit.SplineTerms(x, segments=15)
    strengths = np.array([1.85150809838, 341.08151853093, 2474.48578147177]) * terms.scales / 300
    columns = np.asarray(terms.columns)
    matrix = columns.T @ columns / 300 + np.diag(np.where(terms.free, 0, strengths[terms.groups]))
    params = np.linalg.solve(matrix, columns.T @ y / 300)
    family = hx.families.Squared(terms.columns, y, penalty="penalty", penalty_groups=terms.groups, free=terms.free)
    fit = terms.fitted(family, {"penalty": hx.Positive(strengths)}, params)
    residual = np.sum((y - columns @ params) ** 2)
    assert 300 * residual / (300 - fit.total) ** 2 == pytest.approx(0.255803354596, rel=1e-9)
    np.testing.assert_allclose(fit.degrees_of_freedom, [8.02148660032, 2.55415586842, 1.56453978845], rtol=1e-5)
    assert fit.dispersion == pytest.approx(0.244599012258, rel=1e-8)
    objective, hyper = hx.implicit.GCV(hx.Optimum(family)), {"penalty": hx.Positive(strengths)}
    answer, _ = hx.hypergradient(objective, hyper)
    assert float(answer.value) == pytest.approx(0.255803354596 / 2, rel=1e-9)
    np.testing.assert_allclose(answer.grad["penalty"].raw, 0, atol=1e-7)
    effect = fit.effect(0, [2.0, 5.0])
    np.testing.assert_allclose(effect.value, [0.775724531043, -0.984531983771], rtol=1e-6)
    np.testing.assert_allclose(effect.standard_error, [0.0812155634098, 0.0692268575985], rtol=1e-6)


def test_new_rows_follow_the_same_functions_and_straight_lines_beyond(fitted):
    terms, _, _, params = fitted
    np.testing.assert_allclose(terms.transform(X[:5]), terms.columns[:5], rtol=1e-12)
    far = np.column_stack([np.array([10.5, 11.0, 11.5]), np.full(3, 5.0)])
    along = np.asarray(terms.transform(far)) @ params
    assert along[2] - along[1] == pytest.approx(along[1] - along[0])
    assert abs(along[1] - along[0]) > 1e-3


def test_strong_penalties_leave_a_straight_line():
    terms = hx.implicit.SplineTerms(X[:, :1], segments=SEGMENTS)
    family = hx.families.Squared(terms.columns, Y, penalty="penalty", penalty_groups=terms.groups, free=terms.free)
    found = hx.Optimum(family).refit({"penalty": hx.Positive(np.array([1e8]))}).params
    line = np.polynomial.Polynomial.fit(X[:, 0], Y, 1)
    np.testing.assert_allclose(np.asarray(terms.columns) @ np.asarray(found), line(X[:, 0]), atol=1e-5)


def test_settings_and_inputs_are_checked():
    terms = hx.implicit.SplineTerms
    with pytest.raises(ValueError, match="at least two distinct values; got 3 alone in column 1"):
        terms(np.column_stack([X[:, 0], np.full(N, 3.0)]))
    with pytest.raises(ValueError, match=r"inputs must have the shape \(rows, terms\)"):
        terms(X[:, 0])
    with pytest.raises(ValueError, match="segments must be an integer >= 1"):
        terms(X, segments=[3])
    with pytest.raises(ValueError, match="order must be from 1 to degree"):
        terms(X, order=5)
    with pytest.raises(ValueError, match=r"inputs must have the shape \(rows, 2\)"):
        terms(X).transform(X[:, :1])
