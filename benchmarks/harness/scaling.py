"""How times grow, each curve beside a floor: what no way to the answer can go below, measured as the methods are.

- Training: the training forwards, then its gradients with their second-order products, and nothing else.
- Optimum: as many Hessian products as the answer took, and nothing else; made logistic data.
- Evidence: the log-likelihood and its derivative alone (examples, at a fixed subset), the kernel whole (outputs).
- Tasks: the functions of the tasks, without what minimises their mean; made tasks of 40 rows, five folds each. Ten
  thousand are measured by `python -m benchmarks.tasks_scale`.
- Leave-one-out: one Cholesky factor and its product with the rows, and nothing else; made least squares.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from benchmarks.harness import evidence, implicit, unroll
from benchmarks.harness.cells import Arrays, Cell, Method

TITLE = "How times grow"
STEPS, WEIGHTS = (100, 1_000, 10_000, 100_000), (10_000, 100_000, 1_000_000, 10_000_000)
PARAMETERS, HYPERPARAMETERS, CONDITIONS = (100, 1_000, 10_000), (1, 10, 100, 1_000), (1e0, 1e2, 1e4, 1e6)
EXAMPLES, OUTPUTS = (300, 3_000, 30_000), (2, 10, 30, 100)
TASKS = (10, 100, 1_000)
ROWS, COLUMNS = (100, 1_000, 5_000), (10, 100, 1_000)


def _method(name: str, function: str, /, *, package: str = "hyprax", x64: bool = True, **settings: Any) -> Method:
    where, floor = f"benchmarks.harness.{function}", name == "floor"
    tuned = function.startswith("implicit_methods") and not floor
    return Method(name, where, package=package, settings=settings, x64=x64, tuned=tuned, floor=floor)


def logistic(columns: int, penalties: int, condition: float) -> Arrays:
    """2,000 rows for training and for validation; variances of the columns fall from 1 to 1/condition."""
    rng = np.random.default_rng(0)
    scale = condition ** (-0.5 * np.arange(columns) / max(1, columns - 1))
    x, vx = rng.normal(size=(2, 2_000, columns)) * scale
    truth = rng.normal(size=columns) / scale / columns**0.5
    y, vy = ((m @ truth + rng.logistic(size=len(m)) > 0).astype(float) for m in (x, vx))
    return {"x": x, "y": y, "vx": vx, "vy": vy, "groups": np.arange(columns) * penalties // columns}


def least_squares(rows: int, columns: int) -> Arrays:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns))
    return {"x": x, "y": x @ rng.normal(size=columns) / columns**0.5 + rng.normal(size=rows)}


def left_out(data: Arrays) -> Arrays:
    """The mean of half the squares of the leave-one-out errors, and its derivative in each log-penalty."""
    x, y, n = data["x"], data["y"], len(data["y"])
    inverse = cho_solve(cho_factor(x.T @ x / n + implicit.STRENGTH * np.eye(x.shape[1])), np.eye(x.shape[1]))
    spread, w = x @ inverse, inverse @ (x.T @ y) / n
    leverage, rest = np.sum(spread * x, axis=1) / n, y - x @ w
    left = rest / (1 - leverage)
    moved = spread * w / (1 - leverage)[:, None] - spread**2 * (left / (1 - leverage))[:, None] / n
    return {
        "value": np.asarray(0.5 * np.mean(left**2)),
        "grad": implicit.STRENGTH * np.mean(left[:, None] * moved, axis=0),
    }


def _unrolled() -> Iterator[Cell]:
    curves = [("training: steps", "steps", [(t, f"digits {t}", "") for t in STEPS])]
    wide = [(w, f"digits 10 {w // 75}", "") for w in WEIGHTS]
    curves.append(("training: weights", "weights", wide))
    for curve, xlabel, points in curves:
        for x, name, _ in points:
            modes = ("Reversible", "StoreAll") if x < STEPS[-1] or xlabel == "weights" else ("Reversible",)
            methods = [_method(f"hyprax {m}", "unroll_methods:ours", x64=False, name=name, mode=m) for m in modes]
            methods.append(_method("jax.checkpoint", "unroll_methods:scanned", package="jax", x64=False, segments=True))
            methods.append(_method("floor", "unroll_methods:floor", package="jax", x64=False))
            truth = _method("truth", "unroll_methods:scanned", package="truth", segments=True)
            yield _cell(curve, x, xlabel, partial(unroll.arrays, name), truth, methods, 1e-2, unroll.error)


def _implicit() -> Iterator[Cell]:
    curves = [
        ("optimum: parameters, each with a penalty", "parameters", [(d, (d, d, 1.0)) for d in PARAMETERS]),
        ("optimum: penalties of 1,000 parameters", "penalties", [(p, (1_000, p, 1.0)) for p in HYPERPARAMETERS]),
        ("optimum: conditioning", "largest variance / least", [(c, (300, 300, c)) for c in CONDITIONS]),
    ]
    for curve, xlabel, points in curves:
        for x, shape in points:
            methods = [
                _method("hyprax, no certificate", "implicit_methods:uncertified"),
                _method("hyprax, certified", "implicit_methods:certified", relative=1e-6),
                _method("jaxopt L-BFGS + CG", "implicit_methods:jaxopt_lbfgs", package="jaxopt"),
                _method("floor", "implicit_methods:products", tolerance=1e-8),
            ]
            arrays, error = partial(logistic, *shape), implicit.error
            yield _cell(curve, x, xlabel, arrays, implicit.truth, methods, 1e-6, error, ladder=implicit.LADDER)


def _evidence() -> Iterator[Cell]:
    for x in EXAMPLES:
        methods = [
            _method("hyprax, subset of 256", "evidence_methods:ours", x64=False, subset=True),
            _method("floor", "evidence_methods:fit_alone", x64=False),
        ]
        arrays = partial(evidence.arrays, x, 100, 64)
        yield _cell("evidence: examples", x, "examples", arrays, lambda _: None, methods, 0.0, lambda *_: 0.0)
    for x in OUTPUTS:
        methods = [
            _method("hyprax", "evidence_methods:ours", x64=False),
            _method("dense Jacobians in JAX", "evidence_methods:dense", package="jax", x64=False),
        ]
        arrays = partial(evidence.arrays, 30, 100, 64, x)
        yield _cell("evidence: outputs", x, "outputs", arrays, evidence.truth, methods, 1e-3, evidence.error)


def _tasks() -> Iterator[Cell]:
    for x in TASKS:
        methods = [
            _method("hyprax", "scaling_methods:many_tasks", count=x),
            _method("floor", "scaling_methods:many_tasks", count=x, merged=False),
        ]
        yield _cell("tasks", x, "tasks", lambda: {"none": np.zeros(1)}, lambda _: None, methods, 0.0, lambda *_: 0.0)


def _left_out() -> Iterator[Cell]:
    curves = [
        ("leave-one-out: rows, 100 columns", "rows", [(n, (n, 100)) for n in ROWS]),
        ("leave-one-out: columns, 2,000 rows", "columns", [(p, (2_000, p)) for p in COLUMNS]),
    ]
    for curve, xlabel, points in curves:
        for x, shape in points:
            methods = [
                _method("hyprax", "scaling_methods:left_out"),
                _method("floor", "scaling_methods:factor"),
            ]
            arrays = partial(least_squares, *shape)
            yield _cell(curve, x, xlabel, arrays, left_out, methods, 1e-8, evidence.error)


def _cell(
    curve: str,
    x: float,
    xlabel: str,
    arrays: Any,
    truth: Any,
    methods: list[Method],
    accept: float,
    error: Any,
    ladder: tuple[float, ...] = (),
) -> Cell:
    return Cell(
        section="scaling",
        problem=f"{curve}, {x:,.0f}",
        arrays=arrays,
        truth=truth,
        methods=tuple(methods),
        accept=accept,
        error=error,
        error_name="relative error" if accept else "none: without a truth",
        ladder=ladder,
        rounds=5,
        seconds=10.0,
        curve=curve,
        x=x,
        xlabel=xlabel,
    )


def cells(size: str) -> Iterator[Cell]:
    """All of `size` "full"; of others the first point of every curve."""
    seen = set[str]()
    for each in (_implicit, _unrolled, _evidence, _tasks, _left_out):
        for cell in each():
            if size == "full" or cell.curve not in seen:
                seen.add(cell.curve)
                yield cell
