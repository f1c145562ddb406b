"""Compute to reach a test loss, by a hypergradient search, by Optuna's TPE and by random search.

Least squares with 1,000 columns, 400 rows for training and 400 for validation; columns matter ever less, and runs of
them share a penalty: 1, 10, 100 or 1,000 penalties. The test loss of weights is known exactly, as the columns are
independent. The target is that of the penalty that the true weights call for, plus 2 % (one penalty), or half of what
their many penalties gain over it (more): no method's answer is in it. All start from the same penalties, and the losses
of Optuna and of random search are evaluated by hyprax; testing whether the target is reached is not counted. With many
penalties `hx.tune`, as it comes, moves only what rises above the noise of the validation rows, and stops early;
*nothing held back* is L-BFGS, which goes on into those rows.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.harness.cells import Arrays, Cell, Method

TITLE = "From start to test loss"
COLUMNS, ROWS, NOISE = 1000, 400, 1.0
START, DOMAIN = 0.1, (1e-4, 1e2)
BUDGET = {"quick": 0.2, "usual": 4.0, "full": 60.0}
"""Seconds of computation after which a search is stopped."""


def variances(columns: int = COLUMNS) -> np.ndarray:
    """Of the true weights, which fall by a factor of e in every tenth of the columns."""
    v = np.exp(-10 * np.arange(columns) / columns)
    return 4 * v / v.sum()


def arrays(count: int, columns: int = COLUMNS) -> Arrays:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=columns) * np.sqrt(variances(columns))
    x, vx = rng.normal(size=(2, ROWS, columns))
    y, vy = (m @ truth + NOISE * rng.normal(size=ROWS) for m in (x, vx))
    found = {"x": x, "y": y, "vx": vx, "vy": vy, "truth": truth, "groups": np.arange(columns) * count // columns}
    return found | {"target": np.asarray(target(found))}


def test_loss(data: Arrays, penalties: np.ndarray) -> float:
    """E (y - xᵀw)² over new rows, w the ridge estimate with a penalty for each group, exactly."""
    inverse = 1 / np.asarray(penalties, float)[data["groups"]]
    x = data["x"]
    w = inverse * (x.T @ np.linalg.solve((x * inverse) @ x.T + len(x) * np.eye(len(x)), data["y"]))
    return float(np.sum((w - data["truth"]) ** 2)) + NOISE**2


def target(data: Arrays) -> float:
    v, groups = variances(len(data["truth"])), data["groups"]
    means = np.bincount(groups, v) / np.bincount(groups)
    single = test_loss(data, np.full(len(means), NOISE**2 / ROWS / v.mean()))
    if len(means) == 1:
        return 1.02 * single
    return 0.5 * (single + test_loss(data, NOISE**2 / ROWS / means))


def _error(found: Arrays, wanted: float) -> float:
    return max(0.0, float(found["loss"]) / wanted - 1)


def cells(size: str) -> Iterator[Cell]:
    columns = 40 if size == "quick" else COLUMNS
    for count in (4,) if size == "quick" else (1, 10, 100, 1000):
        data = arrays(count, columns)
        settings, where = {"budget": BUDGET[size]}, "benchmarks.harness.search_methods"
        free = Method("hyprax, nothing held back", f"{where}:ours", settings=settings | {"free": True})
        methods = (
            Method("hyprax", f"{where}:ours", settings=settings),
            *((free,) if count >= 100 else ()),
            Method("Optuna TPE", f"{where}:tpe", "optuna", "optuna", settings),
            Method("random search", f"{where}:at_random", settings=settings),
        )
        yield Cell(
            section="search",
            problem=f"{count:,} penalt{'y' if count == 1 else 'ies'}",
            arrays=partial(dict, data),
            truth=lambda given: float(given["target"]),
            methods=methods,
            accept=0.0,
            error=_error,
            error_name=f"how far the best test loss stays above the target, {float(data['target']):.3f}, relative",
            rounds=1 if size == "quick" else 3,
            seconds=0.0,
            seeded=True,
            verdict="not reached",
            target=float(data["target"]),
        )
