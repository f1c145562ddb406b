"""Where a piecewise-linear path of optima goes from a kink at which any number of constraints may be tied."""

import numpy as np

from ._bernstein import Array

FLAT = 1e-9
"""A rate below this part of the right-hand side is zero: the quantity moves along with its bound."""
_DEPENDENT = 1e-12
"""A column that keeps less than this part of its squared norm beside others is in their span."""


def tied_direction(H: Array, rhs: Array, s: Array, active: Array, tied: Array) -> Array:
    """`argmin_d d^T H d / 2 - rhs^T d` over d_active free and `s_tied d_tied >= 0`, d = 0 elsewhere.

    The direction of a piecewise-linear path of optima to one side of a kink, all ties at once.

    The active-set method of Lawson and Hanson (1974, chapter 23) in the tied variables, which nearly always takes one
    step. A variable whose column of H is in the span of the free ones is passed over: being tied like them, it goes on
    along its bound by itself.
    """
    free, barred = active.copy(), np.zeros_like(active)
    d = _solve(H, rhs, free)
    flat = FLAT * max(float(np.max(np.abs(rhs))), np.finfo(float).tiny)
    for _ in range(10 * (int(tied.sum()) + 1)):
        gain = np.where(tied & ~free & ~barred, s * (rhs - H @ d), 0.0)  # how fast a tie left at zero breaks its bound
        j = int(np.argmax(gain))
        if gain[j] <= flat:
            return d
        barred[j] = True
        if free.any() and H[j, j] - H[j, free] @ _solve(H, H[:, j], free)[free] <= _DEPENDENT * H[j, j]:
            continue
        free[j] = True
        new = _solve(H, rhs, free)
        if s[j] * new[j] <= 0:  # by rounding: the gain was nothing
            free[j] = False
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
            new = _solve(H, rhs, free)
            barred[:] = False
        d = new
    raise ArithmeticError(_STUCK)


_STUCK = "the ties at a kink of the path could not be resolved in float64: the data are too ill-conditioned."


def _solve(H: Array, rhs: Array, free: Array) -> Array:
    d = np.zeros(len(rhs))
    if free.any():
        d[free] = np.linalg.solve(H[np.ix_(free, free)], rhs[free])
    return d
