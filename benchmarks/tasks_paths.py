"""Exact elastic-net paths and the global optimum over many tasks, beside scikit-learn.

    python -m benchmarks.tasks_paths [--tasks 10000] [--processes 4]

Tasks are random halves of the 139 schools of the School data (11 to 125 pupils in training, 28 columns). Part one: time
and memory for many tasks. Part two, in one process with one thread: scikit-learn's `lars_path` (time, and how many of
its paths violate the optimality conditions) and a grid of 200 penalties with `enet_path` (time, and the loss of the
grid's optimum).
"""

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from experiments.school.data import schools, split_task
from threadpoolctl import threadpool_limits

from hyprax.tasks import ElasticNetPath, PiecewiseFunction, Task, elastic_net_dual, erm, map_tasks

DOMAIN = (0.001, 1.0)
PENALTY2 = 0.1
WRONG = 1e-6
"""A path is wrong where a midpoint between its kinks violates the conditions by more than this part of max |X'y|/n."""


def dual(i: int, penalty2: float = PENALTY2) -> PiecewiseFunction:
    """The dual of task i: school i modulo 139, split number i // 139."""
    n = len(schools())
    return elastic_net_dual(split_task(i % n, i // n), DOMAIN, penalty2=penalty2)


def peak() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def many(n: int, processes: int) -> None:
    """Part one."""
    schools()
    print(f"\n{n} tasks in {processes} processes, l2 = {PENALTY2}, l1 in {DOMAIN}")
    print(
        f"{'tasks':>7} {'paths s':>9} {'optimum s':>10} {'all s':>7} {'pieces':>9} {'pieces MiB':>11} {'peak MiB':>9}"
    )
    for count in (n // 4, n):
        start = time.perf_counter()
        duals = map_tasks(dual, list(range(count)), processes=processes)
        middle = time.perf_counter()
        best = erm(duals, progress=False)
        end = time.perf_counter()
        size = sum(f.breakpoints.nbytes + f.numerator.nbytes + f.radius.nbytes for f in duals) / 2**20
        pieces = sum(f.n_pieces for f in duals)
        print(
            f"{count:7d} {middle - start:9.2f} {end - middle:10.2f} {end - start:7.2f} {pieces:9d} {size:11.1f} "
            f"{peak():9.0f}"
        )
    print(best)


def timed(function: Callable[[], object], repeats: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def violation(X: np.ndarray, y: np.ndarray, l1: np.ndarray, w: np.ndarray, penalty2: float) -> float:
    """Largest violation at the midpoints of a path of kinks `l1` (K,) with weights `w` (K, d), over max |X'y|/n."""
    l1, w = 0.5 * (l1[1:] + l1[:-1]), 0.5 * (w[1:] + w[:-1])
    keep = l1 >= DOMAIN[0]
    l1, w = l1[keep], w[keep]
    g = (y - w @ X.T) @ X / len(y) - penalty2 * w
    off = np.where(w != 0, np.abs(g - l1[:, None] * np.sign(w)), np.maximum(np.abs(g) - l1[:, None], 0))
    return float(np.max(off, initial=0.0)) / (float(np.max(np.abs(X.T @ y))) / len(y))


def lars(X: np.ndarray, y: np.ndarray, penalty2: float) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's path; the elastic net as a lasso with sqrt(n l2) I below X."""
    from sklearn.linear_model import lars_path

    n, d = X.shape
    if penalty2:
        X, y = np.vstack([X, np.sqrt(n * penalty2) * np.eye(d)]), np.append(y, np.zeros(d))
    hypers, _, coefficients = lars_path(X, y, method="lasso", alpha_min=DOMAIN[0] * n / len(y))
    return hypers * len(y) / n, coefficients.T


def beside(repeats: int) -> None:
    """Part two."""
    from sklearn.linear_model import enet_path

    warnings.simplefilter("ignore")  # lars_path warns of dropped columns on some of these tasks
    tasks: list[Task] = [split_task(k, 0) for k in range(len(schools()))]
    data = [(c.X.values, c.y.values[:, 0]) for c in (t.splits[0].centred(True) for t in tasks)]
    for penalty2 in (0.0, PENALTY2):
        ours = [ElasticNetPath.of(X, y, DOMAIN, penalty2=penalty2, intercept=False) for X, y in data]
        theirs = [lars(X, y, penalty2) for X, y in data]
        bad = [violation(X, y, *path, penalty2) for (X, y), path in zip(data, theirs, strict=True)]
        own = [violation(X, y, p.penalties, p.weights, penalty2) for (X, y), p in zip(data, ours, strict=True)]
        paths = partial(
            lambda l2: [ElasticNetPath.of(X, y, DOMAIN, penalty2=l2, intercept=False) for X, y in data], penalty2
        )
        print(f"\n139 paths, one thread, medians of {repeats}, l2 = {penalty2}, l1 >= {DOMAIN[0]}")
        seconds = timed(paths, repeats)
        print(f"  hyprax     {seconds:7.3f} s, wrong paths {sum(v > WRONG for v in own):3d}, worst {max(own):.1e}")
        seconds = timed(partial(lambda l2: [lars(X, y, l2) for X, y in data], penalty2), repeats)
        print(f"  lars_path  {seconds:7.3f} s, wrong paths {sum(v > WRONG for v in bad):3d}, worst {max(bad):.1e}")
    grid = np.geomspace(DOMAIN[1], DOMAIN[0], 200)

    def exact() -> float:
        return erm([elastic_net_dual(t, DOMAIN, penalty2=PENALTY2) for t in tasks], progress=False).value

    def gridded() -> float:
        total = np.zeros(len(grid))
        for task, (X, y) in zip(tasks, data, strict=True):
            centred = task.splits[0].centred(True)
            # α and l1_ratio differ from one penalty to the next, as l2 is fixed: one warm-started call each.
            w = None
            for i, l1 in enumerate(grid):
                both = float(l1 + PENALTY2)
                settings: Any = {"alphas": [both], "coef_init": w, "tol": 1e-6, "max_iter": 10_000}
                _, coefficients, _ = enet_path(X, y, l1_ratio=l1 / both, **settings)
                w = np.ascontiguousarray(coefficients[:, 0])
                total[i] += np.mean((centred.y_val.values[:, 0] - centred.X_val.values @ w) ** 2)
        return float(np.min(total)) / len(tasks)

    best, coarse = exact(), gridded()
    print(f"\nglobal optimum over 139 tasks, one thread, l2 = {PENALTY2}")
    print(f"  exact sweep              {timed(exact, repeats):7.3f} s, mean loss {best:.10f}")
    print(f"  200-point enet_path grid {timed(gridded, max(1, repeats // 3)):7.3f} s, mean loss {coarse:.10f}")
    print(f"  the grid's optimum is {coarse - best:.2e} above the global one")


def main() -> None:
    """Both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with threadpool_limits(1):
        many(arguments.tasks, arguments.processes)
        beside(arguments.repeats)


if __name__ == "__main__":
    main()
