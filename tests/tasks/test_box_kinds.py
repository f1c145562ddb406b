"""Boxes of learning rate and momentum, and of activation and penalty: enclosures and optima against training itself."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.tasks import Activation, BoxDual, Task, activation_dual, descent_dual, erm, erm_box
from thoroughness import examples


def random_task(rng, folds, columns=1):
    n, d = int(rng.integers(6, 25)), int(rng.integers(1, 5))
    X = rng.normal(size=(n, d)) + rng.normal()
    y = X @ rng.normal(size=(d, columns)) + rng.normal(size=(n, columns))
    return Task.k_fold(X, y, np.arange(n) % 3) if folds else Task.hold_out(X[: n // 2], y[: n // 2], X, y)


def trained(task, hyper, steps):
    """The loss after gradient descent, an unpenalised intercept fitted."""
    (rate, momentum), total = hyper, 0.0
    for s in task.splits:
        mean, level = s.X.mean(axis=0), s.y.mean(axis=0)
        X, y = s.X - mean, s.y - level
        w, before = np.zeros((X.shape[1], 1)), np.zeros((X.shape[1], 1))
        for _ in range(steps):
            w, before = w + momentum * (w - before) + rate * X.T @ (y - X @ w) / len(y), w
        total += np.sum((s.y_val - level - (s.X_val - mean) @ w) ** 2)
    return total / task.n_validation


def read_out(task, layer, o1, o2, hyper):
    """The loss of a ridge read-out on interpolated activations, by least squares on a tall matrix."""
    (alpha, penalty), total = hyper, 0.0

    def features(x):
        z = x @ layer[0] + layer[1]
        return np.hstack([alpha * o1(z) + (1 - alpha) * o2(z), np.ones((len(x), 1))])

    for s in task.splits:
        phi = features(s.X)
        k, n = phi.shape[1], len(phi)
        tall = np.vstack([phi / np.sqrt(n), np.sqrt(penalty) * np.eye(k)])
        w = np.linalg.lstsq(tall, np.vstack([s.y / np.sqrt(n), np.zeros((k, s.y.shape[1]))]))[0]
        total += np.sum((features(s.X_val) @ w - s.y_val) ** 2)
    return total / task.n_validation


def check(f, loss, rng, widths):
    """Points lie within their enclosures, and no point of a box below the bound of the box."""
    low, high = np.array(f.domain).T
    bound = truth = np.nan
    for width in widths:
        a = rng.uniform(low, high)
        b = np.minimum(a + width * (high - low) * rng.uniform(size=2), high)
        bound = f.lower_on(a, b)
        for x in (a, b, *rng.uniform(a, b, size=(2, 2))):
            truth, (lo, hi) = loss(x), f.enclose(x)
            assert lo - 1e-9 * (1 + truth) <= truth <= hi + 1e-9 * (1 + truth)
            assert hi - lo <= 1e-7 * (1 + truth)
            assert bound <= truth + 1e-9 * (1 + truth)
    return bound, truth


@given(seed=st.integers(0, 2**32), steps=st.sampled_from([1, 4, 15]), folds=st.booleans())
@examples(10, 80)
def test_rate_and_momentum_lie_within_their_enclosures(seed, steps, folds):
    rng = np.random.default_rng(seed)
    task = random_task(rng, folds)
    top = max(float(np.linalg.norm(s.X - s.X.mean(axis=0), 2) ** 2 / len(s.X)) for s in task.splits)
    f = BoxDual.descent(task, ((0.0, 2.5 / top), (0.0, 0.9)), steps=steps)
    bound, truth = check(f, lambda x: trained(task, x, steps), rng, (1.0, 0.1, 1e-3))
    assert bound >= 0.5 * truth - 1e-6
    line = descent_dual(task, (0.0, 2.5 / top), steps=steps, momentum=0.5, tolerance=1e-6)
    lo, hi = line.enclose(1 / top)
    assert f.enclose((1 / top, 0.5))[0] <= hi
    assert lo <= f.enclose((1 / top, 0.5))[1]


@given(seed=st.integers(0, 2**32), columns=st.integers(1, 2), folds=st.booleans())
@examples(10, 80)
def test_activation_and_penalty_lie_within_their_enclosures(seed, columns, folds):
    rng = np.random.default_rng(seed)
    task = random_task(rng, folds, columns)
    layer = rng.normal(size=(task.splits[0].X.shape[1], 6)), rng.normal(size=6)
    kinds = (Activation.RELU, Activation.IDENTITY), (Activation.RELU2, Activation.HARD_TANH)
    o1, o2 = kinds[int(rng.integers(2))]
    f = BoxDual.activation(task, layer, o1, o2, ((-0.2, 1.1), (1e-3, 1.0)))
    bound, truth = check(f, lambda x: read_out(task, layer, o1, o2, x), rng, (1.0, 0.1, 1e-4))
    assert bound >= 0.8 * truth - 1e-6


def test_two_kinds_of_hyperparameters_have_a_global_optimum():
    rng = np.random.default_rng(2)
    tasks_ = [random_task(rng, True) for _ in range(5)]
    tops = [np.linalg.norm(s.X - s.X.mean(axis=0), 2) ** 2 / len(s.X) for t in tasks_ for s in t.splits]
    domain = ((0.0, float(1.8 / max(tops))), (0.0, 0.9))
    best = erm_box([BoxDual.descent(t, domain, steps=8) for t in tasks_], gap=1e-2)
    grid = [(r, b) for r in np.linspace(*domain[0], 12) for b in np.linspace(*domain[1], 10)]
    losses = [np.mean([trained(t, x, 8) for t in tasks_]) for x in grid]
    assert best.reached
    assert best.certificate.kind == "certified"
    assert best.lower <= min(losses) + 1e-9
    assert np.mean([trained(t, best.hyper, 8) for t in tasks_]) <= best.upper + 1e-9
    fixed = erm([descent_dual(t, domain[0], steps=8, momentum=0.3) for t in tasks_], progress=False)
    assert best.lower <= fixed.upper

    tasks_ = [random_task(rng, False) for _ in range(4)]
    layers = [(rng.normal(size=(t.splits[0].X.shape[1], 5)), rng.normal(size=5)) for t in tasks_]
    o1, o2, domain = Activation.RELU, Activation.IDENTITY, ((0.0, 1.0), (1e-2, 1.0))
    duals = [BoxDual.activation(t, v, o1, o2, domain) for t, v in zip(tasks_, layers, strict=True)]
    best = erm_box(duals, gap=1e-3)
    grid = [(a, p) for a in np.linspace(0, 1, 9) for p in np.geomspace(1e-2, 1, 7).clip(1e-2, 1)]
    losses = [
        np.mean([read_out(t, v, o1, o2, x) for t, v in zip(tasks_, layers, strict=True)]) for x in [*grid, best.hyper]
    ]
    assert best.reached
    assert best.lower <= min(losses) + 1e-9
    assert losses[-1] <= best.upper + 1e-9
    # Along a line, where the penalty is fixed, the exact sweep finds the same.
    line = erm(
        [activation_dual(t, [v], o1, o2, penalty=0.1).squared for t, v in zip(tasks_, layers, strict=True)],
        progress=False,
    )
    thin = erm_box(
        [BoxDual.activation(t, v, o1, o2, ((0.0, 1.0), (0.1, 0.1))) for t, v in zip(tasks_, layers, strict=True)]
    )
    assert thin.lower <= line.upper
    assert line.lower <= thin.upper <= line.upper * (1 + 1e-3)


def test_wrong_arguments_of_the_new_kinds_are_named():
    task = random_task(np.random.default_rng(3), False)
    layer = np.ones((task.splits[0].X.shape[1], 3)), np.zeros(3)
    with pytest.raises(ValueError, match=r"BoxDual\.descent: domain must hold rates >= 0 and momenta"):
        BoxDual.descent(task, ((0.0, 1.0), (0.0, 1.0)), steps=3)
    with pytest.raises(ValueError, match=r"BoxDual\.descent: steps must be an integer >= 1; got 0"):
        BoxDual.descent(task, ((0.0, 1.0), (0.0, 0.9)), steps=0)
    with pytest.raises(ValueError, match=r"BoxDual\.activation: every range in domain must be"):
        BoxDual.activation(task, layer, Activation.RELU, Activation.IDENTITY, ((0.0, 1.0), (0.0, 1.0)))
    with pytest.raises(ValueError, match=r"layers\[0\] must have"):
        BoxDual.activation(task, (np.ones((9, 3)), layer[1]), Activation.RELU, Activation.IDENTITY)
    many = [BoxDual.descent(task, ((0.0, 1.0), (0.0, 0.9)), steps=t) for t in (2, 3)]
    with pytest.raises(ValueError, match="as many steps"):
        erm_box(many)
