"""The pictures: losses along the runs, and the examples that the weights tell apart."""

from pathlib import Path

import numpy as np
from experiments._common import pyplot

from .data import Cleaning
from .methods import Track

COLOURS = {"GD": "tab:gray", "HB": "tab:blue", "FISTA": "tab:green"}
STYLES = {"GD": ":", "HB": "--", "CG": "-"}


def _axes(rows: int, columns: int, size: tuple[float, float]):
    return pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)


def curves(path: Path, best: dict[tuple[str, str], Track], others: dict[str, Track]) -> None:
    """Left the nine pairs, each at its best tolerances; right the best of them beside the searches."""
    figure, axes = _axes(1, 2, (11, 4))
    left, right = axes[0]
    for (lower, adjoint), track in best.items():
        left.plot(track.spent, track.loss, color=COLOURS[lower], ls=STYLES[adjoint], label=f"{lower}/{adjoint}")
    left.set(title="published protocol, lower/adjoint", xlabel="iterations", ylabel="validation loss")
    for name, track in others.items():
        width = 2.5 if name.startswith("MAID") else 1.2
        right.plot(np.maximum(track.spent, 10), track.loss, lw=width, marker=".", markevery=[-1], label=name)
    right.set(title="searches", xlabel="iterations, products", xscale="log", ylabel="validation loss")
    left.legend(fontsize=7, loc="lower left")
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def examples(path: Path, data: Cleaning, weights: np.ndarray, flags: np.ndarray) -> None:
    """Wrong labels that are flagged, and that are not, and right ones that are, each by weight: the clearest first."""
    order = np.argsort(weights, kind="stable")
    found, alarms = (order[(flags & kind)[order]] for kind in (data.wrong, ~data.wrong))
    missed = order[(data.wrong & ~flags)[order]][::-1]
    rows = {"found": found[:12], "found, next": found[12:24], "missed": missed[:12], "false alarm": alarms[:12]}
    figure, axes = _axes(len(rows), 12, (10, 4.2))
    for line, (name, chosen) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, i in zip(line, chosen, strict=False):
            axis.imshow(data.train.images[i], cmap="gray_r")
            truth = f" is {data.true_labels[i]}" if data.wrong[i] else ""
            axis.set_title(f"“{data.train.labels[i]}”{truth}\n{weights[i]:.2f}", fontsize=7)
        line[0].text(-0.25, 0.5, name, transform=line[0].transAxes, rotation=90, va="center", ha="center", fontsize=8)
    figure.savefig(path, dpi=80)
