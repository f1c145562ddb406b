"""The digits example on eight other splits, seeds 1 to 8: python -m benchmarks.digits_splits

The example's own split has seed 0; its bounds and its number of steps were chosen on these eight.
"""

from pathlib import Path

import jax
import numpy as np

from hyprax import recipes

RECIPE = Path(__file__).parents[1] / "examples" / "digits.toml"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    found = []
    for seed in range(1, 9):
        job = recipes.prepare(RECIPE, [f"split.seed={seed}"])
        single, tuned = recipes.carry_out(job, None, progress=False).contestants
        found.append((single.validation_loss, tuned.validation_loss, single.test_score, tuned.test_score))
        print(f"seed {seed}: validation loss {found[-1][0]:.4f} -> {found[-1][1]:.4f}, ", end="")
        print(f"test accuracy {found[-1][2]:.4f} -> {found[-1][3]:.4f}", flush=True)
    mean = np.mean(found, axis=0)
    gain = np.asarray(found)[:, 3] - np.asarray(found)[:, 2]
    print(f"mean: validation loss {mean[0]:.4f} -> {mean[1]:.4f}, test accuracy {mean[2]:.4f} -> {mean[3]:.4f}")
    print(f"gain in test accuracy: {gain.mean():.4f}, standard error {gain.std(ddof=1) / np.sqrt(len(gain)):.4f}")


if __name__ == "__main__":
    main()
