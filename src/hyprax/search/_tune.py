"""The outer loop: hyperparameters moved step by step, watched, recorded, and stopped for a reason with a name."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .. import _html as page
from .._forks import refuse_forked
from .._hyper import natural, validated
from .._interrupt import deferred_interrupt
from .._logging import logger
from .._objective import AbstractObjective, Hypergradient, Value, as_objective, described
from .._progress import ProgressBar
from .._result import Result, explain, message_of, result_name, succeeded
from ._callbacks import Callback, Start, Watchers
from ._default import default_search
from ._progress_words import bound_words, progress_words, sample_words, start_words
from ._record import AbstractRecord
from ._results import RESULTS
from ._search import AbstractSearch, check_fits
from ._step import measure, step_text


class TuningWarning(UserWarning):
    """A step of a tuning run was not computed as accurately as was asked, or can move nothing."""


_NO_EFFECT = (
    "the hypergradient is zero in every coordinate, not only small. Either this is a stationary point, or the "
    "objective does not depend on these hyperparameters: a penalty that is a number is not tuned, and a loss must use "
    "the `hyper` that it is given."
)


@dataclasses.dataclass(frozen=True)
class Stopping:
    """When to stop before all steps are made. Rules for deterministic objectives: a noisy one makes all of its steps.

    - `gradient`: stop when the hypergradient is proved small, ‖h‖ + bound <= gradient with a certified bound; or when
        ‖h‖ <= gradient and the bound alone exceeds `gradient`, so that no further step could prove it (the result
        then says so). 0 for never.
    - `patience`: stop when the best value has not fallen for so many steps; `None` for never.
    - `improvement`: the relative fall of the best value that counts as progress.
    """

    gradient: float = 1e-6
    patience: int | None = 50
    improvement: float = 1e-7

    def __post_init__(self):
        if not (self.gradient >= 0 and self.improvement >= 0):
            raise ValueError(
                f"Stopping: gradient and improvement must be numbers >= 0; got {self.gradient} and {self.improvement}."
            )
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"Stopping: patience must be an integer >= 1, or None; got {self.patience}.")


class TuneState(eqx.Module):
    """All that a run needs to go on, bit for bit: a pytree of arrays."""

    hyper: PyTree
    search_state: PyTree
    objective_state: PyTree
    step: Int[Array, ""]
    best: PyTree
    best_value: Float[Array, ""]
    best_step: Int[Array, ""]
    progress_step: Int[Array, ""]
    last: PyTree
    ended: RESULTS
    """Why the search can go no further; `steps_spent` while it can."""


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """What a run found.

    - `best`: the hyperparameters to use, as given: constrained leaves; `hx.natural(found.best)` for plain arrays. Those
        of lowest value among all that were evaluated; the last ones where the objective is noisy, since the lowest of
        noisy values is luck.
    - `best_value`, `best_step`: their value, and the step that evaluated them. For a noisy objective the value is that
        of `objective.final`, and its standard error, if there is one, stands in `final.noise`.
    - `last`: the hyperparameters evaluated last, and `hypergradient` the answer there.
    - `final`: the whole answer of `objective.final` at `best`, for a noisy objective; else `None`.
    - `history`: one row (a dictionary) a step.
    - `result`: why the run ended, a member of [`hyprax.search.RESULTS`][]: `successful` for a gradient proved small.
    - `cause`: where an evaluation ended the run, what the objective said of it; where a callback did, why; else empty.
    - `state`: all that is needed to go on.
    """

    best: PyTree
    best_value: float
    best_step: int
    last: PyTree = dataclasses.field(repr=False)
    hypergradient: Hypergradient | None = dataclasses.field(repr=False)
    final: Value | None = dataclasses.field(repr=False)
    history: list[dict[str, Any]] = dataclasses.field(repr=False)
    result: RESULTS
    cause: str = dataclasses.field(repr=False)
    state: TuneState = dataclasses.field(repr=False)

    @property
    def message(self) -> str:
        """Why the run ended, in words."""
        last = self.history[-1] if self.history else {}
        numbers = {name: last[name] for name in ("step", "value", "gradient_norm", "certificate_bound") if name in last}
        if bool(self.result == RESULTS.steps_spent):
            trend = progress_words(self.history, self.final is not None)
            said = f"Stopped after {len(self.history)} steps (the limit){'; ' if trend else ''}{trend}."
            text = f"{said} {message_of(self.result)}"
        else:
            small = (self.result == RESULTS.successful) | (self.result == RESULTS.gradient_small_uncertified)
            begun = start_words(self.history) if bool(small) else ""
            text = " ".join(part for part in (explain(self.result, numbers), begun) if part)
        noise = None if self.hypergradient is None else self.hypergradient.noise
        count = sum(leaf.size for leaf in jax.tree.leaves(self.best))
        of_sample = sample_words(count, noise, float(last.get("gradient_norm", math.nan)))
        return " ".join(part for part in (text, self.cause, bound_words(last), of_sample) if part)

    def _repr_html_(self) -> str:
        return page.shown(lambda: _result_card(self), self)

    def column(self, name: str) -> np.ndarray:
        """One column of the history as an array, NaN where a row has no such number.

        **Raises:** `ValueError` for a name that no row has.
        """
        names = sorted({key for row in self.history for key in row})
        if self.history and name not in names:
            raise ValueError(f"TuneResult.column: name must be one of {', '.join(names)}; got {name!r}.")
        return np.asarray([row.get(name, math.nan) for row in self.history])


def tune(
    objective: AbstractObjective | Callable[[PyTree], Any],
    hyper: PyTree,
    *,
    search: AbstractSearch | None = None,
    steps: int,
    stop: Stopping = Stopping(),
    run: AbstractRecord | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> TuneResult:
    """Minimise F over `hyper`: `steps` evaluations of the hypergradient, each followed by a move of the search.

    **Arguments:**

    - `objective`: any [`hyprax.core.AbstractObjective`][], or a plain function of hyper, in natural units, to a number.
    - `hyper`: where to start, a pytree of arrays and constrained leaves.
    - `search`: the rule for the next point; default [`hyprax.search.LBFGS`][], which needs no rate, and for noisy
        objectives Adam at 0.05 in unconstrained coordinates. More than ten hyperparameters are held back where the
        objective measures the noise of its hypergradients, or can for little (a family with a dense factor): by
        [`hyprax.search.GatedLBFGS`][], and [`hyprax.search.Gate`][] for noisy objectives.
    - `steps`: the most steps, counted from the start of the run, not of this call.
    - `stop`: when to stop earlier, [`hyprax.search.Stopping`][].
    - `run`: a record on disk ([`hyprax.runs.Run`][]); a run that was interrupted goes on from its last saved state and
        gives the same bits as one that was not.
    - `callbacks`: who watches ([`hyprax.search.Callback`][]): functions called with a [`hyprax.search.Step`][] after
        every step, a true answer stops the run; or objects such as those of `hyprax.callbacks`.
    - `progress`: a bar on standard error, after two seconds and on a terminal only.

    **Returns:** a [`hyprax.search.TuneResult`][].

    Nothing is compiled after the first step. A step that did not reach the accuracy asked for is counted in the
    history, warned of once ([`hyprax.search.TuningWarning`][]) and never becomes `best`; one with a non-finite answer
    ends the run with the result `diverged` and all that was found before. A first hypergradient of exactly zero is
    warned of too. An interrupt (Ctrl-C) acts when the step in progress is whole, after the record has it; a second one
    acts at once.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"tune: steps must be an integer >= 1; got {steps!r}.")
    refuse_forked()
    objective = as_objective(objective)
    if search is None:
        hyper = validated(hyper)
        objective, search = default_search(objective, hyper)
    if not isinstance(search, AbstractSearch):
        raise ValueError(
            f"tune: search must be hx.search.Optax(optax.adam(0.05)), hx.search.MAID() or the like; got "
            f"{described(search)}."
        )
    if not isinstance(run, AbstractRecord | None):
        raise ValueError(f"tune: run must be hx.Run(folder); got {described(run)}.")
    check_fits(search, objective)
    watchers = Watchers(callbacks)
    hyper = validated(hyper)
    state = _start(objective, search, hyper)
    history: list[dict[str, Any]] = []
    resumed = None if run is None else run.begin(state, {"objective": objective, "search": search})
    if resumed is not None:
        state, history = resumed
    noisy = objective.noisy
    ended = _ended(state, history[-1], stop, noisy) if history else None
    result, cause = (RESULTS.steps_spent, "") if ended is None else _layered(ended)
    final: Value | None = None
    bar = ProgressBar(steps, len(history)) if progress else None
    warned: set[str] = {row["result"] for row in history}
    answer: Hypergradient | None = None
    folder = None if run is None else run.folder
    asked: str | None = None
    names = type(objective).__name__, type(search).__name__
    start = Start(*names, objective.value_name, steps, state.hyper, history, folder)
    logger.info("%s by %s: %s at step %d of %d", *names, "goes on" if history else "begins", len(history), steps)
    try:
        if bar is not None:
            bar.wait("compiling the first step ...")
        asked = watchers.start(start)
        if asked is not None and ended is None:
            result, cause = RESULTS.stopped_by_callback, asked
        with deferred_interrupt() as interrupted:
            for number in range(len(history), steps if ended is None and asked is None else 0):
                began = time.perf_counter()
                evaluated = state.hyper
                move = search.step(objective, evaluated, state.search_state, state.objective_state)
                answer = move.hypergradient
                jax.block_until_ready(answer.value)
                step = measure(number, evaluated, move, time.perf_counter() - began)
                finite = math.isfinite(step.value) and math.isfinite(step.gradient_norm)
                if step.result != "successful" and step.result not in warned:
                    warned.add(step.result)
                    logger.warning("step %d: %s", number, answer.message)
                    warnings.warn(f"step {number}: {answer.message}", TuningWarning, stacklevel=2)
                if number == 0 and step.gradient_norm == 0 and step.result == "successful":
                    logger.warning("step 0: %s", _NO_EFFECT)
                    warnings.warn(f"step 0: {_NO_EFFECT}", TuningWarning, stacklevel=2)
                best = float(state.best_value)
                better = finite and (noisy or (step.result == "successful" and step.value < best))
                progressed = better and (math.isinf(best) or best - step.value > stop.improvement * abs(best))
                state = TuneState(
                    hyper=move.hyper if finite else evaluated,
                    search_state=move.search_state if finite else state.search_state,
                    objective_state=move.objective_state if finite else state.objective_state,
                    step=jnp.asarray(number + 1),
                    best=evaluated if better else state.best,
                    best_value=jnp.asarray(step.value) if better else state.best_value,
                    best_step=jnp.asarray(number) if better else state.best_step,
                    progress_step=jnp.asarray(number) if progressed else state.progress_step,
                    last=evaluated,
                    ended=state.ended if move.ended is None else _layered(move.ended)[0],
                )
                history.append(step.row())
                saved = None if run is None else run.step(step, state)
                if bar is not None:
                    bar.show(step.step + 1, step_text(step))
                logger.debug("step %d: %s", number, step_text(step))
                if saved is not None:
                    logger.info("saved step %d in %s", number, saved)
                    watchers.checkpoint(saved)
                asked = watchers.step(step)
                interrupted()
                ended = _ended(state, history[-1], stop, noisy)
                if ended is not None:
                    result, cause = _layered(move.ended if move.ended is not None and ended is state.ended else ended)
                    break
                if asked is not None:
                    result, cause = RESULTS.stopped_by_callback, asked
                    break
            if noisy and math.isfinite(state.best_value):
                final, objective_state = objective.final(state.best, state.objective_state)
                interrupted()
                state = eqx.tree_at(lambda s: s.objective_state, state, objective_state)
                if not bool(succeeded(final.result)):
                    result, cause = _layered(final.result)
    except BaseException:
        logger.warning("left at step %d", len(history))
        try:
            if run is not None:
                run.interrupt()
        finally:
            watchers.end(None)
        raise
    finally:
        if bar is not None:
            bar.close()
    tuned = TuneResult(
        best=state.best,
        best_value=float(state.best_value if final is None else final.value),
        best_step=int(state.best_step),
        last=state.last,
        hypergradient=answer,
        final=final,
        history=history,
        result=result,
        cause=cause,
        state=state,
    )
    if run is not None:
        run.finish(tuned)
    logger.info("ended at step %d: %s. %s", len(history), result_name(result), tuned.message)
    watchers.end(tuned)
    return tuned


def _result_card(tuned: TuneResult) -> str:
    """A run for a notebook: how it ended, its best, and what the last answer said of itself."""
    facts = {"best value": f"{tuned.best_value:.6g}", "at step": tuned.best_step, "steps": len(tuned.history)}
    facts["seconds"] = f"{sum(row['seconds'] for row in tuned.history):.3g}"
    badges, statements = page.badge(result_name(tuned.result)), ""
    if (answer := tuned.hypergradient) is not None:
        badges += page.badge(answer.certificate.kind)
        statements = page.paragraphs(
            f"Certificate, at the last step. {answer.certificate.meaning()}",
            f"Noise, at the last step. {answer.noise.meaning()}",
        )
    return page.card(
        "Tuning run",
        badges,
        page.table(list(facts.items())),
        page.curve([row["value"] for row in tuned.history], "value"),
        page.paragraphs(tuned.message),
        page.table(page.of_tree(natural(tuned.best)), ("best hyperparameters", "shape", "natural units")),
        statements,
    )


def _start(objective: AbstractObjective, search: AbstractSearch, hyper: PyTree) -> TuneState:
    zero = jnp.asarray(0)
    return TuneState(
        hyper=hyper,
        search_state=search.init(hyper),
        objective_state=objective.init(hyper),
        step=zero,
        best=hyper,
        best_value=jnp.asarray(jnp.inf),
        best_step=zero,
        progress_step=zero,
        last=hyper,
        ended=RESULTS.steps_spent,
    )


def _layered(result: Result) -> tuple[RESULTS, str]:
    """A result of any layer as one of the searches', and the words of another layer's."""
    if isinstance(result, RESULTS):
        return result, ""
    if result_name(result) == "diverged":
        return RESULTS.diverged, ""
    return RESULTS.evaluation_failed, message_of(result)


def _ended(state: TuneState, row: Mapping[str, Any], stop: Stopping, noisy: bool) -> RESULTS | None:
    """Whether, and why, the run ends after the step of this row: asked after a step, and again by a resumed run."""
    if not (math.isfinite(row["value"]) and math.isfinite(row["gradient_norm"])):
        return RESULTS.diverged
    norm, bound = row["gradient_norm"], row["certificate_bound"]
    if not noisy and stop.gradient > 0 and row["result"] == "successful" and norm <= stop.gradient:
        certified = row["certificate_kind"] == "certified"
        if certified and norm + bound <= stop.gradient:
            return RESULTS.successful
        if not certified or bound > stop.gradient:
            return RESULTS.gradient_small_uncertified
    if not noisy and stop.patience is not None and row["step"] - int(state.progress_step) >= stop.patience:
        return RESULTS.no_progress
    return None if bool(state.ended == RESULTS.steps_spent) else state.ended
