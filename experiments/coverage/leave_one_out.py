"""How often the enclosures of leave-one-out hold: `python -m experiments.coverage.leave_one_out [--rows N] [--quick]`.

Random problems of every family (squared, logistic, softmax, Poisson, pseudo-Huber), of 40 rows each; strengths
from 1e-6; features correlated, doubled, zero and of different units; one strength, one a feature or a group; example
weights; columns without penalty and offsets; float32 and float64. The truth is one refit in long double for each row
left out (tests/leave_one_out_cases.py, tests/oracles.py). Counted are the bounds of the single losses, of the mean
loss, of the hypergradient and of its entries.

Writes leave_one_out.md beside this file; with --quick into out/experiments.
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from experiments._common import machine, results_folder

import hyprax as hx
import leave_one_out_cases as cases

HERE = results_folder(__file__)


def outcomes(structure: cases.Structure, rows: int, seed: int) -> list[cases.Outcome]:
    """Problems of one structure with so many rows in all."""
    rng = np.random.default_rng([seed, *map(ord, str(structure))])
    found: list[cases.Outcome] = []
    while sum(outcome.rows for outcome in found) < rows:
        case = cases.random_case(rng, structure)
        objective = hx.implicit.LeaveOneOut(hx.Optimum(case.loss))
        found.append(cases.check(case, objective, cases.exact(case)))
    jax.clear_caches()
    return found


def main() -> None:
    """All structures in turn, and the table."""
    parser = argparse.ArgumentParser(description="How often the enclosures of leave-one-out hold.")
    parser.add_argument("--quick", action="store_true", help="one problem of each structure")
    parser.add_argument("--rows", type=int, default=100_000, help="rows left out, in all, at least")
    asked = parser.parse_args()
    structures = cases.structures()
    each = 1 if asked.quick else -(-asked.rows // len(structures))
    start = time.perf_counter()
    parts: dict[tuple[str, str], list[cases.Outcome]] = defaultdict(list)
    for i, structure in enumerate(structures):
        parts[structure.kind, structure.dtype] += (found := outcomes(structure, each, seed=0))
        bad = sum(outcome.violated + outcome.grad_violated for outcome in found)
        print(f"{i + 1}/{len(structures)} {structure}: {len(found)} problems, {bad} violations", flush=True)
    lines = []
    for (kind, dtype), part in sorted(parts.items()):
        width = np.array([outcome.value_bound / abs(outcome.mean) for outcome in part])
        relative = np.array([outcome.grad_bound / outcome.grad_norm for outcome in part])
        lines.append(
            f"| {kind} | {dtype} | {sum(outcome.rows for outcome in part):,} | {sum(o.violated for o in part)} "
            f"| {sum(o.grad_violated for o in part)} | {sum(o.refitted for o in part)} | {sum(o.loose for o in part)} "
            f"| {np.median(width):.1e} / {width.max():.1e} | {np.median(relative):.1e} / {relative.max():.1e} |"
        )
    every = [outcome for part in parts.values() for outcome in part]
    command = "python -m experiments.coverage.leave_one_out" + (" --quick" if asked.quick else f" --rows {asked.rows}")
    text = f"""# Coverage of the enclosures of leave-one-out

    {command}

{machine()}, {time.perf_counter() - start:.0f} s on one thread with other work beside it. {len(every):,} problems,
{sum(outcome.rows for outcome in every):,} rows left out, {len(structures)} combinations of family, structure and dtype.

`refitted`: rows that needed a Newton method of their own. `loose`: rows whose loss is not enclosed to 1 % of the mean.
Widths are bounds over the mean loss, and over the norm of the hypergradient: median / largest.

| family | precision | rows | losses violated | gradients violated | refitted | loose | width: loss | gradient |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}
"""
    (HERE / "leave_one_out.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(1 if any(outcome.violated or outcome.grad_violated for outcome in every) else 0)


if __name__ == "__main__":
    main()
