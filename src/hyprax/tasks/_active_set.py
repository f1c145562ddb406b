"""Where a piecewise-linear path of optima goes from a kink at which any number of constraints may be tied."""

import numpy as np

from ._bernstein import Array

FLAT = 1e-9
"""A rate below this part of the right-hand side is zero: the quantity moves along with its bound."""
_DEPENDENT = 1e-12
"""A column that keeps less than this part of its squared norm beside others is in their span."""


def tied_direction(H: Array, rhs: Array, s: Array, active: Array, tied: Array, root: Array | None = None) -> Array:
    """`argmin_d d^T H d / 2 - rhs^T d` over d_active free and `s_tied d_tied >= 0`, d = 0 elsewhere.

    The direction of a piecewise-linear path of optima to one side of a kink, all ties at once.

    The active-set method of Lawson and Hanson (1974, chapter 23) in the tied variables, which nearly always takes one
    step. A variable whose column of H is in the span of the free ones is passed over: being tied like them, it goes on
    along its bound by itself.

    With a `root` A, `H = A^T A`, systems are solved by A's triangular factor, which keeps twice as many digits where
    columns are nearly dependent.
    """
    dependent = _DEPENDENT if root is None else _DEPENDENT**1.75  # of a squared norm: 3e-11 of the norm of a column
    free, barred = active.copy(), np.zeros_like(active)
    d = solve(H, rhs, free, root)
    flat = FLAT * max(float(np.max(np.abs(rhs))), np.finfo(float).tiny)
    for _ in range(10 * (int(tied.sum()) + 1)):
        gain = np.where(tied & ~free & ~barred, s * (rhs - H @ d), 0.0)  # how fast a tie left at zero breaks its bound
        j = int(np.argmax(gain))
        if gain[j] <= flat:
            return d
        barred[j] = True
        if free.any() and _beside(H, j, free, root) <= dependent * H[j, j]:
            continue
        free[j] = True
        new = solve(H, rhs, free, root)
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
            new = solve(H, rhs, free, root)
            barred[:] = False
        d = new
    raise ArithmeticError(_STUCK)


_STUCK = "the ties at a kink of the path could not be resolved in float64: the data are too ill-conditioned."


def solve(H: Array, rhs: Array, free: Array, root: Array | None = None) -> Array:
    """`H_ff d_f = rhs_f`, zero elsewhere, refined once."""
    d = np.zeros(len(rhs))
    if not free.any():
        return d
    inner = H[np.ix_(free, free)]
    if root is None:
        d[free] = np.linalg.solve(inner, rhs[free])
        return d
    r = np.asarray(np.linalg.qr(root[:, free], mode="r"))
    for _ in range(2):  # corrected seminormal equations (Bjorck 1987)
        left = rhs[free] - root[:, free].T @ (root[:, free] @ d[free])
        d[free] += np.linalg.solve(r, np.linalg.solve(r.T, left))
    return d


def _beside(H: Array, j: int, free: Array, root: Array | None) -> float:
    """The squared norm of what column j of the root of H has beside the span of the free columns."""
    if root is None:
        return float(H[j, j] - H[j, free] @ solve(H, H[:, j], free)[free])
    q = np.linalg.qr(root[:, free])[0]
    rest = root[:, j] - q @ (q.T @ root[:, j])
    rest -= q @ (q.T @ rest)
    return float(rest @ rest)
