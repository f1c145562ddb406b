"""Seconds and memory of one hypergradient against the size of the data: `python -m experiments.scaling [--quick]`.

The log-determinant of a Laplace approximation and its derivative in one log prior precision a tensor, for N data, C
classes and subsets of M: stochastic estimators, which see M data, beside KFAC of all data.

Two digits of MNIST side by side (each 28 x 28 averaged to 14 x 14) are one example, and up to 100 classes are told
apart by both: a multilayer perceptron 392-100-C at its initial weights, on which no time depends.

Writes RESULTS.md and the picture beside this file; with --quick into out/experiments.
"""

import argparse
import gzip
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from experiments._common import data_file, machine, pyplot, results_folder
from jaxtyping import Array

from hyprax import evidence as ev

HERE = results_folder(__file__)
HIDDEN, PIXELS = 100, 392
STICK = ev.roots.StickBreaking()
CHUNK = 250
"""Data at a time of KFAC."""


def mlp(params: Any, hyper: None, x: Array) -> Array:
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] + params["c"]


def weights(classes: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {"w": (PIXELS, HIDDEN), "b": (HIDDEN,), "v": (HIDDEN, classes), "c": (classes,)}
    return {
        name: jnp.asarray(rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1]))), jnp.float32)
        for name, shape in shapes.items()
    }


def pairs(classes: int) -> tuple[Array, Array]:
    """Every training digit beside another, and a class from both."""
    with gzip.open(data_file("mnist/train-images-idx3-ubyte.gz")) as stream:
        images = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) / 255
    with gzip.open(data_file("mnist/train-labels-idx1-ubyte.gz")) as stream:
        labels = np.frombuffer(stream.read(), np.uint8, offset=8).astype(np.int32)
    other = np.random.default_rng(1).permutation(len(images))
    both = np.concatenate([images, images[other]], axis=2).reshape(len(images), -1)
    return jnp.asarray(both, jnp.float32), jnp.asarray((10 * labels + labels[other]) % classes)


def kfac(log_precisions: dict[str, Array], params: dict[str, Array], inputs: Array) -> Array:
    """Σ_l Σ_io log(1 + d_i e_o/δ_l) of all data, A = mean a aᵀ and G = Σ g gᵀ, a bias its own tensor.

    Written out for this network, and a loop over chunks: what a specialist would write.
    """

    def one(x: Array) -> tuple[Array, Array]:
        h = jnp.tanh(x @ params["w"] + params["b"])
        root = STICK.matrix(ev.Categorical(), h @ params["v"] + params["c"]).T
        return h, root

    def chunk(total: Any, x: Array) -> tuple[Any, None]:
        h, g = jax.vmap(one)(x)
        g_hidden = (g @ params["v"].T) * (1 - jnp.square(h))[:, None]
        g, g_hidden = g.reshape(-1, g.shape[2]), g_hidden.reshape(-1, HIDDEN)
        moments = x.T @ x, g_hidden.T @ g_hidden, h.T @ h, g.T @ g
        return jax.tree.map(jnp.add, total, moments), None

    n, classes = inputs.shape[0], params["c"].shape[0]
    empty = [jnp.zeros((size, size), jnp.float32) for size in (PIXELS, HIDDEN, HIDDEN, classes)]
    (a, g, b, f), _ = jax.lax.scan(chunk, tuple(empty), inputs.reshape(n // CHUNK, CHUNK, PIXELS))
    a, g, b, f = (jnp.maximum(jnp.linalg.eigvalsh(m), 0) for m in (a / n, g, b / n, f))
    spectra = {"w": a[:, None] * g[None], "b": g, "v": b[:, None] * f[None], "c": f}
    terms = [jnp.sum(jnp.log1p(spectra[name] * jnp.exp(-log_precisions[name]))) for name in spectra]
    return jnp.sum(jnp.stack(terms))


class Measured(NamedTuple):
    name: str
    n: int
    classes: int
    seconds: float
    megabytes: float


def estimators(classes: int, quick: bool) -> dict[str, Any]:
    """What is compared; the rows of a kernel of all outputs are at most 1,000."""
    sizes = (10, 100) if quick else (10, 100, 1000)
    found: dict[str, Any] = {f"chain, M = {m}": ev.Chain(ev.designs.OneRow(m), STICK) for m in sizes}
    for m in sizes:
        if m * (classes - 1) <= 1000:
            found[f"subset, all outputs, M = {m}"] = ev.Partition(m, "all", STICK)
    found["tangent, M = 100"] = ev.Tangent(100)
    return found


def measure(name: str, estimator: Any, n: int, classes: int, data: tuple[Array, Array]) -> Measured:
    """The least of at least five evaluations, of one core's seconds; XLA's figure of temporary storage."""
    params = weights(classes)
    logs = {leaf: jnp.log(jnp.asarray(w.size, jnp.float32)) for leaf, w in params.items()}
    inputs, targets = data[0][:n], data[1][:n]
    if estimator is None:

        def function(logs: Any, inputs: Array, targets: Array, key: Array) -> Array:
            return kfac(logs, params, inputs)
    else:

        def function(logs: Any, inputs: Array, targets: Array, key: Array) -> Array:
            prior = ev.GaussianPrior(jax.tree.map(jnp.exp, logs))
            problem = ev.LinearisedModel(mlp, ev.Categorical(), prior, params, None, inputs, targets, jnp.float32(1))
            return estimator(problem, key).upper

    arguments = logs, inputs, targets, jax.random.key(0)
    compiled = jax.jit(jax.value_and_grad(function)).lower(*arguments).compile()
    value, gradient = compiled(*arguments)
    if not all(np.isfinite(x) for x in jax.tree.leaves((value, gradient))):
        raise AssertionError(f"{name}: not finite")
    times: list[float] = []
    while len(times) < 5 or (sum(times) < 0.2 and len(times) < 50):
        start = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.process_time() - start)
    memory = compiled.memory_analysis()
    assert memory is not None
    found = Measured(name, n, classes, min(times), memory.temp_size_in_bytes / 2**20)
    print(f"{name}, N = {n}, C = {classes}: {found.seconds:.4f} s, {found.megabytes:.0f} MiB", flush=True)
    return found


def cell(rows: list[Measured], name: str, n: int, classes: int) -> str:
    for row in rows:
        if (row.name, row.n, row.classes) == (name, n, classes):
            return f"{row.seconds:.4f} s, {row.megabytes:.0f} MiB"
    return "-"


def table(rows: list[Measured], columns: list[tuple[int, int]], titles: list[str]) -> str:
    names = list(dict.fromkeys(row.name for row in rows if (row.n, row.classes) in columns))
    lines = [["estimator", *titles], ["---"] * (len(titles) + 1)]
    lines += [[name, *(cell(rows, name, n, c) for n, c in columns)] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def crossover(rows: list[Measured], name: str, classes: int) -> str:
    """The N at which KFAC of all data costs as much, on a straight line through its smallest and largest N."""
    found = {row.n: row.seconds for row in rows if row.classes == classes and row.name == "KFAC, all data"}
    low, high = min(found), max(found)
    slope = (found[high] - found[low]) / (high - low)
    ours = np.mean([row.seconds for row in rows if row.classes == classes and row.name == name])
    n = low + (ours - found[low]) / slope
    return f"{n:,.0f}" if n > low else f"below {low:,}"


def picture(rows: list[Measured], classes: int) -> None:
    plt = pyplot()

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharex=True)
    chosen = [row for row in rows if row.classes == classes]
    for name in dict.fromkeys(row.name for row in chosen):
        line = sorted((row.n, row.seconds, row.megabytes) for row in chosen if row.name == name)
        style = "k--o" if name.startswith("KFAC") else "-o"
        for axis, place in zip(axes, (1, 2), strict=True):
            axis.plot([point[0] for point in line], [point[place] for point in line], style, ms=4, label=name)
    axes[0].set(xscale="log", yscale="log", xlabel="data N", ylabel="seconds a hypergradient, one core")
    axes[1].set(xscale="log", yscale="log", xlabel="data N", ylabel="temporary storage, MiB")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(HERE / "scaling.png", dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two sizes, ten classes, small subsets")
    quick = parser.parse_args().quick
    sizes = [1000, 4000] if quick else [1000, 4000, 16_000, 60_000]
    columns = [(n, 10) for n in sizes] + ([] if quick else [(n, c) for c in (2, 100) for n in (1000, 60_000)])
    rows = []
    for n, classes in columns:
        data = pairs(classes)
        for name, estimator in {**estimators(classes, quick), "KFAC, all data": None}.items():
            if estimator is None or n in (sizes[0], sizes[-1]) or classes == 10:
                rows.append(measure(name, estimator, n, classes, data))
    picture(rows, 10)
    names = list(dict.fromkeys(row.name for row in rows if not row.name.startswith("KFAC")))
    classes = sorted({c for _, c in columns})
    measured = {(row.name, row.classes) for row in rows}
    crossings = [
        [name, *(crossover(rows, name, c) if (name, c) in measured else "-" for c in classes)] for name in names
    ]
    lines = [["estimator", *(f"C = {c}" for c in classes)], ["---"] * (len(classes) + 1), *crossings]
    text = f"""# The cost of a hypergradient against the size of the data

    python -m experiments.scaling{" --quick" if quick else ""}

Measured on a {machine()}, one thread, float32, JAX {jax.__version__}: the least
seconds of one core of at least five evaluations of log|I + K| and its derivative in four log prior precisions,
compilation apart, and XLA's figure of temporary storage. Pairs of MNIST digits, a multilayer perceptron 392-100-C.
The chain draws one row a datum (and a pilot of 16), the subset all outputs of its data, the root is stick-breaking.
KFAC is written out for this network and goes through all data in chunks of {CHUNK}: an estimate that bounds nothing.
Kernels of more than 1,000 rows are left out.

## Ten classes

{table(rows, [(n, 10) for n in sizes], [f"N = {n:,}" for n in sizes])}

![Seconds and temporary storage of one hypergradient against N, ten classes](scaling.png)
"""
    if not quick:
        others = [(n, c) for n, c in columns if c != 10]
        text += f"""
## Two and a hundred classes

{table(rows, others, [f"C = {c}, N = {n:,}" for n, c in others])}
"""
    text += f"""
## Where KFAC of all data costs as much

The N at which one evaluation of KFAC takes as long as the estimator, by a straight line through KFAC's smallest and
largest N (extended beyond it where it must be). With fewer data KFAC is the cheaper, with more the estimator.

{chr(10).join("| " + " | ".join(line) + " |" for line in lines)}
"""
    (HERE / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
