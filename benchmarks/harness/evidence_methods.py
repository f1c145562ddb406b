"""The methods of `evidence` in JAX, run in workers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.evidence_grams import dense_kernel, perceptron, plain_log_determinant
from benchmarks.harness.cells import Arrays
from benchmarks.harness.evidence import NAMES
from hyprax import evidence as ev

Run = Callable[[], dict[str, Any]]


def _given(data: Arrays) -> tuple[dict[str, Any], Any, Any, Any]:
    x, y, logs = (jnp.asarray(data[name]) for name in ("x", "y", "logs"))
    return {name: jnp.asarray(data[name]) for name in NAMES}, x, y, logs


def _differentiated(value: Callable[..., Any], *arguments: Any) -> Run:
    compiled = jax.jit(jax.value_and_grad(value))

    def run() -> dict[str, Any]:
        found, grad = compiled(*arguments)
        return {"value": found, "grad": grad}

    return run


def ours(data: Arrays, subset: bool = False) -> Run:
    """All outputs of all examples; with `subset`, the default: a bound from one row of each of 256 at most."""
    params, x, y, logs = _given(data)
    chosen: Any = {"key": jax.random.key(0)} if subset else {"estimator": ev.FullData()}

    def value(logs: Any, params: Any, x: Any, y: Any) -> Any:
        precisions = dict(zip(NAMES, jnp.exp(logs), strict=True))
        prior, shift = ev.GaussianPrior(precisions), jnp.zeros((), x.dtype)
        likelihood = ev.Categorical()
        return ev.log_evidence(perceptron, params, (x, y), shift, likelihood=likelihood, prior=prior, **chosen).value

    return _differentiated(value, logs, params, x, y)


def dense(data: Arrays) -> Run:
    params, x, y, logs = _given(data)

    def value(logs: Any, params: Any, x: Any, y: Any) -> Any:
        shift = jnp.zeros((), x.dtype)
        outputs = jax.vmap(lambda row: perceptron(params, shift, row))(x)
        p = jax.nn.softmax(outputs)
        # L Lᵀ = diag(p) - p pᵀ: the columns of L are the directions in which outputs are differentiated.
        roots = jnp.sqrt(p)[:, None, :] * jnp.eye(p.shape[1], dtype=p.dtype) - p[:, :, None] * jnp.sqrt(p)[:, None, :]
        precisions = dict(zip(NAMES, jnp.exp(logs), strict=True))
        variances = {name: 1 / s for name, s in precisions.items()}
        k = dense_kernel(perceptron, params, shift, x, jnp.swapaxes(roots, 1, 2), variances)
        penalty = sum(precisions[name] * jnp.sum(params[name] ** 2) for name in NAMES)
        fit = jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1).sum()
        return fit - 0.5 * penalty - 0.5 * plain_log_determinant(k)

    return _differentiated(value, logs, params, x, y)


def fit_alone(data: Arrays) -> Run:
    """The log-likelihood of all examples, and its derivative in a shift of the inputs."""
    params, x, y, _ = _given(data)

    def value(shift: Any, params: Any, x: Any, y: Any) -> Any:
        outputs = jax.vmap(lambda row: perceptron(params, shift, row))(x)
        return jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1).sum()

    return _differentiated(value, jnp.zeros((), x.dtype), params, x, y)
