"""The TOML file of `hyprax tasks`: what the tasks are, which dual is taken of them, and the tasks read from disk."""

import math
import tomllib
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
from pydantic import Field, ValidationError, model_validator

from ..tasks import PiecewiseFunction, Split, Task, map_tasks
from ..tasks._models import CLASSIFIES, Model, dual_of as dual_of_model
from ._columns import is_missing, recognised
from ._data_tables import CsvData, NpzData, Seed, Table
from ._errors import RecipeError, Source
from ._preparation import scaling
from ._sources import read_csv, read_npz
from ._tables import read_table


class Raw(NamedTuple):
    """One task as read; inputs are NaN where a value is missing, labels -1 and +1."""

    name: str
    X: np.ndarray
    y: np.ndarray
    weight: float = 1.0
    row_weights: np.ndarray | None = None


class Read(NamedTuple):
    """All tasks, the names of two classes, and what the columns were taken for, in words."""

    tasks: list[Raw]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """Of a table, the column that each input is of."""


_FEW = 32
"""A process takes longer to start than so many small tasks take in all."""


class DataTable(Table):
    """`[data]`: where the tasks are."""

    path: str = Field(
        description="a CSV table with a task column, or a folder with a CSV or npz (`X`, `y`) file for each task; "
        "relative to the TOML file"
    )
    task: str = Field(default="task", description="the column that says which task a row is of")
    target: str = Field(default="y", description="the column to predict")
    features: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="the columns to predict from; default all others"
    )
    columns: Literal["numbers", "recognise"] = Field(
        default="numbers",
        description="numbers: every cell is one; recognise: categories become indicators and dates days, and what is "
        "missing the mean of the training rows, beside an indicator",
    )
    kinds: dict[str, Literal["number", "category", "date", "drop"]] | None = Field(
        default=None, description="what columns are, where they are recognised; left out, what they look like"
    )
    order: str | None = Field(
        default=None, description="the column whose numbers or dates give the order of rows; not predicted from"
    )
    weight: str | None = Field(
        default=None,
        description='what tasks weigh in the mean: "rows", or a column (its mean over a task); default all the same',
    )

    row_weight: str | None = Field(
        default=None,
        description="a column that says what rows weigh within their task, in training and in validation; not "
        "predicted from; default all the same",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "DataTable":
        if self.kinds is not None and self.columns == "numbers":
            raise ValueError("kinds belong to columns = 'recognise'")
        return self


class ModelTable(Table):
    """`[model]`: the learner, the range of its hyperparameter, and the loss that is validated."""

    kind: Model
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(gt=0)]
    penalty2: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="the fixed squared penalty of the elastic net"
    )
    intercept: bool = True
    standardise: bool = Field(
        default=True, description="columns to mean 0 and variance 1 on the training rows of every split"
    )
    scale: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="targets are divided by it: a known scale, the same for all tasks"
    )
    feature_weights: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="how many times as much columns are penalised; those not named once"
    )
    tolerance: Annotated[float, Field(gt=0)] = Field(
        default=1e-3, description="of `logistic`: how well the loss is known everywhere"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ModelTable":
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got low = {self.low:g}, high = {self.high:g}")
        if self.kind in ("ridge", "logistic") and self.low == 0:
            raise ValueError(f"{self.kind} needs low > 0")
        if self.kind in CLASSIFIES and self.scale != 1:
            raise ValueError("scale belongs to targets that are numbers")
        if (self.kind == "elastic_net") != (self.penalty2 is not None):
            raise ValueError("penalty2 belongs to kind = 'elastic_net', which needs it")
        return self


class ValidationTable(Table):
    """`[validation]`: how each task is split."""

    kind: Literal["hold_out", "k_fold", "leave_one_out", "time"] = Field(
        default="k_fold",
        description="time: rows stand in their order; the later half is cut into `folds` parts, each judged by a "
        "model of all rows before it",
    )
    folds: Annotated[int, Field(ge=2)] = 5
    fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="part of a task that is validated on, for `hold_out`"
    )
    seed: Seed = 0


class GuaranteeTable(Table):
    """`[guarantee]`: what is said of tasks to come."""

    range: Annotated[float, Field(gt=0)] = Field(description="H: losses are clipped to [0, H]")
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    seed: Seed = Field(default=0, description="of the draw of the tasks that choose, in the split bounds")


class Settings(Table):
    """The whole file."""

    data: DataTable
    model: ModelTable
    validation: ValidationTable = ValidationTable()
    guarantee: GuaranteeTable | None = None
    epsilon: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="slack of the epsilon-optimal set; default a hundredth of the least mean loss"
    )
    set_aside: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="tasks whose loss is known less well than this are left out, and named"
    )
    processes: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="parallel processes; default as many as there are cores"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.guarantee is not None and self.data.weight is not None:
            raise ValueError("a guarantee needs tasks that weigh the same: leave out data.weight or [guarantee]")
        return self


def load_settings(path: Path) -> Settings:
    """The settings in a TOML file, checked.

    **Raises:** `RecipeError`, which names the first thing that is wrong and its line.
    """
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return Settings.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read ({getattr(error, 'strerror', None) or error})", file=path) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"not a TOML file: {error}", file=path) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        key = ".".join(str(part) for part in first["loc"])
        raise Source(path, text).located(RecipeError(message[:1].lower() + message[1:], key=key)) from None


def load_tasks(data: DataTable, base: Path, classify: bool = False) -> Read:
    """Every task as read, in the order of first appearance in a table, or of the names of the files in a folder."""
    path = base / data.path
    if not path.is_dir():
        return _from_table(path, data, classify)
    for key in ("order", "weight", "row_weight", "kinds"):
        if getattr(data, key) is not None and getattr(data, key) != "rows":
            raise RecipeError("must be left out for a folder of files", key=f"data.{key}")
    files = sorted(f for f in path.iterdir() if f.suffix in (".csv", ".npz"))
    if not files:
        raise RecipeError(f"{path} holds no .csv or .npz file", key="data.path")
    if classify or data.columns == "recognise":
        raise RecipeError("must be one table for classes and for columns that are recognised", key="data.path")
    tasks = [_from_file(file, data) for file in files]
    return Read([raw._replace(weight=len(raw.y)) for raw in tasks] if data.weight == "rows" else tasks)


def _from_table(path: Path, data: DataTable, classify: bool) -> Read:
    found = read_csv(path, _csv_data(data, data.task, path), usual="number" if data.columns == "numbers" else None)
    task, classes = found.groups, ()
    if classify:
        classes = tuple(sorted({str(label) for label in found.targets.tolist()}))
        if len(classes) != 2:
            shown = ", ".join(classes[:4]) + (", ..." if len(classes) > 4 else "")
            raise RecipeError(f"must hold two classes; got {len(classes)} ({shown})", key="data.target")
        targets = np.where(found.targets.astype(str) == classes[1], 1.0, -1.0)
    else:
        targets = _numbers(path, data.target, found.targets)
    assert task is not None
    rows = np.arange(len(targets))
    if data.order is not None:
        rows = np.argsort(_column(path, data.order, "data.order"), kind="stable")
    weights = None if data.weight in (None, "rows") else _column(path, data.weight, "data.weight")
    row_weights = None if data.row_weight is None else _column(path, data.row_weight, "data.row_weight")
    if row_weights is not None and not np.all(row_weights > 0):
        raise RecipeError(f"must hold positive numbers; got {row_weights.min():g}", key="data.row_weight")
    members: dict[str, list[int]] = {name: [] for name in dict.fromkeys(task.tolist())}
    for row in rows.tolist():
        members[task[row]].append(row)
    tasks = []
    for name, at in members.items():
        weight = float(len(at)) if data.weight == "rows" else 1.0 if weights is None else float(np.mean(weights[at]))
        if not weight > 0:
            raise RecipeError(f"must be positive; got {weight:g} for task {name}", key="data.weight")
        own = None if row_weights is None else row_weights[at]
        tasks.append(Raw(str(name), found.inputs[at], targets[at], weight, own))
    columns = tuple(column.name for column in found.columns or () for _ in column.features)
    return Read(tasks, classes, found.notes if data.columns == "recognise" else (), columns)


def _column(path: Path, name: str, key: str) -> np.ndarray:
    """The numbers, or the days of the dates, in a column that has them in every row."""
    table = read_table(path)
    if name not in table.header:
        raise RecipeError(f"must name a column, one of {', '.join(table.header[:20])}; got {name!r}", key=key)
    texts = table.column(name)
    column = recognised(name, texts, None, None)
    column = column if column.kind == "date" else recognised(name, texts, "number", None)
    values = np.full(len(texts), np.nan) if column.kind == "drop" else column.numbers(texts)[:, 0]
    bad = np.flatnonzero(~np.isfinite(values) | is_missing(texts))
    if bad.size:
        row = int(bad[0])
        raise RecipeError(
            f"must hold numbers or dates; got {str(texts[row]) or 'nothing'} at {path}:{table.lines[row]}", key=key
        )
    return values


def _csv_data(data: DataTable, groups: str | None, path: Path) -> CsvData:
    features, beside = (
        data.features,
        [name for name in (data.order, data.weight, data.row_weight) if name not in (None, "rows")],
    )
    if features is None and beside:
        features = [name for name in read_table(path).header if name not in (data.target, groups, *beside)]
    return CsvData(
        source="csv",
        path=data.path,
        target=data.target,
        features=features or None,
        groups=groups,
        kinds=data.kinds,
        missing="refuse" if data.columns == "numbers" else "impute",
        assume=True,  # columns that are recognised are asked for by name there
    )


def _from_file(file: Path, data: DataTable) -> Raw:
    if file.suffix == ".csv":
        table = read_csv(file, _csv_data(data, None, file), usual="number")
        return Raw(file.stem, table.inputs, _numbers(file, data.target, table.targets))
    inputs, targets, *_ = read_npz(file, NpzData(source="npz", path=file.name))
    X, y = np.asarray(inputs, dtype=np.float64), _numbers(file, "y", np.asarray(targets))
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise RecipeError(f"{file} must hold X (n, d) and y (n,); got {X.shape} and {y.shape}", key="data.path")
    for name, array in (("X", X), ("y", y[:, None])):
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            raise RecipeError(f"{file}: row {bad[0, 0]} of {name} must be finite numbers", key="data.path")
    return Raw(file.stem, X, y)


def _numbers(path: Path, name: str, targets: np.ndarray) -> np.ndarray:
    for row, target in enumerate(targets.tolist(), start=1):
        try:
            number = float(target)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise RecipeError(
                f"{path}: data row {row}: column {name!r} must hold finite numbers; got {target!r}", key="data.target"
            )
    return targets.astype(np.float64)


def dual_of(raw: Raw, settings: Settings, feature_weights: np.ndarray | None = None) -> PiecewiseFunction | str:
    """The dual function of one task, clipped to [0, range]; errors name the task.

    Where tasks may be set aside, one whose dual cannot be computed gives the reason in place of it.
    """
    name, X, y, _, weights = raw
    try:
        if len(y) < 2:
            raise ValueError(f"needs at least 2 rows; got {len(y)}")
        model = settings.model
        task = task_of(X, y / model.scale, settings.validation, weights)
        dual = dual_of_model(
            model.kind,
            task.standardised() if model.standardise else task,
            (model.low, model.high),
            penalty2=model.penalty2 or 0.0,
            intercept=model.intercept,
            tolerance=model.tolerance,
            feature_weights=feature_weights,
        )
        return dual if settings.guarantee is None else dual.clip(settings.guarantee.range)
    except (ValueError, ArithmeticError) as error:
        text = f"task {name}: {str(error).rstrip('.')}"
        if isinstance(error, ArithmeticError) and settings.set_aside is not None:
            return text
        raise RecipeError(text) from None


def task_of(X: np.ndarray, y: np.ndarray, validation: ValidationTable, weights: np.ndarray | None = None) -> Task:
    """The task, split as asked; what is missing is filled with the means of the training rows of each split."""
    if weights is None and not np.isnan(X).any():
        return _split(X, y, validation)
    splits = []
    for plan in _split(np.arange(len(y))[:, None], y, validation).splits:
        at, at_held = (rows[:, 0].astype(int) for rows in (plan.X, plan.X_val))
        train, held = X[at], X[at_held]
        if np.isnan(X).any():
            fill = scaling(train, "none")
            train, held = fill(train), fill(held)
        heavy = () if weights is None else (weights[at], weights[at_held])
        splits.append(Split(train, plan.y, held, plan.y_val, *heavy))
    return Task(tuple(splits))


def _split(X: np.ndarray, y: np.ndarray, validation: ValidationTable) -> Task:
    key, n = jax.random.key(validation.seed), len(y)
    if validation.kind == "leave_one_out":
        return Task.leave_one_out(X, y)
    if validation.kind == "k_fold":
        return Task.k_fold(X, y, min(validation.folds, n), key=key)
    if validation.kind == "time":
        first = max(1, n // 2)
        ends = np.round(np.linspace(first, n, min(validation.folds, n - first) + 1)).astype(int)
        parts = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        return Task(tuple(Split(X[:known], y[:known], X[known:end], y[known:end]) for known, end in parts))
    order = np.asarray(jax.random.permutation(key, n))
    count = min(max(1, math.floor(validation.fraction * n)), n - 1)
    held, kept = order[:count], order[count:]
    return Task.hold_out(X[kept], y[kept], X[held], y[held])


class Duals(NamedTuple):
    """Names and dual functions of the tasks, why others have none, and what else is known of the tasks."""

    names: list[str]
    duals: list[PiecewiseFunction]
    reasons: list[str]
    read: Read


def duals_of(settings: Settings, base: Path, progress: bool = True, executor: Executor | None = None) -> Duals:
    """The dual functions of all tasks, in parallel processes or on an executor; each times its weight, of mean 1."""
    read = load_tasks(settings.data, base, settings.model.kind in CLASSIFIES)
    tasks = read.tasks
    processes = 1 if len(tasks) < _FEW and settings.processes is None else settings.processes
    feature_weights = _feature_weights(settings.model.feature_weights, read.columns)
    work: Any = partial(dual_of, settings=settings, feature_weights=feature_weights)
    found = map_tasks(work, tasks, processes=processes, executor=executor, progress=progress)
    kept = [(raw, dual) for raw, dual in zip(tasks, found, strict=True) if not isinstance(dual, str)]
    reasons = [dual for dual in found if isinstance(dual, str)]
    if not kept:
        raise RecipeError(f"every task would be set aside; the first: {reasons[0]}")
    mean = float(np.mean([raw.weight for raw, _ in kept]))
    duals = [dual if raw.weight == mean else dual * (raw.weight / mean) for raw, dual in kept]
    return Duals([raw.name for raw, _ in kept], duals, reasons, read)


def _feature_weights(given: dict[str, float] | None, columns: tuple[str, ...]) -> np.ndarray | None:
    """How much each input is penalised, by the columns they are of."""
    if given is None:
        return None
    if not columns:
        raise RecipeError("must be left out for a folder of files", key="model.feature_weights")
    for name in given:
        if name not in columns:
            known = ", ".join(list(dict.fromkeys(columns))[:20])
            raise RecipeError(
                f"must name columns to learn from, among {known}; got {name!r}", key="model.feature_weights"
            )
    return np.array([given.get(name, 1.0) for name in columns])
