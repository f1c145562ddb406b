"""One self-contained HTML page from the record of a run: text, tables and figures, nothing fetched from elsewhere."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import write_atomically
from ..runs import Record, read

PAGE = "report.html"
MEANING = {
    "certified": (
        "The error of each hypergradient is proved to be at most the bound, rounding included, under the assumptions "
        "that the method names. It says how far the computed hypergradient of the outer objective on this data can be "
        "trusted; it says nothing of new data."
    ),
    "estimated": "The bound is a good guess at the error of each hypergradient, without proof.",
    "none": "Nothing is known of the error of the hypergradients: no bound was computed.",
}

MEANING_OF_SPREAD = (
    "The hypergradient is drawn at random: the bound is its standard deviation, measured over past draws, and not an "
    "error that is known of one draw."
)
MEANING_OF_LOWER = (
    "Side, lower: in expectation over the draw, the estimate is proved to be at most the log evidence of the Laplace "
    "approximation at these weights, so the objective shown, which is minus that, is on average an upper bound of it. "
    "The slack is half the distance to a bound from the other side. It says nothing of how good the Laplace "
    "approximation is."
)
MEANING_OF_EXACT = (
    "Exact: the training run was undone step by step, and its start came back bit for bit. Nothing but the rounding of "
    "the adjoint itself stands between the hypergradient and the truth, and that rounding is not bounded."
)


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


def render(record: Record) -> str:
    """The page, as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hyprax.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.jinja").render(**_content(record))


def _content(record: Record) -> dict[str, Any]:
    from . import _figures as figures

    history, summary = record.history, record.summary
    kinds = sorted({row.get("certificate_kind", "none") for row in history}) or ["none"]
    bounds, norms = record.column("certificate_bound"), record.column("gradient_norm")
    infinite = int(np.sum(~np.isfinite(bounds)))
    failures = {row["result"] for row in history} - {"successful"}
    counts = {name: sum(row["result"] == name for row in history) for name in sorted(failures)}
    drawings = []
    if history:
        drawings = [
            ("The objective", figures.objective(record), ""),
            ("The hypergradient and its certificate", figures.gradient(record), _bound_note(infinite, len(history))),
            ("The work of each step", figures.work(record), ""),
        ]
    shape = record.config.get("image_shape")
    image_shape = (int(shape[0]), int(shape[1])) if shape else None
    scalars, pictures = [], []
    for name, start in record.start.items():
        best = record.best.get(name, start)
        if best.size == 1:
            scalars.append((name, f"{start.item():.6g}", f"{best.item():.6g}"))
        elif best.size:
            guess = image_shape or _square(best.shape)
            pictures.append((name, figures.hyperparameter(name, start, best, guess), ""))
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
            ("largest relative bound", "–" if _is_spread(ending) else _relative(bounds, norms)),
        ],
        "failures": counts,
        "kinds": kinds,
        "meaning": _meaning(kinds, ending),
        "certificate": [(name, _cell(x)) for name, x in ending.items()],
        "measured": _measured(history),
        "figures": [(title, _uri(svg), note) for title, svg, note in drawings],
        "pictures": [(name, _uri(svg), note) for name, svg, note in pictures],
        "scalars": scalars,
        "tables": summary.get("tables", []),
        "config": _flat(record.config),
        "environment": sorted(record.environment.items()),
        "folder": str(record.folder),
    }


def _meaning(kinds: list[str], certificate: dict[str, Any]) -> list[str]:
    """What the kinds of the certificates allow one to say, and what that of the last step says beyond them."""
    found = [MEANING[kind] for kind in kinds if kind in MEANING]
    if _is_spread(certificate):
        found = [MEANING_OF_SPREAD]
        if certificate.get("side") == "lower":
            found.append(MEANING_OF_LOWER)
    if certificate.get("exact") is True:
        found.append(MEANING_OF_EXACT)
    if "reason" in certificate:
        found.append(f"Why there is none: {certificate['reason']}.")
    return found


def _is_spread(certificate: dict[str, Any]) -> bool:
    """Whether the bound is that of the evidence: how far draws scatter, and not an error."""
    return "gradient_deviation" in certificate


def _measured(history: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What the engine counted and measured beside the answer, at the first step and at the last."""
    shared = ("step", "value", "gradient_norm", "certificate_kind", "certificate_bound", "result", "seconds")
    if not history:
        return []
    first, last = history[0], history[-1]
    return [(name, _cell(first.get(name, math.nan)), _cell(x)) for name, x in last.items() if name not in shared]


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


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _flat(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    if not isinstance(config, dict):
        return [(prefix, str(config))]
    return [row for key, value in config.items() for row in _flat(value, f"{prefix}.{key}".lstrip("."))]
