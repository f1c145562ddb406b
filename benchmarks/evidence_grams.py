"""Seconds of a kernel's log-determinant and its derivatives, beside dense Jacobians.

    python -m benchmarks.evidence_grams [--models mlp lenet wrn-16-1] [--examples 100] [--resnet-examples 16]

log |I + K| of M data with ten outputs, all of them or one for each datum, with (a) its derivative in one log prior
precision a tensor, and (b) that in an offset of every input as well, in float32. `dense` is vmap(vjp) for the Jacobians
of all tensors, K by one product each, compiled and differentiated by JAX; `hyprax` is `hyprax.evidence.kernel`. Both in
one process, medians over interleaved rounds; compilation is apart. `memory` is XLA's own figure of temporary storage.
The two values and derivatives agree to the printed relative error.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from hyprax.evidence._kernel import kernel

C = 10


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1]))), jnp.float32)


def filters(rng: np.random.Generator, o: int, i: int, k: int = 3) -> Array:
    return jnp.asarray(rng.normal(size=(o, i, k, k)) / np.sqrt(i * k * k), jnp.float32)


def conv(x: Array, w: Array, stride: int = 1, padding: str = "SAME") -> Array:
    return lax.conv_general_dilated(x[None], w, (stride, stride), padding)[0]


def mlp(rng: np.random.Generator) -> tuple[Callable, Any, tuple[int, ...]]:
    params = {"w": normal(rng, 784, 100), "b": normal(rng, 100), "v": normal(rng, 100, C), "c": normal(rng, C)}

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        return jnp.tanh((x + hyper) @ p["w"] + p["b"]) @ p["v"] + p["c"]

    return apply, params, (784,)


def lenet(rng: np.random.Generator) -> tuple[Callable, Any, tuple[int, ...]]:
    params = {
        "c1": filters(rng, 6, 1, 5),
        "b1": normal(rng, 6),
        "c2": filters(rng, 16, 6, 5),
        "b2": normal(rng, 16),
        "w1": normal(rng, 400, 120),
        "w2": normal(rng, 120, 84),
        "w3": normal(rng, 84, C),
    }

    def pool(z: Array) -> Array:
        return z.reshape(z.shape[0], z.shape[1] // 2, 2, z.shape[2] // 2, 2).mean((2, 4))

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = pool(jnp.tanh(conv(x + hyper, p["c1"]) + p["b1"][:, None, None]))
        z = pool(jnp.tanh(conv(z, p["c2"], padding="VALID") + p["b2"][:, None, None]))
        z = jnp.tanh(z.reshape(-1) @ p["w1"])
        return jnp.tanh(z @ p["w2"]) @ p["w3"]

    return apply, params, (1, 28, 28)


def wide_resnet(rng: np.random.Generator, widen: int) -> tuple[Callable, Any, tuple[int, ...]]:
    """WRN-16-`widen`, with a learned scale and bias in place of each normalisation (Fixup)."""
    widths = [16 * widen, 32 * widen, 64 * widen]
    params: dict[str, Any] = {"stem": filters(rng, 16, 3), "head": normal(rng, widths[-1], C)}
    channels = 16
    for g, width in enumerate(widths):
        for b in range(2):
            block = {"w1": filters(rng, width, channels), "w2": filters(rng, width, width), "scale": jnp.float32(1.0)}
            block |= {"b1": jnp.float32(0.0), "b2": jnp.float32(0.0)}
            if channels != width:
                block["short"] = filters(rng, width, channels, 1)
            params[f"block{g}{b}"], channels = block, width

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = conv(x + hyper, p["stem"])
        for g in range(3):
            for b in range(2):
                block, stride = p[f"block{g}{b}"], 2 if g and not b else 1
                y = conv(jax.nn.relu(z + block["b1"]), block["w1"], stride)
                y = conv(jax.nn.relu(y + block["b2"]), block["w2"]) * block["scale"]
                z = y + (conv(z, block["short"], stride) if "short" in block else z)
        return jax.nn.relu(z).mean((1, 2)) @ p["head"]

    return apply, params, (3, 32, 32)


def dense_kernel(apply: Callable, params: Any, hyper: Array, inputs: Array, cotangents: Array, variances: Any) -> Array:
    def rows(x: Array, cs: Array) -> Any:
        _, pull = jax.vjp(lambda p: apply(p, hyper, x), params)
        return jax.vmap(lambda c: pull(c)[0])(cs)

    n = cotangents.shape[0] * cotangents.shape[1]
    flat = [j.reshape(n, -1) for j in jax.tree.leaves(jax.vmap(rows)(inputs, cotangents))]
    return sum(
        (v * (j @ j.T) for j, v in zip(flat, jax.tree.leaves(variances), strict=True)), jnp.zeros((n, n), jnp.float32)
    )


def compiled(kernel_of: Callable, apply: Callable, with_input: bool, example: tuple) -> Any:
    def objective(log_precisions: Any, hyper: Array, params: Any, inputs: Array, cotangents: Array) -> Array:
        variances = jax.tree.map(lambda v: jnp.exp(-v), log_precisions)
        k = kernel_of(apply, params, hyper, inputs, cotangents, variances)
        return 2 * jnp.log(jnp.diag(jnp.linalg.cholesky(jnp.eye(len(k), dtype=k.dtype) + k))).sum()

    argnums = (0, 1) if with_input else 0
    return jax.jit(jax.value_and_grad(objective, argnums=argnums)).lower(*example).compile()


def difference(a: Any, b: Any) -> float:
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return max(float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in pairs)


def measure(name: str, model: tuple, m: int, r: int, with_input: bool, rounds: int, rng: np.random.Generator) -> None:
    apply, params, shape = model
    hyper = normal(rng, *shape) * 0.1
    inputs = jnp.asarray(rng.normal(size=(m, *shape)), jnp.float32)
    cotangents = jnp.asarray(rng.normal(size=(m, r, C)), jnp.float32)
    precisions = jax.tree.map(lambda w: jnp.float32(np.log(w.size)), params)
    example = precisions, hyper, params, inputs, cotangents
    functions = [compiled(k, apply, with_input, example) for k in (dense_kernel, kernel)]
    error = difference(functions[1](*example), functions[0](*example))
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(*example))
            times.append(time.perf_counter() - start)
    dense, ours = (statistics.median(times) for times in seconds)
    memory = [f.memory_analysis().temp_size_in_bytes / 2**20 for f in functions]
    outputs, gradient = "all" if r > 1 else "one", "input" if with_input else "prior"
    print(
        f"{name:10} {m:5d} {outputs:>7} {gradient:>8} {dense:9.4f} {ours:9.4f} {dense / ours:7.1f} "
        f" {memory[0]:10.0f} {memory[1]:10.0f} {error:9.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["mlp", "lenet", "wrn-16-1"], help="mlp, lenet, wrn-16-K")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--resnet-examples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    print(
        f"{'model':10} {'M':>5} {'outputs':>7} {'gradient':>8} {'dense s':>9} {'hyprax s':>9} {'ratio':>7} "
        f"{'dense MiB':>10} {'hyprax MiB':>10} {'error':>9}"
    )
    for name in arguments.models:
        rng = np.random.default_rng(0)
        resnet = name.startswith("wrn")
        model = wide_resnet(rng, int(name.split("-")[-1])) if resnet else {"mlp": mlp, "lenet": lenet}[name](rng)
        m = arguments.resnet_examples if resnet else arguments.examples
        for r in (C, 1):
            for with_input in (False, True):
                measure(name, model, m, r, with_input, arguments.rounds, rng)


if __name__ == "__main__":
    main()
