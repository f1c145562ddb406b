"""Graph duals against direct dense solves."""

import numpy as np
import pytest

from hyprax import tasks

SEEDS = [*range(6), *(pytest.param(s, marks=pytest.mark.slow) for s in range(6, 200))]


def _graph(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(12, 40)), int(rng.integers(2, 4))
    y = np.r_[np.arange(k), np.arange(k), rng.integers(0, k, n - 2 * k)]
    x = rng.normal(size=(n, 3))
    x[:, 0] += y
    d = np.sqrt(np.sum((x[:, None] - x[None]) ** 2, axis=2))
    d = 0.5 * (d + d.T)
    edges = None
    if seed % 3 == 1:
        edges = rng.random((n, n)) < 0.15
        edges |= edges.T | np.eye(n, k=1, dtype=bool) | np.eye(n, k=-1, dtype=bool)
    labelled = np.r_[np.arange(k), 2 * k + np.flatnonzero(rng.random(n - 2 * k) < 0.2)]
    free = np.setdiff1d(np.arange(n), labelled)
    if seed % 2:
        kernel, domain = tasks.GaussianKernel(), (1.0, 8.0)
    else:
        kernel, domain = tasks.PolynomialKernel(int(rng.integers(1, 4))), (0.05, 3.0)
    return x, d, edges, y, k, labelled, free, kernel, domain, rng


def _weights(d, kernel, hyper):
    return np.exp(-((d / hyper) ** 2)) if isinstance(kernel, tasks.GaussianKernel) else (d + hyper) ** kernel.degree


def _check(duals, hyper, out, y, k):
    target = np.where(y > 0, 1.0, -1.0)[:, None] if k == 2 else np.eye(k)[y]
    truth = np.mean(np.sum((out - target) ** 2, axis=1))
    lo, hi = duals.squared.enclose(hyper)
    assert lo - 1e-12 <= truth <= hi + 1e-12
    assert hi - lo <= 1e-4
    wrong = np.mean((out[:, 0] > 0) != (y > 0) if k == 2 else out.argmax(1) != y)
    lo, hi = duals.zero_one.enclose(hyper)
    assert lo - 1e-12 <= wrong <= hi + 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_label_propagation_encloses_direct_solves(seed):
    _, d, edges, y, k, labelled, free, kernel, domain, rng = _graph(seed)
    duals = tasks.graph_dual(d, y, labelled, kernel, domain=domain, edges=edges)
    target = np.where(y > 0, 1.0, -1.0)[:, None] if k == 2 else np.eye(k)[y]
    for hyper in [*rng.uniform(*domain, 50), *domain]:
        a = _weights(d, kernel, hyper) * (1.0 if edges is None else edges)
        np.fill_diagonal(a, 0.0)
        # The fixed point of averaging, f_u = (I - P_uu)^-1 P_ul y: another form of the equations.
        p = a / a.sum(axis=1, keepdims=True)
        out = np.linalg.solve(np.eye(len(free)) - p[np.ix_(free, free)], p[np.ix_(free, labelled)] @ target[labelled])
        _check(duals, hyper, out, y[free], k)


@pytest.mark.parametrize("seed", SEEDS)
def test_sgc_encloses_direct_solves(seed):
    x, d, edges, y, k, train, val, kernel, domain, rng = _graph(seed)
    hops, penalty = 1 + seed % 3, 10.0 ** rng.uniform(-3, 0)
    duals = tasks.graph_dual(
        d, y, train, kernel, features=x, score_on=val, domain=domain, penalty=penalty, edges=edges, hops=hops
    )
    target = np.where(y > 0, 1.0, -1.0)[:, None] if k == 2 else np.eye(k)[y]
    for hyper in [*rng.uniform(*domain, 50), *domain]:
        support = 1.0 if edges is None else edges | np.eye(len(d), dtype=bool)
        a = _weights(d, kernel, hyper) * support
        f = x
        for _ in range(hops):
            f = (a @ f) / a.sum(axis=1, keepdims=True)
        top = np.r_[f[train], np.sqrt(len(train) * penalty) * np.eye(3)]
        w = np.linalg.lstsq(top, np.r_[target[train], np.zeros((3, target.shape[1]))], rcond=None)[0]
        _check(duals, hyper, f[val] @ w, y[val], k)


def test_float_labels_are_a_regression():
    _, d, _, _, _, labelled, free, _, domain, rng = _graph(2)
    y = rng.normal(size=len(d))
    duals = tasks.graph_dual(d, y, labelled, tasks.PolynomialKernel(2), domain=domain)
    assert duals.zero_one is None
    a = (d + 1.0) ** 2
    np.fill_diagonal(a, 0.0)
    laplacian = np.diag(a.sum(axis=1)) - a
    f = np.linalg.solve(laplacian[np.ix_(free, free)], a[np.ix_(free, labelled)] @ y[labelled])
    assert duals.squared(1.0) == pytest.approx(np.mean((f - y[free]) ** 2), rel=1e-9)


def test_bad_input_is_named():
    x, d, _, y, _, labelled, free, kernel, domain, _ = _graph(0)
    with pytest.raises(ValueError, match="symmetric"):
        tasks.graph_dual(np.triu(d), y, labelled, kernel, domain=domain)
    with pytest.raises(ValueError, match="every node must have a path"):
        tasks.graph_dual(d, y, labelled, kernel, domain=domain, edges=np.zeros(d.shape, dtype=bool))
    with pytest.raises(ValueError, match="d \\+ hyper must be >= 0"):
        tasks.graph_dual(d, y, labelled, kernel, domain=(-1.0, 1.0))
    with pytest.raises(ValueError, match="must be positive on the domain"):
        tasks.graph_dual(d, y, labelled, tasks.GaussianKernel(), domain=(0.0, 1.0))
    with pytest.raises(ValueError, match="at least two classes"):
        tasks.graph_dual(d, np.zeros(len(d), dtype=int), labelled, kernel, domain=domain)
    with pytest.raises(ValueError, match="must not hold labelled nodes"):
        tasks.graph_dual(d, y, labelled, kernel, features=x, score_on=labelled, domain=domain, penalty=1.0)
    for penalty in (-1.0, None):
        with pytest.raises(ValueError, match="penalty must be positive"):
            tasks.graph_dual(d, y, labelled, kernel, features=x, score_on=free, domain=domain, penalty=penalty)
    with pytest.raises(ValueError, match="penalty must be None without features"):
        tasks.graph_dual(d, y, labelled, kernel, domain=domain, penalty=1.0)
    with pytest.raises(ValueError, match="hops must be at least 1"):
        tasks.graph_dual(d, y, labelled, kernel, features=x, domain=domain, penalty=1.0, hops=0)
    with pytest.raises(ValueError, match="indices of some"):
        tasks.graph_dual(d, y, [9999], kernel, domain=domain)
    far = np.abs(np.subtract.outer(place := np.array([0, 1, 2, 1e3]), place))
    with pytest.raises(ValueError, match=r"graph_dual: .*singular.*need a larger hyperparameter"):
        tasks.graph_dual(far, np.array([0, 1, 0, 1]), [0, 1], tasks.GaussianKernel(), domain=(0.5, 5.0))
    with pytest.raises(ValueError, match="whole number"):
        tasks.PolynomialKernel(0)
    with pytest.raises(ValueError, match="finite on every edge"):
        tasks.graph_dual(np.where(d > 0, np.nan, d), y, labelled, kernel, domain=domain)
