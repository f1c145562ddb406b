"""The steps of a run for Weights & Biases."""

from typing import Any

from .._result import result_name
from ..search import Start, Step, TuneResult
from ._numbers import finite_numbers, hyper_numbers, needed, row_of


class WandB:
    """The steps of a run in Weights & Biases; on this machine alone unless asked otherwise. Needs the extra `loggers`.

    A recorded run that goes on goes on under the id that it had, which its folder keeps: online it is the same run, and
    offline another folder of it, for `wandb sync --append`.

    **Arguments:**

    - `project`: its name.
    - `mode`: `offline` writes a folder that `wandb sync` sends; `online` sends at once.
    - `options`: of `wandb.init`: `dir`, `name`, `id`, `resume`, `tags`, ...; its `settings` are silent unless given.
    """

    def __init__(self, project: str = "hyprax", *, mode: str = "offline", **options: Any):
        self._wandb = needed("wandb", "wandb", "hyprax.callbacks.WandB")
        quiet = self._wandb.Settings(silent=True, console="off")
        self._options = {"project": project, "mode": mode, "settings": quiet, **options}
        self._run: Any = None

    def start(self, start: Start) -> None:
        config = {"objective": start.objective, "search": start.search, "steps": start.steps}
        config |= {f"start of {name}": x for name, x in hyper_numbers(start.hyper).items()}
        options, kept = self._options, None if start.folder is None else start.folder / "wandb.id"
        if kept is not None and start.history and kept.is_file() and "id" not in options:
            options = {"id": kept.read_text().strip(), "resume": "allow", **options}
        self._run = self._wandb.init(config=config, **options)
        if kept is not None:
            kept.write_text(self._run.id)

    def step(self, step: Step) -> None:
        self._run.log(finite_numbers(row_of(step)), step=step.step)

    def end(self, tuned: TuneResult | None) -> None:
        if self._run is None:
            return
        if tuned is not None:
            self._run.summary["result"] = result_name(tuned.result)
            self._run.summary["message"] = tuned.message
            self._run.summary["best_value"] = tuned.best_value
        self._run.finish(exit_code=0 if tuned is not None else 1)
        self._run = None
