"""A run of `tune` as a trial of an Optuna study, for optuna-dashboard."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..runs import Record, read
from ._trials import optuna_module, plain

FOLDER = "hyprax.folder"
MOST_PARAMETERS = 64
LOGARITHMIC = ("Positive", "LogInterval")


def write_run(run: str | Path | Record, storage: Any, *, study: str = "hyprax") -> Any:
    """Write a recorded run, finished or not, into an Optuna storage, where optuna-dashboard shows it.

    The run is one trial and its steps are the trial's intermediate values: a run has one result, several runs in one
    study are then compared as trials are, and the record on disk keeps the value of every step but hyperparameters only
    of the best. The parameters of the trial are the best hyperparameters (arrays of up to 64 entries one by one), user
    attributes the ending and what was asked. A run that goes on is a running trial: call again to bring it up to date;
    steps that are there are not written twice. One that had ended, and made more steps since, becomes a new trial. One
    that diverged, or found nothing, is a trial that failed.

    **Arguments:**

    - `run`: the folder of a run, or what [`hyprax.runs.read`][] gives.
    - `storage`: a URL (`sqlite:///study.db`), or a storage of Optuna.
    - `study`: its name; made where it is missing.

    **Returns:** the `optuna.Study`. **Raises:** [`hyprax.runs.RunError`][] for a folder without a run.

    Then: `optuna-dashboard sqlite:///study.db`.
    """
    optuna = optuna_module()
    record = run if isinstance(run, Record) else read(run)
    storage = optuna.storages.get_storage(storage)
    made = optuna.create_study(study_name=study, storage=storage, direction="minimize", load_if_exists=True)
    states = optuna.trial.TrialState
    folder = str(record.folder.resolve())
    own = [trial for trial in made.get_trials(deepcopy=False) if trial.user_attrs.get(FOLDER) == folder]
    if own and own[-1].state.is_finished() and own[-1].user_attrs.get("hyprax.steps") == len(record.history):
        return made
    if own and not own[-1].state.is_finished():
        trial, written = own[-1]._trial_id, set(own[-1].intermediate_values)
    else:
        trial, written = storage.create_new_trial(storage.get_study_id_from_name(study)), set()
        storage.set_trial_user_attr(trial, FOLDER, folder)
        for name, x in record.config.items():
            storage.set_trial_user_attr(trial, f"asked.{name}", x)
    for row in record.history:
        if row["step"] not in written and math.isfinite(row["value"]):
            storage.set_trial_intermediate_value(trial, row["step"], row["value"])
    if not record.finished:
        return made
    summary = record.summary
    _parameters(optuna, storage, trial, record)
    kept = {"hyprax.result": summary["result"], "hyprax.message": summary.get("message", "")}
    kept |= {"hyprax.steps": len(record.history), "hyprax.hyper": plain(record.best)}
    if "certificate" in summary:
        kept["hyprax.certificate"] = summary["certificate"]["meaning"]
    for name, x in kept.items():
        storage.set_trial_user_attr(trial, name, x)
    best = float(summary.get("best_value", math.nan))
    if math.isfinite(best) and summary["result"] != "diverged":
        storage.set_trial_state_values(trial, states.COMPLETE, [best])
    else:
        storage.set_trial_state_values(trial, states.FAIL)
    return made


def _parameters(optuna: Any, storage: Any, trial: int, record: Record) -> None:
    """The best hyperparameters as parameters of the trial, in ranges that hold them and their starts."""
    kinds = record.summary.get("constraints", {})
    for name, values in record.best.items():
        if values.size > MOST_PARAMETERS:
            continue
        start = record.start.get(name, values)
        log = kinds.get(name) in LOGARITHMIC and bool(np.all(values > 0) and np.all(start > 0))
        for place in np.ndindex(values.shape):
            x, begun = float(values[place]), float(start[place])
            low, high = min(x, begun), max(x, begun)
            low, high = (low / 10, high * 10) if log else (low - 1, high + 1)
            called = f"{name}[{','.join(map(str, place))}]" if place else name
            try:
                storage.set_trial_param(trial, called, x, optuna.distributions.FloatDistribution(low, high, log=log))
            except ValueError:  # another run of the study has it on another scale: it stays a user attribute
                continue
