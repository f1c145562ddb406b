"""The path from one strength for all to free ones, and how far along it nested folds allow to go."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._executors import checked_executor, ordered_map
from .._hyper import validated
from .._keys import checked_key
from .._objective import AbstractObjective
from .._progress import ProgressBar
from ._cross_validated import CrossValidated, Foldable, drawn_folds, given_folds
from ._lbfgs import LBFGS
from ._lockstep import Held, Limits, minimised
from ._shrinkage import Together, Towards
from ._tune import Stopping, tune

HANDFUL = 3
"""So many hyperparameters are tuned freely where folds judge them; more are held back by default."""
LEAST_GAIN = 1e-3
"""A smaller share of the held-out loss is no reason for many strengths."""
STRENGTHS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0)
"""Of the prior, in units of the loss at the single strength: a prior means the same whatever the units of targets."""

Masks = list[tuple[np.ndarray, np.ndarray]]

Criterion = Callable[[np.ndarray], AbstractObjective]
"""`training rows -> objective`, rows as booleans."""

Score = Callable[[Any, np.ndarray], float]
"""`(weights, held-out rows) -> score`, greater is better; rows are booleans, one a row."""


@dataclasses.dataclass(frozen=True)
class ShrinkagePath:
    """Tuned hyperparameters from one strength for all (τ = ∞) to free ones, and the τ that nested folds chose.

    - `strengths`: τ, falling, infinite first; with kinds, once towards one number for all and once more towards one a
        kind; `towards` says which, "one" or "kinds".
    - `hypers`: the hyperparameters at each, tuned on all rows.
    - `criteria`: the cross-validated loss at each.
    - `gains`: `(outer folds, strengths)`, held-out loss of the single strength less that at each, or what a `score`
      gains over that of the single strength; they chose, so they
      are optimistic and no honest number: that is `honest` around the whole rule.
    - `chosen`: the place of the one chosen.
    - `steps`: the hypergradients taken, of single folds.
    """

    strengths: tuple[float, ...]
    towards: tuple[str, ...]
    hypers: list[PyTree]
    criteria: np.ndarray
    gains: np.ndarray
    chosen: int
    steps: int

    @property
    def hyper(self) -> PyTree:
        """The hyperparameters at the τ chosen."""
        return self.hypers[self.chosen]


def choose(gains: np.ndarray, errors: float, least: float = 0.0) -> int:
    """The column with the largest mean gain among those above `errors` standard errors and `least`; else 0."""
    folds = len(gains)
    mean, error = gains.mean(axis=0), gains.std(axis=0, ddof=1) / folds**0.5
    good = (mean - errors * error > 0) & (mean >= least)
    good[0] = False
    return int(np.argmax(np.where(good, mean, -np.inf))) if good.any() else 0


def shrinkage_path(
    problem: Foldable,
    hyper: PyTree,
    *,
    key: Array | None = None,
    strengths: Sequence[float] = STRENGTHS,
    folds: Any = 5,
    outer_folds: int = 5,
    errors: float = 1.0,
    groups: Any = None,
    kinds: Any = None,
    steps: int = 25,
    score: Score | None = None,
    criterion: Criterion | None = None,
    executor: Executor | None = None,
    progress: bool = True,
    **settings: Any,
) -> ShrinkagePath:
    """Tune many hyperparameters held together by a prior, whose strength τ is chosen on nested folds.

        F(θ) + (τ/2) Σ_j (θ_j - m_j)²,    F the cross-validated loss, θ unconstrained coordinates, m_j their mean

    The path goes from the best single strength (one a group, with `groups`) to small τ, each warm-started from the
    last. With `kinds` a second path follows, from the best strengths of one a kind, m_j being the mean of the kind.
    Both are computed on each outer training part and judged on its held-out part: the largest mean gain over the first
    candidate that exceeds `errors` standard errors over the outer folds is taken, and the first where there is none.
    Then the path is computed on all rows.

    **Arguments:**

    - `problem`: an [`hyprax.Optimum`][] of a family.
    - `hyper`: where to start: the mean of its coordinates is what counts.
    - `key`: a JAX random key, for numbers of folds.
    - `strengths`: τ, falling, in units of the cross-validated loss of the single strength.
    - `folds`, `outer_folds`: inner and outer, numbers. Given `folds` (pairs of index arrays or masks, or a splitter, as
        in [`hyprax.search.CrossValidated`][]) are outer and inner at once: inside fold k the others are used, less its
        rows; a fold that leaves none to judge on is not an outer one, and with fewer than two outer folds the single
        strength is kept.
    - `errors`: 1 for the rule of one standard error; 2 leaves the single strength more rarely. A gain below a
        thousandth of the held-out loss is none in any case.
    - `groups`: integers, one a coordinate in the order of the leaves, where coordinates are of different meaning (l1
        and l2 strengths): each group has a number, and a mean, of its own throughout.
    - `kinds`: integers likewise, for the second path: columns and their products, blocks of one-hot columns, lags.
    - `steps`: the most steps at each τ.
    - `score`: a function of fitted weights and held-out rows (booleans) to a number, greater being better, by which
        candidates are chosen instead of the loss. Gradients use the loss. A gain of any size counts then.
    - `criterion`: a function of training rows (booleans) to the objective that is minimised on them in place of the
        inner folds: leave-one-out, a marginal likelihood. τ is in its units then.
    - `executor`: any `concurrent.futures.Executor` (spawned processes, loky, a Dask cluster's): where folds are fitted
        one by one, the paths of the outer folds are computed on it, to the same bits.
    - `progress`: a bar on standard error, after two seconds and on a terminal only.
    - `settings`: of each fold's objective, where folds are fitted one by one.

    Costs (outer_folds + 1) paths of inner folds. Folds of a dense family of moderate size are fitted all at once, by
    Newton's method in one compiled program; others one by one.
    """
    checked_executor("shrinkage_path", executor)
    hyper = validated(hyper)
    labels = problem.labels()
    strata = labels if problem.stratify() else None
    if isinstance(folds, int):
        outer_key, inner_key = jax.random.split(checked_key("shrinkage_path", key))
        inner = drawn_folds(folds, len(labels), strata, inner_key)
        outer = drawn_folds(outer_folds, len(labels), strata, outer_key)
    else:
        inner = outer = given_folds(folds, labels, None)
    nested: list[tuple[tuple[np.ndarray, np.ndarray], Masks]] = []
    for training, held in outer:
        parts = [(training & fit, training & judge) for fit, judge in inner]
        parts = [(fit, judge) for fit, judge in parts if fit.any() and judge.any()]
        if parts:
            nested.append(((training, held), parts))
    owners = [np.zeros(ravel_pytree(hyper)[0].size, int) if groups is None else _checked("groups", groups, hyper)]
    if kinds is not None:
        owners.append(_checked("kinds", kinds, hyper))
    plan = [(tau, owner) for owner in owners for tau in (np.inf, *strengths)]
    bar = ProgressBar((len(nested) + 1) * len(plan)) if progress else None
    found = None
    if criterion is None:
        told = _told(bar, 0, "all folds", len(nested) + 1)
        found = _all_at_once(problem, nested, inner, hyper, plan, steps, score, told)
    if found is None:
        found = _one_by_one(problem, nested, inner, hyper, plan, steps, settings, score, criterion, bar, executor)
    if bar is not None:
        bar.close()
    hypers, criteria, losses, taken = found
    unit = unit_of(criteria) if criterion is None else 1.0
    table = losses[:, :1] - losses if len(losses) > 1 else np.zeros((2, len(plan)))
    least = LEAST_GAIN * abs(float(np.mean(losses[:, 0]))) if len(losses) and score is None else 0.0
    return ShrinkagePath(
        strengths=tuple(tau * unit if np.isfinite(tau) else tau for tau, _ in plan),
        towards=tuple("one" if owner is owners[0] else "kinds" for _, owner in plan),
        hypers=hypers,
        criteria=criteria,
        gains=table,
        chosen=choose(table, errors, least),
        steps=taken,
    )


def _told(bar: ProgressBar | None, before: int, label: str, each: int = 1) -> Callable[[int], None]:
    """What a path tells of its searches: how many are done."""
    return lambda done: None if bar is None else bar.show(before + each * done, f"held back: {label}")


def unit_of(criteria: Sequence[float] | np.ndarray) -> float:
    """The loss at the single strength, in whose units priors are given."""
    return abs(float(criteria[0])) or 1.0


def _checked(name: str, groups: Any, hyper: PyTree) -> np.ndarray:
    index, count = np.asarray(groups), ravel_pytree(hyper)[0].size
    if index.shape != (count,) or index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= count:
        raise ValueError(
            f"shrinkage_path: {name} must be {count} integers from 0 to {count - 1}, one a coordinate; got "
            f"{index.dtype}{list(index.shape)}."
        )
    return np.unique(index, return_inverse=True)[1].astype(int)


Plan = list[tuple[float, np.ndarray]]
Nested = list[tuple[tuple[np.ndarray, np.ndarray], Masks]]
Found = tuple[list[PyTree], np.ndarray, np.ndarray, int]
"""Hyperparameters and criteria of the plan on all rows, held-out losses (outer folds, plan), and hypergradients."""


def _all_at_once(
    problem: Any,
    nested: Nested,
    inner: Masks,
    hyper: PyTree,
    plan: Plan,
    steps: int,
    score: Score | None,
    told: Callable[[int], None],
) -> Found | None:
    """The paths of all outer folds and of all rows side by side; `None` for a problem that has no such program."""
    together = getattr(problem, "together", None)
    if together is None:
        return None
    none = np.zeros(len(problem.labels()), bool)
    pads = max(len(inner), *(len(parts) for _, parts in nested)) if nested else len(inner)
    judges = [[(training, held)] + [(training, none)] * (pads - 1) for (training, held), _ in nested]
    judges.append([(~none, none)] * pads)
    sets, judging = together(hyper, [*(parts for _, parts in nested), inner]), together(hyper, judges)
    if sets is None or judging is None:
        return None
    flat, restore = ravel_pytree(hyper)
    low, high = (ravel_pytree(LBFGS()._bounds(hyper, end))[0] for end in (0, 1))
    owner = plan[0][1]
    means = np.bincount(owner, np.asarray(flat)) / np.bincount(owner)
    raw = jnp.asarray(np.tile(means[owner], (len(nested) + 1, 1)), flat.dtype)
    weights, judged = sets.start(), judging.start()
    first, taken, hypers, criteria, losses = raw, 0, [], [], []
    for tau, groups in plan:
        tied = np.isinf(tau)
        if tied and hypers:
            raw = first
        held = Held(
            strength=jnp.asarray(0.0 if tied else tau * unit_of(criteria), flat.dtype),
            tied=jnp.asarray(tied),
            groups=jnp.asarray(groups),
            low=low,
            high=high,
        )
        raw, values, weights, count, _ = minimised(sets, raw, weights, held, Limits.of(steps))
        _, outer, judged, _, _ = minimised(judging, raw, judged, held, Limits.of(0))
        if not hypers:
            first = raw
        hypers.append(restore(raw[-1]))
        criteria.append(float(values[-1]))
        losses.append(np.asarray(outer)[:-1])
        if score is not None:
            fits = np.asarray(judged[:-1, 0])
            losses[-1] = [-score(problem.shaped(w), held) for w, ((_, held), _) in zip(fits, nested, strict=True)]
        taken += int(np.sum(np.asarray(count))) * len(inner)
        told(len(hypers))
    return hypers, np.asarray(criteria), np.stack(losses, axis=1), taken


def _one_by_one(
    problem: Foldable,
    nested: Nested,
    inner: Masks,
    hyper: PyTree,
    plan: Plan,
    steps: int,
    settings: dict[str, Any],
    score: Score | None,
    criterion: Criterion | None,
    bar: ProgressBar | None,
    executor: Executor | None,
) -> Found:
    every = np.ones(len(problem.labels()), bool)
    work = _Fold(problem, hyper, plan, steps, settings, score, criterion)
    unit = None if criterion is None else 1.0
    found, criteria, taken = _path(work.on(every, inner), hyper, plan, steps, unit, _told(bar, 0, "all rows"))
    taken *= len(inner) if criterion is None else 1
    unit = unit_of(criteria) if unit is None else unit
    if executor is None:
        rows = []
        for part, fold in enumerate(nested):
            told = _told(bar, (part + 1) * len(plan), f"outer fold {part + 1} of {len(nested)}")
            rows.append(work(unit, told, fold))
    else:
        if bar is not None:
            bar.close()
        show = partial(work, unit, None)
        rows = ordered_map(
            "shrinkage_path", show, nested, label="outer folds", executor=executor, progress=bar is not None
        )
    losses = [losses for losses, _ in rows]
    return found, criteria, np.asarray(losses).reshape(-1, len(plan)), taken + sum(count for _, count in rows)


@dataclasses.dataclass(frozen=True)
class _Fold:
    """The path of one outer fold, judged on its held-out part; what it is made of travels to whoever computes it."""

    problem: Foldable
    hyper: PyTree
    plan: Plan
    steps: int
    settings: dict[str, Any]
    score: Score | None
    criterion: Criterion | None

    def on(self, training: np.ndarray, folds: Masks) -> AbstractObjective:
        """What is minimised on the training rows."""
        if self.criterion is not None:
            return self.criterion(training)
        return CrossValidated(self.problem, folds, **self.settings)

    def __call__(
        self, unit: float, told: Callable[[int], None] | None, fold: tuple[tuple[np.ndarray, np.ndarray], Masks]
    ) -> tuple[list[float], int]:
        """Held-out losses along the plan, and the hypergradients taken."""
        (training, held), parts = fold
        objective = self.on(training, parts)
        hypers, _, count = _path(objective, self.hyper, self.plan, self.steps, unit, told or (lambda done: None))
        count *= len(parts) if self.criterion is None else 1
        judge = self.problem.held_out(training, held, **self.settings)
        row = []
        for each in hypers:
            answer, state = judge.value(each, judge.init(each))
            row.append(float(answer.value) if self.score is None else -self.score(judge.params(state), held))
        return row, count


def _path(
    objective: AbstractObjective,
    hyper: PyTree,
    plan: Plan,
    steps: int,
    unit: float | None,
    told: Callable[[int], None],
) -> tuple[list[PyTree], np.ndarray, int]:
    stop = Stopping(gradient=1e-6, patience=3, improvement=1e-4)
    hypers, criteria, taken = [], [], 0
    for tau, groups in plan:
        if np.isinf(tau):
            start = hyper if not hypers else hypers[0]
            count = int(np.max(groups)) + 1
            together = Together(objective, start, groups)
            raw = ravel_pytree(start)[0]
            sizes = together.summed(jax.tree.map(jnp.ones_like, start), jnp.zeros(count))
            begin = together.summed(start, jnp.zeros(count, raw.dtype)) / sizes.astype(raw.dtype)
            found = tune(together, begin, search=LBFGS(), steps=steps, stop=stop, progress=False)
            hypers.append(together.spread(found.best))
            criteria.append(found.best_value)
        else:
            scale = unit_of(criteria) if unit is None else unit
            held = Towards(objective, scale * tau, between=0.0, groups=groups)
            found = tune(held, hypers[-1], search=LBFGS(), steps=steps, stop=stop, progress=False)
            hypers.append(found.best)
            criteria.append(float(objective.value(found.best, objective.init(found.best))[0].value))
        taken += len(found.history)
        told(len(hypers))
    return hypers, np.asarray(criteria), taken
