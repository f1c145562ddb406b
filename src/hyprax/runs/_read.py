"""Reading a run back, without the code that made it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import load_arrays
from ._history import History
from ._run import BEST, CONFIG, HISTORY, START, SUMMARY, RunError, read_config, read_json


@dataclasses.dataclass(frozen=True)
class Record:
    """A run as it stands on disk.

    - `config`, `environment`: what was asked, and where it ran.
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

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself."""
        return "result" in self.summary

    def column(self, name: str) -> np.ndarray:
        """One numeric column of the history; NaN where a row has no such number."""
        return np.asarray([row.get(name, np.nan) for row in self.history], dtype=float)


def read(folder: str | Path) -> Record:
    """The record in `folder`, finished or not.

    **Raises:** [`hyprax.runs.RunError`][] where there is none.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder}: must be the folder of a run; it has no {CONFIG}.")
    config = read_config(folder / CONFIG)
    rows: list[dict[str, Any]] = []
    if (folder / HISTORY).exists():
        history = History(folder / HISTORY, write=False)
        rows = history.rows()
        history.close()

    def arrays(name: str) -> dict[str, np.ndarray]:
        return load_arrays(folder / name) if (folder / name).exists() else {}

    summary = read_json(folder / SUMMARY) if (folder / SUMMARY).exists() else {}
    return Record(folder, config["config"], config["environment"], rows, arrays(START), arrays(BEST), summary)
