"""The steps of a run for TensorBoard."""

from pathlib import Path
from typing import Any

from ..search import Start, Step, TuneResult
from ._numbers import finite_numbers, needed, row_of


class TensorBoard:
    """The steps of a run as scalars that TensorBoard shows: `tensorboard --logdir FOLDER`. Needs the extra `loggers`.

    `value`, `gradient_norm`, `certificate_bound`, `noise`, `work` and `seconds` stand by themselves, hyperparameters
    under `hyper/`, what the engine measured under `measured/`. Numbers that are not finite are left out.

    **Arguments:**

    - `folder`: of the event files; a run that goes on adds one.
    """

    def __init__(self, folder: str | Path):
        self._module = needed("tensorboard.summary", "tensorboard", "hyprax.callbacks.TensorBoard")
        self._folder = Path(folder)
        self._writer: Any = None

    def start(self, start: Start) -> None:
        self._writer = self._module.Writer(str(self._folder))

    def step(self, step: Step) -> None:
        for name, x in finite_numbers(row_of(step)).items():
            plain = name in Step.COLUMNS or name.startswith("hyper/")
            self._writer.add_scalar(name if plain else f"measured/{name}", x, step.step)

    def checkpoint(self, folder: Path) -> None:
        self._writer.flush()

    def end(self, tuned: TuneResult | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
