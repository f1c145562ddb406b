"""Estimators tuned without folds, by leave-one-out and by evidence, and weights of classes."""

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize_scalar
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

import hyprax as hx
from compilations import compilations
from hyprax.sklearn import (
    TunedElasticNet,
    TunedHuberRegressor,
    TunedLogisticRegression,
    TunedPoissonRegressor,
    TunedRidge,
)
from hyprax.sklearn._base import arithmetic
from hyprax.sklearn._rows import Rows
from thoroughness import slow

RNG = np.random.default_rng(0)
N, D = 40, 5
X = RNG.normal(size=(N, D)) * [1.0, 10.0, 0.1, 1.0, 100.0] + [3.0, 0.0, 0.0, -50.0, 0.0]
U = (X[:, 0] - 3) + 0.02 * X[:, 4]
Y = 50 * (U + RNG.normal(size=N)) + 1000
CLASS = (U + RNG.normal(size=N) > 0.5).astype(int)
PAIRS = list(KFold(3, shuffle=True, random_state=0).split(X))
Z = StandardScaler().fit_transform(X)
QUICK: dict[str, Any] = {"cv": PAIRS, "certify": False}


def press(strengths: np.ndarray) -> float:
    """The mean squared error of rows left out, by the leverages of ridge with a free intercept; the prior is kept."""
    design = np.c_[Z, np.ones(N)]
    hat = design @ np.linalg.solve(design.T @ design + N * np.diag(np.r_[strengths, 0]), design.T)
    return float(np.mean(((Y - hat @ Y) / (1 - np.diag(hat))) ** 2))


def evidence(strengths: np.ndarray) -> float:
    """-log p(y)/n but for constants: the noise at its best, a flat prior on the intercept."""
    v = np.eye(N) + Z @ np.diag(1 / (N * strengths)) @ Z.T
    inverse, one = np.linalg.inv(v), np.ones(N)
    project = inverse - np.outer(inverse @ one, inverse @ one) / (one @ inverse @ one)
    logs = np.linalg.slogdet(v)[1] + np.log(one @ inverse @ one)
    return float((logs + (N - 1) * np.log(Y @ project @ Y)) / (2 * N))


@pytest.mark.parametrize(("criterion", "loss"), [("leave_one_out", press), ("evidence", evidence)])
def test_one_strength_minimises_the_criterion(criterion, loss):
    model = TunedRidge(criterion=criterion, tol=1e-9, **QUICK).fit(X, Y)
    best: Any = minimize_scalar(lambda u: loss(np.full(D, np.exp(u))), bounds=(-9, 3), method="bounded")
    np.testing.assert_allclose(np.log(model.strengths_[0]), best.x, atol=2e-4)
    same = Ridge(alpha=N * model.strengths_[0])
    np.testing.assert_allclose(model.predict(X), same.fit(Z, Y).predict(Z), rtol=1e-8)
    errors = [np.sum((Y[held] - same.fit(Z[fit], Y[fit]).predict(Z[held])) ** 2) for fit, held in PAIRS]
    assert -model.cv_score_ == pytest.approx(sum(errors) / N, rel=1e-6)  # folds judge, whatever was minimised


@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "loss"), [("leave_one_out", press), ("evidence", evidence)])
def test_strengths_of_features_minimise_the_criterion_and_are_held_back_by_folds(criterion, loss):
    free = TunedRidge("feature", criterion=criterion, hold_back=False, **QUICK).fit(X, Y)
    least = loss(free.strengths_)
    for j in range(D):
        for factor in (0.7, 1.4):
            moved = np.where(np.arange(D) == j, factor, 1) * free.strengths_
            assert np.any((moved < 1e-7) | (moved > 1e4)) or loss(moved) > least - 1e-6 * abs(least)
    held = TunedRidge("feature", criterion=criterion, cv=PAIRS).fit(X, Y)
    assert "nested folds" in held.message_
    assert held.certificate_["kind"] == ("certified" if criterion == "leave_one_out" else "estimated")
    assert held.noise_["type"] == ("Noise" if criterion == "leave_one_out" else "NoNoise")


class Asked(Exception):
    """What an estimator would have minimised."""


def minimised(monkeypatch, model: Any, x: np.ndarray, y: np.ndarray, weights: Any = None) -> Any:
    """The objective that an estimator tunes by on all rows, not yet evaluated."""
    plain = Rows.leave_one_out

    def asked(self: Rows, training: np.ndarray, count: int) -> Any:
        raise Asked(plain(self, training, count))

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "leave_one_out", asked)
        with pytest.raises(Asked) as found:
            model.fit(x, y, weights)
    return found.value.args[0]


def softmax_left_out(z: np.ndarray, y: np.ndarray, omega: np.ndarray, strengths: np.ndarray) -> float:
    """The weighted mean log-loss of every row under a fit on the others with a free intercept, by Newton's method."""
    n, classes = len(z), int(y.max()) + 1
    design, hot = np.c_[z, np.ones(n)], np.eye(classes)[y]
    prior = np.repeat(np.r_[strengths, 0.0], classes)
    total, w = 0.0, np.zeros(prior.size)
    for i in range(n):
        kept = omega * (np.arange(n) != i)
        for _ in range(60):
            u = design @ w.reshape(-1, classes)
            p = np.exp(u - u.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            slope = (design.T @ (kept[:, None] * (p - hot)) / n).ravel() + prior * w
            if np.linalg.norm(slope) < 1e-14:
                break
            inner = np.einsum("ic,cd->icd", p, np.eye(classes)) - p[:, :, None] * p[:, None]
            curve = np.einsum("i,ij,icd,ik->jckd", kept / n, design, inner, design).reshape(prior.size, -1)
            w = w - np.linalg.lstsq(curve + np.diag(prior), slope, rcond=1e-13)[0]
        u = design[i] @ w.reshape(-1, classes)
        total += omega[i] * (np.log(np.sum(np.exp(u - u.max()))) + u.max() - u[y[i]])
    return total / omega.sum()


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_of_several_classes_is_that_of_refits(weighted, monkeypatch):
    """A free intercept, blank rows and columns, weights of classes and of rows."""
    kinds = np.digitize(U + RNG.normal(size=N), [-0.7, 0.7])
    weights = np.arange(N) % 3 + 1.0 if weighted else None
    model = TunedLogisticRegression(
        "feature", criterion="leave_one_out", class_weight="balanced" if weighted else None, **QUICK
    )
    objective = minimised(monkeypatch, model, X, kinds, weights)
    omega = np.ones(N)
    if weights is not None:
        omega = weights * (weights.sum() / 3 / np.bincount(kinds, weights))[kinds]
        omega = omega / omega.mean()
    mean = np.average(X, axis=0, weights=omega)
    z = (X - mean) / np.sqrt(np.average((X - mean) ** 2, axis=0, weights=omega))
    rows = len(objective.optimum.loss.targets)  # a strength stands beside the mean over these, the blank ones too
    strengths = np.array([0.1, 0.02, 0.3, 0.05, 0.1])
    hyper = {"penalty": hx.Positive(strengths * N / rows)}
    with arithmetic():
        answer, _ = objective.value_and_grad(hyper, objective.init(hyper))
    assert answer.certificate.kind == ("estimated" if weighted else "certified")
    assert answer.certificate.bound <= 1e-6 * np.linalg.norm(answer.grad["penalty"].raw)
    assert float(answer.value) == pytest.approx(softmax_left_out(z, kinds, omega, strengths), rel=1e-9)
    for j, step in enumerate(1e-4 * np.eye(D)[:3]):
        ends = [softmax_left_out(z, kinds, omega, strengths * np.exp(sign * step)) for sign in (1, -1)]
        assert float(answer.grad["penalty"].raw[j]) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-8)


def test_a_row_that_is_alone_in_its_class_is_not_left_out(monkeypatch):
    kinds = np.where(np.arange(N) == 7, 2, CLASS)
    for y in (kinds, (kinds == 2).astype(int)):
        model = TunedLogisticRegression(criterion="leave_one_out", cv=3, certify=False)
        objective = minimised(monkeypatch, model, X, y)
        np.testing.assert_array_equal(objective.left, np.delete(np.arange(N), 7))


@pytest.mark.slow
@pytest.mark.parametrize("make", [TunedLogisticRegression, TunedPoissonRegressor])
def test_evidence_does_not_depend_on_units_and_weights_are_repetitions(make):
    y = CLASS if make is TunedLogisticRegression else RNG.poisson(3 * np.exp(0.3 * U))
    plain = make(criterion="evidence", **QUICK).fit(X, y)
    np.testing.assert_allclose(
        make(criterion="evidence", **QUICK).fit(1e3 * X, y).strengths_, plain.strengths_, rtol=1e-4
    )
    weights = np.arange(N) % 2 + 1
    again = np.repeat(np.arange(N), weights)
    weighted = make(criterion="evidence", cv=3, random_state=0, certify=False, tol=1e-9).fit(X, y, weights)
    repeated = make(criterion="evidence", cv=3, random_state=0, certify=False, tol=1e-9).fit(X[again], y[again])
    np.testing.assert_allclose(weighted.strengths_, repeated.strengths_, rtol=1e-4)
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-4, atol=1e-6 * np.abs(repeated.coef_).max())


@pytest.mark.slow
def test_the_honest_gain_is_of_the_whole_rule():
    x, y = load_diabetes(return_X_y=True)
    model = TunedRidge(criterion="evidence", honest=True, random_state=0).fit(x[:100], y[:100])
    assert model.honest_["against"] == "a model without columns"
    assert model.honest_["gain"] > 0


def test_criteria_that_do_not_fit_are_refused():
    for make in (TunedHuberRegressor, TunedElasticNet):
        with pytest.raises(ValueError, match=f"criterion must be one of .* for {make.__name__}; got 'evidence'"):
            make(criterion="evidence").fit(X, Y)
    for inputs, targets in ((sparse.csr_array(X), Y), (X, np.c_[Y, Y])):
        with pytest.raises(ValueError, match="requires one target or classes"):
            TunedRidge(criterion="leave_one_out").fit(inputs, targets)
    with pytest.raises(ValueError, match="requires one target or two classes"):
        TunedLogisticRegression(criterion="evidence").fit(X, np.arange(N) % 3)


def test_weights_of_classes_are_weights_of_their_rows():
    model = TunedLogisticRegression(class_weight="balanced", **QUICK).fit(X, CLASS)
    weights = N / (2 * np.bincount(CLASS))[CLASS]
    same = TunedLogisticRegression(**QUICK).fit(X, CLASS, weights)
    np.testing.assert_allclose(model.strengths_, same.strengths_, rtol=1e-9)
    np.testing.assert_allclose(model.coef_, same.coef_, rtol=1e-9)
    mean = np.average(X, axis=0, weights=weights)
    scaled = (X - mean) / np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights))
    theirs = LogisticRegression(C=1 / (N * model.strengths_[0]), class_weight="balanced", tol=1e-10, max_iter=10_000)
    np.testing.assert_allclose(model.predict_proba(X), theirs.fit(scaled, CLASS).predict_proba(scaled), atol=1e-5)
    named = {1: 3.0}
    np.testing.assert_allclose(
        TunedLogisticRegression(class_weight=named, **QUICK).fit(X, CLASS, weights).coef_,
        TunedLogisticRegression(**QUICK).fit(X, CLASS, weights * np.where(CLASS == 1, 3.0, 1.0)).coef_,
        rtol=1e-9,
    )
    with pytest.raises(ValueError, match="class_weight must hold finite numbers > 0"):
        TunedLogisticRegression(class_weight={0: -1.0}).fit(X, CLASS)


def hypergradient(strength: float, weights: np.ndarray) -> float:
    """dF/d log λ of the weighted log-loss over the folds, by Newton's method and dense adjoints; the prior is kept."""
    mean = np.average(X, axis=0, weights=weights)
    design = np.c_[(X - mean) / np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights)), np.ones(N)]
    prior = strength * np.diag([1.0] * D + [0.0])
    total = 0.0
    for fit, judge in PAIRS:
        w, curved = np.zeros(D + 1), prior
        for _ in range(50):
            p = 1 / (1 + np.exp(-design[fit] @ w))
            slope = design[fit].T @ (weights[fit] * (p - CLASS[fit])) / N + prior @ w
            curved = (design[fit].T * (weights[fit] * p * (1 - p))) @ design[fit] / N + prior
            w = w - np.linalg.solve(curved, slope)
        p = 1 / (1 + np.exp(-design[judge] @ w))
        adjoint = np.linalg.solve(curved, design[judge].T @ (weights[judge] * (p - CLASS[judge])) / N)
        total -= float(adjoint @ prior @ w)
    return total


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # far from the optimum there is a slope
@pytest.mark.parametrize("criterion", ["folds", "leave_one_out"])
def test_weights_of_classes_are_certified(criterion):
    settings: dict[str, Any] = {"cv": PAIRS, "criterion": criterion, "max_iter": 2}
    model = TunedLogisticRegression(class_weight="balanced", **settings).fit(X, CLASS)
    assert model.certificate_["kind"] == "certified"
    assert 0 < model.certificate_["bound"] < 1e-3
    assert np.all(model.noise_["standard_errors"] > 0)
    if criterion == "folds":
        weights = N / (2 * np.bincount(CLASS))[CLASS]
        exact = hypergradient(float(model.strengths_[0]), weights)
        assert abs(model.noise_["hypergradient"].item() - exact) <= model.certificate_["bound"] + 1e-12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_other_weights_share_the_programs():
    settings: dict[str, Any] = {"cv": PAIRS, "max_iter": 2}
    TunedLogisticRegression(class_weight="balanced", **settings).fit(X, CLASS)
    with compilations() as compiled:
        TunedLogisticRegression(class_weight={0: 1.3, 1: 0.8}, **settings).fit(X, CLASS)
        TunedLogisticRegression(**settings).fit(X, CLASS, 1 + 0.1 * (np.arange(N) == 3))
    assert compiled == []


ROWS = np.where(np.arange(N) % 6 == 0, 0.0, np.exp(np.cos(np.arange(N))))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("criterion", ["folds", slow("leave_one_out")])
def test_weights_of_rows_are_certified(criterion):
    settings: dict[str, Any] = {"cv": PAIRS, "criterion": criterion, "max_iter": 2}
    model = TunedLogisticRegression(**settings).fit(X, CLASS, ROWS)
    assert model.certificate_["kind"] == "certified"
    assert 0 < model.certificate_["bound"] < 1e-3
    assert np.all(model.noise_["standard_errors"] > 0)
    if criterion == "folds":
        exact = hypergradient(float(model.strengths_[0]), ROWS / ROWS.mean())
        assert abs(model.noise_["hypergradient"].item() - exact) <= model.certificate_["bound"] + 1e-12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("make", [TunedPoissonRegressor, TunedHuberRegressor])
def test_weights_of_rows_are_certified_for_numbers_and_counts(make):
    counts = np.random.default_rng(0).poisson(np.exp(0.5 * X[:, 0] / X[:, 0].std()))
    targets = counts if make is TunedPoissonRegressor else Y
    model = make(cv=PAIRS, max_iter=2).fit(X, targets, ROWS)
    assert model.certificate_["kind"] == "certified"
    assert 0 < model.certificate_["bound"] < 1e-3
    assert np.all(model.noise_["standard_errors"] > 0)
