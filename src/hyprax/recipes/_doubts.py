"""Guesses about a table that may well be wrong: told before any work, with how to settle them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ._columns import DATES, IDENTIFIER, Column, days, is_missing, number
from ._errors import RecipeError
from ._tables import Table

MODEL = "model.kind"
FEW_VALUES = 20
"""Whole numbers of at most so many values may be classes."""
MONTHS = (
    "jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?|"
    "dec(ember)?"
)
DATE_LIKE = re.compile(rf"\d{{1,4}}[-/. ]\d{{1,2}}[-/. ]\d{{1,4}}.*|(.*\d.*)?\b({MONTHS})\b.*\d.*", re.IGNORECASE)
NUMBER_LIKE = re.compile(r"[€$£]?\s?[+-]?\d[\d.,' ]*(\s?[%€$£]|\s[a-zA-Z]{1,3})?")
ROW = re.compile(r"|unnamed: ?\d+|row.*|#|n|number", re.IGNORECASE)
"""Names under which the numbers of rows are written, by pandas and R among others."""
PACKED_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


class Doubt(NamedTuple):
    """A guess that may be wrong: the key of the recipe that settles it, and what was guessed, in words."""

    key: str
    said: str


def of_column(column: Column, texts: np.ndarray) -> list[Doubt]:
    """What may be wrong about the kind that a column was taken for by its looks."""
    known = texts[~is_missing(texts)].tolist()
    why = _why(column, known) if known else ""
    if not why:
        return []
    taken = column.said if column.kind == "drop" else f"taken for {column.said}"
    return [Doubt(f"data.kinds.{column.name}", f"column {column.name!r} was {taken}, but {why}")]


def _why(column: Column, known: list[str]) -> str:
    if column.kind == "number":
        return _of_numbers(column, known)
    if column.kind == "date":
        other = {"%d/%m/%Y": "%m/%d/%Y", "%m/%d/%Y": "%d/%m/%Y"}.get(column.format)
        both = other is not None and all(not np.isnan(days(text, other)) for text in known)
        return "which number is the day and which the month cannot be told" if both else ""
    levels = set(known)
    if column.kind == "drop" and all(re.fullmatch(r"\d+", text) for text in levels):
        return "" if _in_steps(known) or len(levels) == 1 else "only its name says so"
    if _mostly(DATE_LIKE, known):
        return f"{known[0][:40]!r} looks like a date (none of {', '.join(DATES)})"
    if _mostly(NUMBER_LIKE, known) and len(levels) > 2:
        return f"{known[0][:40]!r} looks like a number"
    if column.kind == "drop" and 1 < len(levels) < len(known):
        return "values come back"
    return ""


def _of_numbers(column: Column, known: list[str]) -> str:
    whole = all(re.fullmatch(r"\d+", text) for text in known)
    if whole and len(set(known)) > 2 and IDENTIFIER.search(column.name):
        return "its name is that of an identifier"
    if whole and len(known) > 2 and known[0] in ("0", "1") and ROW.fullmatch(column.name) and _in_steps(known):
        return "it counts the rows"
    if whole and all(PACKED_DATE.fullmatch(text) for text in known):
        return f"{known[0]!r} looks like a date"
    if column.decimal == "," and all(THOUSANDS.fullmatch(text) for text in known):
        return f"the comma of {known[0][:40]!r} may part thousands"
    return ""


def _in_steps(known: Sequence[str]) -> bool:
    """Whether whole numbers grow by one from row to row."""
    first = int(known[0])
    return all(int(text) == first + place for place, text in enumerate(known))


def _mostly(pattern: re.Pattern[str], known: Sequence[str]) -> bool:
    return sum(pattern.fullmatch(text) is not None for text in known) > len(known) / 2


def of_target(name: str, known: Sequence[str], kind: str, said: str) -> list[Doubt]:
    """What may be wrong about the model that was chosen for targets by their looks."""
    levels = set(known)
    values = np.asarray([number(text) for text in known])
    why = ""
    if kind in ("ridge", "poisson") and 2 < len(levels) <= min(FEW_VALUES, len(known) // 2):
        if np.all(values == np.round(values)):
            why = f"{len(levels)} whole numbers may be classes"
    elif kind in ("logistic", "softmax") and np.mean(np.isfinite(values)) > 0.5 and not np.all(np.isfinite(values)):
        odd = known[int(np.flatnonzero(~np.isfinite(values))[0])]
        why = f"all but a few are numbers: {odd[:40]!r} is none"
    elif kind == "softmax" and len(levels) > max(FEW_VALUES, len(known) // 20):
        why = "these are many"
    return [Doubt(MODEL, f"target {name!r} was taken for {said}, but {why}")] if why else []


def of_dialect(table: Table) -> list[Doubt]:
    """What may be wrong about how the lines of a table were cut."""
    if not table.rival:
        return []
    return [Doubt("data.delimiter", f"columns were cut at {table.delimiter!r}, but {table.rival!r} would do as well")]


def unsettled(doubts: Iterable[Doubt], settings: Iterable[str]) -> list[Doubt]:
    """Those whose key is not among those that were set, nor below one of them."""
    keys = tuple(settings)
    return [doubt for doubt in doubts if not any(f"{doubt.key}.".startswith(f"{key}.") for key in keys)]


def refuse(doubts: Sequence[Doubt], path: Path) -> None:
    """One message with all of them, and how each is settled.

    **Raises:** `RecipeError`, where there are any.
    """
    if not doubts:
        return
    ways = {
        "data.kinds.": "[data.kinds] with number, category, date or drop (--set data.kinds.NAME=drop)",
        MODEL: "model.kind with logistic, softmax, ridge, pseudo-huber or poisson (--set model.kind=softmax)",
        "data.delimiter": "data.delimiter (--set data.delimiter=';')",
    }
    needed = [way for key, way in ways.items() if any(doubt.key.startswith(key) for doubt in doubts)]
    listed = "; ".join(doubt.said for doubt in doubts)
    raise RecipeError(
        f"{len(doubts)} of the guesses {'is' if len(doubts) == 1 else 'are'} doubtful: {listed}. Settle "
        f"{'it' if len(doubts) == 1 else 'them'} by {', and '.join(needed)}; or take the guesses as they are: --assume "
        "(data.assume = true)",
        file=path,
    )
