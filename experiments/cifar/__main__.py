"""A wide residual network on a CIFAR-10 subset: `python -m experiments.cifar [--quick | --full] [--seeds K]`.

A prior precision for each tensor, by several estimators of the log evidence, on all training data; beside training at a
fixed precision and at the best of a grid on held-out data. Test log-likelihood, accuracy, calibration, seconds, and one
bound of the log evidence that is the same for all.

Without options the network and the images are small enough for one core of a CPU. --full is WRN-16-4 on 32 x 32 images
with the published schedule, for a machine with a card.

Writes RESULTS.md and precisions.png beside this file; with --quick into out/experiments.
"""

import argparse
import dataclasses
import functools

from experiments._common import results_folder, rows_of

from .methods import GRID, MAP, Settings, measure
from .network import WideResNet, images
from .report import write

SMALL = Settings(
    WideResNet(1, 1),
    side=16,
    train=1000,
    test=1000,
    epochs=30,
    burn_in=5,
    every=1,
    hyper_steps=2,
    batch=64,
    rate=3e-3,
    one_row=128,
    all_rows=32,
    tangent=128,
    linearised=50,
    grid=(1.0, 5.0, 25.0, 125.0),
    kfac_every=4,
    likelihood=1000,
    common=(128, 256, 2),
    to_mode=100,
    start=5.0,
    hyper_rate=0.3,
)
QUICK = dataclasses.replace(
    SMALL,
    side=8,
    train=300,
    test=100,
    epochs=4,
    burn_in=1,
    one_row=32,
    linearised=10,
    likelihood=300,
    to_mode=10,
    common=(32, 32, 2),
)
FULL = dataclasses.replace(
    SMALL,
    network=WideResNet(2, 4),
    side=32,
    train=4000,
    linearised=100,
    epochs=300,
    burn_in=10,
    every=5,
    hyper_steps=50,
    batch=128,
    rate=1e-3,
    one_row=500,
    all_rows=150,
    tangent=500,
    kfac_every=5,
    likelihood=4000,
    common=(1000, 4000, 4),
    start=25.0,
    hyper_rate=0.1,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="300 images of 8 x 8, two methods, four epochs")
    size.add_argument("--full", action="store_true", help="WRN-16-4, 32 x 32, 300 epochs: for a machine with a card")
    parser.add_argument("--seeds", type=int, help="the first so many; default 3, of --quick 1")
    given = parser.parse_args()
    settings = QUICK if given.quick else FULL if given.full else SMALL
    methods = [MAP, "chain, one row"] if given.quick else [MAP, GRID, *settings.estimators()]
    seeds = given.seeds or (1 if given.quick else 3)
    cells = [(name, seed) for seed in range(seeds) for name in methods]
    data = images(settings.side, settings.train, settings.test)
    found = []
    for row in rows_of(__file__, cells, settings.plain(), functools.partial(measure, settings, *data)):
        found.append(row)
        print(*row["cell"], {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True)
    options = "".join(
        [" --quick"] * given.quick + [" --full"] * given.full + [f" --seeds {given.seeds}"] * bool(given.seeds)
    )
    write(results_folder(__file__), found, settings, options)


if __name__ == "__main__":
    main()
