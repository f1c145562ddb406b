"""Pictures of piecewise functions and of the answer of `tune`; matplotlib is imported when one is drawn."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ._piecewise import PiecewiseFunction

Array = np.ndarray
_POINTS = 1500


def grid(domain: tuple[float, float], log: bool, points: int = _POINTS) -> Array:
    """Points over the domain, ends included, evenly spaced in alpha or in log alpha."""
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


def plot_function(f: "PiecewiseFunction", ax: "Axes | None", **style: Any) -> "Axes":
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
