"""Exact hypergradients through up to 1,000,000 steps: `python -m experiments.long_run [--quick] [--steps T ...]`.

The digits network of `benchmarks.unrolled` (64-64-10, batches of 100, momentum .9, float32), a learning rate for every
step and the logarithm of a penalty for every array of weights. `Reversible` keeps log2(1/.9) bits a weight and step;
`Checkpointed`, run beside it up to T = 100,000 (`--compare-up-to`), keeps 2 sqrt(T) states; `StoreAll` would keep T.

Writes RESULTS.md beside this file; with --quick into out/experiments.
"""

import argparse
import os
import textwrap
import time
from typing import Any

from benchmarks.unrolled import load  # first: it pins the threads

# isort: split
import jax
import numpy as np
from benchmarks import peak_memory
from experiments._common import machine, results_folder

import hyprax as hx
from hyprax._stats import scalars

HERE = results_folder(__file__)


def measure(mode: hx.unroll.AbstractMode, steps: int) -> tuple[hx.Hypergradient, float, int]:
    """The answer, its seconds with compilation, and how much the peak of the process's memory grew."""
    task = load(f"digits {steps}")
    objective = task.objective(mode)
    before, began = peak_memory.reset(), time.perf_counter()
    answer = jax.block_until_ready(hx.hypergradient(objective, task.hyper)[0])
    return answer, time.perf_counter() - began, peak_memory.peak() - before


def distance(a: Any, b: Any) -> float:
    """‖a - b‖/‖b‖."""
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


def row(steps: int, compare: bool) -> str:
    """One line of the table; `compare`: with `Checkpointed` too."""
    long = hx.unroll.LongRun()
    exact, seconds, peak = measure(hx.unroll.Reversible(long=long), steps)
    other_seconds = distances = None
    if compare:
        other, other_seconds, _ = measure(hx.unroll.Checkpointed(long=long), steps)
        distances = [distance(exact.grad[name], other.grad[name]) for name in ("rates", "penalties")]
    assert isinstance(exact.certificate, hx.unroll.ReversalCertificate)
    stats = {name: float(value) for name, value in scalars(exact.stats).items()}
    weights = 4810
    theory = stats["theory_bits"] * weights * steps / 8e6
    cells = (
        f"{steps:,}",
        "yes" if exact.certificate.exact else "no",
        f"{stats['bits_per_parameter_step']:.4f} / {stats['theory_bits']:.4f}",
        f"{stats['stored_bytes'] / 1e6:.2f} / {theory:.2f}",
        f"{peak / 1e6:.0f}",
        f"{2 * 4 * weights * steps / 1e6:,.0f}",
        f"{seconds:.0f} / {'not run' if other_seconds is None else f'{other_seconds:.0f}'}",
        *(["", ""] if distances is None else [f"{value:.1e}" for value in distances]),
        f"{stats['growth']:.6f}",
        f"{float(exact.value):.4f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two short runs; writes into out/experiments")
    parser.add_argument("--steps", type=int, nargs="+", default=[100_000, 1_000_000], help="numbers of steps")
    parser.add_argument("--compare-up-to", type=int, default=100_000, help="the longest run made by Checkpointed too")
    asked = parser.parse_args()
    counts = [300, 1000] if asked.quick else asked.steps
    rows = []
    for steps in counts:
        rows.append(row(steps, steps <= asked.compare_up_to))
        print(rows[-1], flush=True)
    options = " --quick" if asked.quick else f" --steps {' '.join(map(str, counts))}"
    if not asked.quick and asked.compare_up_to != parser.get_default("compare_up_to"):
        options += f" --compare-up-to {asked.compare_up_to}"
    lines = [
        "# Long training runs, undone bit for bit",
        "",
        f"    python -m experiments.long_run{options}",
        "",
        textwrap.fill(
            f"Measured on a {machine()}, on one thread, load average {os.getloadavg()[0]:.0f} (so the seconds are "
            "upper bounds). 4,810 weights, batches of 100, momentum .9, float32; T learning rates and 4 "
            "penalties. `exact`: w_0, v_0 and all buffers came back as the integers that they were. Bits are "
            "those kept a weight and step, beside log2(1/.9); `buffers` what was put away, beside T 4,810 "
            "log2(1/.9) bits (what is short of a word of 32 bits is not put away); `peak` the growth of the "
            "process's memory, compilers included; `store-all` what all states would take. Seconds, compilation "
            "included, are of `Reversible` and of `Checkpointed`; the two distances are between their "
            f"hypergradients, of learning rates and of penalties. Above T = {asked.compare_up_to:,} `Checkpointed` is "
            "not run, to save time.",
            105,
        ),
        "",
        "| T | exact | bits / theory | buffers / theory, MB | peak, MB | store-all, MB | seconds | rates | penalties "
        "| growth a step | F |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
    ]
    (HERE / "RESULTS.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
