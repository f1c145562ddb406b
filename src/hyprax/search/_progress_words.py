"""How a run ended, in words about its progress."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._noise import AbstractNoise
from ._default import FEW

FAR_BELOW = 0.1
FLAT = 1e-4
LEAST_FLAT = 5
WINDOW = 10


def progress_words(history: Sequence[Mapping[str, Any]], noisy: bool) -> str:
    """Whether the value was still falling when a run stopped: "had been flat for 40", "was still falling by 2 %"."""
    if noisy:
        return "its values are noisy, so only means over many steps tell whether it was still falling"
    values = np.asarray([row.get("value", math.nan) for row in history], float)
    lowest = np.fmin.accumulate(values)
    if len(lowest) < 2 or not math.isfinite(lowest[-1]):
        return ""
    falls = lowest[:-1] - lowest[1:] > FLAT * np.abs(lowest[1:])
    flat = len(falls) - (int(np.flatnonzero(falls)[-1]) + 1 if falls.any() else 0)
    if flat >= min(LEAST_FLAT, len(falls)):
        return f"the value had been flat for {flat}"
    window = min(WINDOW, len(falls))
    rate = (lowest[-1 - window] - lowest[-1]) / (window * max(abs(lowest[-1]), math.ulp(1.0)))
    return f"the value was still falling by {100 * rate:.2g} % a step"


def bound_words(row: Mapping[str, Any]) -> str:
    """How many coordinates rest at a bound of the search."""
    low, high = (int(row.get(name, 0)) for name in ("at_lower", "at_upper"))
    said = []
    if high:
        said.append(f"{high} at the upper one (a penalty there drops its feature)")
    if low:
        said.append(f"{low} at the lower one (a penalty there penalises nothing)")
    return f"Coordinates that rest at a bound of the search: {', '.join(said)}." if said else ""


def start_words(history: Sequence[Mapping[str, Any]]) -> str:
    """That nothing moved, of a run that found its hypergradient small enough where it began."""
    if len(history) != 1:
        return ""
    return (
        f"The hypergradient was that small ({history[0]['gradient_norm']:.2g}) where the run began, so nothing moved. "
        "Far from an optimum it can be small too: where strengths are near 0, or where the loss is small by its units. "
        "Start elsewhere, or lower `gradient` of `hx.search.Stopping`."
    )


def sample_words(count: int, noise: AbstractNoise | None, norm: float) -> str:
    """What is to be said of many hyperparameters that followed one sample, into its noise or with noise unmeasured.

    `norm`: of the last hypergradient. Where entries of pure noise are left alone it stays near the noise.
    """
    if noise is None or count <= FEW or not noise.over:
        return ""
    spread = float(noise.norm)
    if math.isnan(spread):
        said = f"were fitted to one sample ({noise.over}), and its noise was not measured: the value flatters them."
    elif norm < FAR_BELOW * spread:
        said = (
            f"were moved until the hypergradient ({norm:.2g}) was far below its noise ({spread:.2g}; {noise.over}): "
            "the value flatters them, unless a prior holds them."
        )
    else:
        return ""
    return (
        f"{count} hyperparameters {said} Judge them on rows that nothing touched, beside one strength refitted on the "
        "same rows (`hx.honest`); hold them back with `hx.search.shrinkage_path` or `hx.search.Gate`."
    )
