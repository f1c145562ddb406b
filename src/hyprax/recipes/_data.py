"""Data for a recipe: loaded, checked, split, scaled."""

import csv
import dataclasses
import gzip
import os
import socket
import struct
import urllib.error
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._data_tables import CsvData, DataSource, IdxData, NamedData, NpzData, OpenmlData, SklearnData, Split
from ._errors import RecipeError

PARTS = ("train", "validation", "test")
OPENML_SECONDS = 60.0

Loaded = tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[int, int] | None, np.ndarray | None]
"""Inputs, targets, the names of the columns, the shape of an image, and the group of each row."""


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
        raise RecipeError(f"given {asked}, allowed are at most {rows}, the rows of the training part", key=key)


def load_splits(data: DataSource, split: Split, folder: Path, *, classify: bool) -> Splits:
    """Load what a recipe names, refuse what cannot be used, split it and scale it by its training part.

    **Raises:** `RecipeError`.
    """
    inputs, targets, features, image_shape, groups = _load(data, folder)
    _check_numbers(inputs, features)
    if len(inputs) != len(targets):
        raise RecipeError(f"given {len(inputs)} inputs and {len(targets)} targets, allowed are as many", key="data")
    random = np.random.default_rng(split.seed)
    rows = np.arange(len(inputs))
    if data.rows is not None:
        if data.rows > len(inputs):
            raise RecipeError(
                f"given {data.rows}, allowed are at most {len(inputs)}, the rows there are", key="data.rows"
            )
        rows = random.permutation(len(inputs))[: data.rows]
        inputs, targets = inputs[rows], targets[rows]
    targets, classes = _labels(targets) if classify else (_numbers(targets), ())
    parts = _indices(targets, split, random, classify=classify)
    if classify:
        lost = [name for label, name in enumerate(classes) if not np.any(targets[parts["train"]] == label)]
        if lost:
            count = np.sum(targets == classes.index(lost[0]))
            raise RecipeError(
                f"class {lost[0]}, in {count} of {len(targets)} rows, is not in the training part, allowed are parts "
                "with every class",
                key="split.train",
            )
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


def _load(data: DataSource, folder: Path) -> Loaded:
    match data:
        case SklearnData():
            return (*_sklearn(data.name), None)
        case CsvData():
            inputs, targets, features, groups = _csv(_path(folder, data.path, "data.path"), data)
            return inputs, targets, features, None, groups
        case NpzData():
            return _npz(_path(folder, data.path, "data.path"), data)
        case IdxData():
            inputs = read_idx(_path(folder, data.inputs, "data.inputs"), "data.inputs")
            targets = read_idx(_path(folder, data.targets, "data.targets"), "data.targets")
            return (*_images(inputs, targets, folder, (data.inputs, data.targets)), None)
        case OpenmlData():
            return (*_openml(data.name, data.version), None)
        case NamedData():
            return (*_named(data.name), None)


def _path(folder: Path, name: str, key: str) -> Path:
    """A path of a recipe, relative to the recipe; `$HYPRAX_DATA` and other variables are replaced."""
    expanded = os.path.expandvars(name)
    if "$" in expanded:
        raise RecipeError(f"given {name!r}: that environment variable is not set", key=key)
    path = folder / Path(expanded).expanduser()
    if not path.is_file():
        raise RecipeError(f"given {name!r}: there is no file {path}", key=key)
    return path


def _named_columns(count: int) -> tuple[str, ...]:
    return tuple(f"x{i}" for i in range(count))


def _square(count: int) -> tuple[int, int] | None:
    side = round(count**0.5)
    return (side, side) if side > 1 and side * side == count else None


def _sklearn(name: str) -> tuple[Any, Any, Any, Any]:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    shape = bunch.images.shape[1:] if "images" in bunch else None
    return bunch.data, bunch.target, tuple(map(str, bunch.feature_names)), shape


def read_csv(path: Path, data: CsvData) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], np.ndarray | None]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"{path} cannot be read as CSV in UTF-8 ({error})", key="data.path") from None
    if len(rows) < 2:
        raise RecipeError(f"{path} has no rows under its header", key="data.path")
    header = [name.strip() for name in rows[0][1]]
    features = data.features or [name for name in header if name not in (data.target, data.groups)]
    _check_columns(path, header, data.target, features)
    if data.groups is not None and header.count(data.groups) != 1:
        raise RecipeError(
            f"there is no single column {data.groups!r} in {path}, allowed are {', '.join(header)}", key="data.groups"
        )
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise RecipeError(f"{path}:{line}: given {len(row)} fields, allowed are {len(header)}", key="data.path")
    columns = []
    for name in features:
        place, column = header.index(name), []
        for line, row in rows[1:]:
            number = _number(row[place])
            if number is None:
                raise RecipeError(
                    f"{path}:{line}: column {name!r} holds {row[place]!r}, allowed are numbers (data.features "
                    "names the columns to use)",
                    key="data.path",
                )
            if not np.isfinite(number):
                held = row[place].strip() or "nothing"
                raise RecipeError(
                    f"{path}:{line}: column {name!r} holds {held}, allowed are finite numbers", key="data.path"
                )
            column.append(number)
        columns.append(column)
    place = header.index(data.target)
    targets = [row[place].strip() for _, row in rows[1:]]
    numbers = [_number(target) for target in targets]
    for (line, _), target, number in zip(rows[1:], targets, numbers, strict=True):
        if number is not None and np.isnan(number):
            raise RecipeError(
                f"{path}:{line}: column {data.target!r} holds {target or 'nothing'}, allowed are values",
                key="data.target",
            )
    # Numbers where all are, so that 1 and 1.0 are one class, and fractions are seen to be none.
    found = np.asarray(targets if None in numbers else numbers)
    groups = None
    if data.groups is not None:
        groups = np.asarray([row[header.index(data.groups)].strip() for _, row in rows[1:]])
    return np.asarray(columns).T, found, tuple(features), groups


def _check_columns(path: Path, header: Sequence[str], target: str, features: Sequence[str]) -> None:
    """Refuse columns that are not there, or not there once."""
    if not features:
        raise RecipeError(f"{path} has no column besides the target", key="data.path")
    for key, name in [("data.target", target), *(("data.features", name) for name in features)]:
        if name not in header:
            raise RecipeError(f"there is no column {name!r} in {path}, allowed are {', '.join(header)}", key=key)
        if header.count(name) > 1:
            raise RecipeError(f"{path} has {header.count(name)} columns {name!r}, allowed is one", key="data.path")
    for name in features:
        if features.count(name) > 1:
            raise RecipeError(f"given {name!r} more than once", key="data.features")
        if name == target:
            raise RecipeError(
                f"given {name!r}, which is the target: it would be predicted from itself", key="data.features"
            )


def _number(text: str) -> float | None:
    """The number in a field, NaN for an empty one, `None` for a text."""
    try:
        return float(text.strip() or "nan")
    except ValueError:
        return None


def read_npz(path: Path, data: NpzData) -> tuple[Any, Any, Any, Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            named = (("data.inputs", data.inputs), ("data.targets", data.targets), ("data.groups", data.groups))
            for key, name in named:
                if name is not None and name not in arrays:
                    raise RecipeError(f"no array {name!r} in {path}, allowed are {', '.join(arrays)}", key=key)
            inputs, targets = arrays[data.inputs], arrays[data.targets]
            groups = None if data.groups is None else arrays[data.groups]
    except RecipeError:
        raise
    except Exception as error:  # of many types, by what is wrong with the file
        text = "it is none, or holds Python objects" if "pickle" in str(error) else str(error)
        raise RecipeError(
            f"{path} cannot be read as an npz file of numbers and texts ({text})", key="data.path"
        ) from None
    if groups is not None and (groups.shape != (len(inputs),) or groups.dtype.kind not in "iubU"):
        raise RecipeError(
            f"{data.groups} in {path} is {groups.dtype}{list(groups.shape)}, allowed are whole numbers or texts "
            f"[{len(inputs)}]",
            key="data.groups",
        )
    return (*_images(inputs, targets, path, (data.inputs, data.targets)), groups)


def read_idx(path: Path, key: str) -> np.ndarray:
    """The array of an IDX file, plain or gzipped.

    Two zero bytes, the type, the rank; the shape in big-endian 32-bit integers; the entries.
    """
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack(">HBB", raw[:4])
        if zero or kind not in kinds:
            raise ValueError("its first bytes are not those of IDX")
        shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
        return np.frombuffer(raw, kinds[kind], offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise RecipeError(f"{path} cannot be read as IDX ({error})", key=key) from None


def _images(inputs: np.ndarray, targets: np.ndarray, path: Path, names: tuple[str, str]) -> tuple[Any, Any, Any, Any]:
    """Inputs of any shape as rows of numbers, their shape remembered where they are grey images."""
    for key, name, array, fits, allowed in (
        ("inputs", names[0], inputs, inputs.ndim >= 2 and inputs.dtype.kind in "fiub", "real numbers (rows, ...)"),
        ("targets", names[1], targets, targets.ndim == 1 and targets.dtype.kind in "fiubU", "numbers or texts (rows,)"),
    ):
        if not fits:
            raise RecipeError(
                f"{name} in {path} is {array.dtype}{list(array.shape)}, allowed are {allowed}", key=f"data.{key}"
            )
    shape = inputs.shape[1:] if inputs.ndim == 3 else None
    flat = inputs.reshape(len(inputs), int(np.prod(inputs.shape[1:])))
    return flat.astype(np.float64), targets, _named_columns(flat.shape[1]), shape


def _openml(name: str, version: int | str) -> tuple[Any, Any, Any, Any]:
    from sklearn.datasets import fetch_openml

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(OPENML_SECONDS)
    try:
        with warnings.catch_warnings(action="ignore"):  # of each retry, and of old versions
            bunch: Any = fetch_openml(name, version=version, as_frame=False, parser="liac-arff", n_retries=1, delay=0.5)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        if isinstance(error, urllib.error.HTTPError):
            raise RecipeError(f"OpenML refused {name!r} ({error})", key="data.name") from None
        raise RecipeError(f"OpenML cannot be reached for {name!r} ({error})", key="data.name") from None
    except Exception as error:  # of many types, from the service and from the parser
        raise RecipeError(f"OpenML did not give {name!r} ({type(error).__name__}: {error})", key="data.name") from None
    finally:
        socket.setdefaulttimeout(patience)
    inputs = bunch.data.toarray() if hasattr(bunch.data, "toarray") else bunch.data
    if inputs.dtype.kind not in "fiu":
        raise RecipeError(f"{name!r} has columns that are not numbers, allowed are numbers", key="data.name")
    if bunch.target is None or np.ndim(bunch.target) != 1:
        raise RecipeError(f"{name!r} names no single column as its target, allowed is one", key="data.name")
    return inputs.astype(np.float64), bunch.target, tuple(bunch.feature_names), _square(inputs.shape[1])


def _named(name: str) -> tuple[Any, Any, Any, Any]:
    folder = os.environ.get("HYPRAX_DATA")
    if folder is None:
        return _openml({"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}[name], 1)
    parts = []
    for kind in ("images-idx3", "labels-idx1"):
        paths = [Path(folder) / name / f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k")]
        for path in paths:
            if not path.is_file():
                raise RecipeError(f"there is no file {path} (HYPRAX_DATA is {folder})", key="data.name")
        parts.append(np.concatenate([read_idx(path, "data.name") for path in paths]))
    return _images(parts[0], parts[1], Path(folder) / name, ("the images", "the labels"))


def _check_numbers(inputs: np.ndarray, features: tuple[str, ...]) -> None:
    if not inputs.size:
        raise RecipeError("given no rows or no columns, allowed are one of each at least", key="data")
    bad = ~np.isfinite(inputs)
    if np.any(bad):
        row, column = np.argwhere(bad)[0]
        raise RecipeError(
            f"row {row + 1}, column {features[column]!r} holds {inputs[row, column]}"
            f"{f' (and {bad.sum() - 1} more entries like it)' if bad.sum() > 1 else ''}, allowed are finite numbers",
            key="data",
        )


def _labels(targets: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    if targets.dtype.kind == "f":
        if not np.all(np.isfinite(targets)):
            raise RecipeError("given NaN or infinite numbers among the targets, allowed are classes", key="data")
        if not np.all(targets == np.round(targets)):
            raise RecipeError('given targets with fractions, allowed are classes (or kind = "ridge")', key="model.kind")
        targets = targets.astype(np.int64)
    names, labels = np.unique(targets, return_inverse=True)
    if len(names) < 2:
        raise RecipeError(f"given a single class, {names[0]}; allowed are two or more", key="data")
    return labels.reshape(-1), tuple(map(str, names))


def _numbers(targets: np.ndarray) -> np.ndarray:
    try:
        numbers = targets.astype(np.float64)
    except ValueError:
        raise RecipeError(
            'given targets that are texts, allowed are numbers (or kind = "softmax")', key="model.kind"
        ) from None
    if not np.all(np.isfinite(numbers)):
        raise RecipeError("given NaN or an infinite number among the targets, allowed are finite ones", key="data")
    return numbers


def _indices(
    targets: np.ndarray, split: Split, random: np.random.Generator, *, classify: bool
) -> dict[str, np.ndarray]:
    """Rows of each part: of every class the same fraction, in random order."""
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
                f"given {getattr(split, name):g} of {len(targets)} rows: that part is empty", key=f"split.{name}"
            )
    return parts


def _scale(inputs: np.ndarray, train: np.ndarray, scale: str) -> np.ndarray:
    if scale == "standard":
        mean, deviation = inputs[train].mean(axis=0), inputs[train].std(axis=0)
        return (inputs - mean) / np.where(deviation > 0, deviation, 1.0)
    if scale == "minmax":
        low, high = inputs[train].min(axis=0), inputs[train].max(axis=0)
        return (inputs - low) / np.where(high > low, high - low, 1.0)
    if scale == "unit":
        largest = np.max(np.abs(inputs[train]))
        return inputs / (largest if largest > 0 else 1.0)
    return inputs
