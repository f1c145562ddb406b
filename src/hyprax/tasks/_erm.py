"""One hyperparameter for many tasks: the global minimum of the mean dual, with what is known of its error."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .._certificate import AbstractCertificate, Certificate
from ._bernstein import UNIT
from ._parallel import counted
from ._piecewise import Array, Extremum, PiecewiseFunction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NODES = 200_000
_THINNEST = 1e-13
"""Intervals narrower than this part of the domain (or of alpha) are not halved again."""


@runtime_checkable
class BoundedDual(Protocol):
    """What branch and bound asks of a dual function; a [`PiecewiseFunction`][hyprax.tasks.PiecewiseFunction] has it."""

    @property
    def domain(self) -> tuple[float, float]:
        """The range of alpha."""
        ...

    def enclose(self, alpha: Any) -> tuple[Any, Any]:
        """`(lo, hi)` around the value at alpha."""
        ...

    def bounds(self, a: float, b: float) -> tuple[float, float]:
        """`(lo, hi)` around all values on [a, b], one-sided limits at jumps included."""
        ...


@dataclass(frozen=True, eq=False)
class MeanDual:
    """`(1/n) sum_i f_i(alpha)` of duals that are not merged: only its bounds are known."""

    duals: tuple[BoundedDual, ...]

    @property
    def domain(self) -> tuple[float, float]:
        """The range of alpha."""
        return self.duals[0].domain

    @property
    def certified(self) -> bool:
        """Whether the bounds of every dual are proved."""
        return all(getattr(f, "certified", True) for f in self.duals)

    def enclose(self, alpha: float) -> tuple[float, float]:
        """`(lo, hi)` around the mean at alpha, rounding included."""
        return self._mean([f.enclose(alpha) for f in self.duals])

    def bounds(self, a: float, b: float) -> tuple[float, float]:
        """`(lo, hi)` around the mean on [a, b], rounding included."""
        return self._mean([f.bounds(a, b) for f in self.duals])

    def __call__(self, alpha: Any) -> Float[Array, "..."]:
        """The middle of the enclosure, of the shape of alpha."""
        flat = [0.5 * sum(self.enclose(float(x))) for x in np.ravel(alpha)]
        return np.reshape(np.array(flat), np.shape(alpha))

    def _mean(self, pairs: list[tuple[Any, Any]]) -> tuple[float, float]:
        # Pairwise summation errs by less than (log2 n + 8) u times the sum of the sizes; the division by u more.
        both = np.array(pairs, dtype=np.float64)
        n = len(both)
        lost = (np.log2(n) + 12) * UNIT * np.abs(both).mean(axis=0) * (1 + 1e-12)
        lo, hi = both.mean(axis=0)
        return float(lo - lost[0]), float(hi + lost[1])


@dataclass(frozen=True, eq=False)
class GlobalOptimum:
    r"""The answer of [`tune`][hyprax.tasks.tune]: `alpha` with `lower <= min mean f <= mean f(alpha) <= upper`."""

    alpha: float
    """The hyperparameter; where the mean jumps, the limit of the lower side is meant."""
    value: float
    """The mean loss there, as computed."""
    lower: float
    """Lower bound of the mean loss over the whole domain."""
    upper: float
    """Upper bound of the mean loss at `alpha`."""
    epsilon: float
    """The slack of `epsilon_set`, in units of the loss."""
    epsilon_set: Float[Array, "m 2"]
    """Disjoint intervals that hold every alpha whose mean loss is within `epsilon` of the least."""
    mean: PiecewiseFunction | MeanDual
    """The mean dual."""
    duals: tuple[BoundedDual, ...]
    """The duals, one a task."""
    task_optima: tuple[Extremum, ...]
    """The optimum of every task by itself; empty where a dual cannot be minimised alone."""
    certificate: AbstractCertificate
    """Bounds `mean f(alpha) - min mean f`."""

    def regrets(self) -> Float[Array, " n"]:
        """`f_i(alpha) - min f_i`: what sharing the hyperparameter costs each task (in the middle of enclosures)."""
        at = np.array([0.5 * (lo + hi) for lo, hi in (f.enclose(self.alpha) for f in self.duals)], dtype=np.float64)
        return at - np.array([e.value for e in self.task_optima])

    def shapes(self) -> dict[str, Int[Array, " n"]]:
        """Numbers of pieces, kinks, jumps, local maxima and oscillations of every task's dual."""
        functions = [f for f in self.duals if isinstance(f, PiecewiseFunction)]
        return {
            "pieces": np.array([f.n_pieces for f in functions]),
            "kinks": np.array([f.kinks().size for f in functions]),
            "jumps": np.array([f.jumps().size for f in functions]),
            "local_maxima": np.array([f.local_maxima().size for f in functions]),
            "oscillations": np.array([f.oscillations() for f in functions]),
        }

    def plot(
        self, ax: "Axes | None" = None, *, xlabel: str = "hyperparameter", ylabel: str = "validation loss"
    ) -> "Axes":
        """All duals faint, their mean bold, the optimum with its epsilon-optimal set."""
        from ._plot import plot_optimum

        return plot_optimum(self, ax, xlabel, ylabel)

    def __repr__(self) -> str:
        parts = ", ".join(f"[{a:.6g}, {b:.6g}]" for a, b in self.epsilon_set[:3])
        more = f" and {len(self.epsilon_set) - 3} more" if len(self.epsilon_set) > 3 else ""
        return (
            f"<GlobalOptimum over {len(self.duals)} tasks: alpha = {self.alpha:.8g}, mean loss {self.value:.8g}; "
            f"within {self.epsilon:.3g} of it on {parts}{more}; {self.certificate!r}>"
        )


def tune(
    duals: Sequence[BoundedDual],
    *,
    method: Literal["auto", "sweep", "branch"] = "auto",
    gap: float = 1e-6,
    epsilon: float | None = None,
    progress: bool = True,
) -> GlobalOptimum:
    r"""`alpha_hat = argmin_alpha (1/n) sum_i f_i(alpha)` over the whole domain: the global optimum, not a local one.

    - `"sweep"` (for [`PiecewiseFunction`][hyprax.tasks.PiecewiseFunction]s): all breakpoints are merged, and every
      merged piece is minimised, in closed form up to degree 2, by subdivision above it: O(K log n) for K pieces in all.
      The error is that of rounding and of the duals' own radii.
    - `"branch"`: best-first branch and bound on [a, b] with the mean of `f_i.bounds`, until the best value is within
      `gap` of the lower bound. It needs no merging, so it also takes duals that refine themselves when asked.

    **Arguments:**

    - `duals`: one a task, on one domain; losses, to be minimised. Tasks weigh the same.
    - `method`: `"auto"` is the sweep where all duals are piecewise functions.
    - `gap`: for branch and bound, in units of the loss.
    - `epsilon`: the slack of the epsilon-optimal set, in units of the loss; by default a hundredth of the least mean
      loss.
    - `progress`: whether a long computation counts its tasks on a terminal.

    **Returns:** a [`GlobalOptimum`][hyprax.tasks.GlobalOptimum]. Its certificate bounds `mean f(alpha_hat) - min_alpha
    mean f(alpha)`: of kind `certified` if every dual's radius is proved, else `estimated`. It speaks of these tasks
    only; for tasks to come, see [`gap`][hyprax.tasks.gap].

    **Raises:** `ValueError` for no duals, different domains, or arguments out of range.
    """
    duals = tuple(duals)
    if not duals:
        raise ValueError("tune needs at least one dual function; got none.")
    if method not in ("auto", "sweep", "branch"):
        raise ValueError(f"method must be 'auto', 'sweep' or 'branch'; got {method!r}.")
    if not gap > 0:
        raise ValueError(f"gap must be positive; got {gap!r}.")
    if epsilon is not None and not epsilon >= 0:
        raise ValueError(f"epsilon must be >= 0; got {epsilon!r}.")
    for i, f in enumerate(duals):
        if not isinstance(f, BoundedDual):
            raise ValueError(f"dual {i} is a {type(f).__name__}; a dual needs `domain`, `enclose` and `bounds`.")
        if f.domain != duals[0].domain:
            raise ValueError(f"all duals must have one domain; dual 0 has {duals[0].domain}, dual {i} has {f.domain}.")
    functions = tuple(f for f in duals if isinstance(f, PiecewiseFunction))
    exact = len(functions) == len(duals)
    if method == "sweep" and not exact:
        raise ValueError("method='sweep' needs every dual to be a PiecewiseFunction; use method='branch'.")
    if method == "branch" or not exact:
        mean: PiecewiseFunction | MeanDual = MeanDual(duals)
        best, pieces, epsilon = _branch_and_bound(mean, gap, epsilon)
        how = f"best-first branch and bound, {pieces[1]} intervals"
        near = pieces[0]
    else:
        mean = PiecewiseFunction.mean(functions)
        best = mean.minimise()
        epsilon = 0.01 * abs(best.value) if epsilon is None else epsilon
        # The least value is at most `upper`: every alpha within epsilon of it is at most epsilon above.
        near = mean.level_set(float(np.nextafter(best.upper + epsilon, np.inf)))
        how = f"exact sweep over {mean.n_pieces} merged pieces"
    optima = (
        tuple(f.minimise() for f in counted(functions, len(functions), "tasks minimised", progress)) if exact else ()
    )
    bound = _round_up(max(best.upper - best.lower, 0.0) * (1 + 4 * UNIT))
    certificate = Certificate(
        bound, "certified" if mean.certified else "estimated", "mean loss at alpha minus the least mean loss", how
    )
    return GlobalOptimum(
        best.alpha, best.value, best.lower, best.upper, float(epsilon), near, mean, duals, optima, certificate
    )


def _round_up(x: float) -> Any:
    """x as a JAX number that is not below it, whatever the precision in use."""
    y = jnp.asarray(x)
    return y if float(y) >= x else jnp.nextafter(y, jnp.full_like(y, jnp.inf))


def _branch_and_bound(mean: MeanDual, gap: float, epsilon: float | None) -> tuple[Extremum, tuple[Array, int], float]:
    """The minimum to `gap`, then the epsilon-optimal set: intervals of a heap, by their lower bounds."""
    a, b = mean.domain
    log = a > 0 and b / a > 4
    best, upper, value = a, np.inf, np.inf
    for alpha in (a, b):
        lo, hi = mean.enclose(alpha)
        if hi < upper:
            best, upper, value = alpha, hi, 0.5 * (lo + hi)
    lo, hi = mean.bounds(a, b)
    heap, settled, count = [(lo, hi, a, b)], [], 1
    lower = -np.inf
    while heap and count < _NODES:
        lo, hi, left, right = heap[0]
        if (
            lower == -np.inf and upper - lo <= gap
        ):  # the gap is met; from here on only the epsilon-optimal set is refined
            lower = lo
            epsilon = 0.01 * abs(value) if epsilon is None else epsilon
        if lower > -np.inf and (epsilon is None or lo > upper + epsilon):
            break
        heapq.heappop(heap)
        middle = float(np.sqrt(left * right)) if log else 0.5 * (left + right)
        thin = right - left <= _THINNEST * max(abs(left), abs(right), b - a if not log else 0.0)
        inside = lower > -np.inf and (hi <= upper + (epsilon or 0.0) or hi - lo <= gap)
        if inside or thin or not left < middle < right:
            settled.append((lo, hi, left, right))
            continue
        low, high = mean.enclose(middle)
        if high < upper:
            best, upper, value = middle, high, 0.5 * (low + high)
        for x, y in ((left, middle), (middle, right)):
            lo, hi = mean.bounds(x, y)
            heapq.heappush(heap, (lo, hi, x, y))
        count += 2
    nodes = settled + heap
    if lower == -np.inf:  # stopped by the number of intervals or by their width before the gap was met
        lower = min(node[0] for node in nodes)
        epsilon = 0.01 * abs(value) if epsilon is None else epsilon
    assert epsilon is not None
    near = sorted((x, y) for lo, _, x, y in nodes if lo <= upper + epsilon)
    merged: list[list[float]] = []
    for x, y in near:
        if merged and x <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], y)
        else:
            merged.append([x, y])
    return Extremum(best, value, min(lower, upper), upper), (np.array(merged), count), epsilon
