"""Tables as people have them: CSV of any dialect and encoding, or Parquet; faults are told together."""

import csv
import dataclasses
import functools
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ._errors import RecipeError
from ._parquet import MAGIC, read_parquet

DELIMITERS = (",", ";", "\t", "|")
NAMES_OF_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
WINDOWS = ("windows-1252", "cp1252")  # the last resort, which leaves no byte unread
MOST_BYTES = 2**31
MOST_UNPACKED = 2**26
MOST_CELLS = 2**25
SNIFFED = 50
SHOWN = 3
"""Faults of a kind that are shown with their places; the others are counted."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts: columns by name, and the line of the file that each row stands on.

    Of a Parquet file, which has no lines, the number of the row from 1; `delimiter` is empty then. `rival`: what would
    cut the lines as well as the delimiter that was found.
    """

    path: Path
    header: list[str]
    cells: np.ndarray
    lines: list[int]
    delimiter: str
    encoding: str
    rival: str = ""

    def column(self, name: str) -> np.ndarray:
        """The texts of a column, without blanks around them."""
        return np.asarray([text.strip() for text in self.cells[:, self._places[name]]], dtype=object)

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: i for i, name in reversed([*enumerate(self.header)])}

    @property
    def said(self) -> str:
        """The dialect, in words."""
        if not self.delimiter:
            return self.encoding
        return f"{self.encoding}, {NAMES_OF_DELIMITERS.get(self.delimiter, repr(self.delimiter))} between columns"


def read_table(path: Path, delimiter: str | None = None, encoding: str | None = None, key: str = "data.path") -> Table:
    """The header and the rows of a CSV file, plain or gzipped, or of a Parquet file; empty lines are left out.

    CSV not by pandas, which fills rows that are too short with nothing, and keeps no line numbers.

    **Raises:** `RecipeError` for a file that cannot be read, and rows of other lengths than the header.
    """
    if _begin(path) == MAGIC:
        header, texts = read_parquet(path, MOST_CELLS, key)
        return Table(path, header, texts, [*range(1, len(texts) + 1)], "", "Parquet")
    text, encoding = _decoded(path, encoding, key)
    delimiter, rival = _delimiter(text) if delimiter is None else (delimiter, "")
    rows, line, cells = [], 0, 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        for row in reader:
            line = reader.line_num
            if row:
                rows.append((line, row))
                cells += len(row)
                if cells > MOST_CELLS:
                    raise RecipeError(f"must have at most {MOST_CELLS} fields; {path} has more", key=key)
    except csv.Error as error:
        raise RecipeError(f"must be a CSV file; {path}:{line + 1}: {error}", key=key) from None
    if len(rows) < 2:
        raise RecipeError(f"must have rows under a header; {path} has none", key=key)
    header = [name.strip() for name in rows[0][1]]
    ragged = [(number, len(row)) for number, row in rows[1:] if len(row) != len(header)]
    if ragged:
        (first, count), *others = ragged
        more = "".join(f", line {number} has {count}" for number, count in others[: SHOWN - 1])
        more += _and_more(len(others) - SHOWN + 1)
        raise RecipeError(f"must have {len(header)} fields a row; {path}:{first} has {count}{more}", key=key)
    texts = np.asarray([row for _, row in rows[1:]], dtype=object)
    return Table(path, header, texts, [number for number, _ in rows[1:]], delimiter, encoding, rival)


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(len(MAGIC))
    except OSError:  # told by whoever reads the whole
        return b""


def _decoded(path: Path, encoding: str | None, key: str) -> tuple[str, str]:
    """The text of a file, and the encoding that it is in: the first of UTF-8, UTF-16 by its mark, Windows-1252."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(raw)) as stream:
                raw = stream.read(MOST_UNPACKED + 1)
            if len(raw) > MOST_UNPACKED:
                raise RecipeError(f"must hold at most {MOST_UNPACKED} bytes if packed; unpack {path}", key=key)
        if len(raw) > MOST_BYTES:
            raise RecipeError(f"must have at most {MOST_BYTES} bytes; {path} has more", key=key)
        if encoding is not None:
            return raw.decode(encoding, "replace" if encoding.lower() in WINDOWS else "strict"), encoding
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return raw.decode("utf-16"), "UTF-16"
        try:
            return raw.decode("utf-8-sig"), "UTF-8"
        except UnicodeDecodeError:
            if b"\x00" in raw[:4096]:
                raise
            return raw.removeprefix(b"\xef\xbb\xbf").decode("cp1252", "replace"), "Windows-1252"
    except (OSError, EOFError, LookupError, UnicodeError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise RecipeError(f"must be a CSV file; {path} cannot be read ({said})", key=key) from None


def _delimiter(text: str) -> tuple[str, str]:
    """What cuts the first lines into the same number of fields, more than one; and what else cuts all of them so."""
    best, most, even = ",", (0, 0), []
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text[: 2**16], newline=""), delimiter=delimiter)
        try:
            counts = [len(row) for row, _ in zip(reader, range(SNIFFED), strict=False) if row]
        except csv.Error:
            continue
        if counts and counts[0] > 1:
            found = (sum(count == counts[0] for count in counts), counts[0])
            if found > most:
                best, most = delimiter, found
            if found[0] == len(counts):
                even.append(delimiter)
    return best, next((delimiter for delimiter in even if delimiter != best and best in even), "")


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def faults_of(faults: Sequence[tuple[str, str, int]], path: Path) -> str:
    """Texts that cannot be used, with their columns and lines; the first few, and how many more."""
    said = [f"{held} in column {name!r} at {path}:{line}" for name, held, line in faults[:SHOWN]]
    return ", ".join(said) + _and_more(len(faults) - SHOWN)
