"""The methods of `unroll` in JAX, run in workers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hyprax as hx
from benchmarks import unrolled
from benchmarks.harness.cells import Arrays

Run = Callable[[], dict[str, Any]]


def ours(data: Arrays, name: str, mode: str) -> Run:
    objective = unrolled.load(name).objective(getattr(hx.unroll, mode)())
    hyper = {each: jnp.asarray(data[each]) for each in ("rates", "penalties")}
    state = objective.init(hyper)

    def run() -> dict[str, Any]:
        answer, _ = objective.value_and_grad(hyper, state)
        return {"value": answer.value, **answer.grad}

    return run


class ByHand:
    """The problem in plain JAX, in float64 where 64-bit types are on."""

    def __init__(self, data: Arrays):
        real = jnp.result_type(float)
        self.arrays = {k: jnp.asarray(v, real if v.dtype.kind == "f" else jnp.int32) for k, v in data.items()}
        self.weights = [self.arrays[f"w{i}"] for i in range(sum(name.startswith("w") for name in self.arrays))]
        self.hyper = {name: self.arrays[name] for name in ("rates", "penalties")}
        self.steps = len(self.arrays["rates"])

    def fit(self, params: Any, x: Any, y: Any) -> Any:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(unrolled.dense(params, x), y))

    def loss(self, params: Any, penalties: Any, rows: Any) -> Any:
        penalty = sum(jnp.exp(penalties[i]) * jnp.sum(w**2) for i, w in enumerate(params))
        return self.fit(params, self.arrays["x"][rows], self.arrays["y"][rows]) + penalty

    def step(self, penalties: Any, carry: Any, at: Any) -> Any:
        params, velocity = carry
        rate, rows = at
        grads = jax.grad(self.loss)(params, penalties, rows)
        velocity = [unrolled.MOMENTUM * v - g for v, g in zip(velocity, grads, strict=True)]
        return ([w + rate * v for w, v in zip(params, velocity, strict=True)], velocity), None

    @property
    def start(self) -> Any:
        return self.weights, [jnp.zeros_like(w) for w in self.weights]


def scanned(data: Arrays, segments: bool = False) -> Run:
    """`jax.grad` of a scan; with `segments`, of nested ones, the inner made again in the reverse sweep."""
    problem = ByHand(data)
    steps = problem.steps
    length = min((n for n in range(1, steps + 1) if steps % n == 0), key=lambda n: abs(n - steps**0.5))

    def value(hyper: Any) -> Any:
        def step(carry: Any, at: Any) -> Any:
            return problem.step(hyper["penalties"], carry, at)

        def segment(carry: Any, at: Any) -> Any:
            return jax.lax.scan(step, carry, at)[0], None

        at, once = (hyper["rates"], problem.arrays["rows"]), step
        if segments:
            at = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), at)
            once = jax.checkpoint(segment, prevent_cse=False)
        (params, _), _ = jax.lax.scan(once, problem.start, at)
        return problem.fit(params, problem.arrays["vx"], problem.arrays["vy"])

    compiled = jax.jit(jax.value_and_grad(value))

    def run() -> dict[str, Any]:
        found, grads = compiled(problem.hyper)
        return {"value": np.asarray(found), **grads}

    return run


def floor(data: Arrays) -> Run:
    """The training forwards, then T gradients with their second-order products, and nothing else."""
    problem = ByHand(data)

    def product(direction: Any, rows: Any) -> Any:
        def field(params: Any, penalties: Any) -> Any:
            return jax.grad(problem.loss)(params, penalties, rows)

        g, pull = jax.vjp(field, problem.weights, problem.hyper["penalties"])
        curved, mixed = pull(direction)
        return jax.tree.map(lambda a, b: 0.5 * a + b, curved, g), mixed

    @jax.jit
    def compiled(hyper: Any) -> Any:
        rows = problem.arrays["rows"]
        trained, _ = jax.lax.scan(partial(problem.step, hyper["penalties"]), problem.start, (hyper["rates"], rows))
        (last, _), mixed = trained, jax.lax.scan(product, problem.weights, rows)[1]
        return mixed.sum() + sum(jnp.sum(w) for w in last)

    return lambda: {"sum": compiled(problem.hyper)}
