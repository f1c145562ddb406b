"""Seconds of a kernel's log-determinant and its derivatives, beside dense Jacobians.

    python -m benchmarks.evidence_grams [CASES] [--torch PYTHON] [--seconds 10]

log |I + K| of M data with ten outputs, all of them or one for each datum, in float32: its value with its derivative in
one log prior precision a tensor (`prior`), and with that in an offset of every input too (`input`). `dense` is
vmap(vjp) in JAX for the Jacobians of all tensors and one product each, with a Cholesky factor differentiated by JAX,
`hyprax` is `hyprax`'s kernel with the library's own derivative of the log-determinant, both compiled and run
in one process. With --torch, an interpreter that has PyTorch, `torch` is
torch.func's vmap(vjp), and `kfac` is laplace-torch's KFAC of the same data, fitted and differentiated: another,
cheaper quantity, without a kernel.

`whole` is everything, the Cholesky factor and its derivative included, `kernel` the kernel and the pullback of a fixed
cotangent alone. Seconds are of one core (process time, one thread; with --device gpu by the clock) and of one call, the
least of the rounds that --seconds allow, in which the functions take turns of a twentieth of a second at least;
compilation is apart. MiB is XLA's own figure of temporary storage of the whole. `error` is the relative difference of
dense and hyprax, the largest over value and derivatives. A case is MODEL:M:all|one:prior|input, MODEL one of mlp,
lenet, wrn-16-K; with `:alone` at the end dense is left out, and with `:peak` hyprax runs once, for its seconds and the
most memory that the process had.
"""

import argparse
import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
    os.environ[variable] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks import device
from hyprax.evidence._chain import log_determinant
from hyprax.evidence._kernel import kernel

C = 10
RUN = 0.05
CASES = [
    *(f"mlp:100:{outputs}:{gradient}" for outputs in ("all", "one") for gradient in ("prior", "input")),
    "mlp:500:one:prior",
    "mlp:500:one:input",
    "mlp:500:all:prior:alone",
    *(f"lenet:100:{outputs}:{gradient}" for outputs in ("all", "one") for gradient in ("prior", "input")),
    "lenet:500:one:prior",
    "wrn-16-4:16:all:prior",
    "wrn-16-4:16:one:prior",
    "wrn-16-4:16:all:input:alone",
    "wrn-16-4:150:all:prior:peak",
]


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1]))), jnp.float32)


def filters(rng: np.random.Generator, o: int, i: int, k: int = 3) -> Array:
    return jnp.asarray(rng.normal(size=(k, k, i, o)) / np.sqrt(i * k * k), jnp.float32)


def conv(x: Array, w: Array, stride: int = 1, padding: str = "SAME") -> Array:
    """Channels last, as the libraries for JAX have them."""
    return lax.conv_general_dilated(x[None], w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))[
        0
    ]


def perceptron(p: Any, hyper: Array, x: Array) -> Array:
    return jnp.tanh((x + hyper) @ p["w"] + p["b"]) @ p["v"] + p["c"]


def mlp(rng: np.random.Generator) -> tuple[Callable, Any, tuple[int, ...]]:
    params = {"w": normal(rng, 784, 100), "b": normal(rng, 100), "v": normal(rng, 100, C), "c": normal(rng, C)}
    return perceptron, params, (784,)


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
        return z.reshape(z.shape[0] // 2, 2, z.shape[1] // 2, 2, z.shape[2]).mean((1, 3))

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = pool(jnp.tanh(conv(x + hyper, p["c1"]) + p["b1"]))
        z = pool(jnp.tanh(conv(z, p["c2"], padding="VALID") + p["b2"]))
        z = jnp.tanh(z.reshape(-1) @ p["w1"])
        return jnp.tanh(z @ p["w2"]) @ p["w3"]

    return apply, params, (28, 28, 1)


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
        return jax.nn.relu(z).mean((0, 1)) @ p["head"]

    return apply, params, (32, 32, 3)


def dense_kernel(apply: Callable, params: Any, hyper: Array, inputs: Array, cotangents: Array, variances: Any) -> Array:
    def rows(x: Array, cs: Array) -> Any:
        _, pull = jax.vjp(lambda p: apply(p, hyper, x), params)
        return jax.vmap(lambda c: pull(c)[0])(cs)

    n = cotangents.shape[0] * cotangents.shape[1]
    flat = [j.reshape(n, -1) for j in jax.tree.leaves(jax.vmap(rows)(inputs, cotangents))]
    grams = (v * (j @ j.T) for j, v in zip(flat, jax.tree.leaves(variances), strict=True))
    return sum(grams, jnp.zeros((n, n), cotangents.dtype))


def build(name: str, rng: np.random.Generator) -> tuple[Callable, Any, tuple[int, ...]]:
    if name.startswith("wrn-16-"):
        return wide_resnet(rng, int(name.removeprefix("wrn-16-")))
    return {"mlp": mlp, "lenet": lenet}[name](rng)


def plain_log_determinant(k: Array) -> Array:
    return 2 * jnp.log(jnp.diag(jnp.linalg.cholesky(jnp.eye(len(k), dtype=k.dtype) + k))).sum()


def compiled(kernel_of: Callable, apply: Callable, with_input: bool, example: tuple, fixed: Array | None) -> Any:
    """log |I + K| and its derivative, or <`fixed`, K> and its derivative."""

    def objective(log_precisions: Any, hyper: Array, params: Any, inputs: Array, cotangents: Array) -> Array:
        variances = jax.tree.map(lambda v: jnp.exp(-v), log_precisions)
        k = kernel_of(apply, params, hyper, inputs, cotangents, variances)
        if fixed is not None:
            return jnp.sum(fixed * k)
        return log_determinant(k).upper if kernel_of is kernel else plain_log_determinant(k)

    argnums = (0, 1) if with_input else 0
    return jax.jit(jax.value_and_grad(objective, argnums=argnums)).lower(*example).compile()


def difference(a: Any, b: Any) -> float:
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return max(float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in pairs)


def seconds(functions: dict[Any, Callable], example: tuple, limit: float) -> tuple[dict[Any, float], dict[Any, Any]]:
    """One core's seconds of a call of each, the least of rounds over all of them; and their results.

    In a round each is called for a twentieth of a second at least, time after time, as a search calls it.
    """
    times: dict[Any, list[float]] = {key: [] for key in functions}
    results = {key: jax.block_until_ready(function(*example)) for key, function in functions.items()}
    start = device.seconds()
    for _ in range(200):
        for key, function in functions.items():
            before, calls = device.seconds(), 0
            while not calls or device.seconds() - before < RUN:
                jax.block_until_ready(function(*example))
                calls += 1
            times[key].append((device.seconds() - before) / calls)
        if device.seconds() - start > limit:
            break
    return {key: min(found) for key, found in times.items()}, results


def peers(python: str | None, arguments: list[str]) -> dict[str, float]:
    """The seconds of PyTorch, in an interpreter of its own."""
    if python is None:
        return {}
    script = Path(__file__).with_name("evidence_grams_torch.py")
    run = subprocess.run([python, str(script), *arguments], capture_output=True, text=True, check=False)
    if run.returncode:
        print(f"  PyTorch left out: {run.stderr.strip().splitlines()[-1]}")
        return {}
    return json.loads(run.stdout)


def measure(case: str, limit: float, python: str | None) -> None:
    name, examples, outputs, gradient, *alone = case.split(":")
    m, r, with_input = int(examples), {"all": C, "one": 1}[outputs], {"input": True, "prior": False}[gradient]
    rng = np.random.default_rng(0)
    apply, params, shape = build(name, rng)
    hyper = normal(rng, *shape) * 0.1
    inputs = jnp.asarray(rng.normal(size=(m, *shape)), jnp.float32)
    cotangents = jnp.asarray(rng.normal(size=(m, r, C)), jnp.float32)
    precisions = jax.tree.map(lambda w: jnp.float32(np.log(w.size)), params)
    example = precisions, hyper, params, inputs, cotangents
    if "peak" in alone:
        function = compiled(kernel, apply, with_input, example, None)
        before, start = device.reset(), device.seconds()
        jax.block_until_ready(function(*example))
        used, most = device.seconds() - start, device.peak()
        print(f"{case}: {used:.1f} s, {most / 2**30:.2f} GiB at the peak, {before / 2**30:.2f} GiB before", flush=True)
        return
    fixed = jnp.asarray(rng.normal(size=(m * r, m * r)), jnp.float32)
    kernels = {"hyprax": kernel} if alone else {"dense": dense_kernel, "hyprax": kernel}
    functions = {
        (label, part): compiled(kernel_of, apply, with_input, example, cotangent)
        for label, kernel_of in kernels.items()
        for part, cotangent in (("whole", None), ("kernel", fixed))
    }
    memory = {k: functions[k, "whole"].memory_analysis().temp_size_in_bytes / 2**20 for k in kernels}
    times, results = seconds(functions, example, limit)
    whole, own = ({k: times[k, part] for k in kernels} for part in ("whole", "kernel"))
    if not alone:
        whole |= peers(python, [name, examples, outputs, gradient, str(limit)])

    def ratio(times: dict[str, float], label: str) -> str:
        return f"{times[label] / times['hyprax']:.1f}x" if label in times else "-"

    def cell(values: dict[str, float], label: str, form: str) -> str:
        return format(values[label], form) if label in values else "-"

    error = "-" if alone else f"{difference(results['hyprax', 'whole'], results['dense', 'whole']):.0e}"
    cells = [name, examples, outputs, gradient]
    cells += [cell(whole, label, ".4f") for label in ("hyprax", "dense", "torch", "kfac")]
    cells += [ratio(whole, "dense"), ratio(whole, "torch"), cell(own, "hyprax", ".4f"), cell(own, "dense", ".4f")]
    cells += [ratio(own, "dense"), cell(memory, "hyprax", ".0f"), cell(memory, "dense", ".0f"), error]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch, and laplace-torch for kfac")
    parser.add_argument("--seconds", type=float, default=10.0, help="the limit for rounds of one function")
    device.add_argument(parser)
    arguments = parser.parse_args()
    device.use(arguments.device)
    print(f"{platform.platform()}, {jax.devices()[0].device_kind}, one thread, JAX {jax.__version__}\n")
    if arguments.torch is None:
        print("PyTorch left out: name an interpreter that has it by --torch.\n")
    titles = ["model", "M", "outputs", "gradient", "hyprax s", "dense s", "torch s", "kfac s", "dense", "torch"]
    titles += ["hyprax kernel s", "dense kernel s", "dense kernel", "hyprax MiB", "dense MiB", "error"]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for case in arguments.cases:
        measure(case, arguments.seconds, arguments.torch)


if __name__ == "__main__":
    main()
