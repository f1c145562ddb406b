"""Reading a run back, without the code that made it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from .. import _html as page
from .._arrays import load_arrays
from ._history import History
from ._run import BEST, CONFIG, HISTORY, START, SUMMARY, RunError, read_config, read_json


@dataclasses.dataclass(frozen=True)
class Record:
    """A run as it stands on disk.

    - `config`, `environment`: what was asked, and where it ran; `about`: what was kept beside it.
    - `history`: one row (a dictionary) a step.
    - `start`, `best`: hyperparameters before and after, natural values by name; `best` is empty before the first save.
    - `summary`: how it ended; empty for a run that has not.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, str]
    history: list[dict[str, Any]]
    start: dict[str, np.ndarray]
    best: dict[str, np.ndarray]
    summary: dict[str, Any]
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself."""
        return "result" in self.summary

    def column(self, name: str) -> np.ndarray:
        """One numeric column of the history; NaN where a row has no such number."""
        return np.asarray([row.get(name, np.nan) for row in self.history], dtype=float)

    def _repr_html_(self) -> str:
        """The record for a notebook; `hyprax report` makes the whole page."""
        summary, history = self.summary, self.history
        facts = {"steps": len(history), "folder": self.folder}
        if "best_value" in summary:
            facts = {"best value": f"{summary['best_value']:.6g}", "at step": summary.get("best_step", "–"), **facts}
        kinds = sorted({row.get("certificate_kind", "none") for row in history})
        meanings = [summary.get(name, {}).get("meaning", "") for name in ("certificate", "noise")]
        return page.card(
            f"Run {self.folder.name}",
            page.badge(summary.get("result", "not finished")) + "".join(map(page.badge, kinds)),
            page.table(list(facts.items())),
            page.curve(list(self.column("value")), summary.get("value_name", "value")),
            page.paragraphs(summary.get("message", ""), summary.get("gain", ""), *summary.get("warnings", [])),
            page.table(page.of_tree(self.best), ("best hyperparameters", "shape", "natural units")),
            page.paragraphs(*meanings),
        )


NUMBER = (int, float)
SHAPE_OF_SUMMARY: dict[str, Any] = {
    **dict.fromkeys(("result", "message", "value_name", "gain"), str),
    "warnings": [str],
    **dict.fromkeys(("best_value", "best_step", "steps", "seconds", "hyperparameters"), NUMBER),
    "tables": [{"title": str, "rows": [{}]}],
    "baselines": [{"name": str, "value": NUMBER}],
    "certificate": {"meaning": str},
    "noise": {"meaning": str, "over": str},
    "constraints": {},
    "drawn": {},
    "columns": [str],
    "path": {"criterion": [NUMBER], "gains": [NUMBER], "errors": [NUMBER], "strengths": list, "chosen": int},
}


def _check(path: Path, given: Any, shape: Any, place: str = "") -> None:
    """Refuse values of other types than those that are written; keys that are not there are none's business.

    **Raises:** `RunError` with the place.
    """
    if not isinstance(given, type(shape) if isinstance(shape, dict | list) else shape) or isinstance(given, bool):
        raise RunError(f"{path}: {place or 'the file'} is damaged; got a {type(given).__name__}.")
    if isinstance(shape, list):
        for i, x in enumerate(given):
            _check(path, x, shape[0], f"{place}[{i}]")
    if isinstance(shape, dict):
        for name, x in given.items():
            if name in shape:
                _check(path, x, shape[name], f"{place}.{name}".lstrip("."))
    if place.endswith("]") and isinstance(shape, dict) and (missing := shape.keys() - given.keys()):
        raise RunError(f"{path}: {place} is damaged; it has no {', '.join(sorted(missing))}.")


def read(folder: str | Path) -> Record:
    """The record in `folder`, finished or not.

    **Raises:** [`hyprax.runs.RunError`][] where there is none.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder}: must be the folder of a run; it has no {CONFIG}.")
    config = read_config(folder / CONFIG)
    history: list[dict[str, Any]] = []
    if (folder / HISTORY).exists():
        reader = History(folder / HISTORY, write=False)
        history = reader.rows()
        reader.close()
        for row in history:
            if not {"result", "value"} <= row.keys():
                raise RunError(f"{folder / HISTORY}: step {row['step']} is damaged; it has no result or no value.")

    def arrays(name: str) -> dict[str, np.ndarray]:
        return load_arrays(folder / name) if (folder / name).exists() else {}

    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).exists() else {}
    _check(folder / SUMMARY, summary, SHAPE_OF_SUMMARY)
    for table in summary.get("tables", []):
        rows = table["rows"]
        if any(row.keys() != rows[0].keys() or not all(isinstance(x, str) for x in row.values()) for row in rows):
            raise RunError(f"{folder / SUMMARY}: the table {table['title']!r} is damaged.")
    _check(folder / CONFIG, config["config"], {"image_shape": [int]})
    _check(folder / CONFIG, config["environment"], dict.fromkeys(config["environment"], str))
    about = config.get("about", {})
    _check(folder / CONFIG, about, {})
    return Record(folder, config["config"], config["environment"], history, arrays(START), arrays(BEST), summary, about)
