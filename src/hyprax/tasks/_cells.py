r"""How many cells polynomials cut space into: what sample sizes for trained models are counted by.

**Theorem (Basu, Pollack and Roy 2005).** The realisations of all sign conditions (< 0, = 0, > 0) of s polynomials of
degree at most D in k real variables have together at most `C(s, k, D) = D (2D - 1)^(k-1) sum_{j<=k} binom(s, j) 4^j`
connected components, called cells here. It makes the constants of the bounds for trained models explicit.

Source: Basu, Pollack and Roy, "On the Betti numbers of sign conditions", Proc. AMS 133 (2005).
"""

import math

import numpy as np


def log_binomial_sum(s: int, k: int, log_base: float) -> float:
    """`ln sum_{j <= min(k, s)} binom(s, j) base^j`."""
    from scipy.special import gammaln

    j = np.arange(min(k, s) + 1, dtype=np.float64)
    terms = gammaln(s + 1.0) - gammaln(j + 1) - gammaln(s - j + 1) + j * log_base
    return float(np.logaddexp.reduce(terms))


def log_cells(polynomials: int, variables: int, degree: int) -> float:
    """`ln C(s, k, D)`, `C = D (2D - 1)^(k-1) sum_{j <= k} binom(s, j) 4^j` (Basu, Pollack and Roy 2005)."""
    choices = log_binomial_sum(polynomials, variables, math.log(4.0))
    return math.log(degree) + (variables - 1) * math.log(2 * degree - 1) + choices
