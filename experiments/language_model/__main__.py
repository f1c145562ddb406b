"""A learning rate for every step of a language model: `python -m experiments.language_model [--size NAME] [--quick]`.

A causal transformer over bytes, trained by AdamW; exact hypergradients, by reversal, of its T learning rates, its
weight decay, β1 and scale of initial weights, for the loss on text that was held out. The text is the source of
Python's standard library, which is wherever this runs. Sizes (layers x width): `small` 2 x 64, for a CPU; `10M` 6 x 384
and `100M` 14 x 768, for one card.

Writes what an evaluation takes and what came back to RESULTS.md (RESULTS_NAME.md for a card's sizes) beside this file;
with --quick into out/experiments. With --meta N the hyperparameters are tuned by N steps of Adam.
"""

import argparse
import dataclasses
import os
import sysconfig
import textwrap
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import machine, results_folder

import hyprax as hx
from hyprax._stats import scalars
from hyprax.search import Optax

HERE = results_folder(__file__)
QUICK_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    width: int
    heads: int
    context: int
    batch: int
    steps: int

    def weights(self) -> int:
        """How many numbers are trained."""
        shapes = jax.eval_shape(lambda key: init(self, 1.0, key), jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    def tokens(self, steps: int) -> int:
        """The bytes of text that so many steps predict."""
        return steps * self.batch * self.context


SIZES = {
    "small": Size(2, 64, 4, 64, 8, 1000),
    "10M": Size(6, 384, 6, 256, 32, 1000),
    "100M": Size(14, 768, 12, 512, 16, 1000),
}


def text(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the standard library in the order of its files: for training, and the last tenth, held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    data = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    rows = np.frombuffer(data[: len(data) // (length + 1) * (length + 1)], np.uint8).reshape(-1, length + 1)
    cut = len(rows) * 9 // 10
    return rows[:cut], rows[cut:]


def init(size: Size, scale: Any, key: Any) -> Any:
    d, n = size.width, size.layers
    keys = jax.random.split(key, 7)

    def normal(key: Any, *shape: int) -> Any:
        return scale * jax.random.normal(key, shape, jnp.float32) / np.float32(np.sqrt(shape[-2]))

    return {
        "bytes": 0.02 * jax.random.normal(keys[0], (256, d), jnp.float32),
        "places": 0.02 * jax.random.normal(keys[1], (size.context, d), jnp.float32),
        "blocks": {
            "mix": normal(keys[2], n, d, 3 * d),
            "out": normal(keys[3], n, d, d),
            "up": normal(keys[4], n, d, 4 * d),
            "down": normal(keys[5], n, 4 * d, d),
            "gain": jnp.ones((n, 2, d), jnp.float32),
        },
        "head": normal(keys[6], d, 256),
    }


def normalised(x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + np.float32(1e-6))


def block(heads: int, params: Any, x: Any) -> Any:
    batch, length, d = x.shape
    q, k, v = jnp.split(normalised(x) * params["gain"][0][None, None] @ params["mix"], 3, axis=-1)
    q, k, v = (a.reshape(batch, length, heads, d // heads) for a in (q, k, v))
    scores = jnp.einsum("blhc,bmhc->bhlm", q, k) / np.float32(np.sqrt(d // heads))
    past = jnp.tril(jnp.ones((length, length), bool))[None, None]
    weights = jax.nn.softmax(jnp.where(past, scores, np.float32(-1e9)), axis=-1)
    x = x + jnp.einsum("bhlm,bmhc->blhc", weights, v).reshape(batch, length, d) @ params["out"]
    return x + jax.nn.gelu(normalised(x) * params["gain"][1][None, None] @ params["up"]) @ params["down"]


def mean_loss(size: Size, params: Any, rows: Any) -> Any:
    """Nats a byte."""
    rows = rows.astype(jnp.int32)
    x = params["bytes"][rows[:, :-1]] + params["places"][None]
    x = hx.unroll.scan_blocks(lambda p, x: block(size.heads, p, x), params["blocks"], x)
    logits = normalised(x) @ params["head"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]))


def problem(size: Size, steps: int, mode: hx.unroll.AbstractMode) -> tuple[hx.UnrolledObjective, Any]:
    train, held_out = text(size.context)

    def optimizer(hyper: Any) -> hx.unroll.AbstractOptimizer:
        return hx.unroll.AdamW(
            hx.unroll.Schedule(hyper["rates"]),
            hyper["beta1"],
            jnp.asarray(0.99, jnp.float32),
            weight_decay=hyper["weight_decay"],
        )

    training = hx.Training(
        lambda params, hyper, batch: mean_loss(size, params, batch),
        lambda hyper, key: init(size, hyper["scale"], key),
        optimizer,
        hx.Minibatches(jnp.asarray(train), size.batch, key=jax.random.key(0)),
        steps,
    )
    hyper = {
        "rates": hx.Positive(np.full(steps, 1e-3 * np.sqrt(64 / size.width), np.float32)),
        "beta1": hx.Interval(np.float32(0.9), 0.5, 0.99),
        "weight_decay": hx.Positive(np.float32(0.1)),
        "scale": hx.Positive(np.float32(0.5)),
    }
    objective = hx.UnrolledObjective(
        training,
        lambda params, hyper, rows: mean_loss(size, params, rows),
        held_out[: 4 * size.batch],
        key=jax.random.key(1),
        mode=mode,
    )
    return objective, hyper


def planned(name: str, theory_bits: float) -> str:
    """What a size that was not run would do, by the bits a weight and step of the run that was."""
    size = SIZES[name]
    kept = size.weights() * size.steps * theory_bits / 8e9
    return (
        f"`--size {name}`: {size.weights():,} weights, T = {size.steps:,}, {size.tokens(size.steps):,} bytes of text; "
        f"about {kept:.2g} GB of buffers, where all states would take {12 * size.weights() * size.steps / 1e12:.2g} TB."
    )


def report(asked: argparse.Namespace, answer: hx.Hypergradient, seconds: float, steps: int, tuned: Any) -> list[str]:
    """RESULTS.md, line by line."""
    size, device = SIZES[asked.size], jax.devices()[0]
    options = " --quick" * asked.quick + f" --size {asked.size}" * (asked.size != "small")
    options += f" --steps {asked.steps}" * (asked.steps is not None) + f" --meta {asked.meta}" * (asked.meta > 0)
    stats = {name: float(value) for name, value in scalars(answer.stats).items()}
    exact = isinstance(answer.certificate, hx.unroll.ReversalCertificate)
    rows = {
        "weights": f"{size.weights():,} ({size.layers} layers of width {size.width})",
        "steps, T": f"{steps:,}",
        "bytes of text predicted": f"{size.tokens(steps):,} ({size.batch} x {size.context} a step)",
        "hyperparameters": f"{steps + 3:,}",
        "exact": f"{'yes' if exact else 'no'}, attempt {int(stats['attempt'])}",
        "bits a weight and step, beside theory": f"{stats['bits_per_parameter_step']:.4f} / {stats['theory_bits']:.4f}",
        "buffers put away": f"{stats['stored_bytes'] / 1e6:.1f} MB",
        "all states would take": f"{12 * size.weights() * steps / 1e6:,.0f} MB",
        "the adjoint grows": f"{stats['amplification']:.3g}-fold, {stats['growth']:.4f} a step",
        "ends as": answer.message.split(": ")[0] if answer.message else "successful",
        "F, nats a byte": f"{float(answer.value):.4f}",
        "dF/d log of all rates": f"{sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(answer.grad['rates'])):.4f}",
        "seconds, with compilation": f"{seconds:.0f}",
    }
    memory = device.memory_stats()
    if memory:
        rows["peak of the device's memory"] = f"{memory['peak_bytes_in_use'] / 1e9:.2f} GB"
    if tuned is not None:
        rows["F by step of tuning"] = " ".join(f"{row['value']:.4f}" for row in tuned.history)
    lines = [
        "# A language model, undone step by step",
        "",
        f"    python -m experiments.language_model{options}",
        "",
        textwrap.fill(
            f"Measured on a {machine()}, load average {os.getloadavg()[0]:.0f}, {device.device_kind}, jax "
            f"{jax.__version__}. A causal transformer over bytes, trained by AdamW on the source of Python's standard "
            "library; one hypergradient of the loss on text that was held out, with respect to a learning rate for "
            "every step, weight decay, β1 and the scale of the initial weights.",
            105,
        ),
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
    ]
    if asked.size == "small":
        rest = [f"- {planned(name, stats['theory_bits'])}" for name in SIZES if name != "small"]
        lines += [
            "Not run here, where there is no card (on one, set `XLA_FLAGS=--xla_gpu_deterministic_ops=true`); by the",
            "bits above they would be:",
            "",
            *(textwrap.fill(line, 105, subsequent_indent="  ") for line in rest),
            "",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps; writes into out/experiments")
    parser.add_argument("--steps", type=int, help="T; default 1,000")
    parser.add_argument("--meta", type=int, default=0, help="steps of tuning")
    parser.add_argument("--folder", help="where to save the evaluation when it is interrupted, and every ten minutes")
    asked = parser.parse_args()
    size = SIZES[asked.size]
    steps = asked.steps or (QUICK_STEPS if asked.quick else size.steps)
    objective, hyper = problem(size, steps, hx.unroll.Reversible(long=hx.unroll.LongRun(asked.folder)))
    began = time.perf_counter()
    answer = jax.block_until_ready(hx.hypergradient(objective, hyper, throw=False)[0])
    seconds = time.perf_counter() - began
    tuned = hx.tune(objective, hyper, steps=asked.meta, search=Optax(optax.adam(0.05))) if asked.meta else None
    text = "\n".join(report(asked, answer, seconds, steps, tuned))
    (HERE / ("RESULTS.md" if asked.size == "small" else f"RESULTS_{asked.size}.md")).write_text(text)
    print(answer.message, text, sep="\n")


if __name__ == "__main__":
    main()
