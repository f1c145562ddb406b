"""Several penalties at once: enclosures on boxes and the global optimum, against scikit-learn and closed forms."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.linear_model import ElasticNet

from hyprax.tasks import BoxDual, Task, elastic_net_dual, erm, erm_box, ridge_dual
from thoroughness import examples


def random_task(rng, d, folds=False):
    n = int(rng.integers(4, 30))
    X = rng.normal(size=(n, d)) * 10.0 ** rng.uniform(-0.5, 0.5, size=d) + rng.normal() * 5
    if d > 2 and rng.random() < 0.5:
        X[:, 1], X[:, 2] = -X[:, 0], 3.0  # a duplicate up to sign and a constant
    y = X @ (rng.normal(size=d) * (rng.random(d) < 0.6)) + rng.normal(size=n)
    y /= max(float(y.std()), 1e-3)
    if folds:
        return Task.k_fold(X, y, np.arange(n) % 3)
    k = max(1, n // 2)
    return Task.hold_out(X[:k], y[:k], X[k:], y[k:])


def loss_of(task, predict):
    return sum(np.sum((s.y_val[:, 0] - predict(s)) ** 2) for s in task.splits) / task.n_validation


def elastic_net_loss(task, hyper):
    l1, l2 = hyper

    def predict(s):
        model = ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), tol=1e-13, max_iter=20_000)
        return model.fit(s.X, s.y[:, 0]).predict(s.X_val)

    return loss_of(task, predict)


def ridge_loss(task, groups, hyper):
    def predict(s):
        mean, level = s.X.mean(axis=0), s.y.mean()
        X, n = s.X - mean, len(s.X)
        tall = np.vstack([X / np.sqrt(n), np.diag(np.sqrt(np.asarray(hyper)[groups]))])
        w = np.linalg.lstsq(tall, np.concatenate([(s.y[:, 0] - level) / np.sqrt(n), np.zeros(len(groups))]))[0]
        return level + (s.X_val - mean) @ w

    return loss_of(task, predict)


def between(rng, low, high):
    return np.exp(rng.uniform(np.log(low), np.log(high)))


DOMAIN = ((1e-2, 1.0), (1e-2, 10.0))


@given(seed=st.integers(0, 2**32), folds=st.booleans())
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@examples(8, 60)
def test_the_elastic_net_lies_within_its_enclosures(seed, folds):
    rng = np.random.default_rng(seed)
    task = random_task(rng, int(rng.integers(1, 8)), folds)
    f = BoxDual.elastic_net(task, DOMAIN)
    low, high = np.array(DOMAIN).T
    for width in (0.05, 0.5, 3.0):
        a = between(rng, low, high)
        b = np.minimum(a * np.exp(rng.uniform(0, width, 2)), high)
        bound = f.lower_on(a, b)
        for x in (a, b, between(rng, a, b)):
            truth = elastic_net_loss(task, x)
            lo, hi = f.enclose(x)
            assert lo - 1e-7 * (1 + truth) <= truth <= hi + 1e-7 * (1 + truth)  # the oracle's own error
            assert hi - lo <= 1e-7 * (1 + truth)
            assert bound <= hi
    narrow = f.lower_on(a, a * (1 + 1e-4 * (a < high / 2)))
    assert narrow >= f.enclose(a)[0] - 1e-2 * (1 + f(a))


@given(seed=st.integers(0, 2**32), count=st.integers(1, 3), folds=st.booleans())
@examples(8, 60)
def test_grouped_ridge_lies_within_its_enclosures(seed, count, folds):
    rng = np.random.default_rng(seed)
    d = int(rng.integers(count, 9))
    task, groups = random_task(rng, d, folds), np.arange(d) % count
    domain = ((1e-3, 10.0),) * count
    f = BoxDual.ridge(task, groups, domain)
    low, high = np.array(domain).T
    for width in (0.05, 0.5, 3.0):
        a = between(rng, low, high)
        b = np.minimum(a * np.exp(rng.uniform(0, width, count)), high)
        bound = f.lower_on(a, b)
        for x in (a, b, between(rng, a, b)):
            truth = ridge_loss(task, groups, x)
            lo, hi = f.enclose(x)
            assert lo - 1e-9 * (1 + truth) <= truth <= hi + 1e-9 * (1 + truth)
            assert bound <= hi
        if width == 0.05:
            assert bound >= min(f(x) for x in (a, b)) - 0.5 * f(a) - 1e-9


@given(seed=st.integers(0, 2**32))
@examples(2, 25)
def test_no_point_of_a_grid_is_below_the_lower_bound(seed):
    rng = np.random.default_rng(seed)
    tasks_ = [random_task(rng, 4) for _ in range(3)]
    groups = np.array([0, 1, 0, 1])
    en = [BoxDual.elastic_net(t, DOMAIN) for t in tasks_]
    ridge = [BoxDual.ridge(t, groups, DOMAIN) for t in tasks_]
    grid = list(itertools.product(*(np.geomspace(a, b, 5).clip(a, b) for a, b in DOMAIN)))
    for duals, loss in ((en, elastic_net_loss), (ridge, lambda t, x: ridge_loss(t, groups, x))):
        best = erm_box(duals, gap=1e-2)
        slack = 1e-7 * (1 + best.upper)
        assert best.reached
        assert best.certificate.kind == "certified"
        assert best.lower <= min(np.mean([loss(t, x) for t in tasks_]) for x in grid) + slack
        assert np.mean([loss(t, best.hyper) for t in tasks_]) <= best.upper + slack
        assert best.upper - best.lower <= 1e-2 * best.upper
        assert [s.lower for s in best.history] == sorted(s.lower for s in best.history)
        assert np.all(best.minimisers[:, 0] <= best.minimisers[:, 1])


def test_the_optimum_agrees_with_the_exact_sweep_along_each_axis():
    rng = np.random.default_rng(5)
    tasks_ = [random_task(rng, 5) for _ in range(4)]
    line = erm([elastic_net_dual(t, (1e-2, 1.0), penalty2=0.3) for t in tasks_], progress=False)
    box = erm_box([BoxDual.elastic_net(t, ((1e-2, 1.0), (0.3, 0.3))) for t in tasks_], gap=1e-4)
    assert box.lower <= line.upper
    assert line.lower <= box.upper <= line.upper + 1e-4 * line.upper
    line = erm([ridge_dual(t, (1e-2, 10.0)) for t in tasks_], progress=False)
    box = erm_box([BoxDual.ridge(t, np.zeros(5, int), ((1e-2, 10.0),)) for t in tasks_], gap=1e-6)
    assert box.lower <= line.upper
    assert line.lower <= box.upper <= line.upper + 1e-6 * line.upper


def test_local_searches_end_where_the_boxes_do_and_are_only_estimated():
    rng = np.random.default_rng(6)
    tasks_ = [random_task(rng, 6, folds=True) for _ in range(4)]
    duals = [BoxDual.ridge(t, np.arange(6) % 3, ((1e-2, 10.0),) * 3) for t in tasks_]
    sure = erm_box(duals, gap=1e-3)
    guess = erm_box(duals, method="starts", starts=4, key=jax.random.key(0), progress=False)
    assert guess.certificate.kind == "estimated"
    assert "without proof" in guess.certificate.meaning()
    assert sure.lower <= guess.upper <= sure.upper * (1 + 1e-6)
    many = [BoxDual.ridge(t, np.arange(6), ((1e-2, 10.0),) * 6) for t in tasks_]
    assert erm_box(many, starts=2, key=jax.random.key(0), progress=False).certificate.kind == "estimated"


def test_an_optimum_at_an_end_of_a_range_is_said():
    X = np.random.default_rng(3).normal(size=(30, 2))
    task = Task.hold_out(X[:20], X[:20, 0], X[20:], X[20:, 0])  # without noise no penalty is small enough
    found = erm_box([BoxDual.elastic_net(task, ((0.1, 1.0), (0.01, 1.0)))])
    assert found.message.startswith("The least loss is at an end of the range of l1, l2:")
    alone = erm([elastic_net_dual(task, (0.1, 1.0), penalty2=0.01)], progress=False)
    assert alone.message.startswith("The least loss is at an end of the range of the hyperparameter:")
    noisy = X[:, 0] + np.random.default_rng(4).normal(size=30)
    task = Task.hold_out(X[:20], noisy[:20], X[20:], noisy[20:])
    assert erm([elastic_net_dual(task, (1e-4, 10.0), penalty2=0.01)], progress=False).message == ""


def test_a_budget_that_runs_out_is_said():
    rng = np.random.default_rng(7)
    duals = [BoxDual.elastic_net(random_task(rng, 6), ((1e-6, 1e6), (1e-6, 1e6))) for _ in range(2)]
    short = erm_box(duals, most_boxes=300)
    assert not short.reached
    assert "stopped by its budget" in repr(short)
    assert 0 <= short.lower < short.upper * (1 - 1e-3)
    longer = erm_box(duals, gap=0.05, most_boxes=3000)
    assert short.lower <= longer.lower <= longer.upper <= short.upper


def awkward(kind):
    rng = np.random.default_rng(8)
    X, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    if kind == "duplicates":
        X[:, 1] = X[:, 2] = X[:, 0]
    elif kind == "constant columns":
        X[:] = 4.0
    elif kind == "zero targets":
        y[:] = 0.0
    elif kind == "one row":
        return Task.hold_out(X[:1], y[:1], X[1:], y[1:])
    elif kind == "far from zero":
        X += 1e9
    return Task.hold_out(X[:6], y[:6], X[6:], y[6:])


@pytest.mark.parametrize("kind", ["duplicates", "constant columns", "zero targets", "one row", "far from zero"])
@pytest.mark.parametrize("domain", [((1e-2, 1.0), (1e-2, 1.0)), ((0.1, 0.1), (0.2, 0.2))])
def test_degenerate_tasks_have_an_optimum_with_bounds(kind, domain):
    task = awkward(kind)
    best = erm_box([BoxDual.elastic_net(task, domain)])
    assert best.reached
    assert best.lower <= best.value <= best.upper
    truth = elastic_net_loss(task, best.hyper)
    assert abs(best.value - truth) <= 1e-6 * (1 + truth)
    if domain[0] == (0.1, 0.1):
        assert best.hyper.tolist() == [0.1, 0.2]


def test_clipped_losses_and_tasks_with_other_numbers_of_features():
    rng = np.random.default_rng(9)
    tasks_ = [random_task(rng, d) for d in (2, 5, 3)]
    duals = [BoxDual.elastic_net(t, DOMAIN) for t in tasks_]
    values = [f((0.1, 0.1)) for f in duals]
    height = float(np.median(values))
    cut = [f.clip(height) for f in duals]
    assert [f((0.1, 0.1)) for f in cut] == pytest.approx([min(v, height) for v in values])
    whole, clipped = erm_box(duals, gap=1e-2), erm_box(cut, gap=1e-2)
    assert clipped.lower <= min(height, whole.upper)
    assert clipped.value == pytest.approx(np.mean([f(clipped.hyper) for f in cut]))
    for x in itertools.product(*(np.geomspace(a, b, 9).clip(a, b) for a, b in DOMAIN)):
        assert clipped.lower <= np.mean([f(x) for f in cut]) + 1e-12


def test_wrong_arguments_are_named():
    task = awkward("plain")
    dual = BoxDual.elastic_net(task, DOMAIN)
    with pytest.raises(ValueError, match="domain must hold a range for each of l1, l2; got 1"):
        BoxDual.elastic_net(task, ((0.1, 1.0),))
    with pytest.raises(ValueError, match="0 < a <= b"):
        BoxDual.elastic_net(task, ((0.0, 1.0), (0.1, 1.0)))
    with pytest.raises(ValueError, match="groups must be a number from 0 to 1"):
        BoxDual.ridge(task, [0, 1, 2], DOMAIN)
    with pytest.raises(ValueError, match="must be 2 numbers in"):
        dual((0.1, 20.0))
    with pytest.raises(ValueError, match="low must not exceed high"):
        dual.lower_on((0.2, 0.1), (0.1, 0.1))
    with pytest.raises(ValueError, match="at least one"):
        erm_box([])
    with pytest.raises(ValueError, match="one domain"):
        erm_box([dual, BoxDual.elastic_net(task, (DOMAIN[0], (0.1, 1.0)))])
    with pytest.raises(ValueError, match="gap must be positive"):
        erm_box([dual], gap=0)
    with pytest.raises((ValueError, TypeError), match=r"erm_box|duals"):
        erm([dual])  # pyright: ignore[reportArgumentType]
