"""A learning rate for every step of a language model: `python -m experiments.language_model [--size NAME] [--quick]`.

A causal transformer over bytes, trained by AdamW; exact hypergradients, by reversal, of its T learning rates, its
weight decay, β1 and scale of initial weights, for the loss on text that was held out. Beside it, each in a process of
its own, the same by checkpoints and by all states stored, where these fit. The text is the source of Python's standard
library, which is wherever this runs. Sizes (layers x width): `tiny` 1 x 16, to try it; `small` 2 x 64, for a CPU;
`10M` 6 x 384 and `126M` 13 x 896, for one card.

Writes times, memory and what came back to RESULTS.md (RESULTS_NAME.md for a card's sizes) beside this file; with
--quick into out/experiments. With --meta N the hyperparameters are tuned by N steps of Adam.

    python -m experiments.language_model --device gpu --size 126M

is what a card is asked: 200 steps of 126 million weights. Whether sums there are the same in both sweeps is seen by the
start, which comes back bit for bit or not at all.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks import device
from experiments._common import machine, results_folder
from experiments._transformer import Size, init, mean_loss

import hyprax as hx
from hyprax._stats import scalars
from hyprax.search import Optax

HERE = results_folder(__file__)
QUICK_STEPS = 20
SIZES = {
    "tiny": Size(1, 16, 2, 16, 2, 20),
    "small": Size(2, 64, 4, 64, 8, 1000),
    "10M": Size(6, 384, 6, 256, 32, 1000),
    "126M": Size(13, 896, 14, 512, 16, 200),
}
MODES = ("Reversible", "Checkpointed", "StoreAll")
STATES = 12
"""Bytes of a weight and its two moments."""
TRIED = 60
"""Gigabytes of states that are stored at most."""


def text(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the standard library in the order of its files: for training, and the last tenth, held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    data = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    rows = np.frombuffer(data[: len(data) // (length + 1) * (length + 1)], np.uint8).reshape(-1, length + 1)
    cut = len(rows) * 9 // 10
    return rows[:cut], rows[cut:]


def problem(size: Size, steps: int, mode: hx.unroll.AbstractMode) -> tuple[hx.UnrolledObjective, Any]:
    train, held_out = text(size.context)

    def optimizer(hyper: Any) -> hx.unroll.AbstractOptimizer:
        return hx.unroll.AdamW(
            hx.unroll.Schedule(hyper["rates"]),
            hyper["beta1"],
            jnp.asarray(0.99, jnp.float32),
            weight_decay=hyper["weight_decay"],
        )

    training = hx.Training(
        lambda params, hyper, batch: mean_loss(size, params, batch),
        lambda hyper, key: init(size, hyper["scale"], key),
        optimizer,
        hx.Minibatches(jnp.asarray(train), size.batch, key=jax.random.key(0)),
        steps,
    )
    hyper = {
        "rates": hx.Positive(np.full(steps, 1e-3 * np.sqrt(64 / size.width), np.float32)),
        "beta1": hx.Interval(np.float32(0.9), 0.5, 0.99),
        "weight_decay": hx.Positive(np.float32(0.1)),
        "scale": hx.Positive(np.float32(0.5)),
    }
    objective = hx.UnrolledObjective(
        training,
        lambda params, hyper, rows: mean_loss(size, params, rows),
        held_out[: 4 * size.batch],
        key=jax.random.key(1),
        mode=mode,
    )
    return objective, hyper


def mode_of(name: str, folder: str | None) -> hx.unroll.AbstractMode:
    if name == "Reversible":
        return hx.unroll.Reversible(long=hx.unroll.LongRun(folder))
    return hx.unroll.Checkpointed() if name == "Checkpointed" else hx.unroll.StoreAll()


def alone(mode: str, size: Size, steps: int, meta: int, folder: str | None) -> dict[str, Any]:
    """One hypergradient by one mode, in this process."""
    objective, hyper = problem(size, steps, mode_of(mode, folder))
    began, used = time.perf_counter(), time.process_time()
    answer = jax.block_until_ready(hx.hypergradient(objective, hyper, throw=False)[0])
    found = {
        "seconds": time.perf_counter() - began,
        "processor": time.process_time() - used,
        "peak": device.peak() / 1e9,
        "value": float(answer.value),
        "gradient": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(answer.grad)]).tolist(),
        "rates": float(jnp.sum(jax.tree.leaves(answer.grad["rates"])[0])),
        "came_back": isinstance(answer.certificate, hx.unroll.ReversalCertificate),
        "message": answer.message,
        "stats": {name: float(value) for name, value in scalars(answer.stats).items()},
        "device": device.kind(),
    }
    if meta:
        tuned = hx.tune(objective, hyper, steps=meta, search=Optax(optax.adam(0.05)))
        found["tuned"] = [row["value"] for row in tuned.history]
    return found


def beside(asked: argparse.Namespace, mode: str) -> dict[str, Any]:
    """`alone` in a process of its own; where that ends without an answer, why."""
    skipped = ("quick", "alone", *(() if mode == "Reversible" else ("meta", "folder")))
    given = [f"--{name}={value}" for name, value in vars(asked).items() if value and name not in skipped]
    run = subprocess.run(
        [sys.executable, "-m", "experiments.language_model", *given, "--alone", mode, *(["--quick"] * asked.quick)],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or [f"ended with {run.returncode}"])[-1]
        return {"failed": last[:200]}
    return json.loads(run.stdout.splitlines()[-1])


def planned(name: str, theory_bits: float) -> str:
    """What a size that was not run would do, by the bits a weight and step of the run that was."""
    size = SIZES[name]
    kept = size.weights() * size.steps * theory_bits / 8e9
    return (
        f"`--size {name}`: {size.weights():,} weights, T = {size.steps:,}, {size.tokens(size.steps):,} bytes of text; "
        f"about {kept:.2g} GB of buffers, where all states would take "
        f"{STATES * size.weights() * size.steps / 1e12:.2g} TB."
    )


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each mode, and how far its answer is from that of the reversal."""
    lines = ["| mode | seconds, with compilation | of the processor | most memory, GB | apart |", "| --- " * 5 + "|"]
    exact = np.asarray(found["Reversible"].get("gradient", [np.nan]))
    for mode, row in found.items():
        if "failed" in row:
            lines.append(f"| {mode} | {row['failed']} | | | |")
            continue
        apart = np.linalg.norm(np.asarray(row["gradient"]) - exact) / np.linalg.norm(exact)
        far = "" if mode == "Reversible" else f"{apart:.0e}"
        lines.append(f"| {mode} | {row['seconds']:.0f} | {row['processor']:.0f} | {row['peak']:.2f} | {far} |")
    return lines


def report(asked: argparse.Namespace, found: dict[str, dict[str, Any]], size: Size, steps: int) -> list[str]:
    """RESULTS.md, line by line."""
    run = found["Reversible"]
    options = " --quick" * asked.quick + f" --size {asked.size}" * (asked.size != "small")
    options += f" --steps {asked.steps}" * (asked.steps is not None) + f" --meta {asked.meta}" * (asked.meta > 0)
    options += "".join(
        f" --{name} {getattr(asked, name)}" for name in ("device", "compute", "attention") if getattr(asked, name)
    )
    if "failed" in run:
        return [
            "# A language model, undone step by step",
            "",
            f"    python -m experiments.language_model{options}",
            "",
            run["failed"],
        ]
    stats = run["stats"]
    rows = {
        "weights": f"{size.weights():,} ({size.layers} layers of width {size.width})",
        "steps, T": f"{steps:,}",
        "bytes of text predicted": f"{size.tokens(steps):,} ({size.batch} x {size.context} a step)",
        "hyperparameters": f"{steps + 3:,}",
        "the start came back, bit for bit": f"{'yes' if run['came_back'] else 'no'}, attempt {int(stats['attempt'])}",
        "bits a weight and step, beside theory": f"{stats['bits_per_parameter_step']:.4f} / {stats['theory_bits']:.4f}",
        "buffers put away": f"{stats['stored_bytes'] / 1e6:.1f} MB",
        "all states would take": f"{STATES * size.weights() * steps / 1e6:,.0f} MB",
        "the adjoint grows": f"{stats['amplification']:.3g}-fold, {stats['growth']:.4f} a step",
        "ends as": run["message"].split(": ")[0] if run["message"] else "successful",
        "F, nats a byte": f"{run['value']:.4f}",
        "dF/d log of all rates": f"{run['rates']:.4f}",
    }
    if "tuned" in run:
        rows["F by step of tuning"] = " ".join(f"{value:.4f}" for value in run["tuned"])
    lines = [
        "# A language model, undone step by step",
        "",
        f"    python -m experiments.language_model{options}",
        "",
        textwrap.fill(
            f"Measured on a {machine()}, load average {os.getloadavg()[0]:.0f}, {run['device']}, "
            f"jax {jax.__version__}. A causal transformer over bytes, trained by AdamW on the source of Python's "
            "standard library, computed in "
            f"{size.compute}; one hypergradient of the loss on text that was held out, with respect to a learning rate "
            "for every step, weight decay, β1 and the scale of the initial weights.",
            119,
        ),
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        textwrap.fill(
            "Each mode in a process of its own. *Apart*: the relative distance of its hypergradient from that of the "
            "reversal; all of them train in single precision, and round differently.",
            119,
        ),
        "",
        *table(found),
        "",
    ]
    if asked.size == "small":
        rest = [f"- {planned(name, stats['theory_bits'])}" for name in ("10M", "126M")]
        lines += [
            "Not run here, where there is no card (there: `--device gpu`); by the bits above they would be:",
            "",
            *(textwrap.fill(line, 119, subsequent_indent="  ") for line in rest),
            "",
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps; writes into out/experiments")
    parser.add_argument("--steps", type=int, help="T; default 1,000, of 126M 200")
    parser.add_argument("--meta", type=int, default=0, help="steps of tuning")
    parser.add_argument("--folder", help="where to save the evaluation when it is interrupted, and every ten minutes")
    device.add_argument(parser, default=None)
    parser.add_argument("--compute", choices=("float32", "bfloat16"), help="of products and activations")
    parser.add_argument("--attention", choices=("xla", "cudnn"), help="of jax.nn; default: formulas of its own")
    parser.add_argument("--alone", choices=MODES, help="this mode in this process; prints JSON")
    asked = parser.parse_args()
    size = dataclasses.replace(
        SIZES[asked.size], compute=asked.compute or "float32", attention=asked.attention or "written"
    )
    steps = asked.steps or (QUICK_STEPS if asked.quick else size.steps)
    if asked.alone:
        if asked.device:
            device.use(asked.device)
        print(json.dumps(alone(asked.alone, size, steps, asked.meta, asked.folder)))
        return
    jax.config.update("jax_platforms", "cpu")  # a card is left to the processes that train
    found = {}
    for mode in MODES:
        need = STATES * size.weights() * steps / 1e9
        if mode == "StoreAll" and need > TRIED:
            found[mode] = {"failed": f"not tried: {need:,.0f} GB of states"}
            continue
        found[mode] = beside(asked, mode)
        print(f"{mode}: {found[mode].get('failed', 'there')}", file=sys.stderr, flush=True)
    text = "\n".join(report(asked, found, size, steps))
    (HERE / ("RESULTS.md" if asked.size == "small" else f"RESULTS_{asked.size}.md")).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
