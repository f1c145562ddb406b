"""The same work by one and by two: processes for independent pieces, devices for the rows of one problem.

    python -m benchmarks.workers [--tasks 600] [--rows 200000]

- pieces: the duals of made tasks (those of `benchmarks.tasks_scale`), by `map_tasks` on one and two spawned processes;
- folds: an honest estimate of ridge regression on 20 folds, on one and on two spawned processes;
- rows: one certified hypergradient of logistic regression with 100 columns and as many strengths, its rows on one and
  on two CPU devices of one process, each of one thread; each count in a process of its own, and the second evaluation,
  which compiles nothing.

Prints a table: seconds by the clock, whether the answers have the same bits, or else how far apart they are beside the
sum of their bounds. Two free cores are needed; processes import JAX as they start, which counts.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np

import hyprax as hx
from benchmarks.tasks_scale import dual
from hyprax.tasks import map_tasks

COLUMNS, FOLDS, ROWS = 100, 20, 8_000


def ridge(strength: float, fit: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Losses of ridge regression on made rows, through a factor of their Gram matrix."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 300))
    y = x[:, 0] + rng.normal(size=len(x))
    w = np.linalg.solve(x[fit].T @ x[fit] + strength * np.eye(300), x[fit].T @ y[fit])
    return (y[judge] - x[judge] @ w) ** 2


def spawned(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def pieces(count: int, workers: int) -> bytes:
    with spawned(workers) as pool:
        one = partial(dual, model="elastic-net", holdout=False)
        found = map_tasks(one, range(count), executor=pool, progress=False)
    return b"".join(each.breakpoints.tobytes() + each.numerator.tobytes() for each in found)


def folds(workers: int) -> bytes:
    settings: dict[str, Any] = {"folds": FOLDS, "key": jax.random.key(0), "progress": False}
    with spawned(workers) as pool:
        found = hx.search.honest(partial(ridge, 1.0), partial(ridge, 100.0), ROWS, executor=pool, **settings)
    return found.gains.tobytes()


def timed(work: Callable[[int], bytes], workers: int) -> tuple[float, str]:
    began = time.perf_counter()
    found = work(workers)
    return time.perf_counter() - began, hashlib.sha256(found).hexdigest()


def on_devices(rows: int) -> dict[str, Any]:
    """In a process of so many devices: seconds, the gradient and its bound."""
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, COLUMNS))
    y = (x[:, :5].sum(1) + rng.logistic(size=rows) > 0).astype(int)
    mesh = Mesh(np.array(jax.devices()), ("rows",))

    def placed(a: np.ndarray) -> jax.Array:
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec("rows", *[None] * (a.ndim - 1))))

    cut = rows * 3 // 4
    family = hx.families.Logistic(placed(x[:cut]), placed(y[:cut]), penalty="penalty")
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (placed(x[cut:]), placed(y[cut:])))
    hyper = {"penalty": hx.Positive(np.full(COLUMNS, 1e-2))}
    hx.hypergradient(objective, hyper)
    began = time.perf_counter()
    answer = jax.block_until_ready(hx.hypergradient(objective, hyper)[0])
    seconds = time.perf_counter() - began
    certificate: Any = answer.certificate
    grad = np.asarray(jax.tree.leaves(answer.grad)[0]).tolist()
    return {"seconds": seconds, "grad": grad, "bound": float(certificate.bound), "kind": certificate.kind}


def devices(rows: int, count: int) -> dict[str, Any]:
    flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
    settings = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.workers", "--rows", str(rows), "--alone"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--alone", action="store_true", help="the rows, on the devices of this process; prints JSON")
    asked = parser.parse_args()
    if asked.alone:
        print(json.dumps(on_devices(asked.rows)))
        return
    print("| | one, s | two, s | times as fast | answers |", "| --- | ---: | ---: | ---: | --- |", sep="\n")
    for name, work in ((f"{asked.tasks:,} tasks", partial(pieces, asked.tasks)), (f"{FOLDS} outer folds", folds)):
        (one, a), (two, b) = timed(work, 1), timed(work, 2)
        same = "the same bits" if a == b else "NOT the same bits"
        print(f"| {name}, processes | {one:.1f} | {two:.1f} | {one / two:.2f} | {same} |")
    one, two = devices(asked.rows, 1), devices(asked.rows, 2)
    apart = float(np.linalg.norm(np.subtract(one["grad"], two["grad"])))
    bounds = one["bound"] + two["bound"]
    print(
        f"| {asked.rows:,} rows, devices | {one['seconds']:.2f} | {two['seconds']:.2f} | "
        f"{one['seconds'] / two['seconds']:.2f} | {apart:.0e} apart, {one['kind']} to {bounds:.0e} together |"
    )


if __name__ == "__main__":
    main()
