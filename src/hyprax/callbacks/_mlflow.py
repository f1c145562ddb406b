"""The steps of a run for MLflow."""

import time
from pathlib import Path
from typing import Any

from .._result import result_name
from ..search import Start, Step, TuneResult
from ._numbers import finite_numbers, hyper_numbers, needed, row_of

FOLDER, RESULT, MESSAGE = "hyprax.folder", "hyprax.result", "hyprax.message"
MOST_TEXT = 5000  # characters of a tag that every store takes


class MLflow:
    """The steps of a run as metrics of an MLflow run: `mlflow ui` shows them. Needs the extra `loggers`.

    Parameters are the objective, the search and where the hyperparameters start; tags say how the run ended. It speaks
    to its own client, so that what `mlflow.start_run` has open is left alone. A recorded run that goes on goes on with
    its MLflow run, which is found by the folder of the record.

    **Arguments:**

    - `uri`: where MLflow keeps its runs, as its `tracking_uri`: `sqlite:///mlflow.db`, a server, or a folder where the
        version of MLflow still takes one.
    - `experiment`: its name.
    - `name`: of the run; default that of the record's folder, if there is one.
    """

    def __init__(self, uri: str | Path = "sqlite:///mlflow.db", *, experiment: str = "hyprax", name: str | None = None):
        self._mlflow = needed("mlflow", "mlflow-skinny", "hyprax.callbacks.MLflow")
        self._uri = uri.absolute().as_uri() if isinstance(uri, Path) else uri
        self._experiment, self._name = experiment, name
        self._client: Any = None
        self._run = ""

    def start(self, start: Start) -> None:
        client = self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        found = client.get_experiment_by_name(self._experiment)
        experiment = client.create_experiment(self._experiment) if found is None else found.experiment_id
        folder = None if start.folder is None else str(start.folder.resolve())
        if folder is not None and start.history:
            escaped = folder.replace("'", "\\'")
            known = client.search_runs([experiment], f"tags.`{FOLDER}` = '{escaped}'", max_results=1)
            if known:
                self._run = known[0].info.run_id
                client.set_terminated(self._run, "RUNNING")
                return
        name = self._name if self._name is not None or start.folder is None else start.folder.name
        tags = {} if folder is None else {FOLDER: folder}
        self._run = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        given = {"objective": start.objective, "search": start.search, "steps": start.steps}
        for key, x in (given | hyper_numbers(start.hyper)).items():
            client.log_param(self._run, _allowed(key), x)

    def step(self, step: Step) -> None:
        Metric, now = self._mlflow.entities.Metric, int(1000 * time.time())
        numbers = finite_numbers(row_of(step)).items()
        self._client.log_batch(self._run, [Metric(_allowed(name), x, now, step.step) for name, x in numbers])

    def end(self, tuned: TuneResult | None) -> None:
        if not self._run:
            return
        if tuned is not None:
            self._client.set_tag(self._run, RESULT, result_name(tuned.result))
            self._client.set_tag(self._run, MESSAGE, tuned.message[:MOST_TEXT])
        failed = tuned is not None and result_name(tuned.result) == "diverged"
        self._client.set_terminated(self._run, "KILLED" if tuned is None else "FAILED" if failed else "FINISHED")
        self._run = ""


def _allowed(name: str) -> str:
    """A name as MLflow takes it: letters, digits, and _ - . / and spaces."""
    return "".join(c if c.isalnum() or c in "_-./ " else "." for c in name).rstrip(".")
