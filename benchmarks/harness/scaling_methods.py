"""Methods of `scaling` that no other section has, run in workers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np

import hyprax as hx
from benchmarks import tasks_scale
from benchmarks.harness.cells import Arrays
from benchmarks.harness.implicit import STRENGTH
from hyprax import tasks

Run = Callable[[], dict[str, Any]]


def many_tasks(_: Arrays, count: int, merged: bool = True) -> Run:
    """The tasks of `benchmarks.tasks_scale`: their functions, and with `merged` the global optimum of the mean."""

    def run() -> dict[str, Any]:
        duals = [tasks_scale.dual(i, "elastic-net", False) for i in range(count)]
        return {"hyper": tasks.erm(duals, progress=False).hyper if merged else duals[0].n_pieces}

    return run


def left_out(data: Arrays) -> Run:
    family = hx.families.Squared(data["x"], data["y"], penalty="penalty")
    objective = hx.implicit.LeaveOneOut(hx.Optimum(family))
    hyper = {"penalty": hx.Positive(np.full(data["x"].shape[1], STRENGTH))}
    state = objective.init(hyper)

    def run() -> dict[str, Any]:
        answer, _ = objective.value_and_grad(hyper, state)
        return {"value": answer.value, "grad": answer.grad["penalty"].raw}

    return run


def factor(data: Arrays) -> Run:
    x = jnp.asarray(data["x"])

    @jax.jit
    def compiled(x: Any) -> Any:
        lower = jnp.linalg.cholesky(x.T @ x / len(x) + STRENGTH * jnp.eye(x.shape[1]))
        return jnp.sum(jsl.solve_triangular(lower, x.T, lower=True) ** 2, axis=0)

    return lambda: {"leverages": compiled(x)}
