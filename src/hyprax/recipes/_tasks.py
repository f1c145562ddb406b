"""The TOML file of `hyprax tasks`: what the tasks are, which dual is taken of them, and the tasks read from disk."""

import math
import tomllib
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from pydantic import Field, ValidationError, model_validator

from ..tasks import PiecewiseFunction, Task, elastic_net_dual, map_tasks, ridge_dual
from ._data_tables import CsvData, NpzData, Seed, Table
from ._errors import RecipeError, Source
from ._sources import read_csv, read_npz

Raw = tuple[str, np.ndarray, np.ndarray]
"""Name, X (n, d) and y (n,) of one task as read."""
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


class ModelTable(Table):
    """`[model]`: the learner, the range of its hyperparameter, and the loss that is validated."""

    kind: Literal["ridge", "lasso", "elastic_net"]
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

    @model_validator(mode="after")
    def _consistent(self) -> "ModelTable":
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got low = {self.low:g}, high = {self.high:g}")
        if self.kind == "ridge" and self.low == 0:
            raise ValueError("ridge needs low > 0")
        if (self.kind == "elastic_net") != (self.penalty2 is not None):
            raise ValueError("penalty2 belongs to kind = 'elastic_net', which needs it")
        return self


class ValidationTable(Table):
    """`[validation]`: how each task is split."""

    kind: Literal["hold_out", "k_fold", "leave_one_out"] = "k_fold"
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


def load_tasks(data: DataTable, base: Path) -> list[Raw]:
    """Every task as read, in the order of first appearance in a table, or of the names of the files in a folder."""
    path = base / data.path
    if not path.is_dir():
        found = read_csv(path, _csv_data(data, groups=data.task), usual="number")
        task, numbers = found.groups, _numbers(path, data.target, found.targets)
        assert task is not None
        return [(str(name), found.inputs[task == name], numbers[task == name]) for name in dict.fromkeys(task.tolist())]
    files = sorted(f for f in path.iterdir() if f.suffix in (".csv", ".npz"))
    if not files:
        raise RecipeError(f"{path} holds no .csv or .npz file", key="data.path")
    return [_from_file(file, data) for file in files]


def _csv_data(data: DataTable, groups: str | None) -> CsvData:
    return CsvData(
        source="csv", path=data.path, target=data.target, features=data.features, groups=groups, missing="refuse"
    )


def _from_file(file: Path, data: DataTable) -> Raw:
    if file.suffix == ".csv":
        table = read_csv(file, _csv_data(data, groups=None), usual="number")
        return file.stem, table.inputs, _numbers(file, data.target, table.targets)
    inputs, targets, *_ = read_npz(file, NpzData(source="npz", path=file.name))
    X, y = np.asarray(inputs, dtype=np.float64), _numbers(file, "y", np.asarray(targets))
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise RecipeError(f"{file} must hold X (n, d) and y (n,); got {X.shape} and {y.shape}", key="data.path")
    for name, array in (("X", X), ("y", y[:, None])):
        bad = np.argwhere(~np.isfinite(array))
        if bad.size:
            raise RecipeError(f"{file}: row {bad[0, 0]} of {name} must be finite numbers", key="data.path")
    return file.stem, X, y


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


def dual_of(raw: Raw, settings: Settings) -> PiecewiseFunction | str:
    """The dual function of one task, clipped to [0, range]; errors name the task.

    Where tasks may be set aside, one whose dual cannot be computed gives the reason in place of it.
    """
    name, X, y = raw
    try:
        if len(y) < 2:
            raise ValueError(f"needs at least 2 rows; got {len(y)}")
        dual = _dual(_task(X, y / settings.model.scale, settings.validation), settings.model)
        return dual if settings.guarantee is None else dual.clip(settings.guarantee.range)
    except (ValueError, ArithmeticError) as error:
        text = f"task {name}: {str(error).rstrip('.')}"
        if isinstance(error, ArithmeticError) and settings.set_aside is not None:
            return text
        raise RecipeError(text) from None


def _task(X: np.ndarray, y: np.ndarray, validation: ValidationTable) -> Task:
    key, n = jax.random.key(validation.seed), len(y)
    if validation.kind == "leave_one_out":
        return Task.leave_one_out(X, y)
    if validation.kind == "k_fold":
        return Task.k_fold(X, y, min(validation.folds, n), key=key)
    order = np.asarray(jax.random.permutation(key, n))
    count = min(max(1, math.floor(validation.fraction * n)), n - 1)
    held, kept = order[:count], order[count:]
    return Task.hold_out(X[kept], y[kept], X[held], y[held])


def _dual(task: Task, model: ModelTable) -> PiecewiseFunction:
    domain = (model.low, model.high)
    task = task.standardised() if model.standardise else task
    if model.kind == "ridge":
        return ridge_dual(task, domain, intercept=model.intercept)
    return elastic_net_dual(task, domain, penalty2=model.penalty2 or 0.0, intercept=model.intercept)


def duals_of(
    settings: Settings, base: Path, progress: bool = True
) -> tuple[list[str], list[PiecewiseFunction], list[str]]:
    """Names and dual functions of all tasks, in parallel processes, and why others have none."""
    tasks = load_tasks(settings.data, base)
    processes = 1 if len(tasks) < _FEW and settings.processes is None else settings.processes
    work: Any = partial(dual_of, settings=settings)
    found = map_tasks(work, tasks, processes=processes, progress=progress)
    pairs = [(name, dual) for (name, _, _), dual in zip(tasks, found, strict=True) if not isinstance(dual, str)]
    reasons = [dual for dual in found if isinstance(dual, str)]
    if not pairs:
        raise RecipeError(f"every task would be set aside; the first: {reasons[0]}")
    return [name for name, _ in pairs], [dual for _, dual in pairs], reasons
