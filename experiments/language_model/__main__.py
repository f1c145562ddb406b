"""A learning rate for every step of a language model: `python -m experiments.language_model [--size NAME]`.

A causal transformer over bytes, trained by AdamW; exact hypergradients, by reversal, of its T learning rates, its
weight decay, β1 and scale of initial weights, for the loss on text that was held out. The text is the source of
Python's standard library, which is wherever this runs. Sizes (layers x width): `small` 2 x 64, for a CPU; `10M` 6 x 384
and `100M` 14 x 768, for one card.

Prints what an evaluation takes and what came back. With --meta N the rates are tuned by N steps of Adam on log-rates.
"""

import argparse
import dataclasses
import os
import sysconfig
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import machine

import hyprax as hx
from hyprax.search import Optax


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    width: int
    heads: int
    context: int
    batch: int
    steps: int


SIZES = {
    "small": Size(2, 64, 4, 64, 8, 100),
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


def problem(size: Size, steps: int, mode: hx.AbstractMode) -> tuple[hx.UnrolledObjective, Any]:
    train, held_out = text(size.context)

    def optimizer(hyper: Any) -> hx.AbstractOptimizer:
        return hx.AdamW(
            hyper["rates"], hyper["beta1"], jnp.asarray(0.99, jnp.float32), weight_decay=hyper["weight_decay"]
        )

    training = hx.Training(
        lambda params, hyper, batch: mean_loss(size, params, batch),
        lambda hyper, key: init(size, hyper["scale"], key),
        optimizer,
        hx.Minibatches(jnp.asarray(train), size.batch, jax.random.key(0)),
        steps,
    )
    hyper = {
        "rates": hx.Positive(np.full(steps, 3e-3 * np.sqrt(64 / size.width), np.float32)),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, help="T; default 100 for small, else 1,000")
    parser.add_argument("--meta", type=int, default=0, help="steps of tuning")
    parser.add_argument("--folder", help="where to save the evaluation when it is interrupted, and every ten minutes")
    asked = parser.parse_args()
    size = SIZES[asked.size]
    steps = asked.steps or size.steps
    objective, hyper = problem(size, steps, hx.Reversible(long=hx.unroll.LongRun(asked.folder)))
    device = jax.devices()[0]
    print(f"{machine()}, load average {os.getloadavg()[0]:.0f}; {device.device_kind}; jax {jax.__version__}")
    began = time.perf_counter()
    answer = hx.hypergradient(objective, hyper, throw=False)
    jax.block_until_ready(answer)
    weights = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda k: init(size, 1.0, k), jax.random.key(0)))
    )
    print(f"{weights:,} weights, T = {steps:,}, batches of {size.batch} x {size.context} bytes")
    seconds = time.perf_counter() - began
    print(f"{seconds:.1f} s with compilation; F = {float(answer.value):.4f} nats a byte; {answer.message}")
    print(f"certificate {answer.certificate}; {float(answer.stats['stored_bytes']) / 1e6:.1f} MB of buffers put away")
    print(f"attempts {int(answer.stats['attempts'])}, amplification {float(answer.stats['amplification']):.3g}")
    memory = device.memory_stats()
    if memory:
        print(f"peak of the device's memory {memory['peak_bytes_in_use'] / 1e9:.2f} GB")
    if asked.meta:
        tuned = hx.tune(objective, hyper, steps=asked.meta, search=Optax(optax.adam(0.05)))
        print("F by step of tuning:", " ".join(f"{row['value']:.4f}" for row in tuned.history))


if __name__ == "__main__":
    main()
