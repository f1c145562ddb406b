r"""What is known of every dual function beforehand, and how many ways n of them can be cut by thresholds.

Everything rests on one number. For a class of dual functions let `N(n)` bound the number of labellings, that is of
distinct vectors `(1[loss_α(x_i) < z_i])_{i <= n}` as α moves, for any n tasks `x_i` and any thresholds `z_i`.

**Lemma (intervals).** If every set `{α : loss_α(x) < z}` is a union of at most B0 intervals, then
`N(n) <= 2 n B0 + 1`. *Proof.* The n sets have at most 2 n B0 ends, with multiplicity. Go from left to right. At a place
where exactly one set has one end, the label of the place equals the label of one side, so the passage adds one
labelling. At a place with m >= 2 ends it adds at most two (the place, and what follows). So each end adds at most one.
∎

**Lemma (oscillations).** If every indicator `1[loss_α(x) < z]` has at most B discontinuities, `N(n) <= 2 n B + 1`:
each of the n B places adds at most two labellings, itself and what follows.

Source: Balcan, DeBlasio, Dick, Kingsford, Sandholm and Vitercik, "How much data is sufficient to learn high-performing
algorithms?" (2021). Theorems that count intervals, those on neural networks among them, are in `_intervals.py`.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ._cells import log_binomial_sum


def check_count(where: str, *, least: int = 1, **counts: int) -> None:
    """Refuse anything but integers of at least `least`."""
    for name, value in counts.items():
        if not (isinstance(value, int | np.integer) and value >= least):
            raise ValueError(f"{where}: {name} must be an integer >= {least}; got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class Structure(abc.ABC):
    """What is known of every dual function before a task is seen; the loss of every task lies in [0, `range`].

    `range` must bound every loss that can ever occur, not those that did; clip the loss
    ([`clip`][hyprax.tasks.PiecewiseFunction.clip]) if it has no natural bound.
    """

    range: float = 1.0
    """H: the loss of every task lies in [0, H]."""

    def __post_init__(self):
        if not (math.isfinite(self.range) and self.range > 0):
            raise ValueError(f"{type(self).__name__}: range must be a finite number > 0; got {self.range!r}.")
        for field in fields(self):
            if field.type is int:
                count = {field.name: getattr(self, field.name)}
                check_count(type(self).__name__, least=self._least(field.name), **count)

    def _least(self, name: str) -> int:
        """Smallest value allowed for an integer field."""
        return 1

    @abc.abstractmethod
    def log_labellings(self, n: int) -> float:
        """`ln N(n)`, natural logarithm; infinite where counting says nothing."""

    @property
    def variation(self) -> float:
        """`Λ (b - a)`: the most that a dual function can change over the domain by its Lipschitz constant."""
        return math.inf

    @property
    @abc.abstractmethod
    def assumption(self) -> str:
        """The structure in words."""

    @property
    def name(self) -> str:
        """What answers call it."""
        return type(self).__name__

    def pseudo_dimension(self) -> float:
        """`max {n : 2^n <= N(n)}`: an upper bound of the pseudo-dimension of the dual functions; infinite where N is.

        To shatter n tasks takes 2^n labellings. `n ln 2 - ln N(n)` is convex in n for every structure here and zero at
        n = 0, so the n in question are an interval from 0 and bisection finds its end.
        """
        if isinstance(self, PseudoDimension):
            return self.value
        if math.isinf(self.log_labellings(1)):
            return math.inf

        def shattered(n: int) -> bool:
            return n * math.log(2) <= self.log_labellings(n) * (1 + 1e-12) + 1e-12

        high = 1
        while shattered(high):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if shattered(middle) else (low, middle)
        return low


@dataclass(frozen=True)
class Bounded(Structure):
    """`N(n) = inf`: nothing is known but the range of the loss. Only bounds computed from the duals of tasks apply."""

    def log_labellings(self, n: int) -> float:
        return math.inf

    @property
    def assumption(self) -> str:
        return "nothing is assumed of the dual functions but their range"


@dataclass(frozen=True)
class Oscillations(Structure):
    """`N(n) = 2 n B + 1`: every indicator `1[loss_α < z]` has at most B = `count` discontinuities."""

    count: int
    """B."""

    def _least(self, name: str) -> int:
        return 0

    def log_labellings(self, n: int) -> float:
        return math.log(2 * n * self.count + 1)

    @property
    def assumption(self) -> str:
        return f"every dual function crosses any threshold at most {self.count} times"


@dataclass(frozen=True)
class Pieces(Structure):
    """`N(n) = n (N - 1) + 1`: every dual is constant on each of at most N = `count` intervals that fill the domain.

    A breakpoint belongs to one of its neighbours, so each of the n (N - 1) breakpoints adds at most one labelling.
    """

    count: int
    """N."""

    def log_labellings(self, n: int) -> float:
        return math.log(n * (self.count - 1) + 1)

    @property
    def assumption(self) -> str:
        return f"every dual function is piecewise constant with at most {self.count} pieces"


@dataclass(frozen=True)
class Lipschitz(Structure):
    """`|loss_α - loss_α'| <= constant |α - α'|` for every task, on a domain (a, b).

    A maximum over w of functions that are Lipschitz in α with one constant is Lipschitz with that constant.
    """

    constant: float
    """Λ."""
    domain: tuple[float, float]
    """(a, b)."""

    def __post_init__(self):
        super().__post_init__()
        a, b = self.domain
        if not (math.isfinite(a) and math.isfinite(b) and a < b):
            raise ValueError(f"Lipschitz: domain must be (a, b) with finite a < b; got {self.domain!r}.")
        if not (math.isfinite(self.constant) and self.constant >= 0):
            raise ValueError(f"Lipschitz: constant must be a finite number >= 0; got {self.constant!r}.")

    def log_labellings(self, n: int) -> float:
        return math.inf

    @property
    def variation(self) -> float:
        return self.constant * (self.domain[1] - self.domain[0])

    @property
    def assumption(self) -> str:
        a, b = self.domain
        return f"every dual function is Lipschitz with constant {self.constant:g} on [{a:g}, {b:g}]"


@dataclass(frozen=True)
class PseudoDimension(Structure):
    """`N(n) = sum_{j <= P} binom(n, j)` (Sauer and Shelah), for a class known only by its pseudo-dimension P."""

    value: int
    """P."""

    def _least(self, name: str) -> int:
        return 0

    def log_labellings(self, n: int) -> float:
        return log_binomial_sum(n, self.value, 0.0)

    @property
    def assumption(self) -> str:
        return f"the dual functions have pseudo-dimension at most {self.value}"


def as_structures(structure: Structure | Sequence[Structure]) -> tuple[Structure, ...]:
    """One structure or several that all hold, as a tuple; they must agree on the range of the loss."""
    several = (structure,) if isinstance(structure, Structure) else tuple(structure)
    if not several or not all(isinstance(s, Structure) for s in several):
        raise ValueError(f"structure must be a Structure, or a sequence of them that all hold; got {structure!r}.")
    if len({s.range for s in several}) > 1:
        raise ValueError(f"all structures must have one range; got {[s.range for s in several]}.")
    return several
