"""Leave-one-out: against refits in long double, enclosures never violated, what it refuses and how it fails."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import hyprax as hx
import leave_one_out_cases as cases
import oracles
from certificate_cases import FREE, select_penalty
from conformance import CHECKS, Case
from hyprax.implicit import GCV, RESULTS, LeaveOneOut
from thoroughness import slow

# All problems have the shape of those of `certificate_cases`, so that those of one family share one program.
RNG = np.random.default_rng(2)
N, D = 40, 5
X = RNG.normal(size=(N, D))
PREDICTED = X @ np.array([1.0, -1.0, 0.5, 0.0, 0.0])
LABELS = (PREDICTED + RNG.normal(size=N) > 0).astype(float)
Y = PREDICTED + 0.3 * RNG.normal(size=N)
START = {"penalty": hx.Positive(np.array([0.1, 0.02, 0.3, 0.05, 0.1]))}


def logistic(inputs=X, targets=LABELS, **options):
    return LeaveOneOut(hx.Optimum(hx.families.Logistic(inputs, targets, penalty=select_penalty)), **options)


RIDGE = hx.Optimum(hx.families.Squared(X, Y, penalty=select_penalty))


def raw(tree):
    return np.asarray(tree["penalty"].raw)


def moved(direction, step):
    return {"penalty": hx.Positive(np.exp(raw(START) + step * direction))}


def slope(fn, step=1e-5):
    return np.array([(fn(moved(e, step)) - fn(moved(e, -step))) / (2 * step) for e in np.eye(D)])


def held(outcome):
    assert outcome.violated == 0, outcome
    assert not outcome.grad_violated, outcome
    assert outcome.loose == 0, outcome


@pytest.mark.parametrize("kind", [slow("squared"), "logistic", slow("poisson"), "softmax"])
def test_loss_and_hypergradient_are_those_of_refits(kind):
    penalty = "weight" if kind == "softmax" else "feature"
    case = cases.random_case(np.random.default_rng(1), cases.Structure(kind, penalty))
    outcome = cases.check(case, LeaveOneOut(hx.Optimum(case.loss)), cases.exact(case))
    held(outcome)
    assert outcome.grad_error <= 1e-8 * outcome.grad_norm
    assert outcome.value_bound <= 1e-6 * outcome.mean
    assert outcome.grad_bound <= 1e-4 * outcome.grad_norm


@pytest.mark.slow
@pytest.mark.parametrize(("penalty", "weights", "free"), [("group", "each", False), ("class", "none", True)])
def test_softmax_with_example_weights_and_with_free_columns(penalty, weights, free):
    case = cases.random_case(np.random.default_rng(5), cases.Structure("softmax", penalty, weights, free=free))
    held(cases.check(case, LeaveOneOut(hx.Optimum(case.loss)), cases.exact(case)))


@settings(max_examples=4)
@given(st.integers(0, 10**6))
def test_enclosures_of_softmax_hold_for_random_problems(seed):
    case = cases.random_case(np.random.default_rng(seed), cases.Structure("softmax", "weight"))
    held(cases.check(case, LeaveOneOut(hx.Optimum(case.loss)), cases.exact(case)))


@pytest.mark.slow
def test_softmax_of_two_classes_is_logistic_and_its_one_step_has_a_slope_of_its_own():
    # ½ λ (w_0² + w_1²) at w_0 = -w_1 is that of u = w_1 - w_0 with half the strength.
    family = hx.families.Softmax(X, LABELS.astype(int), penalty=lambda hyper: 2 * hyper["penalty"][:, None], classes=2)
    for approximate in (False, True):
        both = LeaveOneOut(hx.Optimum(family), approximate=approximate)
        one = logistic(approximate=approximate)
        answer, expected = (hx.hypergradient(o, START)[0] for o in (both, one))
        np.testing.assert_allclose(answer.value, expected.value, rtol=1e-9)
        np.testing.assert_allclose(raw(answer.grad), raw(expected.grad), rtol=1e-6, atol=1e-12)
        errors = [raw(noise.standard_errors) for noise in (answer.noise, expected.noise) if isinstance(noise, hx.Noise)]
        np.testing.assert_allclose(errors[0], errors[1], rtol=1e-6)


def test_columns_without_penalty_and_offsets():
    case = cases.random_case(np.random.default_rng(4), cases.Structure("logistic", "feature", free=True))
    held(cases.check(case, LeaveOneOut(hx.Optimum(case.loss)), cases.exact(case)))
    # Where a free column separates the classes, there is no optimum: with any row left out, or with one.
    inputs = X.copy()
    inputs[:, 4] = 1
    inputs[:, 1] = 2 * LABELS - 1
    inputs[7, 1] *= -1  # only row 7 stands in the way
    family = hx.families.Logistic(inputs, LABELS, penalty=select_penalty, free=FREE, offset=np.zeros(N))
    objective = LeaveOneOut(hx.Optimum(family))
    answer, _ = hx.hypergradient(objective, START, throw=False)
    assert bool(answer.result == RESULTS.no_optimum)
    assert not np.isfinite(answer.certificate.bound)


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(["squared", "logistic", "poisson"]))
def test_enclosures_hold_for_random_problems(seed, kind):
    case = cases.random_case(np.random.default_rng(seed), cases.Structure(kind, "feature"))
    held(cases.check(case, LeaveOneOut(hx.Optimum(case.loss)), cases.exact(case)))


@pytest.mark.slow
@pytest.mark.parametrize("structure", cases.structures(), ids=str)
def test_enclosures_hold_for_thousands_of_rows(structure):
    rng = np.random.default_rng([3, *map(ord, str(structure))])
    for _ in range(10):
        case = cases.random_case(rng, structure)
        outcome = cases.check(case, LeaveOneOut(hx.Optimum(case.loss)), cases.exact(case))
        assert outcome.violated == 0, outcome
        assert not outcome.grad_violated, outcome


def test_ridge_is_its_closed_form():
    answer, state = hx.hypergradient(LeaveOneOut(RIDGE), START)
    strengths = np.asarray(START["penalty"].value)
    hat = X @ np.linalg.solve(X.T @ X / N + np.diag(strengths), X.T) / N
    errors = (Y - hat @ Y) / (1 - np.diag(hat))
    np.testing.assert_allclose(answer.value, np.mean(errors**2) / 2, rtol=1e-13)
    found, _ = LeaveOneOut(RIDGE).value(START, state)
    assert float(found.certificate.bound) <= 1e-11 * float(found.value)
    assert answer.certificate.kind == "certified"


def test_each_row_has_a_hypergradient_of_its_own_and_the_noise_is_theirs():
    case = cases.random_case(np.random.default_rng(1), cases.Structure("logistic", "feature"))
    answer, _ = hx.hypergradient(LeaveOneOut(hx.Optimum(case.loss)), case.hyper)
    each = cases.exact(case).each.astype(float)
    assert isinstance(answer.noise, hx.Noise)
    expected = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    np.testing.assert_allclose(answer.noise.standard_errors["penalty"].raw, expected, rtol=1e-6)
    assert float(answer.noise.degrees_of_freedom) == len(each) - 1
    assert "shared rows is not in it" in answer.noise.over


def test_example_weights_and_rows_of_weight_zero():
    family = hx.families.Logistic(X, LABELS, penalty=select_penalty, weights="weights")
    omega = np.linspace(0.5, 1.5, N)
    omega[[4, 9]] = 0.0
    answer, _ = hx.hypergradient(LeaveOneOut(hx.Optimum(family)), START | {"weights": jnp.asarray(omega)})
    value, per_weight, per_example = 0.0, np.zeros(D), np.zeros(N)
    strengths, losses = np.asarray(START["penalty"].value)[:, None], np.zeros(N)
    for i in range(N):
        kept = np.where(np.arange(N) == i, 0.0, omega)
        found = oracles.reference("logistic", X, LABELS, X[i : i + 1], LABELS[i : i + 1], strengths, kept)
        losses[i] = found.value
        share = omega[i] / omega.sum()
        value += share * losses[i]
        per_weight += share * found.per_weight[:, 0].astype(float)
        per_example += share * np.where(np.arange(N) == i, 0.0, found.per_example.astype(float))
    per_example += (losses - value) / omega.sum()
    np.testing.assert_allclose(answer.value, value, rtol=1e-9)
    np.testing.assert_allclose(raw(answer.grad), per_weight, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(answer.grad["weights"], per_example, rtol=1e-8, atol=1e-12)
    assert isinstance(answer.noise, hx.Noise)
    assert float(answer.noise.degrees_of_freedom) == N - 3  # two rows take no part


def test_one_step_is_near_its_distance_is_proved_and_its_gradient_is_its_own():
    objective = logistic(approximate=True)
    answer, state = hx.hypergradient(objective, START)
    value, _ = objective.value(START, state)
    exact, _ = hx.hypergradient(logistic(), START)
    assert 0 < abs(float(answer.value - exact.value)) <= float(value.certificate.bound) + 1e-12
    assert float(value.certificate.bound) <= 1e-2 * float(exact.value)
    apart = np.linalg.norm(raw(answer.grad) - raw(exact.grad))
    assert 0 < apart <= float(answer.certificate.bound) + float(exact.certificate.bound)
    np.testing.assert_allclose(raw(answer.grad), slope(lambda h: float(objective.value(h, state)[0].value)), rtol=1e-5)


def test_a_subset_is_drawn_by_a_key_or_given():
    drawn = LeaveOneOut(RIDGE, subset=6, key=jax.random.key(0))
    assert len(set(np.asarray(drawn.left).tolist())) == 6
    assert np.array_equal(drawn.left, LeaveOneOut(RIDGE, subset=6, key=jax.random.key(0)).left)
    backwards, _ = hx.hypergradient(LeaveOneOut(RIDGE, subset=np.arange(N)[::-1]), START)
    forwards, _ = hx.hypergradient(LeaveOneOut(RIDGE), START)
    np.testing.assert_allclose(backwards.value, forwards.value, rtol=1e-12)
    np.testing.assert_allclose(backwards.stats.radii[::-1], forwards.stats.radii)


def separable():
    inputs = X * np.array([1.0, 0.0, 1.0, 1.0, 1.0])  # a column of zeros too
    inputs[:, 0] += 20 * (LABELS - 0.5)
    return inputs, LABELS, 1e-6


def doubled():
    return np.concatenate([X[:, :1], X[:, :1], np.ones((N, 1)), X[:, :2]], axis=1), LABELS, 1e-6


def one_of_its_class():
    """Without row 7 a single class is left: the prior keeps its optimum finite."""
    return X, (np.arange(N) == 7).astype(float), 1e-3


def of_very_different_units():
    return X * np.array([1e8, 1.0, 1e-6, 1.0, 1e3]), LABELS, 1e-3


def whole_numbers():
    return np.round(10 * X).astype(int), LABELS.astype(int), 1e-2


@pytest.mark.parametrize(
    "data", [separable, slow(doubled), slow(one_of_its_class), of_very_different_units, slow(whole_numbers)]
)
def test_hard_data_are_enclosed(data):
    inputs, labels, strength = data()
    hyper = {"penalty": hx.Positive(np.full(D, strength))}
    objective = logistic(inputs, labels)
    answer, state = hx.hypergradient(objective, hyper)
    value, _ = objective.value(hyper, state)
    strengths = np.asarray(hyper["penalty"].value)[:, None]
    x, y, rows = inputs.astype(float), labels.astype(float), np.eye(N)
    exact = [oracles.reference("logistic", x, y, x[i : i + 1], y[i : i + 1], strengths, 1 - rows[i]) for i in range(N)]
    off = abs(np.mean([truth.value for truth in exact]) - np.longdouble(float(value.value)))
    assert off <= float(value.certificate.bound) <= 1e-5 * float(value.value)
    grad = np.mean([truth.per_weight[:, 0] for truth in exact], axis=0)
    assert np.linalg.norm((raw(answer.grad) - grad).astype(float)) <= float(answer.certificate.bound)


def test_without_a_prior_there_is_no_optimum_to_speak_of():
    hyper = eqx.tree_at(lambda h: h["penalty"].raw, START, START["penalty"].raw.at[2].set(-jnp.inf))  # a strength of 0
    answer, _ = logistic().value_and_grad(hyper, logistic().init(hyper))
    assert bool(answer.result == RESULTS.unpenalised)
    assert not np.isfinite(answer.certificate.bound)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="one output"):
        LeaveOneOut(hx.Optimum(hx.families.Squared(X, np.stack([Y, Y], axis=1), penalty="penalty")))
    with pytest.raises(ValueError, match="subset must be given for more than 10,000 rows"):
        LeaveOneOut(hx.Optimum(hx.families.Squared(np.ones((10_001, 1)), np.ones(10_001), penalty="penalty")))
    with pytest.raises(ValueError, match="two rows or more"):
        LeaveOneOut(hx.Optimum(hx.families.Squared(X[:1], Y[:1], penalty="penalty")))
    with pytest.raises(ValueError, match="subset must be from 1 to 40"):
        LeaveOneOut(RIDGE, subset=41, key=jax.random.key(0))
    with pytest.raises(ValueError, match="different row numbers"):
        LeaveOneOut(RIDGE, subset=[0, 0])
    with pytest.raises(ValueError, match="family"):
        LeaveOneOut(hx.Optimum(lambda w, hyper, data: jnp.sum(w**2), jnp.zeros(2)))
    with pytest.raises(ValueError, match=r"hx\.families\.Squared"):
        GCV(logistic().optimum)
    with pytest.raises(ValueError, match="gamma must be"):
        GCV(RIDGE, gamma=0.5)


def test_tuning_and_refitting():
    tuned = hx.tune(LeaveOneOut(RIDGE), START, steps=3, progress=False)
    assert tuned.best_value < tuned.history[0]["value"]
    model = hx.refit(LeaveOneOut(RIDGE), tuned.best)
    np.testing.assert_allclose(model.params, RIDGE.refit(tuned.best).params)


@pytest.mark.parametrize("gamma", [1.0, 1.4])
def test_generalised_cross_validation_is_its_formula_and_its_slope(gamma):
    objective = GCV(RIDGE, gamma=gamma)

    def formula(hyper):
        strengths = np.asarray(hyper["penalty"].value)
        hat = X @ np.linalg.solve(X.T @ X / N + np.diag(strengths), X.T) / N
        return float(np.mean((Y - hat @ Y) ** 2) / 2 / (1 - gamma * np.trace(hat) / N) ** 2)

    answer, state = hx.hypergradient(objective, START)
    np.testing.assert_allclose(answer.value, formula(START), rtol=1e-12)
    np.testing.assert_allclose(raw(answer.grad), slope(formula), rtol=1e-7)
    np.testing.assert_allclose(objective.params(state), hx.refit(objective, START).params, rtol=1e-6)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("objective", [logistic(), GCV(RIDGE)], ids=["leave-one-out", "gcv"])
def test_they_are_objectives(objective, check):
    check(Case(objective, START, traceable=True))
