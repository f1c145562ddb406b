"""Strengths tuned on folds: the best single one first, then many, held back unless nested folds speak for them."""

import dataclasses
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._certificate import details
from .._hyper import Positive
from .._noise import Noise
from .._objective import AbstractObjective
from .._result import message_of, result_name, succeeded
from ..implicit import ExampleNoise, NoCertifier
from ..search import LBFGS, RESULTS, CrossValidated, Stopping, TuningWarning, shrinkage_path, tune
from ..search._shrinkage import Together
from ..search._shrinkage_path import HANDFUL, Score
from ._at_once import AtOnce
from ._folds import Masks

KEY = "penalty"
GRID = tuple(10.0**k for k in (-5, -4, -3, -2, -1, 0, 1, 2))
RANGE = (1e-7, 1e4)
PATH_STEPS = 25
ARRIVED = ("successful", "gradient_small_uncertified", "precision_reached", "no_progress")


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was found, in the coordinates of the family.

    - `strengths`: (G,); `params`: of the refit on all rows.
    - `criterion`: the mean held-out loss; `single`: that of the best single strength.
    - `certificate`, `noise`: as names and numbers; `scores`: of the folds, where a score was asked for.
    - `result`: its name; `message`: what was done, in words.
    """

    strengths: np.ndarray
    params: np.ndarray
    criterion: float
    single: float
    steps: int
    result: str
    message: str
    arrived: bool
    certificate: dict[str, Any] = dataclasses.field(default_factory=dict)
    noise: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: list[float] | None = None


def hyper_of(strengths: Any) -> dict[str, Positive]:
    return {KEY: Positive(np.asarray(strengths, float))}


def natural_of(hyper: Any) -> np.ndarray:
    return np.asarray(hyper[KEY].value)


def tuned(
    problem: Any,
    masks: Masks,
    count: int,
    *,
    groups: np.ndarray | None = None,
    score: Score | None = None,
    unit: float,
    hold_back: Any,
    max_iter: int,
    tol: float,
    certify: bool,
    of: str,
) -> Tuned:
    """Tune `count` strengths of a problem on folds, and refit it on all rows.

    - `groups`: of the strengths, towards whose means they may be held.
    - `score`: of fitted weights on held-out rows, greater being better: it chooses how freely strengths move.
    - `unit`: the strengths of the user are so many times those of the family.
    - `hold_back`: whether many strengths start from one and leave it only where nested folds gain by more than so many
        standard errors; `False` for free ones.
    """
    errors = held_back(hold_back, count)
    settings = {
        "groups": groups,
        "score": score,
        "unit": unit,
        "errors": errors,
        "max_iter": max_iter,
        "tol": tol,
        "of": of,
    }
    found = _at_once(problem, masks, count, **settings)
    found = _one_by_one(problem, masks, count, **settings) if found is None else found
    certificate, noise = statements(problem, masks, hyper_of(found.strengths)) if certify else ({}, {})
    message = f"{found.message}{at_the_bound(found.strengths * unit)}"
    return dataclasses.replace(found, certificate=certificate, noise=noise, message=message)


def at_the_bound(strengths: np.ndarray) -> str:
    """A sentence where strengths, in units of the user, lie at the least that is tried."""
    low = int(np.sum(strengths <= 1.001 * RANGE[0]))
    if not low:
        return ""
    which = "The strength lies" if len(strengths) == 1 else f"{low} of {len(strengths)} strengths lie"
    return f" {which} at the lower bound of {RANGE[0]:.0e}: weaker ones were not tried, and may be better."


def _at_once(
    problem: Any,
    masks: Masks,
    count: int,
    *,
    groups: np.ndarray | None,
    score: Score | None,
    unit: float,
    errors: float | None,
    max_iter: int,
    tol: float,
    of: str,
) -> Tuned | None:
    """All folds in one program; `None` where the table is not of the size for it, or a fit has not arrived."""
    bounds = RANGE[0] / unit, RANGE[1] / unit
    folds = AtOnce(problem, masks, hyper_of, count, bounds)
    if not folds.possible:
        return None
    one = found = folds.single((GRID[0] / unit, GRID[-1] / unit), max_iter, tol)
    steps, said = one.steps * len(masks), "One strength for all columns was tuned."
    strengths, criterion = one.strengths, one.criterion
    if not math.isfinite(criterion):
        return None
    if count > 1 and errors is None:
        found = folds.free(strengths, max_iter, tol)
        steps += found.steps * len(masks)
        strengths, criterion, said = found.strengths, found.criterion, freely(count, of)
    elif count > 1 and errors is not None:
        strengths, criterion, more, said = on_path(
            problem, masks, one.strengths, one.criterion, groups, score, errors, max_iter, of
        )
        steps += more
    params, fitted = folds.refit(strengths)
    if not (fitted and math.isfinite(criterion)):
        return None
    result = RESULTS.steps_spent if found.spent else RESULTS.precision_reached
    result = RESULTS.gradient_small_uncertified if found.flat else result
    return Tuned(
        strengths=strengths,
        params=params,
        criterion=criterion,
        single=one.criterion,
        steps=max(steps, 1),
        result=result_name(result),
        message=f"{said} Stopped after {max_iter} steps (the limit). {message_of(result)}" if found.spent else said,
        arrived=not found.spent,
        scores=None if score is None else folds.scores(strengths, masks, score),
    )


def freely(count: int, of: str) -> str:
    return f"{count} strengths ({of}) were tuned freely."


def _one_by_one(
    problem: Any,
    masks: Masks,
    count: int,
    *,
    groups: np.ndarray | None,
    score: Score | None,
    unit: float,
    errors: float | None,
    max_iter: int,
    tol: float,
    of: str,
) -> Tuned:
    plain = CrossValidated(problem, masks, certifier=NoCertifier())
    stop = Stopping(gradient=tol, patience=4, improvement=1e-9)
    found, steps = single(plain, count, unit, max_iter, stop)
    one = natural_of(plain_spread(plain, found.best, count))
    strengths, criterion, said = one, found.best_value, "One strength for all columns was tuned."
    lone = criterion if count == 1 else value_at(plain, one)
    if count > 1 and errors is None:
        found = searched(plain, hyper_of(one), unit, max_iter, stop)
        steps += len(found.history)
        strengths, criterion, said = natural_of(found.best), found.best_value, freely(count, of)
    elif count > 1 and errors is not None:
        strengths, criterion, more, said = on_path(problem, masks, one, lone, groups, score, errors, max_iter, of)
        steps += more
    scores = None
    if score is not None:
        fits = plain.params(plain.value(hyper_of(strengths), plain.init(hyper_of(strengths)))[1])
        scores = [score(w, held) for w, (_, held) in zip(fits, masks, strict=True)]
    params, fitted_result = problem.refit(hyper_of(strengths))
    fitted = bool(succeeded(fitted_result))
    arrived = fitted and result_name(found.result) in ARRIVED
    return Tuned(
        strengths=strengths,
        params=np.array(params),
        criterion=float(criterion),
        single=float(lone),
        steps=max(steps, 1),
        result=result_name(found.result if fitted else fitted_result),
        message=said if arrived else f"{said} {found.message if fitted else message_of(fitted_result)}",
        arrived=arrived,
        scores=scores,
    )


def held_back(hold_back: Any, count: int) -> float | None:
    """How many standard errors a gain must exceed; `None` for strengths that are tuned freely.

    **Raises:** `ValueError` for anything but "auto", a truth value or a number > 0.
    """
    if isinstance(hold_back, str) and hold_back == "auto":
        return 1.0 if count > HANDFUL else None
    if isinstance(hold_back, bool | np.bool_):
        return 1.0 if hold_back else None
    if isinstance(hold_back, int | float) and 0 < hold_back < math.inf:
        return float(hold_back)
    raise ValueError(f"hold_back must be 'auto', True, False or a number > 0 of standard errors; got {hold_back!r}.")


def searched(objective: AbstractObjective, hyper: Any, unit: float, steps: int, stop: Stopping) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)  # the message of the estimator says it
        return tune(
            objective,
            hyper,
            search=LBFGS(strengths=(RANGE[0] / unit, RANGE[1] / unit)),
            steps=steps,
            stop=stop,
            progress=False,
        )


def value_at(objective: AbstractObjective, strengths: np.ndarray) -> float:
    hyper = hyper_of(strengths)
    return float(objective.value(hyper, objective.init(hyper))[0].value)


def plain_spread(objective: AbstractObjective, t: Any, count: int) -> Any:
    return Together(objective, hyper_of(np.ones(count))).spread(t) if count > 1 else t


def single(objective: AbstractObjective, count: int, unit: float, steps: int, stop: Stopping) -> tuple[Any, int]:
    """The best single strength: from the best of a coarse grid, since the criterion may have several valleys."""
    hyper = hyper_of(np.full(count, 1.0))
    state, values = objective.init(hyper), []
    grid = [strength / unit for strength in reversed(GRID)]
    for strength in grid:  # from the heaviest, each fit started from the last
        answer, after = objective.value(hyper_of(np.full(count, strength)), state)
        good = bool(succeeded(answer.result)) and math.isfinite(float(answer.value))
        values.append(float(answer.value) if good else math.inf)
        state = after if good else state
    best = grid[int(np.argmin(values))]
    if count == 1:
        found = searched(objective, hyper_of(np.full(1, best)), unit, steps, stop)
    else:
        found = searched(Together(objective, hyper), jnp.log(jnp.full(1, best)), unit, steps, stop)
    return found, len(found.history)


def on_path(
    problem: Any,
    masks: Masks,
    one: np.ndarray,
    base: float,
    groups: Any,
    score: Score | None,
    errors: float,
    steps: int,
    of: str,
) -> tuple[np.ndarray, float, int, str]:
    """The shrinkage path from the single strength, the strength of its prior chosen on nested folds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        path = shrinkage_path(
            problem,
            hyper_of(one),
            folds=masks,
            kinds=groups,
            score=score,
            errors=errors,
            steps=min(steps, PATH_STEPS),
            progress=False,
            certifier=NoCertifier(),
        )
    found = natural_of(path.hyper)
    gain = float(path.gains.mean(axis=0)[path.chosen])
    if path.chosen == 0:
        said = f"Nothing to gain from {len(one)} strengths ({of}) over one for all on nested folds: one was kept."
        return one, base, path.steps, said
    if score is not None:
        said = f"{len(one)} strengths ({of}): on nested folds the score was higher than with one for all by {gain:.2g}"
        return found, float(path.criteria[path.chosen]), path.steps, f"{said}; that chose, so it is optimistic."
    said = (
        f"{len(one)} strengths ({of}): on nested folds the held-out loss was lower than with one for all by "
        f"{100 * gain / abs(base):.2g} %; that chose how freely they move, so it is optimistic."
    )
    return found, float(path.criteria[path.chosen]), path.steps, said


def statements(problem: Any, masks: Masks, hyper: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Certificate and noise of the hypergradient at the strengths found, as names and numbers."""
    noise: dict[str, Any] = {} if _sparse(problem) else {"noise": ExampleNoise()}
    objective = CrossValidated(problem, masks, **noise)
    answer, _ = objective.value_and_grad(hyper, objective.init(hyper))
    spread = answer.noise
    words: dict[str, Any] = {"type": type(spread).__name__, "meaning": spread.meaning()}
    if isinstance(spread, Noise):
        words["standard_errors"] = np.asarray(spread.standard_errors[KEY].raw)
        words["degrees_of_freedom"] = float(spread.degrees_of_freedom)
        words["hypergradient"] = np.asarray(answer.grad[KEY].raw)
    return details(answer.certificate), words


def _sparse(problem: Any) -> bool:
    return not isinstance(problem.optimum.loss.inputs, jax.Array)
