"""Hypergradients at an optimum: per-column penalties of binary and softmax regression, from a cold start at w = 0.

Binary logistic regression on breast cancer and digits (standardised, a third of the rows for validation) and on ijcnn1
(its own validation rows), and softmax regression on 1,000 + 500 MNIST digits (pixels in [0, 1]); every penalty is 1e-2.
Every method gets the loosest tolerance of a ladder of decades with which its relative error is at most the target.
"""

import gzip
from collections.abc import Iterator
from functools import partial

import numpy as np
from experiments._common import data_file
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import softmax
from sklearn.datasets import load_breast_cancer, load_digits

from benchmarks.harness.cells import Arrays, Cell, Method, distance

TITLE = "A hypergradient at an optimum"
PROBLEMS = ("breast cancer", "digits", "ijcnn1", "MNIST softmax")
FILES = {"ijcnn1": "libsvm/ijcnn1.npz", "MNIST softmax": "mnist/train-images-idx3-ubyte.gz"}
STRENGTH = 1e-2
LADDER = tuple(10.0**-k for k in range(1, 14))
DENSE = 500
"""The most weights for which BFGS is run: above, its matrix does not fit in the caches."""


def arrays(name: str, dtype: str) -> Arrays:
    """Rows x and labels y for training, vx and vy for validation. The numbers are those of float32."""
    if name == "MNIST softmax":
        pixels, y = (
            np.frombuffer(
                gzip.decompress(data_file(f"mnist/train-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=skip
            )
            for kind, skip in (("images-idx3", 16), ("labels-idx1", 8))
        )
        x, y, cut = pixels.reshape(-1, 784)[:1500] / 255.0, y[:1500].astype(np.int32), 1000
    else:
        if name == "ijcnn1":
            with np.load(data_file(FILES[name])) as archive:
                x, y = archive["X"].astype(float), archive["y"] > 0
            order, cut = np.arange(len(x)), 35_000
        else:
            load = load_breast_cancer if name == "breast cancer" else load_digits
            x, y = (np.asarray(part) for part in load(return_X_y=True))
            y = y if name == "breast cancer" else y >= 5
            order, cut = np.random.default_rng(0).permutation(len(x)), round(0.67 * len(x))
        deviation = x.std(axis=0)
        x = ((x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1))[order]
        y = y[order].astype(dtype)
    x = x.astype(np.float32).astype(dtype)
    return {"x": x[:cut], "y": y[:cut], "vx": x[cut:], "vy": y[cut:]}


def classes(data: Arrays) -> int:
    """1 for binary logistic regression, the number of classes for softmax regression."""
    return int(data["y"].max()) + 1 if data["y"].dtype.kind == "i" else 1


def groups(data: Arrays) -> np.ndarray:
    """The number of each column's penalty: without `groups` every column has its own."""
    return data["groups"] if "groups" in data else np.arange(data["x"].shape[1])


def truth(data: Arrays) -> np.ndarray:
    """-λ_g Σ_c w_jc q_jc, j of the group g, by Newton's method with conjugate gradients to the floor of float64.

    Binary regression is that with the predictions (0, u): one column of the softmax formulas.
    """
    columns = classes(data)
    x, vx = (data[name].astype(float) for name in ("x", "vx"))
    shape = (x.shape[1], columns)

    def means(rows: np.ndarray, w: np.ndarray) -> np.ndarray:
        u = rows @ w
        return softmax(np.concatenate([np.zeros_like(u), u], axis=1), axis=1)[:, 1:] if columns == 1 else softmax(u, 1)

    def errors(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return p - (labels[:, None] if columns == 1 else np.eye(columns)[labels])

    def solve(p: np.ndarray, rhs: np.ndarray, accuracy: float) -> np.ndarray:
        def product(v: np.ndarray) -> np.ndarray:
            v = v.reshape(shape)
            t = x @ v
            curved = p * t - p * np.sum(p * t, axis=1, keepdims=True)
            return (x.T @ curved / len(x) + STRENGTH * v).ravel()

        size = rhs.size
        # SciPy's `__new__` takes a `matvec`; the type checker reads `__init__`, which does not.
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
        return cg(operator, rhs.ravel(), rtol=accuracy, maxiter=20 * size)[0].reshape(shape)

    def gradient(p: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x.T @ errors(p, data["y"]) / len(x) + STRENGTH * w

    w = np.zeros(shape)
    for _ in range(100):
        p = means(x, w)
        slope = gradient(p, w)
        step, t = solve(p, slope, 1e-5), 1.0
        while np.linalg.norm(gradient(means(x, w - t * step), w - t * step)) > np.linalg.norm(slope) and t > 1e-3:
            t /= 2
        w = w - t * step
        if np.linalg.norm(step) < 1e-13 * np.linalg.norm(w):
            break
    q = solve(means(x, w), vx.T @ errors(means(vx, w), data["vy"]) / len(vx), 1e-13)
    return -STRENGTH * np.bincount(groups(data), np.sum(w * q, axis=1))


def error(found: Arrays, expected: np.ndarray) -> float:
    return distance(found["grad"], expected)


def methods(dtype: str, target: float, weights: int) -> tuple[Method, ...]:
    def method(name: str, function: str, package: str = "hyprax", **settings: object) -> Method:
        where = f"benchmarks.harness.implicit_methods:{function}"
        x64 = dtype == "float64" or function == "certified"
        return Method(name, where, package=package, settings=settings, x64=x64, tuned=True)

    found = [
        method("hyprax, no certificate", "uncertified"),
        method("jaxopt L-BFGS + CG", "jaxopt_lbfgs", "jaxopt"),
        method("optimistix L-BFGS + CG", "optimistix_minimiser", "optimistix", minimiser="LBFGS"),
    ]
    if weights <= DENSE:
        found.append(method("optimistix BFGS + CG", "optimistix_minimiser", "optimistix", minimiser="BFGS"))
    if dtype == "float64" and target < 1e-3:
        found.insert(1, method("hyprax, certified", "certified", relative=target))
    return tuple(found)


def cells(size: str) -> Iterator[Cell]:
    """`size` is "quick", "usual" or "full"."""
    names = PROBLEMS[:1] if size == "quick" else PROBLEMS
    for name in names:
        for dtype in ("float64",) if size == "quick" else ("float64", "float32"):
            few = size == "quick" or (size == "usual" and dtype == "float32")  # which reaches 1e-6 hardly anywhere
            for target in (1e-3,) if few else (1e-3, 1e-6):
                yield Cell(
                    section="implicit",
                    problem=f"{name}, {dtype}, to {target:.0e}",
                    arrays=partial(arrays, name, dtype),
                    truth=truth,
                    methods=methods(dtype, target, 0 if name != "MNIST softmax" else 7840),
                    accept=target,
                    error=error,
                    error_name="relative error of the hypergradient",
                    ladder=LADDER,
                    rounds=3 if size == "quick" else 300,
                    seconds={"quick": 0.5, "usual": 1.5, "full": 30.0}[size],
                )
