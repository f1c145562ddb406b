"""Loggers that need no package: a CSV file, and a file of JSON lines."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._arrays import write_atomically
from .._result import result_name
from ..search import Start, Step, TuneResult
from ._numbers import row_of

Row = Mapping[str, Any]


class _File:
    """A file of rows by step that is brought to the history at the start, and then grows row by row."""

    def __init__(self, path: str | Path, parse: Callable[[str], list[Row]], suffix: str):
        self.path, self._parse, self._suffix = Path(path), parse, suffix

    def rows(self, start: Start) -> list[Row]:
        """The rows of the steps that stand: as the file has them, hyperparameters and all, else as the history does."""
        known: dict[int, Row] = {}
        if self.path.exists() and self.path.stat().st_size:
            text = self.path.read_text(encoding="utf-8", errors="replace")
            found = self._parse(text)
            if not found and "step" not in text[:200]:
                raise ValueError(f"{self.path}: must be a new file, or the {self._suffix} of a run; got another")
            known = {row["step"]: row for row in found}
        return [known.get(row["step"], row) for row in start.history]

    def rewrite(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.encode())

    def append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(text)


def _from_csv(text: str) -> list[Row]:
    found = csv.DictReader(io.StringIO(text))
    rows = [row for row in found if None not in row and None not in row.values()]
    return [{**row, "step": int(row["step"])} for row in rows if (row.get("step") or "").isdecimal()]


class CSV:
    """The steps of a run as a CSV file: a line a step, written as it is made.

    Columns are those of a history (the step, value, gradient norm, certificate, noise, work, result, seconds, what the
    engine measured) and the hyperparameters by name (`hyper/penalty`; of arrays of more than eight entries their
    smallest, mean and largest). A run that goes on goes on with its file; lines of steps that are made again are
    replaced.

    **Arguments:**

    - `path`: a new file, or that of an earlier run, which a new run replaces.
    """

    def __init__(self, path: str | Path):
        self._file = _File(path, _from_csv, "CSV file")
        self._rows: list[Row] = []
        self._columns: list[str] = []

    def start(self, start: Start) -> None:
        self._rows = self._file.rows(start)
        self._columns = _columns(self._rows)
        self._file.rewrite(_csv_text(self._columns, self._rows, header=bool(self._columns)))

    def step(self, step: Step) -> None:
        row = row_of(step)
        self._rows.append(row)
        if row.keys() <= set(self._columns):
            self._file.append(_csv_text(self._columns, [row], header=False))
        else:
            self._columns = _columns(self._rows)
            self._file.rewrite(_csv_text(self._columns, self._rows))


def _columns(rows: Iterable[Row]) -> list[str]:
    """All names, those that every history has first."""
    found = dict.fromkeys(Step.COLUMNS) | {name: None for row in rows for name in row}
    return list(found) if rows else []


def _csv_text(columns: Sequence[str], rows: Iterable[Row], header: bool = True) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _from_lines(text: str) -> list[Row]:
    found = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a line that a process left half written
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return found


class JSONL:
    """The steps of a run as JSON, an object a line, written as they are made; the last line says how the run ended.

    The entries are the columns of [`hyprax.callbacks.CSV`][]; numbers that JSON has not (NaN, infinity) are null. The
    last line has `ended` (the name of the result), `message`, `best_value` and `best_step`.

    **Arguments:**

    - `path`: a new file, or that of an earlier run, which a new run replaces.
    """

    def __init__(self, path: str | Path):
        self._file = _File(path, _from_lines, "JSON lines")

    def start(self, start: Start) -> None:
        self._file.rewrite("".join(map(_line, self._file.rows(start))))

    def step(self, step: Step) -> None:
        self._file.append(_line(row_of(step)))

    def end(self, tuned: TuneResult | None) -> None:
        if tuned is not None:
            ending = {"ended": result_name(tuned.result), "message": tuned.message}
            self._file.append(_line(ending | {"best_value": tuned.best_value, "best_step": tuned.best_step}))


def _line(row: Row) -> str:
    plain = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
    return json.dumps(plain, ensure_ascii=False) + "\n"
