"""What a notebook shows of answers, certificates and runs: self-contained HTML in the page's own colours."""

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._text import escaped

# Colours that are read on white and on black; everything else is the page's own colour of text, thinned.
COLOURS = {"certified": "#1a9c6b", "estimated": "#c77700", "none": "#8a8f98"}
MARK = "#2f81c7"
LINE = "rgba(127,127,127,.35)"
CARD = f"border:1px solid {LINE};border-radius:6px;padding:.6em .9em;max-width:48em;line-height:1.45"
BADGE = "border:1px solid {0};color:{0};border-radius:1em;padding:0 .55em;font-size:.85em;margin-left:.5em"
TABLE = "border-collapse:collapse;background:none;color:inherit;font-size:inherit;margin:.4em 0"
CELL = f"text-align:left;padding:.15em 1em .15em 0;border-bottom:1px solid {LINE};font-variant-numeric:tabular-nums"
MOST_ROWS = 12


def text(words: Any) -> str:
    """Any words as HTML that says them and does nothing."""
    return html.escape(escaped(str(words)))


def prose(words: Any) -> str:
    """The same of sentences, with names between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(words))


def badge(words: str, colour: str | None = None) -> str:
    return f'<span style="{BADGE.format(colour or COLOURS.get(words, MARK))}">{text(words)}</span>'


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> str:
    """A table of texts; the first column names its rows."""
    if not rows:
        return ""

    def line(cells: Sequence[Any], tag: str) -> str:
        inside = "".join(f'<{tag} style="{CELL}">{text(cell)}</{tag}>' for cell in cells)
        return f"<tr>{inside}</tr>"

    more = [(f"and {len(rows) - MOST_ROWS} more", *[""] * (len(rows[0]) - 1))] if len(rows) > MOST_ROWS else []
    head = line(header, "th") if header else ""
    body = "".join(line(cells, "td") for cells in [*rows[:MOST_ROWS], *more])
    return f'<table style="{TABLE}">{head}{body}</table>'


def paragraphs(*words: str) -> str:
    return "".join(f'<p style="margin:.4em 0">{prose(each)}</p>' for each in words if each)


def folded(title: str, inside: str) -> str:
    """What is shown when it is asked for."""
    return f'<details><summary style="cursor:pointer">{text(title)}</summary>{inside}</details>' if inside else ""


def card(title: str, badges: str, *parts: str) -> str:
    return f'<div style="{CARD}"><div><strong>{text(title)}</strong>{badges}</div>{"".join(parts)}</div>'


def numbers(named: Mapping[str, Any]) -> str:
    """Scalars by name."""
    return table([(name, f"{x:.4g}" if isinstance(x, float) else x) for name, x in named.items()])


def of_tree(tree: PyTree) -> list[tuple[str, str, str]]:
    """A row for each leaf: its place, its shape, its number or its range."""
    rows = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        values = np.asarray(leaf)
        shown = f"{values.item():.6g}" if values.size == 1 else "empty"
        if values.size > 1:
            shown = f"{values.min():.4g} to {values.max():.4g}"
        place = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        rows.append((place, "×".join(map(str, values.shape)) or "number", shown))
    return rows


def curve(values: Sequence[float], label: str, width: int = 320, height: int = 64) -> str:
    """A line through finite values, one a step, with its ends in words for who cannot see it."""
    points = [(i, x) for i, x in enumerate(values) if math.isfinite(x)]
    if len(points) < 2:
        return ""
    least, most = min(x for _, x in points), max(x for _, x in points)
    across, up = (width - 4) / max(points[-1][0] - points[0][0], 1), (height - 4) / (most - least or 1.0)
    stride = max(len(points) // 400, 1)
    thinned = [*points[::stride], points[-1]]
    line = " ".join(f"{2 + (i - points[0][0]) * across:.1f},{height - 2 - (x - least) * up:.1f}" for i, x in thinned)
    said = f"{label}: {points[0][1]:.4g} at the first step, {points[-1][1]:.4g} at the last"
    return (
        f'<figure style="margin:.4em 0"><svg role="img" aria-label="{text(said)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
        f'<polyline points="{line}" fill="none" stroke="{MARK}" stroke-width="1.5"/></svg>'
        f'<figcaption style="font-size:.85em;opacity:.75">{text(said)}</figcaption></figure>'
    )


def shown(make: Callable[[], str], otherwise: Any) -> str:
    """The HTML, or the plain text of what has no numbers yet, under a transformation."""
    try:
        return make()
    except (TypeError, jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return f"<pre>{text(repr(otherwise))}</pre>"
