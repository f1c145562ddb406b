"""The Laplace log evidence of a trained perceptron, and its gradient in one log prior precision a tensor, in float32.

All outputs of all examples, the generalised Gauss-Newton matrix whole. The truth is in closed form, by the layers'
Gram matrices, in float64. laplace-torch's Kronecker factors are another, cheaper quantity, and its error says how far
it is from the whole matrix.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from scipy.linalg import cho_solve
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits

from benchmarks.harness.cells import Arrays, Cell, Method, distance

TITLE = "Log evidence and its gradient"
NAMES = ("b", "c", "v", "w")
"""The tensors, in the order in which JAX has the leaves of a dictionary."""
TRAINED = 3_000
"""Examples that the weights are trained on at most; beyond, all are repetitions."""


def arrays(examples: int, hidden: int, pixels: int, outputs: int = 10) -> Arrays:
    """Digits, their images made larger by repetition where `pixels` is more than 64, and weights at a rough optimum.

    Beyond the digits there are, rows are repeated; with other than ten outputs, labels are drawn.
    """
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = np.resize(rng.permutation(len(x)), examples)
    x = np.tile(x[order] / 16, pixels // 64 + 1)[:, :pixels] - 0.3
    y = y[order] if outputs == 10 else rng.integers(0, outputs, examples)
    p = {
        "w": rng.normal(size=(pixels, hidden)) / np.sqrt(pixels),
        "b": np.zeros(hidden),
        "v": rng.normal(size=(hidden, outputs)) / np.sqrt(hidden),
        "c": np.zeros(outputs),
    }
    seen, labels = x[:TRAINED], np.eye(outputs)[y[:TRAINED]]
    for _ in range(300):
        h = np.tanh(seen @ p["w"] + p["b"])
        error = (softmax(h @ p["v"] + p["c"], axis=1) - labels) / len(seen)
        back = (error @ p["v"].T) * (1 - h**2)
        slopes = {"w": seen.T @ back, "b": back.sum(0), "v": h.T @ error, "c": error.sum(0)}
        p = {name: w - 0.5 * (slopes[name] + w / examples) for name, w in p.items()}
    logs = np.log([float(np.clip(p[name].size, 1, 100)) for name in NAMES])
    found = {name: w.astype(np.float32) for name, w in p.items()}
    return found | {"x": x.astype(np.float32), "y": y.astype(np.int32), "logs": logs.astype(np.float32)}


def truth(data: Arrays) -> Arrays:
    p = {name: data[name].astype(float) for name in (*NAMES, "x", "logs")}
    x, y, precisions = p["x"], data["y"], np.exp(p["logs"])
    h = np.tanh(x @ p["w"] + p["b"])
    outputs = h @ p["v"] + p["c"]
    q, count = softmax(outputs, axis=1), outputs.shape[1]
    roots = np.sqrt(q)[:, None, :] * np.eye(count) - q[:, :, None] * np.sqrt(q)[:, None, :]  # L Lᵀ = diag(q) - q qᵀ
    cotangents = roots.transpose(0, 2, 1).reshape(-1, count)
    x, h = np.repeat(x, count, axis=0), np.repeat(h, count, axis=0)
    out, back = cotangents @ cotangents.T, (cotangents @ p["v"].T) * (1 - h**2)
    inner = back @ back.T
    grams = {"b": inner, "c": out, "v": out * (h @ h.T), "w": inner * (x @ x.T)}
    matrix = np.eye(len(x)) + sum(grams[name] / s for name, s in zip(NAMES, precisions, strict=True))
    factor = np.linalg.cholesky(matrix)
    inverse = cho_solve((factor, True), np.eye(len(x)))
    squares = np.array([np.sum(p[name] ** 2) for name in NAMES])
    fit = log_softmax(outputs, axis=1)[np.arange(len(y)), y].sum()
    value = fit - 0.5 * precisions @ squares - np.log(np.diag(factor)).sum()
    traces = np.array([np.sum(inverse * grams[name]) for name in NAMES])
    return {"value": np.asarray(value), "grad": 0.5 * traces / precisions - 0.5 * precisions * squares}


def error(found: Arrays, expected: Arrays) -> float:
    return max(distance(found[name], expected[name]) for name in ("value", "grad"))


def cells(size: str) -> Iterator[Cell]:
    # 64-16-10 has 1,210 weights, fewer than outputs; 784-100-10 has 79,510, far more.
    shapes = {"quick": [(40, 8, 64)], "usual": [(200, 16, 64), (100, 100, 784)]}
    for examples, hidden, pixels in shapes.get(size, [(200, 16, 64), (1000, 16, 64), (100, 100, 784), (200, 100, 784)]):
        weights = pixels * hidden + hidden + hidden * 10 + 10
        found = [
            Method("hyprax", "benchmarks.harness.evidence_methods:ours", x64=False),
            Method("dense Jacobians in JAX", "benchmarks.harness.evidence_methods:dense", package="jax", x64=False),
            Method("dense Jacobians in torch", "benchmarks.harness.torch_methods:dense", "torch", "torch"),
        ]
        for structure, note in (("full", ""), ("kron", "Kronecker factors: another quantity, cheaper")):
            if structure == "kron" or weights < 5000:
                where, settings = "benchmarks.harness.torch_methods:laplace", {"structure": structure}
                name = f"laplace-torch, {structure}"
                found.append(Method(name, where, "torch", "laplace-torch", settings, note=note))
        yield Cell(
            section="evidence",
            problem=f"{pixels}-{hidden}-10 ({weights:,} weights), {examples:,} examples",
            arrays=partial(arrays, examples, hidden, pixels),
            truth=truth,
            methods=tuple(found),
            accept=1e-3,
            error=error,
            error_name="relative error of value or gradient, the larger",
            rounds=3 if size == "quick" else 50,
            seconds={"quick": 0.5, "usual": 6.0, "full": 60.0}[size],
        )
