"""One penalty for 139 schools, chosen globally: `python -m experiments.school [--quick]`.

Every school is a regression task. For the elastic net (l2 fixed) and for ridge regression:

- the penalty is chosen on a random half of the pupils of every school by 5-fold cross-validation, in three ways: one
  for all schools, at the global minimum of the mean of the exact duals; one for all, on a grid; one for each school, at
  the global minimum of its own dual. All are tested on the other half.
- split-half excess risk: the penalty is chosen on half of the schools and judged on the others, against their own
  optimum.

Writes RESULTS.md and the pictures beside this file; with --quick into out/experiments.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from experiments._common import machine, pyplot, results_folder

from hyprax.tasks import PiecewiseFunction, erm, map_tasks

from .data import DOMAINS, PENALTY2, dual, pair, schools, split_task

HERE = results_folder(__file__)
GRID_POINTS = 10
EPSILON = 0.001
"""Slack of the epsilon-optimal set, in parts of the variance of the scores."""
LABELS = {"elastic net": f"l1 penalty (l2 = {PENALTY2})", "ridge": "l2 penalty"}


def compare(family: str, seeds: int, map_: Callable) -> list[str]:
    """Rows of the table: mean test loss and its standard error over the seeds, for each way to choose."""
    grid = np.geomspace(*DOMAINS[family], GRID_POINTS).clip(*DOMAINS[family])
    losses: dict[str, list[float]] = {}
    hypers = []
    for seed in range(seeds):
        inner, test = zip(*map_(partial(pair, family, seed), range(len(schools()))), strict=True)
        shared = erm(inner, progress=False)
        on_test = PiecewiseFunction.mean(test)
        coarse = grid[int(np.argmin(shared.mean(grid)))]
        hypers.append(shared.hyper)
        own = [float(f(e.hyper)) for f, e in zip(test, shared.task_optima, strict=True)]
        for name, loss in {
            "shared, exact global optimum": float(on_test(shared.hyper)),
            f"shared, grid of {GRID_POINTS}": float(on_test(coarse)),
            "each school its own (5-fold cross-validation)": float(np.mean(own)),
            "lowest possible with one penalty (chosen on the test halves)": on_test.minimise().value,
        }.items():
            losses.setdefault(name, []).append(loss)
    base = np.array(losses["shared, exact global optimum"])
    rows = []
    for name, values in losses.items():
        difference = np.array(values) - base
        error = np.std(difference, ddof=1) / np.sqrt(seeds) if seeds > 1 else float("nan")
        rows.append(f"| {family} | {name} | {np.mean(values):.5f} | {np.mean(difference):+.5f} ± {error:.5f} |")
    print(f"{family}: shared penalties {np.min(hypers):.4g} .. {np.max(hypers):.4g}")
    return rows


def excess(duals: list[PiecewiseFunction], repeats: int) -> tuple[float, float]:
    """Mean and 95 % quantile of the excess risk on the other half of the schools, over random halves."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repeats):
        order = rng.permutation(len(duals))
        half = len(duals) // 2
        chosen = PiecewiseFunction.mean([duals[i] for i in order[:half]]).minimise().hyper
        others = PiecewiseFunction.mean([duals[i] for i in order[half:]])
        found.append(float(others(chosen)) - others.minimise().value)
    return float(np.mean(found)), float(np.quantile(found, 0.95))


def picture(family: str, duals: list[PiecewiseFunction]) -> tuple[str, str]:
    """Draw the duals of one split of every school; the row of the figures, and the file's name."""
    pyplot()
    start = time.perf_counter()
    best = erm(duals, epsilon=EPSILON, progress=False)
    seconds = time.perf_counter() - start
    ax = best.plot(xlabel=LABELS[family], ylabel="validation loss (parts of the variance of the scores)")
    name = family.replace(" ", "_") + ".png"
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(HERE / name, dpi=120)
    shapes = best.shapes()
    near = ", ".join(f"[{a:.4f}, {b:.4f}]" for a, b in best.epsilon_set)
    row = (
        f"| {family} | {best.hyper:.5f} | {best.value:.6f} | {float(best.certificate.bound):.1e} | {near} | "
        f"{getattr(best.mean, 'n_pieces', 0)} | {np.mean(shapes['kinks']):.1f} | "
        f"{np.mean(shapes['local_maxima']):.1f} | {np.max(shapes['oscillations'])} | {1e3 * seconds:.0f} |"
    )
    return row, name


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 seeds and 20 halves instead of 10 and 200")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    seeds, repeats = (2, 20) if arguments.quick else (10, 200)
    map_ = partial(map_tasks, processes=arguments.processes)
    tables, figures, halves, pictures = [], [], [], []
    for family in DOMAINS:
        duals = [dual(family, split_task(k, 0)) for k in range(len(schools()))]
        row, name = picture(family, duals)
        figures.append(row)
        pictures.append(f"![{family}: duals of all schools, their mean and the optimum]({name})")
        mean, high = excess(duals, repeats)
        halves.append(f"| {family} | {mean:.5f} | {high:.5f} |")
        tables += compare(family, seeds, map_)
    text = f"""# One penalty for 139 schools

    python -m experiments.school{" --quick" if arguments.quick else ""}

Measured on a {machine()}. Losses are squared errors in parts of the variance of the scores of all pupils.

## The global optimum over all schools
Each school: a random half of its pupils trains, the other validates. The bound is the certificate's (kind `certified`):
the mean loss at the penalty minus the least mean loss. The interval holds every penalty within {EPSILON} of the least
mean. Kinks and local maxima are means over the schools, oscillations the largest; time is for the optimum and those of
the 139 schools by themselves, given the duals.

| model | penalty | mean loss | bound | {EPSILON}-optimal | pieces | kinks | local maxima | oscillations | ms |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(figures)}

{chr(10).join(pictures)}

## Against choosing for each school, and against a grid
The penalty is chosen on one half of each school by 5-fold cross-validation and tested on the other; {seeds} random
halves. The difference is to the first row of the model, with its standard error over the halves.

| model | penalty | mean test loss | difference |
| --- | --- | --- | --- |
{chr(10).join(tables)}

## Split-half excess risk
The penalty is chosen on a random half of the schools and judged on the others: its mean loss there minus the least
mean loss there; {repeats} random halves.

| model | mean | 95 % quantile |
| --- | --- | --- |
{chr(10).join(halves)}
"""
    (HERE / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
