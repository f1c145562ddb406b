"""Many tasks: in parallel processes, counted on the terminal."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from .._progress import counted

T = TypeVar("T")
R = TypeVar("R")


def map_tasks(
    function: Callable[[T], R], tasks: Sequence[T], *, processes: int | None = None, progress: bool = True
) -> list[R]:
    """A function of every task, in parallel processes with one thread of linear algebra each.

    **Arguments:**

    - `function`: importable by name (a function of a module, or a `functools.partial` of one).
    - `processes`: by default as many as there are cores to run on; 1 runs in this process.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"map_tasks: processes must be at least 1; got {processes}.")
    workers = min(processes or len(os.sched_getaffinity(0)), max(len(tasks), 1))
    if workers == 1:
        return [function(task) for task in counted(tasks, len(tasks), "tasks", progress)]
    # Set before the children start, as libraries read it once; a spawned child is safe beside JAX's threads.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            chunk = max(1, min(64, len(tasks) // (4 * workers)))
            results = pool.map(function, tasks, chunksize=chunk)
            return list(counted(results, len(tasks), "tasks", progress))
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
