"""Rows on disk: a hundred strengths tuned on a matrix that is not in memory.

    python -m benchmarks.out_of_core [--rows 1000000] [--columns 100] [--steps 10] [--bound look-ahead]

Makes a file of float32 rows (4 bytes x rows x columns, removed afterwards), labels of a logistic model of which a fifth
of the columns matter, and as many validation rows as a tenth of that in a second file. Then, each in a process of its
own, whose peak resident memory is its own:

- tune: logistic regression with a strength for each column, by certified hypergradients over `hx.families.Chunked`
  (bounds by look-ahead, or by residuals alone, which are looser and hold fewer numbers a row);
- sgd: scikit-learn's `SGDClassifier.partial_fit` over the same chunks, five passes, at one strength for all columns.

Prints seconds, passes over the rows, peak memory, and the validation loss that each ends with.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peak_memory

CHUNK = 65_536
PASSES = 5


def make(folder: Path, rows: int, columns: int) -> None:
    """Training and validation rows, a chunk at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=columns) * (np.arange(columns) % 5 == 0)
    for name, count in (("train", rows), ("valid", max(rows // 10, 1000))):
        inputs = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, columns))
        labels = np.empty(count, np.int8)
        for start in range(0, count, CHUNK):
            block = rng.standard_normal((min(CHUNK, count - start), columns), np.float32)
            inputs[start : start + len(block)] = block
            labels[start : start + len(block)] = block @ weights + rng.logistic(size=len(block)) * 3 > 0
        del inputs
        np.save(folder / f"{name}_labels.npy", labels)


def opened(folder: Path, name: str) -> tuple[Any, np.ndarray]:
    """Rows, mapped, and labels."""
    return np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}_labels.npy")


def tune(folder: Path, steps: int, bound: str) -> dict[str, Any]:
    """A strength for each column, tuned."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    import hyprax as hx

    began = time.perf_counter()
    (inputs, labels), (outer, outer_labels) = (opened(folder, name) for name in ("train", "valid"))
    rows, outer_rows = hx.families.Chunked(inputs, size=CHUNK), hx.families.Chunked(outer, size=CHUNK)
    reads = counted(rows)
    family = hx.families.Logistic(rows, labels, penalty="penalty")
    certifier = hx.implicit.LookAhead() if bound == "look-ahead" else hx.implicit.ResidualCertifier()
    optimum = hx.Optimum(family)
    objective = hx.ImplicitObjective(optimum, family.mean_loss, (outer_rows, outer_labels), certifier=certifier)
    made = time.perf_counter()
    start = {"penalty": hx.Positive(jnp.full(inputs.shape[1], 1e-2, jnp.float32))}
    tuned = hx.tune(objective, start, steps=steps, progress=False, stop=hx.search.Stopping(patience=None))
    row = tuned.history[-1]
    return {
        "seconds": time.perf_counter() - began,
        "measuring": made - began,
        "evaluations": len(tuned.history),
        "passes": reads[0] * CHUNK / inputs.shape[0],
        "first": tuned.history[0]["value"],
        "loss": tuned.best_value,
        "certificate": f"{row['certificate_kind']}, {row['certificate_bound']:.1e} of {row['gradient_norm']:.1e}",
    }


def counted(rows: Any) -> list[int]:
    """How many chunks are read from here on."""
    reads, source = [0], rows.source
    read = source.read

    def counting(start: Any) -> np.ndarray:
        reads[0] += 1
        return read(start)

    source.read = counting
    return reads


def sgd(folder: Path, steps: int, bound: str) -> dict[str, Any]:
    """Passes of stochastic gradients over the chunks, in order."""
    from sklearn.linear_model import SGDClassifier

    began = time.perf_counter()
    (inputs, labels), (outer, outer_labels) = (opened(folder, name) for name in ("train", "valid"))
    model = SGDClassifier(
        loss="log_loss", alpha=1e-4, learning_rate="invscaling", eta0=0.01, random_state=0, fit_intercept=False
    )
    for _ in range(PASSES):
        for start in range(0, len(inputs), CHUNK):
            here = slice(start, start + CHUNK)
            model.partial_fit(np.array(inputs[here]), labels[here], classes=[0, 1])
    seconds = time.perf_counter() - began
    margins = np.concatenate(
        [model.decision_function(np.array(outer[s : s + CHUNK])) for s in range(0, len(outer), CHUNK)]
    )
    loss = float(np.mean(np.logaddexp(0, np.where(outer_labels > 0, -margins, margins))))
    return {"seconds": seconds, "passes": PASSES, "loss": loss}


def main() -> None:
    """Make the rows, run both, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10, help="evaluations of the hypergradient")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/hyprax-rows"))
    parser.add_argument("--bound", choices=("look-ahead", "residual"), default="look-ahead", help="the certificate")
    parser.add_argument("--only", choices=("tune", "sgd"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        found = {"tune": tune, "sgd": sgd}[asked.only](asked.folder, asked.steps, asked.bound)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        # `ru_maxrss` would count what the parent held when this process began.
        found |= {"cpu seconds": usage.ru_utime + usage.ru_stime, "peak MiB": peak_memory.peak() / 2**20}
        print(json.dumps(found))
        return
    try:
        make(asked.folder, asked.rows, asked.columns)
        print(f"{asked.rows} rows x {asked.columns} columns of float32, {asked.rows * asked.columns * 4 / 1e9:.2f} GB")
        for only in ("tune", "sgd"):
            command = [sys.executable, "-m", "benchmarks.out_of_core", "--only", only, "--folder", str(asked.folder)]
            done = subprocess.run(
                [*command, "--steps", str(asked.steps), "--bound", asked.bound],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{only}: "
                + ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
            )
    finally:
        shutil.rmtree(asked.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
