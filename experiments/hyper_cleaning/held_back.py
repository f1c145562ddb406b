"""Does holding back stop in time? `python -m experiments.hyper_cleaning.held_back [--seeds 5] [--only N,..] [--quick]`.

The problem of `methods.py`: a weight for each of 1,000 training images of MNIST, 10 % of their labels wrong, 250 clean
validation images, 50 features. A seed draws the training images, the labels that are made wrong, and the validation and
test images (3,000, which no search sees). Four searches from weights of 1/2: what `hx.tune` takes by itself (it asks
for the noise of the validation images, and takes `hx.search.GatedLBFGS`), `hx.search.LBFGS`, which it took before, and
`hx.search.Gate` with z = 2 and 3 (Adam at .3), 400 steps at most. The test accuracy is taken at the exact optimum of
every fifth step.

The bar: in the mean over seeds, a search ends within .2 points of the best test accuracy along its path, and with no
seed below the start. Writes held_back.md.
"""

import argparse
import warnings
from typing import Any

import jax
import numpy as np
import optax
from experiments._common import machine, results_folder, rows_of

import hyprax as hx
from hyprax.search import Gate

from .data import CLASSES, Cleaning, mnist, split
from .methods import Problem

EVERY, STEPS = 5, 400
SETTINGS = {"held back": 2}
SEARCHES = {
    "`hx.tune` as it comes": lambda: None,
    "`LBFGS()`": hx.search.LBFGS,
    "`Gate(2)`": lambda: Gate(2.0, optax.adam(0.3)),
    "`Gate(3)`": lambda: Gate(3.0, optax.adam(0.3)),
}


def drawn(seed: int, train: int = 1000, validation: int = 250, test: int = 3000, pool: int = 4) -> Cleaning:
    """Images of the training set alone, dealt anew by each seed."""
    rng = np.random.default_rng([31, seed])
    images, labels = mnist("train")
    order = rng.permutation(len(labels))
    parts = np.split(order, np.cumsum([train, validation, test]))[:3]
    true = labels[parts[0]]
    given = true.copy()
    changed = rng.permutation(train)[: train // 10]
    given[changed] = (given[changed] + rng.integers(1, CLASSES, len(changed))) % CLASSES
    held = [split(images[part], labels[part], pool) for part in parts[1:]]
    return Cleaning(split(images[parts[0]], given, pool), true, given != true, *held)


def accuracies(problem: Problem, path: list[dict]) -> list[float]:
    """Test accuracies, per cent, at the exact optimum for the weights."""
    test = problem.data.test
    found = []
    for hyper in path:
        _, params = problem.exact(hyper)
        found.append(100 * float(np.mean(np.argmax(test.design @ np.asarray(params), axis=1) == test.labels)))
    return found


def measured(name: str, seed: int) -> dict[str, Any]:
    problem = Problem(drawn(seed))
    objective = hx.ImplicitObjective(
        hx.Optimum(problem.family),
        problem.family.mean_loss,
        problem.validation,
        certifier=hx.implicit.NoCertifier(),
    )
    search, path = SEARCHES[name](), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hx.search.TuningWarning)
        tuned = hx.tune(
            objective if search is None else objective.with_noise(),
            problem.start(),
            search=search,
            steps=STEPS,
            progress=False,
            callbacks=[lambda step: path.append(step.hyper)],
        )
    along = accuracies(problem, [*path[::EVERY], tuned.best])
    values = [row["value"] for row in tuned.history]
    return {
        "start": along[0],
        "best": max(along),
        "end": along[-1],
        "validation": [values[0], tuned.best_value],
        "steps": len(path),
        "result": hx.core.result_name(tuned.result),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="0,1,2,3", help="numbers of the searches, from 0")
    parser.add_argument("--quick", action="store_true", help="one seed; nothing is kept")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    seeds = 1 if given.quick else given.seeds
    names = [list(SEARCHES)[int(number)] for number in given.only.split(",")]
    rows: dict[str, list[dict]] = {name: [] for name in names}
    for row in rows_of(__file__, [(name, seed) for seed in range(seeds) for name in names], SETTINGS, measured):
        rows[row["cell"][0]].append(row)
        print(row, flush=True)
    lines = [
        "# Does holding back stop in time?",
        "",
        f"`python -m experiments.hyper_cleaning.held_back --seeds {seeds}` on a {machine()}. The protocol is the text "
        "of `held_back.py`. Test accuracies in per cent, means over the seeds ± standard errors.",
        "",
        "| search | start | end | best on path | end less best | end less start | worst seed | steps | ends | bar |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
        *(_row(name, found) for name, found in rows.items()),
        "",
    ]
    (results_folder(__file__) / "held_back.md").write_text("\n".join(lines))


def _row(name: str, found: list[dict]) -> str:
    start, end, best = (np.array([row[key] for row in found]) for key in ("start", "end", "best"))
    reached = np.mean(best - end) <= 0.2 and np.all(end >= start)
    results = ", ".join(sorted({row["result"] for row in found}))
    steps = np.mean([row["steps"] for row in found])
    return (
        f"| {name} | {start.mean():.2f} | {end.mean():.2f} | {best.mean():.2f} | {_spread(end - best)} | "
        f"{_spread(end - start)} | {np.min(end - start):+.2f} | {steps:.0f} | {results} | "
        f"{'reached' if reached else 'missed'} |"
    )


def _spread(x: np.ndarray) -> str:
    error = x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else float("nan")
    return f"{x.mean():+.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
