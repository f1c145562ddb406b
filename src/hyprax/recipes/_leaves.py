"""From the tables of [hyper] to hyperparameters."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._hyper import Interval, LogInterval, Positive
from ._data import Splits
from ._errors import RecipeError, as_error
from ._hyper_tables import Leaf, Numbers, Own, Penalty, Weights
from ._sources import MOST_ENTRIES


def leaf(asked: Leaf, start: Any) -> Any:
    """Numbers from `start`, free to move as the table says; an array where they do not."""
    start = np.asarray(start, dtype=np.float64)
    match asked.constraint:
        case "fixed" | "free":
            return jnp.asarray(start)
        case "positive":
            return Positive(start)
        case "interval":
            assert asked.bounds is not None
            return Interval(start, *asked.bounds)
        case _:
            assert asked.bounds is not None
            return LogInterval(start, *asked.bounds)


def inside(asked: Leaf, start: float) -> float:
    """`start`, moved inside the bounds where it lies outside them, or on the edge where nothing moves."""
    if asked.bounds is None:
        return start
    lo, hi = asked.bounds
    if asked.constraint == "interval":
        inset = 0.01 * (hi - lo)
        return float(np.clip(start, lo + inset, hi - inset))
    inset = (hi / lo) ** 0.01
    return float(np.clip(start, lo * inset, hi / inset))


def by_layer(asked: Leaf, start: float, shape: str, layers: Sequence[str], steps: int = 1) -> Any:
    """One leaf, or one for each layer, each one number or a schedule of `steps`."""
    if "step" in shape and steps * max(len(layers), 1) > MOST_ENTRIES:
        raise RecipeError(f"must give at most {MOST_ENTRIES} numbers to tune; got {steps} steps", key="training.steps")
    numbers = np.full((steps,) if "step" in shape else (), start)
    if "layer" in shape:
        return {name: leaf(asked, numbers) for name in layers}
    return leaf(asked, numbers)


def feature_groups(asked: Penalty, features: Sequence[str]) -> np.ndarray | None:
    """The group of each feature; `None` without groups."""
    if asked.groups is None:
        return None
    if isinstance(asked.groups[0], int):
        numbers = np.asarray(asked.groups)
        if len(numbers) != len(features):
            raise RecipeError(
                f"must be a number for each of {len(features)} features; got {len(numbers)}",
                key="hyper.penalty.groups",
            )
        return np.unique(numbers, return_inverse=True)[1].reshape(-1)
    found = np.full(len(features), -1)
    for number, names in enumerate(asked.groups):
        assert isinstance(names, list)
        for place in (place for name in names for place in _places(name, features)):
            if found[place] >= 0:
                raise RecipeError(f"must name features once; got {features[place]!r} twice", key="hyper.penalty.groups")
            found[place] = number
    found[found < 0] = len(asked.groups)
    return np.unique(found, return_inverse=True)[1].reshape(-1)


def _places(name: str, features: Sequence[str]) -> range:
    """Where a feature stands, or those from one to another, `"a..c"`."""
    ends = [name] if name in features else name.split("..")
    for end in ends:
        if end not in features or len(ends) > 2:
            shown = ", ".join(features[:12]) + (", ..." if len(features) > 12 else "")
            raise RecipeError(
                f'must name features ({shown}), or ranges such as "{features[0]}..{features[-1]}"; got {end!r}',
                key="hyper.penalty.groups",
            )
    first, last = features.index(ends[0]), features.index(ends[-1])
    if last < first:
        raise RecipeError(f"must have the first feature of a range first; got {name!r}", key="hyper.penalty.groups")
    return range(first, last + 1)


def weights(asked: Weights, splits: Splits) -> tuple[Any, np.ndarray | None]:
    """The weights, and the number of its weight for each example; `None` where each has its own."""
    if asked.shape == "example":
        return leaf(asked, np.full(len(splits.train[0]), asked.start)), None
    groups = splits.train[1] if asked.shape == "class" else splits.groups
    assert groups is not None  # the schema asks for data.groups
    count = len(splits.classes) if asked.shape == "class" else len(splits.group_names)
    return leaf(asked, np.full(count, asked.start)), groups


def own(name: str, asked: Own) -> Any:
    """A hyperparameter of the user's own.

    **Raises:** `RecipeError` for no numbers, ragged lists, a shape that does not fit, or a start outside its bounds.
    """
    key = f"{Own.place}.{name}"
    start = numbers(asked.start, f"{key}.start")
    if not start.size:
        raise RecipeError("must have a number at least; got none", key=f"{key}.start")
    if asked.shape is not None:
        if math.prod(asked.shape) > MOST_ENTRIES:
            raise RecipeError(f"must have at most {MOST_ENTRIES} entries; got {asked.shape}", key=f"{key}.shape")
        try:
            start = np.broadcast_to(start, tuple(asked.shape))
        except ValueError:
            raise RecipeError(
                f"must be a shape that a start of shape {list(start.shape)} can be repeated to; got {asked.shape}",
                key=f"{key}.shape",
            ) from None
    try:
        return leaf(asked, start)
    except ValueError as error:
        raise RecipeError(as_error(error), key=f"{key}.start") from None


def numbers(given: Numbers, key: str) -> np.ndarray:
    """A number, or lists of them, as an array.

    **Raises:** `RecipeError` for ragged lists.
    """
    try:
        return np.asarray(given, dtype=np.float64)
    except ValueError:
        raise RecipeError("must be lists of one length; got several", key=key) from None
