"""One hyperparameter for many tasks: the global minimum of the mean dual, with what is known of its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from .._certificate import AbstractCertificate, Kind, show
from .._progress import counted
from ._bernstein import UNIT, Array
from ._bounds import round_up
from ._brackets import cell_ranges
from ._extrema import minimise_all
from ._pieces import BoundedDual, Extremum
from ._piecewise import PiecewiseFunction
from ._plot import plot_optimum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NODES = 200_000
_THINNEST = 1e-13
"""Intervals narrower than this part of the domain (or of α) are not halved again."""


@dataclass(frozen=True, eq=False)
class MeanDual:
    """`(1/n) sum_i f_i(α)` of duals that are not merged: only its bounds are known."""

    duals: tuple[BoundedDual, ...]
    """One a task, on one domain."""

    @property
    def domain(self) -> tuple[float, float]:
        """The range of α."""
        return self.duals[0].domain

    @property
    def certified(self) -> bool:
        """Whether the bounds of every dual are proved."""
        return all(getattr(f, "certified", True) for f in self.duals)

    def enclose(self, hyper: Any) -> tuple[Any, Any]:
        """`(lo, hi)` around the mean at α, of its shape, rounding included."""
        flat = np.ravel(np.asarray(hyper, dtype=np.float64))
        lo, hi = self._mean([_each(f, flat) for f in self.duals])
        return lo.reshape(np.shape(hyper))[()], hi.reshape(np.shape(hyper))[()]

    def bounds(self, a: float, b: float) -> tuple[float, float]:
        """`(lo, hi)` around the mean on [a, b], rounding included."""
        lo, hi = self.ranges_on(np.array([a]), np.array([b]))
        return float(lo[0]), float(hi[0])

    def ranges_on(self, left: Array, right: Array) -> tuple[Array, Array]:
        """`bounds` on many disjoint intervals, ascending."""
        return self._mean([_on_intervals(f, left, right) for f in self.duals])

    def __call__(self, hyper: Any) -> Float[Array, "..."]:
        """The middle of the enclosure, of the shape of α."""
        return np.asarray(0.5 * sum(self.enclose(hyper)))

    def _mean(self, pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
        # Summation of n numbers errs by less than n u times the sum of the sizes; the division by u more.
        both = np.array(pairs, dtype=np.float64)
        lost = (len(both) + 12) * UNIT * np.abs(both).mean(axis=0) * (1 + 1e-12)
        lo, hi = both.mean(axis=0)
        return lo - lost[0], hi + lost[1]


def _each(f: BoundedDual, hyper: Array) -> tuple[Array, Array]:
    if isinstance(f, PiecewiseFunction):
        return f.enclose(hyper)
    pairs = np.array([f.enclose(float(x)) for x in hyper], dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _on_intervals(f: BoundedDual, left: Array, right: Array) -> tuple[Array, Array]:
    if not isinstance(f, PiecewiseFunction):
        pairs = np.array([f.bounds(float(x), float(y)) for x, y in zip(left, right, strict=True)], dtype=np.float64)
        return pairs[:, 0], pairs[:, 1]
    ends = np.unique(np.concatenate([left, right]))
    lo, hi = cell_ranges([f.restrict(float(ends[0]), float(ends[-1]))], ends)
    cell = np.searchsorted(ends, left)
    return lo[0, cell], hi[0, cell]


class OptimalityCertificate(AbstractCertificate):
    """A bound of what the mean loss at the answer exceeds the least mean loss by, over the whole domain."""

    bound: Float[jax.Array, ""]
    kind: Kind = eqx.field(static=True)
    method: str = eqx.field(static=True)
    quantity: str = eqx.field(static=True, default="mean loss at hyper minus the least mean loss")

    def meaning(self) -> str:
        right = (
            "is proved, rounding included, to exceed"
            if self.kind == "certified"
            else "exceeds, by a good guess without proof,"
        )
        return (
            f"The mean loss at the answer {right} the least mean loss of any hyperparameter in the domain by at most "
            "the bound. It speaks of these tasks only, and says nothing of new ones."
        )

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.quantity} <= {show(self.bound)} ({self.method})>"


def end_words(names: Sequence[str], hypers: Sequence[float], domain: Sequence[tuple[float, float]]) -> str:
    """A sentence where the least loss lies at an end of the range that was looked at."""
    ends = [
        name
        for name, x, (a, b) in zip(names, hypers, domain, strict=True)
        if a < b and any(math.isclose(x, end, rel_tol=1e-9) for end in (a, b))  # logarithms round
    ]
    if not ends:
        return ""
    return f"The least loss is at an end of the range of {', '.join(ends)}: a wider one may hold a smaller."


@dataclass(frozen=True, eq=False)
class GlobalOptimum:
    r"""The answer of [`erm`][hyprax.tasks.erm]: `hyper` = α with `lower <= min mean f <= mean f(α) <= upper`."""

    hyper: float
    """The hyperparameter."""
    value: float
    """The mean loss there, as computed."""
    lower: float
    """Lower bound of the mean loss over the whole domain."""
    upper: float
    """Upper bound of the mean loss at `α`."""
    epsilon: float
    """The slack of `epsilon_set`, in units of the loss."""
    epsilon_set: Float[Array, "m 2"]
    """Disjoint intervals that hold every α whose mean loss is within `epsilon` of the least."""
    mean: PiecewiseFunction | MeanDual
    """The mean dual."""
    duals: tuple[BoundedDual, ...]
    """The duals, one a task."""
    names: tuple[str, ...]
    """Their names, in the same order."""
    task_optima: tuple[Extremum, ...]
    """The optimum of every task by itself; empty where a dual cannot be minimised alone."""
    set_aside: tuple[str, ...]
    """Names of the tasks that were left out, as their duals are known less well than asked."""
    loose: tuple[str, ...]
    """Names of the tasks that widen the certificate most: with a radius ten times that of the middle task or more,
    and a
    hundredth of the certificate or more. `set_aside` leaves them out."""
    certificate: AbstractCertificate
    """Bounds `mean f(α) - min mean f`."""

    @property
    def message(self) -> str:
        """A sentence where the answer lies at an end of the domain; else nothing."""
        return end_words(["the hyperparameter"], [self.hyper], [self.mean.domain])

    def regrets(self) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """`(lo, hi)` around `f_i(α) - min f_i`: what sharing the hyperparameter costs each task."""
        lo, hi = np.array([f.enclose(self.hyper) for f in self.duals], dtype=np.float64).reshape(-1, 2).T
        least = np.array([(e.lower, e.upper) for e in self.task_optima], dtype=np.float64).reshape(-1, 2)
        return np.maximum(lo - least[:, 1], 0.0), hi - least[:, 0]

    def shapes(self) -> dict[str, Int[Array, " n"]]:
        """Pieces, kinks, jumps, local maxima and oscillations of every task's dual, and its undecided intervals.

        From below: each of these kinks, jumps, maxima and oscillations is certain, and each undecided interval may
        hold more of them. Where a task has none, the counts are complete up to rounding.
        """
        functions = [f for f in self.duals if isinstance(f, PiecewiseFunction)]
        return {
            "pieces": np.array([f.n_pieces for f in functions], dtype=int),
            "kinks": np.array([f.kinks().size for f in functions], dtype=int),
            "jumps": np.array([len(f.jumps()) for f in functions], dtype=int),
            "local_maxima": np.array([f.local_maxima().size for f in functions], dtype=int),
            "oscillations": np.array([f.oscillations() for f in functions], dtype=int),
            "undecided": np.array([len(f.undecided()) for f in functions], dtype=int),
        }

    def plot(
        self, ax: "Axes | None" = None, *, xlabel: str = "hyperparameter", ylabel: str = "validation loss"
    ) -> "Axes":
        """All duals faint, their mean bold, the optimum with its epsilon-optimal set."""
        return plot_optimum(self, ax, xlabel, ylabel)

    def __repr__(self) -> str:
        parts = ", ".join(f"[{a:.6g}, {b:.6g}]" for a, b in self.epsilon_set[:3])
        more = f" and {len(self.epsilon_set) - 3} more" if len(self.epsilon_set) > 3 else ""
        return (
            f"<GlobalOptimum over {len(self.duals)} tasks: hyper = {self.hyper:.8g}, mean loss {self.value:.8g}; "
            f"within {self.epsilon:.3g} of it on {parts}{more}; {self.certificate!r}"
            + (f"; set aside: {_listed(self.set_aside)}" if self.set_aside else "")
            + (f"; widened most by {_listed(self.loose)}" if self.loose else "")
            + ">"
        )


def erm(
    duals: Sequence[BoundedDual],
    *,
    names: Sequence[str] | None = None,
    set_aside: float | None = None,
    method: Literal["auto", "sweep", "branch"] = "auto",
    gap: float = 1e-6,
    epsilon: float | None = None,
    progress: bool = True,
) -> GlobalOptimum:
    r"""Empirical risk minimisation over tasks: `α_hat = argmin_α (1/n) sum_i f_i(α)`, the global optimum.

    - `"sweep"` (for [`PiecewiseFunction`][hyprax.tasks.PiecewiseFunction]s): all breakpoints are merged, and every
      merged piece is minimised, in closed form up to degree 2, by subdivision above it: O(K log n) for K pieces in all.
      The error is that of rounding and of the duals' own radii.
    - `"branch"`: branch and bound on [a, b] with the mean of `f_i.bounds`, until the best value is within `gap` of the
      lower bound. It needs no merging, so it also takes duals that refine themselves when asked.

    **Arguments:**

    - `duals`: one a task, on one domain; losses, to be minimised. Tasks weigh the same.
    - `names`: of the tasks; by default their numbers, from 0.
    - `set_aside`: a radius in units of the loss: tasks whose dual is known less well than that anywhere are left out of
      the mean, and named in the answer. So one task with data that float64 cannot resolve does not spoil the
      certificate of all; the answer, and any guarantee, then speaks of tasks that can be resolved.
    - `method`: `"auto"` is the sweep where all duals are piecewise functions.
    - `gap`: for branch and bound, in units of the loss.
    - `epsilon`: the slack of the epsilon-optimal set, in units of the loss; by default a hundredth of the least mean
      loss.
    - `progress`: whether a long computation counts its tasks on a terminal.

    **Returns:** a [`GlobalOptimum`][hyprax.tasks.GlobalOptimum]. Its certificate bounds `mean f(α_hat) - min_α
    mean f(α)`: of kind `certified` if every dual's radius is proved, else `estimated`. It speaks of these tasks
    only; for tasks to come, see [`gap`][hyprax.tasks.gap].

    **Raises:** `ValueError` for no duals, different domains, or arguments out of range.
    """
    duals = tuple(duals)
    names = tuple(str(i) for i in range(len(duals))) if names is None else tuple(names)
    if not duals:
        raise ValueError("erm: duals must hold at least one dual function; got none.")
    if len(names) != len(duals):
        raise ValueError(f"erm: names must be one for each of {len(duals)} duals; got {len(names)}.")
    if method not in ("auto", "sweep", "branch"):
        raise ValueError(f"erm: method must be 'auto', 'sweep' or 'branch'; got {method!r}.")
    for name, value in (("gap", gap), ("epsilon", epsilon), ("set_aside", set_aside)):
        if value is not None and not (value > 0 or (value == 0 and name == "epsilon")):
            raise ValueError(f"erm: {name} must be positive; got {value!r}.")
    for name, f in zip(names, duals, strict=True):
        if not isinstance(f, BoundedDual):
            way_out = " Several hyperparameters are for `erm_box`." if hasattr(f, "hyper_names") else ""
            raise ValueError(
                f"erm: dual {name} must have `domain`, `enclose` and `bounds`; got a {type(f).__name__}.{way_out}"
            )
        if f.domain != duals[0].domain:
            raise ValueError(f"erm: all duals must have one domain; got {duals[0].domain} and, for {name}, {f.domain}.")
    radius = np.array([np.max(f.error()) if isinstance(f, PiecewiseFunction) else np.nan for f in duals])
    aside = np.zeros(len(duals), dtype=bool) if set_aside is None else radius > set_aside
    left_out = tuple(name for name, out in zip(names, aside, strict=True) if out)
    if aside.all():
        raise ValueError(
            f"erm: set_aside must leave at least one task; got {set_aside!r}, and the best known dual has a radius of "
            f"{np.min(radius):.3g}."
        )
    kept = np.flatnonzero(~aside)
    duals, names, radius = tuple(duals[i] for i in kept), tuple(names[i] for i in kept), radius[kept]
    functions = tuple(f for f in duals if isinstance(f, PiecewiseFunction))
    exact = len(functions) == len(duals)
    if method == "sweep" and not exact:
        raise ValueError("erm: method must be 'branch' where a dual is no PiecewiseFunction; got 'sweep'.")
    if method == "branch" or not exact:
        mean: PiecewiseFunction | MeanDual = MeanDual(duals)
        best, near, count, epsilon = _branch_and_bound(mean, gap, epsilon)
        how = f"branch and bound, {count} intervals"
    else:
        mean = PiecewiseFunction.mean(functions)
        best = _attained(mean, mean.minimise())
        epsilon = 0.01 * abs(best.value) if epsilon is None else epsilon
        # The least value is at most `upper`: every α within epsilon of it is at most epsilon above.
        near = mean.level_set(float(np.nextafter(best.upper + epsilon, np.inf)))
        how = f"sweep over {mean.n_pieces} merged pieces"
    optima = tuple(counted(minimise_all(functions), len(functions), "tasks minimised", progress)) if exact else ()
    bound = max(best.upper - best.lower, 0.0) * (1 + 4 * UNIT)
    kind: Kind = "certified" if mean.certified else "estimated"
    certificate = OptimalityCertificate(bound=round_up(bound), kind=kind, method=how)
    wide = (radius >= 10 * np.median(radius)) & (radius / len(duals) >= 0.01 * bound) if exact else ()
    loose = tuple(name for name, w in zip(names, wide, strict=True) if w) if exact and len(duals) > 1 else ()
    return GlobalOptimum(
        best.hyper, best.value, best.lower, best.upper, float(epsilon), near, mean, duals, names, optima, left_out,
        loose, certificate,
    )  # fmt: skip


def _attained(mean: PiecewiseFunction, best: Extremum) -> Extremum:
    """The minimum at a point that has it: one step of the floating-point grid to the left of a jump upwards."""
    left = float(np.nextafter(best.hyper, -np.inf))
    if float(mean.enclose(best.hyper)[1]) <= best.upper or left < mean.domain[0]:
        return best
    value, upper = float(mean(left)), float(mean.enclose(left)[1])
    return replace(best, hyper=left, value=value, upper=max(upper, best.lower))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _branch_and_bound(mean: MeanDual, gap: float, epsilon: float | None) -> tuple[Extremum, Array, int, float]:
    """The minimum to `gap`, then the epsilon-optimal set: all intervals that may matter are halved at once."""
    a, b = mean.domain
    log = a > 0 and b / a > 4
    left, right = np.array([a]), np.array([b])
    lo, hi = mean.ranges_on(left, right)
    ends = np.array([a, b])
    low, high = mean.enclose(ends)
    i = int(np.argmin(high))
    best, upper, value = float(ends[i]), float(high[i]), float(0.5 * (low[i] + high[i]))
    count, met, lower = 1, False, -np.inf
    while True:
        middle = np.sqrt(left) * np.sqrt(right) if log else 0.5 * (left + right)
        thin = right - left <= _THINNEST * np.maximum(np.maximum(left, -right), 0.0 if log else b - a)
        thin |= ~((left < middle) & (middle < right))
        open_ = ~thin & (lo < upper - gap)
        if not met and not (open_.any() and count < _NODES):
            met, lower = True, min(float(np.min(lo)), upper)
            epsilon = 0.01 * abs(value) if epsilon is None else epsilon
        if met:
            assert epsilon is not None
            open_ = ~thin & (lo <= upper + epsilon) & ~(hi <= upper + epsilon) & ~(hi - lo <= gap)
            if not open_.any() or count >= _NODES:
                break
        cut = middle[open_]
        low, high = mean.enclose(cut)
        i = int(np.argmin(high))
        if high[i] < upper:
            best, upper, value = float(cut[i]), float(high[i]), float(0.5 * (low[i] + high[i]))
        new_left, new_right = (np.stack(x, axis=1).ravel() for x in ((left[open_], cut), (cut, right[open_])))
        fresh = mean.ranges_on(new_left, new_right)
        count += 2 * cut.size
        parts = ((left, new_left), (right, new_right), (lo, fresh[0]), (hi, fresh[1]))
        left, right, lo, hi = (np.concatenate([old[~open_], new]) for old, new in parts)
        order = np.argsort(left)
        left, right, lo, hi = left[order], right[order], lo[order], hi[order]
    close = lo <= upper + epsilon
    x, y = left[close], right[close]
    apart = x[1:] > y[:-1]
    near = np.stack([x[np.append(True, apart)], y[np.append(apart, True)]], axis=1)
    return Extremum(best, value, min(lower, upper), upper), near, count, epsilon
