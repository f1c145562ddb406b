"""How often certificates hold, and how tight they are: `python -m experiments.coverage [--quick] [--cases N]`.

Random problems of every family (squared, logistic, softmax, Poisson, pseudo-Huber), every structure of hyperparameters
(one penalty, one a class, feature, weight or group; example weights each or in groups), smallest strength from 1e-6 to
0.1, dense and sparse data, float32 and float64. At each a few points (w, q) from 10 % off to nearly exact. The truth is
from NumPy, in long double; the cases are those of the tests (tests/certificate_cases.py, tests/oracles.py).

Writes RESULTS.md and the picture beside this file; with --quick into out/experiments.
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

import certificate_cases as problems
import hyprax as hx

HERE = results_folder(__file__)
BOUNDS = {"look-ahead": hx.implicit.LookAhead(relative=0.0), "free": hx.implicit.ResidualCertifier()}
LONG_NAMES = {"ehrhardt-roberts": "Ehrhardt-Roberts", "free": "free", "look-ahead": "look-ahead"}


def outcomes(structure: problems.Structure, cases: int, seed: int) -> list[problems.Outcome]:
    """About `cases` cases of one structure, ten points to a problem."""
    bounds = dict(BOUNDS)
    if structure.dtype == "float64" and not structure.free:  # its constants are global, and it refuses free columns
        bounds["ehrhardt-roberts"] = hx.implicit.EhrhardtRoberts()
    rng = np.random.default_rng([seed, *map(ord, str(structure))])
    points = 10
    found = []
    for _ in range(-(-cases // points)):
        case = problems.random_case(rng, structure)
        found += [problems.check(case, rng, bounds) for _ in range(points)]
    jax.clear_caches()  # the next structure shares no program with this one
    return found


def quantiles(ratios: list[float]) -> str:
    """Median, 90 % and largest."""
    if not ratios:
        return "-"
    return " / ".join(f"{np.quantile(ratios, q, method='higher'):.3g}" for q in (0.5, 0.9, 1.0))


def picture(ratios: dict[str, list[float]], path: Path) -> None:
    """Histograms of bound over error."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    bins = np.linspace(0, 16, 97)
    for name in ("ehrhardt-roberts", "free", "look-ahead"):
        logs = np.clip(np.log10(np.array(ratios[name])), 0, 16)
        ax.hist(logs, bins=list(bins), alpha=0.6, label=LONG_NAMES[name], density=False)
    ax.set(yscale="log", xlabel="log10 of bound over true error (1e-6 < relative error <= 10 %)", ylabel="cases")
    ax.legend(frameon=False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main() -> None:
    """All structures in turn, and the report."""
    parser = argparse.ArgumentParser(description="How often certificates hold, and how tight they are.")
    parser.add_argument("--quick", action="store_true", help="a few structures, 100 cases each")
    parser.add_argument("--cases", type=int, default=100_000, help="in all, at least")
    asked = parser.parse_args()
    structures = problems.few_structures() if asked.quick else problems.structures()
    each = 100 if asked.quick else -(-asked.cases // len(structures))
    start = time.perf_counter()
    rows: dict[tuple[str, str], list[problems.Outcome]] = defaultdict(list)
    for i, structure in enumerate(structures):
        rows[structure.kind, structure.dtype] += (found := outcomes(structure, each, seed=0))
        bad = sum(bool(o.violations) for o in found)
        print(f"{i + 1}/{len(structures)} {structure}: {len(found)} cases, {bad} violations", flush=True)
    every = [o for part in rows.values() for o in part]
    violations = [v for o in every for v in o.violations]
    ratios: dict[str, list[float]] = defaultdict(list)
    lines = []
    for (kind, dtype), part in sorted(rows.items()):
        near = [o for o in part if 1e-6 < o.relative <= 0.1]
        own = {name: [o.ratio[name] for o in near if name in o.ratio] for name in LONG_NAMES}
        for name, found in own.items():
            ratios[name] += found
        share = np.mean(np.array(own["look-ahead"]) <= 3)
        lines.append(
            f"| {kind} | {dtype} | {len(part):,} | {sum(bool(o.violations) for o in part)} | {len(near):,} "
            f"| {quantiles(own['look-ahead'])} | {share:.2%} | {np.mean([o.proved for o in near]):.1%} "
            f"| {quantiles(own['free'])} | {quantiles(own['ehrhardt-roberts'])} |"
        )
    picture(ratios, HERE / "effectivity.png")
    command = "python -m experiments.coverage" + (
        " --quick" if asked.quick else f" --cases {asked.cases}" * (asked.cases != 100_000)
    )
    total = ratios["look-ahead"]
    text = f"""# Coverage and tightness of certificates

    {command}

{machine()}, {time.perf_counter() - start:.0f} s on one thread with other work beside it. {len(every):,} cases,
{len(structures)} combinations of family, structure, data and precision.

**Violations of anything certified: {len(violations)}** (the bounds of hypergradients and of values, single entries,
lower bounds, and effectivities proved at run time, of all certificates).

Effectivity of the look-ahead bound where 1e-6 < relative error <= 10 %: median {np.median(total):.3g}, 90 %
{np.quantile(total, 0.9):.3g}, largest {max(total):.3g}; at most 3 in {np.mean(np.array(total) <= 3):.2%}.

Median / 90 % / largest of bound over true error. `proved`: the share in which the certificate itself proved an
effectivity of at most 3. `near`: cases with 1e-6 < relative error <= 10 %, which the rest of the row is about.

| family | precision | cases | violations | near | look-ahead | <= 3 | proved | free | Ehrhardt-Roberts |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}

![Histograms of bound over error](effectivity.png)

Ehrhardt-Roberts' bound is for float64 alone, and is infinite for Poisson losses, whose curvature has no global bound.
"""
    (HERE / "RESULTS.md").write_text(text + "".join(f"\n- {v}" for v in violations[:50]), encoding="utf-8")
    print(text)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
