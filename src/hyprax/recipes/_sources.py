"""Where data come from: tables, arrays, images, sets with a name. Nothing is unpickled; sizes are looked at first."""

import decimal
import gzip
import math
import os
import socket
import struct
import urllib.error
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ._columns import Column, exposures, is_missing, number, recognised
from ._data_tables import CsvData, DataSource, IdxData, ImagesData, NamedData, NpzData, OpenmlData, SklearnData
from ._doubts import of_column, of_dialect, refuse
from ._errors import RecipeError
from ._image_folder import read_image_folder
from ._tables import SHOWN, Table, faults_of, read_table

OPENML_SECONDS = 60.0
MOST_ENTRIES = 2**28  # 2 GiB in float64, in which everything is computed
MOST_DIGITS = 400


class Loaded(NamedTuple):
    """Inputs, targets, the names of the columns, the shape of an image, and the group of each row; of a table also what
    its columns were taken for, and that in words; of counts, the exposure of each; the segment of each row, where a
    column is named for them. Inputs are NaN where a value of a table is missing."""

    inputs: np.ndarray
    targets: np.ndarray
    features: tuple[str, ...]
    image_shape: tuple[int, int] | None = None
    groups: np.ndarray | None = None
    columns: tuple[Column, ...] = ()
    notes: tuple[str, ...] = ()
    exposure: np.ndarray | None = None
    segments: np.ndarray | None = None


def load(data: DataSource, folder: Path) -> Loaded:
    """What a source names, unscaled and whole.

    **Raises:** `RecipeError`, with paths as the recipe has them: what its environment variables hold is not shown.
    """
    try:
        return _load(data, folder)
    except RecipeError as error:
        names = (getattr(data, key, None) for key in ("path", "inputs", "targets"))
        message = error.message
        for name in (name for name in names if isinstance(name, str) and "$" in name):
            real, shown = str(folder / os.path.expandvars(name)), str(folder / name)
            message = message.replace(real, shown).replace(f"{real[:60]}…", f"{shown}…")
        raise RecipeError(message, key=error.key, file=error.file, line=error.line) from None


def _load(data: DataSource, folder: Path) -> Loaded:
    match data:
        case SklearnData():
            return Loaded(*_sklearn(data.name))
        case CsvData():
            return read_csv(_path(folder, data.path, "data.path"), data)
        case NpzData():
            return read_npz(_path(folder, data.path, "data.path"), data)
        case IdxData():
            inputs = read_idx(_path(folder, data.inputs, "data.inputs"), "data.inputs")
            targets = read_idx(_path(folder, data.targets, "data.targets"), "data.targets")
            return Loaded(*_images(inputs, targets, folder, (data.inputs, data.targets)))
        case ImagesData():
            path = _path(folder, data.path, "data.path", a="folder")
            size = None if data.size is None else (data.size[0], data.size[1])
            inputs, targets, shape = read_image_folder(path, size, MOST_ENTRIES)
            return Loaded(inputs, targets, _named_columns(inputs.shape[1]), shape)
        case OpenmlData():
            return Loaded(*_openml(data.name, data.version))
        case NamedData():
            return Loaded(*_named(data.name))


def _path(folder: Path, name: str, key: str, a: Literal["file", "folder"] = "file") -> Path:
    """A path of a recipe, relative to the recipe; `$HYPRAX_DATA` and other variables are replaced, and never shown."""
    expanded = os.path.expandvars(name)
    if "$" in expanded:
        raise RecipeError(f"must name environment variables that are set; got {name!r}", key=key)
    try:
        path = folder / Path(expanded).expanduser()
        there = path.is_file() if a == "file" else path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, a home that nobody has
        raise RecipeError(
            f"must be a {a}; got {name[:60]!r} ({getattr(error, 'strerror', None) or error})", key=key
        ) from None
    if not there:
        raise RecipeError(f"must be a {a}; there is no {folder / name}", key=key)
    return path


def _check_size(shape: Sequence[int], size: int, where: str, key: str) -> None:
    """Refuse arrays of too many entries, or with entries of very many bytes."""
    if any(length < 0 for length in shape):
        raise RecipeError(f"must have a shape of whole numbers >= 0; got {where} of shape {list(shape)}", key=key)
    if math.prod(shape) > MOST_ENTRIES or math.prod(shape) * size > 8 * MOST_ENTRIES:
        raise RecipeError(
            f"must have at most {MOST_ENTRIES} entries in 2 GiB; got {where} of shape {list(shape)}", key=key
        )


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


def read_csv(path: Path, data: CsvData, usual: str | None = None) -> Loaded:
    """A table whose columns are taken for what they are, or for what `data.kinds` says; `usual`: what the others are.

    **Raises:** `RecipeError` that names every doubtful guess; then one that names every fault: cells that are no
        numbers, targets that are missing.
    """
    table = read_table(path, data.delimiter, data.encoding)
    header = table.header
    features = data.features or [name for name in header if name not in (data.target, data.groups, data.exposure)]
    _check_columns(path, header, data, features)
    kinds: dict[str, Any] = {**(data.kinds or {}), **dict.fromkeys(data.drop or [], "drop")}
    _check_kinds(path, header, data, kinds)
    faults: list[tuple[str, str, int]] = []
    columns, numbers, doubts = [], [], of_dialect(table) if data.delimiter is None else []
    for name in features:
        texts = table.column(name)
        column = recognised(name, texts, kinds.get(name, usual), data.decimal)
        faults += _faults(column, texts, table.lines, refuse=data.missing == "refuse")
        columns.append(column)
        doubts += of_column(column, texts) if kinds.get(name, usual) is None else []
        numbers.append(column.numbers(texts) if column.kind != "drop" else np.zeros((len(texts), 0)))
    if not data.assume:
        refuse(doubts, path)
    targets = table.column(data.target)
    lost = np.flatnonzero(is_missing(targets))
    if faults:
        hint = " (data.features names the columns to use)" if any(repr("")[0] in held for _, held, _ in faults) else ""
        text = f"must hold finite numbers; got {faults_of(faults, path)}{hint}"
        if lost.size:
            text += f"; the target is missing at {path}:{table.lines[lost[0]]}"
        raise RecipeError(text, key="data.path")
    if lost.size:
        rows = [("target", str(targets[i]) or "nothing", table.lines[i]) for i in lost]
        said = ", ".join(f"{held} at {path}:{line}" for _, held, line in rows[:SHOWN])
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        raise RecipeError(f"must be a column of values; got {said}{more}", key="data.target")
    if not any(column.features for column in columns):
        said = "; ".join(f"{column.name} {column.said}" for column in columns)
        raise RecipeError(f"must have a column to learn from; {path} has {said}", key="data.path")
    notes = [f"{path.name}: {table.said}", *(f"{column.name}: {column.said}" for column in columns)]
    notes += [f"assumed: {doubt.said}" for doubt in doubts]
    groups, segments = (
        None if name is None else table.column(name).astype(str) for name in (data.groups, data.segments)
    )
    names = tuple(name for column in columns for name in column.features)
    if data.decimal != "." and not any("." in text for text in targets.tolist()):
        commas = np.asarray([text.replace(",", ".") for text in targets.tolist()], dtype=object)
        read = _whole_numbers(commas)
        targets = read if read.dtype.kind == "f" else _whole_numbers(targets)
    else:
        targets = _whole_numbers(targets)
    exposure = None if data.exposure is None else _exposure(table, data.exposure, data.decimal)
    inputs = np.concatenate(numbers, axis=1)
    return Loaded(inputs, targets, names, None, groups, tuple(columns), tuple(notes), exposure, segments)


def _exposure(table: Table, name: str, decimal: str | None) -> np.ndarray:
    """The numbers > 0 of a column that must have one in every row."""
    texts = table.column(name)
    values = exposures(texts, decimal)
    bad = np.flatnonzero(np.isnan(values))
    if bad.size:
        found = faults_of([(name, repr(str(texts[i])[:60]), table.lines[i]) for i in bad.tolist()], table.path)
        raise RecipeError(f"must name a column of numbers > 0; got {found}", key="data.exposure")
    return values


def _faults(column: Column, texts: np.ndarray, lines: Sequence[int], *, refuse: bool) -> list[tuple[str, str, int]]:
    """Cells of a column that are neither finite numbers nor missing."""
    if column.kind not in ("number", "date"):
        return []
    values = column.numbers(texts)[:, 0]
    gone = is_missing(texts)
    bad = np.flatnonzero(~np.isfinite(values) & (refuse | ~gone))

    def held(text: str) -> str:
        plain = text.lower() in ("", "nan") or not math.isnan(number(text, column.decimal))
        return (text or "nothing") if plain else repr(text[:60])

    return [(column.name, held(texts[i]), lines[i]) for i in bad.tolist()]


def _check_kinds(path: Path, header: Sequence[str], data: CsvData, kinds: dict[str, Any]) -> None:
    there = set(header)
    for key, names in (("kinds", data.kinds or {}), ("drop", data.drop or [])):
        for name in names:
            if name not in there:
                shown = ", ".join(header[:20]) + (", ..." if len(header) > 20 else "")
                raise RecipeError(f"must name columns of {path}, which has {shown}; got {name!r}", key=f"data.{key}")
            if name == data.target:
                raise RecipeError(f"must not name the target; got {name!r}", key=f"data.{key}")


def _check_columns(path: Path, header: Sequence[str], data: CsvData, features: Sequence[str]) -> None:
    """Refuse columns that are not there, or not there once."""
    shown = ", ".join(header[:20]) + (", ..." if len(header) > 20 else "")
    counts: dict[str, int] = {}
    for name in header:
        counts[name] = counts.get(name, 0) + 1
    if not features:
        taken = [f"the {key}" for key in ("groups", "exposure") if getattr(data, key) is not None]
        raise RecipeError(
            f"must have a column besides {' and '.join(['the target', *taken])}; {path} has none", key="data.path"
        )
    asked = [("data.target", data.target), *(("data.features", name) for name in features)]
    others = ((key, getattr(data, key)) for key in ("groups", "segments", "exposure"))
    asked += [(f"data.{key}", name) for key, name in others if name is not None]
    for key, name in asked:
        if name not in counts:
            raise RecipeError(f"must name columns of {path}, which has {shown}; got {name!r}", key=key)
        if counts[name] > 1:
            raise RecipeError(
                f"must have one column of each name; {path} has {counts[name]} columns {name!r}", key="data.path"
            )
    if data.exposure == data.target:
        raise RecipeError(f"must not name the target; got {data.exposure!r}", key="data.exposure")
    seen = {data.target: ", which is the target: it would be predicted from itself"}
    for name in features:
        if name in seen:
            raise RecipeError(f"must name columns once; got {name!r}{seen[name]}", key="data.features")
        seen[name] = " more than once"


def _whole_numbers(texts: np.ndarray) -> np.ndarray:
    """Whole numbers where all texts are such, of any size: 1 and 1.0 are one class, 10^16 and 10^16 + 1 two. Else
    floating numbers where all are numbers; else the texts."""
    try:
        numbers = [decimal.Decimal(text) for text in texts.tolist()]
    except decimal.InvalidOperation:
        return texts
    if any(number.is_finite() and number.adjusted() > MOST_DIGITS for number in numbers):
        return texts
    if all(number.is_finite() and number == number.to_integral_value() for number in numbers):
        return np.asarray([int(number) for number in numbers], dtype=object)
    return np.asarray([float(number) for number in numbers])


def read_npz(path: Path, data: NpzData) -> Loaded:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
            found = {}
            for key in ("inputs", "targets", "groups", "segments", "exposure"):
                name = getattr(data, key)
                if name is None:
                    continue
                if name not in members:
                    shown = ", ".join(sorted(members)[:20])
                    raise RecipeError(
                        f"must name an array of {path}, which has {shown}; got {name!r}", key=f"data.{key}"
                    )
                with archive.open(f"{name}.npy") as stream:
                    found[key] = _npy(stream, f"{name} in {path}", f"data.{key}")
    except RecipeError:
        raise
    except Exception as error:  # of many types, by what is wrong with the file
        raise RecipeError(f"must be an npz file; {path} cannot be read ({error})", key="data.path") from None
    inputs = found["inputs"]
    for key in ("groups", "segments"):
        labels = found.get(key)
        if labels is not None and (labels.shape != inputs.shape[:1] or labels.dtype.kind not in "iubU"):
            raise RecipeError(
                f"must be whole numbers or texts, one for each input; {getattr(data, key)} in {path} is "
                f"{labels.dtype}{list(labels.shape)}",
                key=f"data.{key}",
            )
    exposure = found.get("exposure")
    if exposure is not None:
        if exposure.shape != inputs.shape[:1] or exposure.dtype.kind not in "fiu":
            raise RecipeError(
                f"must be numbers > 0, one for each input; {data.exposure} in {path} is "
                f"{exposure.dtype}{list(exposure.shape)}",
                key="data.exposure",
            )
        exposure = exposure.astype(np.float64)
        if not np.all(np.isfinite(exposure) & (exposure > 0)):
            raise RecipeError(
                f"must be finite numbers > 0; got others in {data.exposure} of {path}", key="data.exposure"
            )
    loaded = Loaded(*_images(inputs, found["targets"], path, (data.inputs, data.targets)), found.get("groups"))
    return loaded._replace(exposure=exposure, segments=found.get("segments"))


def _npy(stream: Any, where: str, key: str) -> np.ndarray:
    """An array of NumPy's format, refused by its header where it is too large or holds Python objects."""
    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        _check_size(shape, dtype.itemsize, where, key)
        size = math.prod(shape) * dtype.itemsize
        raw = stream.read(size)
        if len(raw) != size:
            raise ValueError(f"it has {len(raw)} bytes of {size}")
    except RecipeError:
        raise
    except Exception as error:
        raise RecipeError(f"must be an array of numbers or texts; {where} cannot be read ({error})", key=key) from None
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def read_idx(path: Path, key: str) -> np.ndarray:
    """The array of an IDX file, plain or gzipped.

    Two zero bytes, the type, the rank; the shape in big-endian 32-bit integers; the entries.
    """
    kinds = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            zero, kind, rank = struct.unpack(">HBB", stream.read(4))
            if zero or kind not in kinds:
                raise ValueError("its first bytes are not those of IDX")
            shape = struct.unpack(f">{rank}I", stream.read(4 * rank))
            _check_size(shape, np.dtype(kinds[kind]).itemsize, str(path), key)
            raw = stream.read(math.prod(shape) * np.dtype(kinds[kind]).itemsize)
            return np.frombuffer(raw, kinds[kind]).reshape(shape)
    except RecipeError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise RecipeError(f"must be an IDX file; {path} cannot be read ({error})", key=key) from None


def _images(inputs: np.ndarray, targets: np.ndarray, path: Path, names: tuple[str, str]) -> tuple[Any, Any, Any, Any]:
    """Inputs of any shape as rows of numbers, their shape remembered where they are grey images."""
    for key, name, array, fits, wanted in (
        ("inputs", names[0], inputs, inputs.ndim >= 2 and inputs.dtype.kind in "fiub", "real numbers (rows, ...)"),
        ("targets", names[1], targets, targets.ndim == 1 and targets.dtype.kind in "fiubU", "numbers or texts (rows,)"),
    ):
        if not fits:
            raise RecipeError(
                f"must be {wanted}; {name} in {path} is {array.dtype}{list(array.shape)}", key=f"data.{key}"
            )
    shape = inputs.shape[1:] if inputs.ndim == 3 else None
    flat = inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))
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
        raise RecipeError(f"must have numbers in every column; {name!r} has others", key="data.name")
    if bunch.target is None or np.ndim(bunch.target) != 1:
        raise RecipeError(f"must have a single column as its target; {name!r} names none", key="data.name")
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
                raise RecipeError(f"must be in the folder HYPRAX_DATA; there is no {name}/{path.name}", key="data.name")
        parts.append(np.concatenate([read_idx(path, "data.name") for path in paths]))
    return _images(parts[0], parts[1], Path(folder) / name, ("the images", "the labels"))
