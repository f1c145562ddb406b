r"""Tasks that arrive one after another: the exponential forecaster, with its regret beside its bound.

Before round t the forecaster draws `alpha_t` from the density `p_t` proportional to `exp(-eta sum_{s<t}
loss_s(alpha))` on [a, b]; then it pays `loss_t(alpha_t)` and is shown loss_t (full information), or the piece of it
that alpha_t lies in (semi-bandit), in which case it adds the unbiased estimate `1[alpha in piece] loss_t(alpha) /
p_t(piece)` in its place.

**Theorem (regret).** Let losses lie in [0, H] and let `F = sum_t loss_t` have its infimum F* near alpha*. With full
information, and for any sequence of tasks fixed beforehand (no distribution is assumed),

    E sum_t loss_t(alpha_t) - F* <= eta T H^2 / 8 + (1/eta) ln( (b - a) / int exp(-eta (F - F*)) ).

*Proof.* With `W_t = int exp(-eta sum_{s<=t} loss_s)`, Hoeffding's lemma gives
`ln(W_t / W_{t-1}) = ln E_{p_t} exp(-eta loss_t) <= -eta E_{p_t} loss_t + eta^2 H^2 / 8`. Add up; `W_0 = b - a`. ∎

**Corollary (dispersion).** If at most k of the tasks have a jump in any window of width rho, and all are L-Lipschitz
between their jumps, then `F - F* <= k H + T L rho` on a window of width rho at alpha*, so that

    E regret <= eta T H^2 / 8 + ln((b - a)/rho) / eta + k H + T L rho,

which is `H sqrt(T ln((b - a)/rho) / 2) + k H + T L rho` at the best eta. It holds for every rho at once.

**Semi-bandit.** With at most M_t pieces in round t the first term becomes `eta H^2 sum_t M_t / 2`. *Proof.* As
`exp(-x) <= 1 - x + x^2/2` for x >= 0, `ln(W_t / W_{t-1}) <= -eta E_{p_t} est_t + eta^2 E_{p_t} est_t^2 / 2`, and the
expected square is `sum_pieces int_piece p_t loss_t^2 / p_t(piece) <= H^2 M_t`. At the end `ln W_T = sup_q [-eta E_q
est - KL(q || uniform)] + ln(b - a)` for the sum of the estimates (Gibbs), whose expectation is at least the same with
F, as the estimates are unbiased: `ln int exp(-eta F)`. ∎

Sources: Balcan, Dick and Vitercik (2018), arXiv 1711.03091; Balcan, Dick and Pegden (2020), arXiv 1904.09014, for the
semi-bandit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from . import _bernstein as bernstein
from ._brackets import piece_ranges, same_domain
from ._guarantees import check_losses
from ._piecewise import PiecewiseFunction

Array = np.ndarray
Feedback: TypeAlias = Literal["full", "semi-bandit"]
_NODES = 16
"""Gauss-Legendre nodes a cell: on a cell where the exponent moves by at most one, the error is below rounding."""
_HALVINGS = 60
_SCALES = 200
"""Widths rho that the dispersion bound is minimised over; it holds for all of them."""


@dataclass(frozen=True)
class Density:
    """`p(alpha) = exp(-eta F(alpha)) / int exp(-eta F)`, on cells where `eta F` is smooth and moves by at most one.

    The mass of a cell is a Gauss-Legendre sum, exact up to rounding; a sample picks a cell by mass and then a point in
    it by rejection from the uniform density, under the certified minimum of F on the cell. So sampling is exact.
    """

    cells: PiecewiseFunction
    """F, cut into the cells."""
    rate: float
    """eta."""
    mass: Float[Array, " K"]
    """Probability of each cell; they add up to one."""
    log_integral: float
    """`ln int exp(-eta F)`."""

    @classmethod
    def of(cls, total: PiecewiseFunction, rate: float) -> "Density":
        """The density for F = `total` and eta = `rate`."""
        cells = total.to_polynomials()
        for _ in np.arange(_HALVINGS):
            lo, hi = piece_ranges(cells)
            steep = rate * (hi - lo - 4 * cells._error()) > 1
            left, right = cells.breakpoints[:-1], cells.breakpoints[1:]
            middle = (0.5 * (left + right))[steep]
            middle = middle[(middle > left[steep]) & (middle < right[steep])]
            if not middle.size:
                break
            cells = cells._refine(np.union1d(cells.breakpoints, middle))
        values, weights = _at_nodes(cells)
        exponents = -rate * values
        top = float(np.max(exponents))
        integrals = np.sum(np.exp(exponents - top) * weights, axis=1)
        whole = float(np.sum(integrals))
        return cls(cells, rate, integrals / whole, top + math.log(whole))

    def sample(self, rng: np.random.Generator) -> float:
        """One exact draw."""
        k = int(rng.choice(self.mass.size, p=self.mass))
        left, right = self.cells.breakpoints[k : k + 2]
        row = self.cells.numerator[k]
        least = float(piece_ranges(self.cells.restrict(left, right))[0][0])
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
        """`int p(alpha) loss(alpha)`."""
        parts = self.cells._refine(np.union1d(self.cells.breakpoints, loss.breakpoints))
        values, weights = _at_nodes(parts)
        losses, _ = _at_nodes(loss._refine(parts.breakpoints))
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


@dataclass(frozen=True)
class ExponentialForecaster:
    """`alpha_t ~ exp(-eta sum_{s<t} loss_s)` on `domain`, sampled exactly; losses in [0, `range`].

    Example: `state = forecaster.init()`; then, every round, `alpha = forecaster.sample(state, rng)` and
    `state = forecaster.update(state, loss, alpha)`.
    """

    domain: tuple[float, float]
    rate: float
    """eta > 0; [`learning_rate`][hyprax.tasks.learning_rate] gives the one for a known number of rounds."""
    range: float = 1.0
    feedback: Feedback = "full"

    def __post_init__(self):
        if self.feedback not in ("full", "semi-bandit"):
            raise ValueError(f"feedback must be 'full' or 'semi-bandit'; got {self.feedback!r}.")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate must be a finite number > 0; got {self.rate!r}.")

    def init(self) -> ForecasterState:
        """Nothing seen: the uniform density."""
        return ForecasterState(PiecewiseFunction.constant(self.domain, 0.0), 0)

    def density(self, state: ForecasterState) -> Density:
        """The density of the next alpha."""
        return Density.of(state.total, self.rate)

    def sample(self, state: ForecasterState, rng: np.random.Generator) -> float:
        """The next alpha."""
        return self.density(state).sample(rng)

    def update(
        self, state: ForecasterState, loss: PiecewiseFunction, alpha: float, density: Density | None = None
    ) -> ForecasterState:
        """The state after `alpha` met `loss`. In the semi-bandit only the piece around alpha is looked at."""
        if self.feedback == "semi-bandit":
            density = self.density(state) if density is None else density
            loss = _estimate(loss, alpha, density)
        return ForecasterState(state.total + loss, state.rounds + 1)


def _estimate(loss: PiecewiseFunction, alpha: float, density: Density) -> PiecewiseFunction:
    """`1[piece] loss / p(piece)` for the piece of the loss that alpha lies in, 0 elsewhere."""
    a, b = loss.domain
    k = int(loss._locate(alpha)[0])
    left, right = (float(x) for x in loss.breakpoints[k : k + 2])
    seen = loss.restrict(left, right).to_polynomials() * (1 / density.probability(left, right))
    edges, rows, radius = seen.breakpoints, seen.numerator, seen.radius
    zero = np.zeros((1, rows.shape[1]))
    if left > a:
        edges, rows, radius = np.append(a, edges), np.concatenate([zero, rows]), np.append(0.0, radius)
    if right < b:
        edges, rows, radius = np.append(edges, b), np.concatenate([rows, zero]), np.append(radius, 0.0)
    return PiecewiseFunction(edges, rows, None, radius, loss.certified)


def learning_rate(rounds: int, range: float = 1.0, feedback: Feedback = "full", pieces: int = 1) -> float:
    """`sqrt(4 ln(T + 1) / T) / H`, or `sqrt(ln(T + 1) / (T M)) / H` in the semi-bandit with M = `pieces` a task.

    The best eta for `(b - a)/rho = sqrt(T + 1)`: dispersion at the scale that smoothed tasks have.
    """
    if rounds < 1 or pieces < 1:
        raise ValueError(f"learning_rate: rounds and pieces must be >= 1; got {rounds!r} and {pieces!r}.")
    scale = 4 / rounds if feedback == "full" else 1 / (rounds * pieces)
    return math.sqrt(scale * math.log(rounds + 1)) / range


@dataclass(frozen=True)
class OnlineRun:
    """One game of the forecaster against a sequence of tasks, and what the theory promises of it."""

    alphas: Float[Array, " T"]
    """What was played."""
    losses: Float[Array, " T"]
    """What it cost."""
    regret: float
    """`sum_t loss_t(alpha_t) - min_alpha sum_t loss_t(alpha)`, the minimum exact."""
    expected_regret: float
    """The same with `E_{p_t} loss_t` in place of the loss paid: with full information the bounds hold for it surely."""
    bound: float
    """The bound by dispersion, at the best `rho`, for the rate that was played with."""
    rho: float
    k: int
    """At most k tasks have a jump in any window of width rho: measured."""
    slope: float
    """L: largest slope of a task between its jumps: measured."""
    integral_bound: float
    """The bound with the integral itself: no width has to be chosen, so it is never above `bound`."""
    best_alpha: float
    """Where the sum of losses is smallest."""
    feedback: Feedback

    def __str__(self) -> str:
        surely = "surely" if self.feedback == "full" else "in expectation over the draws"
        return "\n".join(
            [
                f"{len(self.alphas)} rounds, {self.feedback}: regret {self.regret:.4g}, "
                f"expected {self.expected_regret:.4g}",
                f"  bound by dispersion: {self.bound:.4g} (rho = {self.rho:.3g}, k = {self.k}, L = {self.slope:.3g})",
                f"  bound by the integral: {self.integral_bound:.4g}",
                f"  the bounds hold for the expected regret, {surely}",
                f"  best alpha in hindsight: {self.best_alpha:.6g}",
            ]
        )


def play(
    duals: Sequence[PiecewiseFunction],
    *,
    range: float = 1.0,
    feedback: Feedback = "full",
    rate: float | None = None,
    seed: int = 0,
) -> OnlineRun:
    """Play the exponential forecaster against the tasks in their order; losses in [0, `range`].

    **Arguments:**

    - `duals`: the loss of each task, one domain.
    - `feedback`: `"full"`, or `"semi-bandit"` (only the piece around the alpha played is shown).
    - `rate`: eta; by default [`learning_rate`][hyprax.tasks.learning_rate] for this many rounds.
    - `seed`: of the draws.
    """
    duals = same_domain(duals)
    rounds = len(duals)
    check_losses(duals, rounds, range)
    pieces = [dual.n_pieces for dual in duals]
    rate = learning_rate(rounds, range, feedback, math.ceil(sum(pieces) / rounds)) if rate is None else rate
    forecaster = ExponentialForecaster(duals[0].domain, rate, range, feedback)
    rng, state = np.random.default_rng(seed), forecaster.init()
    alphas, expected = np.empty(rounds), np.empty(rounds)
    for t, dual in enumerate(duals):
        density = forecaster.density(state)
        alphas[t] = density.sample(rng)
        expected[t] = density.expectation(dual)
        state = forecaster.update(state, dual, alphas[t], density)
    losses = np.array([float(dual(alpha)) for dual, alpha in zip(duals, alphas, strict=True)])
    mean = PiecewiseFunction.mean(duals)
    best = mean.minimise()
    least = rounds * best.lower
    first = rate * range**2 * (rounds / 8 if feedback == "full" else sum(pieces) / 2)
    slope = max(_slope(dual) for dual in duals)
    bound, rho, k = _dispersion_bound(duals, first, rate, range, slope)
    a, b = duals[0].domain
    log_integral = Density.of(mean * float(rounds), rate).log_integral
    integral = first + (math.log(b - a) - log_integral) / rate - least
    return OnlineRun(
        alphas,
        losses,
        float(np.sum(losses)) - least,
        float(np.sum(expected)) - least,
        bound,
        rho,
        k,
        slope,
        integral,
        best.alpha,
        feedback,
    )


def _slope(dual: PiecewiseFunction) -> float:
    """Largest slope on any piece, from the coefficients of the derivative."""
    f = dual.to_polynomials()
    return float(np.max(np.abs(bernstein.derivative(f.numerator)) / np.diff(f.breakpoints)[:, None]))


def _dispersion_bound(
    duals: Sequence[PiecewiseFunction], first: float, rate: float, range: float, slope: float
) -> tuple[float, float, int]:
    a, b = duals[0].domain
    jumps = [dual.jumps() for dual in duals]
    best = math.inf, b - a, len(duals)
    for rho in (b - a) * np.geomspace(1e-9, 1.0, _SCALES):
        k = _crowd(jumps, float(rho))
        bound = first + math.log((b - a) / rho) / rate + k * range + len(duals) * slope * rho
        best = min(best, (bound, float(rho), k))
    return best


def dispersion(duals: Sequence[PiecewiseFunction], rho: float) -> int:
    """k: the largest number of tasks with a jump in one closed window of width `rho`, over all windows."""
    if not rho > 0:
        raise ValueError(f"rho must be > 0; got {rho!r}.")
    return _crowd([dual.jumps() for dual in same_domain(duals)], rho)


def _crowd(jumps: Sequence[Array], rho: float) -> int:
    places = np.concatenate(jumps)
    owners = np.repeat(np.arange(len(jumps)), [j.size for j in jumps])
    order = np.argsort(places, kind="stable")
    inside, most, start = np.zeros(len(jumps), dtype=int), 0, 0
    different = 0
    for stop in order:
        inside[owners[stop]] += 1
        different += inside[owners[stop]] == 1
        while places[order[start]] < places[stop] - rho:
            inside[owners[order[start]]] -= 1
            different -= inside[owners[order[start]]] == 0
            start += 1
        most = max(most, int(different))
    return most
