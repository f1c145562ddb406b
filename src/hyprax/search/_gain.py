"""Gains: what tuning bought on new data, beside a simple baseline. Neither certificate nor noise."""

import abc
import dataclasses
import math
from typing import Any, Literal

import numpy as np

from .. import _html as page
from ._student import quantile


class AbstractGain(abc.ABC):
    """A statement about new data: by how much the loss of the tuned model is below that of a baseline."""

    @property
    @abc.abstractmethod
    def established(self) -> bool:
        """Whether a gain is claimed."""

    @abc.abstractmethod
    def meaning(self) -> str:
        """What the gain speaks of, and with what right, in plain sentences."""

    def _repr_html_(self) -> str:
        return page.card("Gain on new data", gain_badge(self), page.paragraphs(self.meaning()))


def gain_badge(gain: AbstractGain) -> str:
    return page.badge("established" if gain.established else "not established")


@dataclasses.dataclass(frozen=True)
class Gain(AbstractGain):
    """A mean gain on held-out rows with its standard error; positive where the tuned model is better.

    - `value`, `standard_error`: in units of the loss.
    - `degrees_of_freedom`: of the standard error, for Student's t.
    - `of`: what was judged; `against`: the baseline; `rows`: how many held-out rows judged it.
    - `caution`: why the interval is approximate.
    """

    value: float
    standard_error: float
    degrees_of_freedom: float
    of: str
    against: str
    rows: int
    caution: str = "it rests on few means and on training rows that they share"

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval of Student's t, approximate: value ± t standard errors."""
        half = quantile(1 - confidence, self.degrees_of_freedom) * self.standard_error
        return self.value - half, self.value + half

    @property
    def established(self) -> bool:
        """Whether the 95 % interval lies wholly above zero."""
        return self.interval()[0] > 0

    def meaning(self) -> str:
        low, high = self.interval()
        verdict = (
            "A gain is established" if low > 0 else "A harm is established" if high < 0 else "No gain is established"
        )
        if self.value == 0 and self.standard_error == 0:
            return f"On {self.rows} held-out rows the losses of {self.of} and of {self.against} are the same."
        word = "higher" if self.value < 0 else "lower"
        return (
            f"On {self.rows} held-out rows the loss of {self.of} is {word} than that of {self.against} by "
            f"{abs(self.value):.3g} ± {self.standard_error:.2g} (standard error); 95 % interval of the gain {low:.3g} "
            f"to {high:.3g}. {verdict}. The interval is approximate: {self.caution}."
        )


@dataclasses.dataclass(frozen=True)
class Improvement(AbstractGain):
    """With probability at least 1 - `delta`, the expected loss is lower by at least `lower`: for one fitted model.

    - `lower`: the lower confidence limit of the mean gain; it may be negative, and then nothing is claimed.
    - `delta`: the probability with which the statement may fail; `method`: by which inequality.
    - `mean`, `rows`: the mean gain on the rows that nobody has touched, and their number (of groups, where given).
    - `clipped`: whether gains were clipped, which can only lower the limit.
    """

    lower: float
    delta: float
    method: str
    mean: float
    rows: int
    unit: str
    clipped: bool

    @property
    def established(self) -> bool:
        """Whether the limit is above zero."""
        return self.lower > 0

    def meaning(self) -> str:
        claim = (
            f"With probability at least {1 - self.delta:g}, the expected loss on new data is lower by at least "
            f"{self.lower:.3g}"
            if self.established
            else f"No improvement can be claimed with probability {1 - self.delta:g}: the limit is {self.lower:.3g}"
        )
        return (
            f"{claim} ({self.method}, {self.rows} {self.unit} that took no part in fitting or choosing; their mean "
            f"gain is {self.mean:.3g}). It speaks of the model fitted without these {self.unit}, not of a refit on all."
        )


def improvement(
    baseline: Any,
    candidate: Any,
    *,
    delta: float = 0.05,
    largest_harm: float,
    largest_gain: float | None = None,
    groups: Any = None,
    method: Literal["betting", "empirical Bernstein"] = "betting",
) -> Improvement:
    """The lower 1 - δ confidence limit of E[baseline loss - candidate loss], from rows that nobody has touched.

    Holds for any number of rows, without a normal approximation, for independent rows (or whole groups) of the same
    distribution as new data; not for rows in time order.

    **Arguments:**

    - `baseline`, `candidate`: the losses of both models on the same rows, `(n,)`.
    - `delta`: δ.
    - `largest_harm`: the most by which the candidate's loss can exceed the baseline's on any row: what the loss allows
        (1 for Brier scores and errors, -log ε for log-losses of probabilities floored at ε), not what was seen.
    - `largest_gain`: gains are clipped there, which only makes the limit more careful; default `largest_harm`.
    - `groups`: a label a row; rows of a group are averaged, and the limit is that of the mean over groups.
    - `method`: `"betting"` (tighter) or `"empirical Bernstein"`.

    **Raises:** `ValueError` for a harm beyond `largest_harm`: harms are never clipped: that makes claims false.

    Sources: Maurer and Pontil, COLT 2009 (arXiv 0907.3740); Waudby-Smith and Ramdas, JRSS B 86 (2024; arXiv
    2010.09686).
    """
    before, after = np.asarray(baseline, float), np.asarray(candidate, float)
    if before.shape != after.shape or before.ndim != 1 or before.size < 2:
        raise ValueError(
            f"improvement: baseline and candidate must be losses of the same 2 rows or more; got {before.shape} and "
            f"{after.shape}."
        )
    if not (0 < delta < 1 and 0 < largest_harm < math.inf):
        raise ValueError(
            f"improvement: delta must lie between 0 and 1, and largest_harm be a finite number > 0; got {delta} and "
            f"{largest_harm}."
        )
    top = largest_harm if largest_gain is None else largest_gain
    if not 0 < top < math.inf:
        raise ValueError(f"improvement: largest_gain must be a finite number > 0; got {largest_gain}.")
    gains = before - after
    if not np.all(np.isfinite(gains)) or gains.min() < -largest_harm * (1 + 1e-12):
        raise ValueError(
            f"improvement: no row may be harmed by more than largest_harm = {largest_harm:g}; got {-gains.min():g}. "
            "Harms are never clipped: bound the loss of both models (floor their probabilities), or say the bound that "
            "it has."
        )
    unit = "rows"
    if groups is not None:
        names, index = np.unique(np.asarray(groups), return_inverse=True)
        gains, unit = np.bincount(index, gains) / np.bincount(index), "groups"
        if len(names) < 2:
            raise ValueError("improvement: groups must be at least 2; got 1.")
    kept = np.minimum(gains, top)
    scaled, width = np.clip((kept + largest_harm) / (top + largest_harm), 0, 1), top + largest_harm
    limit = {"betting": _betting, "empirical Bernstein": _bernstein}[method](scaled, delta)
    return Improvement(
        lower=float(limit * width - largest_harm),
        delta=delta,
        method=method,
        mean=float(gains.mean()),
        rows=len(gains),
        unit=unit,
        clipped=bool(np.any(gains > top)),
    )


def rows_needed(gain: float, deviation: float, *, delta: float = 0.05, width: float) -> int:
    """How many untouched rows a claim needs: where Bernstein's slack falls below an expected gain.

    **Arguments:**

    - `gain`, `deviation`: the mean and the standard deviation of the gains expected on a row.
    - `delta`: δ.
    - `width`: `largest_harm + largest_gain`, the range of the gains.
    """
    if not gain > 0:
        raise ValueError(f"rows_needed: gain must be > 0; got {gain}.")
    log = math.log(2 / delta)
    rows = 2
    while math.sqrt(2 * deviation**2 * log / rows) + 7 * width * log / (3 * (rows - 1)) > gain:
        rows = math.ceil(1.05 * rows) + 1
    return rows


def _bernstein(x: np.ndarray, delta: float) -> float:
    """mean - √(2 V log(2/δ)/n) - 7 log(2/δ)/(3 (n - 1)), for x in [0, 1], V their sample variance."""
    n, log = len(x), math.log(2 / delta)
    return float(x.mean() - math.sqrt(2 * x.var(ddof=1) * log / n) - 7 * log / (3 * (n - 1)))


def _betting(x: np.ndarray, delta: float) -> float:
    """The least m at which no capital Π_s (1 + λ_s (x_s - m)), s <= t, reaches 1/δ, for x in [0, 1].

    λ_s = min(√(2 log(1/δ)/(n σ²_{s-1})), 1/(2m)), σ²_{s-1} the variance of what came before (with a prior of 1/4). Each
    factor falls with m, so the set is an interval, and its end is found by bisection, from below.
    """
    n = len(x)
    counts = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(x)) / (counts + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (counts + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    wanted = np.sqrt(2 * math.log(1 / delta) / (n * before))
    goal = math.log(1 / delta)

    def refuted(m: float) -> bool:
        bets = np.minimum(wanted, 0.5 / max(m, 1e-300))
        return bool(np.max(np.cumsum(np.log1p(bets * (x - m)))) >= goal)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
