"""Data for a recipe: loaded, checked, split, scaled."""

import dataclasses
from pathlib import Path

import numpy as np

from ._data_tables import DataSource, Split
from ._errors import RecipeError
from ._sources import load

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Splits:
    """Inputs `(n, d)` float64 and targets of three parts; labels are 0..C-1 for classes.

    - `classes`: the names of the labels, in order; empty for regression.
    - `features`: the names of the columns.
    - `image_shape`: rows and columns, where an input is an image.
    - `rows`: where each training row stands in the data, from 0.
    - `corrupted`: which training rows were given a wrong class.
    - `groups`: the group of each training row, numbered from 0 as in `group_names`; `None` without `data.groups`.
    """

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: tuple[str, ...]
    features: tuple[str, ...]
    image_shape: tuple[int, int] | None
    rows: np.ndarray
    corrupted: np.ndarray
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()


def check_batch_size(asked: int | None, rows: int, key: str) -> None:
    """Refuse batches that are larger than the training part.

    **Raises:** `RecipeError`.
    """
    if asked is not None and asked > rows:
        raise RecipeError(f"must be at most {rows}, the rows of the training part; got {asked}", key=key)


def load_splits(data: DataSource, split: Split, folder: Path, *, classify: bool) -> Splits:
    """Load what a recipe names, refuse what cannot be used, split it and scale it by its training part.

    **Raises:** `RecipeError`.
    """
    inputs, targets, features, image_shape, groups = load(data, folder)
    _check_numbers(inputs, features)
    if len(inputs) != len(targets):
        raise RecipeError(f"must have a target for each input; got {len(inputs)} and {len(targets)}", key="data")
    random = np.random.default_rng(split.seed)
    rows = np.arange(len(inputs))
    if data.rows is not None:
        if data.rows > len(inputs):
            raise RecipeError(f"must be at most {len(inputs)}, the rows there are; got {data.rows}", key="data.rows")
        rows = random.permutation(len(inputs))[: data.rows]
        inputs, targets = inputs[rows], targets[rows]
    targets, classes = _labels(targets) if classify else (_numbers(targets), ())
    parts = _indices(targets, split, random, classify=classify)
    if classify:
        _check_classes(targets, classes, parts["train"])
    elif data.scale_targets:
        targets = _scale(targets[:, None], parts["train"], "standard")[:, 0]
    scaled = _scale(inputs, parts["train"], data.scale)
    if data.intercept:
        scaled = np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
        features, image_shape = (*features, "intercept"), None
    pieces = {name: (scaled[part], targets[part]) for name, part in parts.items()}
    corrupted = np.zeros(len(parts["train"]), bool)
    if data.corrupt:
        labels, corrupted = _corrupted(pieces["train"][1], len(classes), data.corrupt, random)
        pieces["train"] = (pieces["train"][0], labels)
    names, numbers = (), None
    if groups is not None:
        found, numbers = np.unique(groups[rows][parts["train"]], return_inverse=True)
        names, numbers = tuple(map(str, found)), numbers.reshape(-1)
    return Splits(
        **pieces,
        classes=classes,
        features=features,
        image_shape=image_shape,
        rows=rows[parts["train"]],
        corrupted=corrupted,
        groups=numbers,
        group_names=names,
    )


def _corrupted(
    labels: np.ndarray, classes: int, rate: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A part `rate` of the labels moved to another class, each of the others as likely; and which were."""
    count = round(rate * len(labels))
    chosen = random.permutation(len(labels))[:count]
    wrong = labels.copy()
    wrong[chosen] = (labels[chosen] + random.integers(1, classes, count)) % classes
    return wrong, wrong != labels


def _check_numbers(inputs: np.ndarray, features: tuple[str, ...]) -> None:
    if not inputs.size:
        raise RecipeError("must have a row and a column at least; got none", key="data")
    bad = ~np.isfinite(inputs)
    if np.any(bad):
        row, column = np.argwhere(bad)[0]
        more = f" (and {bad.sum() - 1} more entries like it)" if bad.sum() > 1 else ""
        held = f"{inputs[row, column]} in row {row + 1}, column {features[column]!r}{more}"
        raise RecipeError(f"must hold finite numbers; got {held}", key="data")


def _labels(targets: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels 0..C-1 and the names of classes, in their order: of whole numbers however they are written, or texts."""
    if targets.dtype.kind == "f":
        if not np.all(np.isfinite(targets)):
            raise RecipeError("must have classes as targets; got NaN or infinite numbers among them", key="data")
        if not np.all(targets == np.round(targets)):
            raise RecipeError('must be for numbers, such as "ridge"; got targets with fractions', key="model.kind")
    names, labels = np.unique(targets, return_inverse=True)
    if len(names) < 2:
        raise RecipeError(f"must have two classes at least; got one alone, {names[0]}", key="data")
    shown = (str(int(name)) if targets.dtype.kind == "f" else str(name) for name in names)
    return labels.reshape(-1), tuple(shown)


def _numbers(targets: np.ndarray) -> np.ndarray:
    try:
        numbers = targets.astype(np.float64)
    except (ValueError, OverflowError):
        raise RecipeError(
            'must be for classes, such as "softmax"; got targets that are texts', key="model.kind"
        ) from None
    if not np.all(np.isfinite(numbers)):
        raise RecipeError("must have finite numbers as targets; got NaN or an infinite one", key="data")
    return numbers


def _check_classes(targets: np.ndarray, classes: tuple[str, ...], train: np.ndarray) -> None:
    counts, trained = (np.bincount(labels, minlength=len(classes)) for labels in (targets, targets[train]))
    if np.all(trained):
        return
    lost = int(np.argmin(trained))
    if counts[lost] < 3:  # no split can have it in every part
        raise RecipeError(
            f"must have three rows at least of each class, to be split; got {counts[lost]} of class {classes[lost]}",
            key="data",
        )
    raise RecipeError(
        f"must leave every class a row to train on; got none of class {classes[lost]}, in {counts[lost]} of "
        f"{len(targets)} rows",
        key="split.train",
    )


def _indices(
    targets: np.ndarray, split: Split, random: np.random.Generator, *, classify: bool
) -> dict[str, np.ndarray]:
    """Rows of each part: of every class the same fraction, in random order.

    Not `train_test_split`, which refuses a class with a single row in any part.
    """
    groups = (
        [np.flatnonzero(targets == label) for label in np.unique(targets)] if classify else [np.arange(len(targets))]
    )
    found: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    for group in groups:
        order, first = random.permutation(group), 0.0
        for name in PARTS:
            last = first + getattr(split, name)
            found[name].append(order[round(first * len(group)) : round(last * len(group))])
            first = last
    parts = {name: random.permutation(np.concatenate(rows)) for name, rows in found.items()}
    for name, rows in parts.items():
        if not len(rows) and getattr(split, name) > 0:  # the evidence needs no validation part
            raise RecipeError(
                f"must be more of {len(targets)} rows: that part is empty; got {getattr(split, name):g}",
                key=f"split.{name}",
            )
    return parts


def _scale(inputs: np.ndarray, train: np.ndarray, scale: str) -> np.ndarray:
    """Columns scaled by their training rows, whatever their size; constant ones are moved alone.

    Not the scalers of scikit-learn: their variances overflow from 1e154 on, and a range below 2e-15 counts as none.
    """
    if scale == "unit":
        return inputs / (np.max(np.abs(inputs[train])) or 1.0)
    if scale == "none":
        return inputs
    size = np.frexp(np.max(np.abs(inputs[train]), axis=0))[1]
    with np.errstate(over="ignore"):
        inputs = np.ldexp(inputs, -size)  # exact: a power of two for each column
    known = inputs[train]
    low, high = known.min(axis=0), known.max(axis=0)
    middle, spread = (low, high - low) if scale == "minmax" else (known.mean(axis=0), known.std(axis=0))
    constant = low == high
    return (inputs - np.where(constant, low, middle)) / np.where(constant, 1.0, spread)
