"""Data for a recipe: loaded, checked, split, scaled."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..search._cross_validated import dealt_folds
from ._columns import Column
from ._data_tables import DataSource, Split
from ._errors import RecipeError
from ._preparation import Preparation, Scaling, expanded, pairs_of, scaling
from ._sources import MOST_ENTRIES, load

PARTS: tuple[str, ...] = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Splits:
    """Inputs `(n, d)` float64 and targets of three parts; labels are 0..C-1 for classes.

    - `classes`: the names of the labels, in order; empty for regression.
    - `features`: the names of the columns.
    - `image_shape`: rows and columns, where an input is an image.
    - `rows`: where each training row stands in the data, from 0.
    - `corrupted`: which training rows were given a wrong class.
    - `groups`: the group of each training row, numbered from 0 as in `group_names`; `None` without `data.groups`.
    - `intercept`: whether the last column is one of ones.
    - `blocks`: the number of the column of the table that each feature comes from; squares and products have their own.
    - `kinds`: of each feature 0 for a column itself, 1 for a square, 2 for a product.
    - `prepare`: from inputs as they are read to these columns; `read`: the names of those inputs; `units`: how targets
        were scaled.
    - `class_weights`: of each class, with the mean 1 over all rows but those of the test part; empty without any.
    - `columns`, `notes`: of a table, what its columns were taken for, and that in words.
    - `offsets`: of each part, in the order of `PARTS`, the logarithms of the exposures that outputs are moved by; empty
        without any.
    - `folded`: training and validation rows are one part, `train`, of which folds are made; `pairs`: these, as masks
        (training, held out), where rows belong together or follow each other.
    - `clusters`: of the test part, the group of each row, where rows are split by groups; `in_time`: by time.
    - `segments`: of the test part, the value of each row in `data.segments`, or else its group; `None` without both.
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
    intercept: bool = False
    blocks: tuple[int, ...] = ()
    kinds: tuple[int, ...] = ()
    folded: bool = False
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] | None = None
    clusters: np.ndarray | None = None
    segments: np.ndarray | None = None
    in_time: bool = False
    prepare: Preparation | None = None
    read: tuple[str, ...] = ()
    units: Scaling | None = None
    class_weights: tuple[float, ...] = ()
    offsets: tuple[np.ndarray, ...] = ()
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fitted(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows but those of the test part: what a model is fitted on in the end."""
        pairs = (self.train,) if self.folded else (self.train, self.validation)
        inputs, targets = zip(*pairs, strict=True)
        return np.concatenate(inputs), np.concatenate(targets)

    @property
    def fitted_offset(self) -> np.ndarray | None:
        """The offset of these rows."""
        return np.concatenate(self.offsets[:2]) if self.offsets else None

    def weights_of(self, labels: np.ndarray) -> np.ndarray:
        """What a row of each class counts."""
        return np.asarray(self.class_weights)[labels.astype(int)] if self.class_weights else np.ones(len(labels))


def check_batch_size(asked: int | None, rows: int, key: str) -> None:
    """Refuse batches that are larger than the training part.

    **Raises:** `RecipeError`.
    """
    if asked is not None and asked > rows:
        raise RecipeError(f"must be at most {rows}, the rows of the training part; got {asked}", key=key)


def load_splits(
    data: DataSource,
    split: Split,
    folder: Path,
    *,
    classify: bool,
    folds: Callable[[int, int], bool] = lambda rows, columns: False,
    intercept: bool = False,
) -> Splits:
    """Load what a recipe names, refuse what cannot be used, split it and scale it by its training part.

    `folds(rows, columns)` says whether training and validation part are one, for so many of both; `intercept`, whether
    inputs that are no images get a column of ones where the table does not say.

    **Raises:** `RecipeError`.
    """
    loaded = load(data, folder)
    inputs, targets, features, image_shape, groups = loaded[:5]
    _check_numbers(inputs, features, missing=bool(loaded.columns))
    if len(inputs) != len(targets):
        raise RecipeError(f"must have a target for each input; got {len(inputs)} and {len(targets)}", key="data")
    random = np.random.default_rng(split.seed)
    rows = np.arange(len(inputs))
    if data.rows is not None:
        if data.rows > len(inputs):
            raise RecipeError(f"must be at most {len(inputs)}, the rows there are; got {data.rows}", key="data.rows")
        rows = random.permutation(len(inputs))[: data.rows]
        rows = np.sort(rows) if split.by == "time" else rows
        inputs, targets = inputs[rows], targets[rows]
    if data.positive is not None and not classify:
        raise RecipeError("must be left out for targets that are numbers", key="data.positive")
    targets, classes = _labels(targets, data.positive) if classify else (_numbers(targets), ())
    labels = groups[rows] if groups is not None and split.by == "groups" else None
    parts = indices(targets, split, random, classify=classify, groups=labels)
    known = len(parts["train"]) + len(parts["validation"])
    if folded := folds(known, inputs.shape[1]):
        if split.folds > known:
            raise RecipeError(f"must be at most {known}, the rows to fold; got {split.folds}", key="split.folds")
        parts["train"] = np.concatenate([parts["train"], parts["validation"]])
        parts["validation"] = parts["validation"][:0]
    pairs = _pairs(split, len(parts["train"]), labels, parts["train"], random) if folded else None
    units = None
    if classify:
        _check_classes(targets, classes, parts["train"], least=2 if folded else 1)
    elif data.scale_targets:
        units = scaling(targets[parts["train"]][:, None], "standard")
        targets = units(targets[:, None])[:, 0]
    ones = intercept and image_shape is None if data.intercept is None else data.intercept
    read = features
    prepare, features, kinds = _prepared(data, inputs, features, parts["train"], intercept=ones)
    scaled = prepare(inputs)
    if scaled.shape[1] != inputs.shape[1]:
        image_shape = None
    pieces = {name: (scaled[part], targets[part]) for name, part in parts.items()}
    corrupted = np.zeros(len(parts["train"]), bool)
    if data.corrupt:
        given, corrupted = _corrupted(pieces["train"][1], len(classes), data.corrupt, random)
        pieces["train"] = (pieces["train"][0], given)
    asked: tuple[float, ...] = ()
    if data.class_weight is not None:
        asked = _class_weights(data.class_weight, classes, np.concatenate([pieces[name][1] for name in PARTS[:2]]))
    exposure = None if loaded.exposure is None else np.log(loaded.exposure[rows])
    names, numbers = (), None
    if groups is not None:
        found, numbers = np.unique(groups[rows][parts["train"]], return_inverse=True)
        names, numbers = tuple(map(str, found)), numbers.reshape(-1)
    segments = groups if loaded.segments is None else loaded.segments
    return Splits(
        **pieces,
        classes=classes,
        features=features,
        image_shape=image_shape,
        rows=rows[parts["train"]],
        corrupted=corrupted,
        groups=numbers,
        group_names=names,
        intercept=ones,
        blocks=_blocks(loaded.columns, len(features)),
        kinds=tuple(kinds),
        folded=folded,
        pairs=pairs,
        clusters=None if labels is None else labels[parts["test"]],
        segments=None if segments is None else segments[rows][parts["test"]],
        in_time=split.by == "time",
        prepare=prepare,
        read=read,
        units=units,
        class_weights=asked,
        offsets=() if exposure is None else tuple(exposure[parts[name]] for name in PARTS),
        columns=loaded.columns,
        notes=loaded.notes,
    )


def _prepared(
    data: DataSource, inputs: np.ndarray, features: tuple[str, ...], train: np.ndarray, *, intercept: bool
) -> tuple[Preparation, tuple[str, ...], list[int]]:
    """How inputs become columns, the names of the columns, and their kinds."""
    count = inputs.shape[1]
    first, second, kinds = scaling(inputs[train], data.scale), None, [0] * count
    if data.expand != "none":
        pairs = pairs_of(count, data.expand)
        if (size := len(inputs) * (2 * count + len(pairs))) > MOST_ENTRIES:
            raise RecipeError(f"must give at most {MOST_ENTRIES} entries; got {size}", key="data.expand")
        both = expanded(first(inputs), data.expand)
        if not np.all(np.isfinite(both)):
            raise RecipeError('must be "none" for columns so large: products overflow (data.scale)', key="data.expand")
        second = scaling(both[train], data.scale)
        products = [f"{features[i]}*{features[j]}" for i, j in pairs]
        features = (*features, *(f"{name}^2" for name in features), *products)
        kinds += [1] * count + [2] * len(pairs)
    if intercept:
        features, kinds = (*features, "intercept"), [*kinds, 0]
    return Preparation(first, data.expand, second, intercept), features, kinds


def _blocks(columns: Sequence[Column], count: int) -> tuple[int, ...]:
    found = [number for number, column in enumerate(columns) for _ in column.features]
    return (*found, *range(len(columns), len(columns) + count - len(found)))


def _corrupted(
    labels: np.ndarray, classes: int, rate: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A part `rate` of the labels moved to another class, each of the others as likely; and which were."""
    count = round(rate * len(labels))
    chosen = random.permutation(len(labels))[:count]
    wrong = labels.copy()
    wrong[chosen] = (labels[chosen] + random.integers(1, classes, count)) % classes
    return wrong, wrong != labels


def _class_weights(asked: str | Mapping[str, float], classes: tuple[str, ...], labels: np.ndarray) -> tuple[float, ...]:
    """Weights by class, with the mean 1 over the rows."""
    counts = np.bincount(labels, minlength=len(classes))
    if isinstance(asked, str):
        weights = 1 / counts
    else:
        if unknown := [name for name in asked if name not in classes]:
            shown = ", ".join(classes[:10]) + ", ..." * (len(classes) > 10)
            raise RecipeError(f"must name classes of the target, {shown}; got {unknown[0]!r}", key="data.class_weight")
        weights = np.asarray([asked.get(name, 1.0) for name in classes])
    return tuple((weights * len(labels) / np.sum(counts * weights)).tolist())


def _check_numbers(inputs: np.ndarray, features: tuple[str, ...], *, missing: bool) -> None:
    if not inputs.size:
        raise RecipeError("must have a row and a column at least; got none", key="data")
    bad = np.isinf(inputs) if missing else ~np.isfinite(inputs)
    if np.any(bad):
        row, column = np.argwhere(bad)[0]
        more = f" (and {bad.sum() - 1} more entries like it)" if bad.sum() > 1 else ""
        held = f"{inputs[row, column]} in row {row + 1}, column {features[column]!r}{more}"
        raise RecipeError(f"must hold finite numbers; got {held}", key="data")


def _labels(targets: np.ndarray, positive: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels 0..C-1 and the names of classes, in their order: of whole numbers however they are written, or texts.

    Of two classes the `positive` one is 1.
    """
    if targets.dtype.kind == "f":
        if not np.all(np.isfinite(targets)):
            raise RecipeError("must have classes as targets; got NaN or infinite numbers among them", key="data")
        if not np.all(targets == np.round(targets)):
            raise RecipeError('must be for numbers, such as "ridge"; got targets with fractions', key="model.kind")
    names, labels = np.unique(targets, return_inverse=True)
    if len(names) < 2:
        raise RecipeError(f"must have two classes at least; got one alone, {names[0]}", key="data")
    if len(names) == len(targets) > 2:
        raise RecipeError("must have classes of several rows as targets; got another for each row", key="data")
    shown: tuple[str, ...] = tuple(str(int(name)) if targets.dtype.kind == "f" else str(name) for name in names)
    labels = labels.reshape(-1)
    if positive is None:
        return labels, shown
    if len(shown) > 2 or positive not in shown:
        raise RecipeError(
            f"must be one of two classes; got {positive!r} and {', '.join(shown[:5])}" + ", ..." * (len(shown) > 5),
            key="data.positive",
        )
    return (labels, shown) if shown.index(positive) else (1 - labels, shown[::-1])


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


def _check_classes(targets: np.ndarray, classes: tuple[str, ...], train: np.ndarray, *, least: int) -> None:
    counts, trained = (np.bincount(labels, minlength=len(classes)) for labels in (targets, targets[train]))
    if np.all(trained >= least):
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


def indices(
    targets: np.ndarray, split: Split, random: np.random.Generator, *, classify: bool, groups: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Rows of each part: of every class the same fraction, in random order; or whole groups; or one after the other.

    Not `train_test_split`, which refuses a class with a single row in any part.
    """
    if groups is not None:
        parts = _whole_groups(groups, split, random)
    elif split.by == "time":
        ends = np.round(np.cumsum([split.fractions[name] for name in PARTS]) * len(targets)).astype(int)
        cut = np.split(np.arange(ends[-1]), ends[:-1])
        parts = dict(zip(PARTS, cut, strict=True))
    else:
        parts = _single_rows(targets, split, random, classify=classify)
    for name, rows in parts.items():
        if not len(rows) and split.fractions[name] > 0:  # the evidence needs no validation part
            of = f"{len(targets)} rows" if groups is None else f"{len(targets)} rows in {len(np.unique(groups))} groups"
            raise RecipeError(
                f"must be more of {of}: that part is empty; got {split.fractions[name]:g}",
                key=f"split.{name}",
            )
    return parts


def _whole_groups(groups: np.ndarray, split: Split, random: np.random.Generator) -> dict[str, np.ndarray]:
    """The groups in random order, each in the part in which its middle row falls."""
    names, numbers, counts = np.unique(groups, return_inverse=True, return_counts=True)
    order = random.permutation(len(names))
    middles = (np.cumsum(counts[order]) - counts[order] / 2) / len(groups)
    ends = np.cumsum([split.fractions[name] for name in PARTS])
    part = np.empty(len(names), int)
    part[order] = np.searchsorted(ends, middles, side="right")
    return {name: random.permutation(np.flatnonzero(part[numbers] == place)) for place, name in enumerate(PARTS)}


def _pairs(
    split: Split, rows: int, groups: np.ndarray | None, train: np.ndarray, random: np.random.Generator
) -> tuple[tuple[np.ndarray, np.ndarray], ...] | None:
    """Folds of whole groups, or of blocks in time, each judged by a fit on what came before; `None` for single rows."""
    if groups is not None:
        names, numbers = np.unique(groups[train], return_inverse=True)
        if len(names) < split.folds:
            raise RecipeError(f"must be at most {len(names)}, the groups to fold; got {split.folds}", key="split.folds")
        hands = dealt_folds(split.folds, random.permutation(len(names)), None)
        return tuple((fit[numbers], held[numbers]) for fit, held in hands)
    if split.by == "time":
        if rows <= split.folds:
            raise RecipeError(f"must be below {rows}, the rows to fold in time; got {split.folds}", key="split.folds")
        block = np.arange(rows) * (split.folds + 1) // rows
        return tuple((block < k, block == k) for k in range(1, split.folds + 1))
    return None


def _single_rows(
    targets: np.ndarray, split: Split, random: np.random.Generator, *, classify: bool
) -> dict[str, np.ndarray]:
    groups = (
        [np.flatnonzero(targets == label) for label in np.unique(targets)] if classify else [np.arange(len(targets))]
    )
    found: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    for group in groups:
        order, first = random.permutation(group), 0.0
        for name in PARTS:
            last = first + split.fractions[name]
            found[name].append(order[round(first * len(group)) : round(last * len(group))])
            first = last
    return {name: random.permutation(np.concatenate(rows)) for name, rows in found.items()}
