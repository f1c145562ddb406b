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
from ..search._shrinkage_path import HANDFUL, Criterion, Score
from ._at_once import AtOnce
from ._folds import Masks
from ._rows import Rows

KEY = "penalty"
RANGE = (1e-7, 1e4)
"""Of strengths, in units of the user."""
PATH_STEPS = 25
FEW = (0.1, 0.01, 0.001, 0.0)
"""Strengths of the prior where each step of a criterion is worth some of the folds'."""
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


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be tuned, and how.

    - `problem`: on the rows, `masks` its folds, `count` the number of strengths.
    - `criterion`: training rows to what is minimised on them; `None` for the folds.
    - `groups`: of the strengths, towards whose means they may be held.
    - `score`: of fitted weights on held-out rows, greater being better: it chooses how freely strengths move.
    - `unit`: the strengths of the user are so many times those of the family.
    - `hold_back`: whether many strengths start from one and leave it only where nested folds gain by more than so many
        standard errors; `False` for free ones.
    - `of`: what each strength is of, in words.
    - `least`: the weakest strength that is tried, in units of the user.
    """

    problem: Rows
    masks: Masks
    count: int
    criterion: Criterion | None
    groups: np.ndarray | None
    score: Score | None
    unit: float
    hold_back: Any
    max_iter: int
    tol: float
    of: str
    least: float = RANGE[0]

    @property
    def errors(self) -> float | None:
        return held_back(self.hold_back, self.count)

    @property
    def bounds(self) -> tuple[float, float]:
        """Of strengths, in units of the family."""
        return self.least / self.unit, RANGE[1] / self.unit

    @property
    def grid(self) -> np.ndarray:
        """Where a single strength may start, in units of the family: decades, from a hundred times the weakest on."""
        decades = np.arange(round(math.log10(self.least)) + 2, 3)
        return 10.0**decades / self.unit

    @property
    def stop(self) -> Stopping:
        return Stopping(gradient=self.tol, patience=4, improvement=1e-9)


def tuned(asked: Asked, *, prove: bool) -> Tuned:
    """Tune the strengths of a problem on folds, or by another criterion, and refit it on all rows.

    `prove`: with a certificate and the noise of the hypergradient at the end.
    """
    held_back(asked.hold_back, asked.count)
    found = _at_once(asked) if asked.criterion is None else None
    found = _one_by_one(asked) if found is None else found
    certificate, noise = statements(asked, hyper_of(found.strengths)) if prove else ({}, {})
    message = f"{found.message}{at_the_bound(found.strengths * asked.unit, asked.least)}"
    return dataclasses.replace(found, certificate=certificate, noise=noise, message=message)


def at_the_bound(strengths: np.ndarray, least: float = RANGE[0]) -> str:
    """A sentence where strengths, in units of the user, lie at the least that is tried."""
    low = int(np.sum(strengths <= 1.001 * least))
    if not low:
        return ""
    which = "The strength lies" if len(strengths) == 1 else f"{low} of {len(strengths)} strengths lie"
    return f" {which} at the lower bound of {least:.0e}: weaker ones were not tried, and may be better."


def _at_once(asked: Asked) -> Tuned | None:
    """All folds in one program; `None` where the table is not of the size for it, or a fit has not arrived."""
    masks, count, errors = asked.masks, asked.count, asked.errors
    folds = AtOnce(asked.problem, masks, hyper_of, count, asked.bounds)
    if not folds.possible:
        return None
    one = found = folds.single((asked.grid[0], asked.grid[-1]), asked.max_iter, asked.tol)
    steps, said = one.steps * len(masks), "One strength for all columns was tuned."
    strengths, criterion = one.strengths, one.criterion
    if not math.isfinite(criterion):
        return None
    if count > 1 and errors is None:
        found = folds.free(strengths, asked.max_iter, asked.tol)
        steps += found.steps * len(masks)
        strengths, criterion, said = found.strengths, found.criterion, freely(asked)
    elif count > 1 and errors is not None:
        strengths, criterion, more, said = on_path(asked, errors, one.strengths, one.criterion)
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
        message=f"{said} Stopped after {asked.max_iter} steps (the limit). {message_of(result)}"
        if found.spent
        else said,
        arrived=not found.spent,
        scores=None if asked.score is None else folds.scores(strengths, masks, asked.score),
    )


def freely(asked: Asked) -> str:
    return f"{asked.count} strengths ({asked.of}) were tuned freely."


def _one_by_one(asked: Asked) -> Tuned:
    problem, count, errors = asked.problem, asked.count, asked.errors
    folds = CrossValidated(problem, asked.masks, certifier=NoCertifier())
    plain = folds if asked.criterion is None else asked.criterion(np.ones(len(problem.targets), bool))
    found, steps = single(plain, asked)
    one = natural_of(plain_spread(plain, found.best, count))
    strengths, criterion, said = one, found.best_value, "One strength for all columns was tuned."
    lone = criterion if count == 1 and asked.criterion is None else value_at(folds, one)
    if count > 1 and errors is None:
        found = searched(plain, hyper_of(one), asked)
        steps += len(found.history)
        strengths, criterion, said = natural_of(found.best), found.best_value, freely(asked)
    elif count > 1 and errors is not None:
        strengths, criterion, more, said = on_path(asked, errors, one, lone)
        steps += more
    scores = None
    if asked.score is not None:
        fits = folds.params(folds.value(hyper_of(strengths), folds.init(hyper_of(strengths)))[1])
        scores = [asked.score(w, held) for w, (_, held) in zip(fits, asked.masks, strict=True)]
    elif asked.criterion is not None:  # what is reported is a held-out loss, whatever was minimised
        criterion = value_at(folds, strengths)
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


def searched(objective: AbstractObjective, hyper: Any, asked: Asked) -> Any:
    return searched_within(objective, hyper, asked.bounds, asked.max_iter, asked.stop)


def searched_within(
    objective: AbstractObjective, hyper: Any, bounds: tuple[float, float], steps: int, stop: Stopping
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)  # the message of the estimator says it
        return tune(
            objective,
            hyper,
            search=LBFGS(strengths=bounds),
            steps=steps,
            stop=stop,
            progress=False,
        )


def value_at(objective: AbstractObjective, strengths: np.ndarray) -> float:
    hyper = hyper_of(strengths)
    return float(objective.value(hyper, objective.init(hyper))[0].value)


def plain_spread(objective: AbstractObjective, t: Any, count: int) -> Any:
    return Together(objective, hyper_of(np.ones(count))).spread(t) if count > 1 else t


def single(objective: AbstractObjective, asked: Asked) -> tuple[Any, int]:
    """The best single strength: from the best of a coarse grid, since the criterion may have several valleys."""
    count, hyper = asked.count, hyper_of(np.full(asked.count, 1.0))
    state, values = objective.init(hyper), []
    grid = asked.grid[::-1]
    for strength in grid:  # from the heaviest, each fit started from the last
        answer, after = objective.value(hyper_of(np.full(count, strength)), state)
        good = bool(succeeded(answer.result)) and math.isfinite(float(answer.value))
        values.append(float(answer.value) if good else math.inf)
        state = after if good else state
    best = grid[int(np.argmin(values))]
    if count == 1:
        found = searched(objective, hyper_of(np.full(1, best)), asked)
    else:
        found = searched(Together(objective, hyper), jnp.log(jnp.full(1, best)), asked)
    return found, len(found.history)


def on_path(asked: Asked, errors: float, one: np.ndarray, base: float) -> tuple[np.ndarray, float, int, str]:
    """The shrinkage path from the single strength, the strength of its prior chosen on nested folds."""
    few = {} if asked.criterion is None else {"criterion": asked.criterion, "strengths": FEW}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        path = shrinkage_path(
            asked.problem,
            hyper_of(one),
            folds=asked.masks,
            kinds=asked.groups,
            score=asked.score,
            errors=errors,
            steps=min(asked.max_iter, PATH_STEPS),
            progress=False,
            certifier=NoCertifier(),
            **few,
        )
    found = natural_of(path.hyper)
    gain = float(path.gains.mean(axis=0)[path.chosen])
    if path.chosen == 0:
        said = f"Nothing to gain from {len(one)} strengths ({asked.of}) over one for all on nested folds: one was kept."
        return one, base, path.steps, said
    if asked.score is not None:
        better = f"score was higher than with one for all by {gain:.2g}; that chose, so it is optimistic."
    else:
        better = (
            f"held-out loss was lower than with one for all by {100 * gain / abs(base):.2g} %; that chose how freely "
            "they move, so it is optimistic."
        )
    said = f"{len(one)} strengths ({asked.of}): on nested folds the {better}"
    return found, float(path.criteria[path.chosen]), path.steps, said


def statements(asked: Asked, hyper: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Certificate and noise of the hypergradient at the strengths found, as names and numbers."""
    if asked.criterion is not None:
        objective = asked.criterion(np.ones(len(asked.problem.targets), bool))
    else:
        noise: dict[str, Any] = {} if _sparse(asked.problem) else {"noise": ExampleNoise()}
        objective = CrossValidated(asked.problem, asked.masks, **noise)
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
