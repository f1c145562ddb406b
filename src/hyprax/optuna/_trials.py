"""Trials of Optuna that tune by gradient: it chooses what has no gradient, `tune` does the rest."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._arrays import leaf_names
from .._hyper import natural
from .._result import result_name
from ..callbacks._numbers import needed
from ..search import AbstractSearch, Callback, Step, Stopping, TuneResult, tune

MOST_ENTRIES = 1000
"""Of an array of hyperparameters in a user attribute."""


def optuna_module() -> Any:
    """Optuna, or an error that says how to install it."""
    return needed("optuna", "optuna", "hyprax.optuna", "optuna")


class Pruning:
    """A callback that reports the value of each step to an Optuna trial, and stops the run where Optuna prunes it.

    For an objective of your own; [`hyprax.optuna.tuned_trial`][] has it inside. After the run call `check()`, which
    raises `optuna.TrialPruned` if it was stopped: callbacks do not end a run by an exception.

    **Arguments:**

    - `trial`: an `optuna.Trial` of a study that minimises, whose pruner decides.
    """

    def __init__(self, trial: Any):
        self._optuna = optuna_module()
        self._trial = trial
        self._step: int | None = None

    def step(self, step: Step) -> str | None:
        if not math.isfinite(step.value):
            return None
        self._trial.report(step.value, step.step)
        if not self._trial.should_prune():
            return None
        self._step = step.step
        return f"Optuna pruned the trial at step {step.step}."

    def check(self) -> None:
        """**Raises:** `optuna.TrialPruned` if the run was stopped for it."""
        if self._step is not None:
            raise self._optuna.TrialPruned(f"pruned at step {self._step}")


def tuned_trial(
    build: Callable[[Any], tuple[Any, PyTree]],
    *,
    steps: int,
    search: AbstractSearch | None = None,
    stop: Stopping = Stopping(),
    callbacks: Sequence[Callback] = (),
) -> Callable[[Any], float]:
    """An objective for `study.optimize`: the lowest value that `tune` finds for what the trial chose.

    Optuna chooses what has no gradient: a degree, a loss, a width, which columns. The rest is tuned by gradient inside
    the trial, and each step's value is reported for pruning. A trial keeps as user attributes what was tuned
    (`hyprax.hyper`, natural values by name), how it ended (`hyprax.result`, `hyprax.message`), the certificate of the
    last hypergradient (`hyprax.certificate`) and the steps made (`hyprax.steps`). One without a finite value fails.

    **Arguments:**

    - `build`: a function of an `optuna.Trial` to the objective and where its hyperparameters start, as for
        [`hyprax.tune`][]. Trials whose objectives have equal structures and shapes share compiled programs: define
        losses once, outside it, and pad what varies in size.
    - `steps`, `search`, `stop`, `callbacks`: of [`hyprax.tune`][].

    **Returns:** a function of a trial to its value, to be minimised.

    **Raises:** `ValueError` in a trial of a study that maximises, or has several objectives.
    """
    optuna_module()

    def objective(trial: Any) -> float:
        directions = [direction.name.lower() for direction in trial.study.directions]
        if directions != ["minimize"]:
            raise ValueError(f"tuned_trial: direction of the study must be 'minimize'; got {', '.join(directions)}.")
        problem, hyper = build(trial)
        pruning = Pruning(trial)
        watchers = (*callbacks, pruning)
        found = tune(problem, hyper, search=search, steps=steps, stop=stop, callbacks=watchers, progress=False)
        for name, x in attributes(found).items():
            trial.set_user_attr(name, x)
        pruning.check()
        return found.best_value if math.isfinite(found.best_value) else math.nan

    return objective


def attributes(found: TuneResult) -> dict[str, Any]:
    """What a trial keeps of its run, as JSON values by name."""
    kept = {
        "hyprax.result": result_name(found.result),
        "hyprax.message": found.message,
        "hyprax.steps": len(found.history),
        "hyprax.hyper": plain(found.best),
    }
    if found.hypergradient is not None:
        kept["hyprax.certificate"] = repr(found.hypergradient.certificate)
    return kept


def plain(hyper: PyTree) -> dict[str, Any]:
    """Natural values by name as numbers and lists; the ranges of arrays that are too large to read."""
    values = natural(hyper)
    found: dict[str, Any] = {}
    for name, leaf in zip(leaf_names(values), jax.tree.leaves(values), strict=True):
        array = np.asarray(leaf)
        many = f"{array.size} numbers, {array.min():.4g} to {array.max():.4g}" if array.size > MOST_ENTRIES else None
        found[name] = array.tolist() if many is None else many
    return found
