r"""Bounds that hold with probability at least 1 - delta over n i.i.d. tasks, each with its constants and its proof.

Notation: `L(α) = E loss_α(x)`, `M(α) = (1/n) sum_i loss_α(x_i)`, losses in [0, H]; `α_hat`
minimises M and `α_star` minimises L (or comes within any e > 0 of its infimum). Two quantities are bounded, the
*target*:

- `"excess"`: `L(α_hat) - L(α_star)`: what better knowledge of the distribution of tasks could still gain;
- `"deviation"`: `L(α_hat) - M(α_hat)`: how much worse new tasks fare than the n at hand.

Two facts are used throughout. *Centring*: as `M(α_hat) <= M(α_star)`,
`excess <= Z = sup_α [(L - M)(α) - (L - M)(α_star)]`, and `E Z = E sup (L - M)` because α_star is
fixed. *Bounded differences* (McDiarmid 1989): if exchanging one task moves Z by at most c/n, then `Z <= E Z + c
sqrt(ln(1/delta) / 2n)`; here c = H for `sup (L - M)` and c = 2H for the centred one.
"""

import math
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from ._complexity import Structure

Target: TypeAlias = Literal["excess", "deviation"]
_NETS = np.unique(np.round(np.geomspace(1, 1e12, 4000)))
"""Sizes of the nets that the Lipschitz bound tries; it holds for each, so any list will do."""
_BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
"""Fractions of the largest admissible bet that a wealth bound mixes when it is told nothing better."""
ROUNDING = 1e-9
"""Added (times H) to bounds computed from data: far above the rounding of sums of up to 10^6 losses in float64."""


def hoeffding_bound(n: int, delta: float, range: float = 1.0) -> float:
    """`H sqrt(ln(2/delta) / 2n)`: two-sided, for one α fixed beforehand. The reference: no tuning at all.

    Source: Hoeffding (1963).
    """
    check_sample(n, delta)
    return range * math.sqrt(math.log(2 / delta) / (2 * n))


def crossing_bound(structure: Structure, n: int, delta: float, target: Target = "excess") -> float:
    r"""`H sqrt(2 ln N(n) / n) + c sqrt(ln(1/delta) / 2n)`, c = 2H for the excess and H for the deviation.

    *Proof.* `loss = H - int_0^H 1[loss < z] dz` (layer cake), so `E sup (L - M) <= int_0^H E sup (M_z - L_z) dz` with
    the means of the indicators. By symmetrisation the integrand is at most twice `E max (1/n) sum_i s_i b_i` over the
    at most N(n) labellings b in {0, 1}^n. As `E s_i = 0`, b may be replaced by b - 1/2, of length sqrt(n)/2, and
    Massart's lemma gives `sqrt(2 ln N(n) / n) / 2`. Centring and bounded differences do the rest. ∎ (The translation
    by 1/2 halves the usual constant; centring spares the excess the doubling of the complexity term.)

    Sources: Massart (2000); McDiarmid (1989); Pollard (1984) for pseudo-dimension.
    """
    check_sample(n, delta)
    complexity = structure.range * math.sqrt(2 * structure.log_labellings(n) / n)
    return complexity + _confidence(target) * structure.range * math.sqrt(math.log(1 / delta) / (2 * n))


def lipschitz_bound(structure: Structure, n: int, delta: float, target: Target = "excess") -> float:
    r"""`V/N + H sqrt(ln(N/delta) / 2n)`, the smallest over N, for the deviation; `V = Λ (b - a)`.

    For the excess: `V/N + H sqrt(ln(2N/delta) / 2n) + H sqrt(ln(2/delta) / 2n)`.

    *Proof.* The middles of N equal intervals come within `(b - a) / 2N` of every α, so `(L - M)(α)` is within
    `V/N` of its value at one of them; Hoeffding there, with delta/N each. For the excess, add Hoeffding at α_star.
    ∎ Each N gives a bound that holds with probability 1 - delta, and the smallest is known before any task is drawn.
    """
    check_sample(n, delta)
    if math.isinf(structure.variation):
        return math.inf
    share = delta if target == "deviation" else delta / 2
    value = structure.variation / _NETS + structure.range * np.sqrt(np.log(_NETS / share) / (2 * n))
    one = 0.0 if target == "deviation" else structure.range * math.sqrt(math.log(1 / share) / (2 * n))
    return float(np.min(value)) + one


def rademacher_bound(complexity: float, n: int, delta: float, range: float = 1.0, target: Target = "excess") -> float:
    r"""`2 R + 3 H sqrt(ln(2/delta) / 2n)` for the deviation, `2 R + 4 H sqrt(ln(2/delta) / 2n)` for the excess.

    R is the empirical Rademacher complexity `E_s max_α (1/n) sum_i s_i loss_α(x_i)` of these n tasks, or an upper
    bound of it. The proof stands in the method `bound` of what `rademacher_complexity` returns.
    """
    check_sample(n, delta)
    confidence = range * math.sqrt(math.log(2 / delta) / (2 * n))
    return 2 * complexity + (2 + _confidence(target)) * confidence


def empirical_bernstein_bound(values: Any, delta: float, range: float) -> float:
    """`mean + sqrt(2 V ln(2/delta) / n) + 7 H ln(2/delta) / (3 (n - 1))` bounds the expectation, V the sample variance.

    The values are i.i.d. in an interval of length H = `range`; one-sided. Source: Maurer and Pontil (2009), Theorem 4,
    arXiv 0907.3740.
    """
    values = np.asarray(values, dtype=np.float64)
    check_sample(values.size, delta, least=2)
    log = math.log(2 / delta)
    n = values.size
    spread = math.sqrt(2 * float(np.var(values, ddof=1)) * log / n)
    return float(np.mean(values)) + spread + 7 * range * log / (3 * (n - 1)) + ROUNDING * range


def wealth_bound(values: Any, delta: float, upper: float, bets: Any = None, weights: Any = None) -> float:
    r"""The m at which `sum_k w_k prod_i (1 + λ_k (m - d_i)) = 1/delta`: `E d <= m` with probability 1 - delta.

    The d_i = `values` are i.i.d. and at most h = `upper` (nothing is asked below); `bets` holds the `λ_k h` in
    (0, 1), `weights` their w_k, which add up to 1; both are chosen without looking at these values.

    *Proof.* With `mu = E d`, the expectation of `W(mu) = sum_k w_k prod_i (1 + λ_k (mu - d_i))` is 1. Let
    `m0 = h - 1/max λ_k`. If `mu <= m0`, nothing is to show, as the bound is kept at or above m0. If `mu > m0`,
    all factors are positive, W(mu) >= 0, and `P(W(mu) >= 1/delta) <= delta` by Markov; W increases on (m0, inf), so
    otherwise mu is less than the m where W(m) = 1/delta. ∎ `E d <= h` always, so the bound never exceeds h.

    The factors are the wealth of a gambler who bets against `E d = mu`. With values near 0 it comes within a factor
    1/λ of `h ln(1/delta) / n`, which no method can beat (an event of probability `ln(1/delta)/n` with loss h may
    have been missed); in general it adapts to the variance with no penalty for having to estimate it.

    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B (2024), arXiv
    2010.09686, here with a mixture of constant bets, which does not depend on the order of the tasks.
    """
    values = np.asarray(values, dtype=np.float64)
    check_sample(values.size, delta)
    bets = np.asarray(_BETS if bets is None else bets, dtype=np.float64)
    weights = np.full(bets.shape, 1 / bets.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if not (np.all((bets > 0) & (bets < 1)) and np.all(weights >= 0) and abs(np.sum(weights) - 1) < 1e-9):
        raise ValueError(
            f"wealth_bound: bets must lie in (0, 1) and weights be >= 0 with sum 1; got {bets}, {weights}."
        )
    if not np.all(values <= upper):
        raise ValueError(f"wealth_bound: all values must be at most upper = {upper:g}; got {np.max(values):g}.")
    bets, weights = bets[weights > 0], weights[weights > 0]
    rates = bets / upper
    floor = upper - 1 / np.max(rates)

    def enough(m: float) -> bool:
        gains = np.maximum(rates[:, None] * (m - values[None, :]), -1.0)  # below -1 by rounding alone
        with np.errstate(divide="ignore"):
            log_wealth = np.sum(np.log1p(gains), axis=1)
        return float(np.logaddexp.reduce(np.log(weights) + log_wealth)) >= math.log(1 / delta)

    low, high = floor, upper
    if not enough(high):
        return float(upper)
    for _ in range(100):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (low, middle) if enough(middle) else (middle, high)
    return min(float(upper), high + ROUNDING * upper)


def _confidence(target: Target) -> int:
    """c/H in the bounded differences of the target."""
    if target not in ("excess", "deviation"):
        raise ValueError(f"target must be 'excess' or 'deviation'; got {target!r}.")
    return 2 if target == "excess" else 1


def check_sample(n: int, delta: float, least: int = 1) -> None:
    """Raise unless n is an integer >= `least` and delta lies in (0, 1)."""
    if not (isinstance(n, int | np.integer) and n >= least):
        raise ValueError(f"the number of tasks must be an integer >= {least}; got {n!r}.")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1); got {delta!r}.")


def round_up(value: float) -> Any:
    """The value as a JAX number of the default precision, never below it."""
    array = jnp.asarray(value, dtype=float)
    return array if float(array) >= value else jnp.nextafter(array, jnp.full_like(array, jnp.inf))
