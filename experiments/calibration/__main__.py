"""How classes are predicted best: `python -m experiments.calibration [--quick] [--splits K]`.

Networks of one hidden layer on small classification sets of scikit-learn and on small MNIST images, weights and prior
precisions by the evidence of the training part alone. On the held-out part: the mean log-likelihood and the expected
calibration error of what each approximation makes of the same posterior, of a posterior of the last layer alone, and of
five networks trained at the same precisions. For MNIST also how well the entropy of the prediction tells clothes
(Fashion-MNIST) from digits: the area under the ROC curve.

Writes RESULTS.md beside this file; with --quick into out/experiments.
"""

import argparse
import gzip
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from experiments._common import data_file, machine, results_folder, rows_of
from sklearn import datasets
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from hyprax.evidence import EvidenceObjective, calibration_error
from hyprax.fits import EvidenceFit, fit_evidence

HERE = results_folder(__file__)


def images(name: str, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` images, averaged to 7 x 7, and their labels."""
    with gzip.open(data_file(f"{name}/{part}-images-idx3-ubyte.gz")) as stream:
        x = np.frombuffer(stream.read(16 + 784 * count)[16:], np.uint8).reshape(-1, 7, 4, 7, 4)
    with gzip.open(data_file(f"{name}/{part}-labels-idx1-ubyte.gz")) as stream:
        y = np.frombuffer(stream.read(8 + count)[8:], np.uint8)
    return x.mean((2, 4)).reshape(-1, 49) / 255, y.astype(int)


def mnist(return_X_y: bool = True) -> tuple[np.ndarray, np.ndarray]:
    return images("mnist", "train", 1400)


SETS: dict[str, tuple[Callable[..., Any], int]] = {
    "iris": (datasets.load_iris, 100),
    "wine": (datasets.load_wine, 120),
    "breast cancer": (datasets.load_breast_cancer, 200),
    "digits": (datasets.load_digits, 300),
    "MNIST, 7 x 7": (mnist, 400),
}
"""Each with the size of its training part."""
APPROXIMATIONS = ("map", "probit", "bridge", "monte_carlo", "scaled")
LAST, ENSEMBLE = "last layer, scaled", "five networks"
COLUMNS = (*APPROXIMATIONS, LAST, ENSEMBLE)
ADAM = optax.adam(1e-2)
SETTINGS = {"hidden": 8, "mode_steps": 20, "members": 5}


def network(params: Any, hyper: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] + params["c"]


def head(params: Any) -> Any:
    return [params["v"], params["c"]]


def drawn(features: int, classes: int, seed: int) -> dict[str, np.ndarray]:
    rng, hidden = np.random.default_rng(seed), SETTINGS["hidden"]
    w, v = rng.normal(size=(features, hidden)) / np.sqrt(features), rng.normal(size=(hidden, classes)) / np.sqrt(hidden)
    return {"w": w, "b": np.zeros(hidden), "v": v, "c": np.zeros(classes)}


def ensemble(fitted: EvidenceFit, data: Any, x_new: np.ndarray, split: int) -> np.ndarray:
    """The mean prediction of the network that was fitted and of others from other first weights, at its precisions."""
    apply, found = fitted.model.apply, []
    for member in range(SETTINGS["members"]):
        params = fitted.params
        if member:
            first = drawn(x_new.shape[1], int(data[1].max()) + 1, 1000 * member + split)
            objective = EvidenceObjective(apply, first, data, optimizer=ADAM, key=jax.random.key(member))
            state = objective.train(fitted.hyper, objective.init(fitted.hyper), 500)
            params = objective.at_mode(fitted.hyper, state).params
        outputs = jax.vmap(lambda one, params=params: apply(params, None, one))(jnp.asarray(x_new))
        found.append(np.asarray(jax.nn.softmax(outputs)))
    return np.mean(found, axis=0)


def measure(name: str, split: int) -> dict[str, Any]:
    """Of one split: log-likelihood and calibration error by every approximation, for MNIST the area under the curve."""
    load, size = SETS[name]
    x, y = load(return_X_y=True)
    x, x_new, y, y_new = train_test_split(x.astype(float), y, train_size=size, stratify=y, random_state=split)
    began = time.process_time()
    params = drawn(x.shape[1], int(y.max()) + 1, split)
    options = {"mode_steps": SETTINGS["mode_steps"], "progress": False, "key": jax.random.key(split)}
    fitted = fit_evidence(network, params, (x, y), **options)
    whole, last = fitted.posterior(), fitted.posterior(where=head)
    other = images("fashion-mnist", "t10k", 1000)[0] if name.startswith("MNIST") else x_new[:0]
    both = np.concatenate([x_new, other])
    predictions = {kind: whole.predict(both, kind, key=jax.random.key(0)) for kind in APPROXIMATIONS}
    predictions |= {LAST: last.predict(both), ENSEMBLE: ensemble(fitted, (x, y), both, split)}
    scores = {}
    for kind, found in predictions.items():
        p = np.maximum(np.asarray(found), np.finfo(float).tiny)
        known = p[: len(y_new)]
        scores[kind] = [float(np.mean(np.log(known[np.arange(len(y_new)), y_new])))]
        scores[kind].append(float(calibration_error(jnp.asarray(known), y_new)))
        if len(other):
            strange = np.arange(len(both)) >= len(y_new)
            scores[kind].append(float(roc_auc_score(strange, scipy.stats.entropy(p, axis=1))))
    seconds = time.process_time() - began
    return {"scores": scores, "scale": float(whole.scale), "seconds": seconds, "message": fitted.message[:60]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and standard error over the splits: log-likelihood, calibration error, area under the curve."""
    lines = [
        "| set | splits | " + " | ".join(COLUMNS) + " | scale |",
        "| --- | --- | " + " | ".join("---" for _ in COLUMNS) + " | --- |",
    ]
    for name in SETS:
        own = [row for row in rows if row["cell"][0] == name]
        if not own:
            continue
        cells = []
        for kind in COLUMNS:
            found = np.array([row["scores"][kind] for row in own])
            spread = f" ± {found[:, 0].std(ddof=1) / np.sqrt(len(found)):.3f}" if len(found) > 1 else ""
            cells.append(f"{found[:, 0].mean():.3f}{spread}, " + ", ".join(f"{x:.3f}" for x in found[:, 1:].mean(0)))
        scales = ", ".join(f"{row['scale']:.2g}" for row in own)
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + f" | {scales} |")
    return "\n".join(lines)


def write(folder: Path, rows: Sequence[dict[str, Any]], options: str) -> None:
    seconds = sum(row["seconds"] for row in rows)
    missing = [name for name in SETS if name not in {row["cell"][0] for row in rows}]
    late = f"Not run: {', '.join(missing)}. Run it again for the rest." if missing else ""
    size = f"{SETTINGS['hidden']} hidden units, at most {SETTINGS['mode_steps']} steps at the mode, else its defaults"
    (folder / "RESULTS.md").write_text(
        f"""# Predictions of classes

    python -m experiments.calibration{options}

Held-out log-likelihood (mean ± standard error over the splits), expected calibration error, and for MNIST the area
under the ROC curve of the entropy, 1,000 Fashion-MNIST images against the held-out digits. One `fit_evidence` a
split ({size}), in double precision.
All columns but the last two are predictions of the same posterior: at the mode (`map`), linearised probit, Laplace
bridge, Monte Carlo, and the default, `scaled`: probit with the variances times the `scale` on the right, which
leave-one-out predictions of the training part chose, split by split. The last two: `scaled` with the last layer alone
random, and the mean prediction of five networks at the modes that five first weights lead to, at the precisions found.
{machine()}, {seconds:.0f} CPU seconds in all, the machine shared with other work. {late}

{table(rows)}
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one split of the smallest set")
    parser.add_argument("--splits", type=int, default=5, help="how many splits of each set")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    cells = [("iris", 0)] if given.quick else [(name, split) for split in range(given.splits) for name in SETS]
    rows = []
    for row in rows_of(__file__, cells, SETTINGS, measure):
        rows.append(row)
        print(*row["cell"], row["scores"], row["scale"], round(row["seconds"]), row["message"], flush=True)
        write(HERE, rows, " --quick" if given.quick else "" if given.splits == 5 else f" --splits {given.splits}")
    print(table(rows))


if __name__ == "__main__":
    main()
