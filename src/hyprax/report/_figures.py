"""The figures of a report, each as SVG text. Colours from Okabe and Ito's palette, safe for colour-blind readers."""

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from ..runs import Record

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
INK = "#7f7f7f"  # of text and axes: replaced by the page's own colour of text, in light, in dark and in print
WIDTH, HEIGHT = 8.0, 3.4
COLUMNS = 10
MOST_NAMES = 30


STYLE: dict[Any, Any] = {
    "svg.hashsalt": "hyprax",  # the same run gives the same page
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
    **dict.fromkeys(("legend.labelcolor",), INK),
}


def _styled(draw: Callable[..., str]) -> Callable[..., str]:
    """A figure drawn in the page's colours."""

    @functools.wraps(draw)
    def styled(*arguments: Any) -> str:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*arguments)

    return styled


def _svg(figure: Figure, *, cropped: bool = False) -> str:
    """The figure as a text; cropped to what it shows, it is drawn twice."""
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", bbox_inches="tight" if cropped else None, transparent=True, metadata={"Date": None}
    )
    return stream.getvalue()


def plain(name: str) -> str:
    """A name as a text: what is mathematics to matplotlib, or not to be printed, is none here."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "\ufffd", name).replace("$", r"\$")


def _axes(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    _framed(figure, axes)
    return figure, axes


def _framed(figure: Figure, *panels: Axes) -> None:
    """Margins that are set, not found: finding them takes as long as drawing."""
    room = 0.55 / figure.get_figheight()
    figure.subplots_adjust(left=0.13, right=0.98, bottom=room, top=1 - 0.3 * room, wspace=0.3)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)


def _plain_numbers(axis: Axis) -> None:
    """Of a logarithmic axis: numbers as texts, which are drawn in a tenth of the time that formulae take."""
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))


def _value_name(record: Record) -> str:
    return plain(record.summary.get("value_name", "outer objective"))


@_styled
def objective(record: Record) -> str:
    """The outer objective against steps, its best step marked, and the baselines as lines."""
    figure, axes = _axes()
    steps, values = record.column("step"), record.column("value")
    axes.plot(steps, values, color=BLUE, marker="o" if len(steps) < 3 else None, label=_value_name(record))
    if np.any(np.isfinite(values)):
        best = int(np.nanargmin(np.where(np.isfinite(values), values, np.nan)))
        axes.plot(steps[best], values[best], "o", color=BLUE, markersize=8, label=f"lowest: {values[best]:.4g}")
    for baseline, style in zip(record.summary.get("baselines", []), ("--", ":", "-.") * 9, strict=False):
        axes.axhline(
            baseline["value"],
            color=ORANGE,
            linestyle=style,
            label=f"{plain(baseline['name'])}: {baseline['value']:.4g}",
        )
    axes.set_xlabel("step (one hypergradient each)")
    axes.set_ylabel(_value_name(record))
    axes.legend(frameon=False)
    return _svg(figure)


@_styled
def path(record: Record) -> str:
    """Along the prior's strength: by how much the criterion falls, and the held-out loss on the outer folds."""
    figure, axes = _axes()
    found = record.summary["path"]
    places = np.arange(len(found["strengths"]))
    criterion, gains, errors = (np.asarray(found[name], float) for name in ("criterion", "gains", "errors"))
    axes.plot(places, criterion - criterion[0], color=BLUE, marker="o", label=f"{_value_name(record)} (optimistic)")
    axes.errorbar(places, -gains, errors, color=ORANGE, marker="o", capsize=3, label="held-out loss, outer folds")
    axes.axvline(found["chosen"], color=GREEN, linestyle=":", label="chosen")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(places, ["one penalty" if x is None else f"{x:.2g}" for x in found["strengths"]])
    axes.set_xlabel("strength of the prior that holds the penalties together")
    axes.set_ylabel("change beside one penalty")
    axes.legend(frameon=False)
    return _svg(figure)


@_styled
def gradient(record: Record) -> str:
    """‖h‖ against steps, with ‖h‖ ± bound as a band where the bound is finite."""
    figure, axes = _axes()
    steps, norms = record.column("step"), record.column("gradient_norm")
    bounds = record.column("certificate_bound")
    kinds = sorted({row.get("certificate_kind", "none") for row in record.history})
    shown = np.isfinite(bounds) & np.isfinite(norms) & (norms > 0)
    positive = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
    axes.plot(steps, positive, color=BLUE, marker="o" if len(steps) < 3 else None, label="‖hypergradient‖")
    if np.any(shown):
        floor = np.nanmin(positive) * 1e-3
        middle, width = np.where(shown, norms, np.nan), np.where(shown, bounds, np.nan)
        low, high = np.maximum(middle - width, floor), middle + width
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.25, linewidth=0, label="norm ± bound")
        axes.plot(
            steps, np.where(shown & (bounds > 0), bounds, np.nan), color=ORANGE, label=f"bound ({', '.join(kinds)})"
        )
    if np.any(np.isfinite(positive)):
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
    axes.set_xlabel("step")
    axes.set_ylabel("hypergradient norm")
    axes.legend(frameon=False)
    return _svg(figure)


@_styled
def work(record: Record) -> str:
    """What each step took: products with the inner Hessian, where an engine counts its work in them; milliseconds."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    steps, products = record.column("step"), record.column("work")
    counted = bool(np.any(products > 0))  # engines without an inner solver count none
    panels = figure.subplots(1, 2 if counted else 1, squeeze=False)[0]
    left, right = panels[0], panels[-1]
    _framed(figure, *panels)
    for axes in panels:
        axes.set_xlabel("step")
    if counted:
        left.plot(steps, products, color=BLUE, marker="." if len(steps) < 3 else None)
        left.set_ylabel("work: Hessian products and the like")
    right.plot(steps[1:], 1e3 * record.column("seconds")[1:], color=GREEN, marker="." if len(steps) < 4 else None)
    right.set_ylabel("milliseconds, without the first step")
    return _svg(figure)


def _colours(*arrays: np.ndarray) -> tuple[Normalize, str]:
    """A common scale: logarithmic for positive values over more than a decade."""
    low, high = (float(f([f(a) for a in arrays])) for f in (np.min, np.max))
    if low > 0 and high / low > 10:
        return LogNorm(low, high), "logarithmic"
    return Normalize(low, high if high > low else low + 1), "linear"


def _colour_bar(figure: Any, picture: Any, axes: list[Axes], fraction: float, pad: float = 0.02) -> None:
    """Three numbers beside it, the ends and the middle of the scale: those of matplotlib run into each other."""
    norm = picture.norm
    bar = figure.colorbar(picture, ax=axes, fraction=fraction, pad=pad)
    ticks = [norm.vmin, float(norm.inverse(0.5)), norm.vmax]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.minorticks_off()


@_styled
def hyperparameter(
    name: str, start: np.ndarray, best: np.ndarray, image_shape: tuple[int, int] | None, columns: Sequence[str] = ()
) -> str:
    """Before and after: small images, heat maps, points by name or a sorted curve, whichever the shape asks for.

    `columns`: the names of the entries, if there are as many, or of the entries and one more, an intercept.
    """
    name, start, best = plain(name), np.asarray(start, float), np.asarray(best, float)
    if best.ndim == 2 and image_shape is not None and best.shape[0] == math.prod(image_shape):
        return _images(name, start, best, image_shape)
    if best.ndim == 1 and image_shape is not None and best.size == math.prod(image_shape):
        return _images(name, start[:, None], best[:, None], image_shape)
    if best.ndim == 2 and min(best.shape) > 1:
        return _heat(name, start, best)
    if best.size <= len(columns) <= best.size + 1:
        return _named(name, np.ravel(start), np.ravel(best), columns[: best.size])
    return _lines(name, np.ravel(start), np.ravel(best))


def _images(name: str, start: np.ndarray, best: np.ndarray, shape: tuple[int, int]) -> str:
    count = best.shape[1]
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    norm, _ = _colours(start, best)
    figure = Figure(figsize=(WIDTH, 0.6 + 0.95 * 2 * rows), layout="constrained")
    parts: Any = figure.subfigures(2, 1, squeeze=False)
    picture: Any = None
    everything = []
    for part, values, title in zip(parts[:, 0], (start, best), ("before", "after"), strict=True):
        part.suptitle(f"{name}, {title}", fontsize=10)
        grid = part.subplots(rows, columns, squeeze=False)
        for i, axes in enumerate(grid.ravel()):
            axes.set_axis_off()
            if i < count:
                picture = axes.imshow(values[:, i].reshape(shape), norm=norm, cmap="viridis", interpolation="nearest")
                if count > 1:
                    axes.set_title(str(i), fontsize=8, pad=2)
        everything.append((part, grid))
    for part, grid in everything:
        _colour_bar(part, picture, list(grid.ravel()), 0.02, 0.01)
    return _svg(figure, cropped=True)


def _heat(name: str, start: np.ndarray, best: np.ndarray) -> str:
    norm, _ = _colours(start, best)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    pair = figure.subplots(1, 2)
    picture: Any = None
    for axes, values, title in zip(pair, (start, best), ("before", "after"), strict=True):
        picture = axes.imshow(values, norm=norm, cmap="viridis", aspect="auto", interpolation="nearest")
        axes.set_title(f"{name}, {title}", fontsize=10)
        axes.set_xlabel("column")
        axes.set_ylabel("row")
    _colour_bar(figure, picture, list(pair), 0.03)
    return _svg(figure, cropped=True)


def _named(name: str, start: np.ndarray, best: np.ndarray, columns: Sequence[str]) -> str:
    """A point for each column, the smallest at the top; of many the first and the last alone."""
    order = np.argsort(best, kind="stable")
    if len(order) > MOST_NAMES:
        order = np.r_[order[: MOST_NAMES // 2], order[-(MOST_NAMES // 2) :]]
    figure, axes = _axes(1.0 + 0.22 * len(order))
    places = np.arange(len(order))
    axes.plot(start[order], places, "|", color=INK, markersize=8, label="before")
    axes.plot(best[order], places, "o", color=BLUE, markersize=4, label="after")
    axes.set_yticks(places, [_short(str(columns[int(i)])) for i in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    if len(order) < best.size:
        axes.axhline(MOST_NAMES // 2 - 0.5, color=INK, linewidth=0.8, linestyle=":")
        axes.set_title(f"the {MOST_NAMES // 2} smallest and the {MOST_NAMES // 2} largest of {best.size}", fontsize=10)
    if np.all(best > 0) and np.all(start > 0):
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
    axes.set_xlabel(name)
    axes.legend(frameon=False)
    return _svg(figure, cropped=True)


def _short(name: str) -> str:
    return plain(name if len(name) <= 28 else f"{name[:27]}…")


def _lines(name: str, start: np.ndarray, best: np.ndarray) -> str:
    """Both curves, their entries in the order of the values after."""
    figure, axes = _axes(3.0)
    index, order = np.arange(best.size), np.argsort(best, kind="stable")
    axes.plot(index, start[order], color=INK, linestyle="--", label="before")
    axes.plot(index, best[order], color=BLUE, marker="o" if best.size < 60 else None, markersize=3, label="after")
    if np.all(best > 0) and np.all(start > 0):
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
    axes.set_xlabel("entries, from the smallest to the largest")
    axes.set_ylabel(name)
    axes.legend(frameon=False)
    return _svg(figure)


@_styled
def calibration(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """The share that came true against the probability said, in bins of equal numbers of rows, by model."""
    figure, axes = _axes()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8)
    for (name, bins), colour in zip(curves.items(), (ORANGE, BLUE, GREEN) * 9, strict=False):
        said, seen, rows = np.asarray(bins, float).T
        share = (seen * rows + 1) / (rows + 2)  # Agresti and Coull: no error of 0 at the ends
        error = np.sqrt(share * (1 - share) / (rows + 2))
        axes.errorbar(said, seen, error, color=colour, marker="o", capsize=2, label=plain(name))
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("probability said")
    axes.set_ylabel("share that came true")
    axes.legend(frameon=False)
    return _svg(figure)


@_styled
def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """How many rows of each class were taken for which."""
    table = np.asarray(counts)
    size = max(2.6, 0.45 * len(classes) + 1.2)
    figure = Figure(figsize=(max(WIDTH, size), size), layout="constrained")
    axes = figure.add_subplot()
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.6)
    for (i, j), count in np.ndenumerate(table):
        axes.text(j, i, str(count), ha="center", va="center", color="white" if share[i, j] > 0.8 else "#222222")
    names = [_short(name) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=0 if len(names) < 5 else 90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _svg(figure)  # as wide as the others, so that all have letters of one size


@_styled
def predictions(pairs: Mapping[str, Any]) -> str:
    """Truth against prediction, and what is left over."""
    said, true = np.asarray(pairs["said"], float), np.asarray(pairs["true"], float)
    figure = Figure(figsize=(WIDTH, HEIGHT))
    left, right = figure.subplots(1, 2)
    _framed(figure, left, right)
    for axes, values, label in ((left, true, "truth"), (right, true - said, "truth less prediction")):
        axes.plot(said, values, ".", color=BLUE, alpha=0.6)
        axes.set_xlabel("prediction")
        axes.set_ylabel(label)
    ends = [float(min(said.min(), true.min())), float(max(said.max(), true.max()))]
    left.plot(ends, ends, color=INK, linewidth=0.8)
    right.axhline(0, color=INK, linewidth=0.8)
    return _svg(figure)
