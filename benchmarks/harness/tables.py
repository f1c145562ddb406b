"""Penalties of linear and additive models, chosen by the same criterion on the same folds.

Ridge, lasso and elastic net on diabetes with squares and products (440 rows, 64 columns), logistic regression on breast
cancer (565 rows, 30 columns), five folds of equal size, standardised beforehand; and an additive model of five smooth
terms, by generalised cross-validation and by restricted likelihood. The error is what the criterion at the answer
exceeds its least value by; for restricted likelihood, whose constants differ, the distance of the fitted values.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from scipy.interpolate import BSpline
from scipy.optimize import minimize, minimize_scalar
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import enet_path
from sklearn.preprocessing import PolynomialFeatures

from benchmarks.harness.cells import Arrays, Cell, Method

TITLE = "Penalties of tables"
FOLDS, SEGMENTS, DEGREE = 5, 15, 3
DOMAIN = 1e-4, 10.0
"""Of λ beside half the mean of squares, or beside the mean log-loss."""
NET_DOMAIN = 1e-3, 1.0
"""Of an l1 penalty."""
COUNT = 100
"""Penalties on a peer's grid."""
RATIOS = (0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0)


def diabetes() -> Arrays:
    x, y = (np.asarray(part) for part in load_diabetes(return_X_y=True))
    x = PolynomialFeatures(2, include_bias=False).fit_transform(x)
    return _dealt(x[:, np.ptp(x, axis=0) > 0], y, scaled=True)


def breast_cancer() -> Arrays:
    x, y = (np.asarray(part) for part in load_breast_cancer(return_X_y=True))
    return _dealt(x, y, scaled=False)


def _dealt(x: np.ndarray, y: np.ndarray, *, scaled: bool) -> Arrays:
    """A random order, and folds of equal size, so that a penalty means the same in all parametrisations."""
    rows = len(x) // FOLDS * FOLDS
    order = np.random.default_rng(0).permutation(len(x))[:rows]
    x, y = x[order], y[order].astype(float)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    y = (y - y.mean()) / y.std() if scaled else y
    return {"x": x, "y": y, "folds": np.arange(rows) % FOLDS}


def _parts(data: Arrays) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    for fold in range(FOLDS):
        held = data["folds"] == fold
        yield data["x"][~held], data["y"][~held], data["x"][held], data["y"][held]


def ridge_criterion(data: Arrays) -> Callable[[float], float]:
    made = []
    for x, y, vx, vy in _parts(data):
        centre, mean = x.mean(axis=0), y.mean()
        u, s, vt = np.linalg.svd(x - centre, full_matrices=False)
        made.append(((vx - centre) @ vt.T, s, u.T @ (y - mean), vy - mean, len(x)))

    def criterion(penalty: float) -> float:
        return float(np.mean([np.mean((v - r @ (s * z / (s**2 + n * penalty))) ** 2) for r, s, z, v, n in made]))

    return criterion


def net_criterion(data: Arrays) -> Callable[[float, float], float]:
    """Of l1 and l2, by coordinate descent to a duality gap of 1e-9."""
    made = []
    for x, y, vx, vy in _parts(data):
        centre, mean = x.mean(axis=0), y.mean()
        made.append((np.asfortranarray(x - centre), y - mean, vx - centre, vy - mean))

    def criterion(l1: float, l2: float) -> float:
        settings: dict[str, Any] = {"alphas": [l1 + l2], "l1_ratio": l1 / (l1 + l2), "tol": 1e-9, "max_iter": 50_000}
        total = 0.0
        for x, y, vx, vy in made:
            w = enet_path(x, y, **settings)[1][:, 0]
            total += float(np.mean((vy - vx @ w) ** 2))
        return total / FOLDS

    return criterion


def logistic_criterion(data: Arrays) -> Callable[[float], float]:
    """The intercept is free."""

    def criterion(penalty: float) -> float:
        total = 0.0
        for x, y, vx, vy in _parts(data):
            x, vx = (np.column_stack([m, np.ones(len(m))]) for m in (x, vx))
            strengths = np.append(np.full(x.shape[1] - 1, penalty), 0.0)
            w = np.zeros(x.shape[1])
            for _ in range(100):
                p = 1 / (1 + np.exp(-x @ w))
                slope = x.T @ (p - y) / len(x) + strengths * w
                step = np.linalg.solve((x.T * (p * (1 - p))) @ x / len(x) + np.diag(strengths), slope)
                w = w - step / max(1.0, float(np.linalg.norm(step)))  # damped while far
                if np.linalg.norm(step) < 1e-11:
                    break
            u = vx @ w
            total += float(np.mean(np.logaddexp(0, u) - vy * u))
        return total / FOLDS

    return criterion


def least(criterion: Callable[[float], float], domain: tuple[float, float] = DOMAIN, count: int = 60) -> float:
    """The least value over the domain: the best of a grid, refined twice."""
    low, high = (float(z) for z in np.log(domain))
    values = list[float]()
    for _ in range(3):
        logs = np.linspace(low, high, count)
        values = [criterion(float(np.exp(z))) for z in logs]
        best = int(np.argmin(values))
        low, high, count = float(logs[max(0, best - 1)]), float(logs[min(len(logs) - 1, best + 1)]), 15
    found: Any = minimize_scalar(lambda z: criterion(float(np.exp(z))), bounds=(low, high), method="bounded")
    return min(min(values), float(found.fun))


def _single(make: Callable[[Arrays], Callable[[float], float]], data: Arrays) -> tuple[Callable[..., float], float]:
    criterion = make(data)
    return criterion, least(criterion)


def _lasso(data: Arrays) -> tuple[Callable[..., float], float]:
    criterion = net_criterion(data)
    return criterion, least(lambda l1: criterion(l1, 0.0), NET_DOMAIN)


def _net(data: Arrays) -> tuple[Callable[..., float], float]:
    """By the simplex method in logarithms, from the best of a grid of both."""
    criterion = net_criterion(data)
    logs = [(a, b) for a in np.linspace(-6, -1, 8) for b in np.linspace(-7, 0, 6)]
    start = min(logs, key=lambda z: criterion(*np.exp(z)))
    options = {"maxfev": 100, "fatol": 1e-9}
    found = minimize(lambda z: criterion(*np.exp(np.clip(z, -9, 3))), start, method="Nelder-Mead", options=options)
    return criterion, float(found.fun)


def excess(found: Arrays, truth: tuple[Callable[..., float], float]) -> float:
    criterion, best = truth
    value = criterion(*(float(found[name]) for name in ("l1", "l2") if name in found))
    return max(0.0, value / best - 1)


def smooth(terms: int, rows: int) -> Arrays:
    """Random data with the first four terms at work."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 10, (rows, terms))
    shapes = (np.sin, lambda u: 0.05 * (u - 5) ** 2, lambda u: 0.2 * u, lambda u: np.exp(-((u - 3) ** 2)))
    return {"x": x, "y": sum(shape(x[:, j]) for j, shape in enumerate(shapes)) + 0.5 * rng.normal(size=rows)}


def p_splines(x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The design of an additive model, an intercept first, and the penalty of each term on all of its columns.

    Σ_j a_j B_j with a = (0, b): the differences of a that b makes, less those of a constant, which are 0.
    """
    columns, penalties, width = [np.ones((len(x), 1))], [], SEGMENTS + DEGREE - 1
    for u in x.T:
        step = np.ptp(u) / SEGMENTS
        knots = u.min() + step * np.arange(-DEGREE, SEGMENTS + DEGREE + 1)
        basis = np.column_stack([BSpline(knots, row, DEGREE)(u) for row in np.eye(SEGMENTS + DEGREE)])
        columns.append(basis[:, 1:] - basis[:, 1:].mean(axis=0))  # a constant belongs to the intercept
        differences = np.diff(np.eye(SEGMENTS + DEGREE), 2, axis=0)
        whole, place = np.zeros((1 + x.shape[1] * width,) * 2), slice(1 + len(penalties) * width, None)
        whole[place, place][:width, :width] = (differences.T @ differences)[1:, 1:]
        penalties.append(whole)
    return np.hstack(columns), penalties


def lowest(criterion: Callable[[np.ndarray], float], terms: int) -> Any:
    """The lowest of the minima over log-strengths that two starts lead to."""
    starts = (np.full(terms, z) for z in (0.0, 4.0))
    bounds = [(-8.0, 18.0)] * terms
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxfun": 20_000}
    found = [minimize(criterion, z, jac="3-point", method="L-BFGS-B", bounds=bounds, options=options) for z in starts]
    return min(found, key=lambda one: one.fun)


def smooth_truth(data: Arrays) -> tuple[np.ndarray, float]:
    """The targets, and the least n RSS/(n - tr S)² over the strengths of P-splines, in dense matrices."""
    y, n = data["y"], len(data["y"])
    design, penalties = p_splines(data["x"])
    gram, moment = design.T @ design, design.T @ y
    ridge = 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))

    def criterion(logs: np.ndarray) -> float:
        inverse = np.linalg.inv(gram + ridge + np.tensordot(np.exp(logs), penalties, 1))
        w = inverse @ moment
        rest = float(y @ y - 2 * w @ moment + w @ gram @ w)
        return n * rest / (n - float(np.sum(inverse * gram))) ** 2

    return y, float(lowest(criterion, len(penalties)).fun)


def reml_truth(data: Arrays) -> np.ndarray:
    """The fitted values where ½ (n - M) log φ + ½ log det(XᵀX + Λ) - ½ log det₊ Λ is least.

    φ = (‖y - Xw‖² + wᵀΛw)/(n - M), w the minimiser; M = 1 + terms, the dimension of what no penalty sees.
    """
    y, n = data["y"], len(data["y"])
    design, penalties = p_splines(data["x"])
    gram, moment, unseen = design.T @ design, design.T @ y, 1 + len(penalties)
    ridge = 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))
    rank = SEGMENTS + DEGREE - 2

    def fit(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = gram + ridge + np.tensordot(np.exp(logs), penalties, 1)
        return whole, np.linalg.solve(whole, moment)

    def criterion(logs: np.ndarray) -> float:
        whole, w = fit(logs)
        variance = float(y @ y - w @ moment) / (n - unseen)
        return float((n - unseen) * np.log(variance) + np.linalg.slogdet(whole)[1] - rank * np.sum(logs)) / 2

    return design @ fit(lowest(criterion, len(penalties)).x)[1]


def distance(found: Arrays, truth: np.ndarray) -> float:
    """Of the fitted values from the true ones, beside the spread of these."""
    return float(np.linalg.norm(found["fitted"] - truth) / np.linalg.norm(truth - truth.mean()))


def smooth_excess(found: Arrays, truth: tuple[np.ndarray, float]) -> float:
    """From the fitted values, and the degrees of freedom that the method says it used."""
    y, best = truth
    return max(
        0.0, len(y) * float(np.sum((y - found["fitted"]) ** 2)) / (len(y) - float(found["freedom"])) ** 2 / best - 1
    )


def _ours(name: str, function: str, **settings: Any) -> Method:
    return Method(name, f"benchmarks.harness.tables_methods:{function}", settings=settings)


def _theirs(name: str, function: str, environment: str, package: str, note: str = "", **settings: Any) -> Method:
    return Method(name, f"benchmarks.harness.tables_peers:{function}", environment, package, settings, note=note)


def _sklearn(name: str, function: str, **settings: Any) -> Method:
    return _theirs(f"scikit-learn {name}", function, "hyprax", "scikit-learn", **settings)


def _glmnet(alpha: float, domain: tuple[float, float], family: str = "gaussian") -> Method:
    note = f"a grid of {COUNT} penalties"
    return _theirs("cv.glmnet (R)", "glmnet", "r", "glmnet", note, alpha=alpha, family=family, domain=domain)


def cells(size: str) -> Iterator[Cell]:
    grid, ratios = f"a grid of {COUNT} penalties", f"{len(RATIOS)} ratios, a grid of {COUNT} penalties each"
    ridge = (
        _ours("hyprax.tasks, global optimum", "shared", model="ridge"),
        _ours("hyprax TunedRidge", "tuned", estimator="TunedRidge"),
        _sklearn("RidgeCV", "ridge_cv", note=grid, domain=DOMAIN),
        _theirs("himalaya RidgeCV", "himalaya_ridge", "himalaya", "himalaya", grid, domain=DOMAIN),
        _glmnet(0.0, DOMAIN),
    )
    lasso = (
        _ours("hyprax.tasks, global optimum", "shared", model="lasso"),
        _sklearn("ElasticNetCV, l1_ratio=1", "elastic_net_cv", note=grid, ratios=[1.0], domain=NET_DOMAIN),
        _glmnet(1.0, NET_DOMAIN),
    )
    net = (
        _ours("hyprax TunedElasticNet", "tuned", estimator="TunedElasticNet"),
        _sklearn("ElasticNetCV", "elastic_net_cv", note=ratios, ratios=RATIOS, domain=NET_DOMAIN),
    )
    logistic = (
        _ours("hyprax TunedLogisticRegression", "tuned", estimator="TunedLogisticRegression"),
        _sklearn("LogisticRegressionCV", "logistic_cv", note=grid, domain=DOMAIN),
        _glmnet(0.0, DOMAIN, "binomial"),
    )
    tables = [
        ("ridge, diabetes", diabetes, partial(_single, ridge_criterion), ridge),
        ("lasso, diabetes", diabetes, _lasso, lasso),
        ("elastic net, diabetes", diabetes, _net, net),
        ("logistic regression, breast cancer", breast_cancer, partial(_single, logistic_criterion), logistic),
    ]
    limits = {"rounds": 3 if size == "quick" else 30, "seconds": {"quick": 0.5, "usual": 3.0, "full": 30.0}[size]}
    for problem, arrays, truth, methods in tables[:1] if size == "quick" else tables:
        name = "excess of the loss over folds, relative"
        yield Cell("tables", problem, arrays, truth, methods, 1e-3, excess, name, **limits)
    likely = (
        _ours("hyprax REML", "additive", criterion="REML"),
        _theirs("mgcv gam (R)", "mgcv", "r", "mgcv", criterion="REML"),
    )
    additive = (
        _ours("hyprax GCV", "additive", criterion="GCV"),
        _theirs("mgcv gam (R)", "mgcv", "r", "mgcv", criterion="GCV.Cp"),
        _theirs("pyGAM gridsearch", "pygam", "pygam", "pygam", "one strength for all terms, of a grid of 11"),
    )
    for terms in {"quick": (), "usual": (5,)}.get(size, (5, 20)):
        name = "excess of the criterion, relative"
        arrays, problem = partial(smooth, terms, 1000), f"additive model of {terms} smooth terms, 1,000 rows"
        yield Cell("tables", problem, arrays, smooth_truth, additive, 1e-3, smooth_excess, name, **limits)
        problem = f"the same by restricted likelihood, {terms} terms"
        name = "fitted values from those at the optimum, relative"
        yield Cell("tables", problem, arrays, reml_truth, likely, 1e-3, distance, name, **limits)
