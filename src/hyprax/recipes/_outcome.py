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
from .._result import Result, message_of, result_name, succeeded
from ..runs import Run, RunError
from ..search import Callback, Towards, TuneResult, tune
from ._cleaning import least_weights, wrong_labels
from ._errors import RecipeError, as_error
from ._hold_back import HeldBack, hold_back
from ._job import Job
from ._judgement import Contestant, Judgement, Simple, judged, score_name, score_of
from ._saved import Model, model_of
from ._schema import SINGLE_LOOPS
from ._segments import by_segment

MOST_WEIGHTS = 20
HELD_TO_ONE = "One penalty for all: nested folds do not prefer others, or have too few rows to tell; nothing was moved."

# The table of a recipe that a method is set by.
TABLES = {"unroll": "training", "evidence": "evidence", **dict.fromkeys(("implicit", *SINGLE_LOOPS), "objective")}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a job found: the run itself, the comparison, and further tables (a title, rows of texts by column).

    - `tuned`: the run, a [`hyprax.search.TuneResult`][].
    - `contestants`: the lines of the comparison. Each has a `name`; `validation_loss` and `test_score`, at the
        hyperparameters found, the score being the accuracy, R², or D² of counts that `score_name` says; `seconds` of
        computation and `compile_seconds`; `evaluations` of the hypergradient and `solves` of the inner problem alone;
        and `relative_bound`, the largest bound / ‖h‖ over all hypergradients, NaN where none was computed.
    - `judgement`: what the models, refitted on all rows but those of the test part, are worth there; of linear models,
        a [`hyprax.recipes.Judgement`][].
    """

    tuned: TuneResult
    contestants: tuple[Contestant, ...]
    score_name: str
    value_name: str = "validation loss"
    tables: tuple[dict[str, Any], ...] = ()
    judgement: Judgement | None = None
    held_to_one: bool = False

    @property
    def message(self) -> str:
        """Why the search ended, in words."""
        return HELD_TO_ONE if self.held_to_one else self.tuned.message


def carry_out(
    job: Job,
    run: Run | None,
    *,
    progress: bool,
    say: Callable[[str], None] = lambda _: None,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Evaluate the baseline's grid, or else the start; tune, held back where there is much to tune; refit, and compare
    on the test part. What is found goes into the run's summary."""
    contestants: list[Contestant] = []
    simple: Simple | None = None
    hyper = job.hyper
    if job.recipe.grid is not None and job.splits is not None:
        simple = _grid(job, progress=progress)
        contestants.append(simple.contestant)
        say(f"{simple.contestant.name}: {job.objective.value_name} {simple.contestant.validation_loss:.4f}")
        hyper = job.start_at(simple.strength) if hyper is None else hyper
    assert hyper is not None  # the schema asks for a grid where the start is the grid's
    held: HeldBack | None = None
    if job.held_back:
        assert simple is not None  # what is held back is held towards it
        hyper = job.start_at(simple.strength)
        try:
            held = hold_back(job, hyper, say=say, progress=progress)
        except ValueError as error:
            raise job.source.located(RecipeError(as_error(error), key="search.hold_back")) from error
    tuned = _searched(job, hyper, held, run, progress=progress, callbacks=callbacks)
    found = bool(np.isfinite(tuned.best_value))
    if found and simple is None and job.predict is not None and not job.objective.noisy:
        contestants.append(_at_start(job, hyper))
    baselines = [{"name": c.name, "value": c.validation_loss} for c in contestants]
    judgement = judged(job, simple, tuned.best, held) if found and simple is not None and job.refit else None
    if found:
        contestants.append(_tuned(job, tuned, held, judgement))
    segments, of_examples = by_segment(job, judgement), list(_of_examples(job, tuned))
    tables = (*segments, *of_examples)
    one = held is not None and held.strength is None
    outcome = Outcome(tuned, tuple(contestants), score_name(job), job.objective.value_name, tables, judgement, one)
    if run is not None:
        table = [dict(zip(table_header(outcome), row, strict=True)) for row in table_rows(outcome)]
        shown = [{"title": "Comparison", "rows": table}, *of_examples]
        summary: dict[str, Any] = {"baselines": baselines, "value_name": outcome.value_name}
        if judgement is not None:
            found_model = saved(job, judgement.models[-1].params, tuned.best, run)
            shown.append({"title": "Largest weights, of prepared columns", "rows": weights_table(found_model)})
            shown[:0] = [judgement.table, *segments]
            summary |= {"gain": judgement.gain.meaning(), "warnings": list(judgement.warnings)}
            summary |= {"drawn": judgement.drawn, "columns": list(found_model.features)}
        if held is not None:
            summary |= {"path": held.path()}
        if one:
            summary["message"] = outcome.message
        run.write_summary(summary | {"tables": shown})
    return outcome


def saved(job: Job, params: PyTree, best: PyTree, run: Run) -> Model:
    """The refitted model, in the folder of the run."""
    assert job.penalties is not None  # linear models alone are refitted
    model = model_of(job, params, job.penalties(best))
    model.save(run.folder)
    return model


def weights_table(model: Model) -> list[dict[str, str]]:
    """The weights of the largest size with their penalties, by the names of their columns."""
    flat, penalties = model.weights.ravel(), model.penalties.ravel()
    each = model.weights.shape[1] if model.weights.ndim == 2 else 1
    rows = []
    for place in np.argsort(-np.abs(flat), kind="stable")[:MOST_WEIGHTS]:
        column, output = divmod(int(place), each)
        row = {"column": model.features[column]}
        if each > 1:
            row["class"] = model.classes[output]
        penalty = "none" if penalties[place] == 0 else f"{penalties[place]:.3g}"
        rows.append(row | {"weight": f"{flat[place]:.4g}", "penalty": penalty})
    return rows


def _searched(
    job: Job, hyper: PyTree, held: HeldBack | None, run: Run | None, *, progress: bool, callbacks: Sequence[Callback]
) -> TuneResult:
    """The recorded search; where nothing is to be moved, its first step alone, which says what the sample knows."""
    held_to_one = held is not None and held.strength is None
    objective = job.objective if held is None or held.strength is None else Towards(job.objective, held.strength)
    try:
        return tune(
            objective,
            hyper,
            search=job.search,
            steps=1 if held_to_one else job.recipe.search.steps,
            stop=job.stop,
            run=run,
            callbacks=callbacks,
            progress=progress,
        )
    except RunError:
        raise
    except ValueError as error:
        if job.predict is None:  # in code of the user's own, whose place the traceback says
            raise
        if run is not None:
            run.forget()
        raise job.source.located(RecipeError(as_error(error), key=TABLES[job.recipe.method])) from error


def _at_start(job: Job, hyper: PyTree) -> Contestant:
    """Where the search starts, as a model of its own."""
    began = time.perf_counter()
    value, state = job.objective.value(hyper, job.objective.init(hyper))
    found = float(value.value)
    seconds = time.perf_counter() - began
    return Contestant(
        "at the start", found, score_of(job, job.objective.params(state)), 0.0, seconds, 0, 1, float("nan")
    )


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


def _grid(job: Job, *, progress: bool) -> Simple:
    """Solve for every strength of the grid, from the strongest down, each from the last optimum."""
    asked, objective = job.recipe.grid, job.objective
    assert asked is not None
    # The grid is not held to the bounds of the tuned ones.
    strengths = np.geomspace(asked.hi, asked.lo, asked.points)
    state: Any = None
    best: tuple[int, float, Any] | None = None
    missed: Result | None = None
    laps: list[float] = []
    bar = ProgressBar(asked.points) if progress else None
    for number, strength in enumerate(strengths):
        began = time.perf_counter()
        hyper = job.start_at(float(strength), bounded=False)
        state = objective.init(hyper) if state is None else state
        value, state = objective.final(hyper, state)
        found = float(value.value)
        laps.append(time.perf_counter() - began)
        converged = bool(succeeded(value.result))
        if converged and (best is None or found < best[1]):
            best = (number, found, state)
        missed = missed if converged else value.result
        if bar is not None:
            bar.show(number + 1, f"single penalty {strength:.2g}: F={found:.6g}")
    if bar is not None:
        bar.close()
    if best is None:
        assert missed is not None  # of every strength
        raise job.source.located(_unsolved(job, missed))
    place, found, state = best
    strength = float(strengths[place])
    hyper = job.start_at(strength, bounded=False)
    refit = None if job.refit is None else job.refit(hyper)
    params = refit.params if job.problem is not None and refit is not None else objective.params(state)
    name = f"best of {asked.points} single penalties ({strength:.2g})"
    contestant = Contestant(name, found, score_of(job, params), sum(laps[1:]), laps[0], 0, len(laps), float("nan"))
    return Simple(strength, place in (0, asked.points - 1), refit, contestant)


def _unsolved(job: Job, missed: Result) -> RecipeError:
    """Why no strength of the grid was solved for."""
    if result_name(missed) == "inner_not_converged":
        inner = job.recipe.objective.inner_tolerance
        return RecipeError(
            f"no strength of the baseline's grid was solved for to a gradient norm of {inner:g}: raise it, or scale "
            "the data (data.scale)",
            key="objective.inner_tolerance",
        )
    hint = " (split.by and split.folds say which rows are fitted)" if job.splits and job.splits.pairs else ""
    return RecipeError(f"no strength of the baseline's grid was solved for{hint}. {message_of(missed)}", key="data")


def _tuned(job: Job, tuned: TuneResult, held: HeldBack | None, judgement: Judgement | None) -> Contestant:
    count = sum(leaf.size for leaf in jax.tree.leaves(tuned.best))
    norms, bounds, seconds = (tuned.column(name) for name in ("gradient_norm", "certificate_bound", "seconds"))
    known = np.isfinite(norms) & (norms > 0)
    relative = bounds[known] / norms[known]
    bounded = tuned.history[0]["certificate_kind"] != "none"
    value = tuned.best_value
    if held is not None and held.strength is not None:  # without the prior
        value = float(job.objective.value(tuned.best, tuned.state.objective_state)[0].value)
    return Contestant(
        f"{count} tuned hyperparameters" if count > 1 else "1 tuned hyperparameter",
        value,
        _score_found(job, tuned, judgement),
        float(np.sum(seconds[1:])) + (0.0 if held is None else held.seconds),
        float(seconds[0]),
        len(tuned.history) + (0 if held is None else held.steps),
        0,
        float(np.max(relative)) if bounded and relative.size else float("nan"),
    )


def _score_found(job: Job, tuned: TuneResult, judgement: Judgement | None) -> float:
    """The score of the weights that a run found; where folds judge, of those refitted on all rows."""
    objective, state = job.objective, tuned.state.objective_state
    if job.predict is None:
        return float("nan")
    if job.problem is not None:
        return float("nan") if judgement is None else judgement.models[-1].score
    if not objective.noisy:  # the last evaluation was of other hyperparameters
        _, state = objective.final(tuned.best, state)
    return score_of(job, objective.params(state))


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
