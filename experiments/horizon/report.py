"""RESULTS.md and the picture of the horizon."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from experiments._common import machine, pyplot

from .measures import LENGTHS, STEP, rank_correlation
from .problem import DECAY, KINDS, RATE, Problem

Run = tuple[str, int]
READ_OF = 1000
"""The steps of the whole training that READING.md speaks of."""


@dataclasses.dataclass
class Found:
    """What was measured; the first run is the whole training."""

    problem: Problem
    gradients: dict[Run, dict[str, np.ndarray]]
    seconds: dict[Run, float]
    still: float
    """The test loss of a training at the start."""
    acted: dict[Run, dict[str, float]]
    """The test losses after a move, by what was moved."""
    scores: dict[Run, float]
    rivals: dict[float, float]
    """Datamodelling scores, of influence functions by damping."""
    smoothness: dict[int, float]
    slopes: dict[Run, list[float]]
    subsets: int


def written(folder: Path, found: Found) -> str:
    """Write it into `folder`; returns the text."""
    problem, arrays, scores, rivals = found.problem, found.gradients, found.scores, found.rivals
    size, runs = problem.size, list(arrays)
    whole = arrays[runs[0]]
    alike = {run: {name: rank_correlation(arrays[run][name], whole[name]) for name in KINDS} for run in runs}
    gains = {run: {what: found.still - loss for what, loss in found.acted[run].items()} for run in runs}
    intro = (
        f"Measured on a {machine()}. A causal transformer over bytes ({size.weights():,} weights, {size.layers} "
        f"layers of width {size.width}) is trained by AdamW in single precision for {size.steps:,} "
        f"steps of {size.batch} rows of "
        f"{size.context} bytes, drawn from {problem.files} files of Python's standard library, {problem.rows} rows of "
        f"each. F is the loss on {len(problem.validation):,} rows of {problem.files // 4} other files, in nats a byte; "
        f"the test loss that on rows of as many more. Told are the weight of each file (start: 1), a schedule of "
        f"{whole['schedule'].size} knots (start: {RATE} throughout) and a decay for each of "
        f"{whole['decay'].size} tensors (start: {DECAY}). "
        "*Whole*: the exact hypergradient of the whole training, undone bit for bit (`Reversible`). "
        "*Short*: the same of a training that ends after T steps, its schedule as long as itself. *Cut*: of the whole "
        "training, of whose steps only the last T are differentiated (`Truncated`)."
    )
    columns = (
        "Alike: Spearman's correlation with the whole one, entry by entry. Gain: the test loss of a whole "
        f"training less that of one after a move against the gradient, {STEP} long in the root mean "
        "square (weights of files: about "
        f"their mean; schedule and decays: logarithms), from {found.still:.4f}; one training each. Datamodelling: "
        f"Spearman's correlation, over {found.subsets} trainings on random halves of the files, of the loss on the "
        "validation files with the sum of the derivatives in the weights of the files trained on. Smoothness: "
        "`UnrolledObjective.metasmoothness` of a training of T steps along the move of the weights. Seconds of the "
        "processor for the gradient, compilation included."
    )
    head = ("", "T", "alike: weights", "schedule", "decay", "gain: weights", "schedule", "decay", "all")
    head = (*head, "datamodelling", "smoothness", "seconds")
    lines = [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for run in (*runs[1:], runs[0]):
        kind, steps = run
        smooth = "" if kind == "cut" else f"{found.smoothness[steps]:.2f}"
        numbers = [f"{alike[run][name]:.2f}" for name in KINDS]
        numbers += [f"{gains[run][what]:+.4f}" for what in (*KINDS, "all")]
        numbers += [f"{scores[run]:.2f}", smooth, f"{found.seconds[run]:.0f}"]
        lines.append(f"| {kind} | {steps:,} | " + " | ".join(numbers) + " |")
    others = ", ".join(f"{score:.2f} (δ = {damping:g})" for damping, score in rivals.items())
    options = f" --steps {size.steps}" if size.steps != READ_OF else ""
    text = "\n".join(
        [
            "# How soon short trainings mislead",
            "",
            f"    python -m experiments.horizon{options}",
            "",
            textwrap.fill(intro, 119),
            "",
            textwrap.fill(columns, 119),
            "",
            *lines,
            "",
            textwrap.fill(
                f"Influence functions at the end of the whole training have a datamodelling score of {others}: damped "
                "by δ, the generalised Gauss-Newton matrix of a sample of rows, 30 products of conjugate gradients.",
                119,
            ),
            "",
            textwrap.fill(
                "The derivative of F in the weights of the files, along two hypergradients (scaled to length 1, their "
                "mean taken off): as the whole one has it, and by central differences of steps of other lengths, two "
                "trainings each.",
                119,
            ),
            "",
            f"| along | whole one | {' | '.join(f'step {h:g}' for h in LENGTHS)} |",
            f"| --- |{' ---: |' * (1 + len(LENGTHS))}",
            *(
                f"| {kind}, T = {steps:,} | {' | '.join(f'{x:.4f}' for x in along)} |"
                for (kind, steps), along in found.slopes.items()
            ),
            "",
            "![Likeness, gain and datamodelling score by T](horizon.png)",
            "",
        ]
    )
    if not options:
        text += "\n" + (Path(__file__).parent / "READING.md").read_text()
    _draw(folder / "horizon.png", runs, alike, gains, scores, max(rivals.values()))
    (folder / "RESULTS.md").write_text(text)
    return text


def _draw(path: Path, runs: list[Run], alike: Any, gains: Any, scores: Any, rival: float) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    whole = runs[0]
    colours = dict(zip((*KINDS, "all"), ("C0", "C1", "C2", "C3"), strict=True))
    for kind, style in (("short", "-o"), ("cut", "--s")):
        chosen = [run for run in runs if run[0] == kind] + [whole]
        at = [steps for _, steps in chosen]
        for name in KINDS:
            values = [alike[run][name] for run in chosen]
            axes[0].plot(at, values, style, color=colours[name], label=name if kind == "short" else None, markersize=4)
        for what in (*KINDS, "all"):
            values = [gains[run][what] for run in chosen]
            axes[1].plot(at, values, style, color=colours[what], label=what if kind == "short" else None, markersize=4)
        axes[2].plot(at, [scores[run] for run in chosen], style, color="C0", label=kind, markersize=4)
    axes[2].axhline(rival, color="0.4", linestyle=":", label="influence functions, best δ")
    titles = ("Spearman's correlation with the whole", "test loss gained by acting", "datamodelling score")
    figure.suptitle("solid: short trainings; dashed: the last steps of the whole one", fontsize=10)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("log")
        axis.set_xlabel("steps differentiated, T")
        axis.set_title(title, fontsize=10)
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)
