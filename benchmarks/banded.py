"""Banded ridge with many targets beside himalaya: the same folds, the same score, with a bound.

    python -m benchmarks.banded [--targets 30] [--himalaya PYTHON]

A penalty for each band of columns and each target, tuned for the mean squared error of five folds: himalaya draws
mixtures of bands at random and takes the best for each target, by its NumPy backend, in the interpreter given (default
that of `make bench-env`); hyprax follows the hypergradient of all penalties at once. Scores are those of a dense solve
of our own at the penalties found; times those of a second run, in seconds of the processor.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import hyprax as hx

from .harness.environments import python

BANDS = np.repeat([0, 1, 2], [10, 40, 40])
ROWS, FOLDS, DRAWS = 150, 5, (100,)
ALPHAS = np.logspace(-1, 5, 25)
THEIRS = """
import json, sys, time
import numpy as np
from himalaya.ridge import GroupRidgeCV
from sklearn.model_selection import PredefinedSplit
data = np.load(sys.argv[1])
groups, alphas, found = data["bands"], data["alphas"], []
for draws in data["draws"].tolist():
    for _ in range(2):
        began = time.process_time()
        model = GroupRidgeCV(groups, solver_params=dict(n_iter=draws, alphas=alphas, progress_bar=False),
            cv=PredefinedSplit(data["fold"]), fit_intercept=False, random_state=0).fit(data["X"], data["Y"])
        seconds = time.process_time() - began
    each = np.exp(-model.deltas_)  # penalties are in them
    found.append([draws, seconds, np.asarray(each, float).tolist()])
print(json.dumps(found))
"""


def score(X: np.ndarray, Y: np.ndarray, fold: np.ndarray, penalties: np.ndarray) -> float:
    """The mean squared error over folds and targets, of penalties `(bands, targets)` beside sums of squares."""
    total = 0.0
    for k in range(FOLDS):
        out, kept = fold == k, fold != k
        gram, cross = X[kept].T @ X[kept], X[kept].T @ Y[kept]
        for t in range(Y.shape[1]):
            w = np.linalg.solve(gram + np.diag(penalties[BANDS, t]), cross[:, t])
            total += float(np.sum((Y[out, t] - X[out] @ w) ** 2))
    return total / Y.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=30)
    parser.add_argument("--himalaya", default=python("himalaya"), help="an interpreter that has himalaya")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rng, count = np.random.default_rng(0), given.targets
    X = rng.standard_normal((ROWS, len(BANDS)))
    true = rng.standard_normal((len(BANDS), count)) * np.array([0.5, 0.05, 0.0])[BANDS][:, None]
    Y, fold = X @ true + rng.standard_normal((ROWS, count)), np.arange(ROWS) % FOLDS

    groups = BANDS[:, None] * count + np.arange(count)
    family = hx.families.Squared(X, Y, penalty="penalty", penalty_groups=groups)
    pairs = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(FOLDS)]
    folds = hx.CrossValidated(hx.Optimum(family), pairs)
    start = {"penalty": hx.Positive(np.full(3 * count, 0.1))}
    hx.tune(folds, start, steps=100)  # compiles
    began = time.process_time()
    tuned = hx.tune(folds, start, steps=100)
    seconds = time.process_time() - began
    answer, _ = hx.hypergradient(folds, tuned.best)
    ours = ROWS * np.asarray(hx.natural(tuned.best)["penalty"]).reshape(3, count)
    print("| method | score | processor seconds |\n| --- | ---: | ---: |")
    print(
        f"| hyprax, {len(tuned.history)} steps, {answer.certificate} | {score(X, Y, fold, ours):.6f} | {seconds:.2f} |"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, X=X, Y=Y, fold=fold, bands=BANDS, alphas=ALPHAS, draws=np.asarray(DRAWS))
        done = subprocess.run([given.himalaya, "-c", THEIRS, str(path)], capture_output=True, text=True, check=True)
    for draws, seconds, penalties in json.loads(done.stdout.splitlines()[-1]):
        found = score(X, Y, fold, np.asarray(penalties))
        print(f"| himalaya, {draws} random mixtures, {len(ALPHAS)} penalties each | {found:.6f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
