"""The examples `products` and `digits` on ten splits: python -m benchmarks.splits [products|digits]

What many tuned penalties gain on test rows that nothing touched, beside the best single penalty, both fitted on the
same rows: for each split (seeds 0 to 9), and on average.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from hyprax import recipes

EXAMPLES = Path(__file__).parents[1] / "examples"
SEEDS = range(10)


def main(name: str) -> None:
    jax.config.update("jax_enable_x64", True)
    found = []
    for seed in SEEDS:
        job = recipes.prepare(EXAMPLES / f"{name}.toml", [f"split.seed={seed}"])
        outcome = recipes.carry_out(job, None, progress=False)
        assert outcome.judgement is not None  # both are linear models
        _, simple, tuned = outcome.judgement.models
        found.append((simple.losses.mean(), tuned.losses.mean(), simple.score, tuned.score))
        print(f"seed {seed}: test loss {found[-1][0]:.4f} -> {found[-1][1]:.4f}, ", end="")
        print(f"test score {found[-1][2]:.4f} -> {found[-1][3]:.4f}", flush=True)
    values = np.asarray(found)
    change = 100 * (values[:, 1] / values[:, 0] - 1)
    error = change.std(ddof=1) / len(change) ** 0.5
    mean = values.mean(axis=0)
    print(f"{name}, mean of {len(change)} splits: test loss {mean[0]:.4f} -> {mean[1]:.4f}, ", end="")
    print(f"test score {mean[2]:.4f} -> {mean[3]:.4f}")
    print(f"change of the test loss: {change.mean():+.2f} %, standard error {error:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "products")
