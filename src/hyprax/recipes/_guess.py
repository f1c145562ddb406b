"""A recipe for a table, after a look at it."""

import json
from collections import Counter
from pathlib import Path

from ._columns import Column, is_missing, recognised, target_kind
from ._errors import RecipeError, quoted
from ._tables import Table, read_table

FEWEST = 8
"""Rows of a table, below which nothing can be tuned and judged by the recipe that is written here."""


def recipe_for(path: Path, target: str | None, source: str | None = None) -> str:
    """The text of a recipe that tunes a linear model of a table: what its columns were taken for, as keys to change.

    **Arguments:**

    - `path`: a CSV file.
    - `target`: the column to predict.
    - `source`: how the recipe names the file; default its name, for a recipe beside it.

    **Raises:** `RecipeError` for a table that cannot be read, or has no such column.
    """
    if not path.is_file():
        raise RecipeError("there is no such file", file=path)
    try:
        table = read_table(path, key="")
        if target not in table.header:
            shown = ", ".join(table.header[:20]) + (", ..." if len(table.header) > 20 else "")
            got = "nothing" if target is None else repr(target)
            raise RecipeError(f"must name a column, one of {shown}; got {got}", key="--target")
    except RecipeError as error:
        raise RecipeError(error.message, key=error.key, file=error.file or path) from None
    twice = [name for name, count in Counter(table.header).items() if count > 1]
    if twice:
        raise RecipeError(f"must have one column of each name; has several {quoted(twice[:3])}", file=path)
    texts = table.column(target)
    known = texts[~is_missing(texts)]
    if len(set(known.tolist())) < 2:
        raise RecipeError(f"must hold two values at least; got {len(set(known.tolist()))}", key="--target", file=path)
    if len(known) < FEWEST:
        raise RecipeError(
            f"must have {FEWEST} rows with a target at least, some to judge by and some to tune on; got {len(known)}",
            file=path,
        )
    kind, said = target_kind(known.tolist())
    columns = [recognised(name, table.column(name), None, None) for name in table.header if name != target]
    rare = _rare(known.tolist()) if kind in ("logistic", "softmax") else []
    return _text(table, columns, target, kind, said, rare, path.name if source is None else source)


def _rare(labels: list[str]) -> list[str]:
    """A comment on the rarest class, where it has less than half of an even share of the rows."""
    counts = Counter(labels)
    name, count = min(counts.items(), key=lambda pair: pair[1])
    share = count / len(labels)
    said = f'# class_weight = "balanced"  # {_plain(_quoted(name[:60]))} has {100 * share:.1f} % of the rows'
    return [said] if share < 0.5 / len(counts) else []


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text(table: Table, columns: list[Column], target: str, kind: str, said: str, rare: list[str], source: str) -> str:
    dialect = [
        f"delimiter = {_quoted(table.delimiter)}" if table.delimiter not in ("", ",") else "",
        f'encoding = "{table.encoding}"' if table.delimiter and table.encoding != "UTF-8" else "",
        'decimal = ","' if any(column.decimal == "," for column in columns) else "",
    ]
    used = [column for column in columns if column.kind != "drop"]
    width = max([len(_quoted(column.name)) for column in columns], default=0)
    kinds = [f"{_quoted(c.name):<{width}} = {_quoted(c.kind):<10}  # {_plain(c.said)}" for c in columns]
    shape = "column" if len(used) > 1 else "global"
    return "\n".join(
        line
        for line in (
            f"# {_plain(table.path.name)}: {len(table.lines)} rows, {table.said}.",
            "",
            "[data]",
            'source = "csv"',
            f"path = {_quoted(source)}",
            f"target = {_quoted(target)}  # {_plain(said)}",
            'scale = "standard"',
            *filter(None, dialect),
            *rare,
            "",
            '[data.kinds]  # "number", "category", "date" or "drop"; without this table, what columns look like',
            *kinds,
            "",
            "[model]",
            f'kind = "{kind}"  # classes: "logistic", "softmax"; numbers: "ridge", "pseudo-huber"; counts: "poisson"',
            "",
            "[hyper.penalty]",
            f'shape = "{shape}"  # "global": one for all; "column": one a column of the table; "feature": one each',
            "",
        )
    )


def _plain(text: str) -> str:
    """A text on one line, for a comment."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
