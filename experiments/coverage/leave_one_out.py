"""How often the enclosures of leave-one-out hold: `python -m experiments.coverage.leave_one_out [--rows N] [--quick]`.

Random problems of every family (squared, logistic, softmax, Poisson, pseudo-Huber), of 40 rows each; strengths
from 1e-6; features correlated, doubled, zero and of different units; one strength, one a feature or a group; example
weights; columns without penalty and offsets; float32 and float64. The truth is one refit in long double for each row
left out (tests/leave_one_out_cases.py, tests/oracles.py). Counted are the bounds of the single losses, of the mean
loss, of the hypergradient and of its entries.

Parts of ten problems of one structure are kept in out/experiments/coverage.jsonl, and a run goes on from them;
`--stored` only writes down what is there. Writes leave_one_out.md beside this file; with --quick into out/experiments.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from experiments._common import machine, results_folder, rows_of

import hyprax as hx
import leave_one_out_cases as cases

HERE = results_folder(__file__)
SETTINGS = {"leave one out": 1}
PROBLEMS = 10
"""So many problems of 40 rows are one part."""
STRUCTURES = {str(structure): structure for structure in cases.structures()}


def outcomes(name: str, part: int) -> dict:
    """The problems of one part of a structure."""
    structure = STRUCTURES[name]
    began = time.process_time()
    rng = np.random.default_rng([part, *map(ord, name)])
    found = []
    for _ in range(PROBLEMS):
        case = cases.random_case(rng, structure)
        found.append(cases.check(case, hx.implicit.LeaveOneOut(hx.Optimum(case.loss)), cases.exact(case)))
    return {"found": [dataclasses.asdict(outcome) for outcome in found], "seconds": time.process_time() - began}


def page(kept: dict[tuple[str, int], dict], command: str) -> tuple[str, bool]:
    """The table, and whether anything was violated."""
    parts: dict[tuple[str, str], list[cases.Outcome]] = defaultdict(list)
    for (name, _), row in kept.items():
        structure = STRUCTURES[name]
        parts[structure.kind, structure.dtype] += [cases.Outcome(**outcome) for outcome in row["found"]]
    lines = []
    for (kind, dtype), found in sorted(parts.items()):
        width = np.array([outcome.value_bound / abs(outcome.mean) for outcome in found])
        relative = np.array([outcome.grad_bound / outcome.grad_norm for outcome in found])
        sums = [sum(getattr(o, field) for o in found) for field in ("violated", "grad_violated", "refitted", "loose")]
        lines.append(
            f"| {kind} | {dtype} | {sum(o.rows for o in found):,} | {' | '.join(map(str, sums))} "
            f"| {np.median(width):.1e} / {width.max():.1e} | {np.median(relative):.1e} / {relative.max():.1e} |"
        )
    every = [outcome for found in parts.values() for outcome in found]
    text = f"""# Coverage of the enclosures of leave-one-out

    {command}

{machine()}, {sum(row["seconds"] for row in kept.values()):.0f} s of one processor. {len(every):,} problems,
{sum(outcome.rows for outcome in every):,} rows left out, {len({name for name, _ in kept})} combinations of family,
structure and dtype of {len(STRUCTURES)}.

`refitted`: rows that needed a Newton method of their own. `loose`: rows whose loss is not enclosed to 1 % of the mean.
Widths are bounds over the mean loss, and over the norm of the hypergradient: median / largest.

| family | precision | rows | losses violated | gradients violated | refitted | loose | width: loss | gradient |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}
"""
    return text, any(outcome.violated or outcome.grad_violated for outcome in every)


def stored() -> dict[tuple[str, int], dict]:
    """What earlier runs have done."""
    lines = Path("out/experiments/coverage.jsonl").read_text().splitlines()
    return {tuple(row["cell"]): row for row in map(json.loads, lines) if row["settings"] == SETTINGS}


def main() -> None:
    """All structures in turn, and the table."""
    parser = argparse.ArgumentParser(description="How often the enclosures of leave-one-out hold.")
    parser.add_argument("--quick", action="store_true", help="one part of each structure")
    parser.add_argument("--stored", action="store_true", help="only write down what is there")
    parser.add_argument("--rows", type=int, default=100_000, help="rows left out, in all, at least")
    asked = parser.parse_args()
    count = 1 if asked.quick else -(-asked.rows // (40 * PROBLEMS * len(STRUCTURES)))
    cells = [(name, part) for name in STRUCTURES for part in range(count)]
    kept, last = stored() if asked.stored else {}, ""
    for row in () if asked.stored else rows_of(__file__, cells, SETTINGS, outcomes):
        name, part = row["cell"]
        if name != last:
            jax.clear_caches()  # the next structure shares no program with this one
        last = name
        kept[name, part] = row
        bad = sum(outcome["violated"] + outcome["grad_violated"] for outcome in row["found"])
        print(f"{name}, part {part + 1} of {count}: {bad} violations, {row['seconds']:.0f} s", flush=True)
    command = "python -m experiments.coverage.leave_one_out" + (" --quick" if asked.quick else f" --rows {asked.rows}")
    text, violated = page(kept, command)
    (HERE / "leave_one_out.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(violated)


if __name__ == "__main__":
    main()
