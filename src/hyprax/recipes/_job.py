"""Carrying a job out: the baseline's grid, the tuning, and the table that compares them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._objective import AbstractObjective
from .._progress import ProgressBar
from .._result import RESULTS
from ..implicit import AbstractSingleLoop, ImplicitObjective, ImplicitState
from ..runs import Run
from ..search import Tuned, tune
from ._build import Job
from ._errors import RecipeError


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One line of the comparison.

    - `validation_loss`, `test_score`: at the best hyperparameters; the score is the accuracy, or R² for ridge.
    - `seconds`, `compile_seconds`: of computation, and apart from it of the first call, compilation included.
    - `evaluations`: of the hypergradient; `solves`: of the inner problem alone.
    - `relative_bound`: the largest bound / ‖h‖ over all hypergradients; NaN where none was computed.
    """

    name: str
    validation_loss: float
    test_score: float
    seconds: float
    compile_seconds: float
    evaluations: int
    solves: int
    relative_bound: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a job found: the run itself, and the comparison."""

    tuned: Tuned
    contestants: tuple[Contestant, ...]
    score_name: str


def carry_out(job: Job, run: Run | None, *, progress: bool, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Evaluate the baseline's grid, tune, compare, and write the comparison into the run's summary."""
    contestants: list[Contestant] = []
    hyper = job.hyper
    if job.recipe.baseline is not None and job.splits is not None:
        strength, contestant = _grid(job, progress=progress)
        contestants.append(contestant)
        say(f"{contestant.name}: validation loss {contestant.validation_loss:.4f}")
        hyper = job.start_at(strength) if hyper is None else hyper
    assert hyper is not None  # the schema asks for a baseline where the start is the grid's
    tuned = tune(
        job.objective,
        hyper,
        search=job.search,
        steps=job.recipe.search.steps,
        stop=job.stop,
        run=run,
        progress=progress,
    )
    if np.isfinite(tuned.best_value):
        contestants.append(_tuned(job, tuned))
    score_name = {"ridge": "test R²", "custom": "test score"}.get(job.recipe.model.kind, "test accuracy")
    outcome = Outcome(tuned, tuple(contestants), score_name)
    if run is not None:
        baselines = [{"name": c.name, "value": c.validation_loss} for c in contestants[:-1]]
        table = [dict(zip(table_header(outcome), row, strict=True)) for row in table_rows(outcome)]
        run.write_summary({"baselines": baselines, "tables": [{"title": "Comparison", "rows": table}]})
    return outcome


def _grid(job: Job, *, progress: bool) -> tuple[float, Contestant]:
    """Solve for every strength of the grid, from the strongest down, each from the last optimum."""
    asked, objective = job.recipe.baseline, _exact(job.objective)
    assert asked is not None
    assert objective is not None  # a custom model has no baseline
    single = dataclasses.replace(job, recipe=_with_global_penalty(job))
    strengths = np.geomspace(asked.hi, asked.lo, asked.points)
    state: ImplicitState | None = None
    best: tuple[float, float, ImplicitState] | None = None
    laps: list[float] = []
    bar = ProgressBar(asked.points) if progress else None
    for number, strength in enumerate(strengths, 1):
        began = time.perf_counter()
        hyper = single.start_at(float(strength))
        state = objective.init(hyper) if state is None else state
        value, state = objective.value(hyper, state)
        found = float(value.value)
        laps.append(time.perf_counter() - began)
        converged = bool(value.result == RESULTS.successful)
        if converged and (best is None or found < best[1]):
            best = (float(strength), found, state)
        if bar is not None:
            bar.show(number, f"single penalty {strength:.2g}: F={found:.6g}")
    if bar is not None:
        bar.close()
    if best is None:
        inner = job.recipe.objective.inner_tolerance
        error = RecipeError(
            f"no strength of the baseline's grid was solved for to a gradient norm of {inner:g}: raise it, or scale "
            "the data (data.scale)",
            key="objective.inner_tolerance",
        )
        raise job.source.located(error)
    strength, found, state = best
    name = f"best single penalty of {asked.points}: {strength:.2g}"
    score = _score(job, state.params)
    return strength, Contestant(name, found, score, sum(laps[1:]), laps[0], 0, len(laps), float("nan"))


def _with_global_penalty(job: Job) -> Any:
    """The recipe with one free strength: the grid is not held to the bounds of the tuned ones."""
    penalty = job.recipe.hyper.penalty.model_copy(
        update={"shape": "global", "constraint": "positive", "lo": None, "hi": None}
    )
    return job.recipe.model_copy(update={"hyper": job.recipe.hyper.model_copy(update={"penalty": penalty})})


def _tuned(job: Job, tuned: Tuned) -> Contestant:
    count = sum(leaf.size for leaf in jax.tree.leaves(tuned.best))
    norms, bounds, seconds = (tuned.column(name) for name in ("gradient_norm", "certificate_bound", "seconds"))
    known = np.isfinite(norms) & (norms > 0)
    relative = bounds[known] / norms[known]
    score, best_value, exact = float("nan"), tuned.best_value, _exact(job.objective)
    if exact is not None and job.splits is not None and job.recipe.model.kind != "custom":
        if isinstance(job.objective, AbstractSingleLoop):  # noisy values have no best: the last are what was found
            value, state = exact.value(tuned.last, job.objective.warm_start(tuned.state.objective_state))
            best_value = float(value.value)
        else:
            _, state = exact.value(tuned.best, tuned.state.objective_state)
        score = _score(job, state.params)
    return Contestant(
        f"{count} tuned hyperparameters" if count > 1 else "1 tuned hyperparameter",
        best_value,
        score,
        float(np.sum(seconds[1:])),
        float(seconds[0]),
        len(tuned.history),
        0,
        float(np.max(relative)) if relative.size and tuned.history[0]["certificate_kind"] != "none" else float("nan"),
    )


def _exact(objective: AbstractObjective) -> ImplicitObjective | None:
    """The objective at exact optima; `None` for one of a user's own kind."""
    if isinstance(objective, AbstractSingleLoop):
        return objective.full_batch()
    return objective if isinstance(objective, ImplicitObjective) else None


def _score(job: Job, params: PyTree) -> float:
    """Accuracy on the test part, or R² for ridge."""
    assert job.splits is not None
    inputs, targets = job.splits.test
    predicted = inputs @ np.asarray(params)
    match job.recipe.model.kind:
        case "softmax":
            return float(np.mean(np.argmax(predicted, axis=1) == targets))
        case "logistic":
            return float(np.mean((predicted > 0) == targets))
        case _:
            spread = np.sum((targets - np.mean(targets)) ** 2)
            return float(1 - np.sum((targets - predicted) ** 2) / spread) if spread > 0 else float("nan")


def table_header(outcome: Outcome) -> Sequence[str]:
    """The columns of the comparison."""
    return (
        "",
        "validation loss",
        outcome.score_name,
        "seconds",
        "first call (compiles)",
        "hypergradients",
        "inner solves alone",
        "largest relative error bound",
    )


def table_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The comparison, as text."""

    def number(x: float, form: str) -> str:
        return "–" if np.isnan(x) else format(x, form)

    return [
        (
            c.name,
            number(c.validation_loss, ".4f"),
            number(c.test_score, ".4f"),
            number(c.seconds, ".2f"),
            number(c.compile_seconds, ".2f"),
            str(c.evaluations),
            str(c.solves) if c.solves else "–",
            number(c.relative_bound, ".1e"),
        )
        for c in outcome.contestants
    ]
