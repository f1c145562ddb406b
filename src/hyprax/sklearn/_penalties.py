"""Which weights share a strength, by the names of the user's columns."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = ("one", "feature", "group", "class", "weight")


@dataclasses.dataclass(frozen=True)
class Strengths:
    """The strength of each weight: `index` is (d,) or (d, C), -1 where there is none; `names` are of the strengths."""

    index: np.ndarray
    names: tuple[str, ...]
    free: np.ndarray
    """Columns without a penalty, booleans (d,)."""
    kinds: np.ndarray | None = None
    """For strengths of features, the group of each, where groups are given: another way of holding them back."""


def strengths(kind: Any, features: Sequence[str], groups: Any, free: Any, outputs: Sequence[str] | None) -> Strengths:
    """The strengths of an estimator's `penalties`, with names.

    - `outputs`: the names of the columns of the weights, `None` where they are a vector.

    **Raises:** `ValueError` for another kind, columns that are not there, groups that overlap or leave columns out.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"penalties must be one of {', '.join(map(repr, KINDS))}; got {kind!r}.")
    d = len(features)
    unpenalised = np.zeros(d, bool)
    if free is not None:
        unpenalised[places(free, features, "free")] = True
    if unpenalised.all():
        raise ValueError("free must leave at least one column with a penalty; got all of them.")
    kept = np.flatnonzero(~unpenalised)
    if kind == "class" and outputs is None:
        raise ValueError(
            "penalties='class' must have several columns of weights (three classes or more, or several targets); got "
            "one. Use 'one', 'feature' or 'group'."
        )
    if kind == "weight" and outputs is not None:
        index = np.full((d, len(outputs)), -1)
        index[kept] = np.arange(len(kept) * len(outputs)).reshape(len(kept), -1)
        names = tuple(f"{features[j]}, {output}" for j in kept.tolist() for output in outputs)
        return Strengths(index, names, unpenalised)
    if kind == "class" and outputs is not None:
        index = np.where(unpenalised[:, None], -1, np.arange(len(outputs)))
        return Strengths(index, tuple(outputs), unpenalised)
    index, names = np.full(d, -1), ("all",)
    if kind == "one":
        index[kept] = 0
    elif kind == "group":
        index, names = grouped(groups, features, unpenalised)
    else:
        index[kept], names = np.arange(len(kept)), tuple(features[j] for j in kept.tolist())
    if outputs is not None:
        index = np.repeat(index[:, None], len(outputs), axis=1)
    together = grouped(groups, features, unpenalised)[0][kept] if kind == "feature" and groups is not None else None
    return Strengths(index, names, unpenalised, together)


def places(columns: Any, features: Sequence[str], what: str) -> np.ndarray:
    """The numbers of columns given by name, number, slice or mask.

    **Raises:** `ValueError` for a column that is not there.
    """
    d = len(features)
    if isinstance(columns, str | int | np.integer) and not isinstance(columns, bool):
        columns = [columns]
    if isinstance(columns, slice):
        columns = range(*columns.indices(d))
    columns = np.asarray(list(columns), object)  # pyright: ignore[reportArgumentType]  # whatever the user gave
    if columns.size == d and all(isinstance(column, bool | np.bool_) for column in columns):
        return np.flatnonzero(columns.astype(bool))
    numbers = {name: number for number, name in enumerate(features)}
    found = []
    for column in columns:
        number = numbers.get(column, column) if isinstance(column, str) else column
        if isinstance(number, bool | np.bool_ | str) or not isinstance(number, int | np.integer):
            raise ValueError(f"{what} must name columns of X; got {column!r}, which is none of {shortened(features)}.")
        if not -d <= number < d:
            raise ValueError(f"{what} must be columns from 0 to {d - 1}; got {number}.")
        found.append(int(number) % d)
    return np.asarray(found, int)


def grouped(groups: Any, features: Sequence[str], free: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The group of every column, and the names of the groups."""
    d = len(features)
    if groups is None:
        raise ValueError(
            "penalties='group' requires groups: 'auto' (names such as block__column), a label for each column, or a "
            "mapping of names to columns."
        )
    if isinstance(groups, str) and groups == "auto":
        without = [name for name in features if "__" not in name]
        if without:
            raise ValueError(
                "groups='auto' must find names of columns such as 'block__column', as a ColumnTransformer with "
                f"set_output(transform='pandas') makes them; got {shortened(without)}."
            )
        labels = [name.split("__", 1)[0] for name in features]
    elif isinstance(groups, Mapping):
        owner: dict[int, str] = {}
        for name, columns in groups.items():
            for place in places(columns, features, f"groups[{name!r}]"):
                if place in owner:
                    raise ValueError(
                        f"groups must not overlap; got {features[place]!r} in {owner[place]!r} and in {str(name)!r}."
                    )
                owner[int(place)] = str(name)
        left = [features[j] for j in range(d) if j not in owner and not free[j]]
        if left:
            raise ValueError(
                f"groups must hold every column; got none for {shortened(left)}. Put them in a group, or in free= for "
                "no penalty."
            )
        labels = [owner.get(j, "") for j in range(d)]
    else:
        if isinstance(groups, str) or not isinstance(groups, Sequence | np.ndarray) or len(groups) != d:
            raise ValueError(
                f"groups must be 'auto', a label for each of the {d} columns, or a mapping of names to columns; got "
                f"{groups!r}."
            )
        labels = [str(label) for label in groups]
    names = tuple(dict.fromkeys(label for label, none in zip(labels, free, strict=True) if not none))
    numbers = {name: number for number, name in enumerate(names)}
    index = np.asarray([-1 if none else numbers[label] for label, none in zip(labels, free, strict=True)])
    return index, names


def shortened(names: Sequence[str]) -> str:
    """The first few names."""
    shown = ", ".join(map(repr, names[:6]))
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"
