"""Errors of a recipe: one line that names the file, the line, the key, what was given and what is allowed."""

import re
from collections.abc import Sequence
from pathlib import Path


class RecipeError(ValueError):
    """Something in a recipe, or in the data that it names, cannot be used."""

    def __init__(self, message: str, *, key: str = "", file: Path | str = "", line: int | None = None):
        self.message, self.key, self.file, self.line = message, key, str(file), line
        where = f"{self.file}:{line}" if line is not None else self.file
        super().__init__(": ".join(part for part in (where, key, message) if part))

    def located(self, file: Path, text: str) -> "RecipeError":
        """The same error with the file, and the line of its key where the file has it."""
        if self.file:
            return self
        return RecipeError(self.message, key=self.key, file=file, line=line_of(text, self.key.split(".")))


def line_of(text: str, keys: Sequence[str]) -> int | None:
    """The line of a dotted key in TOML text; that of its table where the key itself is not there."""
    table: tuple[str, ...] = ()
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\]\[]+?)\s*\]", line)
        entry = re.match(r"\s*([A-Za-z0-9_\-.\"']+)\s*=", line)
        if header:
            table = tuple(part.strip().strip("\"'") for part in header.group(1).split("."))
            here = table
        elif entry:
            here = (*table, *(part.strip("\"'") for part in entry.group(1).split(".")))
        else:
            continue
        depth = len(here)
        if here == tuple(keys[:depth]) and (best is None or depth > best[0]):
            best = (depth, number)
    return None if best is None else best[1]
