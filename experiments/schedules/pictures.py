"""The pictures: schedules of every layer, initial scales, and values along the searches."""

from pathlib import Path
from typing import Any

import numpy as np
from experiments._common import pyplot
from experiments.schedules.problem import SIZES

WINDOW = 25


def learned(schedules: dict[str, Any], scales: np.ndarray, path: Path) -> None:
    """Two schedules of the weights of every layer, and their initial scales, (iterations, layers).

    Schedules of more than 100 steps are drawn as running means over `WINDOW` (odd) steps, over dots for their values.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained", width_ratios=(2, 2, 1.4))
    for axis, (name, tree) in zip(axes[:2], schedules.items(), strict=True):
        for i, layer in enumerate(tree):
            values, colour = np.asarray(layer["w"]), f"C{i}"
            if len(values) <= 100:
                axis.plot(values, ".-", lw=1.2, ms=4, color=colour, label=f"layer {i + 1}")
                continue
            axis.plot(values, ",", color=colour, alpha=0.5)
            middles = np.arange(WINDOW // 2, len(values) - WINDOW // 2)
            means = np.convolve(values, np.full(WINDOW, 1 / WINDOW), mode="valid")
            axis.plot(middles, means, lw=1.4, color=colour, label=f"layer {i + 1}")
        axis.set_xlabel("step of the training")
        axis.set_title(name if len(tree[0]["w"]) <= 100 else f"{name}, running mean over {WINDOW} steps")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    for i, column in enumerate(scales.T):
        axes[2].plot(column, label=f"layer {i + 1}")
    for width, style in ((SIZES[0], "--"), (SIZES[1], ":")):
        axes[2].axhline(width**-0.5, color="gray", ls=style, lw=1, label=rf"$1/\sqrt{{{width}}}$")
    axes[2].set_xlabel("hypergradients")
    axes[2].set_title("initial scale of the weights")
    axes[2].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def progress(values: dict[str, np.ndarray], path: Path) -> None:
    """The training loss of every evaluation, each with a seed of its own."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for name, losses in values.items():
        trials = name.startswith("Optuna")
        axis.semilogy(losses, ls="" if trials else "-", marker="x" if trials else None, ms=4, label=name)
    axis.set_xlabel("evaluations")
    axis.set_ylabel("training loss at the end of training")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
