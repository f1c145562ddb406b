"""Exact solution paths of the lasso and the elastic net, with the optimality conditions checked on every piece."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ._active_set import FLAT, Factor, negligible, tied_direction
from ._bernstein import UNIT, Array
from ._piecewise import PiecewiseFunction
from ._task import Centred, Split, Task, check_domain, check_labels, check_unweighted, singular_floor
from ._zero_one import zero_one_loss

_TIE = 1e-11
"""Correlations this close to the penalty, and weights this close to zero, in parts of their scale, count as ties."""
KKT_TOLERANCE = 1e-13
"""A violation of the optimality conditions above this part of the largest `|X^T y| / n` asks for a path that is
computed
with more care."""
LET_THROUGH = 1e-6
"""The largest violation that is let through, in parts of the largest `|X^T y| / n`; the radius pays for it."""
_FINE = 1e-11
"""Errors of predictions above this part of their size are bounded in a second way."""


@dataclass(frozen=True, eq=False)
class ElasticNetPath:
    r"""`w(l1) = argmin_w ‖y - X w‖^2 / (2 n) + l1 ‖w‖_1 + l2 ‖w‖^2 / 2`, piecewise linear in l1.

    Between two kinks `w` is the straight line between their `weights`. `ElasticNetPath.of(X, y, domain)` finds it.
    """

    penalties: Float[Array, " K_plus_1"]
    """Ends of the domain and the kinks between, ascending."""
    weights: Float[Array, "K_plus_1 d"]
    """w at the penalties."""
    intercepts: Float[Array, " K_plus_1"]
    """The unpenalised intercept there; zeros without one."""
    intercept: bool
    """Whether an intercept was fitted."""
    penalty2: float
    """l2."""
    violation: float
    """The largest violation of the optimality conditions at all kinks and midpoints, over the largest `|X^T y| / n`."""
    weight_error: Float[Array, " K"]
    """A proven bound of `‖w - w_true‖` on each piece; infinite where the solution was not shown to be unique."""

    def __call__(self, penalty: float) -> Float[Array, " d"]:
        """w at a penalty in the domain."""
        a, b = self.penalties[0], self.penalties[-1]
        if not a <= penalty <= b:
            raise ValueError(f"the path was computed for penalties in [{a:.17g}, {b:.17g}]; got {penalty!r}.")
        k = min(int(np.searchsorted(self.penalties, penalty, side="right")) - 1, len(self.penalties) - 2)
        t = (penalty - self.penalties[k]) / (self.penalties[k + 1] - self.penalties[k])
        return (1 - t) * self.weights[k] + t * self.weights[k + 1]

    @classmethod
    def of(
        cls,
        X: Any,
        y: Any,
        domain: tuple[float, float],
        *,
        penalty2: float = 0.0,
        intercept: bool = True,
    ) -> "ElasticNetPath":
        r"""The path of the elastic net in l1 for a fixed l2 (`penalty2`), or of the lasso (`penalty2 = 0`).

        The homotopy follows w downwards from the smallest l1 with w = 0. It differs from least-angle regression (Efron
        et al., 2004) as follows:

        1. At a kink, with A the non-zero weights and Z the zero ones whose correlation equals l1, the direction d of
           the path is found from the optimality conditions of *all* ties at once: `min d^T H d / 2 - s^T d` over d_A
           free and `s_Z d_Z >= 0`, d = 0 elsewhere, `H = X^T X / n + l2 I`, s the signs of the correlations. So any
           number of weights may enter, leave, or do both at the same place.
        2. Columns equal up to sign (and to rounding) are one column whose weight is shared equally: exact for l2 > 0;
           for the lasso, the one of its many solutions that is the limit l2 -> 0. Constant columns are never used.
        3. Every weight is solved for anew at every kink, so errors do not add up.
        4. The optimality conditions are checked at every kink and at every midpoint on the data as given; as the
           violation is a convex function of l1 between kinks, this covers the whole path. Above 1e-9 of the largest
           `|X^T y| / n` the path is computed again by triangular factors of X, which are good for columns that agree to
           ten digits.

        *Proof of `weight_error`.* On a piece the computed w fulfils the optimality conditions up to a vector g (the
        violation, with the rounding of its computation). The conditions are a strongly monotone relation with constant
        `mu = l2 + s_min(X)^2 / n`, so `‖w - w_true‖ <= ‖g‖ / mu`. Where X has not full column rank and l2 = 0:
        monotonicity gives `‖X (w - w_true)‖^2 / n <= ‖g‖_inf (‖w‖_1 + ‖w_true‖_1)` and so columns whose correlation
        stays away from l1 are zero in every solution; mu is then that of the other columns.

        *Predictions without curvature.* Where mu is tiny (nearly equal columns), the duals use the same monotonicity
        for predictions: `‖X e‖^2 <= n <g, e> <= n ‖g‖_inf ‖e‖_1` for `e = w - w_true`, and `‖e‖_1 <= ‖w‖_1 + ‖w_true‖_1
        =: R`, where `l1 ‖w_true‖_1 <= ‖y‖^2 / (2 n)`, or, as the objective of w_true is at most that of w, `‖w_true‖_1
        <= ‖w‖_1 + (‖y - X w‖ + ‖X e‖) ‖X e‖ / (n l1)`. Then for every row v and any c, `|v e| <= ‖c‖ ‖X e‖ + ‖v - X^T
        c‖_inf R`. This holds for every solution, if there are several.

        **Arguments:**

        - `X`, `y`: (n, d) and (n,), finite; standardise columns beforehand if the penalty should treat them alike.
        - `domain`: (a, b), the range of l1, 0 <= a < b.
        - `penalty2`: l2 >= 0.
        - `intercept`: whether an unpenalised intercept is fitted.

        **Raises:** `ValueError` for bad input; `ArithmeticError`, with the place, where the optimality conditions fail
        (data that are too ill-conditioned for float64).
        """
        split = Split(X, y, X, y)
        domain = check_domain(domain, "ElasticNetPath.of", "0 <= ")
        found = _path(split, domain, penalty2, intercept, "ElasticNetPath.of")
        w, centred = found.weights, found.centred
        intercepts = centred.y.mean[0, 0] - w @ (centred.X.mean[0] if intercept else np.zeros(w.shape[1]))
        violation = found.violation / found.scale if found.scale > 0 else 0.0
        return cls(found.penalties, w, intercepts, intercept, found.penalty2, violation, found.weight_error)


def elastic_net_dual(
    task: Task,
    domain: tuple[float, float],
    *,
    penalty2: float = 0.0,
    intercept: bool = True,
    loss: Literal["squared", "zero-one"] = "squared",
) -> PiecewiseFunction:
    r"""`f(l1) = (1/M) sum (y_i - x_i w(l1))^2` over validation examples, w the path on each training part.

    Of the elastic net with l2 = `penalty2`, or of the lasso (`penalty2 = 0`). Exact: w is linear between kinks, so f is
    quadratic there, with Bernstein coefficients `(‖e_0‖^2, e_0 . e_1, ‖e_1‖^2) / M` from the residuals e_0, e_1 at the
    two kinks. The radius holds the proven error of w; where the solution is not shown to be unique (possible for l2 = 0
    only), the function is marked `certified = False`.

    **Arguments:** as for [`ElasticNetPath.of`][hyprax.tasks.ElasticNetPath.of], and

    - `task`: one target column; for `loss="zero-one"` labels -1 and +1.
    - `loss`: `"squared"`, or `"zero-one"`: the share of examples with `y_i x_i w <= 0`.
    """
    name = "elastic_net_dual"
    domain = check_domain(domain, name, "0 <= ")
    if loss not in ("squared", "zero-one"):
        raise ValueError(f"{name}: loss must be 'squared' or 'zero-one'; got {loss!r}.")
    if loss == "zero-one":
        check_unweighted(task, name)
    parts, weights = [], []
    for split in task.splits:
        if loss == "zero-one":
            check_labels(np.concatenate([split.y, split.y_val]), name)
        parts.append(_loss(_path(split, domain, penalty2, intercept, name), loss))
        weights.append(len(split.X_val) / task.n_validation * len(task.splits))
    if len(parts) == 1:
        return parts[0]
    return PiecewiseFunction.mean([part * weight for part, weight in zip(parts, weights, strict=True)])


class _Path(NamedTuple):
    """The path on a split, with what its errors are computed from."""

    penalties: Array
    weights: Array
    centred: Centred
    penalty2: float
    violation: float
    """The largest violation of the optimality conditions."""
    scale: float
    """The largest `|X^T y| / n`, or 0 where that is rounding."""
    gradient: Array
    """(K, d): the violation on each piece, with its rounding."""
    weight_error: Array
    """(K,)."""


def _loss(path: _Path, loss: str) -> PiecewiseFunction:
    """The validation loss along a path."""
    split, weights = path.centred, path.weights
    (X, y), (X_val, y_val) = (split.X, split.y), (split.X_val, split.y_val)
    m = len(X_val.values)
    prediction = X_val.values @ weights.T  # (m, K + 1)
    size = X_val.size @ np.abs(weights).T + y_val.size
    lost = (sum(X.values.shape) + 12) * UNIT * np.maximum(size[:, 1:], size[:, :-1])
    moved = np.linalg.norm(X_val.size, axis=1)[:, None] * path.weight_error * (1 + 1e-12)
    coarse = np.any(moved > _FINE * np.maximum(size[:, 1:], size[:, :-1]), axis=0)
    if coarse.any():
        moved[:, coarse] = np.minimum(moved[:, coarse], _prediction_error(path, coarse))
    certified = bool(np.all(np.isfinite(moved)))
    error = lost + np.where(np.isfinite(moved), moved, 0.0)
    if loss == "zero-one":
        labels = y_val.values + y.mean
        out = (prediction + y.mean) * np.sign(labels)
        margins = np.stack([out[:, :-1], out[:, 1:]], axis=-1)  # (m, K, 2)
        return zero_one_loss(path.penalties, margins.swapaxes(0, 1), error.T, certified)
    e = y_val.values - prediction
    rows = np.stack(
        [np.sum(e[:, :-1] ** 2, axis=0), np.sum(e[:, :-1] * e[:, 1:], axis=0), np.sum(e[:, 1:] ** 2, axis=0)], axis=1
    )
    norm = np.sqrt(np.maximum(rows[:, 0], rows[:, 2]))
    off = np.sqrt(np.sum(error**2, axis=0)) * (1 + 1e-12)
    radius = (2 * norm + off) * off + (m + 4) * UNIT * norm**2
    return PiecewiseFunction(path.penalties, rows / m, None, radius / m * (1 + 1e-12), certified)


def _prediction_error(path: _Path, pieces: Array) -> Array:
    """(m, pieces): a bound of the error of the validation predictions that needs no curvature; see
    `ElasticNetPath.of`."""
    X, y, w = path.centred.X.values, path.centred.y.values[:, 0], path.weights
    n = len(y)
    k = np.flatnonzero(pieces)
    low, g = path.penalties[k], path.gradient[k].max(axis=1)
    residual = np.linalg.norm(y - w @ X.T, axis=1) * (1 + 1e-9)
    fit, length = np.maximum(residual[k], residual[k + 1]), np.sum(np.abs(w), axis=1)
    length = np.maximum(length[k], length[k + 1])
    with np.errstate(divide="ignore"):
        # F(w_true) <= F(0), and then F(w_true) <= F(w) once the residuals are known to be close.
        reach = length + float(y @ y) / (2 * n * low)
        for _ in range(2):
            near = np.sqrt(n * g * reach)
            more = (fit + near) * near / (n * low) + path.penalty2 * length**2 / (2 * low)
            reach = length + np.minimum(float(y @ y) / (2 * n * low), length + more)
        near, reach = np.sqrt(n * g * reach) * (1 + 1e-9), reach * (1 + 1e-9)
    v = path.centred.X_val
    error = np.full((len(v.values), k.size), np.inf)
    finite = np.isfinite(reach) & (reach > 0)
    error[:, reach == 0] = 0.0
    u, s, vt = np.linalg.svd(X, full_matrices=False)
    # |v (w - w_true)| <= ‖c‖ ‖X (w - w_true)‖ + ‖v - X^T c‖_inf ‖w - w_true‖_1, whatever c is.
    scale = np.round(np.log10(near[finite] / reach[finite]))
    for exponent in np.unique(scale):
        here = np.flatnonzero(finite)[scale == exponent]
        c = (u * (s / (s**2 + 10.0 ** (2 * exponent)))) @ (vt @ v.values.T)  # (n, m)
        lost = (n + 8) * UNIT * (path.centred.X.size.T @ np.abs(c) + v.size.T)
        rest = np.max(np.abs(v.values.T - X.T @ c) + lost, axis=0)
        error[:, here] = (np.linalg.norm(c, axis=0)[:, None] * near[here] + rest[:, None] * reach[here]) * (1 + 1e-9)
    return error


def _path(split: Split, domain: tuple[float, float], penalty2: float, intercept: bool, name: str) -> _Path:
    if not (np.isfinite(penalty2) and penalty2 >= 0):
        raise ValueError(f"{name}: penalty2 must be finite and >= 0; got {penalty2!r}.")
    if split.y.shape[1] != 1:
        raise ValueError(f"{name}: y must have one column; got {split.y.shape[1]}.")
    centred = split.centred(intercept)
    X, y = centred.X.values, centred.y.values[:, 0]
    group, sign, members = _merge(X)
    kept = np.flatnonzero(members > 0)
    scale = float(np.max(np.abs(X.T @ y))) / len(y)
    # Correlations below their own rounding are none: the target is orthogonal to every column.
    noise = float(np.max(centred.X.size.T @ centred.y.size)) * 8 * (len(y) + 2) * UNIT / len(y)
    best, failure = None, None
    for careful in (False, True):
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                lam, v = _homotopy(X[:, kept], y, penalty2 / members[kept], domain[0], noise, careful)
        except (ArithmeticError, np.linalg.LinAlgError) as error:
            failure = error
            continue
        # Back from merged columns: every member of a group of g has v / g, with its sign.
        merged = np.zeros((len(lam), X.shape[1]))
        merged[:, kept] = v
        w = merged[:, group] / np.maximum(members[group], 1) * sign
        lam, w = _clip(lam, w, domain)
        found = _check(centred, lam, w, penalty2, kept)
        if best is None or found[0] < best[2][0]:
            best = lam, w, found
        if found[0] <= KKT_TOLERANCE * scale + noise:
            break
    way_out = "drop or combine columns that are nearly the same, or " + (
        "raise penalty2" if penalty2 > 0 else "use elastic_net_dual with a penalty2 > 0"
    )
    if best is None:
        raise ArithmeticError(f"{name}: {failure} The columns are too nearly dependent: {way_out}.")
    lam, w, (worst, place, gradient, weight_error) = best
    if not worst <= LET_THROUGH * scale + noise:
        raise ArithmeticError(
            f"{name}: the optimality conditions must hold to {LET_THROUGH:g} of the largest |X'y|/n, {scale:.3g}; got "
            f"a violation of {worst:.3g} at l1 = {place:.17g}. The columns are too nearly dependent: {way_out}."
        )
    return _Path(lam, w, centred, float(penalty2), worst, scale if scale > noise else 0.0, gradient, weight_error)


def _merge(X: Array) -> tuple[Array, Array, Array]:
    """Groups of columns equal up to sign: (column -> its group's first column, sign, members by first column).

    Columns that are zero up to rounding have sign 0 and belong nowhere.
    """
    d = X.shape[1]
    norm = np.linalg.norm(X, axis=0)
    unit = X / np.where(norm > 0, norm, 1.0)
    group, sign, members = np.arange(d), np.zeros(d), np.zeros(d, dtype=int)
    alike = unit.T @ unit
    for j in np.flatnonzero(norm > 0):
        for k in np.flatnonzero((members[:j] > 0) & (np.abs(alike[j, :j]) > 1 - 1e-8)):
            turn = np.sign(alike[j, k])
            if np.linalg.norm(X[:, j] - turn * X[:, k]) <= 1e-14 * len(X) ** 0.5 * norm[j]:
                group[j], sign[j] = k, turn
                members[k] += 1
                break
        else:
            sign[j], members[j] = 1.0, 1
    return group, sign, members


def _homotopy(X: Array, y: Array, ridge: Array, stop: float, noise: float, careful: bool) -> tuple[Array, Array]:
    """Kinks, descending, and the weights there, from the first with w = 0 to `stop` or below; `ridge` (d,) is l2."""
    n, d = X.shape
    H, target = X.T @ X / n + np.diag(ridge), X.T @ y / n
    root = np.concatenate([X / np.sqrt(n), np.diag(np.sqrt(ridge))]) if careful else None
    top = float(np.max(np.abs(target), initial=0.0))
    lam, w = top, np.zeros(d)
    kinks, weights = [lam], [w]
    if top <= max(stop, noise):
        return np.array([stop]), np.array(weights)
    tie, factor = _TIE * top, Factor(H, w != 0, root)
    for _ in range(100 * (n + d)):
        correlation = target - H @ w
        active = w != 0
        tied = ~active & (np.abs(correlation) >= lam - tie)
        s = np.where(active, np.sign(w), np.sign(correlation))
        if not np.array_equal(factor.free, active.nonzero()[0]):
            factor = Factor(H, active, root)
        direction, _ = tied_direction(factor, s, s, tied, negligible(s))
        moving = active | (direction != 0)
        slope = H @ direction
        # A weight on its way to zero; a correlation on its way to ±l1, which falls at rate 1.
        leave = np.where(active & (w * direction < 0), -w / direction, np.inf)
        up = np.where(~moving & (slope < 1 - FLAT), (lam - correlation) / (1 - slope), np.inf)
        down = np.where(~moving & (slope > FLAT - 1), (lam + correlation) / (1 + slope), np.inf)
        # A tie that was left alone moves away from its own bound: it meets the other one only.
        up[tied & (s > 0)], down[tied & (s < 0)] = np.inf, np.inf
        step = float(min(leave.min(), up.min(), down.min(), lam - stop))
        step = max(step, 0.0)
        at_end = step >= lam - stop - 2 * tie
        lam = stop if at_end else lam - step
        gone = active & (leave <= step + tie)
        support = moving & ~gone
        w = np.zeros(d)
        if support.any():
            pull = target - lam * s
            factor = Factor(H, support, root)
            w = factor.solve(pull)
            w += factor.solve(pull - H @ w)
        w[s * w < 0] = 0.0  # a weight that meets zero here is beyond it by rounding only; the check would find more
        if lam < kinks[-1]:
            kinks.append(lam)
            weights.append(w)
        else:
            weights[-1] = w
        if at_end:
            return np.array(kinks), np.array(weights)
    raise ArithmeticError(
        f"the path did not reach l1 = {stop:.6g} within {100 * (n + d)} kinks; it stands at {lam:.17g}."
    )


def _clip(lam: Array, w: Array, domain: tuple[float, float]) -> tuple[Array, Array]:
    """The path on the domain, ascending."""
    a, b = domain
    lam, w = lam[::-1], w[::-1]
    if lam[-1] <= a:
        return np.array([a, b]), np.zeros((2, w.shape[1]))
    if lam[-1] < b:
        return np.append(lam, b), np.concatenate([w, np.zeros((1, w.shape[1]))])
    last = int(np.searchsorted(lam, b))  # lam[last - 1] < b <= lam[last]
    t = (b - lam[last - 1]) / (lam[last] - lam[last - 1])
    at_b = (1 - t) * w[last - 1] + t * w[last] if t < 1 else w[last]
    return np.append(lam[:last], b), np.concatenate([w[:last], at_b[None]])


def _check(centred: Centred, lam: Array, w: Array, penalty2: float, kept: Array) -> tuple[float, float, Array, Array]:
    """Largest violation, where, the violation on each piece, and the bound of the error of w (see `ElasticNetPath.of`).

    The signs of w at a piece's midpoint are its pattern. The violation is that of `X_j^T (y - X w) / n - l2 w_j = l1
    s_j` where s_j is not 0 and of `|..| <= l1` elsewhere, at both ends and the midpoint: a convex function of l1
    between them. For the lasso the error is that of the problem with the columns `kept`, one of each group of equal
    ones.
    """
    X, y = centred.X.values, centred.y.values[:, 0]
    n, d = X.shape
    lams = np.concatenate([lam, 0.5 * (lam[1:] + lam[:-1])])
    ws = np.concatenate([w, 0.5 * (w[1:] + w[:-1])])
    k = len(lam) - 1
    correlation = (y - ws @ X.T) @ X / n - penalty2 * ws
    pattern = np.sign(ws[k + 1 :])
    first = np.arange(k)
    gap = np.stack(
        [
            np.where(
                pattern != 0,
                np.abs(correlation[i] - lams[i, None] * pattern),
                np.maximum(np.abs(correlation[i]) - lams[i, None], 0.0),
            )
            for i in (first, first + 1, first + k + 1)
        ]
    )  # (3, K, d)
    worst = gap.max(axis=2)
    where, piece = np.unravel_index(int(np.argmax(worst)), worst.shape)
    place = float(lams[(first, first + 1, first + k + 1)[where][piece]])
    # Rounding of two products, the differences and the centring (Higham 2002, section 3.5).
    size_x, size_y = centred.X.size, centred.y.size[:, 0]
    size = (size_y + np.abs(w) @ size_x.T) @ size_x / n + penalty2 * np.abs(w) + lam[:, None]
    lost = (2 * n + d + 12) * UNIT * size
    g = np.maximum(gap[0] + lost[:-1], gap[1] + lost[1:])  # (K, d)
    columns = kept if penalty2 == 0 else np.arange(d)
    norm = np.linalg.norm(g[:, columns], axis=1) * (1 + 1e-12)
    mu = penalty2 + _smallest(X[:, columns], size_x[:, columns]) ** 2 / n
    if mu > 0:
        return float(worst.max()), place, g, norm / mu * (1 + 1e-12)
    margin = lam[:, None] - np.abs(correlation[: k + 1]) - lost
    margin = np.minimum(margin[:-1], margin[1:])
    length = np.sum(np.abs(w), axis=1)
    error = np.full(k, np.inf)
    for i in np.flatnonzero(lam[:-1] > 0):
        total = max(length[i], length[i + 1]) + float(y @ y) / (2 * n * lam[i])  # ‖w‖_1 + ‖w_true‖_1
        reach = np.linalg.norm(size_x, axis=0) * np.sqrt(g[i].max() * total / n)
        possible = kept[(margin[i] <= reach * (1 + 1e-12))[kept]]
        least = _smallest(X[:, possible], size_x[:, possible])
        if least > 0:
            error[i] = norm[i] * n / least**2 * (1 + 1e-12)
    return float(worst.max()), place, g, error


def _smallest(X: Array, size: Array) -> float:
    """A lower bound of the smallest singular value (0 for more columns than rows, infinite for none)."""
    if X.shape[1] == 0:
        return np.inf
    return singular_floor(np.linalg.svd(X, compute_uv=False), size) if X.shape[0] >= X.shape[1] else 0.0
