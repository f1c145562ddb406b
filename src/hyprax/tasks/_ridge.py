"""The validation loss of ridge regression as a function of its penalty."""

from typing import Literal, NamedTuple

import numpy as np

from . import _bernstein as bernstein
from ._bernstein import UNIT, Array
from ._expand import interpolate, interpolation
from ._piecewise import PiecewiseFunction
from ._task import Column, Split, Task, check_domain, check_labels, check_unweighted, singular_floor
from ._zero_one import zero_one_loss

_DEGREE = 16
_LEBESGUE = 3.0
"""Bound of the Lebesgue constant `1 + (2/pi) ln(17)` of 17 Chebyshev points."""
_PER_OCTAVE = 2


def ridge_dual(
    task: Task,
    domain: tuple[float, float],
    *,
    intercept: bool = True,
    loss: Literal["squared", "zero-one"] = "squared",
) -> PiecewiseFunction:
    r"""`f(λ) = (1/M) sum ‖y_i - x_i w(λ)‖^2` over validation examples, exact to rounding, where

    `w(λ) = argmin_w ‖y - X w‖^2 / (2 n) + λ ‖w‖^2 / 2` on each training part.

    With `X = U S V^T`, `x_i w(λ) = sum_j (x_i V)_j s_j (U^T y)_j / (s_j^2 + n λ)`: f is a rational function
    of degree at most twice the rank (summed over the splits), with all poles at `λ <= 0`. In monomials or over a
    common denominator such a function loses every digit, so it is held in polynomials of degree 16 on half-octaves of
    λ, with a proven radius; the sum of thousands of duals is then of the same form.

    *Proof of the radius.* f extends to complex z with `Re z >= x > 0`, and there `|s^2 + n z| >= s^2 + n x`, so
    `‖w(z)‖ <= ‖w(x)‖ <= (l / x) ‖w(l)‖` for x < l, and `|f(z)| <= B = (1/M) sum (‖y_val‖ + ‖X_val‖
    ‖w(x)‖)^2`. On a piece [l, u] the Bernstein ellipse of parameter `rho = c + sqrt(c^2 - 1)`, `c = ((l + u)/2 - x)
    / ((u - l)/2)`, lies in `Re z >= x`; interpolation at N + 1 Chebyshev points errs by at most `4 B rho^-N / (rho -
    1)` (Trefethen, Approximation Theory and Approximation Practice, theorem 8.2), and errors of the values there count
    at most 3 times (Lebesgue constant). Each value is checked: its w has a gradient g computed with a rounding bound,
    so `‖w - w_true‖ <= ‖g‖ / (λ + s_min^2 / n)`; with more columns than rows the dual system is checked
    likewise. Errors are bounded once in w and once in w scaled by the sizes of the columns, where the modulus is that
    of the scaled columns: columns of very different sizes spoil the one, nearly dependent ones the other.

    **Arguments:**

    - `task`: any number of outputs for the squared loss; labels -1 and +1 for the 0-1 loss.
    - `domain`: (a, b), the range of λ, a > 0.
    - `intercept`: whether an unpenalised intercept is fitted (by the means of each training part).
    - `loss`: the validation loss. `"zero-one"` is the share of examples with `y_i x_i w <= 0`: constant between the
      roots of the margins, undecided (an enclosure) within rounding of them.

    **Returns:** a [`PiecewiseFunction`][hyprax.tasks.PiecewiseFunction]; its radius bounds the distance to the dual of
    the data as given, rounding included.
    """
    a, b = check_domain(domain, "ridge_dual")
    if loss not in ("squared", "zero-one"):
        raise ValueError(f"loss must be 'squared' or 'zero-one'; got {loss!r}.")
    n_pieces = max(1, int(np.ceil(_PER_OCTAVE * np.log2(b / a) - 1e-9)))
    edges = np.geomspace(a, b, n_pieces + 1)
    edges[0], edges[-1] = a, b
    nodes = interpolation(_DEGREE)[0]
    grid = edges[:-1, None] + nodes * np.diff(edges)[:, None]
    if loss == "zero-one":
        check_unweighted(task, "ridge_dual")
        for split in task.splits:
            check_labels(np.concatenate([split.y, split.y_val]), "ridge_dual")
        return _zero_one(task, edges, grid, intercept)
    if task.whole is not None:
        closed = _leave_one_out(*task.whole, edges, grid, intercept)
        if closed is not None:
            return closed
    values, error, bound = np.zeros_like(grid), np.zeros_like(grid), np.zeros((n_pieces, len(_RELATIVE)))
    for split in task.splits:
        model = _Model(split, grid, intercept)
        size = np.sqrt(np.sum(model.residual**2, axis=(0, 1)))
        values += size.reshape(grid.shape) ** 2
        off = np.sqrt(np.sum(model.residual_error**2, axis=(0, 1)))
        error += ((2 * size + off) * off + 4 * model.residual[..., 0].size * UNIT * size**2).reshape(grid.shape)
        bound += model.bound
    rows, radius = _polynomials(values, error, _truncation(edges, bound))
    return PiecewiseFunction(edges, rows, None, radius) * (1.0 / task.n_validation)


def _leave_one_out(X: Array, y: Array, edges: Array, grid: Array, intercept: bool) -> PiecewiseFunction | None:
    r"""The dual from one factorisation: `e_i = r_i / (1 - h_i)`, r the residuals and h the leverages on all rows.

    With `m = (n - 1) λ`, `A = X^T X + m I`: `h_i = x_i A^-1 x_i` (and 1/n for an intercept, X centred). `None` where
    the leverages are not known well enough; the splits are then solved one by one.

    *Proof of the leverages' error.* For any Z, `h_i - x_i Z_i = x_i A^-1 (x_i^T - A Z_i)`, at most `‖A^-1 x_i‖` times
    the norm of the residual, which is computed with its rounding; and `‖A^-1 x_i‖ <= max s / (s^2 + m)` over the
    singular values s of X.
    """
    n, d = X.shape
    if n <= d:
        return None
    split = Split(X, y, X, y)
    model = _Model(split, grid * ((n - 1) / n), intercept)
    centred = split.centred(intercept)
    x, size = centred.X.values, centred.X.size
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    floor, gram, gram_size = singular_floor(s, size), x.T @ x, size.T @ size
    leverage, off = np.empty((n, grid.size)), np.empty((n, grid.size))
    for piece, m in enumerate((n - 1) * grid):
        z = np.einsum("kd,ik,kj->dij", vt, u, s[:, None] / (s[:, None] ** 2 + m))  # (d, n, nodes)
        sizes = np.abs(z)
        rest = np.abs(x.T[..., None] - _apply(gram, z) - m * z)
        rest += (2 * n + d + 24) * UNIT * (_apply(gram_size, sizes) + m * sizes + size.T[..., None])
        worst = np.maximum(floor, np.sqrt(m))
        here = slice(piece * len(m), (piece + 1) * len(m))
        leverage[:, here] = np.einsum("id,dij->ij", x, z) + (1 / n if intercept else 0.0)
        off[:, here] = np.sqrt(np.sum(rest**2, axis=0)) * (worst / (worst**2 + m)) * (1 + 1e-9)
        off[:, here] += (n + d + 16) * UNIT * np.einsum("id,dij->ij", size, sizes) + 8 * UNIT
    least = 1 - leverage - off
    if not np.all(least > 0):
        return None
    e = model.residual / (1 - leverage)[:, None, :]
    e_error = (model.residual_error + np.abs(e) * (off + 8 * UNIT)[:, None, :]) / least[:, None, :]
    norm = np.sqrt(np.sum(e**2, axis=(0, 1)))
    wrong = np.sqrt(np.sum(e_error**2, axis=(0, 1)))
    error = (2 * norm + wrong) * wrong + 4 * e[..., 0].size * UNIT * norm**2
    # |v w(z)| <= ‖v‖ ‖y‖ m^(-1/2) / 2 for every split, whose centred rows are n / (n - 1) times those of all rows.
    more = n / (n - 1)
    far = model.row_norm[:, None, None] * float(np.linalg.norm(centred.y.size))
    far = far / (2 * np.sqrt((n - 1) * edges[:-1, None] * _RELATIVE))
    bound = np.sum((more * (np.linalg.norm(centred.y.size, axis=1)[:, None, None] + far)) ** 2, axis=0) * (1 + 1e-9)
    rows, radius = _polynomials((norm**2).reshape(grid.shape), error.reshape(grid.shape), _truncation(edges, bound))
    if not np.max(radius) <= _CLOSE * np.max(np.abs(rows)):
        return None
    return PiecewiseFunction(edges, rows, None, radius) * (1.0 / n)


_CLOSE = 1e-8
"""The radius, in parts of the loss, above which the closed form is not used."""
_RELATIVE = np.array([0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
"""Left ends x of the ellipses tried, as parts of l: a wider ellipse has a larger rho, and a larger bound B."""


class _Model:
    """The solutions of one split at all nodes, with their errors."""

    def __init__(self, split: Split, grid: Array, intercept: bool):
        centred = split.centred(intercept)
        X, y = centred.X, centred.y
        solution = (_primal if X.values.shape[0] >= X.values.shape[1] else _dual)(X, y, grid.ravel())
        self.prediction = _apply(centred.X_val.values, solution.w)
        self.residual = centred.y_val.values[..., None] - self.prediction
        size_val = centred.X_val.size
        lost = centred.y_val.size[..., None] + _apply(size_val, np.abs(solution.w))
        self.row_norm = np.linalg.norm(size_val, axis=1) * (1 + 1e-12)
        scaled_norm = np.linalg.norm(size_val / solution.scale, axis=1) * (1 + 1e-12)
        self.residual_error = (sum(X.values.shape) + 8) * UNIT * lost + np.minimum(
            self.row_norm[:, None, None] * solution.error, scaled_norm[:, None, None] * solution.scaled_error
        )
        self.offset = float(centred.y.mean[0, 0])  # the mean of the targets; 0 without an intercept
        self.target_norm = float(np.linalg.norm(centred.y_val.size))
        # For Re z >= x, below the first node l of a piece: |v w(z)| <= ‖v‖ ‖w(x)‖ and ‖w(x)‖ <= (l / x) ‖w(l)‖;
        # and |v w(z)| <= ‖y‖ (v^T (X^T X + n x)^-1 v)^(1/2).
        first = (_norm(solution.w) + solution.error).reshape(grid.shape)[:, :1] * (1 + 1e-12)
        energy = solution.scaled_modulus(grid[:, :1] * _RELATIVE / (1 + _FIRST)) * len(X.values)
        with np.errstate(divide="ignore"):
            steep = float(np.linalg.norm(y.size)) / np.sqrt(energy) * (1 + 1e-12)
        far = first * (1 + _FIRST) / _RELATIVE
        self.reach = np.minimum(self.row_norm[:, None, None] * far, scaled_norm[:, None, None] * steep)
        """(m, K, ellipses): how large a prediction gets on the ellipses."""
        together = np.minimum(np.linalg.norm(self.row_norm) * far, np.linalg.norm(scaled_norm) * steep)
        self.bound = (self.target_norm + together) ** 2


class _Solution(NamedTuple):
    """w (d, q, nodes), with bounds of its error in two norms, of w and of `scale w`."""

    w: Array
    error: Array
    scaled_error: Array
    scale: Array
    """(d,): the root mean squares of the columns, so that the errors of columns of other sizes do not mix."""
    floor: float
    """A lower bound of the curvature of the loss in `scale w`."""

    def scaled_modulus(self, penalty: Array) -> Array:
        """A lower bound of the strong convexity in `scale w`."""
        return self.floor + penalty / np.max(self.scale) ** 2


def _primal(X: Column, y: Column, lam: Array) -> _Solution:
    """The error of w is its gradient over the strong convexity `λ + s_min^2 / n`."""
    (n, d), q = X.values.shape, y.values.shape[1]
    u, s, vt = np.linalg.svd(X.values, full_matrices=False)
    inner = (s[:, None] * (u.T @ y.values))[:, :, None] / (s[:, None, None] ** 2 + n * lam)
    w = (vt.T @ inner.reshape(len(s), -1)).reshape(d, q, -1)
    gradient = _apply(X.values.T, y.values[..., None] - _apply(X.values, w)) / n - lam * w
    size_w = np.abs(w)
    # Rounding of two products, a subtraction and the centring (Higham 2002, section 3.5).
    lost = _apply(X.size.T, y.size[..., None] + _apply(X.size, size_w)) / n + lam * size_w
    wrong = np.abs(gradient) + (2 * n + d + 12) * UNIT * lost
    scale = np.sqrt(np.mean(X.values**2, axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    floor = singular_floor(np.linalg.svd(X.values / scale, compute_uv=False), X.size / scale) ** 2 / n * (1 - 1e-12)
    plain = _norm(wrong) / (lam + singular_floor(s, X.size) ** 2 / n) * (1 + 1e-12)
    found = _Solution(w, plain, plain, scale, floor)
    scaled = _norm(wrong / scale[:, None, None]) / found.scaled_modulus(lam) * (1 + 1e-12)
    return found._replace(scaled_error=scaled)


def _dual(X: Column, y: Column, lam: Array) -> _Solution:
    """The same with `w = X^T a`, `(X X^T + n λ) a = y`, for more columns than rows.

    A residual r of that system moves w by at most `‖r‖ max_s s / (s^2 + n λ)` over the singular values s.
    """
    (n, d), q = X.values.shape, y.values.shape[1]
    u, s, _ = np.linalg.svd(X.values, full_matrices=False)
    inner = (u.T @ y.values)[:, :, None] / (s[:, None, None] ** 2 + n * lam)
    a = (u @ inner.reshape(len(s), -1)).reshape(n, q, -1)
    w = _apply(X.values.T, a)
    residual = y.values[..., None] - _apply(X.values, w) - n * lam * a
    size_a = np.abs(a)
    size_w = _apply(X.size.T, size_a)
    lost = y.size[..., None] + _apply(X.size, size_w) + n * lam * size_a
    norm = _norm(np.abs(residual) + (2 * d + n + 12) * UNIT * lost)
    worst = np.maximum(singular_floor(s, X.size), np.sqrt(n * lam))  # s / (s^2 + n λ) has its top at sqrt(n λ)
    error = (norm * worst / (worst**2 + n * lam) + (n + 4) * UNIT * _norm(size_w)) * (1 + 1e-12)
    return _Solution(w, error, error, np.ones(d), 0.0)


def _norm(tensor: Array) -> Array:
    return np.sqrt(np.sum(tensor**2, axis=(0, 1)))


_FIRST = 0.01
"""The first node of a piece [l, u], u <= sqrt(2) l, lies below (1 + 0.01) l."""


def _apply(matrix: Array, tensor: Array) -> Array:
    """`sum_j matrix[i, j] tensor[j, q, k]`."""
    return (matrix @ tensor.reshape(len(tensor), -1)).reshape(len(matrix), *tensor.shape[1:])


def _polynomials(values: Array, error: Array, cut: Array) -> tuple[Array, Array]:
    """Bernstein rows through `values` (rows, nodes), known within `error`, and their radius; `cut`: truncation."""
    rows = interpolate(values, _DEGREE)
    met = np.stack([bernstein.evaluate(rows, np.full(len(rows), t)) for t in interpolation(_DEGREE)[0]], axis=1)
    at_nodes = np.max(np.abs(values - met) + error, axis=1) + 2 * bernstein.rounding(rows)
    return rows, _LEBESGUE * at_nodes + cut


def _truncation(edges: Array, bound: Array) -> Array:
    """`min_x 4 B(x) rho(x)^-N / (rho(x) - 1)`; `bound` (K, ..., ellipses), slightly raised for its own rounding."""
    low, high = edges[:-1, None], edges[1:, None]
    c = (0.5 * (low + high) - _RELATIVE * low) / (0.5 * (high - low))
    rho = (c + np.sqrt(c**2 - 1)) * (1 - 1e-12)
    factor = 4.01 * rho**-_DEGREE / (rho - 1)
    return np.min(bound * factor.reshape(len(low), *[1] * (bound.ndim - 2), -1), axis=-1)


def _zero_one(task: Task, edges: Array, grid: Array, intercept: bool) -> PiecewiseFunction:
    """The margins `y_i (x_i w + intercept)` as polynomials with radii, and their signs."""
    rows, radii = [], []
    for split in task.splits:
        model = _Model(split, grid, intercept)
        m, k = len(split.y_val), len(edges) - 1
        values = _by_piece(split.y_val * (model.prediction[:, 0] + model.offset), grid)
        error = _by_piece(model.residual_error[:, 0] + 4 * UNIT * abs(model.offset), grid)
        cut = _truncation(edges, abs(model.offset) + model.reach.swapaxes(0, 1))
        row, radius = _polynomials(values, error, cut.ravel())
        rows.append(row.reshape(k, m, -1))
        radii.append(radius.reshape(k, m))
    return zero_one_loss(edges, np.concatenate(rows, axis=1), np.concatenate(radii, axis=1))


def _by_piece(values: Array, grid: Array) -> Array:
    """(m, pieces * nodes) -> (pieces * m, nodes)."""
    return values.reshape(-1, *grid.shape).swapaxes(0, 1).reshape(-1, grid.shape[1])
