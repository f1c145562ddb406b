"""The honest number: a whole procedure judged on rows that it has not seen, beside a baseline refitted on the same."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, PyTree

from .. import _html as page
from .._executors import ordered_map
from .._keys import checked_key
from .._objective import described
from ._cross_validated import drawn_folds, given_folds
from ._gain import Gain, gain_badge


@dataclasses.dataclass(frozen=True)
class Honest:
    """What an outer cross-fit of a whole procedure found.

    - `gain`: the mean gain on held-out rows beside the baseline, a [`hyprax.search.Gain`][].
    - `loss`, `baseline_loss`: means over held-out rows.
    - `gains`: the mean gain of each outer part.
    - `overtuning`: by how much the held-out loss of the incumbent at the end exceeds the lowest of an earlier one, a
      number an outer part; `None` where the procedure reports no path.
    """

    gain: Gain
    loss: float
    baseline_loss: float
    gains: np.ndarray
    overtuning: np.ndarray | None

    def _repr_html_(self) -> str:
        facts = {"loss on held-out rows": f"{self.loss:.4g}", "loss of the baseline": f"{self.baseline_loss:.4g}"}
        facts["gain of each outer part"] = "  ".join(f"{gain:.3g}" for gain in self.gains)
        if self.overtuning is not None:
            facts["overtuning of each outer part"] = "  ".join(f"{x:.3g}" for x in self.overtuning)
        parts = page.table(list(facts.items())), page.paragraphs(self.gain.meaning())
        return page.card("Gain of a procedure on new data", gain_badge(self.gain), *parts)


def honest(
    procedure: Callable[[np.ndarray, np.ndarray], Any],
    baseline: Callable[[np.ndarray, np.ndarray], Any],
    rows: int,
    *,
    folds: Any = 5,
    key: Array | None = None,
    labels: Any = None,
    groups: Any = None,
    of: str = "the tuned procedure",
    against: str = "the baseline",
    executor: Executor | None = None,
    progress: bool = True,
) -> Honest:
    """Judge a whole tuning procedure by outer cross-fitting, paired against a baseline refitted on the same rows.

    For each outer part k both are fitted on everything else, every choice included, and judged on part k. With the mean
    gains D_k of K parts, the standard error is that of Nadeau and Bengio (2003), √((1/K + m/n_train) S²), m the
    held-out rows and S² the variance of D_k: parts share training rows, and the naive error under-covers. It speaks of
    the procedure on so many training rows, not of the model refitted on all.

    **Arguments:**

    - `procedure`, `baseline`: functions of two arrays of row numbers, training and held out, that fit on the first and
        return the losses of the second, one a row. A procedure may return a pair (losses, path), `path` the held-out
        loss of its incumbent over time, for `overtuning`.
    - `rows`: n.
    - `folds`: a number (rows are shuffled by `key`; `labels` stratify), pairs of index arrays, or an object with
        `split`: repeated folds give more parts.
    - `labels`, `groups`: for splitters.
    - `of`, `against`: what to call the two.
    - `executor`: any `concurrent.futures.Executor`, on which the outer parts are worked on side by side, to the same
        bits: processes that are spawned, loky, a Dask cluster's. `procedure` and `baseline` are then sent to it, so
        they are functions of a module (loky and Dask send others too). A part whose worker is killed is done again.
    - `progress`: a bar on standard error, after two seconds and on a terminal only.

    **Raises:** `ValueError` for fewer than two parts, or losses that are not one number a held-out row.

    Sources: Nadeau and Bengio, Machine Learning 52 (2003); overtuning: Schneider, Bischl and Feurer, arXiv 2506.19540
    (2025).
    """
    for name, function in (("procedure", procedure), ("baseline", baseline)):
        if not callable(function):
            raise ValueError(
                f"honest: {name} must be a function of training and held-out rows; got {described(function)}."
            )
    strata = None if labels is None else np.asarray(labels)
    if isinstance(folds, int) and not isinstance(folds, bool):
        if not 2 <= folds <= rows:
            raise ValueError(f"honest: folds must be between 2 and {rows}, the rows; got {folds}.")
        masks = drawn_folds(folds, rows, strata, checked_key("honest", key))
    else:
        masks = given_folds(folds, np.zeros(rows) if strata is None else strata, groups)
    if len(masks) < 2:
        raise ValueError("honest: folds must be at least 2; got 1.")
    gains, tuned, simple, worse = [], [], [], []
    pieces = [(np.flatnonzero(training), np.flatnonzero(held)) for training, held in masks]
    work = partial(_both, procedure, baseline)
    found = ordered_map("honest", work, pieces, label="outer folds", executor=executor, progress=progress)
    for losses, others, path in found:
        tuned.append(losses)
        simple.append(others)
        gains.append(float(np.mean(others - losses)))
        if path is not None:
            worse.append(float(path[-1] - path.min()))
    held = np.asarray([mask.sum() for _, mask in masks], float)
    fitted = np.asarray([mask.sum() for mask, _ in masks], float)
    parts = np.asarray(gains)
    spread = float(parts.var(ddof=1))
    error = np.sqrt((1 / len(parts) + float(np.mean(held / fitted))) * spread)
    loss, simple_loss = float(np.mean(np.concatenate(tuned))), float(np.mean(np.concatenate(simple)))
    gain = Gain(
        value=float(np.average(parts, weights=held)),
        standard_error=float(error),
        degrees_of_freedom=len(parts) - 1,
        of=f"{of} (the whole procedure, on {fitted.mean():.0f} rows; not the model refitted on all)",
        against=against,
        rows=int(held.sum()),
    )
    return Honest(gain, loss, simple_loss, parts, np.asarray(worse) if len(worse) == len(parts) else None)


def _both(procedure: Callable, baseline: Callable, rows: tuple[np.ndarray, np.ndarray]) -> Any:
    """Losses of the two on an outer part, and the path of the first."""
    fit, judge = rows
    losses, path = _losses("procedure", procedure(fit, judge), len(judge))
    return losses, _losses("baseline", baseline(fit, judge), len(judge))[0], path


def _losses(name: str, found: Any, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    found, path = found if isinstance(found, tuple) else (found, None)
    losses = np.asarray(found, float)
    if losses.shape != (count,):
        raise ValueError(
            f"honest: {name} must return the losses of the held-out rows, ({count},); got the shape {losses.shape}."
        )
    return losses, None if path is None else np.asarray(path, float)


def refit(objective: Any, hyper: PyTree) -> Any:
    """The fit on all rows at the hyperparameters found: what is used once tuning is over.

    With the prior kept: a strength means the same on a fold as on all rows; after a single split the data term of
    training and validation rows together stands beside the same penalty.

    **Arguments:**

    - `objective`: one with a method `refit(hyper)`: [`hyprax.search.CrossValidated`][] over a family,
        [`hyprax.ImplicitObjective`][] of a family with its own mean loss, [`hyprax.Optimum`][].
    - `hyper`: as `tune` found them.

    **Raises:** `ValueError` for an objective that does not know its rows.
    """
    method = getattr(objective, "refit", None)
    if method is None:
        raise ValueError(
            f"refit: objective must know all of its rows (hx.search.CrossValidated over hx.Optimum(family), or "
            f"hx.ImplicitObjective of a family); got {described(objective)}. Train on all rows with the "
            "hyperparameters found instead."
        )
    return method(hyper)
