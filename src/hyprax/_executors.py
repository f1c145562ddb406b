"""Many independent pieces of work, on any executor: results in order, and the same bits as in one process."""

import contextlib
import multiprocessing
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from typing import Any, TypeVar

import jax

from ._progress import ProgressBar, counted

T = TypeVar("T")
R = TypeVar("R")

_TRIES = 3
"""So often a piece is given to a pool whose workers end; then it is to blame."""
_AHEAD = 256
"""Chunks that are handed to an executor before the first comes back."""
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def checked_executor(name: str, executor: Any) -> None:
    """Refuse what is no executor, and processes that would be forked from one in which JAX has threads.

    **Raises:** `ValueError`.
    """
    if executor is None:
        return
    if not (hasattr(executor, "submit") and hasattr(executor, "shutdown")):
        raise ValueError(
            f"{name}: executor must be a concurrent.futures.Executor (processes, threads, loky, Dask's "
            f"client.get_executor()); got a {type(executor).__name__}."
        )
    context: Any = getattr(executor, "_mp_context", None) or getattr(executor, "_context", None)
    method = context.get_start_method() if hasattr(context, "get_start_method") else None
    if isinstance(executor, ProcessPoolExecutor) and method == "fork":
        raise ValueError(
            f"{name}: executor must start its processes afresh, as a fork of JAX may hang; got one that forks. Use "
            'ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn")).'
        )


def ordered_map(
    name: str,
    function: Callable[[T], R],
    pieces: Sequence[T],
    *,
    label: str,
    executor: Executor | None = None,
    processes: int = 1,
    chunk: int = 1,
    one_thread: bool = False,
    progress: bool = True,
) -> list[R]:
    """`[function(piece) for piece in pieces]`, where the pieces may be computed elsewhere.

    A piece's result depends on nothing but the piece: where it is computed, and beside how many others, changes no bit
    (workers get this process's settings of JAX's numbers). A worker that is killed in the middle costs the pieces that
    it and its pool had in hand: they are done again, in a fresh pool if the pool is this function's own, in this
    process if the executor was given, with a `RuntimeWarning` that says so. Of errors in pieces that of the first is
    raised.

    **Arguments:**

    - `name`: of the public function, for messages; `label`: what is counted, for the progress bar.
    - `function`, `pieces`: to be pickled, unless all is done in this process.
    - `executor`: any `concurrent.futures.Executor`; it is not shut down. `None`: `processes` spawned for this call, or
        this process for 1.
    - `chunk`: pieces that are sent together.
    - `one_thread`: whether linear algebra is kept to one thread (here only where `threadpoolctl` is installed).
    """
    checked_executor(name, executor)
    with _one_thread() if one_thread else contextlib.nullcontext():
        if executor is None and processes == 1:
            return [function(piece) for piece in counted(pieces, len(pieces), label, progress)]
        chunks = [list(pieces[i : i + chunk]) for i in range(0, len(pieces), chunk)]
        bar = ProgressBar(len(pieces)) if progress else None
        try:
            with _Workers(executor, processes, one_thread) as workers:
                found = _Work(name, label, function, chunks, workers, one_thread, bar).done()
        finally:
            if bar is not None:
                bar.close()
    return [result for results in found for result in results]


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """An executor on the Dask cluster whose scheduler has this address.

    **Raises:** `ValueError` where Dask is not installed or the scheduler does not answer.
    """
    try:
        from distributed import Client  # pyright: ignore[reportMissingImports]  # of an extra
    except ImportError:
        raise ValueError(
            f"cluster {address}: Dask must be installed for it: pip install 'hyprax[dask]'; it is not."
        ) from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise ValueError(f"cluster {address}: its scheduler must answer; got {error}.") from None
    with client:
        yield client.get_executor(pure=False)


class _Workers:
    """An executor that was given, or a pool of spawned processes that can be started again."""

    def __init__(self, executor: Executor | None, processes: int, one_thread: bool):
        self.given, self.count = executor, processes
        # Set before the children start, as libraries read it once; a spawned child is safe beside JAX's threads.
        self._ours: dict[str, str] = dict.fromkeys(_THREADS, "1") if one_thread and executor is None else {}

    def __enter__(self) -> "_Workers":
        self._before = {name: os.environ.get(name) for name in self._ours}
        os.environ.update(self._ours)
        self.executor = self.given or self._fresh()
        return self

    def _fresh(self) -> Executor:
        return ProcessPoolExecutor(self.count, mp_context=multiprocessing.get_context("spawn"))

    def again(self) -> None:
        """A fresh pool in place of one whose workers ended."""
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.executor = self._fresh()

    def __exit__(self, *_: Any) -> None:
        if self.given is None:
            self.executor.shutdown(cancel_futures=True)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Work:
    """The chunks: those that wait, those that are on their way, and what came back."""

    def __init__(
        self, name: str, label: str, function: Any, chunks: Any, workers: _Workers, one_thread: bool, bar: Any
    ):
        self.name, self.label, self.function, self.chunks = name, label, function, chunks
        self.workers, self.one_thread, self.bar = workers, one_thread, bar
        self.caller = _Caller({key: getattr(jax.config, key) for key in _SETTINGS}, os.getpid())
        self.waiting, self.running = deque(range(len(chunks))), dict[Future, int]()
        self.found: dict[int, list] = {}
        self.failed: dict[int, BaseException] = {}
        self.tries = [0] * len(chunks)
        self.pieces = 0

    def done(self) -> list[list]:
        """All results, in order."""
        try:
            while (self.waiting and not self.failed) or self.running:
                lost = self._sent()
                if self.running:
                    lost += self._received()
                if lost:
                    self._again(sorted(lost))
        finally:
            for future in self.running:
                future.cancel()
        if self.failed:
            raise self.failed[min(self.failed)]
        return [self.found[i] for i in range(len(self.chunks))]

    def _sent(self) -> list[int]:
        """Hand over chunks, as far as the executor takes them; those that it refuses, as it is broken."""
        while self.waiting and not self.failed and len(self.running) < _AHEAD:
            i = self.waiting.popleft()
            self.tries[i] += 1
            try:
                future = self.workers.executor.submit(
                    _computed, self.caller, self.function, self.chunks[i], self.one_thread
                )
            except BrokenExecutor:
                refused = [i]
                while self.waiting and self.workers.given is not None:
                    refused.append(self.waiting.popleft())
                return refused
            self.running[future] = i
        return []

    def _received(self) -> list[int]:
        """What has come back since; the chunks whose worker ended."""
        lost = []
        for future in wait(self.running, return_when=FIRST_COMPLETED).done:
            i = self.running.pop(future)
            try:
                self._keep(i, future.result())
            except (BrokenExecutor, CancelledError):
                lost.append(i)
            except Exception as error:
                if type(error).__name__ == "KilledWorker":  # Dask's, after it has tried other workers
                    lost.append(i)
                else:
                    self.failed[i] = error
        return lost

    def _keep(self, i: int, results: list) -> None:
        self.found[i] = results
        self.pieces += len(results)
        if self.bar is not None:
            self.bar.show(self.pieces, self.label)

    def _again(self, lost: list[int]) -> None:
        own = self.workers.given is None
        while own and self.running:  # what the others had in hand is lost with them
            lost = sorted(lost + self._received())
        pieces = sum(len(self.chunks[i]) for i in lost)
        warnings.warn(
            f"{self.name}: a worker ended in the middle; {pieces} of {sum(map(len, self.chunks))} {self.label} are "
            f"done again in {'fresh workers' if own else 'this process'}.",
            RuntimeWarning,
            stacklevel=6,
        )
        if not own:
            for i in lost:
                try:
                    self._keep(i, [self.function(piece) for piece in self.chunks[i]])
                except Exception as error:
                    self.failed[i] = error
                    return
            return
        worst = max(lost, key=lambda i: self.tries[i])
        if self.tries[worst] >= _TRIES:
            raise RuntimeError(
                f"{self.name}: the workers that had number {sum(map(len, self.chunks[:worst]))} of the {self.label} "
                f"ended {_TRIES} times: it may need more memory than there is. processes=1 does it in this process."
            )
        self.waiting.extendleft(reversed(lost))
        self.workers.again()


class _Caller:
    """The process that asks, with its settings of JAX: they hold in a worker as soon as this has been unpacked there,
    and so before the arrays that stand after it are (in float32, where float64 is not enabled)."""

    def __init__(self, settings: dict[str, Any], process: int):
        self.settings, self.process = settings, process

    def __reduce__(self) -> Any:
        return _under, (self.settings, self.process)


def _under(settings: dict[str, Any], process: int) -> _Caller:
    for key, value in settings.items():
        if getattr(jax.config, key) != value:
            jax.config.update(key, value)
    return _Caller(settings, process)


def _computed(caller: _Caller, function: Any, pieces: list, one_thread: bool) -> list:
    """In a worker: the pieces. A thread of the caller has its number of threads already."""
    own = one_thread and os.getpid() != caller.process
    with _one_thread() if own else contextlib.nullcontext():
        return [function(piece) for piece in pieces]


def _one_thread() -> Any:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(1)
