"""Many tasks: in parallel processes, counted on the terminal."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def counted(items: Iterable[T], total: int, label: str, progress: bool = True) -> Iterator[T]:
    """The items, one by one; after a second, `label: done/total` is kept up to date on a terminal."""
    show, start, last = progress and sys.stderr.isatty(), time.monotonic(), 0.0
    shown = False
    for i, item in enumerate(items):
        yield item
        now = time.monotonic()
        if show and now - start > 1 and now - last > 0.1:
            last, shown = now, True
            sys.stderr.write(f"\r{label}: {i + 1}/{total}")
            sys.stderr.flush()
    if shown:
        sys.stderr.write("\r" + " " * (len(label) + 24) + "\r")


def map_tasks(
    function: Callable[[T], R], tasks: Sequence[T], *, processes: int | None = None, progress: bool = True
) -> list[R]:
    """`[function(task) for task in tasks]`, in parallel processes with one thread of linear algebra each.

    **Arguments:**

    - `function`: importable by name (a function of a module, or a `functools.partial` of one).
    - `processes`: by default as many as there are cores to run on; 1 runs in this process.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}.")
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
