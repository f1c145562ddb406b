"""Memory of a hypergradient through training, beside what each way has to keep: python -m benchmarks.memory [--quick]

Digits, a network 64-H-10 with momentum in float32: T = 100 to 100,000 steps at H = 64 (4,810 weights), and H = 128 to
13,333 (9,610 to 1,000,000 weights) at T = 100. Every point has a process of its own, which runs once to compile and
then three times; its memory is the most that it grew by in one of the three. Floors are counted, not measured: all
states (weights and velocity, 8 bytes a weight and step) for `StoreAll`, 2 sqrt(T) of them for checkpoints, and for
`Reversible` one state and the bits that no exact reversal can do without (`stats.theory_bits`).

Writes a table between the marks of docs/devices.md and docs/pictures/memory.svg; with --quick only prints.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "devices.md", ROOT / "docs" / "pictures" / "memory.svg"
MARKS = "<!-- memory -->", "<!-- end of memory -->"
STEPS, WIDTHS = (100, 1_000, 10_000, 100_000), (128, 1_333, 13_333)
STATE = 8
"""Bytes of a weight and its velocity."""
STORED = 10_000
"""The most steps of which all states are stored."""
METHODS = ("hyprax Reversible", "hyprax Checkpointed", "hyprax StoreAll", "jax.checkpoint", "jax.grad")


def alone(method: str, steps: int, width: int) -> dict[str, float]:
    """Bytes that this process grows by at most in an evaluation, weights, and the bits that reversal has to keep."""
    import jax

    from benchmarks import peak_memory, unrolled
    from benchmarks.harness.unroll_methods import scanned

    task, theory = unrolled.load(f"digits {steps} {width}"), math.nan
    if method.startswith("hyprax"):
        import hyprax as hx

        objective = task.objective(getattr(hx.unroll, method.split()[1])())
        state = objective.init(task.hyper)

        def run() -> Any:
            return objective.value_and_grad(task.hyper, state)[0]

        found = run()
        if found.stats.theory_bits is not None:
            theory = float(found.stats.theory_bits)
    else:
        run = scanned(task.numbers(), segments=method == "jax.checkpoint")
        run()
    grown = []
    for _ in range(3):
        before = peak_memory.reset()
        jax.block_until_ready(run())
        grown.append(peak_memory.peak() - before)
    return {"bytes": max(grown), "weights": sum(w.size for w in task.weights), "theory": theory}


def measured(method: str, steps: int, width: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--point", method, str(steps), str(width)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{method}, T = {steps:,}, H = {width:,}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def floor(method: str, steps: int, found: dict[str, float]) -> float:
    """Bytes that have to be kept."""
    weights = found["weights"]
    if "Reversible" in method:
        return weights * (STATE + found["theory"] * steps / 8)
    states = steps if method in ("hyprax StoreAll", "jax.grad") else 2 * math.sqrt(steps)
    return STATE * weights * states


def table(found: dict[tuple[str, int, int], dict[str, float]]) -> str:
    points = list(dict.fromkeys((steps, width) for _, steps, width in found))
    weights = {(steps, width): int(row["weights"]) for (_, steps, width), row in found.items()}
    lines = ["| T | weights | " + " | ".join(METHODS) + " |", "| ---: " * (2 + len(METHODS)) + "|"]
    for steps, width in points:
        cells = [f"{steps:,}", f"{weights[steps, width]:,}"]
        for method in METHODS:
            row = found.get((method, steps, width))
            cells.append("" if row is None else f"{row['bytes'] / 1e6:.1f} ({floor(method, steps, row) / 1e6:.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: dict[tuple[str, int, int], dict[str, float]]) -> None:
    from experiments._common import pyplot

    plt = pyplot()
    plt.rcParams["svg.hashsalt"], plt.rcParams["svg.fonttype"] = "hyprax", "none"
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained", sharey=True)
    for each, by_steps in zip(axes, (True, False), strict=True):
        for number, method in enumerate(METHODS):
            rows = [
                (steps if by_steps else row["weights"], row["bytes"], floor(method, steps, row))
                for (name, steps, width), row in found.items()
                if name == method and (width == 64 if by_steps else steps == STEPS[0])
            ]
            x, bytes_, floors = zip(*sorted(rows), strict=True)
            each.plot(x, [b / 1e6 for b in bytes_], "o-", ms=3, color=f"C{number}", label=method)
            each.plot(x, [b / 1e6 for b in floors], "--", lw=0.8, color=f"C{number}")
        each.set(xscale="log", yscale="log", xlabel="steps T, 4,810 weights" if by_steps else "weights, T = 100")
    axes[0].set_ylabel("MB; dashed: what has to be kept")
    axes[0].legend(fontsize=7)
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first point alone")
    parser.add_argument("--point", nargs=3, metavar=("METHOD", "T", "H"), help="this one, in this process; prints JSON")
    asked = parser.parse_args()
    if asked.point:
        method, steps, width = asked.point
        print(json.dumps(alone(method, int(steps), int(width))))
        return
    points = [(steps, 64) for steps in STEPS] + [(STEPS[0], width) for width in WIDTHS]
    found = {
        (method, steps, width): measured(method, steps, width)
        for steps, width in (points[:1] if asked.quick else points)
        for method in METHODS
        if steps <= STORED or method not in ("hyprax StoreAll", "jax.grad")
    }
    text = table(found)
    print(text)
    if not asked.quick:
        draw(found)
        before, rest = PAGE.read_text().split(MARKS[0])
        PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    main()
