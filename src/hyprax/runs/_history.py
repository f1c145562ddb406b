"""The history of a run: an SQLite file, one row a step, each committed as it is made."""

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

COLUMNS = {
    "step": "INTEGER PRIMARY KEY",
    "value": "REAL",
    "gradient_norm": "REAL",
    "certificate_kind": "TEXT",
    "certificate_bound": "REAL",
    "noise": "REAL",
    "seconds": "REAL",
    "result": "TEXT",
    "stats": "TEXT",
}


class HistoryError(ValueError):
    """The history cannot be opened or read."""


def _number(x: Any) -> Any:
    """SQLite stores NaN as NULL, which reads back as nothing: keep it as text."""
    return "nan" if isinstance(x, float) and math.isnan(x) else x


def _back(x: Any) -> Any:
    return math.nan if x == "nan" else x


class History:
    """Rows of numbers by step. One writer at a time: a second is refused."""

    def __init__(self, path: Path, *, write: bool):
        self._path = path
        try:
            if write:
                self._connection = sqlite3.connect(path, timeout=1.0, isolation_level=None)
                self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
                self._connection.execute("BEGIN EXCLUSIVE")
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS steps ({columns})")
                self._connection.execute("COMMIT")
            else:
                self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1.0)
        except sqlite3.Error as error:
            raise HistoryError(f"{path}: cannot be opened ({error}): is another process writing this run?") from error

    def append(self, row: dict[str, Any]) -> None:
        """Commit one row; what has no column of its own goes to `stats`, as JSON."""
        stats = {name: x for name, x in row.items() if name not in COLUMNS}
        values = [json.dumps(stats) if name == "stats" else _number(row.get(name)) for name in COLUMNS]
        marks = ", ".join("?" * len(COLUMNS))
        self._connection.execute(f"INSERT OR REPLACE INTO steps VALUES ({marks})", values)

    def truncate(self, steps: int) -> None:
        """Forget the rows from step `steps` on: they will be made again."""
        self._connection.execute("DELETE FROM steps WHERE step >= ?", (steps,))

    def rows(self) -> list[dict[str, Any]]:
        """All rows, by step, statistics among the rest; columns without a value left out."""
        try:
            found = self._connection.execute(f"SELECT {', '.join(COLUMNS)} FROM steps ORDER BY step").fetchall()
        except sqlite3.Error as error:
            raise HistoryError(f"{self._path}: cannot be read ({error}).") from error
        rows = []
        for values in found:
            row = {name: _back(x) for name, x in zip(COLUMNS, values, strict=True) if x is not None}
            stats = json.loads(row.pop("stats", "{}"))
            rows.append(row | stats)
        return rows

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()
