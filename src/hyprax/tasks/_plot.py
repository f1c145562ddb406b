"""Pictures of piecewise functions and of the answer of `tune`; matplotlib is imported when one is drawn."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ._bernstein import Array
from ._pieces import BoundedDual, Pieces

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 1500
_CURVES = 400
"""At most so many tasks are drawn; of more, every k-th."""


def grid(domain: tuple[float, float], log: bool, points: int = _POINTS) -> Array:
    """Points over the domain, ends included, evenly spaced in α or in log α."""
    a, b = domain
    inner = np.geomspace(a, b, points) if log else np.linspace(a, b, points)
    return np.clip(inner, a, b)


def is_wide(domain: tuple[float, float]) -> bool:
    """Whether a logarithmic axis serves: a positive domain over more than a factor of 30."""
    return domain[0] > 0 and domain[1] / domain[0] > 30


def axes(ax: "Axes | None") -> "Axes":
    """The given axes, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7.5, 4.5), layout="constrained")[1]


def plot_function(f: Pieces, ax: "Axes | None", **style: Any) -> "Axes":
    """See [`PiecewiseFunction.plot`][hyprax.tasks.PiecewiseFunction.plot]."""
    ax = axes(ax)
    log = is_wide(f.domain)
    x = grid(f.domain, log)
    if f.n_pieces <= _POINTS:  # both sides of every breakpoint, so that jumps are upright
        inner = f.breakpoints[1:-1]
        x = np.union1d(x, np.concatenate([inner, np.nextafter(inner, -np.inf)]))
    (line,) = ax.plot(x, f(x), **style)
    lo, hi = f.enclose(x)
    if not f.is_exact:
        ax.fill_between(x, lo, hi, color=line.get_color(), alpha=0.2, linewidth=0)
    if log:
        ax.set_xscale("log")
    return ax


def plot_optimum(optimum: Any, ax: "Axes | None", xlabel: str, ylabel: str) -> "Axes":
    """See [`GlobalOptimum.plot`][hyprax.tasks.GlobalOptimum.plot]."""
    ax = axes(ax)
    domain = optimum.mean.domain
    log = is_wide(domain)
    x = grid(domain, log)
    shown = optimum.duals[:: max(1, len(optimum.duals) // _CURVES)]
    values = np.array([_middle(f, x) for f in shown])
    # Every curve as faint as their number asks for, so that a few and a thousand both read.
    strength = float(np.clip(30 / len(shown), 0.07, 0.5))
    ax.plot(x, values.T, color="#5b7b9a", linewidth=0.7, alpha=strength, rasterized=len(shown) > 50)
    ax.plot([], [], color="#5b7b9a", linewidth=0.9, label=f"{len(optimum.duals)} tasks")
    lo, hi = _enclosure(optimum.mean, x)
    ax.fill_between(x, lo, hi, color="#b5361c", alpha=0.25, linewidth=0)
    ax.plot(x, 0.5 * (lo + hi), color="#b5361c", linewidth=2.4, label="mean over tasks")
    for i, (a, b) in enumerate(optimum.epsilon_set):
        label = f"within {optimum.epsilon:.3g} of the least mean" if i == 0 else None
        ax.axvspan(a, b, color="#e8b64c", alpha=0.35, linewidth=0, label=label)
    ax.axvline(optimum.hyper, color="#222222", linewidth=0.9, linestyle=(0, (4, 3)))
    ax.plot(
        [optimum.hyper],
        [optimum.value],
        "o",
        color="#222222",
        markersize=6,
        zorder=5,
        label=f"optimum {optimum.hyper:.4g}: {optimum.value:.4g}",
    )
    if len(shown) > 4:  # a few extreme tasks must not flatten all others
        low, high = np.quantile(values.min(axis=1), 0.01), np.quantile(values.max(axis=1), 0.97)
        low, high = min(low, float(np.min(lo))), max(high, float(np.max(hi)))
        ax.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    if log:
        ax.set_xscale("log")
    ax.set_xlim(*domain)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    return ax


def _enclosure(f: BoundedDual, x: Array) -> tuple[Array, Array]:
    if isinstance(f, Pieces):
        return f.enclose(x)
    pairs = np.array([f.enclose(float(point)) for point in x], dtype=np.float64)
    return pairs[:, 0], pairs[:, 1]


def _middle(f: BoundedDual, x: Array) -> Array:
    lo, hi = _enclosure(f, x)
    return 0.5 * (lo + hi)
