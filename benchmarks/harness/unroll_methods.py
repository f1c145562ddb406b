"""The methods of `unroll` in JAX, run in workers."""

from collections.abc import Callable
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


def scanned(data: Arrays, segments: bool = False) -> Run:
    """Plain JAX, in float64 where 64-bit types are on; with `segments` they are made again in the reverse sweep."""
    real = jnp.result_type(float)
    arrays = {k: jnp.asarray(v, real if v.dtype.kind == "f" else jnp.int32) for k, v in data.items()}
    weights = [arrays[f"w{i}"] for i in range(sum(name.startswith("w") for name in arrays))]
    steps = len(arrays["rates"])
    length = min((n for n in range(1, steps + 1) if steps % n == 0), key=lambda n: abs(n - steps**0.5))

    def fit(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(unrolled.dense(params, x), y))

    def loss(params: Any, penalties: Any, rows: Any) -> Any:
        penalty = sum(jnp.exp(penalties[i]) * jnp.sum(w**2) for i, w in enumerate(params))
        return fit(params, arrays["x"][rows], arrays["y"][rows]) + penalty

    def value(hyper: Any) -> Any:
        def step(carry: Any, at: Any) -> Any:
            params, velocity = carry
            rate, rows = at
            grads = jax.grad(loss)(params, hyper["penalties"], rows)
            velocity = [unrolled.MOMENTUM * v - g for v, g in zip(velocity, grads, strict=True)]
            return ([w + rate * v for w, v in zip(params, velocity, strict=True)], velocity), None

        def segment(carry: Any, at: Any) -> Any:
            return jax.lax.scan(step, carry, at)[0], None

        start, at = (weights, [jnp.zeros_like(w) for w in weights]), (hyper["rates"], arrays["rows"])
        if segments:
            at = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), at)
            step_or_segment = jax.checkpoint(segment, prevent_cse=False)
        else:
            step_or_segment = step
        (params, _), _ = jax.lax.scan(step_or_segment, start, at)
        return fit(params, arrays["vx"], arrays["vy"])

    compiled = jax.jit(jax.value_and_grad(value))
    hyper = {name: arrays[name] for name in ("rates", "penalties")}

    def run() -> dict[str, Any]:
        found, grads = compiled(hyper)
        return {"value": np.asarray(found), **grads}

    return run
