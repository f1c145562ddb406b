"""The activation dual against direct ridge solves, and the activations themselves."""

from itertools import pairwise

import numpy as np
import pytest

from hyprax import tasks

ACTIVATIONS = [
    tasks.Activation.RELU,
    tasks.Activation.IDENTITY,
    tasks.Activation.RELU2,
    tasks.Activation.HARD_TANH,
    tasks.Activation.HARD_SIGMOID,
    tasks.Activation.ABSOLUTE,
    tasks.Activation.leaky_relu(0.1),
]
FORMULAS = [
    lambda z: np.maximum(z, 0),
    lambda z: z,
    lambda z: np.maximum(z, 0) ** 2,
    lambda z: np.clip(z, -1, 1),
    lambda z: np.clip(0.5 + 0.5 * z, 0, 1),
    np.abs,
    lambda z: np.where(z > 0, z, 0.1 * z),
]


def _oracle(split, layers, f1, f2, penalty, hyper):
    def features(h):
        for v, b in layers:
            h = hyper * f1(h @ v + b) + (1 - hyper) * f2(h @ v + b)
        return np.c_[h, np.ones(len(h))]

    phi, psi = features(split.X), features(split.X_val)
    # The augmented least-squares form, not the normal equations that the library solves.
    top = np.r_[phi, np.sqrt(len(phi) * penalty) * np.eye(phi.shape[1])]
    w = np.linalg.lstsq(top, np.r_[split.y, np.zeros((phi.shape[1], split.y.shape[1]))], rcond=None)[0]
    return psi @ w


def _case(seed, depth, kind):
    rng = np.random.default_rng(seed)
    n, m, d, k = int(rng.integers(2, 50)), int(rng.integers(1, 30)), int(rng.integers(1, 8)), int(rng.integers(1, 15))
    x = rng.normal(size=(n + m, d))
    if kind == "binary":
        y = np.where(x[:, :1] + 0.5 * rng.normal(size=(n + m, 1)) > 0, 1.0, -1.0)
    elif kind == "classes":
        y = np.eye(3)[rng.integers(0, 3, n + m)]
    else:
        y = rng.normal(size=(n + m, 2))
    widths = [d, k, 5][: depth + 1]
    pairs = pairwise(widths)
    layers = [(rng.normal(size=p) / np.sqrt(p[0]), rng.normal(size=p[1])) for p in pairs]
    return tasks.Task.hold_out(x[:n], y[:n], x[n:], y[n:]), layers, rng


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(s, marks=pytest.mark.slow) for s in range(6, 200))])
def test_the_dual_encloses_direct_solves(seed):
    depth, kind = 1 + (seed % 5 == 4), ["binary", "classes", "regression"][seed % 3]
    task, layers, rng = _case(seed, depth, kind)
    i, j = rng.choice(len(ACTIVATIONS), 2, replace=False)
    penalty = 10.0 ** rng.uniform(-4, 1)
    domain = (-0.5, 1.5) if seed % 2 else (0.0, 1.0)
    duals = tasks.activation_dual(task, layers, ACTIVATIONS[i], ACTIVATIONS[j], penalty=penalty, domain=domain)
    split = task.splits[0]
    points = rng.uniform(*domain, 60)
    if depth == 2:
        points = np.r_[points, rng.choice(duals.squared.breakpoints, 10)]
    for hyper in [*points, *domain]:
        out = _oracle(split, layers, FORMULAS[i], FORMULAS[j], penalty, hyper)
        truth = np.mean(np.sum((out - split.y_val) ** 2, axis=1))
        lo, hi = duals.squared.enclose(hyper)
        assert lo - 1e-13 * (1 + truth) <= truth <= hi + 1e-13 * (1 + truth)
        assert hi - lo <= 1e-3 * (1 + truth)
        if kind == "regression":
            assert duals.zero_one is None
            continue
        wrong = np.mean(
            out[:, 0] * split.y_val[:, 0] <= 0 if kind == "binary" else out.argmax(1) != split.y_val.argmax(1)
        )
        assert duals.zero_one is not None
        lo, hi = duals.zero_one.enclose(hyper)
        assert lo - 1e-12 <= wrong <= hi + 1e-12


def test_the_error_rate_is_known_but_for_slivers():
    task, layers, _ = _case(3, 1, "binary")
    duals = tasks.activation_dual(task, layers, tasks.Activation.RELU, tasks.Activation.IDENTITY, penalty=0.01)
    assert duals.zero_one is not None
    widths = np.diff(duals.zero_one.breakpoints)
    assert np.sum(widths[duals.zero_one.radius > 0]) < 1e-6


def test_folds_are_pooled():
    task, layers, _ = _case(6, 1, "binary")
    s = task.splits[0]
    x, y = np.r_[s.X, s.X_val], np.r_[s.y, s.y_val]
    folds = tasks.Task.k_fold(x, y, np.arange(len(x)) % 3)
    duals = tasks.activation_dual(folds, layers, tasks.Activation.RELU, tasks.Activation.HARD_TANH, penalty=0.1)
    f1, f2 = FORMULAS[0], FORMULAS[3]
    total = sum(np.sum((_oracle(p, layers, f1, f2, 0.1, 0.3) - p.y_val) ** 2) for p in folds.splits) / len(x)
    assert duals.squared(0.3) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("activation", "formula"), list(zip(ACTIVATIONS, FORMULAS, strict=True)))
def test_activations_are_what_they_are_called(activation, formula):
    z = np.r_[np.linspace(-3, 3, 61), -1.0, 0.0, 1.0]
    np.testing.assert_allclose(activation(z), formula(z), rtol=0, atol=1e-15)


def test_a_leaky_relu_is_an_interpolation():
    z = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(
        0.9 * tasks.Activation.RELU(z) + 0.1 * tasks.Activation.IDENTITY(z),
        tasks.Activation.leaky_relu(0.1)(z),
        atol=1e-15,
    )


def test_bad_input_is_named():
    task, layers, _ = _case(0, 1, "binary")
    args = (task, layers, tasks.Activation.RELU, tasks.Activation.IDENTITY)
    with pytest.raises(ValueError, match="penalty"):
        tasks.activation_dual(*args, penalty=0.0)
    with pytest.raises(ValueError, match="domain"):
        tasks.activation_dual(*args, penalty=1.0, domain=(1.0, 0.0))
    with pytest.raises(ValueError, match="one or two pairs"):
        tasks.activation_dual(task, [], tasks.Activation.RELU, tasks.Activation.IDENTITY, penalty=1.0)
    with pytest.raises(ValueError, match="rows, one an input"):
        tasks.activation_dual(
            task, [(np.ones((99, 2)), np.zeros(2))], tasks.Activation.RELU, tasks.Activation.IDENTITY, penalty=1.0
        )
    with pytest.raises(ValueError, match="pieces must meet"):
        tasks.Activation((0.0,), ((0.0,), (1.0,)))
    with pytest.raises(ValueError, match="ascending"):
        tasks.Activation((1.0, 0.0), ((0.0,), (0.0,), (0.0,)))
