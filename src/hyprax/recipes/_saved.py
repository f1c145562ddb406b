"""The model that comes out of a run: weights, and all that leads from a table to them, in JSON and safetensors."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import load_arrays, save_arrays, write_atomically
from ..runs import RunError
from ._columns import Column, as_json, exposures, from_json, is_missing
from ._errors import RecipeError
from ._job import Job
from ._preparation import Preparation, Scaling
from ._tables import faults_of, read_table

FORMAT = 1
MODEL, ARRAYS = "model.json", "model.safetensors"
PARTS = tuple(field.name for field in dataclasses.fields(Scaling))


@dataclasses.dataclass(frozen=True)
class Model:
    """A fitted linear model with its preparation of tables, as a run saves it and [`hyprax.recipes.load`][] reads it.

    - `kind`: `"ridge"`, `"logistic"`, ...; `classes`: the names of the classes, empty for numbers.
    - `columns`: what is read of a table; `features`: the names of the weights, `weights`: `(d,)` or `(d, C)`, of
        prepared columns.
    - `penalties`: the tuned penalties, `(d,)` or `(d, C)`, 0 for an intercept.
    - `class_weights`: what a row of each class counted in the fit, empty for all alike; probabilities are those of the
        weighted classes.
    - `exposure`: the column whose logarithm is added to the outputs of counts, empty without one; of an array, which
        has none, the outputs are those of an exposure of 1.
    """

    kind: str
    target: str
    classes: tuple[str, ...]
    columns: tuple[Column, ...]
    features: tuple[str, ...]
    prepare: Preparation = dataclasses.field(repr=False)
    units: Scaling | None = dataclasses.field(repr=False)
    weights: np.ndarray = dataclasses.field(repr=False)
    penalties: np.ndarray = dataclasses.field(repr=False)
    class_weights: tuple[float, ...] = ()
    exposure: str = ""

    def outputs(self, table: Any) -> np.ndarray:
        """Xw of a table, offset included: the path of a CSV file, a mapping from names to columns (a data frame), or an
        array.

        Missing values are filled as in training; categories that were not seen are none of those that were.

        **Raises:** `ValueError` for columns that are missing, and cells that cannot be read.
        """
        inputs, offset = self._inputs(table)
        return self.prepare(inputs) @ self.weights + offset

    def in_units(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights `(d,)` or `(d, C)` of the columns as they are read, and the intercept: `predict` or log odds without
        the preparation, where that has no squares and products."""
        assert self.prepare.second is None  # squares and products of prepared columns
        first = self.prepare.first
        count = len(first.low)
        weights, last = self.weights[:count], self.weights[count:].sum(axis=0)
        across = (-1,) + (1,) * (weights.ndim - 1)
        intercept = last - (weights * (first.low / first.spread).reshape(across)).sum(axis=0)
        weights = np.ldexp(weights / first.spread.reshape(across), -first.size.reshape(across))
        if self.units is not None:
            shift = self.units.undone(np.zeros_like(self.units.spread))
            scale = np.ldexp(self.units.spread, self.units.size)
            weights, intercept = weights * scale, intercept * scale + shift
        return weights, np.asarray(intercept).reshape(weights.shape[1:])

    def predict(self, table: Any) -> np.ndarray:
        """The class, or the number that is expected, of each row."""
        found = self.outputs(table)
        if self.classes:
            place = (found > 0).astype(int) if found.ndim == 1 else np.argmax(found, axis=1)
            return np.asarray(self.classes)[place]
        if self.kind == "poisson":
            return np.exp(found)
        return found if self.units is None else self.units.undone(found)

    def predict_proba(self, table: Any) -> np.ndarray:
        """The probability of each class, `(rows, C)`.

        **Raises:** `ValueError` for a model of numbers.
        """
        if not self.classes:
            raise ValueError(f"Model.predict_proba: the model must be of classes; got {self.kind}.")
        found = self.outputs(table)
        logits = np.column_stack([np.zeros(len(found)), found]) if found.ndim == 1 else found
        rates = np.exp(logits - logits.max(axis=1, keepdims=True))
        return rates / rates.sum(axis=1, keepdims=True)

    def _inputs(self, table: Any) -> tuple[np.ndarray, Any]:
        """Inputs as they are read, and the offset of the outputs."""
        if isinstance(table, str | Path):
            read = read_table(Path(table), key="")
            texts = {name: read.column(name) for name in read.header}
            return self._numbers(texts, read.lines, Path(table))
        if hasattr(table, "keys") and hasattr(table, "__getitem__"):
            texts = {str(name): _as_texts(table[name]) for name in table.keys()}  # noqa: SIM118  # of data frames
            rows = len(next(iter(texts.values()), ()))
            return self._numbers(texts, range(1, rows + 1), Path("row"))
        inputs = np.asarray(table, float)
        count = sum(len(column.features) for column in self.columns)
        if inputs.ndim != 2 or inputs.shape[1] != count:
            raise ValueError(f"Model: an array must have the shape (rows, {count}); got {inputs.shape}.")
        return inputs, 0.0

    def _numbers(
        self, texts: Mapping[str, np.ndarray], lines: Sequence[int], path: Path
    ) -> tuple[np.ndarray, np.ndarray | float]:
        used = [column for column in self.columns if column.kind != "drop"]
        needed = [*(column.name for column in used), *([self.exposure] if self.exposure else [])]
        absent = [name for name in needed if name not in texts]
        if absent:
            raise RecipeError(f"{path} must have the columns of the model; it has no {', '.join(map(repr, absent))}")
        faults, numbers, offset = [], [], 0.0
        for column in used:
            given = texts[column.name]
            found = column.numbers(given)
            if column.kind != "category":
                bad = np.flatnonzero(~np.isfinite(found[:, 0]) & ~is_missing(given))
                faults += [(column.name, repr(given[i][:60]), lines[i]) for i in bad.tolist()]
            numbers.append(found)
        if self.exposure:
            given = texts[self.exposure]
            offset = np.log(exposures(given, None))
            bad = np.flatnonzero(np.isnan(offset))
            faults += [(self.exposure, repr(given[i][:60]), lines[i]) for i in bad.tolist()]
        if faults:
            above = f", above 0 in {self.exposure!r}" if self.exposure else ""
            raise RecipeError(f"must hold finite numbers{above}; got {faults_of(faults, path)}")
        return np.concatenate(numbers, axis=1), offset

    def save(self, folder: Path) -> None:
        """Write `model.json` and `model.safetensors`."""
        arrays = {"weights": self.weights, "penalties": self.penalties}
        for name, part in (("first", self.prepare.first), ("second", self.prepare.second), ("units", self.units)):
            if part is not None:
                arrays |= {f"{name}/{key}": np.asarray(getattr(part, key)) for key in PARTS}
        about = {
            "format": FORMAT,
            "kind": self.kind,
            "target": self.target,
            "classes": list(self.classes),
            "class_weights": list(self.class_weights),
            "exposure": self.exposure,
            "columns": as_json(self.columns),
            "features": list(self.features),
            "expand": self.prepare.expand,
            "intercept": self.prepare.intercept,
        }
        save_arrays(folder / ARRAYS, {name: np.ascontiguousarray(x) for name, x in arrays.items()})
        write_atomically(folder / MODEL, json.dumps(about, indent=1).encode())


def _as_texts(values: Any) -> np.ndarray:
    """A column as texts; what is no value becomes nothing."""

    def text(x: Any) -> str:
        return "" if x is None or x != x else str(x).strip()

    return np.asarray([text(x) for x in np.asarray(values, dtype=object).tolist()], dtype=object)


def model_of(job: Job, params: Any, penalties: Any) -> Model:
    """The model of a job, refitted."""
    splits = job.splits
    assert splits is not None
    assert splits.prepare is not None
    columns = splits.columns or tuple(Column(name=name, kind="number") for name in splits.read)
    weights = np.asarray(params)
    return Model(
        job.recipe.model.kind,
        getattr(job.recipe.data, "target", "target"),
        splits.classes,
        columns,
        splits.features,
        splits.prepare,
        splits.units,
        weights,
        np.broadcast_to(np.asarray(penalties), weights.shape),
        splits.class_weights,
        getattr(job.recipe.data, "exposure", None) or "",
    )


def load(folder: str | Path) -> Model:
    """The model that a run saved in its folder. Nothing is unpickled.

    **Raises:** [`hyprax.runs.RunError`][] where there is none, or it is damaged.
    """
    path = Path(folder) / MODEL
    if not path.is_file():
        raise RunError(f"{folder}: must hold a model; it has no {MODEL}, which runs of linear models end with.")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise RunError(f"{path}: must be of format {FORMAT}; got {about['format']}.")
        arrays = load_arrays(Path(folder) / ARRAYS)

        def part(name: str) -> Scaling | None:
            return Scaling(*(arrays[f"{name}/{key}"] for key in PARTS)) if f"{name}/{PARTS[0]}" in arrays else None

        first = part("first")
        assert first is not None
        prepare = Preparation(first, about["expand"], part("second"), about["intercept"])
        return Model(
            about["kind"],
            about["target"],
            tuple(about["classes"]),
            from_json(about["columns"]),
            tuple(about["features"]),
            prepare,
            part("units"),
            arrays["weights"],
            arrays["penalties"],
            tuple(about.get("class_weights", ())),
            about.get("exposure", ""),
        )
    except RunError:
        raise
    except Exception as error:  # of many types, by what is wrong with the files
        raise RunError(f"{path}: must be a model that a run saved; it cannot be read ({error}).") from None
