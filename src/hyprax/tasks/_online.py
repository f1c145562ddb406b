r"""Tasks that arrive one after another: the exponential forecaster, with its regret beside its bound.

Before round t the forecaster draws `α_t` from the density `p_t` proportional to `exp(-η sum_{s<t}
loss_s(α))` on [a, b]; then it pays `loss_t(α_t)` and is shown loss_t (full information), or the piece of it
that α_t lies in (semi-bandit), in which case it adds the unbiased estimate `1[α in piece] loss_t(α) /
p_t(piece)` in its place.

**Theorem (regret).** Let losses lie in [0, H] and let `F = sum_t loss_t` have its infimum F* near α*. With full
information, and for any sequence of tasks fixed beforehand (no distribution is assumed),

    E sum_t loss_t(α_t) - F* <= η T H^2 / 8 + (1/η) ln( (b - a) / int exp(-η (F - F*)) ).

*Proof.* With `W_t = int exp(-η sum_{s<=t} loss_s)`, Hoeffding's lemma gives
`ln(W_t / W_{t-1}) = ln E_{p_t} exp(-η loss_t) <= -η E_{p_t} loss_t + η^2 H^2 / 8`. Add up; `W_0 = b - a`. ∎

**Corollary (dispersion).** If at most k of the tasks have a jump in any window of width rho, and all are L-Lipschitz
between their jumps, then `F - F* <= k H + T L rho` on a window of width rho at α*, so that

    E regret <= η T H^2 / 8 + ln((b - a)/rho) / η + k H + T L rho,

which is `H sqrt(T ln((b - a)/rho) / 2) + k H + T L rho` at the best η. It holds for every rho at once.

**Enclosures.** Where a loss is known only as p_t ± r_t, the forecaster plays with p_t, and the theorem holds for p_t.
As `loss_t <= p_t + r_t` and `F >= sum_t (p_t - r_t)`, the regret with the losses meant is at most

    sum_t E_{p_t} [p_t + r_t] - min (P - R),

P and R the sums: that is the `expected_regret` reported, from above. The bounds gain `sum_t E_{p_t} r_t` and what P
exceeds `min (P - R)` by at its minimum. For a tolerance tau, k counts the tasks that in some window have a step of p_t
above tau or an undecided piece (`r_t > tau`), L is the largest slope of the other pieces, and the steps of at most tau
add their sum. No jump is missed so: where one may hide, it counts. Every tau gives a bound, and the least is taken.

**Semi-bandit.** With at most M_t pieces in round t the first term becomes `η H^2 sum_t M_t / 2`. *Proof.* As
`exp(-x) <= 1 - x + x^2/2` for x >= 0, `ln(W_t / W_{t-1}) <= -η E_{p_t} est_t + η^2 E_{p_t} est_t^2 / 2`, and the
expected square is `sum_pieces int_piece p_t loss_t^2 / p_t(piece) <= H^2 M_t`. At the end `ln W_T = sup_q [-η E_q
est - KL(q ‖ uniform)] + ln(b - a)` for the sum of the estimates (Gibbs), whose expectation is at least the same with
F, as the estimates are unbiased: `ln int exp(-η F)`. ∎

Sources: Balcan, Dick and Vitercik (2018), arXiv 1711.03091; Balcan, Dick and Pegden (2020), arXiv 1904.09014, for the
semi-bandit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from . import _bernstein as bernstein
from ._bernstein import Array
from ._brackets import same_domain
from ._extrema import steps
from ._guarantees import check_losses
from ._piecewise import PiecewiseFunction
from ._random import generator, generators

Feedback: TypeAlias = Literal["full", "semi-bandit"]
_NODES = 16
"""Gauss-Legendre nodes a cell: on a cell where the exponent moves by at most one, the error is below rounding."""
_HALVINGS = 60
_SCALES = 60
"""Widths rho that the dispersion bound is minimised over; it holds for all of them."""
_TOLERANCES = (1e-9, 1e-5, 1e-3, 3e-2)
"""Steps and radii, in parts of H, up to which a piece counts as continuous and decided; the bound holds for each."""


@dataclass(frozen=True)
class Density:
    """`p(α) = exp(-η F(α)) / int exp(-η F)`, on cells where `η F` is smooth and moves by at most one.

    The mass of a cell is a Gauss-Legendre sum, exact up to rounding; a sample picks a cell by mass and then a point in
    it by rejection from the uniform density, under the certified minimum of F on the cell. So sampling is exact.
    """

    cells: PiecewiseFunction
    """F, cut into the cells."""
    rate: float
    """η."""
    mass: Float[Array, " K"]
    """Probability of each cell; they add up to one."""
    log_integral: float
    """`ln int exp(-η F)`."""

    @classmethod
    def of(cls, total: PiecewiseFunction, rate: float) -> "Density":
        """The density for F = `total` and η = `rate`."""
        cells = total.to_polynomials()
        for _ in np.arange(_HALVINGS):
            lo, hi = cells.ranges()
            steep = rate * (hi - lo - 4 * cells.error()) > 1
            left, right = cells.breakpoints[:-1], cells.breakpoints[1:]
            middle = (0.5 * (left + right))[steep]
            middle = middle[(middle > left[steep]) & (middle < right[steep])]
            if not middle.size:
                break
            cells = cells.refine(np.union1d(cells.breakpoints, middle))
        values, weights = _at_nodes(cells)
        exponents = -rate * values
        top = float(np.max(exponents))
        integrals = np.sum(np.exp(exponents - top) * weights, axis=1)
        whole = float(np.sum(integrals))
        return cls(cells, rate, integrals / whole, top + math.log(whole))

    def sample(self, key: Any) -> float:
        """One exact draw, by a JAX random key."""
        return self.draw(generator("Density.sample", key))

    def draw(self, rng: np.random.Generator) -> float:
        """One exact draw, by a generator."""
        k = int(rng.choice(self.mass.size, p=self.mass))
        left, right = self.cells.breakpoints[k : k + 2]
        row = self.cells.numerator[k]
        least = float(self.cells.restrict(left, right).ranges()[0][0])
        while True:
            t, accept = rng.random(2)
            value = float(bernstein.evaluate(row, np.asarray(t)))
            if accept <= math.exp(-self.rate * (value - least)):
                return float(min(left + t * (right - left), right))

    def probability(self, a: float, b: float) -> float:
        """Mass of [a, b]."""
        parts = self.cells.restrict(a, b)
        values, weights = _at_nodes(parts)
        return float(np.sum(np.exp(-self.rate * values - self.log_integral) * weights))

    def expectation(self, loss: PiecewiseFunction) -> float:
        """`int p(α) loss(α)`."""
        parts = self.cells.refine(np.union1d(self.cells.breakpoints, loss.breakpoints))
        values, weights = _at_nodes(parts)
        losses, _ = _at_nodes(loss.refine(parts.breakpoints))
        return float(np.sum(np.exp(-self.rate * values - self.log_integral) * weights * losses))


def _at_nodes(f: PiecewiseFunction) -> tuple[Array, Array]:
    """Values at the Gauss-Legendre nodes of every piece, and the weights there, (K, nodes)."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    t = 0.5 * (nodes + 1)
    values = bernstein.evaluate(f.numerator[:, None, :], t)
    if f.denominator is not None:
        values = values / bernstein.evaluate(f.denominator[:, None, :], t)
    return values, 0.5 * weights * np.diff(f.breakpoints)[:, None]


@dataclass(frozen=True)
class ForecasterState:
    """What the forecaster carries from round to round."""

    total: PiecewiseFunction
    """Sum of the losses seen, or of their estimates."""
    rounds: int
    """How many."""


@dataclass(frozen=True)
class ExponentialForecaster:
    """`α_t ~ exp(-η sum_{s<t} loss_s)` on `domain`, sampled exactly; losses in [0, `range`].

    Example: `state = forecaster.init()`; then, every round, `α = forecaster.sample(state, key)` with a fresh key
    and `state = forecaster.update(state, loss, α)`.
    """

    domain: tuple[float, float]
    """The range of the hyperparameter."""
    rate: float
    """η > 0; `for_rounds` gives the one for a known number of rounds."""
    range: float = 1.0
    """H: losses lie in [0, H]."""
    feedback: Feedback = "full"
    """What is shown after each round: `"full"`, or `"semi-bandit"`, the piece that was played."""

    def __post_init__(self):
        if self.feedback not in ("full", "semi-bandit"):
            raise ValueError(f"feedback must be 'full' or 'semi-bandit'; got {self.feedback!r}.")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate must be a finite number > 0; got {self.rate!r}.")

    @classmethod
    def for_rounds(
        cls,
        domain: tuple[float, float],
        rounds: int,
        range: float = 1.0,
        feedback: Feedback = "full",
        pieces: int = 1,
    ) -> "ExponentialForecaster":
        """The forecaster with the rate `sqrt(4 ln(T + 1) / T) / H`, or `sqrt(ln(T + 1) / (T M)) / H` in the
        semi-bandit.

        T is `rounds` and M = `pieces` of a task. It is the best η for `(b - a)/rho = sqrt(T + 1)`: dispersion at the
        scale that smoothed tasks have.
        """
        if rounds < 1 or pieces < 1:
            raise ValueError(f"for_rounds: rounds and pieces must be >= 1; got {rounds!r} and {pieces!r}.")
        scale = 4 / rounds if feedback == "full" else 1 / (rounds * pieces)
        return cls(domain, math.sqrt(scale * math.log(rounds + 1)) / range, range, feedback)

    def init(self) -> ForecasterState:
        """Nothing seen: the uniform density."""
        return ForecasterState(PiecewiseFunction.constant(self.domain, 0.0), 0)

    def density(self, state: ForecasterState) -> Density:
        """The density of the next α."""
        return Density.of(state.total, self.rate)

    def sample(self, state: ForecasterState, key: Any) -> float:
        """The next α, by a JAX random key."""
        return self.density(state).sample(key)

    def update(
        self, state: ForecasterState, loss: PiecewiseFunction, hyper: float, density: Density | None = None
    ) -> ForecasterState:
        """The state after `α` met `loss`. In the semi-bandit only the piece around α is looked at."""
        if self.feedback == "semi-bandit":
            density = self.density(state) if density is None else density
            loss = _estimate(loss, hyper, density)
        return ForecasterState(state.total + loss, state.rounds + 1)


def _estimate(loss: PiecewiseFunction, hyper: float, density: Density) -> PiecewiseFunction:
    """`1[piece] loss / p(piece)` for the piece of the loss that α lies in, 0 elsewhere."""
    a, b = loss.domain
    k = int(loss.locate(hyper)[0])
    left, right = (float(x) for x in loss.breakpoints[k : k + 2])
    seen = loss.restrict(left, right).to_polynomials() * (1 / density.probability(left, right))
    edges, rows, radius = seen.breakpoints, seen.numerator, seen.radius
    zero = np.zeros((1, rows.shape[1]))
    if left > a:
        edges, rows, radius = np.append(a, edges), np.concatenate([zero, rows]), np.append(0.0, radius)
    if right < b:
        edges, rows, radius = np.append(edges, b), np.concatenate([rows, zero]), np.append(radius, 0.0)
    return PiecewiseFunction(edges, rows, None, radius, loss.certified)


@dataclass(frozen=True)
class OnlineRun:
    """One game of the forecaster against a sequence of tasks, and what the theory promises of it."""

    hypers: Float[Array, " T"]
    """What was played."""
    losses: Float[Array, " T"]
    """What it cost: in the middle, where a loss is an enclosure."""
    regret: float
    """`sum_t loss_t(α_t) - min_α sum_t loss_t(α)`, from above: the radii of the losses are added."""
    expected_regret: float
    """The same with `E_{p_t} loss_t` in place of the loss paid, from above: with full information the bounds hold for
    it
    surely."""
    bound: float
    """The bound by dispersion, at the best `rho`, for the rate that was played with."""
    rho: float
    """The width of the windows of that bound."""
    k: int
    """From above: at most k tasks have a jump, or an undecided interval, in any window of width rho."""
    slope: float
    """From above: the largest slope of a task outside of its jumps and undecided intervals."""
    doubt: float
    """What the radii of the losses add to the bounds; rounding for losses that are exact."""
    integral_bound: float
    """The bound with the integral itself: no width has to be chosen, so it is never above `bound`."""
    best_hyper: float
    """Where the sum of losses is smallest."""
    feedback: Feedback
    """What was shown after each round."""

    def __str__(self) -> str:
        surely = "surely" if self.feedback == "full" else "in expectation over the draws"
        open_ = f", {self.doubt:.3g} of both for what the enclosures leave open" if self.doubt > 1e-6 else ""
        return "\n".join(
            [
                f"{len(self.hypers)} rounds, {self.feedback}: regret {self.regret:.4g}, "
                f"expected {self.expected_regret:.4g}",
                f"  bound by dispersion: {self.bound:.4g} (rho = {self.rho:.3g}, k = {self.k}, L = {self.slope:.3g})",
                f"  bound by the integral: {self.integral_bound:.4g}{open_}",
                f"  the bounds hold for the expected regret, {surely}",
                f"  best hyperparameter in hindsight: {self.best_hyper:.6g}",
            ]
        )


def play(
    duals: Sequence[PiecewiseFunction],
    *,
    key: Any,
    range: float = 1.0,
    feedback: Feedback = "full",
    rate: float | None = None,
) -> OnlineRun:
    """The exponential forecaster, played against the tasks in their order; losses in [0, `range`].

    **Arguments:**

    - `duals`: the loss of each task, one domain.
    - `key`: a JAX random key, for the draws.
    - `feedback`: `"full"`, or `"semi-bandit"` (only the piece around the α played is shown).
    - `rate`: η; by default that of [`ExponentialForecaster.for_rounds`][hyprax.tasks.ExponentialForecaster.for_rounds].
    """
    duals = same_domain(duals)
    rounds = len(duals)
    check_losses(duals, rounds, range)
    pieces = [dual.n_pieces for dual in duals]
    domain = duals[0].domain
    if rate is None:
        each = math.ceil(sum(pieces) / rounds)
        forecaster = ExponentialForecaster.for_rounds(domain, rounds, range, feedback, each)
    else:
        forecaster = ExponentialForecaster(domain, rate, range, feedback)
    rate = forecaster.rate
    state = forecaster.init()
    hypers, expected, radii = np.empty(rounds), np.empty(rounds), np.empty(rounds)
    for t, (dual, own) in enumerate(zip(duals, generators("play", key, rounds), strict=True)):
        density = forecaster.density(state)
        hypers[t] = density.draw(own)
        expected[t] = density.expectation(dual)
        radii[t] = _expected_radius(density, dual, range)
        state = forecaster.update(state, dual, hypers[t], density)
    losses = np.array([float(dual(hyper)) for dual, hyper in zip(duals, hypers, strict=True)])
    highest = np.array([float(dual.enclose(hyper)[1]) for dual, hyper in zip(duals, hypers, strict=True)])
    mean = PiecewiseFunction.mean(duals)
    best = mean.minimise()
    least = rounds * best.lower
    doubt = float(np.sum(radii)) + rounds * (best.value - best.lower)
    first = rate * range**2 * (rounds / 8 if feedback == "full" else sum(pieces) / 2)
    bound, rho, k, slope = _dispersion_bound(duals, first, rate, range)
    a, b = duals[0].domain
    log_integral = Density.of(mean * float(rounds), rate).log_integral
    integral = first + (math.log(b - a) - log_integral) / rate - least + float(np.sum(radii))
    return OnlineRun(
        hypers,
        losses,
        float(np.sum(highest)) - least,
        float(np.sum(expected + radii)) - least,
        bound + doubt,
        rho,
        k,
        slope,
        doubt,
        integral,
        best.hyper,
        feedback,
    )


def _expected_radius(density: Density, dual: PiecewiseFunction, range: float) -> float:
    """`E_p r`, r the radius of the loss, from above."""
    radius = dual.error()
    if np.max(radius) <= _TOLERANCES[0] * range:
        return float(np.max(radius))
    return density.expectation(PiecewiseFunction(dual.breakpoints, radius[:, None], None, np.zeros(radius.size)))


def _dispersion_bound(
    duals: Sequence[PiecewiseFunction], first: float, rate: float, range: float
) -> tuple[float, float, int, float]:
    """The least over widths rho and tolerances of the bound by dispersion, with its rho, k and L."""
    a, b = duals[0].domain
    polynomials = [dual.to_polynomials() for dual in duals]
    best = math.inf, b - a, len(duals), 0.0
    for tolerance in _TOLERANCES:
        found = [steps(f, tolerance * range) for f in polynomials]
        slope, slack = max(x[2] for x in found), sum(x[3] for x in found)
        for rho in (b - a) * np.geomspace(1e-9, 1.0, _SCALES):
            k = _crowd([x[:2] for x in found], float(rho))
            bound = first + math.log((b - a) / rho) / rate + k * range + len(duals) * slope * rho + slack
            best = min(best, (bound, float(rho), k, slope))
    return best


def dispersion(duals: Sequence[PiecewiseFunction], rho: float, tolerance: float | None = None) -> int:
    """k, from above: at most so many tasks have a jump in one closed window of width `rho`, over all windows.

    An undecided interval counts wherever it meets the window, as a jump may hide in it.

    **Arguments:** `duals` of one domain; `rho > 0`; `tolerance`, in units of the loss: jumps of at most that do not
    count, and pieces whose radius is at most that are decided; by default 1e-8 of the largest loss.
    """
    if not rho > 0:
        raise ValueError(f"rho must be > 0; got {rho!r}.")
    duals = same_domain(duals)
    level = 1e-8 * max(dual.size for dual in duals) if tolerance is None else tolerance
    return _crowd([steps(dual.to_polynomials(), level)[:2] for dual in duals], rho)


def _crowd(intervals: Sequence[tuple[Array, Array]], rho: float) -> int:
    """The largest number of tasks with an interval that meets one window [s, s + rho]; `intervals` ascend in each."""
    owner = np.repeat(np.arange(len(intervals)), [left.size for left, _ in intervals])
    if not owner.size:
        return 0
    # The windows that meet [l, r] are those with s in [l - rho, r]; those of one task are joined where they overlap.
    first = np.nextafter(np.concatenate([left for left, _ in intervals]) - rho, -np.inf)
    last = np.concatenate([right for _, right in intervals])
    apart = (owner[1:] != owner[:-1]) | (first[1:] > last[:-1])
    start, end = np.sort(first[np.append(True, apart)]), np.sort(last[np.append(apart, True)])
    return int(np.max(np.searchsorted(start, start, side="right") - np.searchsorted(end, start, side="left")))
