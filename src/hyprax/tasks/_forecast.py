"""How many tasks it will take: a forecast from those at hand, beside what holds before any task is seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _html as page
from ._bernstein import Array
from ._bounds import check_sample, hoeffding_bound
from ._brackets import cell_ranges, same_domain
from ._complexity import Structure
from ._guarantees import SHARES, check_losses, tasks_needed
from ._piecewise import PiecewiseFunction
from ._random import generator
from ._split import Ground, choosing_of, fine_cells, intervals, plan

_CELLS = 32
_PLANNERS = 100
"""Tasks that a forecast is computed from, at most; a resampling draws as many."""
_MOST = 10_000_000
"""Numbers of tasks that are looked at, at most."""


@dataclass(frozen=True)
class Forecast:
    """How many tasks make the excess of [`gap`][hyprax.tasks.gap] at most `epsilon`, by the tasks at hand."""

    n: int
    """The tasks at hand."""
    needed: float
    """The forecast: tasks in all; infinite where ten million would not do."""
    low: float
    """The tenth percentile of forecasts from resampled tasks."""
    high: float
    """The ninetieth."""
    epsilon: float
    """The excess asked for."""
    delta: float
    """The probability with which it may be missed."""
    worst_case: float | None
    """The number that holds whatever the distribution is, before any task is seen, by the structure that was given."""
    reference: int
    """Tasks that one hyperparameter, fixed beforehand, needs (Hoeffding)."""

    @property
    def more(self) -> float:
        """Tasks to add to those at hand."""
        return max(0.0, self.needed - self.n)

    def meaning(self) -> str:
        """What the number says, and what it does not, in plain words."""
        more = "no more tasks" if self.more == 0 else f"about {_count(self.more)} more tasks"
        worst = "" if self.worst_case is None else f" The worst case needs {_count(self.worst_case)} in all."
        return (
            f"With {self.n} tasks at hand, {more} should bring the excess proved by `gap` to {self.epsilon:g} (with "
            f"probability {1 - self.delta:g}): {_count(self.needed)} in all, {_count(self.low)} to {_count(self.high)} "
            "by resampling these tasks. It is a forecast and proves nothing: it takes tasks to come for tasks like "
            f"these, and can be no wiser than they are.{worst} One hyperparameter fixed beforehand, with nothing "
            f"tuned, needs {self.reference}."
        )

    def __repr__(self) -> str:
        worst = "" if self.worst_case is None else f"; worst case {_count(self.worst_case)}"
        return (
            f"<Forecast: excess <= {self.epsilon:g} by about {_count(self.needed)} tasks ({_count(self.low)} to "
            f"{_count(self.high)}), {self.n} at hand{worst}; no proof>"
        )

    def _repr_html_(self) -> str:
        facts = {"excess at most": f"{self.epsilon:g}", "tasks in all": _count(self.needed)}
        facts |= {"by resampling": f"{_count(self.low)} to {_count(self.high)}", "at hand": str(self.n)}
        if self.worst_case is not None:
            facts["in the worst case"] = _count(self.worst_case)
        parts = page.table(list(facts.items())), page.paragraphs(self.meaning())
        return page.card("Forecast", page.badge("none"), *parts)


def forecast(
    duals: Sequence[PiecewiseFunction],
    epsilon: float,
    delta: float = 0.05,
    *,
    range: float = 1.0,
    structure: Structure | Sequence[Structure] | None = None,
    key: Any,
    draws: int = 10,
) -> Forecast:
    r"""How many tasks, like those at hand, make the excess that [`gap`][hyprax.tasks.gap] proves at most `epsilon`.

    The split bound at m tasks is the smallest tau at which cells C_j of the domain have
    `sum_j exp(-max_λ sum_i log(1 + λ (tau - D_j(x_i)))) <= delta`, D_j what the interval around the optimum may lose on
    C_j. The sum over the tasks to come is m times the mean over those at hand: that gives tau(m), a forecast of the
    bound without drawing anything, and `needed` is where it meets epsilon. `low` and `high` are what the same gives
    for resampled tasks (bootstrap).

    **Arguments:**

    - `duals`: of the tasks at hand, losses in [0, `range`].
    - `epsilon`: the excess asked for, in units of the loss; in (0, `range`).
    - `delta`: the probability with which it may be missed.
    - `structure`: what is known of the duals before a task is seen, for the number of the worst case beside it.
    - `key`: a JAX random key, for the resampling.
    - `draws`: resamplings.

    **Returns:** a [`Forecast`][hyprax.tasks.Forecast]: a guess, to plan by. The guarantee is `gap`'s, once the tasks
    are there; the number of tasks must not be decided by looking at it.

    **Raises:** `ValueError` for fewer than eight tasks, or numbers out of range.
    """
    n = len(same_domain(duals))
    check_sample(n, delta, least=8)
    check_losses(duals, n, range)
    if not 0 < epsilon < range:
        raise ValueError(f"forecast: epsilon must lie between 0 and {range:g}, the range of the loss; got {epsilon!r}.")
    if draws < 2:
        raise ValueError(f"forecast: draws must be at least 2; got {draws!r}.")
    random = generator("forecast", key)
    some = random.permutation(n)[:_PLANNERS]
    known = [duals[i] for i in some]
    samples = [np.arange(len(some)), *(random.integers(len(some), size=len(some)) for _ in np.arange(draws))]
    sizes, bounds = np.zeros(0), np.zeros((0, len(samples)))
    m = float(max(8, n // 8))
    while m <= _MOST and not (len(bounds) and np.all(bounds[-1] <= epsilon)):
        sizes = np.append(sizes, m)
        bounds = np.vstack([bounds, _bounds(known, samples, round(m), delta * SHARES["split"], range)])
        m *= 2
    found = [_crossing(sizes, column, epsilon) for column in bounds.T]
    worst = None if structure is None else float(tasks_needed(structure, epsilon, delta).n)
    low, high = np.quantile(found[1:], [0.1, 0.9], method="nearest")
    reference = math.ceil(hoeffding_bound(1, delta, range) ** 2 / epsilon**2)
    return Forecast(n, found[0], float(low), float(high), float(epsilon), delta, worst, reference)


def _bounds(known: Sequence[PiecewiseFunction], samples: Sequence[Array], m: int, delta: float, width: float) -> Array:
    """The forecast of the bound at m tasks, by each sample of those known."""
    count = choosing_of(m, 0.15)
    edges = fine_cells(known, count, _CELLS)
    lo, hi = cell_ranges(known, edges)
    return np.array([_bound(edges, lo[sample], hi[sample], m, count, delta, width) for sample in samples])


def _bound(edges: Array, lo: Array, hi: Array, m: int, count: int, delta: float, width: float) -> float:
    cuts, shares = intervals(lo, hi, width / m, count)
    best = int(np.argmin(np.mean(lo + hi, axis=0)))
    i = int(np.searchsorted(cuts, best, side="right")) - 1
    certifying = np.zeros(m - count, dtype=int)  # only their number counts
    ground = Ground(
        edges, lo, hi, np.arange(len(lo)), certifying, int(cuts[i]), int(cuts[i + 1]), delta * float(shares[i])
    )
    return plan(ground, width)[-1]


def _crossing(sizes: Array, bounds: Array, epsilon: float) -> float:
    """Where the bound meets epsilon, by a straight line between the logarithms; infinite where it does not."""
    below = np.flatnonzero(bounds <= epsilon)
    if not below.size:
        return math.inf
    k = int(below[0])
    if k == 0:
        return float(sizes[0])
    (a, b), (x, y) = np.log(bounds[k - 1 : k + 1]), np.log(sizes[k - 1 : k + 1])
    return float(math.ceil(math.exp(x + (y - x) * (a - math.log(epsilon)) / (a - b))))


def _count(tasks: float) -> str:
    return f"more than {_MOST}" if math.isinf(tasks) else f"{tasks:.0f}"
