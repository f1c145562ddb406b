"""Errors of a recipe: one line that names the file, the line, the key, what must be there and what was got."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from .._text import escaped

SETTINGS = "--set"
LONGEST = 1500


class RecipeError(ValueError):
    """Something in a recipe, or in the data that it names, cannot be used."""

    def __init__(self, message: str, *, key: str = "", file: Path | str = "", line: int | None = None):
        key = _readable(key)
        self.message, self.key, self.file, self.line = _readable(message), key, str(file), line
        where = f"{self.file}:{line}" if line is not None else self.file
        # "search.steps must be ...", but "search.stepps: unknown key"
        said = f"{key} {self.message}" if key and self.message.startswith("must ") else self.message
        key = "" if said != self.message else key
        super().__init__(": ".join(part for part in (where, key, said) if part))


def _readable(text: str) -> str:
    """One line of what comes from a file, without what a terminal would obey, its words and all of it not too long."""
    text = escaped(" ".join(text.split()))
    text = re.sub(r"\S{200,}", lambda found: f"{found[0][:60]}… ({len(found[0]):,} characters)", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def quoted(names: Iterable[str]) -> str:
    """Names as TOML has them, with commas."""
    return ", ".join(f'"{name}"' for name in names)


def left_out(key: str, where: str, for_: str) -> RecipeError:
    """A key that has no effect where it stands."""
    return RecipeError(f"must be left out for {where}: it is for {for_}", key=key)


def as_error(error: ValueError) -> str:
    """The text of an error of the library as the end of a line."""
    return str(error).rstrip(".")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the keys of a recipe stand: in the text of a file, or in settings given over it."""

    path: Path
    text: str
    settings: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    """The settings as they were given, `key=value`."""
    made: bool = False
    """Whether the text was made for the file, a table, and has no lines that a user could look up."""

    def located(self, error: RecipeError) -> RecipeError:
        """The same error with the place of its key; one that names a file already is left alone."""
        if error.file:
            return error
        line = line_of(self.text, error.key)
        shown = None if self.made else line
        above = any(f"{error.key}.".startswith(f"{name}.") for name in self.settings)
        below = any(name.startswith(f"{error.key}.") for name in self.settings)
        if above or (below and line is None):
            return RecipeError(error.message, key=error.key, file=SETTINGS)
        return RecipeError(error.message, key=error.key, file=self.path, line=shown)


def line_of(text: str, key: str) -> int | None:
    """The line of a dotted key in TOML text; of the first key below it, or of its table, where it is not there."""
    keys = tuple(key.split("."))
    table: tuple[str, ...] = ()
    best = (0, None)
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        header = re.match(r"\[([^\]\[]+)\]", line)
        entry = re.match(r"([A-Za-z0-9_\-.\"' ]+)=", line)
        if header:
            table = _parts(header.group(1))
            here = table
        elif entry:
            here = (*table, *_parts(entry.group(1)))
        else:
            continue
        depth = min(len(here), len(keys))
        if here[:depth] == keys[:depth] and depth > best[0]:
            best = (depth, number)
    return best[1]


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
