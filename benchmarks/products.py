"""Second-order products of a training step two ways: `python -m benchmarks.products [--device gpu]`.

By reverse over reverse (the transposed derivative of the gradient, what the modes of `hx.unroll` do), and by forward
over reverse (the derivative of the gradient along a direction, as MixFlow-MG, arXiv 2505.00793). Milliseconds of the
processor a product within a loop of 100, medians of interleaved rounds on one thread, and the temporaries of XLA for
one product and for the loop. Tanh networks in float32, one penalty for every array of weights.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import argparse
import itertools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments._common import machine

from benchmarks import device

NETWORKS = (((64, 64, 10), 100), ((64,) * 9 + (10,), 100))
STEPS, ROUNDS = 100, 7


def network(sizes: tuple[int, ...], rows: int) -> tuple[Any, Any]:
    """Weights and the training loss."""
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a), jnp.float32) for a, b in itertools.pairwise(sizes)]
    x = jnp.asarray(rng.normal(size=(rows, sizes[0])), jnp.float32)
    y = jnp.asarray(rng.integers(0, sizes[-1], rows))

    def loss(weights: Any, penalties: Any) -> Any:
        hidden = x
        for w in weights[:-1]:
            hidden = jnp.tanh(hidden @ w)
        outputs = hidden @ weights[-1]
        fit = jnp.mean(jax.nn.logsumexp(outputs, 1) - jnp.take_along_axis(outputs, y[:, None], 1)[:, 0])
        return fit + sum(jnp.exp(p) * jnp.sum(w * w) for p, w in zip(penalties, weights, strict=True))

    return weights, loss


def ways(loss: Any) -> dict[str, Any]:
    """g, H p and the mixed derivative along p, by name."""

    def reverse(weights: Any, penalties: Any, p: Any) -> Any:
        g, pull = jax.vjp(jax.grad(loss), weights, penalties)
        return g, pull(p)

    def forward(weights: Any, penalties: Any, p: Any) -> Any:
        (g, _), along = jax.jvp(lambda w: jax.grad(loss, (0, 1))(w, penalties), (weights,), (p,))
        return g, along

    return {"reverse over reverse": reverse, "forward over reverse": forward}


def scratch(program: jax.stages.Compiled) -> float:
    """kB that a program needs beside its arguments and its answer."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 1e3


def main() -> None:
    """A row for every network and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device.add_argument(parser)
    device.use(parser.parse_args().device)
    print(f"{device.kind()} of a {machine()}, 1 thread; jax {jax.__version__}\n")
    print("| network | | ms a product | kB of one | kB of the loop |\n| --- | --- | ---: | ---: | ---: |")
    for sizes, rows in NETWORKS:
        weights, loss = network(sizes, rows)
        given = weights, tuple(jnp.float32(-8) for _ in weights), jax.tree.map(jnp.ones_like, weights)
        programs, memory, laps = {}, {}, {}
        for name, way in ways(loss).items():

            def loop(weights: Any, penalties: Any, p: Any, way: Any = way) -> Any:
                def body(_: Any, carry: Any) -> Any:
                    g, (curved, mixed) = way(weights, penalties, carry[0])
                    p = jax.tree.map(lambda g, h: 0.5 * g + 0.01 * h, g, curved)
                    return p, jax.tree.map(jnp.add, carry[1], mixed)

                return jax.lax.fori_loop(0, STEPS, body, (p, jax.tree.map(jnp.zeros_like, penalties)))

            one, programs[name] = (jax.jit(fn).lower(*given).compile() for fn in (way, loop))
            memory[name] = [scratch(program) for program in (one, programs[name])]
            laps[name] = []
        for _ in range(ROUNDS):
            for name, program in programs.items():
                began = device.seconds()
                jax.block_until_ready(program(*given))
                laps[name].append(1e3 * (device.seconds() - began) / STEPS)
        for name, found in laps.items():
            cells = f"{statistics.median(found):.3f} | {memory[name][0]:.0f} | {memory[name][1]:.0f}"
            print(f"| {'-'.join(map(str, sizes))} | {name} | {cells} |")


if __name__ == "__main__":
    main()
