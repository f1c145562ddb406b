"""The signs of the optimal weights of many elastic nets at once: guesses, which whoever takes them checks."""

from typing import Any

import numpy as np

from ._bernstein import UNIT, Array


def signs_of(H: Array, b: Array, square: Array, absolute: Array, start: Array | None) -> Array:
    """The signs of the optimal weights, 1 for weights without an absolute penalty: a guess that is checked later.

    `H` (n, d, d) and `b` (n, d) of n problems; their penalties on m boxes, (m, n, d); `start`: signs to begin with.

    Newton steps on the optimality conditions (a primal-dual active set), from coordinate descent where they circle, and
    a search over signs, which always ends, for the few that still do.
    """
    m, n, d = square.shape
    free = absolute == 0
    if free.all():
        return np.ones((m, n, d))
    sigma = np.zeros((m, n, d)) if start is None else start.astype(np.float64)
    sigma[free] = 1.0
    repeated = (np.broadcast_to(x, (m, *x.shape)).reshape(m * n, *x.shape[1:]) for x in (H, b))
    everything = (*repeated, *(x.reshape(m * n, d) for x in (square, absolute, free)))

    def of(rows: Any) -> tuple[Array, Array, Array, Array, Array]:
        H, b, square, absolute, free = (x[rows] for x in everything)
        return H, b, square, absolute, free

    found, open_ = sigma.reshape(m * n, d), np.arange(m * n)
    if start is None:
        found = _descend(*of(slice(None)), found, 15)
    for sweeps in (30, 0):
        for _ in range(8):
            new = _newton(*of(open_), found[open_])
            changed = np.any(new != found[open_], axis=1)
            found[open_] = new
            open_ = open_[changed]
            if not open_.size:
                return found.reshape(m, n, d)
        if sweeps:
            found[open_] = _descend(*of(open_), found[open_], sweeps)
    for i in open_:
        found[i] = _search(*of(i))
    return found.reshape(m, n, d)


def _newton(H: Array, b: Array, square: Array, absolute: Array, free: Array, sigma: Array) -> Array:
    """One step: the weights of these signs, then signs off their side leave and correlations beyond the bound enter."""
    active = sigma != 0
    right = np.where(active, b - np.where(free, 0.0, absolute * sigma), 0.0)
    w = solved(masked(H, square, active), right[..., None])[..., 0]
    correlation = b - times(H, w)
    stays = np.where(sigma * w > 0, sigma, 0.0)
    enters = np.where(np.abs(correlation) > absolute, np.sign(correlation), 0.0)
    return np.where(free, 1.0, np.where(active, stays, enters))


def _descend(H: Array, b: Array, square: Array, absolute: Array, free: Array, sigma: Array, sweeps: int) -> Array:
    """Signs after sweeps of coordinate descent from the weights of these signs."""
    d = b.shape[1]
    active = sigma != 0
    right = np.where(active, b - np.where(free, 0.0, absolute * sigma), 0.0)
    w = solved(masked(H, square, active), right[..., None])[..., 0]
    w = np.where(free | (sigma * w > 0), w, 0.0)
    rest = b - times(H, w)
    for _ in range(sweeps):
        for j in range(d):
            height = H[:, j, j]
            target = rest[:, j] + height * w[:, j]
            new = np.sign(target) * np.maximum(np.abs(target) - absolute[:, j], 0.0) / (height + square[:, j])
            rest -= H[:, :, j] * (new - w[:, j])[:, None]
            w[:, j] = new
    return np.where(free, 1.0, np.sign(w))


def _search(H: Array, b: Array, square: Array, absolute: Array, free: Array) -> Array:
    """The signs of one problem by feature-sign search (Lee, Battle, Raina and Ng 2007): no step raises the objective.

    A weight enters where the conditions are violated most; then the weights of these signs are aimed at, and the lowest
    of the points where one of them meets zero on the way is taken, until no sign changes.
    """
    d = len(b)
    A = H + np.diag(square)
    w, sigma = np.zeros(d), np.where(free, 1.0, 0.0)
    for _ in range(20 * d):
        at = np.flatnonzero(sigma)
        target = np.zeros(d)
        target[at] = np.linalg.lstsq(A[np.ix_(at, at)], (b - np.where(free, 0.0, absolute * sigma))[at])[0]
        step = target - w
        with np.errstate(divide="ignore", invalid="ignore"):
            meets = np.where(~free & (step != 0), -w / step, np.inf)
        stops = np.append(meets[(meets > 0) & (meets < 1)], 1.0)
        ways = w + stops[:, None] * step
        ways[np.arange(len(stops) - 1), np.flatnonzero((meets > 0) & (meets < 1))] = 0.0
        costs = 0.5 * np.sum(ways @ A * ways, axis=1) - ways @ b + np.abs(ways) @ absolute
        best = int(np.argmin(costs))
        w = ways[best]
        sigma = np.where(free, 1.0, np.sign(w))
        if best < len(stops) - 1:
            continue
        rest = np.where(sigma == 0, np.abs(b - H @ w) - absolute, 0.0)
        j = int(np.argmax(rest))
        if rest[j] <= 1e-14 * (absolute[j] + np.abs(b[j])):
            break
        sigma[j] = np.sign(b[j] - H[j] @ w)
    return sigma


def times(matrix: Array, vector: Array) -> Array:
    return (matrix @ vector[..., None])[..., 0]


def masked(H: Array, square: Array, active: Array) -> Array:
    """`H + diag(square)` on the active weights, the identity elsewhere."""
    d = H.shape[-1]
    matrix = H * (active[..., None, :] & active[..., :, None])
    matrix[..., np.arange(d), np.arange(d)] += np.where(active, square, 1.0)
    return matrix


def solved(matrix: Array, right: Array) -> Array:
    """`matrix^-1 right`, or that of a matrix with larger diagonals where one is singular to float64: a guess."""
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        here = np.arange(matrix.shape[-1])
        heavier = matrix.copy()
        heavier[..., here, here] *= 1 + 64 * len(here) * UNIT
        heavier[..., here, here] += np.finfo(float).tiny
        return np.linalg.solve(heavier, right)
