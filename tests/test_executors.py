"""Independent pieces of work come to the same bits on every executor, in order, and outlive a killed worker."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax import tasks
from hyprax._executors import checked_executor, cluster, ordered_map


def dual(i: int) -> tasks.PiecewiseFunction:
    """The dual of a made task."""
    rng = np.random.default_rng(i)
    X = rng.normal(size=(30, 6))
    y = X[:, 0] + rng.normal(size=30)
    return tasks.elastic_net_dual(tasks.Task.k_fold(X, y, np.arange(30) % 3), (0.01, 1.0), penalty2=0.1)


def same(found: list, expected: list) -> bool:
    """Whether all duals agree in every bit."""
    return len(found) == len(expected) and all(
        f.breakpoints.tobytes() == g.breakpoints.tobytes()
        and f.numerator.tobytes() == g.numerator.tobytes()
        and f.radius.tobytes() == g.radius.tobytes()
        for f, g in zip(found, expected, strict=True)
    )


def fails_from(first: int, i: int) -> int:
    """An error in every piece from `first` on; the later ones are quicker."""
    if i >= first:
        time.sleep(0.05 if i == first else 0.0)
        raise ArithmeticError(f"piece {i}")
    return i


def killed_once(marker: Path, caller: int, i: int) -> int:
    """Piece 3 kills its worker, the first time."""
    if i == 3 and os.getpid() != caller and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return i * i


def kills(caller: int, i: int) -> int:
    """Piece 1 kills every worker that it gets."""
    if i == 1 and os.getpid() != caller:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def ridge(strength: float, fit: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Losses of ridge regression, computed by JAX in the precision of the process."""
    rng = np.random.default_rng(0)
    X = jnp.asarray(rng.normal(size=(40, 3)))
    y = X[:, 0] + jnp.asarray(rng.normal(size=40))
    w = jnp.linalg.solve(X[fit].T @ X[fit] + strength * jnp.eye(3), X[fit].T @ y[fit])
    return np.asarray((y[judge] - X[judge] @ w) ** 2)


def spawned(workers: int) -> ProcessPoolExecutor:
    """Processes as they are to be started beside JAX."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


class Refusing(Executor):
    """Takes a few pieces, and is broken from then on."""

    def __init__(self, takes: int):
        self.left = takes

    def submit(self, function, /, *args, **kwargs):
        if not self.left:
            from concurrent.futures import BrokenExecutor

            raise BrokenExecutor
        self.left -= 1
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def test_threads_come_to_the_same_bits():
    expected = tasks.map_tasks(dual, range(7), processes=1, progress=False)
    with ThreadPoolExecutor(3) as pool:
        assert same(tasks.map_tasks(dual, range(7), executor=pool, progress=False), expected)
        work = partial(fails_from, 4)
        with pytest.raises(ArithmeticError, match="piece 4"):
            ordered_map("test", work, range(40), label="pieces", executor=pool, progress=False)
        assert pool.submit(int).result() == 0  # it is left open
        folds = {"folds": 4, "key": jax.random.key(0), "progress": False}
        alone = hx.search.honest(partial(ridge, 1.0), partial(ridge, 100.0), 40, **folds)
        found = hx.search.honest(partial(ridge, 1.0), partial(ridge, 100.0), 40, executor=pool, **folds)
        assert found.gains.tobytes() == alone.gains.tobytes()
        assert found.loss == alone.loss


def test_what_is_no_executor_or_would_fork_is_refused():
    with pytest.raises(ValueError, match=r"map_tasks: executor must be a concurrent.futures.Executor .* got a int"):
        checked_executor("map_tasks", 3)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
        pytest.raises(ValueError, match="must start its processes afresh"),
    ):
        tasks.map_tasks(dual, [1], executor=pool)


def test_an_executor_that_breaks_leaves_the_rest_to_this_process():
    with pytest.warns(RuntimeWarning, match="test: a worker ended in the middle; 3 of 5 pieces are done again in this"):
        found = ordered_map("test", abs, range(-5, 0), label="pieces", executor=Refusing(2), progress=False)
    assert found == [5, 4, 3, 2, 1]


def test_spawned_processes_come_to_the_same_bits():
    expected = tasks.map_tasks(dual, range(6), processes=1, progress=False)
    with spawned(2) as pool:
        assert same(tasks.map_tasks(dual, range(6), executor=pool, progress=False), expected)


@pytest.mark.slow
def test_the_honest_number_is_that_of_one_process():
    folds = {"folds": 4, "key": jax.random.key(0), "progress": False}
    alone = hx.search.honest(partial(ridge, 1.0), partial(ridge, 100.0), 40, **folds)
    for workers in (1, 2):
        with spawned(workers) as pool:
            found = hx.search.honest(partial(ridge, 1.0), partial(ridge, 100.0), 40, executor=pool, **folds)
        assert found.gains.tobytes() == alone.gains.tobytes()


@pytest.mark.slow
def test_a_shrinkage_path_of_single_folds_is_that_of_one_process():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 3))
    family = hx.families.Squared(X, X[:, 0] + rng.normal(size=60), penalty=lambda_of)
    problem, start = hx.Optimum(family), {"lambda": hx.Positive(jnp.full(3, 0.1))}
    setting = {"strengths": (0.1,), "folds": 2, "outer_folds": 2, "steps": 3, "key": jax.random.key(0)}
    criterion = partial(held, problem)
    alone = hx.search.shrinkage_path(problem, start, criterion=criterion, progress=False, **setting)
    with spawned(2) as pool:
        found = hx.search.shrinkage_path(problem, start, criterion=criterion, executor=pool, progress=False, **setting)
    assert found.gains.tobytes() == alone.gains.tobytes()
    assert found.steps == alone.steps


def lambda_of(hyper):
    """The strengths."""
    return hyper["lambda"]


def held(problem: hx.Optimum, training: np.ndarray) -> hx.core.AbstractObjective:
    """The loss of every second training row under the fit on the others."""
    even = np.arange(len(training)) % 2 == 0
    return problem.held_out(training & even, training & ~even)


@pytest.mark.slow
def test_a_killed_worker_costs_what_it_had_in_hand(tmp_path):
    expected = [i * i for i in range(12)]
    own, given = (partial(killed_once, tmp_path / name, os.getpid()) for name in ("own", "given"))
    with pytest.warns(RuntimeWarning, match="done again in fresh workers"):
        assert tasks.map_tasks(own, range(12), processes=2, progress=False) == expected
    with spawned(2) as pool, pytest.warns(RuntimeWarning, match="done again in this process"):
        assert tasks.map_tasks(given, range(12), executor=pool, progress=False) == expected
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match="that had number 1 of the tasks ended 3"):
        ordered_map("test", partial(kills, os.getpid()), range(2), label="tasks", processes=2, progress=False)


@pytest.mark.slow
def test_loky_comes_to_the_same_bits(tmp_path):
    loky = pytest.importorskip("loky", reason="loky is not installed")
    expected = tasks.map_tasks(dual, range(6), processes=1, progress=False)
    with loky.ProcessPoolExecutor(2) as pool:
        assert same(tasks.map_tasks(dual, range(6), executor=pool, progress=False), expected)
        work = partial(killed_once, tmp_path / "loky", os.getpid())
        with pytest.warns(RuntimeWarning, match="done again in this process"):
            assert tasks.map_tasks(work, range(12), executor=pool, progress=False) == [i * i for i in range(12)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dask's own
def test_a_dask_cluster_of_two_workers_comes_to_the_same_bits(tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (extra `dask`)")
    expected = tasks.map_tasks(dual, range(6), processes=1, progress=False)
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as local,
        cluster(local.scheduler_address) as pool,
    ):
        assert same(tasks.map_tasks(dual, range(6), executor=pool, progress=False), expected)
        work = partial(killed_once, tmp_path / "dask", os.getpid())
        assert tasks.map_tasks(work, range(12), executor=pool, progress=False) == [i * i for i in range(12)]


def test_an_address_without_a_scheduler_is_an_error_in_words():
    sentence = r"cluster tcp://127.0.0.1:9: (Dask must be installed|its scheduler must answer)"
    with pytest.raises(ValueError, match=sentence), cluster("tcp://127.0.0.1:9"):
        pass
