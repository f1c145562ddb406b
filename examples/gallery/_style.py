"""One style for the pictures: no background, greys that read on white and on near-black, colours for every eye."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

Facts = dict[str, float]
"""What a script found, by the words in which it is printed."""

GREY = "#808080"
BLUE, ORANGE, GREEN, PINK = "#1f86c7", "#d9690f", "#0b9a72", "#c46ba0"  # near Okabe and Ito's
PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"

INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = {
    **dict.fromkeys((*INKED, "grid.color", "legend.labelcolor"), GREY),
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9.5,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "hyprax",  # the same numbers give the same file
}


def canvas(rows: int = 1, columns: int = 1, height: float = 3.0, **settings: Any) -> tuple[Figure, Any]:
    """A figure as wide as a telephone can show it, and its axes."""
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(4.8, height))
    return figure, figure.subplots(rows, columns, **settings)


def image(axes: Axes, pixels: Any, title: str = "", colour: str = GREY, **settings: Any) -> None:
    """A small grey picture with a title and no axes."""
    axes.imshow(pixels, **{"cmap": "gray_r", **settings})
    axes.set_title(title, color=colour)
    axes.set_axis_off()


def show(draw: Callable[[], tuple[Figure, Facts]], script: str) -> None:
    """Print what a script found, and leave picture and numbers where the documentation reads them."""
    figure, facts = draw()
    lines = [f"{value:<9.4g} {name}" for name, value in facts.items()]
    print(*lines, sep="\n")
    PICTURES.mkdir(exist_ok=True)
    stream, target = io.StringIO(), PICTURES / f"{Path(script).stem}.svg"
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    shorter = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), stream.getvalue())
    target.write_text(shorter, encoding="utf-8")
    target.with_suffix(".txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
