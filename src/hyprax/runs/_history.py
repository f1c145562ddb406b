"""The history of a run: an SQLite file, one row a step, each committed as it is made."""

import contextlib
import hashlib
import json
import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._arrays import RunError

COLUMNS = {
    "step": "INTEGER PRIMARY KEY",
    "value": "REAL",
    "gradient_norm": "REAL",
    "certificate_kind": "TEXT",
    "certificate_bound": "REAL",
    "noise": "REAL",
    "work": "REAL",
    "seconds": "REAL",
    "result": "TEXT",
    "stats": "TEXT",
}
CHECKSUM = "row_checksum"


class HistoryError(RunError):
    """The history cannot be opened, read or written."""


def _stored(name: str, x: Any) -> Any:
    """A value as SQLite will give it back: NaN as text, since it makes NULL of it, and no negative zero."""
    if x is None or COLUMNS[name] == "TEXT":
        return x
    if COLUMNS[name] != "REAL":
        return int(x)
    return "nan" if math.isnan(x) else float(x) + 0.0


def _back(x: Any) -> Any:
    return math.nan if x == "nan" else x


def _checksum(before: str, values: Sequence[Any]) -> str:
    """Of a row as it is stored, and of all rows before it."""
    return hashlib.blake2b(repr((before, *values)).encode(), digest_size=16).hexdigest()


class Lock:
    """The right to write a run, held by one process or connection at a time, and given back when its process ends.

    **Raises:** `HistoryError` where another has it.
    """

    def __init__(self, path: Path):
        try:
            self._connection = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise HistoryError(f"{path}: cannot be written ({error}).") from None
        try:
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            self._connection.close()
            held = "another process is writing this run" if "locked" in str(error) else f"cannot be written ({error})"
            raise HistoryError(f"{path.parent}: {held}.") from None

    def release(self) -> None:
        """Let others write."""
        self._connection.close()


class History:
    """Rows of numbers by step. Written by whoever holds the run's lock, and read by anyone at the same time.

    Each row has a checksum of itself and of the rows before it, so that a row that was altered or left out is noticed.
    """

    def __init__(self, path: Path, *, write: bool):
        self._path = path
        self._last: tuple[int, str] = (-1, "")  # the step and the checksum of the last row; of no row at first
        try:
            if write:
                self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                self._connection.execute("PRAGMA journal_mode = WAL")  # readers see the last row that is whole
                self._connection.execute("PRAGMA synchronous = FULL")
                columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS steps ({columns}, {CHECKSUM} TEXT)")
            else:
                self._connection = _reader(path)
        except sqlite3.Error as error:
            raise HistoryError(f"{path}: cannot be opened ({error}).") from None

    def append(self, row: dict[str, Any]) -> None:
        """Commit one row; what has no column of its own goes to `stats`, as JSON."""
        stats = {name: x for name, x in row.items() if name not in COLUMNS}
        values = [json.dumps(stats) if name == "stats" else _stored(name, row.get(name)) for name in COLUMNS]
        step = int(row["step"])
        if step == 0 or step != self._last[0] + 1:
            self.truncate(step)
        checksum = _checksum(self._last[1], values)
        self._write(f"INSERT INTO steps VALUES ({', '.join('?' * len(values))}, ?)", [*values, checksum])
        self._last = (step, checksum)

    def truncate(self, steps: int) -> None:
        """Forget the rows from step `steps` on: they will be made again."""
        self._write("DELETE FROM steps WHERE step >= ?", [steps])
        found = self._write(f"SELECT {CHECKSUM} FROM steps WHERE step = ?", [steps - 1]).fetchone()
        self._last = (steps - 1, str(found[0]) if found else "")

    def _write(self, statement: str, values: list[Any]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise HistoryError(f"{self._path}: cannot be written ({error}).") from None

    def rows(self) -> list[dict[str, Any]]:
        """All rows, by step, statistics among the rest; columns without a value left out."""
        try:
            if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'steps'").fetchone():
                return []  # its writer has only just begun
            found = self._connection.execute(f"SELECT {', '.join(COLUMNS)}, {CHECKSUM} FROM steps ORDER BY step")
            rows, checksum = [], ""
            for *values, written in found.fetchall():
                checksum = _checksum(checksum, values)
                if written != checksum:
                    raise ValueError(f"step {values[0]} does not match its checksum: it or a row before it was altered")
                row = {name: _back(x) for name, x in zip(COLUMNS, values, strict=True) if x is not None}
                stats = json.loads(row.pop("stats", "{}"))
                rows.append(row | stats)
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise HistoryError(f"{self._path}: cannot be read ({error}).") from None
        for row in rows:
            for name, kind in COLUMNS.items():
                if name in row and isinstance(row[name], str) != (kind == "TEXT"):
                    raise HistoryError(f"{self._path}: cannot be read ({name} of step {row['step']} is {row[name]!r}).")
        return rows

    def close(self) -> None:
        """Give the file back, one file again, as a folder that cannot be written needs it."""
        with contextlib.suppress(sqlite3.Error):  # a reader has it open: the next one to close does it
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()


def _reader(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing, where the folder cannot be written either."""
    for options in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, timeout=1.0)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            if "immutable" in options:
                raise
        else:
            return connection
    raise AssertionError("unreachable")
