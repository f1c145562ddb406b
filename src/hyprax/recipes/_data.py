"""Data for a recipe: loaded, checked, split, scaled."""

import csv
import dataclasses
import gzip
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ._errors import RecipeError
from ._schema import CsvData, DataSource, IdxData, NamedData, NpzData, OpenmlData, SklearnData, Split

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Splits:
    """Inputs `(n, d)` float64 and targets of three parts; labels are 0..C-1 for classes.

    - `classes`: the names of the labels, in order; empty for regression.
    - `features`: the names of the columns.
    - `image_shape`: rows and columns, where an input is an image.
    """

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: tuple[str, ...]
    features: tuple[str, ...]
    image_shape: tuple[int, int] | None


def load_splits(data: DataSource, split: Split, folder: Path, *, classify: bool) -> Splits:
    """Load what a recipe names, refuse what cannot be used, split it and scale it by its training part.

    **Raises:** `RecipeError`.
    """
    inputs, targets, features, image_shape = _load(data, folder)
    _check_numbers(inputs, features)
    if len(inputs) != len(targets):
        raise RecipeError(f"given {len(inputs)} inputs and {len(targets)} targets, allowed are as many", key="data")
    random = np.random.default_rng(split.seed)
    if data.rows is not None:
        if data.rows > len(inputs):
            raise RecipeError(
                f"given {data.rows}, allowed are at most {len(inputs)}, the rows there are", key="data.rows"
            )
        kept = random.permutation(len(inputs))[: data.rows]
        inputs, targets = inputs[kept], targets[kept]
    targets, classes = _labels(targets) if classify else (_numbers(targets), ())
    parts = _indices(targets, split, random, classify=classify)
    if classify:
        lost = [name for label, name in enumerate(classes) if not np.any(targets[parts["train"]] == label)]
        if lost:
            raise RecipeError(f"class {lost[0]} is not in the training part: give it more rows", key="split.train")
    scaled = _scale(inputs, parts["train"], data.scale)
    if data.intercept:
        scaled = np.concatenate([scaled, np.ones((len(scaled), 1))], axis=1)
        features, image_shape = (*features, "intercept"), None
    pieces = {name: (scaled[rows], targets[rows]) for name, rows in parts.items()}
    return Splits(**pieces, classes=classes, features=features, image_shape=image_shape)


def _load(data: DataSource, folder: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[int, int] | None]:
    match data:
        case SklearnData():
            return _sklearn(data.name)
        case CsvData():
            return (*_csv(_path(folder, data.path, "data.path"), data), None)
        case NpzData():
            return _npz(_path(folder, data.path, "data.path"), data)
        case IdxData():
            inputs = read_idx(_path(folder, data.inputs, "data.inputs"), "data.inputs")
            return _images(inputs, read_idx(_path(folder, data.targets, "data.targets"), "data.targets"))
        case OpenmlData():
            return _openml(data.name, data.version, "data.name")
        case NamedData():
            return _named(data.name)


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


def _images(inputs: np.ndarray, targets: np.ndarray) -> tuple[Any, Any, Any, Any]:
    shape = inputs.shape[1:] if inputs.ndim == 3 else None
    flat = inputs.reshape(len(inputs), -1)
    return flat.astype(np.float64), targets, _named_columns(flat.shape[1]), shape


def _sklearn(name: str) -> tuple[Any, Any, Any, Any]:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    shape = bunch.images.shape[1:] if "images" in bunch else None
    return bunch.data, bunch.target, tuple(map(str, bunch.feature_names)), shape


def _csv(path: Path, data: CsvData) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.reader(stream) if row]
    if len(rows) < 2:
        raise RecipeError(f"{path} has no rows under its header", key="data.path")
    header = [name.strip() for name in rows[0]]
    for key, name in [("data.target", data.target), *(("data.features", name) for name in data.features or ())]:
        if name not in header:
            raise RecipeError(f"there is no column {name!r} in {path}, allowed are {', '.join(header)}", key=key)
    features = data.features or [name for name in header if name != data.target]
    if not features:
        raise RecipeError(f"{path} has no column besides the target", key="data.features")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise RecipeError(f"{path}:{number}: given {len(row)} fields, allowed are {len(header)}", key="data.path")
    table = np.asarray(rows[1:], dtype=object)
    columns = []
    for name in features:
        column = table[:, header.index(name)]
        try:
            columns.append([float(x) if x.strip() else np.nan for x in column])
        except ValueError:
            bad = next(i for i, x in enumerate(column) if not _is_number(x))
            raise RecipeError(
                f"{path}:{bad + 2}: column {name!r} holds {column[bad]!r}, allowed are numbers (or name the columns in "
                "data.features)",
                key="data.path",
            ) from None
    target = table[:, header.index(data.target)].astype(str)
    if np.any(np.char.strip(target) == ""):
        raise RecipeError(f"column {data.target!r} of {path} has empty fields, allowed are values", key="data.target")
    return np.asarray(columns).T, target, tuple(features)


def _is_number(x: str) -> bool:
    try:
        float(x or "nan")
    except ValueError:
        return False
    return True


def _npz(path: Path, data: NpzData) -> tuple[Any, Any, Any, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key, name in (("data.inputs", data.inputs), ("data.targets", data.targets)):
                if name not in arrays:
                    raise RecipeError(f"no array {name!r} in {path}, allowed are {', '.join(arrays)}", key=key)
            inputs, targets = arrays[data.inputs], arrays[data.targets]
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"{path} cannot be read as npz ({error})", key="data.path") from None
    if inputs.ndim not in (2, 3) or inputs.dtype.kind not in "fiub":
        raise RecipeError(
            f"given {inputs.dtype}{list(inputs.shape)}, allowed are numbers (rows, columns) or (rows, height, width)",
            key="data.inputs",
        )
    if targets.ndim != 1:
        raise RecipeError(
            f"given {targets.dtype}{list(targets.shape)}, allowed is one target a row", key="data.targets"
        )
    return _images(inputs, targets)


def read_idx(path: Path, key: str = "data") -> np.ndarray:
    """The array of an IDX file, plain or gzipped."""
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, rank = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
        if zero or kind not in kinds:
            raise ValueError("its first bytes are not those of IDX")
        return np.frombuffer(raw, kinds[kind], offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise RecipeError(f"{path} cannot be read as IDX ({error})", key=key) from None


def _openml(name: str, version: int | str, key: str) -> tuple[Any, Any, Any, Any]:
    from sklearn.datasets import fetch_openml

    try:
        bunch: Any = fetch_openml(name, version=version, as_frame=False, parser="liac-arff")
    except Exception as error:
        raise RecipeError(f"OpenML did not give {name!r} ({type(error).__name__}: {error})", key=key) from None
    if bunch.data.dtype.kind not in "fiu":
        raise RecipeError(f"{name!r} has columns that are not numbers, allowed are numbers", key=key)
    return bunch.data.astype(np.float64), bunch.target, tuple(bunch.feature_names), _square(bunch.data.shape[1])


def _named(name: str) -> tuple[Any, Any, Any, Any]:
    folder = os.environ.get("HYPRAX_DATA")
    if folder is None:
        return _openml({"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}[name], 1, "data.name")
    parts = []
    for kind in ("images-idx3", "labels-idx1"):
        paths = [Path(folder) / name / f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k")]
        for path in paths:
            if not path.is_file():
                raise RecipeError(f"there is no file {path} (HYPRAX_DATA is {folder})", key="data.name")
        parts.append(np.concatenate([read_idx(path, "data.name") for path in paths]))
    return _images(*parts)


def _check_numbers(inputs: np.ndarray, features: tuple[str, ...]) -> None:
    if not inputs.size:
        raise RecipeError("given no rows or no columns, allowed are one of each at least", key="data")
    bad = ~np.isfinite(inputs)
    if np.any(bad):
        row, column = np.argwhere(bad)[0]
        raise RecipeError(
            f"given NaN or an infinite number in {int(bad.sum())} places, the first in row {row + 1}, column "
            f"{features[column]!r}; allowed are finite numbers",
            key="data",
        )


def _labels(targets: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    if targets.dtype.kind == "f":
        if not np.all(np.isfinite(targets)):
            raise RecipeError("given NaN among the targets, allowed are classes", key="data")
        if not np.all(targets == np.round(targets)):
            raise RecipeError('given targets with fractions, allowed are classes (or kind = "ridge")', key="model.kind")
    names, labels = np.unique(targets, return_inverse=True)
    if len(names) < 2:
        raise RecipeError(f"given a single class, {names[0]}; allowed are two or more", key="data")
    return labels.reshape(-1), tuple(map(str, names))


def _numbers(targets: np.ndarray) -> np.ndarray:
    try:
        numbers = targets.astype(np.float64)
    except ValueError:
        raise RecipeError(
            "given targets that are not numbers, allowed for ridge are numbers", key="model.kind"
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
        if not len(rows):
            raise RecipeError(
                f"given {getattr(split, name):g} of {len(targets)} rows: that part is empty", key=f"split.{name}"
            )
    return parts


def _scale(inputs: np.ndarray, train: np.ndarray, scale: str) -> np.ndarray:
    if scale == "standard":
        mean, deviation = inputs[train].mean(axis=0), inputs[train].std(axis=0)
        return (inputs - mean) / np.where(deviation > 0, deviation, 1.0)
    if scale == "unit":
        largest = np.max(np.abs(inputs[train]))
        return inputs / (largest if largest > 0 else 1.0)
    return inputs
