"""The TOML file of `hyprax tasks`: what the tasks are, which dual is taken of them, and the tasks read from disk."""

import csv
import math
import tomllib
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ._brackets import clip
from ._lasso import elastic_net_dual
from ._parallel import map_tasks
from ._piecewise import Array, PiecewiseFunction
from ._ridge import ridge_dual
from ._task import Task

Raw = tuple[str, Array, Array]
"""Name, X (n, d) and y (n,) of one task as read."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataTable(_Table):
    """`[data]`: where the tasks are."""

    path: str
    """A CSV table with a task column, or a folder with a CSV or npz (`X`, `y`) file for each; relative to the TOML."""
    task: str = "task"
    """Name of the task column of a table."""
    target: str = "y"
    """Name of the target column."""
    features: tuple[str, ...] | None = None
    """Names of the feature columns; by default all the others."""


class ModelTable(_Table):
    """`[model]`: the learner, the range of its hyperparameter, and the loss that is validated."""

    kind: Literal["ridge", "lasso", "elastic_net"]
    low: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    high: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    penalty2: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The fixed l2 penalty of the elastic net."""
    intercept: bool = True
    standardise: bool = True
    """Whether features get mean 0 and variance 1 within every task."""
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Targets are divided by it: a known scale, the same for all tasks."""

    @model_validator(mode="after")
    def _consistent(self) -> "ModelTable":
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got low = {self.low:g}, high = {self.high:g}")
        if self.kind == "ridge" and self.low == 0:
            raise ValueError("ridge needs low > 0")
        if (self.kind == "elastic_net") != (self.penalty2 is not None):
            raise ValueError("penalty2 belongs to kind = 'elastic_net', which needs it")
        return self


class ValidationTable(_Table):
    """`[validation]`: how each task is split."""

    kind: Literal["hold_out", "k_fold", "leave_one_out"] = "k_fold"
    folds: Annotated[int, Field(ge=2)] = 5
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Part of a task that is validated on, for `hold_out`."""
    seed: int = 0


class GuaranteeTable(_Table):
    """`[guarantee]`: what is said of tasks to come."""

    range: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """H: losses are clipped to [0, H]."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.05


class Settings(_Table):
    """The whole file."""

    data: DataTable
    model: ModelTable
    validation: ValidationTable = ValidationTable()
    guarantee: GuaranteeTable | None = None
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Slack of the epsilon-optimal set; by default a hundredth of the least mean loss."""
    processes: Annotated[int, Field(ge=1)] | None = None
    """Parallel processes; by default as many as there are cores."""


def load_settings(path: Path) -> Settings:
    """The settings in a TOML file, checked; a `ValueError` of one line names the first thing that is wrong."""
    try:
        with path.open("rb") as file:
            return Settings.model_validate(tomllib.load(file))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise ValueError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from None


def load_tasks(data: DataTable, base: Path) -> list[Raw]:
    """Every task as read, in the order of first appearance in a table, or of the names of the files in a folder."""
    path = base / data.path
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".csv", ".npz"))
        if not files:
            raise ValueError(f"{path}: holds no .csv or .npz file")
        return [_read_npz(f) if f.suffix == ".npz" else (f.stem, *_columns(f, data, *_read_csv(f))) for f in files]
    header, rows = _read_csv(path)
    if data.task not in header:
        raise ValueError(f"{path}: has no column {data.task!r} that says which task a row is of; columns are {header}")
    at = header.index(data.task)
    groups: dict[str, list[list[str]]] = {}
    for row in rows:
        groups.setdefault(row[at], []).append(row)
    return [(name, *_columns(path, data, header, group)) for name, group in groups.items()]


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV table: {error}") from None
    if len(rows) < 2:
        raise ValueError(f"{path}: needs a header and at least one row")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: column names must differ; got {header}")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}: row {number} has {len(row)} fields, the header {len(header)}")
    return header, rows[1:]


def _columns(path: Path, data: DataTable, header: list[str], rows: list[list[str]]) -> tuple[Array, Array]:
    if data.target not in header:
        raise ValueError(f"{path}: has no target column {data.target!r}; columns are {header}")
    features = [c for c in header if c not in (data.target, data.task)] if data.features is None else data.features
    missing = [c for c in features if c not in header]
    if missing or not features:
        raise ValueError(
            f"{path}: has no feature column {missing[0]!r}" if missing else f"{path}: has no feature columns"
        )
    place = [header.index(c) for c in (*features, data.target)]
    try:
        values = np.array([[float(row[i]) for i in place] for row in rows])
    except ValueError as error:
        raise ValueError(f"{path}: features and target must be numbers: {error}") from None
    return values[:, :-1], values[:, -1]


def _read_npz(path: Path) -> Raw:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            X, y = (np.asarray(arrays[name], dtype=np.float64) for name in ("X", "y"))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: needs numeric arrays X (n, d) and y (n,): {error}") from None
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(f"{path}: needs X (n, d) and y (n,); got {X.shape} and {y.shape}")
    return path.stem, X, y


def dual_of(raw: Raw, model: ModelTable, validation: ValidationTable, range: float | None) -> PiecewiseFunction:
    """The dual function of one task, clipped to [0, range]; errors name the task."""
    name, X, y = raw
    try:
        bad = np.flatnonzero(~np.all(np.isfinite(np.column_stack([X, y])), axis=1))
        if bad.size:
            raise ValueError(f"row {int(bad[0]) + 1} of the task holds nan or inf")
        if len(y) < 2:
            raise ValueError(f"needs at least 2 rows; got {len(y)}")
        dual = _dual(_task(X, y / model.scale, model, validation), model)
        return dual if range is None else clip(dual, range)
    except ValueError as error:
        raise ValueError(f"task {name}: {error}") from None


def _task(X: Array, y: Array, model: ModelTable, validation: ValidationTable) -> Task:
    if model.standardise:
        spread = X.std(axis=0)
        constant = np.all(X[0] == X, axis=0)
        X = (X - X.mean(axis=0)) / np.where(constant | (spread == 0), 1.0, spread)
        X[:, constant] = 0.0
    if validation.kind == "leave_one_out":
        return Task.leave_one_out(X, y)
    if validation.kind == "k_fold":
        return Task.k_fold(X, y, min(validation.folds, len(y)), validation.seed)
    order = np.random.default_rng(validation.seed).permutation(len(y))
    count = min(max(1, math.floor(validation.fraction * len(y))), len(y) - 1)
    held, kept = order[:count], order[count:]
    return Task.hold_out(X[kept], y[kept], X[held], y[held])


def _dual(task: Task, model: ModelTable) -> PiecewiseFunction:
    domain = (model.low, model.high)
    if model.kind == "ridge":
        return ridge_dual(task, domain, intercept=model.intercept)
    return elastic_net_dual(task, domain, penalty2=model.penalty2 or 0.0, intercept=model.intercept)


def duals_of(settings: Settings, base: Path, progress: bool = True) -> tuple[list[str], list[PiecewiseFunction]]:
    """Names and dual functions of all tasks, in parallel processes."""
    tasks = load_tasks(settings.data, base)
    limit = None if settings.guarantee is None else settings.guarantee.range
    work: Any = partial(dual_of, model=settings.model, validation=settings.validation, range=limit)
    # A process takes longer to start than a few small tasks take in all.
    processes = 1 if len(tasks) < 32 and settings.processes is None else settings.processes
    return [name for name, _, _ in tasks], map_tasks(work, tasks, processes=processes, progress=progress)
