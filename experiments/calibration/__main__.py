"""How classes are predicted best: `python -m experiments.calibration [--quick] [--splits K]`.

Networks of one hidden layer on small classification sets of scikit-learn, weights and prior precisions by the evidence
of the training part alone. On the held-out part: the mean log-likelihood and the expected calibration error of what
each approximation makes of the same posterior.

Prints the table and writes RESULTS.md beside this file; with --quick into out/experiments.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments._common import machine, results_folder, rows_of
from sklearn import datasets
from sklearn.model_selection import train_test_split

from hyprax.evidence import calibration_error
from hyprax.fits import fit_evidence

HERE = results_folder(__file__)
SETS: dict[str, tuple[Callable[..., Any], int]] = {
    "iris": (datasets.load_iris, 100),
    "wine": (datasets.load_wine, 120),
    "breast cancer": (datasets.load_breast_cancer, 200),
    "digits": (datasets.load_digits, 300),
}
"""Each with the size of its training part."""
APPROXIMATIONS = ("map", "probit", "bridge", "monte_carlo", "scaled")
SETTINGS = {"hidden": 8, "epochs": 40, "mode_steps": 20}


def network(params: Any, hyper: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] + params["c"]


def measure(name: str, split: int) -> dict[str, Any]:
    """The scores of every approximation on one split."""
    load, size = SETS[name]
    x, y = load(return_X_y=True)
    x, x_new, y, y_new = train_test_split(x.astype(np.float32), y, train_size=size, stratify=y, random_state=split)
    rng, classes = np.random.default_rng(split), int(y.max()) + 1

    def drawn(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    hidden = SETTINGS["hidden"]
    params = {
        "w": drawn(x.shape[1], hidden),
        "b": np.zeros(hidden, np.float32),
        "v": drawn(hidden, classes),
        "c": np.zeros(classes, np.float32),
    }
    began = time.process_time()
    fitted = fit_evidence(
        network,
        params,
        (x, y),
        epochs=SETTINGS["epochs"],
        mode_steps=SETTINGS["mode_steps"],
        progress=False,
        key=jax.random.key(split),
    )
    posterior = fitted.posterior()
    scores = {}
    for kind in APPROXIMATIONS:
        p = posterior.predict(x_new, kind, key=jax.random.key(0))
        log_p = posterior.log_likelihood(x_new, y_new, kind, key=jax.random.key(0))
        scores[kind] = [float(jnp.mean(log_p)), float(calibration_error(p, y_new))]
    seconds = time.process_time() - began
    return {"scores": scores, "scale": float(posterior.scale), "seconds": seconds, "message": fitted.message[:60]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard error over the splits, log-likelihood and calibration error."""
    lines = [
        "| set | splits | " + " | ".join(APPROXIMATIONS) + " | scale |",
        "| --- | --- | " + " | ".join("---" for _ in APPROXIMATIONS) + " | --- |",
    ]
    for name in SETS:
        own = [row for row in rows if row["cell"][0] == name]
        if not own:
            continue
        cells = []
        for kind in APPROXIMATIONS:
            found = np.array([row["scores"][kind] for row in own])
            error = found.std(0, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.full(2, np.nan)
            cells.append(f"{found[:, 0].mean():.3f} ± {error[0]:.3f}, {found[:, 1].mean():.3f}")
        scales = ", ".join(f"{row['scale']:.2g}" for row in own)
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + f" | {scales} |")
    return "\n".join(lines)


def write(folder: Path, rows: Sequence[dict[str, Any]], options: str) -> None:
    seconds = sum(row["seconds"] for row in rows)
    size = f"{SETTINGS['hidden']} hidden units, {SETTINGS['epochs']} epochs, {SETTINGS['mode_steps']} steps at the mode"
    (folder / "RESULTS.md").write_text(
        f"""# Predictions of classes

    python -m experiments.calibration{options}

Held-out log-likelihood (mean ± standard error over the splits) and expected calibration error. One `fit_evidence` a
split ({size}); all columns are predictions of the same
posterior. `scale` is what leave-one-out predictions of the training part chose for the variances, split by split.
{machine()}, {seconds:.0f} CPU seconds in all.

{table(rows)}
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one split of the smallest set")
    parser.add_argument("--splits", type=int, default=5, help="how many splits of each set")
    given = parser.parse_args()
    cells = [("iris", 0)] if given.quick else [(name, split) for split in range(given.splits) for name in SETS]
    rows = []
    for row in rows_of(__file__, cells, SETTINGS, measure):
        rows.append(row)
        print(*row["cell"], row["scores"], row["scale"], round(row["seconds"]), row["message"], flush=True)
        write(HERE, rows, " --quick" if given.quick else "" if given.splits == 5 else f" --splits {given.splits}")
    print(table(rows))


if __name__ == "__main__":
    main()
