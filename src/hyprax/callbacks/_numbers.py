"""A step as numbers by name, for loggers; and packages that need not be installed."""

import importlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._arrays import leaf_names
from .._hyper import natural
from ..search import Step

MOST_ENTRIES = 8
"""Of an array of hyperparameters, beyond which its smallest, mean and largest entry stand for it."""


def hyper_numbers(hyper: PyTree) -> dict[str, float]:
    """Natural values by name: `hyper/penalty`; `hyper/penalty[2]`, or `.min`, `.mean` and `.max` of many."""
    values = natural(hyper)
    found: dict[str, float] = {}
    for path, leaf in zip(leaf_names(values), jax.tree.leaves(values), strict=True):
        array, name = np.asarray(leaf, float), f"hyper/{path}"
        if array.ndim == 0:
            found[name] = array.item()
        elif array.size <= MOST_ENTRIES:
            found |= {f"{name}[{','.join(map(str, place))}]": float(x) for place, x in np.ndenumerate(array)}
        else:
            found |= {f"{name}.min": float(array.min()), f"{name}.mean": float(array.mean())}
            found[f"{name}.max"] = float(array.max())
    return found


def row_of(step: Step) -> dict[str, Any]:
    """The row of the history, and the hyperparameters beside it."""
    return step.row() | hyper_numbers(step.hyper)


def finite_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The entries that a plot can show: numbers that are finite, without the count of steps."""
    return {
        name: float(x)
        for name, x in row.items()
        if name != "step" and isinstance(x, bool | int | float) and math.isfinite(x)
    }


def needed(module: str, package: str, by: str, extra: str = "loggers") -> Any:
    """A module of a package that need not be there.

    **Raises:** `ModuleNotFoundError`, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise ModuleNotFoundError(
            f'{by} needs {package}, which is not installed: pip install "hyprax[{extra}]"', name=error.name
        ) from None
