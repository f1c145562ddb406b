"""Log evidence and seconds to layerwise precisions, beside laplace-torch.

    python -m benchmarks.evidence_laplace [diabetes,wine] [--torch PYTHON] [--epochs 300]

One hidden layer of 20 tanh units on a set of scikit-learn, inputs and numeric targets standardised, one precision for
each tensor and for numbers the noise, by the evidence with the full curvature: `fit_evidence` with its defaults, and,
with an interpreter that has laplace-torch and PyTorch, its `marglik_training` (full, layerwise, Adam at 1e-2, a tenth
of --epochs as burn-in, hyperparameters every five epochs) from the same first weights in float32. Log evidence in nats
of the standardised data, as each library gives it (tests compare the two definitions on fixed weights); seconds of
processor time, one thread (by the clock with --device gpu); compilation, a second fit less a first, apart.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import jax
import numpy as np
from sklearn import datasets

import hyprax as hx
from benchmarks import device
from hyprax import evidence as ev
from hyprax.fits import fit_evidence

HIDDEN = 20
SETS = {"diabetes": datasets.load_diabetes, "wine": datasets.load_wine}


def network(params: Any, hyper: Any, x: jax.Array) -> jax.Array:
    return jax.numpy.tanh(x @ params["w"] + params["b"]) @ params["v"] + params["c"]


def gaussian(hyper: Any) -> ev.Gaussian:
    return ev.Gaussian(hyper["noise"])


def problem(name: str) -> dict[str, np.ndarray]:
    x, y = SETS[name](return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    classes = name == "wine"
    y = y.astype(np.int32) if classes else ((y - y.mean()) / y.std()).astype(np.float32)[:, None]
    rng, outputs = np.random.default_rng(0), int(y.max()) + 1 if classes else 1
    w = rng.normal(size=(x.shape[1], HIDDEN)) / np.sqrt(x.shape[1])
    v = rng.normal(size=(HIDDEN, outputs)) / np.sqrt(HIDDEN)
    return {"x": x, "y": y, "w": w.astype(np.float32), "v": v.astype(np.float32), "classes": np.asarray(classes)}


def ours(given: dict[str, np.ndarray]) -> dict[str, Any]:
    classes = bool(given["classes"])
    zeros = {"b": np.zeros(HIDDEN, np.float32), "c": np.zeros(given["v"].shape[1], np.float32)}
    began = device.seconds()
    fitted = fit_evidence(
        network,
        {"w": given["w"], "v": given["v"], **zeros},
        (given["x"], given["y"]),
        None if classes else {"noise": hx.Positive(np.float32(1.0))},
        likelihood=ev.Categorical() if classes else gaussian,
        standardise=False,
        progress=False,
        key=jax.random.key(0),
    )
    seconds, found = device.seconds() - began, hx.natural(fitted.hyper)
    precision = {name: round(float(value), 4) for name, value in found["precision"].items()}
    noise = {} if classes else {"noise": round(float(found["noise"]), 4)}
    return {
        "seconds": seconds, "log_evidence": fitted.log_evidence, "precision": precision, **noise,
        "result": fitted.message[:60],
    }  # fmt: skip


def theirs(python: str, given: dict[str, np.ndarray], epochs: int) -> dict[str, Any]:
    script = Path(__file__).with_name("evidence_laplace_torch.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        np.savez(path, **given)  # pyright: ignore[reportArgumentType]
        run = subprocess.run([python, str(script), str(path), str(epochs)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="?", default=",".join(SETS))
    parser.add_argument("--torch", help="an interpreter that has laplace-torch")
    parser.add_argument("--epochs", type=int, default=300, help="of laplace-torch")
    device.add_argument(parser)
    given = parser.parse_args()
    device.use(given.device)
    for name in given.sets.split(","):
        made = problem(name)
        if given.torch:
            print(name, "laplace-torch", json.dumps(theirs(given.torch, made, given.epochs)), flush=True)
        first = ours(made)
        again = ours(made)
        print(name, "hyprax", json.dumps({**again, "compilation": first["seconds"] - again["seconds"]}), flush=True)


if __name__ == "__main__":
    main()
