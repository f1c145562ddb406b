"""Enclosures of smooth strongly convex problems hold against an independent solver, on random problems."""

import numpy as np
import pytest
from scipy.optimize import minimize, root

from hyprax import tasks

DOMAIN = (1e-3, 10.0)


def _problem(kind: str, seed: int):
    rng = np.random.default_rng(seed)
    n, m, p, k = int(rng.integers(1, 60)), int(rng.integers(1, 40)), int(rng.integers(1, 12)), int(rng.integers(2, 5))
    x = rng.normal(size=(n + m, p)) * rng.uniform(0.1, 3.0, p)
    if seed % 4 == 1 and p > 1:
        x[:, -1] = x[:, 0]  # exact duplicates
    w = rng.normal(size=(p, k)) * rng.uniform(0.2, 3)
    if kind == "logistic":
        y = np.where(x @ w[:, :1] + rng.logistic(size=(n + m, 1)) > 0, 1.0, -1.0)
    elif kind == "huber":
        y = x @ w[:, :1] + rng.standard_t(1.5, size=(n + m, 1))
    else:
        y = np.eye(k)[(x @ w + rng.gumbel(size=(n + m, k))).argmax(axis=1)]
    return tasks.Task.hold_out(x[:n], y[:n], x[n:], y[n:])


def _losses(kind: str, z, y):
    """Value (n,), gradient (n, K), curvature (n, K, K): written from the definitions, apart from the library."""
    if kind == "logistic":
        p = 1 / (1 + np.exp(np.clip(y * z, -700, 700)))
        return np.logaddexp(0, -y * z)[:, 0], -y * p, (p * (1 - p))[:, :, None]
    if kind == "huber":
        r = z - y
        inside = np.abs(r) <= 1
        value = np.where(inside, r**2 / 2, np.abs(r) - 0.5)[:, 0]
        return value, np.where(inside, r, np.sign(r)), inside[:, :, None] * 1.0
    e = np.exp(z - z.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    return -np.sum(y * np.log(p), 1), p - y, np.stack([np.diag(q) - np.outer(q, q) for q in p])


def _oracle(kind: str, task, lam: float):
    """The validation loss and predictions at the optimum, by quasi-Newton steps polished by a hybrid root finder."""
    s = task.splits[0]
    x, v = (np.c_[a, np.ones(len(a))] for a in (s.X, s.X_val))
    shape = (x.shape[1], s.y.shape[1])

    def gradient(w):
        w = w.reshape(shape)
        return (x.T @ _losses(kind, x @ w, s.y)[1] / len(x) + lam * w).ravel()

    def value(w):
        w = w.reshape(shape)
        return np.mean(_losses(kind, x @ w, s.y)[0]) + lam / 2 * np.sum(w * w)

    def hessian(w):
        c = _losses(kind, x @ w.reshape(shape), s.y)[2]
        h = np.einsum("ia,ib,ijk->ajbk", x, x, c) / len(x)
        return h.reshape(w.size, w.size) + lam * np.eye(w.size)

    w = minimize(value, np.zeros(shape).ravel(), jac=gradient, method="BFGS", options={"gtol": 1e-9}).x
    polished = root(gradient, w, jac=hessian, tol=1e-15).x
    w = min((w, polished), key=lambda u: np.linalg.norm(gradient(u)))
    known = np.linalg.norm(gradient(w)) / lam  # how far the oracle itself may be from the optimum
    out = v @ w.reshape(shape)
    return float(np.mean(_losses(kind, out, s.y_val)[0])), out, known * np.sqrt(2) * np.max(np.linalg.norm(v, axis=1))


DUALS = {"logistic": tasks.logistic_dual, "softmax": tasks.logistic_dual, "huber": tasks.huber_dual}


QUICK = {("logistic", 2), ("softmax", 0), ("huber", 1)}


def cases(kinds, seeds, quick):
    """All kinds with all seeds; those that are not `quick` are slow."""
    return [pytest.param(k, s, marks=() if (k, s) in quick else pytest.mark.slow) for k in kinds for s in range(seeds)]


@pytest.mark.parametrize(("kind", "seed"), cases(DUALS, 200, QUICK))
def test_the_truth_lies_in_the_enclosure(kind, seed):
    task = _problem(kind, seed)
    tolerance = [1e-1, 1e-2, 1e-3][seed % 3]
    dual = DUALS[kind](task, DOMAIN, tolerance=tolerance)
    assert dual.certified
    assert np.max(dual.radius) <= tolerance * (1 + 1e-9)
    rng = np.random.default_rng(1000 + seed)
    inside = np.exp(rng.uniform(np.log(DOMAIN[0]), np.log(DOMAIN[1]), 12))
    for lam in [*inside, *DOMAIN, *rng.choice(dual.breakpoints, 2)]:
        truth, _, doubt = _oracle(kind, task, lam)
        lo, hi = dual.enclose(lam)
        assert lo - 10 * doubt <= truth <= hi + 10 * doubt, (lam, float(lo), truth, float(hi), doubt)


@pytest.mark.parametrize(("kind", "seed"), cases(["logistic", "softmax"], 6, {("logistic", 2), ("softmax", 2)}))
def test_the_error_rate_lies_in_its_enclosure_and_is_nearly_always_known(kind, seed):
    task = _problem(kind, seed)
    dual = DUALS[kind](task, DOMAIN, loss="zero-one")
    y = task.splits[0].y_val
    widths = np.diff(np.log(dual.breakpoints))
    n_margins = len(y) * max(1, y.shape[1] - 1)
    assert np.sum(widths[dual.radius > 0]) <= 1e-3 * n_margins * np.sum(widths)
    for lam in np.exp(np.random.default_rng(seed).uniform(np.log(DOMAIN[0]), np.log(DOMAIN[1]), 20)):
        _, out, _ = _oracle(kind, task, lam)
        wrong = np.mean(y[:, 0] * out[:, 0] <= 0 if kind == "logistic" else out.argmax(1) != y.argmax(1))
        lo, hi = dual.enclose(lam)
        assert lo - 1e-12 <= wrong <= hi + 1e-12


def test_the_number_of_pieces_grows_like_the_root_of_the_accuracy():
    task = _problem("logistic", 3)
    counts = [tasks.logistic_dual(task, DOMAIN, tolerance=t).n_pieces for t in (1e-1, 1e-3)]
    assert counts[1] <= 30 * counts[0]  # first-order bounds would need a hundred times as many
    k_fold = (
        tasks.Task.k_fold(task.splits[0].X, task.splits[0].y, np.arange(len(task.splits[0].X)) % 3)
        if len(task.splits[0].X) >= 3
        else task
    )
    dual = tasks.logistic_dual(k_fold, DOMAIN, tolerance=1e-1)
    assert dual.domain == DOMAIN


def test_splits_of_one_shape_are_enclosed_together_as_they_are_apart():
    task = _problem("logistic", 2)
    x, y = task.splits[0].X, task.splits[0].y
    folds = tasks.Task.k_fold(x, y, np.arange(len(x)) % 4)
    together = tasks.logistic_dual(folds, DOMAIN, tolerance=1e-2)
    apart = [tasks.logistic_dual(tasks.Task((split,)), DOMAIN, tolerance=1e-2) for split in folds.splits]
    weights = [len(split.X_val) / len(x) for split in folds.splits]
    for lam in np.geomspace(*DOMAIN, 7).clip(*DOMAIN):
        expected = sum(w * f(lam) for w, f in zip(weights, apart, strict=True))
        np.testing.assert_allclose(together(lam), expected, rtol=1e-13)


def test_saturated_predictions_and_separable_data_stay_certified():
    x = np.array([[1.0], [2.0], [-1.0], [-3.0]]) * 100
    task = tasks.Task.hold_out(x, np.sign(x), x * 10, -np.sign(x))
    dual = tasks.logistic_dual(task, (1e-6, 1.0), tolerance=0.5, intercept=False)
    for lam in np.geomspace(1e-6, 1.0, 17):
        w = root(lambda w, lam=lam: -np.mean(np.abs(x) / (1 + np.exp(np.abs(x) * w))) + lam * w, [1e-2], tol=1e-14).x
        truth = float(np.mean(np.logaddexp(0, np.abs(x * 10) * w)))
        lo, hi = dual.enclose(lam)
        assert lo - 1e-8 <= truth <= hi + 1e-8


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(s, marks=pytest.mark.slow) for s in range(5, 15))])
def test_a_problem_of_ones_own(seed, first_order):
    # f = (1 + α) |w|^2 / 2 + sum cos-free smooth term a_i sqrt(1 + (w_i - α)^2): third derivatives below 1.
    rng = np.random.default_rng(seed)
    a, target = rng.uniform(0, 1, 4), rng.normal(size=4)

    def gradient(w, hyper):
        r = w - hyper
        return (1 + hyper) * w - target + a * r / np.sqrt(1 + r**2)

    def solver(hyper, start):
        w = np.zeros(4) if start is None else start
        for _ in range(100):
            r = w - hyper
            w = w - gradient(w, hyper) / (1 + hyper + a / (1 + r**2) ** 1.5)
        return w + 1e-6 * rng.normal(size=4) / np.sqrt(4)  # an inexact solver: its gradient is measured

    reach = float(np.linalg.norm(target)) + 2.0  # |w*| and the chords between
    top = float(np.max(a))
    problem = tasks.SmoothProblem(
        gradient,
        solver,
        outer=lambda w: float(0.5 * np.sum((w - 1) ** 2)),
        outer_gradient=lambda w: w - 1,
        strong_convexity=lambda lo, hi: 1 + lo,
        smoothness=1.0,
        rounding=1e-13,
        bend=None if first_order else (top, 1 + top, 2 * top),
        mixed=reach + 2 * top if first_order else None,
    )
    tolerance = 0.05 if first_order else 1e-3
    dual = tasks.enclose(problem, (0.0, 2.0), tolerance=tolerance)
    assert np.max(dual.radius) <= tolerance * 1.01
    for hyper in rng.uniform(0, 2, 50):
        w = root(lambda w, hyper=hyper: gradient(w, hyper), target, tol=1e-14).x
        lo, hi = dual.enclose(hyper)
        assert lo <= 0.5 * np.sum((w - 1) ** 2) <= hi


def test_bad_input_is_named():
    task = _problem("logistic", 0)
    with pytest.raises(ValueError, match="domain"):
        tasks.logistic_dual(task, (1.0, 0.1))
    with pytest.raises(ValueError, match="tolerance must be positive"):
        tasks.logistic_dual(task, DOMAIN, tolerance=0.0)
    with pytest.raises(ValueError, match="still too wide after"):
        tasks.logistic_dual(_problem("logistic", 2), DOMAIN, tolerance=1e-6, most_solves=10)
    with pytest.raises(ValueError, match=r"one-hot rows.*got \[1.0, 1.0\]"):
        tasks.logistic_dual(tasks.Task.hold_out([[1.0]], [[1.0, 1.0]], [[1.0]], [[0.0, 1.0]]), DOMAIN)
    with pytest.raises(ValueError, match="labels must be -1 and"):
        tasks.logistic_dual(_problem("huber", 0), DOMAIN)
    with pytest.raises(ValueError, match="delta must be positive"):
        tasks.huber_dual(_problem("huber", 0), DOMAIN, delta=0.0)
    with pytest.raises(ValueError, match="`bend`"):
        tasks.SmoothProblem(
            lambda w, a: w, lambda a, s: np.zeros(1), lambda w: 0.0, lambda w: w, 1.0, 1.0, rounding=0.0
        )
