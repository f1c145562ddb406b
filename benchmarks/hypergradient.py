"""Milliseconds a hypergradient of one relative error, beside jaxopt and optimistix: python -m benchmarks.hypergradient

Per-feature l2 penalties (log-strengths tuned, all at 1e-2) from a cold start at w = 0, on one thread, all in one
process: binary logistic regression on breast cancer and digits (standardised, a third of the rows for
validation) and on ijcnn1 (its own validation rows), and softmax regression on 1,000 + 500 MNIST digits (pixels in
[0, 1]). Every method gets the loosest tolerance of a ladder of decades at which its true relative error (against
Newton's method to the rounding floor, in NumPy) is at most `--target`, 1e-6 where nothing is said. `--dtype float32`:
all methods are given their data in float32. Times are those of the processor, medians over interleaved rounds;
compilation is apart. Name problems to run those alone:

    python -m benchmarks.hypergradient "breast cancer" digits --target 1e-3 --dtype float32
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
for _variable in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # NPROC: the pool of XLA
    os.environ[_variable] = "1"

import argparse
import dataclasses
import gzip
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from experiments._common import data_file, machine
from jaxtyping import Array
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import softmax
from sklearn.datasets import load_breast_cancer, load_digits

import hyprax as hx

jax.config.update("jax_enable_x64", "float32" not in sys.argv)  # optimistix's L-BFGS mixes the two dtypes under it

LADDER = tuple(10.0**-k for k in range(2, 14))
ROUNDS = 300
SECONDS = 90.0  # of timing a problem, at most


@dataclasses.dataclass
class Problem:
    """`outputs` is 1 for binary logistic regression, and the number of classes for softmax regression."""

    name: str
    train: tuple[Array, Array]
    validation: tuple[Array, Array]
    outputs: int = 1

    @property
    def start(self) -> Array:
        return jnp.full(self.train[0].shape[1], np.log(1e-2), self.train[0].dtype)

    @property
    def zero(self) -> Array:
        d = self.train[0].shape[1]
        return jnp.zeros(d if self.outputs == 1 else (d, self.outputs), self.train[0].dtype)

    def _fit(self, w: Array, data: tuple[Array, Array]) -> Array:
        x, y = data
        u = x @ w
        if self.outputs == 1:
            return jnp.mean(jax.nn.softplus(u) - y * u)
        picked = jnp.take_along_axis(u, y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(u, axis=1) - picked)

    def inner(self, w: Array, log_strengths: Array) -> Array:
        strengths = jnp.exp(log_strengths)
        strengths = strengths if self.outputs == 1 else strengths[:, None]
        return self._fit(w, self.train) + 0.5 * jnp.sum(strengths * w**2)

    def outer(self, w: Array) -> Array:
        return self._fit(w, self.validation)

    def family(self) -> hx.families.Softmax | hx.families.Logistic:
        if self.outputs == 1:
            return hx.families.Logistic(*self.train, penalty=lambda hyper: hyper)
        return hx.families.Softmax(*self.train, penalty=lambda hyper: hyper, classes=self.outputs)

    def truth(self) -> np.ndarray:
        """-λ_j Σ_c w_jc q_jc by Newton's method with conjugate gradients to the rounding floor, in NumPy and SciPy.

        Binary regression is that with the predictions (0, u): one column of the softmax formulas.
        """
        strength, columns = np.exp(float(self.start[0])), self.outputs
        (x, y), (xv, yv) = (tuple(map(np.asarray, data)) for data in (self.train, self.validation))
        x, xv = (inputs.astype(np.float64) for inputs in (x, xv))
        shape = (x.shape[1], columns)

        def means(data: np.ndarray, w: np.ndarray) -> np.ndarray:
            u = data @ w
            return (
                softmax(np.concatenate([np.zeros_like(u), u], axis=1), axis=1)[:, 1:] if columns == 1 else softmax(u, 1)
            )

        def errors(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
            return p - (labels[:, None] if columns == 1 else np.eye(columns)[labels])

        def solve(p: np.ndarray, rhs: np.ndarray, accuracy: float) -> np.ndarray:
            def product(v: np.ndarray) -> np.ndarray:
                v = v.reshape(shape)
                t = x @ v
                curved = p * t - p * np.sum(p * t, axis=1, keepdims=True)
                return (x.T @ curved / len(x) + strength * v).ravel()

            size = rhs.size
            # SciPy's `__new__` takes a `matvec`; the type checker reads `__init__`, which does not.
            operator = LinearOperator((size, size), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
            return cg(operator, rhs.ravel(), rtol=accuracy, maxiter=20 * size)[0].reshape(shape)

        def gradient(p: np.ndarray, w: np.ndarray) -> np.ndarray:
            return x.T @ errors(p, y) / len(x) + strength * w

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
        q = solve(means(x, w), xv.T @ errors(means(xv, w), yv) / len(xv), 1e-13)
        return -strength * np.sum(w * q, axis=1)


def load(name: str, dtype: str) -> Problem:
    if name == "MNIST softmax":
        pixels, labels = (
            np.frombuffer(
                gzip.decompress(data_file(f"mnist/train-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=skip
            )
            for kind, skip in (("images-idx3", 16), ("labels-idx1", 8))
        )
        x = jnp.asarray((pixels.reshape(-1, 784)[:1500] / 255.0).astype(dtype))
        y = jnp.asarray(labels[:1500].astype(np.int32))
        return Problem(name, (x[:1000], y[:1000]), (x[1000:], y[1000:]), 10)
    order = None
    if name == "ijcnn1":
        with np.load(data_file("libsvm/ijcnn1.npz")) as archive:
            x, y = archive["X"].astype(float), archive["y"] > 0
        cut = 35_000
    else:
        x, y = load_breast_cancer(return_X_y=True) if name == "breast cancer" else load_digits(return_X_y=True)
        y = y if name == "breast cancer" else y >= 5
        order = np.random.default_rng(0).permutation(len(x))
        cut = round(0.67 * len(x))
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    x, y = (jnp.asarray(a if order is None else a[order], dtype) for a in (x, y))
    return Problem(name, (x[:cut], y[:cut]), (x[cut:], y[cut:]))


def unfolded(start: Any) -> Any:
    """The start, hidden from the compiler, which would work out the first gradient while it compiles."""
    return jax.lax.optimization_barrier(start)


Method = Callable[[Problem, float], Callable[[Array], Any]]


def jaxopt_lbfgs(problem: Problem, tolerance: float) -> Callable[[Array], Any]:
    import jaxopt
    from jaxopt.linear_solve import solve_cg

    def solve(matvec: Any, b: Any, **_: Any) -> Any:
        return solve_cg(matvec, b, tol=tolerance)

    solver = jaxopt.LBFGS(problem.inner, tol=tolerance, maxiter=2000, implicit_diff_solve=solve)

    def value(log_strengths: Array) -> Array:
        return problem.outer(solver.run(unfolded(problem.zero), log_strengths).params)

    return jax.jit(jax.value_and_grad(value))


def optimistix_with(minimiser: Any) -> Method:
    def method(problem: Problem, tolerance: float) -> Callable[[Array], Any]:
        adjoint = optx.ImplicitAdjoint(lx.CG(rtol=tolerance, atol=tolerance))
        tags = frozenset([lx.positive_semidefinite_tag])
        solver = minimiser(rtol=tolerance, atol=tolerance)

        def value(log_strengths: Array) -> Array:
            solution = optx.minimise(
                problem.inner,
                solver,
                unfolded(problem.zero),
                log_strengths,
                max_steps=2000,
                throw=False,
                adjoint=adjoint,
                tags=tags,
            )
            return problem.outer(solution.value)

        return jax.jit(jax.value_and_grad(value))

    return method


def hyprax_with(certificate: hx.implicit.AbstractCertifier) -> Method:
    def method(problem: Problem, tolerance: float) -> Callable[[Array], Any]:
        family = problem.family()
        optimum = hx.Optimum(family, solver=hx.implicit.Newton(tolerance=tolerance))
        objective = hx.ImplicitObjective(
            optimum,
            family.mean_loss,
            problem.validation,
            adjoint=hx.implicit.CG(tolerance=tolerance),
            certifier=certificate,
        )
        state = objective.init(None)

        @jax.jit
        def run(log_strengths: Array) -> Any:
            strengths = jnp.exp(log_strengths)
            hyper = hx.Positive(strengths if problem.outputs == 1 else strengths[:, None])
            answer, _ = objective.value_and_grad(hyper, unfolded(state))
            return answer.value, answer.grad.raw.ravel(), answer.certificate.bound, answer.stats.products

        return run

    return method


PROBLEMS = ("breast cancer", "digits", "ijcnn1", "MNIST softmax")
DENSE = "optimistix BFGS + CG"
"""For at most 500 weights: above, its matrix does not fit in the caches."""


def methods(target: float) -> dict[str, Method]:
    """By name."""
    return {
        "jaxopt L-BFGS + CG": jaxopt_lbfgs,
        "optimistix L-BFGS + CG": optimistix_with(optx.LBFGS),
        DENSE: optimistix_with(optx.BFGS),
        "hyprax, no certificate": hyprax_with(hx.implicit.NoCertifier()),
        "hyprax, Ehrhardt-Roberts bound": hyprax_with(hx.implicit.EhrhardtRoberts()),
        "hyprax, look-ahead bound": hyprax_with(hx.implicit.LookAhead(relative=target)),
    }


def measure(problem: Problem, target: float) -> None:
    """Print the table of a problem."""
    truth = problem.truth()
    size = float(jnp.linalg.norm(truth))
    chosen: dict[str, tuple[Callable[[Array], Any], float, float, float]] = {}
    for name, method in methods(target).items():
        if name == DENSE and problem.zero.size > 500:
            continue
        for tolerance in LADDER:
            run = method(problem, tolerance)
            began = time.perf_counter()
            answer = jax.block_until_ready(run(problem.start))
            compiling = time.perf_counter() - began
            error = float(jnp.linalg.norm(answer[1] - truth)) / size
            if error <= target:
                chosen[name] = (run, tolerance, error, compiling)
                break
        else:
            print(f"{name}: no tolerance of the ladder reaches a relative error of {target:g}")
    times: dict[str, list[float]] = {name: [] for name in chosen}
    began_all = time.perf_counter()
    for count in range(ROUNDS):
        if count >= 3 and time.perf_counter() - began_all > SECONDS:
            break
        for name, (run, *_) in chosen.items():
            began = time.process_time()
            jax.block_until_ready(run(problem.start))
            times[name].append(time.process_time() - began)
    medians = {name: 1e3 * statistics.median(laps) for name, laps in times.items()}
    peer = min(medians[name] for name in medians if not name.startswith("hyprax"))
    n, d = problem.train[0].shape
    rounds = len(next(iter(times.values())))
    print(f"\n{problem.name}: {n} x {d}{'' if problem.outputs == 1 else f' x {problem.outputs}'}, {rounds} rounds")
    print(f"{'':32}{'ms':>8}{'/ peer':>8}{'compile s':>11}{'error':>10}{'bound':>10}{'products':>10}{'tolerance':>11}")
    for name, (run, tolerance, error, compiling) in chosen.items():
        answer = run(problem.start)
        bound = f"{float(answer[2]) / size:10.1e}{int(answer[3]):10}" if len(answer) > 2 else f"{'–':>10}{'–':>10}"
        row = f"{name:32}{medians[name]:8.3f}{medians[name] / peer:8.2f}{compiling:11.2f}{error:10.1e}"
        print(f"{row}{bound}{tolerance:11.0e}")


def main() -> None:
    """All problems asked for."""
    parser = argparse.ArgumentParser(description="Milliseconds a hypergradient of one relative error.")
    parser.add_argument("problems", nargs="*", default=PROBLEMS, help=", ".join(PROBLEMS))
    parser.add_argument("--target", type=float, default=1e-6, help="the relative error, 1e-6 unless given")
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64", help="of the data")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", module="jaxopt")
    print(f"{machine()}, 1 thread; jax {jax.__version__}; medians of the processor's time over interleaved rounds")
    print(
        f"{asked.dtype}, relative error at most {asked.target:g}; error and bound are relative to the norm of the true"
    )
    print("hypergradient; products count gradients too")
    for name in asked.problems:
        measure(load(name, asked.dtype), asked.target)


if __name__ == "__main__":
    main()
