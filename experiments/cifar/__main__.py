"""A wide residual network on a CIFAR-10 subset: `python -m experiments.cifar [--quick | --full] [--seeds K]`.

A prior precision for each tensor, by several estimators of the log evidence, on all training data; beside training at a
fixed precision and at the best of a grid on held-out data. Test log-likelihood, accuracy, calibration, seconds, and one
bound of the log evidence that is the same for all.

Without options the network and the images are small enough for one core of a CPU. --full is WRN-16-4 on 32 x 32 images
with the published schedule, for a machine with a card.

Writes RESULTS.md and precisions.png beside this file; with --quick into out/experiments.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from experiments._common import machine, results_folder

from .methods import DEFAULT, Outcome, Settings, by_evidence, by_grid, by_map, judged
from .network import Images, WideResNet, images

HERE = results_folder(__file__)
SMALL = Settings(
    WideResNet(1, 1),
    side=16,
    epochs=20,
    burn_in=5,
    every=1,
    hyper_steps=3,
    batch=64,
    rate=3e-3,
    one_row=128,
    all_rows=32,
    tangent=128,
    grid=(1.0, 5.0, 25.0, 125.0),
    kfac_every=5,
    likelihood=1000,
    common=(512, 1024, 2),
    start=5.0,
    hyper_rate=0.3,
)
QUICK = Settings(
    WideResNet(1, 1),
    side=8,
    epochs=4,
    burn_in=1,
    every=1,
    hyper_steps=3,
    batch=64,
    rate=3e-3,
    one_row=32,
    all_rows=8,
    tangent=32,
    grid=(1.0, 25.0),
    kfac_every=1,
    likelihood=1000,
    common=(32, 32, 2),
    start=5.0,
    hyper_rate=0.3,
)
FULL = Settings(
    WideResNet(2, 4),
    side=32,
    epochs=300,
    burn_in=10,
    every=5,
    hyper_steps=50,
    batch=128,
    rate=1e-3,
    one_row=500,
    all_rows=150,
    tangent=500,
    grid=(1.0, 5.0, 25.0, 125.0),
    kfac_every=5,
    likelihood=4000,
    common=(1000, 4000, 4),
    start=25.0,
    hyper_rate=0.1,
)
MAP, GRID = "MAP", "MAP, grid of {}"
COLUMNS = {
    "log_likelihood": ("log-likelihood", 3),
    "laplace_log_likelihood": ("log-likelihood, last-layer Laplace", 3),
    "accuracy": ("accuracy", 1),
    "ece": ("ECE", 1),
    "laplace_ece": ("ECE, last-layer Laplace", 1),
    "train_log_likelihood": ("training log-likelihood", 3),
    "bound": ("log evidence, common bound", 2),
    "seconds": ("seconds", 0),
}


def methods(settings: Settings, quick: bool) -> dict[str, Callable[[Images, int], Outcome]]:
    found: dict[str, Callable[[Images, int], Outcome]] = {MAP: lambda data, seed: by_map(settings, data, DEFAULT, seed)}
    if not quick:
        found[GRID.format(len(settings.grid))] = lambda data, seed: by_grid(settings, data, seed)
    for name in ("chain, one row",) if quick else settings.estimators():
        found[name] = lambda data, seed, name=name: by_evidence(settings, data, name, seed)
    return found


def picture(found: dict[str, list[Outcome]]) -> None:
    """The precision kept for each tensor, by method; and those of the first seed over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    learned = {name: outcomes for name, outcomes in found.items() if outcomes[0].history}
    names = list(next(iter(learned.values()))[0].precisions)
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7.4), layout="constrained", height_ratios=(3, 2))
    places, width = np.arange(len(names)), 0.8 / len(learned)
    for k, (name, outcomes) in enumerate(learned.items()):
        logs = np.log10([[outcome.precisions[tensor] for tensor in names] for outcome in outcomes])
        at = places + (k - (len(learned) - 1) / 2) * width
        above.errorbar(at, 10 ** logs.mean(0), yerr=_around(logs), fmt="o", ms=4, lw=1, color=f"C{k}", label=name)
        kernels = [tensor for tensor in names if tensor.split()[-1] in ("w", "w1", "w2", "shortcut")]
        rows = outcomes[0].history
        over = [np.mean([np.log10(row[tensor]) for tensor in kernels]) for row in rows]
        below.plot([row["epoch"] for row in rows], 10 ** np.array(over), "o-", ms=3, color=f"C{k}")
    for outcomes in (v for k, v in found.items() if k.startswith("MAP,")):
        values = [next(iter(outcome.precisions.values())) for outcome in outcomes]
        above.axhline(10 ** np.mean(np.log10(values)), color="k", ls=":", lw=1, label="MAP, grid")
    above.set(yscale="log", ylabel="prior precision kept", xlim=(-0.6, len(names) - 0.4))
    above.set_xticks(places, [n.replace("_block", ".").replace("stage", "s") for n in names], rotation=60, fontsize=8)
    above.grid(axis="x", alpha=0.3)
    above.legend(fontsize=8, ncols=3)
    below.set(yscale="log", xlabel="epoch", ylabel="precision, geometric mean\nof kernels and head, first seed")
    figure.savefig(HERE / "precisions.png", dpi=90)
    plt.close(figure)


def _around(logs: np.ndarray) -> np.ndarray:
    """From the geometric mean to the least and the largest of the seeds."""
    middle = 10 ** logs.mean(0)
    return np.stack([middle - 10 ** logs.min(0), 10 ** logs.max(0) - middle]).clip(0)


def cell(values: list[float], digits: int) -> str:
    """The mean and its standard error."""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="300 images of 8 x 8, two methods, four epochs")
    size.add_argument("--full", action="store_true", help="WRN-16-4, 32 x 32, 300 epochs: for a machine with a card")
    parser.add_argument("--seeds", type=int, help="the first so many; default 3, of --quick 1")
    given = parser.parse_args()
    settings = QUICK if given.quick else FULL if given.full else SMALL
    seeds = given.seeds or (1 if given.quick else 3)
    train, test = images(settings.side, *((300, 100) if given.quick else (4000, 1000)))
    tried = methods(settings, given.quick)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in tried}
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in tried}
    for seed in range(seeds):
        for name, method in tried.items():
            outcome = method(train, seed)
            row = judged(settings, outcome, test)
            outcomes[name].append(outcome)
            figures[name].append(row)
            print(seed, name, {k: round(v, 4) for k, v in row.items()}, flush=True)
    picture(outcomes)
    options = "".join([" --quick"] * given.quick + [" --full"] * given.full + [f" --seeds {seeds}"] * bool(given.seeds))
    (HERE / "RESULTS.md").write_text(report(settings, options, train, test, figures))


def report(settings: Settings, options: str, train: Images, test: Images, figures: dict[str, Any]) -> str:
    lines = []
    for name, rows in figures.items():
        cells = []
        for key, (_, digits) in COLUMNS.items():
            values = [row[key] for row in rows]
            if key == "seconds" and len(values) > 1:
                values = values[1:]  # the first of them holds the compilation
            cells.append(cell(values, digits))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return RESULTS.format(
        options=options,
        machine=machine(),
        version=jax.__version__,
        train=len(train.y),
        test=len(test.y),
        side=settings.side,
        network=settings.network.name,
        epochs=settings.epochs,
        batch=settings.batch,
        burn_in=settings.burn_in,
        start=settings.start,
        seeds=len(next(iter(figures.values()))),
        default=DEFAULT,
        common=settings.common,
        one_row=settings.one_row,
        all_rows=settings.all_rows,
        tangent=settings.tangent,
        heads=" | ".join(head for head, _ in COLUMNS.values()),
        rule=" | ".join("---" for _ in COLUMNS),
        lines="\n".join(lines),
    )


RESULTS = """# A residual network on a CIFAR-10 subset
"""

if __name__ == "__main__":
    main()
