"""Power series in one hyperparameter with a bound on everything that was left out: verified, not assumed.

On a piece `α = c + h s`, `|s| <= 1`, a quantity is `x(s) = sum_k x_k s^k + e(s)` with `‖e(s)‖ <= radius` for
every such s. A linear system `M(s) x(s) = r(s)` gives the `x_k` by one factorisation of `M_0` and a recurrence; the
residual of the truncated series is itself a polynomial, so the sum of the norms of its coefficients bounds it on the
whole piece, and `‖x - x_hat‖ <= ‖M^-1‖ ‖residual‖`. Nothing is assumed about convergence: a piece that is too
wide has a large residual, and is halved.

Rounding is counted by the standard model (Higham, *Accuracy and stability of numerical algorithms*, 2002, chapter 3): a
sum of N products is off by at most `gamma_N = N u / (1 - N u)` times the sum of the absolute values.
"""

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import numpy as np

from ._bernstein import UNIT, Array
from ._margins import margin_radius, margins

PENALTY = "Raise the penalty of the read-out, or keep the domain away from this place."
"""The way out where a ridge read-out is too ill-conditioned."""


def gamma(n: float) -> float:
    """`gamma_n = n u / (1 - n u)`: the relative error of a sum of n products of float64 numbers."""
    return n * UNIT / (1 - n * UNIT)


def norms(series: Array) -> Array:
    """Frobenius norm of each coefficient, rounded up."""
    flat = series.reshape(len(series), -1)
    return np.sqrt(np.sum(flat * flat, axis=1)) * (1 + gamma(flat.shape[1] + 8))


def multiply(a: Array, b: Array, degree: int | None = None) -> Array:
    """Coefficients of `a(s) @ b(s)`, all of them or those up to `degree`."""
    full = len(a) + len(b) - 1
    length = full if degree is None else min(full, degree + 1)
    out = np.zeros((length, a.shape[1], b.shape[2]))
    for j in range(min(len(a), length)):
        part = b[: length - j]
        out[j : j + len(part)] += a[j] @ part
    return out


def solve_spd(matrix: Array, right: Array, degree: int) -> Array:
    """The first coefficients of `x(s)`, `matrix(s) x(s) = right(s)`: `M_0 x_d = r_d - sum_{j >= 1} M_j x_{d - j}`.

    `matrix` (J + 1, n, n) symmetric with `M_0` positive definite, `right` (I + 1, n, K). Raises
    `numpy.linalg.LinAlgError` where `M_0` is not positive definite. No claim of accuracy: the caller verifies.
    """
    from scipy.linalg import cho_factor, cho_solve

    try:
        factor = cho_factor(matrix[0], lower=True)
    except np.linalg.LinAlgError:
        raise np.linalg.LinAlgError("the linear system is numerically singular there") from None
    out = np.zeros((degree + 1, *right.shape[1:]))
    for d in range(degree + 1):
        r = right[d].copy() if d < len(right) else np.zeros(right.shape[1:])
        for j in range(1, min(d, len(matrix) - 1) + 1):
            r -= matrix[j] @ out[d - j]
        out[d] = cho_solve(factor, r)
    return out


class Features(NamedTuple):
    """Rows of features on a piece: `Phi(s) = sum_j coefficients[j] s^j + E(s)`, `‖row of E(s)‖ <= radius` each."""

    coefficients: Array
    """(J + 1, n, k)."""
    radius: Array
    """(n,): Euclidean."""
    truncation: Array
    """(n,): the part of the radius that a thinner piece would lessen; the rest is rounding."""


class Outputs(NamedTuple):
    """Predictions on a piece: `out(s) = sum_d coefficients[d] s^d + e(s)`, `‖row of e(s)‖ <= radius` each."""

    coefficients: Array
    """(D + 1, m, K)."""
    radius: Array
    """(m,): Euclidean."""
    truncation: Array
    """(m,): the part of the radius that a thinner piece would lessen; the rest is rounding."""


def ridge_outputs(train: Features, targets: Array, test: Features, penalty: float, degree: int) -> Outputs:
    """`out(s) = Psi(s) w(s)`, `w(s) = argmin_w ‖Phi(s) w - Y‖^2 / n + penalty ‖w‖^2`, verified on the whole piece.

    *Proof of the radius.* With `m = n penalty`, w solves `(Phi^T Phi + m I) w = Phi^T Y`, so for the polynomial w_hat
    `w - w_hat = (Phi^T Phi + m I)^-1 [Phi^T (Y - Phi w_hat) - m w_hat]`. Put `Phi = F + E` with F the polynomial,
    `e = Y - F w_hat`, `r = F^T e - m w_hat`: the bracket is `r + E^T e - Phi^T E w_hat`. Now
    `‖(Phi^T Phi + m I)^-1‖ <= 1/m` and `‖(Phi^T Phi + m I)^-1 Phi^T‖ <= 1/(2 sqrt m)`, so
    `‖w - w_hat‖ <= (‖r‖ + ‖E‖ ‖e‖)/m + ‖E‖ ‖w_hat‖/(2 sqrt m)`, where a polynomial is at most the sum of
    the norms of its coefficients as |s| <= 1. Rounding: the computed e is off by `d_e <= gamma (|F| |w_hat| + |Y|)`,
    which adds `F^T d_e`, worth `‖d_e‖/(2 sqrt m) + ‖E‖ ‖d_e‖/m`, and the products in r by `gamma (|F|^T |e| + m
    |w_hat|)`. A row of `Psi w` is then off by `‖psi‖ ‖w - w_hat‖ + ‖E_psi‖ (‖w_hat‖ + ‖w - w_hat‖)`.

    `targets` (n, K). The system solved is the smaller of k x k and n x n.
    """
    f, (_, n, k) = train.coefficients, train.coefficients.shape
    shift = n * penalty
    transposed = np.ascontiguousarray(f.transpose(0, 2, 1))
    if k <= n:
        gram = multiply(transposed, f, degree)
        gram[0] += shift * np.eye(k)
        w = solve_spd(gram, transposed @ targets, degree)
    else:
        gram = multiply(f, transposed, degree)
        gram[0] += shift * np.eye(n)
        w = multiply(transposed, solve_spd(gram, targets[None], degree), degree)
    e = -multiply(f, w)
    e[0] += targets
    r = multiply(transposed, e)
    r[: len(w)] -= shift * w
    radius = float(np.sqrt(np.sum(train.radius**2))) * (1 + gamma(n + 8))
    s_w, s_e, s_r = (float(np.sum(norms(x))) for x in (w, e, r))
    f_abs, w_abs, e_abs = (np.sum(np.abs(x), axis=0) for x in (f, w, e))
    d_e = gamma(k + len(f) + 8) * float(norms((f_abs @ w_abs + np.abs(targets))[None])[0])
    d_r = gamma(n + len(f) + 8) * float(norms((f_abs.T @ e_abs + shift * w_abs)[None])[0])
    root = 2 * np.sqrt(shift) * (1 - gamma(8))
    error = ((s_r + d_r + radius * (s_e + d_e)) / shift + (d_e + radius * s_w) / root) * (1 + gamma(n + k + 64))
    # The coefficients of r up to `degree` would be zero in exact arithmetic: only the others are truncation.
    missed = float(np.sqrt(np.sum(train.truncation**2)))
    cut = (float(np.sum(norms(r[degree + 1 :]))) + missed * s_e) / shift + missed * s_w / root

    v = test.coefficients
    rows = np.sum(np.sqrt(np.sum(v * v, axis=2)), axis=0) * (1 + gamma(k + 16))
    out = multiply(v, w)
    slack = rows * error + test.radius * (s_w + error) + gamma(k + 2 * len(out) + 16) * rows * s_w
    return Outputs(out, slack * (1 + gamma(64)), rows * cut + test.truncation * s_w)


class Scores(NamedTuple):
    """What is kept of a piece: the mean squared error and the classification margins, as Bernstein coefficients on
    it."""

    loss: Array
    """(1, L + 1)."""
    loss_radius: float
    truncation: float
    """The part of `loss_radius` that a thinner piece would lessen; the rest is rounding."""
    margins: Array
    """(R, D + 1), positive where right; empty for a regression."""
    margin_radius: Array
    """(R,)."""


def _bernstein(series: Array) -> Array:
    """Bernstein coefficients on [-1, 1] of `sum_k c_k s^k`, rows of `series` (rows, n + 1).

    The coefficient i of s^k is the mean of the products of k among i ones and n - i minus ones (its polar form): at
    most 1 in size, so the change of basis amplifies no error.
    """
    n = series.shape[1] - 1
    table = np.zeros((n + 1, n + 1))
    for i in range(n + 1):
        # (1 + x)^i (1 - x)^(n - i) = sum_k e_k x^k, e_k the elementary symmetric polynomials of the signs: integers,
        # exact.
        e = np.array([1.0])
        for sign in [1.0] * i + [-1.0] * (n - i):
            e = np.convolve(e, [1.0, sign])
        table[:, i] = e / [comb(n, k) for k in range(n + 1)]
    return series @ table


def _shorten(series: Array, degree: int) -> tuple[Array, Array, Array]:
    """Rows cut to `degree`, what the cut is worth at most on |s| <= 1, and the rounding of the change to Bernstein's
    basis."""
    tail = np.sum(np.abs(series[:, degree + 1 :]), axis=1)
    lost = gamma(4 * series.shape[1] + 16) * np.sum(np.abs(series), axis=1)
    return series[:, : degree + 1], tail, lost


def score(outputs: Outputs, targets: Array, truth: Array | None, degree: int) -> Scores:
    """Mean squared error `mean_j ‖out_j - y_j‖^2` and margins on a piece.

    `targets` (m, K); `truth` (m,): the right class of each row where this is a classification.

    *The loss's radius.* `| ‖r + e‖^2 - ‖r‖^2 | <= ‖e‖ (2 ‖r‖ + ‖e‖)` summed over rows by Cauchy-Schwarz.
    """
    residual = outputs.coefficients.copy()
    residual[0] -= targets
    m = len(targets)
    flat = residual.reshape(len(residual), -1)
    length = 2 * len(flat) - 1
    loss = np.zeros((1, length))
    for i in range(len(flat)):
        loss[0, i : i + len(flat)] += flat @ flat[i] / m
    total = float(np.sum(norms(residual)))
    error = float(np.sqrt(np.sum(outputs.radius**2))) * (1 + gamma(m + 8))
    error += gamma(8) * float(norms(targets[None])[0])
    radius = error * (2 * total + error) / m + gamma(flat.shape[1] + 2 * length + 16) * total**2 / m
    short, tail, lost = _shorten(loss, degree)
    radius = (radius + float(tail[0] + lost[0])) * (1 + gamma(64))
    cut = 2 * total * float(np.sqrt(np.sum(outputs.truncation**2))) / m + float(tail[0])
    if truth is None:
        return Scores(_bernstein(short), radius, cut, np.zeros((0, 1)), np.zeros(0))
    out = outputs.coefficients
    slack = margin_radius(outputs.radius, out.shape[2])
    kept, tail, lost = _shorten(margins(out, targets, truth).T, degree)
    return Scores(_bernstein(short), radius, cut, _bernstein(kept), (slack + tail + lost) * (1 + gamma(64)))


def _shifted(scores: Scores, lo: float, hi: float) -> Scores:
    """The radii with what the rounding of the centre and of the half-width can do.

    The computed `c` and `h` are off by at most `2 u max(|lo|, |hi|)`, so the local coordinate t that belongs to an
    α is off by at most `delta = 4 u max(|lo|, |hi|) / (hi - lo)`, and s may leave [-1, 1] by 2 delta: a polynomial
    of degree n moves by at most delta times the largest slope `n max|b_(i+1) - b_i|`, and the sums of norms grow by a
    factor `(1 + 2 delta)^n`.
    """
    delta = 4 * UNIT * max(abs(lo), abs(hi)) / (hi - lo)
    if delta > 1e-5:
        raise np.linalg.LinAlgError("the piece is too thin for float64")

    def moved(radius: Array, rows: Array) -> Array:
        slope = (rows.shape[1] - 1) * np.max(np.abs(np.diff(rows, axis=1)), axis=1, initial=0.0)
        return radius * (1 + 100 * delta) + 2 * delta * slope

    loss_radius = float(moved(np.array([scores.loss_radius]), scores.loss)[0])
    return scores._replace(loss_radius=loss_radius, margin_radius=moved(scores.margin_radius, scores.margins))


def cover(
    domain: tuple[float, float], expand: Callable[[float, float], Scores], accuracy: float, what: str, way_out: str
) -> list[tuple[float, float, Scores]]:
    """Halve `domain` until the truncation of `expand(a, b)` is worth at most `accuracy` on every part.

    A part on which `expand` raises `numpy.linalg.LinAlgError` is halved too. Raises ValueError, with the place and the
    reason, at parts thinner than 2^-40 of the domain.
    """
    a, b = domain
    stack, out = [(a, b)], []
    while stack:
        lo, hi = stack.pop()
        try:
            scores = _shifted(expand(lo, hi), lo, hi)
            if scores.truncation <= accuracy and np.isfinite(scores.loss_radius):
                out.append((lo, hi, scores))
                continue
            reason = f"the error of a truncated series there is {scores.truncation:.3g}, above {accuracy:.3g}"
        except np.linalg.LinAlgError as failure:
            reason = f"{failure}".rstrip(".")
        middle = 0.5 * (lo + hi)
        if not (b - a) * 2.0**-40 < hi - lo or not lo < middle < hi:
            raise ValueError(
                f"{what}: no bound could be proved near {middle:.6g}, however thin the piece: {reason}. {way_out}"
            )
        stack += [(middle, hi), (lo, middle)]
    return out
