"""Hypergradients through training runs beside higher, TorchOpt and plain PyTorch: python -m benchmarks.unrolled

In float32, on one thread. Problems:

- digits T: a network 64-64-10, batches of 100, T = 100, 1,000 and 10,000 steps;
- mnist: 784-200-10, batches of 200, T = 200, with momentum and with AdamW;
- cnn: convolutions 5x5 with stride 2 of 8 and of 16 channels and a dense layer, batches of 100, T = 50;
- pooled cnn: convolutions 3x3 with stride 1 of 16 and of 32 channels, each before an average over 2x2, and a dense
  layer, batches of 64, T = 30.

Tuned are a learning rate for every step and the logarithm of a penalty for every array of weights. Every method starts
from the same numbers; `error` is the relative distance of its derivatives with respect to the penalties from those of
`StoreAll`. `/ loop` is the time in units of the training alone (`StoreAll` run forwards, in floating point); memory is
the growth of the process's peak over one call. Times are those of the processor, which other work on the machine
changes less than those of a clock, the least of interleaved rounds; compilation is apart.

With `--device gpu` JAX runs on a card: times are then by the clock, and what memory grew by is not known (nan).

The peers run in a process of their own, whose interpreter must have PyTorch: `--torch PYTHON`; without it they are left
out. Name problems to run those alone: python -m benchmarks.unrolled --torch PYTHON mnist cnn

Every mode by optimizer, dtype and network beside plain JAX (`benchmarks.unrolled_table`), in Markdown, with --write in
its place on a page: python -m benchmarks.unrolled --table [--quick] [--write docs/engines/unroll.md]
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
for _variable in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # NPROC: the pool of XLA
    os.environ[_variable] = "1"

import argparse
import dataclasses
import gzip
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import data_file, machine
from sklearn.datasets import load_digits

import hyprax as hx
from benchmarks import device, unrolled_table

ROUNDS = 5
SECONDS = 60.0  # of timing a problem, at most, once every method ran
MOMENTUM = 0.9
PROBLEMS = ("digits 100", "digits 1000", "digits 10000", "mnist", "cnn", "pooled cnn")
MODES: dict[str, hx.unroll.AbstractMode] = {
    "hyprax Reversible": hx.unroll.Reversible(),
    "hyprax Checkpointed": hx.unroll.Checkpointed(),
    "hyprax StoreAll": hx.unroll.StoreAll(),
}


def dense(params: Any, x: Any) -> Any:
    w1, b1, w2, b2 = params
    return jnp.tanh(x @ w1 + b1[None]) @ w2 + b2[None]


def convolutional(params: Any, x: Any) -> Any:
    w1, w2, w3 = params
    x = jnp.tanh(jax.lax.conv_general_dilated(x.reshape(-1, 1, 28, 28), w1, (2, 2), "VALID"))
    x = jnp.tanh(jax.lax.conv_general_dilated(x, w2, (2, 2), "VALID"))
    return x.reshape(x.shape[0], -1) @ w3


def pooled(params: Any, x: Any) -> Any:
    w1, w2, w3 = params
    x = x.reshape(-1, 1, 28, 28)
    for w in (w1, w2):
        x = jnp.tanh(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME"))
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4
    return x.reshape(x.shape[0], -1) @ w3


@dataclasses.dataclass
class Task:
    """One problem in numbers, for both processes."""

    name: str
    apply: Callable[[Any, Any], Any]
    weights: list[np.ndarray]
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    batch: int
    steps: int
    rate: float

    @property
    def hyper(self) -> dict[str, Any]:
        rates, penalties = (self.steps, self.rate), (len(self.weights), np.log(1e-4))
        return {"rates": jnp.full(*rates, jnp.float32), "penalties": jnp.full(*penalties, jnp.float32)}

    def batches(self, data: Any) -> hx.Minibatches:
        return hx.Minibatches(data, self.batch, key=jax.random.key(1))

    def objective(self, mode: hx.unroll.AbstractMode, adamw: bool = False) -> hx.UnrolledObjective:
        def fit(params: Any, x: Any, y: Any) -> Any:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(self.apply(params, x), y))

        def loss(params: Any, hyper: Any, batch: Any) -> Any:
            strengths = jnp.exp(hyper["penalties"])
            return fit(params, *batch) + sum(strengths[i] * jnp.sum(w**2) for i, w in enumerate(params))

        def optimizer(hyper: Any) -> hx.unroll.AbstractOptimizer:
            rates = hx.unroll.Schedule((0.02 if adamw else 1.0) * hyper["rates"])
            if adamw:
                return hx.unroll.AdamW(rates, weight_decay=jnp.asarray(1e-2, jnp.float32))
            return hx.unroll.MomentumSGD(rates, jnp.asarray(MOMENTUM, jnp.float32), form="polyak")

        train = self.batches(tuple(map(jnp.asarray, self.train)))
        weights = list(map(jnp.asarray, self.weights))
        training = hx.Training(loss, lambda hyper, key: weights, optimizer, train, self.steps)
        return hx.UnrolledObjective(
            training,
            lambda params, hyper, data: fit(params, *data),
            tuple(map(jnp.asarray, self.validation)),
            key=jax.random.key(0),
            mode=mode,
        )

    def numbers(self) -> dict[str, np.ndarray]:
        """Everything as arrays: weights w0, w1, ..., data, hyperparameters, and the rows of the batches."""
        rows = jax.vmap(self.batches(jnp.arange(len(self.train[0]))))(jnp.arange(self.steps))
        found: dict[str, Any] = {f"w{i}": w for i, w in enumerate(self.weights)}
        found |= {name: np.asarray(value) for name, value in self.hyper.items()}
        (x, y), (vx, vy) = self.train, self.validation
        return found | {"x": x, "y": y, "vx": vx, "vy": vy, "rows": np.asarray(rows, np.int64)}

    def save(self, folder: str) -> str:
        """The numbers in one file, for the peers."""
        path = str(Path(folder) / f"{self.name.replace(' ', '_')}.npz")
        np.savez(path, allow_pickle=False, **self.numbers())
        return path


def load(name: str) -> Task:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        inputs = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return (rng.normal(size=shape) / np.sqrt(inputs)).astype(np.float32)

    if name.startswith("digits"):
        x, y = map(np.asarray, load_digits(return_X_y=True))
        order = rng.permutation(len(x))
        x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int64)
        steps, width = (*map(int, name.split()[1:]), 64)[:2]  # "digits T", or "digits T WIDTH"
        weights = [normal(64, width), np.zeros(width, np.float32), normal(width, 10), np.zeros(10, np.float32)]
        return Task(name, dense, weights, (x[:1200], y[:1200]), (x[1200:], y[1200:]), 100, steps, 0.02)
    pixels, labels = (
        np.frombuffer(gzip.decompress(data_file(f"mnist/train-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=skip)
        for kind, skip in (("images-idx3", 16), ("labels-idx1", 8))
    )
    x, y = (pixels.reshape(-1, 784)[:12_000] / 255).astype(np.float32), labels[:12_000].astype(np.int64)
    sets = (x[:10_000], y[:10_000]), (x[10_000:], y[10_000:])
    if name == "mnist":
        weights = [normal(784, 200), np.zeros(200, np.float32), normal(200, 10), np.zeros(10, np.float32)]
        return Task(name, dense, weights, *sets, 200, 200, 0.02)
    if name == "pooled cnn":
        weights = [normal(16, 1, 3, 3), normal(32, 16, 3, 3), normal(1568, 10)]
        return Task(name, pooled, weights, sets[0], (x[10_000:10_500], y[10_000:10_500]), 64, 30, 0.02)
    return Task(name, convolutional, [normal(8, 1, 5, 5), normal(16, 8, 5, 5), normal(256, 10)], *sets, 100, 50, 0.02)


class Peers:
    """The process in which PyTorch runs."""

    def __init__(self, python: str):
        command = [python, "-m", "benchmarks.unrolled_torch"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = self._read()
        self.version, self.methods = answer["torch"], answer["methods"]

    def run(self, method: str, path: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"method": method, "path": path}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("The process of the peers ended: its interpreter needs numpy and torch.")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()


def ours(objective: hx.UnrolledObjective, hyper: Any, alone: bool = False) -> Callable[[], dict[str, Any]]:
    """A method that answers as those of the peers do; `alone` trains forwards without derivatives."""
    state = objective.init(hyper)
    evaluate = objective.value if alone else objective.value_and_grad

    def run() -> dict[str, Any]:
        before = device.reset()
        began = device.seconds()
        answer = jax.block_until_ready(evaluate(hyper, state)[0])
        found = {"seconds": device.seconds() - began, "memory": device.grown(before)}
        return found if alone else found | {"penalties": answer.grad["penalties"], "certificate": answer.certificate}

    return run


def measure(task: Task, peers: Peers | None, folder: str) -> None:
    loop, loop_adamw = "training alone", "training alone, AdamW"
    methods = {loop: ours(task.objective(hx.unroll.StoreAll()), task.hyper, alone=True)}
    methods |= {name: ours(task.objective(mode), task.hyper) for name, mode in MODES.items()}
    if task.name == "mnist":
        methods[loop_adamw] = ours(task.objective(hx.unroll.StoreAll(), adamw=True), task.hyper, alone=True)
        methods |= {
            f"{name}, AdamW": ours(task.objective(mode, adamw=True), task.hyper)
            for name, mode in MODES.items()
            if name != "hyprax Checkpointed"
        }
    if peers is not None:
        path = task.save(folder)
        for name in peers.methods if task.steps <= 1000 else peers.methods[:1]:
            methods[f"torch {name}"] = lambda name=name: peers.run(name, path)
    first = {}
    for name, run in methods.items():
        first[name] = run()
    laps: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    began = time.perf_counter()
    for count in range(ROUNDS):
        if count and time.perf_counter() - began > SECONDS:
            break
        for name, run in methods.items():
            laps[name].append(run())
    rounds = len(laps[loop])
    sizes = sum(w.size for w in task.weights)
    print(f"\n{task.name}: {sizes:,} weights, batches of {task.batch}, T = {task.steps:,}; {rounds} rounds")
    print(f"{'':30}{'ms':>10}{'/ loop':>8}{'MB':>9}{'first call s':>14}{'error':>10}")
    for name, found in laps.items():
        seconds, used = min(lap["seconds"] for lap in found), min(lap["memory"] for lap in found)
        unit = min(lap["seconds"] for lap in laps[loop_adamw if name.endswith("AdamW") else loop])
        row = f"{name:30}{1e3 * seconds:10.1f}{seconds / unit:8.1f}{used / 1e6:9.1f}{first[name]['seconds']:14.1f}"
        if "penalties" in found[0]:
            truth = np.asarray(
                first["hyprax StoreAll, AdamW" if name.endswith("AdamW") else "hyprax StoreAll"]["penalties"]
            )
            error = np.linalg.norm(np.asarray(found[0]["penalties"]) - truth) / np.linalg.norm(truth)
            row += f"{error:10.1e}"
        if "Reversible" in name:
            row += f"  {found[0]['certificate']}"
        print(row, flush=True)


def tabulate(*, quick: bool, page: Path | None) -> None:
    heading = f"{device.kind()} of a {machine()}, 1 thread, load {os.getloadavg()[0]:.0f}; jax {jax.__version__}."
    blocks, rounds = (unrolled_table.QUICK, 3) if quick else (unrolled_table.BLOCKS, unrolled_table.ROUNDS)
    text = f"{heading}\n{unrolled_table.table(unrolled_table.measured(blocks, rounds))}"
    print(text)
    if page is not None:
        unrolled_table.write_into(page, text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("problems", nargs="*", default=PROBLEMS, help=", ".join(PROBLEMS))
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch, and perhaps higher, torchopt")
    parser.add_argument("--table", action="store_true", help="every mode by optimizer, dtype and network instead")
    parser.add_argument("--quick", action="store_true", help="the table at its smallest")
    parser.add_argument("--write", metavar="PAGE", type=Path, help="put the table in its place on this page")
    device.add_argument(parser)
    asked = parser.parse_args()
    device.use(asked.device)
    if asked.table:
        tabulate(quick=asked.quick, page=asked.write)
        return
    peers = Peers(asked.torch) if asked.torch else None
    beside = f"torch {peers.version} ({', '.join(peers.methods)})" if peers else "no peers: give --torch PYTHON"
    print(f"{device.kind()} of a {machine()}, 1 thread, load {os.getloadavg()[0]:.0f}; jax {jax.__version__}; {beside}")
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.problems:
            measure(load(name), peers, folder)
    if peers:
        peers.close()


if __name__ == "__main__":
    main()
