"""Carrying a job out: the baseline's grid, the tuning, and the table that compares them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._hyper import natural
from .._progress import ProgressBar
from .._result import succeeded
from ..runs import HistoryError, Run, RunError, StateError
from ..search import TuneResult, tune
from ._cleaning import least_weights, wrong_labels
from ._errors import RecipeError, as_error
from ._hyper_tables import Penalty
from ._job import Job
from ._schema import SINGLE_LOOPS

# The table of a recipe that a method is set by.
TABLES = {"unroll": "training", "evidence": "evidence", **dict.fromkeys(("implicit", *SINGLE_LOOPS), "objective")}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One line of the comparison.

    - `validation_loss`, `test_score`: at the hyperparameters found; the loss is the outer objective, whatever
        `Outcome.value_name` calls it, the score the accuracy, R², or D² of counts.
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
    """What a job found: the run itself, the comparison, and further tables (a title, rows of texts by column)."""

    tuned: TuneResult
    contestants: tuple[Contestant, ...]
    score_name: str
    value_name: str = "validation loss"
    tables: tuple[dict[str, Any], ...] = ()


def carry_out(job: Job, run: Run | None, *, progress: bool, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Evaluate the baseline's grid, or else the start; tune; write the comparison into the run's summary."""
    contestants: list[Contestant] = []
    hyper = job.hyper
    if job.recipe.baseline is not None and job.splits is not None:
        strength, contestant = _grid(job, progress=progress)
        contestants.append(contestant)
        say(f"{contestant.name}: {job.objective.value_name} {contestant.validation_loss:.4f}")
        hyper = job.start_at(strength) if hyper is None else hyper
    assert hyper is not None  # the schema asks for a baseline where the start is the grid's
    try:
        tuned = tune(
            job.objective,
            hyper,
            search=job.search,
            steps=job.recipe.search.steps,
            stop=job.stop,
            run=run,
            progress=progress,
        )
    except (RunError, StateError, HistoryError):
        raise
    except ValueError as error:
        if job.predict is None:  # in code of the user's own, whose place the traceback says
            raise
        if run is not None:
            run.forget()
        raise job.source.located(RecipeError(as_error(error), key=TABLES[job.recipe.method])) from error
    found = bool(np.isfinite(tuned.best_value))
    if found and job.recipe.baseline is None and job.predict is not None and not job.objective.noisy:
        contestants.append(_at_start(job, hyper))
    baselines = [{"name": c.name, "value": c.validation_loss} for c in contestants]
    if found:
        contestants.append(_tuned(job, tuned))
    tables = tuple(_of_examples(job, tuned))
    outcome = Outcome(tuned, tuple(contestants), score_name(job), job.objective.value_name, tables)
    if run is not None:
        table = [dict(zip(table_header(outcome), row, strict=True)) for row in table_rows(outcome)]
        shown = [{"title": "Comparison", "rows": table}, *tables]
        run.write_summary({"baselines": baselines, "tables": shown, "value_name": outcome.value_name})
    return outcome


def score_name(job: Job) -> str:
    """What the score on the test part is called."""
    if job.predict is None:
        return "test score"
    if job.recipe.model.classifies:
        return "test accuracy"
    return "test D²" if job.recipe.model.kind == "poisson" else "test R²"


def _at_start(job: Job, hyper: PyTree) -> Contestant:
    """Where the search starts, as a model of its own."""
    began = time.perf_counter()
    value, state = job.objective.value(hyper, job.objective.init(hyper))
    found = float(value.value)
    seconds = time.perf_counter() - began
    return Contestant("at the start", found, _score(job, job.objective.params(state)), 0.0, seconds, 0, 1, float("nan"))


def _of_examples(job: Job, tuned: TuneResult) -> list[dict[str, Any]]:
    """Tables of what the weights of examples say: which labels were found to be wrong, or look so."""
    asked, splits = job.recipe.hyper.weights, job.splits
    if asked is None or asked.shape != "example" or splits is None:
        return []
    weights = np.asarray(natural(tuned.best)["weights"])
    found = [{"title": "Examples of least weight", "rows": least_weights(weights, splits)}]
    if np.any(splits.corrupted):
        found.insert(0, {"title": "Wrong labels", "rows": wrong_labels(weights, splits)})
    return found


def _grid(job: Job, *, progress: bool) -> tuple[float, Contestant]:
    """Solve for every strength of the grid, from the strongest down, each from the last optimum."""
    asked, objective = job.recipe.baseline, job.objective
    assert asked is not None
    assert job.recipe.penalty is not None  # a linear model has one
    # One free strength: the grid is not held to the bounds of the tuned ones.
    single = Penalty()
    strengths = np.geomspace(asked.hi, asked.lo, asked.points)
    state: Any = None
    best: tuple[float, float, Any] | None = None
    laps: list[float] = []
    bar = ProgressBar(asked.points) if progress else None
    for number, strength in enumerate(strengths, 1):
        began = time.perf_counter()
        hyper = job.start_at(float(strength), single)
        state = objective.init(hyper) if state is None else state
        value, state = objective.final(hyper, state)
        found = float(value.value)
        laps.append(time.perf_counter() - began)
        converged = bool(succeeded(value.result))
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
    name = f"best of {asked.points} single penalties ({strength:.2g})"
    score = _score(job, job.objective.params(state))
    return strength, Contestant(name, found, score, sum(laps[1:]), laps[0], 0, len(laps), float("nan"))


def _tuned(job: Job, tuned: TuneResult) -> Contestant:
    count = sum(leaf.size for leaf in jax.tree.leaves(tuned.best))
    norms, bounds, seconds = (tuned.column(name) for name in ("gradient_norm", "certificate_bound", "seconds"))
    known = np.isfinite(norms) & (norms > 0)
    relative = bounds[known] / norms[known]
    bounded = tuned.history[0]["certificate_kind"] != "none"
    best_value, params = _found(job, tuned)
    score = float("nan") if params is None else _score(job, params)
    return Contestant(
        f"{count} tuned hyperparameters" if count > 1 else "1 tuned hyperparameter",
        best_value,
        score,
        float(np.sum(seconds[1:])),
        float(seconds[0]),
        len(tuned.history),
        0,
        float(np.max(relative)) if bounded and relative.size else float("nan"),
    )


def _found(job: Job, tuned: TuneResult) -> tuple[float, PyTree | None]:
    """The value and the weights that a run found."""
    objective, state = job.objective, tuned.state.objective_state
    if job.predict is None:
        return tuned.best_value, None
    if not objective.noisy:  # the last evaluation was of other hyperparameters
        _, state = objective.final(tuned.best, state)
    return tuned.best_value, objective.params(state)


def _score(job: Job, params: PyTree) -> float:
    """Accuracy on the test part, or R², or D² of counts; NaN where it is not defined."""
    from sklearn.metrics import accuracy_score, d2_tweedie_score, r2_score

    assert job.splits is not None
    assert job.predict is not None
    inputs, targets = job.splits.test
    predicted = np.asarray(job.predict(params, inputs))
    if not np.all(np.isfinite(predicted)):
        return float("nan")
    if job.recipe.model.classifies:  # of one output the sign decides, of several the largest
        return float(accuracy_score(targets, predicted > 0 if predicted.ndim == 1 else np.argmax(predicted, axis=1)))
    predicted = predicted.reshape(targets.shape)
    if len(targets) < 2 or np.ptp(targets) == 0:
        return float("nan")
    if job.recipe.model.kind == "poisson":
        means = np.exp(np.clip(predicted, -700, 700))
        return float(d2_tweedie_score(targets, means, power=1))
    return float(r2_score(targets, predicted))


def table_header(outcome: Outcome) -> Sequence[str]:
    """The columns of the comparison."""
    return (
        "",
        outcome.value_name,
        outcome.score_name,
        "seconds",
        "first call (compiles)",
        "hypergradients",
        "inner solves without a hypergradient",
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
