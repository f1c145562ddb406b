"""A recipe for a table, after a look at it."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

from ._columns import Column, is_missing, recognised, target_kind
from ._doubts import MODEL, Doubt, of_column, of_dialect, of_target
from ._errors import RecipeError, quoted
from ._tables import Table, read_table

KINDS_OF_MODELS = 'classes: "logistic", "softmax"; numbers: "ridge", "pseudo-huber"; counts: "poisson"'
FEWEST = 8
"""Rows of a table, below which nothing can be tuned and judged by the recipe that is written here."""


@dataclasses.dataclass(frozen=True)
class Guess:
    """What a table was taken for: its columns, the model for the target and why, and what is doubtful in this."""

    table: Table
    target: str
    columns: tuple[Column, ...]
    kind: str
    said: str
    rare: tuple[str, ...]
    exposure: str | None
    doubts: tuple[Doubt, ...]

    def recipe(self, source: str | None = None, *, all_kinds: bool = True) -> str:
        """The text of a recipe for it; `source` is how it names the file, by default as one beside it does.

        Without `all_kinds` the doubtful columns are left to whoever reads the table again.
        """
        return _text(self, self.table.path.name if source is None else source, all_kinds)


def guessed(path: Path, target: str | None, exposure: str | None = None) -> Guess:
    """Look at a table, of which one column is to be predicted: counts, where their `exposure` is named.

    **Raises:** `RecipeError` for a table that cannot be read, or has no such columns.
    """
    if not path.is_file():
        raise RecipeError("there is no such file", file=path)
    try:
        table = read_table(path, key="")
        for name, key in ((target, "--target"), *([] if exposure is None else [(exposure, "--exposure")])):
            if name not in table.header:
                shown = ", ".join(table.header[:20]) + (", ..." if len(table.header) > 20 else "")
                got = "nothing" if name is None else repr(name)
                raise RecipeError(f"must name a column, one of {shown}; got {got}", key=key)
        assert target is not None  # no column has no name
        if target == exposure:
            raise RecipeError(f"must not name the target; got {exposure!r}", key="--exposure")
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
    kind, said = target_kind(known.tolist()) if exposure is None else ("poisson", f"counts over {exposure!r}")
    others = {name: table.column(name) for name in table.header if name not in (target, exposure)}
    columns = {name: recognised(name, found, None, None) for name, found in others.items()}
    doubts = [*of_dialect(table), *(doubt for name, x in others.items() for doubt in of_column(columns[name], x))]
    doubts += of_target(target, known.tolist(), kind, said) if exposure is None else []
    rare = _rare(known.tolist()) if kind in ("logistic", "softmax") else []
    return Guess(table, target, tuple(columns.values()), kind, said, tuple(rare), exposure, tuple(doubts))


def recipe_for(path: Path, target: str | None, source: str | None = None, exposure: str | None = None) -> str:
    """The text of a recipe that tunes a linear model of a table: what its columns were taken for, as keys to change.

    **Arguments:**

    - `path`: a CSV file.
    - `target`: the column to predict.
    - `source`: how the recipe names the file; default its name, for a recipe beside it.
    - `exposure`: of counts, the column of what they were counted over.

    **Raises:** `RecipeError` for a table that cannot be read, or has no such columns.
    """
    return guessed(path, target, exposure).recipe(source)


def _rare(labels: list[str]) -> list[str]:
    """A comment on the rarest class, where it has less than half of an even share of the rows."""
    counts = Counter(labels)
    name, count = min(counts.items(), key=lambda pair: pair[1])
    share = count / len(labels)
    said = f'# class_weight = "balanced"  # {_plain(_quoted(name[:60]))} has {100 * share:.1f} % of the rows'
    return [said] if share < 0.5 / len(counts) else []


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text(guess: Guess, source: str, all_kinds: bool) -> str:
    table, doubts = guess.table, {doubt.key: doubt.said for doubt in guess.doubts}
    dialect = [
        f"delimiter = {_quoted(table.delimiter)}" if table.delimiter not in ("", ",") and not table.rival else "",
        f"delimiter = {_quoted(table.delimiter)}  # doubtful" if table.rival and all_kinds else "",
        f'encoding = "{table.encoding}"' if table.delimiter and table.encoding != "UTF-8" else "",
        'decimal = ","' if any(column.decimal == "," for column in guess.columns) else "",
    ]
    used = [column for column in guess.columns if column.kind != "drop"]
    width = max([len(_quoted(column.name)) for column in guess.columns], default=0)
    kinds = []
    for column in guess.columns:
        doubt = doubts.get(f"data.kinds.{column.name}")
        said = f"doubtful: {doubt}" if doubt else column.said
        if doubt is None or all_kinds:
            kinds.append(f"{_quoted(column.name):<{width}} = {_quoted(column.kind):<10}  # {_plain(said)}")
    shape = "column" if len(used) > 1 else "global"
    said = f"doubtful: {doubts[MODEL]}" if MODEL in doubts else guess.said
    return "\n".join(
        line
        for line in (
            f"# {_plain(table.path.name)}: {len(table.lines)} rows, {table.said}.",
            "",
            "[data]",
            'source = "csv"',
            f"path = {_quoted(source)}",
            f"target = {_quoted(guess.target)}  # {_plain(said)}",
            *([] if guess.exposure is None else [f"exposure = {_quoted(guess.exposure)}"]),
            'scale = "standard"',
            *filter(None, dialect),
            *guess.rare,
            "",
            '[data.kinds]  # "number", "category", "date" or "drop"; without this table, what columns look like',
            *kinds,
            "",
            "[model]",
            f'kind = "{guess.kind}"  # {KINDS_OF_MODELS}',
            "",
            "[hyper.penalty]",
            f'shape = "{shape}"  # "global": one for all; "column": one a column of the table; "feature": one each',
            "",
        )
    )


def _plain(text: str) -> str:
    """A text on one line, for a comment."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
