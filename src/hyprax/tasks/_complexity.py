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
algorithms?" (2021). The structures of neural networks are in `_networks.py`.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


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
            value = getattr(self, field.name)
            least = self._least(field.name)
            if field.type is int and not (isinstance(value, int | np.integer) and value >= least):
                raise ValueError(f"{type(self).__name__}: {field.name} must be an integer >= {least}; got {value!r}.")

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


def from_intervals(n: int, log_intervals: float) -> float:
    """`ln(2 n B0 + 1)` from `ln B0`, which may be far beyond the range of a float."""
    return float(np.logaddexp(0.0, math.log(2 * n) + log_intervals))


@dataclass(frozen=True)
class Bounded(Structure):
    """`N(n) = inf`: nothing is known but the range of the loss. Only bounds computed from the duals of tasks apply."""

    def log_labellings(self, n: int) -> float:
        return math.inf

    @property
    def assumption(self) -> str:
        return "nothing is assumed of the dual functions but their range"


@dataclass(frozen=True)
class Intervals(Structure):
    """`N(n) = 2 n B0 + 1`: every set `{α : loss < z}` is a union of at most B0 = `count` intervals.

    A jointly convex training loss has B0 = 1 (projections of convex sets are convex), so Pdim <= 2.
    """

    count: int
    """B0."""

    def log_labellings(self, n: int) -> float:
        return from_intervals(n, math.log(self.count))

    @property
    def assumption(self) -> str:
        return f"every set {{hyper : loss < z}} is a union of at most {self.count} intervals"


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
class Rational(Structure):
    """`B0 = floor(D / 2) + 1`: every dual is one quotient N/M, M > 0, with both degrees at most D = `degree`.

    `N - z M` is negative on the set in question, and between two neighbouring intervals of it lie at least two of its
    at most D roots, counted with multiplicity (the two ends of the gap, or a double root).
    """

    degree: int
    """D."""

    def _least(self, name: str) -> int:
        return 0

    def log_labellings(self, n: int) -> float:
        return from_intervals(n, math.log(self.degree // 2 + 1))

    @property
    def assumption(self) -> str:
        return f"every dual function is a quotient of polynomials of degree at most {self.degree} in hyper"


@dataclass(frozen=True)
class RidgeRank(Structure):
    """`B0 = r + 1`: the squared validation loss of ridge regression is rational of degree 2r in λ, r = `rank`.

    With the singular values s_j of a training matrix of rank r, predictions are `sum_j c_j / (s_j^2 + λ)`: over
    the common denominator `prod_j (s_j^2 + λ)^2` the loss has degree 2r over 2r. K folds have K denominators:
    give K r.
    """

    rank: int
    """r, over all folds."""

    def log_labellings(self, n: int) -> float:
        return from_intervals(n, math.log(self.rank + 1))

    @property
    def assumption(self) -> str:
        return f"ridge regression, squared loss, training matrices of rank at most {self.rank}"


@dataclass(frozen=True)
class LassoKinks(Structure):
    """`B0 = K + 1`: the path of the lasso or elastic net is linear between at most K = `kinks` kinks.

    On each of the K + 1 pieces the squared validation loss is a convex quadratic, and `{convex < z}` is one interval.
    """

    kinks: int
    """K, the most of any path."""

    def _least(self, name: str) -> int:
        return 0

    def log_labellings(self, n: int) -> float:
        return from_intervals(n, math.log(self.kinks + 1))

    @property
    def assumption(self) -> str:
        return f"lasso or elastic-net paths with at most {self.kinks} kinks, squared loss"


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


def log_binomial_sum(s: int, k: int, log_base: float) -> float:
    """`ln sum_{j <= min(k, s)} binom(s, j) base^j`."""
    from scipy.special import gammaln

    j = np.arange(min(k, s) + 1, dtype=np.float64)
    terms = gammaln(s + 1.0) - gammaln(j + 1) - gammaln(s - j + 1) + j * log_base
    return float(np.logaddexp.reduce(terms))


def as_structures(structure: Structure | Sequence[Structure]) -> tuple[Structure, ...]:
    """One structure or several that all hold, as a tuple; they must agree on the range of the loss."""
    several = (structure,) if isinstance(structure, Structure) else tuple(structure)
    if not several or not all(isinstance(s, Structure) for s in several):
        raise ValueError(f"structure must be a Structure, or a sequence of them that all hold; got {structure!r}.")
    if len({s.range for s in several}) > 1:
        raise ValueError(f"all structures must have one range; got {[s.range for s in several]}.")
    return several
