"""The elastic net: against every pattern of signs in exact fractions, scikit-learn, finite differences."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.linear_model import ElasticNet as Reference

import hyprax as hx
from compilations import compilations
from hyprax.implicit import ElasticNet
from thoroughness import examples

ROWS, COLUMNS = 12, 3
TRAINING = np.arange(ROWS) % 3 != 0


def solved(matrix, right):
    """A v = r in fractions, by elimination."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [v - rows[k][i] * u for v, u in zip(rows[k], rows[i], strict=True)]
    return [row[-1] for row in rows]


def exactly(x, y, l1, l2):
    """The value on the rows that are not of training, and its derivatives in l1 and l2."""
    n, columns = x.shape
    X = [[Fraction(float(v)) for v in row] for row in x]
    Y = [Fraction(float(v)) for v in y]
    a, b = ([Fraction(float(v)) for v in z] for z in (l1, l2))
    train = np.flatnonzero(TRAINING).tolist()
    held = np.flatnonzero(~TRAINING).tolist()
    middle = [sum(X[i][j] for i in train) / len(train) for j in range(columns)]
    level = sum(Y[i] for i in train) / len(train)
    Z = [[X[i][j] - middle[j] for j in range(columns)] for i in range(n)]
    R = [Y[i] - level for i in range(n)]
    G = [[sum(Z[i][j] * Z[i][k] for i in train) / n for k in range(columns)] for j in range(columns)]
    c = [sum(Z[i][j] * R[i] for i in train) / n for j in range(columns)]
    for signs in itertools.product((-1, 0, 1), repeat=columns):
        S = [j for j in range(columns) if signs[j]]
        w = [Fraction(0)] * columns
        A = [[G[j][k] + (b[j] if j == k else 0) for k in S] for j in S]
        for j, v in zip(S, solved(A, [c[j] - a[j] * signs[j] for j in S]), strict=True):
            w[j] = v
        slope = [sum(G[j][k] * w[k] for k in range(columns)) + b[j] * w[j] - c[j] for j in range(columns)]
        if all(w[j] * signs[j] > 0 for j in S) and all(abs(slope[j]) <= a[j] for j in range(columns) if j not in S):
            off = {i: R[i] - sum(Z[i][j] * w[j] for j in range(columns)) for i in held}
            value = sum(v**2 for v in off.values()) / (2 * len(held))
            g = [-sum(Z[i][j] * off[i] for i in held) / len(held) for j in range(columns)]
            q = [Fraction(0)] * columns
            for j, v in zip(S, solved(A, [g[j] for j in S]), strict=True):
                q[j] = v
            return value, [-signs[j] * q[j] for j in range(columns)], [-w[j] * q[j] for j in range(columns)]
    raise AssertionError("one pattern of signs is that of the optimum")


@examples(25, 400)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.integers(-3, 3),
    offset=st.sampled_from([0.0, 0.0, 1e3]),
    size=st.floats(-4, 1),
    ridge=st.floats(-6, 0),
)
def test_bounds_hold_on_every_pattern_of_signs(seed, scale, offset, size, ridge):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, COLUMNS)) * 10.0 ** np.array([0, scale, 0]) + offset
    x[:, 2] = x[:, 0] + 0.1 * x[:, 2]
    y = (x - x.mean(0)) @ (rng.normal(size=COLUMNS) * rng.integers(0, 2, COLUMNS)) + rng.normal(size=ROWS) + offset
    l1 = 10.0**size * np.exp(rng.normal(size=COLUMNS)) * np.std(y)
    l2 = 10.0**ridge * np.exp(rng.normal(size=COLUMNS))
    hyper = {"l1": hx.Positive(l1), "l2": hx.Positive(l2)}
    exact_l1, exact_l2 = np.asarray(hyper["l1"].value), np.asarray(hyper["l2"].value)
    value, of_l1, of_l2 = exactly(x, y, exact_l1, exact_l2)
    objective = ElasticNet(x, y).held_out(TRAINING, ~TRAINING)
    answer, _ = objective.value_and_grad(hyper, objective.init(hyper))
    found, _ = objective.value(hyper, objective.init(hyper))
    assert found.certificate.kind == "certified"
    assert abs(Fraction(float(found.value)) - value) <= Fraction(float(found.certificate.bound))
    entries = getattr(answer.certificate, "entries")  # noqa: B009
    if answer.certificate.kind == "certified":
        errors = []
        for name, exact, natural in (("l1", of_l1, exact_l1), ("l2", of_l2, exact_l2)):
            for j in range(COLUMNS):
                true = exact[j] * Fraction(float(natural[j]))
                off = abs(Fraction(float(answer.grad[name].raw[j])) - true)
                assert off <= Fraction(float(entries[name].raw[j]))
                errors.append(off)
        assert sum(e**2 for e in errors) <= Fraction(float(answer.certificate.bound)) ** 2


def problem(rows=80, columns=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    return x, x[:, :3] @ [2.0, -1.0, 1.0] + 0.5 * rng.normal(size=rows) + 3


def test_most_problems_are_certified_and_bounds_are_tight():
    x, y = problem()
    rows = np.arange(80) % 4 != 0
    objective = ElasticNet(x, y).held_out(rows, ~rows)
    for l1 in (1e-3, 1e-2, 1e-1):
        hyper = {"l1": hx.Positive(l1), "l2": hx.Positive(1e-2)}
        answer, _ = objective.value_and_grad(hyper, objective.init(hyper))
        assert answer.certificate.kind == "certified"
        assert float(answer.relative_bound) < 1e-8


def test_weights_are_those_of_scikit_learn_and_folds_are_tuned():
    x, y = problem()
    net = ElasticNet(x, y)
    hyper = {"l1": hx.Positive(0.05), "l2": hx.Positive(0.02)}
    fit = net.refit(hyper)
    reference = Reference(alpha=0.07, l1_ratio=5 / 7, tol=1e-12, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(fit.params, reference.coef_, atol=1e-9)
    np.testing.assert_allclose(fit.intercept, reference.intercept_, rtol=1e-9)
    folds = hx.search.CrossValidated(net, 5, key=jax.random.key(0), noise=hx.implicit.ExampleNoise())
    answer, _ = folds.value_and_grad(hyper, folds.init(hyper))
    assert answer.certificate.kind == "certified"
    assert isinstance(answer.noise, hx.Noise)
    for name in ("l1", "l2"):
        moved = [{**hyper, name: hx.Positive(np.asarray(hyper[name].value) * np.exp(step))} for step in (1e-5, -1e-5)]
        up, down = (float(folds.value(each, folds.init(each))[0].value) for each in moved)
        np.testing.assert_allclose(answer.grad[name].raw, (up - down) / 2e-5, rtol=1e-5)
    each = {"l1": hx.Positive(np.full(12, 0.05)), "l2": hx.Positive(0.02)}
    tuned = hx.tune(folds, each, steps=15)
    assert tuned.best_value < float(answer.value)
    strengths = np.asarray(hx.natural(tuned.best)["l1"])
    assert strengths[:3].max() < strengths[3:].min() + 0.05


@pytest.mark.parametrize("weak", [1e-3, 1e-5, 1e-7])
def test_fits_arrive_however_badly_conditioned_the_columns_are(weak):
    rng = np.random.default_rng(round(-np.log10(weak)))
    for _ in range(4):
        left, right = np.linalg.qr(rng.normal(size=(80, 12)))[0], np.linalg.qr(rng.normal(size=(12, 12)))[0]
        x = left * np.logspace(0, -9, 12) @ right
        x = (x - x.mean(0)) / x.std(0)
        y = x @ rng.normal(size=12) + 0.1 * rng.normal(size=80)
        fit = ElasticNet(x, y).refit({"l1": hx.Positive(weak), "l2": hx.Positive(weak)})
        assert fit.result == hx.implicit.RESULTS.successful
        # the gap between the value and its dual, as a lasso on rows of √λ below
        w = np.asarray(fit.params)
        design = np.vstack([x / 80**0.5, weak**0.5 * np.eye(12)])
        target = np.r_[(y - y.mean()) / 80**0.5, np.zeros(12)]
        off = target - design @ w
        value = 0.5 * off @ off + weak * np.abs(w).sum()
        dual = off * min(1, weak / np.abs(design.T @ off).max())
        gap = value - 0.5 * (target @ target - (target - dual) @ (target - dual))
        assert gap < 1e-9 * value


def test_noise_is_the_spread_over_held_out_rows():
    x, y = problem(rows=40, columns=4)
    rows = np.arange(40) % 2 == 0
    net = ElasticNet(x, y, groups=[0, 0, 1, 1])
    hyper = {"l1": hx.Positive([0.05, 0.2]), "l2": hx.Positive(0.02)}
    objective = net.held_out(rows, ~rows, noise=hx.implicit.ExampleNoise())
    answer, state = objective.value_and_grad(hyper, objective.init(hyper))
    assert isinstance(answer.noise, hx.Noise)
    one = []
    for row in np.flatnonzero(~rows):
        mask = np.arange(40) == row
        alone = net.held_out(rows, mask)
        one.append(alone.value_and_grad(hyper, state)[0].grad)
    for name in ("l1", "l2"):
        values = np.stack([np.asarray(h[name].raw) for h in one])
        np.testing.assert_allclose(answer.grad[name].raw, values.mean(0), rtol=1e-9, atol=1e-14)
        error = values.std(0, ddof=1) / 20**0.5
        np.testing.assert_allclose(answer.noise.standard_errors[name].raw, error, rtol=1e-9, atol=1e-14)


def test_weights_are_repetitions():
    x, y = problem(rows=30, columns=4)
    weights = np.arange(30) % 3 + 1
    again = np.repeat(np.arange(30), weights)
    rows = np.arange(30) % 2 == 0
    hyper = {"l1": hx.Positive(0.05), "l2": hx.Positive(0.02)}
    weighted, repeated = ElasticNet(x, y, weights=weights), ElasticNet(x[again], y[again])
    np.testing.assert_allclose(weighted.refit(hyper).params, repeated.refit(hyper).params, rtol=1e-10)
    pair = weighted.held_out(rows, ~rows), repeated.held_out(rows[again], ~rows[again])
    one, other = (objective.value_and_grad(hyper, objective.init(hyper))[0] for objective in pair)
    share = weights[~rows].mean()  # a mean over rows, each by its weight
    np.testing.assert_allclose(one.value, share * other.value, rtol=1e-12)
    for name in ("l1", "l2"):
        np.testing.assert_allclose(one.grad[name].raw, share * other.grad[name].raw, rtol=1e-9)


def test_equal_shapes_share_a_program_and_everything_dropped_is_an_answer():
    x, y = problem(rows=30, columns=4)
    rows = np.arange(30) % 2 == 0
    hyper = {"l1": hx.Positive(1e3), "l2": hx.Positive(0.02)}
    first = ElasticNet(x, y).held_out(rows, ~rows)
    answer, state = first.value_and_grad(hyper, first.init(hyper))
    assert not np.any(np.asarray(first.params(state)))
    assert answer.certificate.kind == "certified"
    np.testing.assert_allclose(answer.grad["l1"].raw, 0)
    with compilations() as compiled:
        second = ElasticNet(2 * x, y).held_out(~rows, rows)
        second.value_and_grad(hyper, second.init(hyper))
    assert not compiled


@pytest.mark.parametrize(
    ("arguments", "hyper", "said"),
    [
        ({"inputs": np.ones((3, 2)), "targets": np.ones(4)}, None, r"inputs must be \(n, d\) and targets \(n,\)"),
        ({"inputs": np.full((3, 2), np.nan), "targets": np.ones(3)}, None, "must be finite"),
        ({"inputs": np.ones((3, 2), complex), "targets": np.ones(3)}, None, "must be real numbers; got complex128"),
        ({"inputs": np.ones((3, 2)), "targets": np.ones(3), "groups": [0]}, None, "groups must be 2 whole numbers"),
        ({"weights": np.zeros(30)}, None, "weights must be 30 finite numbers > 0"),
        ({}, {"l1": hx.Positive(1.0)}, "must be a dictionary with 'l2'"),
        ({}, {"l1": hx.Positive(np.ones(3)), "l2": hx.Positive(1.0)}, r"'l1' must be one number or 4; got the shape"),
        ({}, {"l1": hx.Simplex(np.ones(4) / 4), "l2": hx.Positive(1.0)}, "'l1' must be numbers, such as hx.Positive"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, hyper, said):
    x, y = problem(rows=30, columns=4)
    rows = np.arange(30) < 20

    def asked():
        ElasticNet(**({"inputs": x, "targets": y} | arguments)).held_out(rows, ~rows).init(hyper)

    with pytest.raises(ValueError, match=said):
        asked()


def test_data_and_strengths_of_other_dtypes_are_taken_at_their_value():
    x, y = problem(rows=30, columns=4)
    rows = np.arange(30) % 2 == 0
    whole, exact = np.rint(10 * x), {"l1": hx.Positive(0.3), "l2": hx.Positive(0.02)}
    plain = ElasticNet(whole, y).held_out(rows, ~rows)
    truth, _ = plain.value_and_grad(exact, plain.init(exact))
    for inputs in (whole.astype(int), whole.astype("float32"), whole.astype("int8")):
        other = ElasticNet(inputs, y).held_out(rows, ~rows)
        answer, _ = other.value_and_grad(exact, other.init(exact))
        assert float(answer.value) == float(truth.value)
        assert answer.certificate.kind == "certified"
    with pytest.raises(ValueError, match="ElasticNet: inputs must"):
        ElasticNet(np.full((3, 1), 2**53 + 1), np.ones(3))
    # Strengths in float32: the answer is rounded to them, and the bound says so.
    single = {name: hx.Positive(leaf.value.astype("float32")) for name, leaf in exact.items()}
    wide = {name: jax.tree.map(lambda raw: raw.astype("float64"), leaf) for name, leaf in single.items()}
    truth, _ = plain.value_and_grad(wide, plain.init(wide))
    answer, _ = plain.value_and_grad(single, plain.init(single))
    for name in ("l1", "l2"):
        assert answer.grad[name].raw.dtype == np.float32
        off = abs(float(answer.grad[name].raw) - float(truth.grad[name].raw))
        assert off <= float(getattr(answer.certificate, "entries")[name].raw)  # noqa: B009
