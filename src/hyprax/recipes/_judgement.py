"""What refitted models are worth on rows that took no part in anything: losses, gains, and warnings in words."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._noise import Noise
from .._result import message_of, succeeded
from ..search import Gain
from ._diagnostics import area_under_curve, diagnosed
from ._hold_back import HeldBack
from ._job import Job

FEW = 100
"""Rows below which a mean over them says little."""


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
class Simple:
    """The best single penalty of the grid: its strength, whether it lies at an end, and the refit on all rows."""

    strength: float
    at_the_edge: bool
    refit: Any
    contestant: Contestant


@dataclasses.dataclass(frozen=True)
class Refitted:
    """A model fitted on all rows but those of the test part, and its losses on these, row by row.

    `score` as in `Contestant`; `area` under the ROC curve, NaN for what is not of two classes.
    """

    name: str
    losses: np.ndarray
    score: float
    area: float = float("nan")
    params: PyTree = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The models on the test rows: a constant, the single penalty, the tuned penalties.

    - `models`: in this order; each has a `name`, its `losses` on the test rows, row by row, its `score`, and the `area`
        under the ROC curve, NaN for what is not of two classes.
    - `gain`: of the last beside the one before, row by row, a [`hyprax.search.Gain`][].
    - `warnings`: what a reader should know before trusting it, in sentences.
    - `table`: the same as texts; `drawn`: what the report draws of their outputs.
    """

    models: tuple[Refitted, ...]
    gain: Gain
    warnings: tuple[str, ...]
    table: dict[str, Any]
    drawn: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)


def judged(job: Job, simple: Simple, best: PyTree, held: HeldBack | None) -> Judgement:
    """Refit, and compare on the test part."""
    assert job.splits is not None  # linear models alone are refitted
    assert job.refit is not None
    assert job.losses is not None
    assert job.constant is not None
    targets = job.splits.test[1]
    known = job.splits.fitted[1]
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(best))
    tuned = f"{count} tuned penalties" if count > 1 else "1 tuned penalty"
    refits = {f"the single penalty ({simple.strength:.2g})": simple.refit, tuned: job.refit(best)}
    outputs = {name: job.on_test_rows(refit.params) for name, refit in refits.items()}
    level = np.asarray(job.constant(known))
    constant = np.broadcast_to(level, (len(targets), *level.shape))
    constant = constant + job.splits.offsets[2] if job.splits.offsets else constant
    models = [Refitted("a constant", job.losses(constant, targets), score(job, constant))]
    for name, refit in refits.items():
        area = area_under_curve(outputs[name], targets) if len(job.splits.classes) == 2 else float("nan")
        losses = job.losses(outputs[name], targets)
        models.append(Refitted(name, losses, score(job, outputs[name]), area, refit.params))
    gain = gain_of(job, models[2], models[1], len(known))
    over_constant = gain_of(job, models[2], models[0], len(known))
    warnings = [
        *_of_rows(job, len(targets), len(known)),
        *_of_grid(job, simple),
        *_of_gain(gain, over_constant, held, refits[tuned].params, simple.refit.params),
        *_of_noise(job, simple, count),
        *(
            f"{name}: the refit fell short. {message_of(refit.result)}"
            for name, refit in refits.items()
            if not bool(succeeded(refit.result))
        ),
    ]
    return Judgement(tuple(models), gain, tuple(warnings), _table(job, models, len(known)), diagnosed(job, outputs))


def gain_of(job: Job, model: Refitted, against: Refitted, fitted: int) -> Gain:
    """The mean gain on the test rows, paired row by row; its standard error over rows, or groups of them."""
    gains = against.losses - model.losses
    rows = len(gains)
    error, freedom = spread(gains, None if job.splits is None else job.splits.clusters)
    return Gain(
        value=float(gains.mean()),
        standard_error=error,
        degrees_of_freedom=freedom,
        of=f"the model of {model.name} (fitted on {fitted} rows)",
        against=against.name,
        rows=rows,
        caution=_caution(job),
    )


def _caution(job: Job) -> str:
    assert job.splits is not None
    if job.splits.in_time:
        return "it is that of one fit, and rows that follow each other in time are taken for independent"
    over = "rows" if job.splits.clusters is None else "groups"
    return f"it is that of one fit on one split, over the {over} of its test part"


def spread(values: np.ndarray, clusters: np.ndarray | None) -> tuple[float, int]:
    """The standard error of a mean over rows, and its degrees of freedom; of clusters, whose rows may depend.

    With d_i the deviations from the mean of n rows in G clusters, se² = G/(G - 1) Σ_g (Σ_{i in g} d_i)²/n².
    """
    numbers = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums = np.bincount(numbers.reshape(-1), values - values.mean())
    count = len(sums)
    if count < 2:
        return float("inf"), 1
    return float(np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(values)), count - 1


def _of_rows(job: Job, test: int, known: int) -> list[str]:
    assert job.splits is not None
    found = []
    judging = known if job.problem is not None else len(job.splits.validation[1])
    if judging < FEW:
        found.append(f"Only {judging} rows judge the hyperparameters: what they prefer may be chance.")
    if test < FEW:
        found.append(f"Only {test} test rows judge the models: see the standard errors.")
    return found


def _of_grid(job: Job, simple: Simple) -> list[str]:
    grid = job.recipe.grid
    assert grid is not None
    if not simple.at_the_edge:
        return []
    return [
        f"The best single penalty, {simple.strength:.2g}, lies at the edge of the grid ({grid.lo:g} to {grid.hi:g}): "
        "widen baseline.lo or baseline.hi."
    ]


def _of_gain(gain: Gain, over_constant: Gain, held: HeldBack | None, tuned: PyTree, simple: PyTree) -> list[str]:
    found = []
    if np.array_equal(tuned, simple):
        why = "" if held is None else " Nested folds prefer it to penalties of their own."
        if held is not None and held.chosen is None:
            why = " The rows are too few for nested folds, which would tell whether penalties of their own are better."
        found.append(f"Nothing to gain: the tuned model is that of the single penalty.{why}")
    elif gain.interval()[1] < 0:
        found.append("Tuning did harm: the single penalty is better on the test rows. Use that.")
    elif not gain.established:
        found.append(
            f"The gain is not established: as far as {gain.rows} test rows can tell, the simple setting is as good."
        )
    if not over_constant.established:
        found.append(
            "No model of these columns is shown to be better than a constant (gain "
            f"{over_constant.value:.3g} ± {over_constant.standard_error:.2g})."
        )
    return found


def _of_noise(job: Job, simple: Simple, count: int) -> list[str]:
    """How many entries of the hypergradient at the single penalty are more than chance."""
    if count == 1 or job.problem is None:
        return []
    hyper = job.start_at(simple.strength)
    answer, _ = job.objective.value_and_grad(hyper, job.objective.init(hyper))
    if not isinstance(answer.noise, Noise):
        return []
    above, total, chance = answer.noise.above(answer.grad)
    said = f"At the single penalty {above} of {total} hypergradient entries are above noise, {chance:.1f} by chance"
    return [f"{said}: these rows do not tell the penalties apart." if above <= 2 * chance else f"{said}."]


def _table(job: Job, models: Sequence[Refitted], known: int) -> dict[str, Any]:
    assert job.splits is not None
    two = len(job.splits.classes) == 2
    rows = []
    for model in models:
        gain = gain_of(job, model, models[1], known)
        itself = model is models[1]
        rows.append(
            {
                "": model.name,
                "test loss": _plus_minus(model.losses, job.splits.clusters),
                score_name(job): _score_text(model.score),
                **({"test AUC": _score_text(model.area)} if two else {}),
                "gain over the single penalty": "–" if itself else f"{gain.value:.4f} ± {gain.standard_error:.4f}",
            }
        )
    title = f"On {len(models[0].losses)} test rows, each fitted on all {known} others (± one standard error)"
    if weights := job.splits.class_weights:
        named = ", ".join(f"{name} {x:.3g}" for name, x in zip(job.splits.classes[:5], weights, strict=False))
        title += f"; rows count by their class ({named}{', ...' * (len(weights) > 5)})"
    return {"title": title, "rows": rows}


def _score_text(score: float) -> str:
    return "–" if np.isnan(score) else f"{score:.4f}"


def _plus_minus(each: np.ndarray, clusters: np.ndarray | None) -> str:
    error, _ = spread(each, clusters)
    return f"{each.mean():.4f} ± {error:.4f}" if np.isfinite(error) else f"{each.mean():.4f}"


def score_name(job: Job) -> str:
    """What the score on the test part is called."""
    if job.predict is None:
        return "test score"
    if job.recipe.model.classifies:
        weighted = job.splits is not None and job.splits.class_weights
        return "weighted test accuracy" if weighted else "test accuracy"
    return "test D²" if job.recipe.model.kind == "poisson" else "test R²"


def score_of(job: Job, params: PyTree) -> float:
    """Accuracy on the test part, or R², or D² of counts; NaN where it is not defined."""
    return score(job, job.on_test_rows(params))


def score(job: Job, predicted: np.ndarray) -> float:
    """The same, of outputs on the test part."""
    from sklearn.metrics import accuracy_score, d2_tweedie_score, r2_score

    assert job.splits is not None
    targets = job.splits.test[1]
    if not np.all(np.isfinite(predicted)):
        return float("nan")
    if job.recipe.model.classifies:  # of one output the sign decides, of several the largest
        said = predicted > 0 if predicted.ndim == 1 else np.argmax(predicted, axis=1)
        return float(accuracy_score(targets, said, sample_weight=job.splits.weights_of(targets)))
    predicted = predicted.reshape(targets.shape)
    if len(targets) < 2 or np.ptp(targets) == 0:
        return float("nan")
    if job.recipe.model.kind == "poisson":
        means = np.exp(np.clip(predicted, -700, 700))
        exposure = np.exp(job.splits.offsets[2]) if job.splits.offsets else np.ones(len(targets))
        # Of rates that count by their exposure: the deviance of the counts, beside that of one rate for all.
        return float(d2_tweedie_score(targets / exposure, means / exposure, sample_weight=exposure, power=1))
    return float(r2_score(targets, predicted))
