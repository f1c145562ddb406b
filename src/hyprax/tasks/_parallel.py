"""Many tasks: in parallel processes or on any executor, counted on the terminal."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from .._executors import ordered_map

T = TypeVar("T")
R = TypeVar("R")

_MOST = 64
"""Tasks that are sent to a worker together, at most."""


def map_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    *,
    processes: int | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> list[R]:
    """A function of every task, in parallel with one thread of linear algebra each; the bits do not depend on how.

    A worker that is killed in the middle costs the tasks in hand, which are done again, with a `RuntimeWarning`.

    **Arguments:**

    - `function`: importable by name (a function of a module, or a `functools.partial` of one).
    - `processes`: spawned for this call; by default as many as there are cores to run on; 1 runs in this process.
    - `executor`: any `concurrent.futures.Executor` in place of them: processes that are spawned, threads, loky, a Dask
      cluster by `client.get_executor()`. It is left open.

    **Raises:** `ValueError` for `processes` below 1 or an executor that forks; `RuntimeError` where workers keep
    ending.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"map_tasks: processes must be at least 1; got {processes}.")
    workers = min(processes or len(os.sched_getaffinity(0)), max(len(tasks), 1))
    chunk = max(1, min(_MOST, len(tasks) // (4 * workers)))
    return ordered_map(
        "map_tasks",
        function,
        tasks,
        label="tasks",
        executor=executor,
        processes=workers,
        chunk=chunk,
        one_thread=True,
        progress=progress,
    )
