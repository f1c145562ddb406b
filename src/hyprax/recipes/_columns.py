"""What the columns of a table are, and the numbers that models see: categories as indicators, dates as days."""

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ._data_tables import Table as Schema

MISSING = frozenset(("", "na", "n/a", "nan", "nat", "none", "null", "?", "#n/a", "<na>"))
MOSTLY = 0.8
MOST_LEVELS = 20
IDENTIFIER = re.compile(r"(^|[_ .-])(id|ids|key|uuid|guid|index|rownum|nr|no)$", re.IGNORECASE)
DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y")

Kind = Literal["number", "category", "date", "drop"]


class Column(Schema):
    """A column of a table: what it is, and how it becomes numbers. Part of a saved model.

    - `kind`: of `"drop"` nothing is used, and `why` says why.
    - `decimal`: of numbers, the decimal sign.
    - `format`: of dates, as `strptime` has it; they become days since 1970.
    - `levels`: of categories; a value that is not among them is none of them.
    - `missing`: whether values were missing: an indicator says so, and what is missing is filled with the mean.
    """

    name: str
    kind: Kind
    decimal: str = "."
    format: str = ""
    levels: list[str] = Field(default_factory=list)
    missing: bool = False
    why: str = ""

    @property
    def features(self) -> list[str]:
        """The names of the numbers that it becomes."""
        if self.kind == "drop":
            return []
        if self.kind == "category":
            shown = self.levels[1:] if len(self.levels) == 2 and not self.missing else self.levels
            return [f"{self.name}={level}" for level in shown]
        return [self.name, *([f"{self.name} missing"] if self.missing else [])]

    @property
    def said(self) -> str:
        """What it was taken for, in words."""
        what = {"number": "numbers", "date": "dates, as days"}.get(self.kind, self.kind)
        if self.kind == "category":
            shown = ", ".join(self.levels[:4]) + (", ..." if len(self.levels) > 4 else "")
            what = f"{len(self.levels)} categories ({shown})"
        if self.kind == "drop":
            return f"dropped: {self.why}"
        return f"{what}{', some missing' if self.missing else ''}"

    def numbers(self, texts: np.ndarray) -> np.ndarray:
        """The numbers of new texts, `(rows, features)`; NaN for what is missing or cannot be read."""
        gone = is_missing(texts)
        if self.kind == "category":
            shown = [name.removeprefix(f"{self.name}=") for name in self.features]
            found = np.asarray([[text == level for level in shown] for text in texts.tolist()], float)
            return found.reshape(len(texts), len(shown))
        read = _parser(self)
        values = np.asarray([math.nan if lost else read(text) for text, lost in zip(texts.tolist(), gone, strict=True)])
        return np.column_stack([values, *([gone.astype(float)] if self.missing else [])])


def is_missing(texts: np.ndarray) -> np.ndarray:
    """Which texts stand for nothing."""
    return np.asarray([text.lower() in MISSING for text in texts.tolist()], bool)


def number(text: str, decimal: str = ".") -> float:
    """The number in a text, NaN where there is none."""
    try:
        return float(text.replace(",", ".") if decimal == "," else text)
    except ValueError:
        return math.nan


def days(text: str, format: str) -> float:
    """Days since 1970, NaN where the text is no such date."""
    try:
        found = datetime.datetime.strptime(text, format) if format else datetime.datetime.fromisoformat(text)
        return (found.replace(tzinfo=None) - datetime.datetime(1970, 1, 1)).total_seconds() / 86400
    except ValueError:
        return math.nan


def _parser(column: Column) -> Callable[[str], float]:
    if column.kind == "date":
        return lambda text: days(text, column.format)
    return lambda text: number(text, column.decimal)


def recognised(name: str, texts: np.ndarray, wanted: Kind | None, decimal: str | None) -> Column:
    """What a column is, unless it is said: numbers, dates, categories, or nothing to learn from."""
    gone = is_missing(texts)
    known = texts[~gone].tolist()
    missing = bool(gone.any())
    if wanted == "drop":
        usual = recognised(name, texts, None, decimal)
        return usual if usual.kind == "drop" else Column(name=name, kind="drop", why="as asked")
    if not known:
        return Column(name=name, kind="drop", why="it is empty")
    levels = list(dict.fromkeys(known))
    if wanted in (None, "number"):
        sign = _decimal(known) if decimal is None else decimal
        share = np.mean([not math.isnan(number(text, sign)) for text in known])
        if wanted == "number" or share == 1 or (share >= MOSTLY and not _dates(known)):
            whole = len(levels) == len(known) > 2 and all(re.fullmatch(r"\d+", text) for text in levels)
            if wanted is None and whole and IDENTIFIER.search(name):
                return Column(name=name, kind="drop", why="an identifier, another for each row")
            return Column(name=name, kind="number", decimal=sign, missing=missing)
    found = _dates(known) if wanted in (None, "date") else None
    if wanted == "date" or found is not None:
        return Column(name=name, kind="date", format=found or "", missing=missing)
    if wanted is None:
        if len(levels) == 1 and not missing:
            return Column(name=name, kind="drop", why=f"it holds {levels[0]!r} alone")
        if len(levels) == len(known) > 2:
            return Column(name=name, kind="drop", why="an identifier or free text, another for each row")
        if len(levels) > max(MOST_LEVELS, len(known) // 20) or len(levels) > 100:
            return Column(name=name, kind="drop", why=f"free text, or {len(levels)} categories: too many to tell apart")
    return Column(name=name, kind="category", levels=sorted(levels), missing=missing)


def exposures(texts: np.ndarray, decimal: str | None) -> np.ndarray:
    """The numbers > 0 in texts; NaN for all else."""
    sign = _decimal(texts[~is_missing(texts)].tolist()) if decimal is None else decimal
    values = np.asarray([number(text, sign) for text in texts.tolist()], float)
    return np.where(np.isfinite(values) & (values > 0), values, math.nan)


def _decimal(texts: Sequence[str]) -> str:
    """A comma where numbers are written with one."""
    commas = any("," in text for text in texts)
    return (
        ","
        if commas and all(re.fullmatch(r"[+-]?\d*,?\d+(e[+-]?\d+)?", text, re.IGNORECASE) for text in texts)
        else "."
    )


def _dates(texts: Sequence[str]) -> str | None:
    """The format of dates, `""` for ISO 8601 with a time; `None` where some text is no date."""
    if not all(re.match(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}", text) for text in texts[:20]):
        return None
    for format in (*DATES, ""):
        if all(not math.isnan(days(text, format)) for text in texts):
            return format
    return None


def target_kind(texts: Sequence[str], decimal: str | None = None) -> tuple[str, str]:
    """The model that fits targets, and what they were taken for."""
    levels = sorted(set(texts))
    sign = _decimal(texts) if decimal is None else decimal
    values = np.asarray([number(text, sign) for text in texts])
    numbers = bool(np.all(np.isfinite(values)))
    whole = numbers and bool(np.all(values == np.round(values)))
    if (len(levels) == 2 and (whole or not numbers)) or (not numbers and len(levels) > 2):
        shown = ", ".join(levels[:4]) + (", ..." if len(levels) > 4 else "")
        return ("logistic" if len(levels) == 2 else "softmax"), f"{len(levels)} classes ({shown})"
    if whole and values.min() == 0 and values.max() < 100:
        return "poisson", "counts (model.kind for another choice)"
    return "ridge", "numbers"


def as_json(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as plain values."""
    return [column.model_dump(mode="json") for column in columns]


def from_json(columns: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """The same columns again."""
    return tuple(Column.model_validate(dict(column)) for column in columns)
