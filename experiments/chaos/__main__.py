"""Where along the learning rate an exact hypergradient stops being useful: `python -m experiments.chaos [--quick]`.

F(α) is the training loss of a tanh network 784-50-50-50-10 on MNIST after T steps of momentum at the rate α (γ = 0.9,
batches of 200, one seed). At every α of a grid: dF/d log α exactly, by reversal; the slope of the secant over ±5 % of
α, which is what a search could make use of; the gauge that comes with the hypergradient, amplification ‖dw_0‖/‖dw_T‖;
and metasmoothness, from three trainings along it.

Writes RESULTS.md and the picture beside this file; with --quick into out/experiments.
"""

import argparse
import dataclasses
import itertools
import time
from typing import Any

import jax
import numpy as np
from experiments._common import machine, pyplot, results_folder
from experiments._mnist import Params, drawn, nll, splits
from jax import Array

import hyprax as hx
from hyprax.unroll import RESULTS, ChaosGauge, ReversalCertificate

HERE = results_folder(__file__)
SIZES, BATCH, MOMENTUM, SCALE, REACH = (784, 50, 50, 50, 10), 200, 0.9, 0.1, 0.05
ENDINGS = ("successful", "chaotic", "fixed_point_overflow", "diverged", "not_reversible")
EDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def init(hyper: Any, key: Array) -> Params:
    return drawn(SIZES, [{"w": np.float32(SCALE), "b": np.float32(0)}] * (len(SIZES) - 1), key)


def loss(params: Params, hyper: Any, data: Any) -> Array:
    return nll(params, data)


def optimizer(hyper: Any) -> hx.unroll.MomentumSGD:
    return hx.unroll.MomentumSGD(hyper["rate"], MOMENTUM)


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured at one learning rate."""

    rate: float
    value: float
    slope: float
    secant: float
    amplification: float
    smoothness: float
    result: str
    exact: bool


def at(rate: float) -> dict[str, hx.Positive]:
    return {"rate": hx.Positive(np.float32(rate))}


def measure(exact: hx.UnrolledObjective, plain: hx.UnrolledObjective, rate: float) -> Row:
    """One row; values by floating point, the hypergradient by reversal in fixed point."""
    answer = hx.hypergradient(exact, at(rate), throw=False)[0]
    ends = [value(plain, rate * np.exp(sign * REACH)) for sign in (-1, 1)]
    slope = float(answer.grad["rate"].raw)
    finite = np.isfinite(slope) and slope != 0
    return Row(
        rate,
        float(answer.value),
        slope,
        (ends[1] - ends[0]) / (2 * REACH),
        float(answer.stats.amplification) if finite else np.nan,
        float(plain.metasmoothness(at(rate), answer.grad)) if finite else np.nan,
        next(name for name in ENDINGS if bool(answer.result == getattr(RESULTS, name))),
        isinstance(answer.certificate, ReversalCertificate),
    )


def value(objective: hx.UnrolledObjective, rate: float) -> float:
    hyper = at(rate)
    return float(objective.value(hyper, objective.init(hyper))[0].value)


def table(rows: list[Row]) -> list[str]:
    """Medians by ranges of the learning rate."""
    lines = [
        "| α | points | F | abs dF/d log α | abs error of dF/d log α over abs secant | signs that agree "
        "| amplification | metasmoothness | ended as `chaotic` | came back bit for bit |",
        "| --- " * 10 + "|",
    ]
    for low, high in itertools.pairwise(EDGES):
        inside = [row for row in rows if low <= row.rate < high * (1 + 1e-6) and np.isfinite(row.slope)]
        if not inside:
            continue
        slope, secant = (np.asarray([getattr(row, name) for row in inside]) for name in ("slope", "secant"))
        medians = [float(np.median([getattr(row, name) for row in inside])) for name in ("amplification", "smoothness")]
        lines.append(
            f"| {low:g} to {high:g} | {len(inside)} | {np.median([row.value for row in inside]):.3f} "
            f"| {np.median(np.abs(slope)):.3g} | {np.median(np.abs(slope - secant) / np.abs(secant)):.2g} "
            f"| {int(np.sum(slope * secant > 0))} | {medians[0]:.3g} | {medians[1]:.2f} "
            f"| {sum(row.result == 'chaotic' for row in inside)} | {sum(row.exact for row in inside)} |"
        )
    return lines


def picture(rows: list[Row], curve: tuple[np.ndarray, list[float]]) -> None:
    plt = pyplot()

    figure, axes = plt.subplots(4, 1, figsize=(8, 10), sharex=True, layout="constrained")
    rates = [row.rate for row in rows]
    axes[0].loglog(*curve, lw=0.8)
    axes[0].set_ylabel("training loss F")
    axes[1].semilogx(rates, [abs(row.slope) for row in rows], "o-", ms=3, lw=0.8, label="exact |dF/d log α|")
    axes[1].semilogx(rates, [abs(row.secant) for row in rows], "x-", ms=4, lw=0.8, label="|secant| over ±5 %")
    axes[1].set_yscale("log")
    axes[1].legend(fontsize=8)
    axes[1].set_ylabel("slope")
    axes[2].loglog(rates, [row.amplification for row in rows], "o-", ms=3, lw=0.8)
    axes[2].axhline(ChaosGauge().limit, color="tab:red", lw=1, label="limit of the gauge")
    axes[2].legend(fontsize=8)
    axes[2].set_ylabel("amplification")
    axes[3].semilogx(rates, [row.smoothness for row in rows], "o-", ms=3, lw=0.8)
    axes[3].axhline(0, color="gray", lw=0.8)
    axes[3].set_ylabel("metasmoothness")
    axes[3].set_xlabel("learning rate α")
    figure.savefig(HERE / "chaos.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer points; writes into out/experiments")
    quick = parser.parse_args().quick
    steps, points, fine = (50, 6, 12) if quick else (100, 60, 240)
    data = splits(2000 if quick else 10_000)["train"]
    training = hx.Training(loss, init, optimizer, hx.Minibatches(data, BATCH, key=jax.random.key(1)), steps)
    exact, plain = (
        hx.UnrolledObjective(training, loss, data, key=jax.random.key(0), mode=mode)
        for mode in (hx.unroll.Reversible(), hx.unroll.Checkpointed())
    )
    began = time.perf_counter()
    rows = [measure(exact, plain, float(rate)) for rate in np.geomspace(EDGES[0], EDGES[-1], points)]
    grid = np.geomspace(EDGES[0], EDGES[-1], fine)
    picture(rows, (grid, [value(plain, float(rate)) for rate in grid]))
    ended = {name: sum(row.result == name for row in rows) for name in sorted({row.result for row in rows})}
    text = "\n".join(
        [
            "# Chaos along the learning rate",
            "",
            "    python -m experiments.chaos" + (" --quick" if quick else ""),
            "",
            f"Measured on a {machine()}, one thread, in {time.perf_counter() - began:.0f} s beside",
            f"other programs. Training loss of a tanh network 784-50-50-50-10 on MNIST, {data[1].size:,} images, after",
            f"T = {steps} steps of momentum 0.9 at the rate α, batches of {BATCH}, one seed; exact derivatives by",
            "reversal, the secant over ±5 % of α, metasmoothness with steps of 1 % of α. Medians over the points of a",
            "range.",
            "",
            *table(rows),
            "",
            "How the answers ended: " + ", ".join(f"{name} {count}" for name, count in ended.items()) + ".",
            "",
            "![loss, slopes, amplification and metasmoothness against the learning rate](chaos.png)",
            "",
        ]
    )
    (HERE / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
