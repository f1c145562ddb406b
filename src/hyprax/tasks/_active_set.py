"""Where a piecewise-linear path of optima goes from a kink at which any number of constraints may be tied."""

import numpy as np
from scipy.linalg import get_lapack_funcs

from ._bernstein import Array

FACTORED, SOLVED = get_lapack_funcs(("getrf", "getrs"), dtype=np.float64)

FLAT = 1e-9
"""A rate below this part of the right-hand side is zero: the quantity moves along with its bound."""
_DEPENDENT = 1e-12
"""A column that keeps less than this part of its squared norm beside others is in their span."""
_TINY = np.finfo(float).tiny


def negligible(rhs: Array) -> float:
    """The rate that counts as zero beside a right-hand side."""
    return FLAT * max(float(np.abs(rhs).max()), _TINY)


def tied_direction(factor: "Factor", rhs: Array, s: Array, tied: Array, flat: float) -> tuple[Array, "Factor"]:
    """`argmin_d d^T H d / 2 - rhs^T d` over d_A free and `s_tied d_tied >= 0`, d = 0 elsewhere, where
    `factor` is H with the free variables A; with it, H with those that d leaves free. Gains up to `flat` are none.

    The direction of a piecewise-linear path of optima to one side of a kink, all ties at once.

    The active-set method of Lawson and Hanson (1974, chapter 23) in the tied variables, which nearly always takes one
    step. A variable whose column of H is in the span of the free ones is passed over: being tied like them, it goes on
    along its bound by itself.

    With a `root` A, `H = A^T A`, systems are solved by A's triangular factor, which keeps twice as many digits where
    columns are nearly dependent.
    """
    H, root = factor.H, factor.root
    dependent = _DEPENDENT if root is None else _DEPENDENT**1.75  # of a squared norm: 3e-11 of the norm of a column
    d = factor.solve(rhs)
    ties = tied.nonzero()[0]
    if ties.size == 0:
        return d, factor
    free = np.zeros(len(rhs), dtype=bool)
    free[factor.free] = True
    if ties.size == 1:  # what the loop below comes to, at nearly every kink
        j = int(ties[0])
        if s[j] * (rhs[j] - H[j] @ d) <= flat or (factor.free.size and factor.beside(j) <= dependent * H[j, j]):
            return d, factor
        free[j] = True
        made = Factor(H, free, root)
        new = made.solve(rhs)
        return (new, made) if s[j] * new[j] > 0 else (d, factor)
    barred = np.zeros(len(rhs), dtype=bool)
    for _ in range(10 * (ties.size + 1)):
        gain = np.where(tied & ~(free | barred), s * (rhs - H @ d), 0.0)  # how fast a tie left at zero breaks its bound
        j = int(gain.argmax())
        if gain[j] <= flat:
            return d, factor
        barred[j] = True
        if factor.free.size and factor.beside(j) <= dependent * H[j, j]:
            continue
        free[j] = True
        factor = Factor(H, free, root)
        new = factor.solve(rhs)
        if s[j] * new[j] <= 0:  # by rounding: the gain was nothing
            free[j] = False
            factor = Factor(H, free, root)
            continue
        while True:
            wrong = tied & free & (s * new <= 0)
            if not wrong.any():
                break
            # Back along the way to the first weight that met zero; there was progress, so the barred may try again.
            ratio = np.divide(s * d, s * (d - new), out=np.full(len(d), np.inf), where=wrong & (s * d > s * new))
            t = float(np.min(ratio))
            drop = wrong & (ratio <= t)
            if not drop.any():
                raise ArithmeticError(_STUCK)
            d = np.where(drop, 0.0, d + min(t, 1.0) * (new - d))
            free &= ~drop
            factor = Factor(H, free, root)
            new = factor.solve(rhs)
            barred[:] = False
        d = new
    raise ArithmeticError(_STUCK)


_STUCK = "the ties at a kink of the path could not be resolved in float64: the data are too ill-conditioned."


class Factor:
    """The part of H that belongs to the free variables, factored once; LAPACK is called without ceremony, as these
    systems are small and many."""

    def __init__(self, H: Array, free: Array, root: Array | None = None):
        self.H, self.root = H, root
        self.free = free.nonzero()[0]
        if self.free.size and root is None:
            self.block = H[self.free[:, None], self.free]
            self.lu, self.pivots, info = FACTORED(self.block)
            if info:
                raise np.linalg.LinAlgError("Singular matrix")
        elif root is not None and self.free.size:
            self.columns = root[:, self.free]
            self.q, self.r = np.linalg.qr(self.columns)

    def inner(self, rhs: Array) -> Array:
        """`H_ff^-1 rhs` for a right-hand side of the free variables only."""
        return SOLVED(self.lu, self.pivots, rhs)[0]

    def solve(self, rhs: Array) -> Array:
        """`H_ff d_f = rhs_f`, zero elsewhere; refined once with a root."""
        d = np.zeros(len(rhs))
        if self.free.size and self.root is None:
            d[self.free] = self.inner(rhs[self.free])
        elif self.free.size:
            for _ in range(2):  # corrected seminormal equations (Bjorck 1987)
                left = rhs[self.free] - self.columns.T @ (self.columns @ d[self.free])
                d[self.free] += np.linalg.solve(self.r, np.linalg.solve(self.r.T, left))
        return d

    def beside(self, j: int) -> float:
        """The squared norm of what column j of the root of H has beside the span of the free columns."""
        if self.root is None:
            column = self.H[self.free, j]
            return float(self.H[j, j] - column @ self.inner(column))
        column = self.root[:, j]
        rest = column - self.q @ (self.q.T @ column)
        rest -= self.q @ (self.q.T @ rest)
        return float(rest @ rest)
