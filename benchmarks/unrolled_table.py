"""Every mode by optimizer, dtype and network beside plain JAX: what `python -m benchmarks.unrolled --table` prints.

Networks on the digits of scikit-learn; tuned are a learning rate, a momentum, a weight decay where the optimizer has
one, and a penalty for every array of weights.

- `error`: ‖h - truth‖/‖truth‖, truth `jax.grad` in float64 through a scan of steps that are written here by hand. All
  numbers are those of float32, so that the truth of both dtypes is the same; with float32 the row of `jax.grad` says
  what the dtype itself costs.
- `time`: in units of the training alone (the same scan, forwards); medians of interleaved rounds, of the processor's
  time on one thread; compilation is apart.
- `floor`: what the gradients and second-order products that a mode needs take alone, in the same unit: a loop that does
  nothing else, measured beside it.
- `memory`: the growth of the peak of the process over one call.

Each optimizer, network and dtype is measured in a process of its own, one a core at a time. Nearly all of the time goes
into compilation, which `JAX_COMPILATION_CACHE_DIR` spares a second run.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import hyprax as hx
from benchmarks import device

MARKS = "<!-- table of benchmarks.unrolled -->", "<!-- end of the table -->"
ROUNDS, SECONDS = 15, 10.0  # of timing a block, at most, once every method ran
QUINTIC = (3.4445, -4.7750, 2.0315)  # of Muon's iteration
ALONE, PLAIN, ROOT = "training alone", "`jax.grad` of a scan", "ten lines of `jax.checkpoint`"


@dataclasses.dataclass(frozen=True)
class Block:
    """One optimizer on one network in one dtype, for T steps."""

    optimizer: str
    sizes: tuple[int, ...]
    dtype: str
    steps: int
    batch: int = 100

    @property
    def net(self) -> str:
        return "-".join(map(str, self.sizes))


SMALL, WIDER, MEDIUM = (64, 32, 10), (64, 64, 10), (64, 128, 128, 10)
BLOCKS = [
    *(Block(name, SMALL, "float64", 100) for name in ("MomentumSGD", "Adam", "AdamW", "Lion", "Muon", "optax.adam")),
    *(Block(name, MEDIUM, "float64", 50) for name in ("MomentumSGD", "Adam")),
    Block("MomentumSGD", WIDER, "float64", 1000),
    Block("Adam", WIDER, "float64", 300),
]
QUICK = [Block("MomentumSGD", (64, 8, 10), "float64", 10, 20)]
LONG, FOR_SHORT = 100, ("`ForwardMode`",)
"""Steps beyond which the forward mode is left out: it grows with every hyperparameter, and only shows that again."""
ALL_MODES = ("MomentumSGD", "Adam")  # of the others, the two that are the most different


class Case:
    """The training of a block twice: as arguments of `hx.Training`, and by hand."""

    def __init__(self, block: Block):
        self.block = block
        rng = np.random.default_rng(0)
        x, y = map(np.asarray, load_digits(return_X_y=True))
        order = rng.permutation(len(x))
        x, y = self._numbers(x[order] / 16), y[order].astype(np.int32)
        self.held_out = x[1200:], y[1200:]
        rows = np.stack([rng.permutation(1200)[: block.batch] for _ in range(block.steps)])
        self.batches = x[rows], y[rows]
        weights = [
            (rng.normal(size=(a, b)) / np.sqrt(a), np.zeros(b))
            for a, b in zip(block.sizes[:-1], block.sizes[1:], strict=True)
        ]
        self.weights = jax.tree.map(self._numbers, weights)
        rate = {"MomentumSGD": 0.05, "Muon": 0.02, "Lion": 0.002}.get(block.optimizer, 0.01)
        hyper = {"rate": rate, "momentum": 0.9, "penalties": np.full(2 * len(weights), np.log(1e-4))}
        if block.optimizer in ("AdamW", "Lion", "Muon"):
            hyper["decay"] = 0.1
        self.hyper = jax.tree.map(self._numbers, hyper)

    def _numbers(self, x: Any) -> np.ndarray:
        return np.asarray(x, np.float32).astype(self.block.dtype)

    def fit(self, params: Any, x: Any, y: Any) -> Any:
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b[None])
        w, b = params[-1]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ w + b[None], y))

    def loss(self, params: Any, hyper: Any, batch: Any) -> Any:
        squares = jnp.stack([jnp.sum(w**2) for w in jax.tree.leaves(params)])
        return self.fit(params, *batch) + jnp.sum(jnp.exp(hyper["penalties"]) * squares)

    def objective(self, mode: hx.unroll.AbstractMode, certifier: Any = None) -> hx.UnrolledObjective:
        def optimizer(hyper: Any) -> hx.unroll.AbstractOptimizer:
            rate, momentum = hyper["rate"], hyper["momentum"]
            match self.block.optimizer:
                case "MomentumSGD":
                    return hx.unroll.MomentumSGD(rate, momentum, form="polyak")
                case "Adam":
                    return hx.unroll.Adam(rate, momentum)
                case "AdamW":
                    return hx.unroll.AdamW(rate, momentum, weight_decay=hyper["decay"])
                case "Lion":
                    return hx.unroll.Lion(rate, momentum, weight_decay=hyper["decay"])
                case "Muon":
                    return hx.unroll.Muon(rate, momentum, hyper["decay"])
            return hx.unroll.OptaxOptimizer(optax.adam(rate, momentum))

        data = jax.tree.map(jnp.asarray, self.batches)
        weights, held_out = jax.tree.map(jnp.asarray, (self.weights, self.held_out))
        training = hx.Training(
            self.loss,
            lambda hyper, key: weights,
            optimizer,
            lambda t: jax.tree.map(lambda leaf: leaf[t], data),
            self.block.steps,
        )
        return hx.UnrolledObjective(
            training,
            lambda params, hyper, data: self.fit(params, *data),
            held_out,
            key=jax.random.key(0),
            mode=mode,
            certifier=certifier,
        )

    def start(self) -> Any:
        """(w, first moment, second moment) before the first step."""
        zeros = jax.tree.map(jnp.zeros_like, self.weights)
        return jax.tree.map(jnp.asarray, self.weights), zeros, zeros

    def step(self, hyper: Any, carry: Any, t: Any, batch: Any) -> Any:
        """One step by hand: nothing of the library."""
        w, m, s = carry
        g = jax.grad(self.loss)(w, hyper, batch)
        rate, beta, each = hyper["rate"], hyper["momentum"], jax.tree.map
        shrunk = 1 - rate * hyper.get("decay", jnp.zeros_like(rate))
        if self.block.optimizer == "MomentumSGD":
            m = each(lambda m, g: beta * m - g, m, g)
            return each(lambda w, m: w + rate * m, w, m), m, s
        if self.block.optimizer == "Lion":
            signs = each(lambda m, g: jnp.sign(beta * m + (1 - beta) * g), m, g)
            return each(lambda w, d: shrunk * w - rate * d, w, signs), each(lambda m, g: 0.99 * m + 0.01 * g, m, g), s
        if self.block.optimizer == "Muon":
            m = each(lambda m, g: beta * m + g, m, g)
            return each(lambda w, m: shrunk * w - rate * orthogonal(m), w, m), m, s
        m = each(lambda m, g: beta * m + (1 - beta) * g, m, g)
        s = each(lambda s, g: 0.999 * s + 0.001 * g * g, s, g)
        first, second = 1 - beta ** (t + 1), 1 - 0.999 ** (t + 1)
        return each(lambda w, m, s: shrunk * w - rate * m / first / (jnp.sqrt(s / second) + 1e-8), w, m, s), m, s

    def by_hand(self, hyper: Any, length: int = 1) -> Any:
        """F(λ) by a scan; by nested ones, of which the inner are made again in the reverse sweep, where length > 1."""
        data, held_out = jax.tree.map(jnp.asarray, (self.batches, self.held_out))
        times = jnp.arange(self.block.steps).astype(data[0].dtype)

        def once(carry: Any, at: Any) -> Any:
            return self.step(hyper, carry, *at), None

        if length == 1:
            carry, _ = jax.lax.scan(once, self.start(), (times, data))
            return self.fit(carry[0], *held_out)

        def segment(carry: Any, at: Any) -> Any:
            return jax.lax.scan(once, carry, at)[0], None

        cut = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), (times, data))
        carry, _ = jax.lax.scan(jax.checkpoint(segment, prevent_cse=False), self.start(), cut)
        return self.fit(carry[0], *held_out)

    def products(self, hyper: Any) -> Any:
        """T gradients with their second-order products, and nothing else."""
        data = jax.tree.map(jnp.asarray, self.batches)

        def once(direction: Any, batch: Any) -> Any:
            field = lambda w, hyper: jax.grad(self.loss)(w, hyper, batch)  # noqa: E731
            g, product = jax.vjp(field, self.start()[0], hyper)
            curved, mixed = product(direction)
            return jax.tree.map(lambda a, b: 0.5 * a + b, curved, g), mixed

        return jax.lax.scan(once, self.start()[0], data)

    @property
    def root(self) -> int:
        """The divisor of T nearest to its root."""
        steps = self.block.steps
        return min((n for n in range(1, steps + 1) if steps % n == 0), key=lambda n: abs(n - steps**0.5))


def orthogonal(m: Any) -> Any:
    """√max(1, outputs/inputs) times Muon's iteration."""
    x = m if m.ndim == 2 else m[None]
    inputs, outputs = x.shape
    a, b, c = QUINTIC
    x = x.T if inputs > outputs else x
    x = x / (jnp.sqrt(jnp.sum(x * x)) + 1e-8)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (max(1.0, outputs / inputs) ** 0.5 * (x.T if inputs > outputs else x)).reshape(m.shape)


def flat(grads: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(grads)])


def modes(block: Block) -> dict[str, hx.unroll.AbstractMode]:
    found: dict[str, hx.unroll.AbstractMode] = {
        "`Reversible`": hx.unroll.Reversible(),
        "`StoreAll`": hx.unroll.StoreAll(),
        "`Checkpointed`": hx.unroll.Checkpointed(),
        "`ForwardMode`": hx.unroll.ForwardMode(),
        f"`Truncated({block.steps // 2})`": hx.unroll.Truncated(block.steps // 2),
    }
    if block.steps > LONG:
        return {name: mode for name, mode in found.items() if name not in FOR_SHORT}
    if block.optimizer in ALL_MODES:
        return found
    taken = ("`StoreAll`", "`ForwardMode`") if "optax" in block.optimizer else ("`Reversible`", "`StoreAll`")
    return {name: found[name] for name in taken}


def floors(block: Block, product: float) -> dict[str, float]:
    """Plain steps, given those that a gradient with its second-order product takes."""
    half = block.steps // 2 / block.steps
    return {
        PLAIN: 1 + product,
        ROOT: 2 + product,
        "`Reversible`": 1 + product,
        "`StoreAll`": 1 + product,
        "`Checkpointed`": 2 + product,
        f"`Truncated({block.steps // 2})`": 1 + half * product,
    }


def measure(block: Block, rounds: int, truth: list[float] | None) -> dict[str, Any]:
    """The truth, that of the block where none is given, and a row for every method.

    64-bit types have to be on where the block is in float64.
    """
    case = Case(block)
    hyper = jax.tree.map(jnp.asarray, case.hyper)
    plain = {ALONE: case.by_hand, "products": case.products, PLAIN: jax.grad(case.by_hand)}
    if block.optimizer in ALL_MODES:
        plain[ROOT] = jax.grad(lambda hyper: case.by_hand(hyper, case.root))
    compiled = {name: jax.jit(fn) for name, fn in plain.items()}
    methods: dict[str, Callable[[], Any]] = {name: lambda fn=fn: fn(hyper) for name, fn in compiled.items()}
    for name, mode in modes(block).items():
        objective = case.objective(mode)
        state = objective.init(hyper)
        methods[name] = lambda objective=objective, state=state: objective.value_and_grad(hyper, state)[0]
    laps: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    answers = {name: jax.block_until_ready(run()) for name, run in methods.items()}
    began = time.perf_counter()
    for count in range(rounds):
        if count >= 3 and time.perf_counter() - began > SECONDS:
            break
        for name, run in methods.items():
            before, started = device.reset(), device.seconds()
            jax.block_until_ready(run())
            laps[name].append((device.seconds() - started, device.grown(before)))
    seconds = {name: statistics.median(lap for lap, _ in found) for name, found in laps.items()}
    least = floors(block, seconds["products"] / seconds[ALONE])
    expected = flat(answers[PLAIN]) if truth is None else np.asarray(truth)
    rows = []
    for name in methods.keys() - {"products"}:
        row: dict[str, Any] = {"name": name, "time": seconds[name] / seconds[ALONE], "floor": least.get(name)}
        row |= {"memory": min(used for _, used in laps[name]), "seconds": seconds[name], "kind": "", "error": None}
        answer = answers[name]
        if name in (PLAIN, ROOT):
            row["error"] = distance(answer, expected)
        elif name != ALONE:
            row |= {"error": distance(answer.grad, expected), "kind": kind(answer.certificate)}
        rows.append(row)
    return {"truth": expected.tolist(), "rows": sorted(rows, key=lambda row: list(methods).index(row["name"]))}


def distance(grads: Any, truth: np.ndarray) -> float:
    return float(np.linalg.norm(flat(grads) - truth) / np.linalg.norm(truth))


def kind(certificate: Any) -> str:
    return certificate.kind + (", undone" if isinstance(certificate, hx.unroll.ReversalCertificate) else "")


def pair(block: Block, rounds: int) -> list[list[dict[str, Any]]]:
    """The rows in float64 and in float32."""
    made = in_a_process(block, rounds, None)
    narrow = in_a_process(dataclasses.replace(block, dtype="float32"), rounds, made["truth"])
    print(f"{block.optimizer}, {block.net}", file=sys.stderr, flush=True)
    return [made["rows"], narrow["rows"]]


def in_a_process(block: Block, rounds: int, truth: list[float] | None) -> dict[str, Any]:
    asked = json.dumps(dataclasses.asdict(block) | {"rounds": rounds, "truth": truth})
    environment = os.environ | {"JAX_ENABLE_X64": str(block.dtype == "float64").lower()}
    command = [sys.executable, "-m", "benchmarks.unrolled_table", asked]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measured(blocks: list[Block], rounds: int) -> dict[Block, list[list[dict[str, Any]]]]:
    """The rows of every block, in float64 and in float32, one process a core; on a card one after the other."""
    with ThreadPoolExecutor(1 if device.on_card() else os.cpu_count()) as pool:
        return dict(zip(blocks, pool.map(lambda block: pair(block, rounds), blocks), strict=True))


def table(found: dict[Block, list[list[dict[str, Any]]]]) -> str:
    """Markdown, one table a network: figures in float64 and, after a stroke, in float32."""
    lines = []
    for net, steps in dict.fromkeys((block.net, block.steps) for block in found):
        blocks = [block for block in found if (block.net, block.steps) == (net, steps)]
        lines += [
            f"\n{net}, T = {steps:,}, batches of {blocks[0].batch}; float64 / float32:\n",
            "| optimizer | | certificate | error | time | floor | memory, MB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for block in blocks:
            for both in zip(*found[block], strict=True):
                name = both[0]["name"]
                ms = f" ({_both(both, 'seconds', '.0f', 1e3)} ms)" if name == ALONE else ""
                cells = [block.optimizer, name, both[0]["kind"], _both(both, "error", ".0e")]
                cells += [_both(both, "time", ".1f") + ms, _both(both, "floor", ".1f")]
                lines.append(f"| {' | '.join([*cells, _both(both, 'memory', '.1f', 1e-6)])} |")
    return "\n".join(lines) + "\n"


def _both(rows: Sequence[dict[str, Any]], name: str, style: str, unit: float = 1.0) -> str:
    return "" if rows[0][name] is None else " / ".join(format(unit * row[name], style) for row in rows)


def write_into(path: Path, text: str) -> None:
    """Put the text between the marks of a page."""
    page = path.read_text()
    before, rest = page.split(MARKS[0])
    path.write_text(before + MARKS[0] + "\n" + text + "\n" + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    rounds, truth = asked.pop("rounds"), asked.pop("truth")
    print(json.dumps(measure(Block(**asked | {"sizes": tuple(asked["sizes"])}), rounds, truth)))
