"""Tables as people have them: kinds of columns, holes, dialects, encodings, and some faults."""

import gzip
import random
from pathlib import Path
from typing import NamedTuple

ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "latin-1", "cp1252", "utf-16")
DELIMITERS = (",", ",", ";", "\t", "|")
HOLES = ("", "", "NA", "nan", "?", "-", "NULL", "None", "n/a")
WORDS = ("red", "green", "blue", "Süd", "north", "n° 4", "a b", 'say "yes"', "x;y", "1,5", "true", "007")
TARGETS = ("number", "number", "number", "classes", "yes", "three", "constant", "count", "holes")
FAULTS = ("none",) * 6 + (
    "short row",
    "long row",
    "text cell",
    "blank lines",
    "cut",
    "two headers",
    "infinite",
    "no header",
)


ALIKE, AT_ONCE = 40, 10
"""So many tables are of one shape, for so many shapes in turns: programs of a shape are compiled once."""


class Table(NamedTuple):
    """A file, its target, and what was drawn for it."""

    path: Path
    target: str
    about: dict[str, str]


def _column(draw: random.Random, kind: str, signal: list[float], levels: int) -> list[str]:
    n = len(signal)
    if kind == "number":
        scale, shift = 10.0 ** draw.uniform(-6, 6), draw.choice((0.0, 0.0, 1e3, -1e6))
        return [f"{shift + scale * (u + draw.gauss(0, 1)):.6g}" for u in signal]
    if kind == "whole":
        return [str(round(10 * u + draw.gauss(0, 3))) for u in signal]
    if kind == "boolean":
        no, yes = draw.choice((("0", "1"), ("False", "True"), ("no", "yes"), ("N", "Y")))
        return [yes if u + draw.gauss(0, 1) > 0 else no for u in signal]
    if kind == "category":
        words = draw.sample(WORDS, levels)
        return [draw.choice(words) for _ in signal]
    if kind == "date":
        return [f"20{draw.randint(10, 25)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}" for _ in signal]
    if kind == "id":
        return [f"c{i:05}" for i in range(n)]
    if kind == "text":
        return [" ".join(draw.choices(WORDS, k=8)) + str(draw.random()) for _ in signal]
    if kind == "constant":
        return [draw.choice(("3", "same", "0.0"))] * n
    if kind == "empty":
        return [""] * n
    return [f"{draw.choice((1e300, -1e300, 1e-300, 5e-324, 0.0))}" for _ in signal]  # extreme


KINDS = ("number",) * 6 + (
    "whole",
    "boolean",
    "category",
    "category",
    "date",
    "id",
    "text",
    "constant",
    "empty",
    "extreme",
)


def _target(draw: random.Random, kind: str, signal: list[float]) -> list[str]:
    noisy = [u + draw.gauss(0, 0.5) for u in signal]
    if kind == "classes":
        return [str(int(u > 0)) for u in noisy]
    if kind == "yes":
        return ["Yes" if u > 0.3 else "No" for u in noisy]
    if kind == "three":
        return ["low" if u < -0.5 else "mid" if u < 0.5 else "high" for u in noisy]
    if kind == "constant":
        return ["7"] * len(signal)
    if kind == "count":
        return [str(max(0, round(2 * u + 1))) for u in noisy]
    scale = 10.0 ** draw.uniform(-3, 6)
    cells = [f"{scale * u:.5g}" for u in noisy]
    if kind == "holes":
        cells = [draw.choice(HOLES) if draw.random() < 0.1 else cell for cell in cells]
    return cells


def _quoted(cell: str, delimiter: str, always: bool) -> str:
    if always or any(mark in cell for mark in (delimiter, '"', "\n")):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def table(seed: int, folder: Path) -> Table:
    """The table of a seed, written to the folder: its shape by a draw that others share, all else by its own."""
    draw, shape = random.Random(seed), random.Random(f"shape {seed // (ALIKE * AT_ONCE)} {seed % AT_ONCE}")
    n = shape.choice((1, 2, 5, 8, 30, 30, 30, 60, 60, 60))
    signal = [draw.gauss(0, 1) for _ in range(n)]
    kinds = [shape.choice(KINDS) for _ in range(shape.choice((0, 1, 2, 3, 3, 4, 4)))]
    goal, fault = shape.choice(TARGETS), draw.choice(FAULTS)
    names = [draw.choice(("x", "größe", "a b", "col", "Age", 'the "x"')) + str(i) for i in range(len(kinds))]
    if draw.random() < 0.05 and len(names) > 1:
        names[1] = names[0]
    columns = [_column(draw, kind, signal, shape.randint(1, 4)) for kind in kinds]
    holes = shape.choice((0.0, 0.0, 0.05, 0.3))
    hole = draw.choice(HOLES)
    columns = [[hole if draw.random() < holes else cell for cell in column] for column in columns]
    place = draw.randint(0, len(columns))
    columns.insert(place, _target(draw, goal, signal))
    names.insert(place, "target")
    delimiter, always = draw.choice(DELIMITERS), draw.random() < 0.2
    if draw.random() < 0.1:
        columns = [[cell.replace(".", ",") for cell in column] for column in columns]  # decimal commas
    rows = [names, *(list(row) for row in zip(*columns, strict=True))]
    if fault == "short row":
        rows[-1] = rows[-1][:-1]
    elif fault == "long row":
        rows[-1] = [*rows[-1], "1"]
    elif fault == "text cell":
        rows[-1][draw.randrange(len(names))] = "oops"
    elif fault == "blank lines":
        rows.insert(1, [""])
        rows.append([""])
    elif fault == "two headers":
        rows.insert(1, names)
    elif fault == "infinite":
        rows[-1][draw.randrange(len(names))] = draw.choice(("inf", "-inf", "1e999"))
    elif fault == "no header":
        rows = rows[1:]
    end = draw.choice(("\n", "\n", "\r\n"))
    text = end.join(delimiter.join(_quoted(cell, delimiter, always) for cell in row) for row in rows) + end
    if fault == "cut":
        text = text[: draw.randrange(len(text))]
    encoding = draw.choice(ENCODINGS)
    body = text.encode(encoding, errors="replace")
    zipped = draw.random() < 0.1
    path = folder / ("table.csv.gz" if zipped else "table.csv")
    path.write_bytes(gzip.compress(body) if zipped else body)
    about = {"rows": str(n), "columns": "+".join(kinds) or "none", "target": goal, "fault": fault, "encoding": encoding}
    return Table(path, "target", about)
