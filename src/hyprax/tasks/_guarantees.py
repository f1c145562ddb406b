"""`gap` and `tasks_needed`: the smallest applicable guarantee, with its name and its assumptions in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from .. import _html as page
from .._certificate import Kind
from ._bernstein import Array
from ._bounds import Target, check_sample, crossing_bound, hoeffding_bound, lipschitz_bound
from ._box_dual import BoxDual, together
from ._boxes import points
from ._brackets import same_domain
from ._complexity import Structure, as_structures
from ._erm_box import erm_box
from ._piecewise import PiecewiseFunction
from ._split import Means, SplitCertificate, split_excess_bound, split_risk_bound
from ._split_boxes import BoxGround, check_boxes

SHARES = {"structure": 0.05, "split, empirical Bernstein": 0.05, "split": 0.9}
"""Parts of delta for the kinds of bound, fixed before any task is seen: most of it to the one that usually wins."""
_IID = (
    "the tasks are independent draws from one distribution, the one that later tasks come from; folds, resamples or "
    "subsets of one data set are not independent tasks"
)
_MEANINGS = {
    "excess": "expected loss at the tuned hyperparameter, less the smallest of any hyperparameter",
    "deviation": "expected loss at the tuned hyperparameter, less its mean loss on the tasks at hand",
}


@dataclass(frozen=True)
class Guarantee:
    """`target <= value` with probability at least 1 - delta over the draw of n tasks."""

    value: float
    """The smallest applicable bound, in units of the loss."""
    name: str
    """Which bound that is."""
    target: Target
    """`"excess"` or `"deviation"`."""
    n: int
    """Number of tasks."""
    delta: float
    """The probability with which it may fail."""
    range: float
    """H: a bound of H or more says nothing."""
    assumptions: tuple[str, ...]
    """What it rests on, in words."""
    reference: float
    """`H sqrt(ln(2/delta) / 2n)`: Hoeffding for one α fixed beforehand, with nothing tuned."""
    candidates: Mapping[str, float]
    """Every bound that was tried, each at its own part of delta."""
    hyper: float | Float[Array, " p"] | None = None
    """The α that it speaks of, if dual functions were given; several hyperparameters as an array."""
    hypers: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    """The interval that the bound covers at once, if it is a split bound; of several hyperparameters a box."""
    notes: tuple[str, ...] = field(default=())
    """Bounds that could not be tried, and why."""
    kind: Kind = "certified"
    """`"certified"` under the assumptions; `"estimated"` where the dual functions themselves are not certified."""

    @property
    def vacuous(self) -> bool:
        """Whether the bound is no smaller than the range of the loss."""
        return self.value >= self.range

    def __str__(self) -> str:
        lines = [
            f"{self.target} <= {self.value:.4g} with probability {1 - self.delta:g} over {self.n} tasks ({self.name}"
            + (")" if self.kind == "certified" else "; estimated, as the dual functions are not certified)")
            + (": vacuous, the loss itself is at most that" if self.vacuous else ""),
            f"  {self.target}: {_MEANINGS[self.target]}",
        ]
        if self.hyper is not None:
            lines.append(f"  at the hyperparameter {_shown(self.hyper)}")
        if self.hypers is not None:
            lines.append(f"  and for every one in {_box(self.hypers)} at once")
        lines += [f"  assumed: {words}" for words in self.assumptions]
        lines += [f"  tried: {name}: {value:.4g}" for name, value in self.candidates.items()]
        lines += [f"  not tried: {note}" for note in self.notes]
        lines.append(f"  for reference, one hyperparameter fixed beforehand (Hoeffding): {self.reference:.4g}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        facts = {f"{self.target} at most": f"{self.value:.4g}", "with probability": f"{1 - self.delta:g}"}
        facts |= {"over the draw of": f"{self.n} tasks", "by": self.name, "range of the loss": f"{self.range:.4g}"}
        if self.hyper is not None:
            facts["at the hyperparameter"] = _shown(self.hyper)
        if self.hypers is not None:
            facts["for every one in"] = _box(self.hypers)
        badges = page.badge(self.kind) + (page.badge("vacuous") if self.vacuous else "")
        tried = {name: f"{value:.4g}" for name, value in self.candidates.items()}
        tried |= {"one hyperparameter, fixed beforehand (Hoeffding)": f"{self.reference:.4g}"}
        return _card("Guarantee", badges, facts, self.target, self.assumptions, tried, self.notes)


def _shown(hyper: Any) -> str:
    return ", ".join(f"{x:.6g}" for x in np.atleast_1d(hyper))


def _box(ends: Any) -> str:
    return " x ".join(f"[{a:.6g}, {b:.6g}]" for a, b in np.reshape(ends, (-1, 2)))


@dataclass(frozen=True)
class SampleSize:
    """The smallest number of tasks for which the guarantee is at most `epsilon`."""

    n: int
    """The number."""
    name: str
    """The bound that needs the fewest tasks."""
    target: Target
    """`"excess"` or `"deviation"`."""
    epsilon: float
    """The gap asked for."""
    delta: float
    """The probability with which it may be missed."""
    assumptions: tuple[str, ...]
    """What it rests on, in words."""
    reference: int
    """`ceil(H^2 ln(2/delta) / (2 epsilon^2))`: tasks that one α, fixed beforehand, needs (Hoeffding)."""
    candidates: Mapping[str, int]
    """The number by every bound that was tried."""

    def __str__(self) -> str:
        lines = [
            f"{self.n} tasks make {self.target} <= {self.epsilon:g} with probability {1 - self.delta:g} ({self.name})",
            f"  {self.target}: {_MEANINGS[self.target]}",
        ]
        lines += [f"  assumed: {words}" for words in self.assumptions]
        lines += [f"  tried: {name}: {value} tasks" for name, value in self.candidates.items()]
        lines.append(f"  for reference, one hyperparameter fixed beforehand (Hoeffding): {self.reference} tasks")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        facts = {"tasks": f"{self.n}", f"for {self.target} at most": f"{self.epsilon:g}"}
        facts |= {"with probability": f"{1 - self.delta:g}", "by": self.name}
        tried = {name: f"{value} tasks" for name, value in self.candidates.items()}
        tried |= {"one hyperparameter, fixed beforehand (Hoeffding)": f"{self.reference} tasks"}
        return _card("Number of tasks", "", facts, self.target, self.assumptions, tried, ())


def _card(
    title: str,
    badges: str,
    facts: Mapping[str, str],
    target: Target,
    assumptions: Sequence[str],
    tried: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    said = (f"{target.capitalize()}: {_MEANINGS[target]}.", *(f"Assumed: {words}." for words in assumptions))
    inside = page.table(list(tried.items())) + page.paragraphs(*(f"Not tried: {note}." for note in notes))
    return page.card(
        title, badges, page.table(list(facts.items())), page.paragraphs(*said), page.folded("tried", inside)
    )


def _structural(
    structures: Sequence[Structure], target: Target
) -> dict[str, tuple[Structure, Callable[[int, float], float]]]:
    """The bounds that hold by the structures alone, by name: functions of n and delta."""
    bounds: dict[str, tuple[Structure, Callable[[int, float], float]]] = {}
    for s in structures:
        if math.isfinite(s.log_labellings(1)):
            bounds[f"crossings ({s.name})"] = s, lambda n, delta, s=s: crossing_bound(s, n, delta, target)
        if math.isfinite(s.variation):
            bounds[f"net ({s.name})"] = s, lambda n, delta, s=s: lipschitz_bound(s, n, delta, target)
    return bounds


def tasks_needed(
    structure: Structure | Sequence[Structure],
    epsilon: float,
    delta: float,
    *,
    target: Target = "excess",
    accuracy: float = 0.0,
) -> SampleSize:
    """`min {n : bound(n, delta) <= epsilon}`, the smallest over the bounds that the structure allows, by bisection.

    All of them fall as n grows and are known before any task is drawn, so taking the smallest costs no union bound.

    **Arguments:**

    - `structure`: what is known of the dual functions; several structures if all of them hold.
    - `epsilon`: the gap asked for, in units of the loss; in (0, H).
    - `delta`: the probability with which it may be missed.
    - `target`: `"excess"` (over the best α) or `"deviation"` (of the expected loss from the mean).
    - `accuracy`: xi, how far the computed losses may be from the true ones: adds 2 xi to an excess, xi to a deviation.

    **Returns:** a [`SampleSize`][hyprax.tasks.SampleSize], with the number that Hoeffding gives for one α beside
    it.

    **Raises:** `ValueError` where epsilon is not above what `accuracy` costs, or where no bound applies.
    """
    structures = as_structures(structure)
    check_sample(1, delta)
    width = structures[0].range
    left = epsilon - _accuracy_cost(accuracy, target)
    if not (left > 0 and epsilon < width):
        raise ValueError(
            f"epsilon must be above {epsilon - left:g}, what the accuracy of the losses costs, and below {width:g}, "
            f"the range of the loss, which no gap exceeds anyway; got {epsilon!r}."
        )
    bounds = _structural(structures, target)
    if not bounds:
        raise ValueError(
            "tasks_needed: structure must say more than the range of the loss; got no more, and then there is no bound "
            "before tasks are seen. Give one that "
            "counts pieces, kinks or oscillations or has a Lipschitz constant, or use `gap` with dual functions."
        )
    candidates = {name: _smallest(lambda n, f=f: f(n, delta) <= left) for name, (_, f) in bounds.items()}
    best = min(candidates, key=lambda name: candidates[name])
    reference = math.ceil(width**2 * math.log(2 / delta) / (2 * left**2))
    assumptions = (_IID, f"losses in [0, {width:g}]", bounds[best][0].assumption)
    return SampleSize(candidates[best], best, target, epsilon, delta, assumptions, reference, candidates)


def _smallest(enough: Callable[[int], bool]) -> int:
    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def gap(
    structure: Structure | Sequence[Structure],
    n: int,
    delta: float,
    duals: Sequence[PiecewiseFunction] | Sequence[BoxDual] | None = None,
    *,
    target: Target = "excess",
    hyper: float | Float[Array, " p"] | None = None,
    accuracy: float = 0.0,
    fraction: float = 0.15,
    key: Any = None,
    choices: int = 1,
) -> Guarantee:
    """The smallest applicable guarantee for the α tuned on n tasks: `P(target <= value) >= 1 - delta`.

    Without duals: the smallest of the bounds that the structure gives; each is known beforehand, so delta is not
    shared. With the duals of the n tasks, data decide which bound is smallest, so delta is shared among the kinds in
    parts that are fixed beforehand (90 % for the split bound with wealth, 5 % each for the structure and for the split
    bound with empirical Bernstein), and all hold together with probability 1 - delta (union bound). The Rademacher
    bound is not among them: it takes longer than all the others and has never been the smallest; it can be had by
    [`rademacher_complexity`][hyprax.tasks.complexity.rademacher_complexity].

    **Arguments:**

    - `structure`: what is known of the dual functions; several if all of them hold; `Bounded` if only the range.
    - `n`, `delta`: number of tasks, and the probability with which the guarantee may fail.
    - `duals`: the dual functions of the n tasks: losses in [0, H], H the range of the structure. For several
      hyperparameters [`BoxDual`][hyprax.tasks.BoxDual]s, cut with their method `clip`; the split bounds are then over
      boxes.
    - `target`: `"excess"` or `"deviation"`.
    - `hyper`: the α that will be used; by default the one with the smallest mean loss over the duals (for several that
      of [`erm_box`][hyprax.tasks.erm_box] with a gap of 1 %). Another one pays, in an excess, for its distance from
      that mean in the bounds that are not split bounds.
    - `accuracy`: xi as in [`tasks_needed`][hyprax.tasks.tasks_needed]; the radii of the duals are accounted for
      without it.
    - `fraction`, `key`: the part of the tasks that chooses in the split bounds, and the JAX random key that draws
      them; the key is needed with `duals`. Trying several and keeping the best voids delta.
    - `choices`: how many there were to choose from, if these same tasks have already chosen something that the
      guarantee rests on: a model, a set of features, a range, a second penalty on a grid. The guarantee then holds for
      all of them at once, each at delta / choices. A choice that cannot be counted leaves no guarantee: choose on other
      tasks.

    Several hyperparameters that [`erm_box`][hyprax.tasks.erm_box] tuned together are no such choice: give their duals
    and what it found as `hyper`. Without duals, give a structure of them (`complexity.RidgePenalties`,
    `ElasticNetPenalties`), and half of the gap it left as `accuracy`.

    **Raises:** `ValueError` where n is not the number of duals, or a dual leaves [0, H].
    """
    structures = as_structures(structure)
    check_sample(n, delta)
    if not (isinstance(choices, int | np.integer) and choices >= 1):
        raise ValueError(f"gap: choices must be an integer >= 1; got {choices!r}.")
    whole, delta = delta, delta / choices
    width, cost = structures[0].range, _accuracy_cost(accuracy, target)
    assumptions = [_IID, f"losses in [0, {width:g}], whatever the task"]
    if choices > 1:
        assumptions.append(f"the tasks made one of {choices} choices before; the guarantee holds for each")
    bounds = _structural(structures, target)
    reference = hoeffding_bound(n, whole, width)
    if duals is None:
        if not bounds:
            raise ValueError("gap: duals must be given where nothing is known but the range of the loss; got none.")
        candidates = {name: f(n, delta) + cost for name, (_, f) in bounds.items()}
        best = min(candidates, key=lambda name: candidates[name])
        assumptions.append(bounds[best][0].assumption)
        return Guarantee(candidates[best], best, target, n, whole, width, tuple(assumptions), reference, candidates)

    functions: Any = duals
    least: Any = None
    certify: Callable[[Any, float, Means], SplitCertificate] | None = None
    if functions and isinstance(functions[0], BoxDual):
        check_boxes(functions, n, delta, width)
        if hyper is None or (bounds and target == "excess"):
            least = erm_box(functions, gap=1e-2, progress=False)
        hyper = least.hyper if hyper is None else np.asarray(hyper, dtype=np.float64)
        below, above = _enclosed(functions, hyper)
        ground = BoxGround.of(functions, width, fraction, key) if n >= 4 else None
        if ground is not None:
            certify = ground.excess if target == "excess" else ground.risk
    else:
        check_losses(functions, n, width)
        mean = PiecewiseFunction.mean(functions)
        least = mean.minimise()
        hyper = least.hyper if hyper is None else float(hyper)
        below, above = (float(x) for x in mean.enclose(hyper))
        bound = split_excess_bound if target == "excess" else split_risk_bound
        certify = partial(_split, bound, functions, width, fraction, key)

    behind = max(0.0, above - least.lower) if target == "excess" and least is not None else 0.0
    notes: list[str] = []
    candidates = {name: f(n, delta * SHARES["structure"]) + behind for name, (_, f) in bounds.items()}
    hypers = {}
    if n >= 4 and certify is not None:
        point: Any = hyper
        kinds: dict[str, Means] = {"split, empirical Bernstein": "bernstein", "split": "wealth"}
        for name, means in kinds.items():
            found = certify(point, delta * SHARES[name], means)
            candidates[name] = found.bound - (0.0 if target == "excess" else below)
            hypers[name] = found.hypers
    else:
        notes.append(f"split: needs at least 4 tasks, some to choose and some to certify; got {n}")
    candidates = {name: value + cost for name, value in candidates.items()} or {"the range of the loss": width}
    best = min(candidates, key=lambda name: candidates[name])
    if best in bounds:
        assumptions.append(bounds[best][0].assumption)
    return Guarantee(
        candidates[best],
        best,
        target,
        n,
        whole,
        width,
        tuple(assumptions),
        reference,
        candidates,
        hyper,
        hypers.get(best) if target == "excess" else None,
        tuple(notes),
        "certified" if all(dual.certified for dual in functions) else "estimated",
    )


def _accuracy_cost(accuracy: float, target: Target) -> float:
    """2 xi for an excess, a difference of two losses; xi for a deviation, whose other side is the computed mean."""
    if not (math.isfinite(accuracy) and accuracy >= 0):
        raise ValueError(f"accuracy must be a finite number >= 0; got {accuracy!r}.")
    if target not in _MEANINGS:
        raise ValueError(f"target must be 'excess' or 'deviation'; got {target!r}.")
    return 2 * accuracy if target == "excess" else accuracy


def _split(
    bound: Callable[..., SplitCertificate],
    duals: Sequence[PiecewiseFunction],
    width: float,
    fraction: float,
    key: Any,
    hyper: float,
    delta: float,
    means: Means,
) -> SplitCertificate:
    return bound(duals, hyper, delta, width, fraction=fraction, key=key, means=means)


def _enclosed(duals: Sequence[BoxDual], hyper: Any) -> tuple[float, float]:
    """The mean loss at several hyperparameters, between its bounds."""
    found = points(together(duals), np.asarray(hyper)[None], None)
    return float(found.lower[0]), float(found.upper[0])


def check_losses(duals: Sequence[PiecewiseFunction], n: int, width: float) -> None:
    """Raise unless there are n duals, on one domain, with values in [0, width] up to rounding."""
    if len(same_domain(duals)) != n:
        raise ValueError(f"gap: duals must be one for each of n = {n} tasks; got {len(duals)}.")
    for i, dual in enumerate(duals):
        lo, hi = dual.ranges()
        low, high = float(lo.min()), float(hi.max())
        if low < -1e-9 * width or high > (1 + 1e-9) * width:
            low, high = dual.minimise().upper, dual.maximise().lower  # the hull may be wider than the range
            if low < -1e-9 * width or high > (1 + 1e-9) * width:
                raise ValueError(
                    f"losses must lie in [0, {width:g}]; got {low:.6g} to {high:.6g} of task {i}. Give the "
                    "structure a `range` that bounds every possible loss, or clip the duals with their method `clip`."
                )
