"""How time and memory grow with the number of tasks: one hyperparameter for ten thousand small tasks.

    python -m benchmarks.tasks_scale [--tasks 10000] [--processes 2] [--models elastic-net lasso svm ridge logistic]

Made tasks of 40 rows and 10 columns, five folds each (`--holdout`: half and half), losses clipped at 4. For each model
a quarter of the tasks, then all: seconds of the duals (in parallel processes), of merging them and minimising the mean,
of every task's own minimum; milliseconds a task, and those of computation that its dual takes, whoever else is at work;
peak memory of this process and of the largest child. Linear in the tasks where the milliseconds stay the same.
"""

import argparse
import os
import resource
import time
from functools import partial

import numpy as np

from hyprax.tasks import (
    PiecewiseFunction,
    Task,
    elastic_net_dual,
    erm,
    logistic_dual,
    map_tasks,
    ridge_dual,
    svm_dual,
)
from hyprax.tasks._extrema import minimise_all

ROWS, COLUMNS, LIMIT = 40, 10, 4.0
DUALS = {
    "elastic-net": partial(elastic_net_dual, domain=(0.01, 1.0), penalty2=0.1),
    "lasso": partial(elastic_net_dual, domain=(0.01, 1.0)),
    "ridge": partial(ridge_dual, domain=(0.01, 10.0)),
    "svm": partial(svm_dual, domain=(0.001, 1.0)),
    "logistic": partial(logistic_dual, domain=(0.001, 1.0)),
}


def dual(i: int, model: str, holdout: bool) -> PiecewiseFunction:
    """The dual of made task i: three columns of ten matter, by weights of its own."""
    rng = np.random.default_rng([7, i])
    X = rng.normal(size=(ROWS, COLUMNS))
    y = X[:, :3] @ rng.normal(size=3) + rng.normal(size=ROWS)
    if model in ("svm", "logistic"):
        y = np.where(y > 0, 1.0, -1.0)
    half = ROWS // 2
    task = Task.hold_out(X[:half], y[:half], X[half:], y[half:]) if holdout else Task.k_fold(X, y, np.arange(ROWS) % 5)
    return DUALS[model](task).clip(LIMIT)


def cpu() -> float:
    """Seconds of computation so far, of this process and of its children that ended."""
    return sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def peak(who: int) -> float:
    """The largest resident memory so far, in MiB, of this process or of its children that ended."""
    return resource.getrusage(who).ru_maxrss / 1024


def measure(model: str, count: int, processes: int, holdout: bool) -> None:
    """One line."""
    clocks, before = [time.perf_counter()], cpu()
    duals = map_tasks(partial(dual, model=model, holdout=holdout), range(count), processes=processes)
    clocks.append(time.perf_counter())
    computed = cpu() - before
    mean = PiecewiseFunction.mean(duals)
    mean.minimise()
    clocks.append(time.perf_counter())
    list(minimise_all(duals))
    clocks.append(time.perf_counter())
    best = erm(duals, progress=False)
    clocks.append(time.perf_counter())
    spent = np.diff(clocks)
    size = sum(f.breakpoints.nbytes + f.numerator.nbytes + f.radius.nbytes for f in duals) / 2**20
    print(
        f"{model:>12} {count:6d} {spent[0]:8.1f} {spent[1]:7.1f} {spent[2]:7.1f} {spent[0] + spent[3]:8.1f} "
        f"{1000 * (spent[0] + spent[3]) / count:9.2f} {1000 * computed / count:7.1f} {mean.n_pieces:9d} {size:8.1f} "
        f"{peak(resource.RUSAGE_SELF):7.0f} {peak(resource.RUSAGE_CHILDREN):7.0f}  {best.hyper:.6g} "
        f"within {float(best.certificate.bound):.1g}",
        flush=True,
    )


def main() -> None:
    """Every model, a quarter of the tasks and all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--models", nargs="+", choices=DUALS, default=list(DUALS))
    parser.add_argument("--holdout", action="store_true", help="one split into halves in place of five folds")
    arguments = parser.parse_args()
    how = "halves" if arguments.holdout else "five folds"
    print(f"{ROWS} rows, {COLUMNS} columns, {how}, {arguments.processes} processes; `all` is duals and erm")
    print(
        f"{'model':>12} {'tasks':>6} {'duals s':>8} {'mean s':>7} {'each s':>7} {'all s':>8} {'ms a task':>9} "
        f"{'cpu ms':>7} {'pieces':>9} {'MiB':>8} {'peak':>7} {'child':>7}  best"
    )
    for model in arguments.models:
        for count in (max(2, arguments.tasks // 4), arguments.tasks):
            measure(model, count, arguments.processes, arguments.holdout)


if __name__ == "__main__":
    main()
