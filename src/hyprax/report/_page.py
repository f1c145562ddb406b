"""One self-contained HTML page from the record of a run: text, tables and figures, nothing fetched from elsewhere."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import write_atomically
from .._html import prose
from ..runs import Record, RunError, read
from ..runs._run import SUMMARY
from ..search import Step

PAGE = "report.html"


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of the run in `folder`: what was asked, how it went, what was found, how far to trust it.

    **Arguments:**

    - `folder`: a run, finished or not.
    - `out`: the page; default `report.html` in the folder.

    **Returns:** the path of the page.

    **Raises:** [`hyprax.runs.RunError`][] for a folder without a run.
    """
    record = read(folder)
    path = Path(folder) / PAGE if out is None else Path(out)
    write_atomically(path, render(record).encode())
    return path


def render(record: Record, *, refresh: int | None = None) -> str:
    """The page, as text; with `refresh`, one that browsers load again after so many seconds, until the run ends."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hyprax.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["prose"] = lambda words: markupsafe.Markup(prose(words))
    return environment.get_template("page.html.jinja").render(
        **_content(record), refresh=None if record.finished else refresh
    )


def _content(record: Record) -> dict[str, Any]:
    from . import _figures as figures

    history, summary = record.history, record.summary
    kinds = sorted({row.get("certificate_kind", "none") for row in history}) or ["none"]
    bounds, norms = record.column("certificate_bound"), record.column("gradient_norm")
    infinite = int(np.sum(~np.isfinite(bounds)))
    failures = {row["result"] for row in history} - {"successful"}
    counts = {name: sum(row["result"] == name for row in history) for name in sorted(failures)}
    drawings = []
    if len(history) > 1:  # of one step there is nothing to draw
        drawings = [
            ("The objective", figures.objective(record), ""),
            ("The hypergradient and its certificate", figures.gradient(record), _bound_note(infinite, len(history))),
            ("The work of each step", figures.work(record), ""),
        ]
    if summary.get("path"):
        note = "The outer folds chose the strength, so their loss is optimistic too; the test rows above are not."
        drawings.append(("Holding back", figures.path(record), note))
    try:
        drawings += _of_the_model(summary.get("drawn", {}))
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{record.folder / SUMMARY}: what is drawn of the model is damaged.") from None
    shape = record.config.get("image_shape")
    image_shape = (int(shape[0]), int(shape[1])) if shape else None
    scalars, pictures = [], []
    columns = tuple(summary.get("columns", ()))
    for name, start in record.start.items():
        best = record.best.get(name, start)
        if best.size == 1:
            scalars.append((name, f"{start.item():.6g}", f"{best.item():.6g}"))
        elif best.size:
            guess = image_shape or _square(best.shape)
            pictures.append((name, figures.hyperparameter(name, start, best, guess, columns), ""))
    seconds = record.column("seconds")
    ending = summary.get("certificate", {})
    return {
        "title": str(record.folder.name),
        "finished": record.finished,
        "result": summary.get("result", "not finished"),
        "message": summary.get("message", "The run has not ended: it is going on, or it was interrupted."),
        "facts": [
            ("best value", f"{summary['best_value']:.6g}" if "best_value" in summary else "–"),
            ("at step", str(summary.get("best_step", "–"))),
            ("steps", str(len(history))),
            ("seconds", f"{np.sum(seconds[1:]):.2f}" if len(history) else "–"),
            ("first step, with compilation", f"{seconds[0]:.2f} s" if len(history) else "–"),
            ("largest relative bound", _relative(bounds, norms)),
        ],
        "begun": bool(history),
        "gain": summary.get("gain", ""),
        "warnings": summary.get("warnings", []),
        "failures": counts,
        "kinds": kinds,
        "meaning": [one["meaning"] for one in (ending, summary.get("noise", {})) if "meaning" in one],
        "certificate": [(name, _cell(x)) for name, x in ending.items() if name != "meaning"],
        "measured": _measured(history),
        "figures": [(title, _inline(svg, f"f{i}"), note) for i, (title, svg, note) in enumerate(drawings)],
        "pictures": [(name, _inline(svg, f"p{i}"), note) for i, (name, svg, note) in enumerate(pictures)],
        "scalars": scalars,
        "tables": summary.get("tables", []),
        "config": _flat(record.config),
        "environment": sorted(record.environment.items()),
        "folder": str(record.folder),
    }


def _of_the_model(drawn: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the refitted models say of the test rows beside what is true."""
    from . import _figures as figures

    found = []
    if "calibration" in drawn:
        note = "On the diagonal, what a model calls p comes true in a share p of the cases; bars: ± one standard error."
        found.append(("Probabilities on the test rows", figures.calibration(drawn["calibration"]), note))
    if "confusion" in drawn:
        note, table = "Numbers of test rows, of the tuned model.", drawn["confusion"]
        found.append(("Classes on the test rows", figures.confusion(table["classes"], table["counts"]), note))
    if "predictions" in drawn:
        shown, rows = len(drawn["predictions"]["true"]), drawn["predictions"]["rows"]
        note = f"Of the tuned model; {shown} of {rows} test rows." if shown < rows else "Of the tuned model."
        found.append(("Predictions on the test rows", figures.predictions(drawn["predictions"]), note))
    return found


def _measured(history: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What the engine counted and measured beside the answer, at the first step and at the last."""
    if not history:
        return []
    first, last = history[0], history[-1]
    return [(name, _cell(first.get(name, math.nan)), _cell(x)) for name, x in last.items() if name not in Step.COLUMNS]


def _cell(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else str(x)


def _relative(bounds: np.ndarray, norms: np.ndarray) -> str:
    known = np.isfinite(norms) & (norms > 0)
    ratio = bounds[known] / norms[known]
    return f"{np.max(ratio):.1e}" if ratio.size and np.all(np.isfinite(ratio)) else "–"


def _bound_note(infinite: int, steps: int) -> str:
    return f"At {infinite} of {steps} steps there is no finite bound, and no band is drawn." if infinite else ""


def _square(shape: tuple[int, ...]) -> tuple[int, int] | None:
    side = math.isqrt(shape[0])
    return (side, side) if len(shape) == 2 and side >= 4 and side * side == shape[0] and shape[1] <= 100 else None


def _inline(svg: str, prefix: str) -> str:
    """A drawing as a part of the page, in the page's colour of text; its names made its own, as all share one page."""
    from ._figures import INK

    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")  # HTML knows the names
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    return re.sub(r'href="#', f'href="#{prefix}-', svg)


def _flat(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(config, dict):
        return [(prefix, str(config))]
    return [row for key, value in config.items() for row in _flat(value, f"{prefix}.{key}".lstrip("."))]
