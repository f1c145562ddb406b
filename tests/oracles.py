"""Dense references in NumPy, no code of the package: Newton and direct solves in float64, residuals in long double."""

import dataclasses
from typing import Any

import numpy as np

LONG = np.longdouble


@dataclasses.dataclass
class Reference:
    """The exact optimum, adjoint, value and hypergradient, in long double.

    `per_weight`: -λ_jc w_jc q_jc, with respect to log λ_jc. `per_example`: -∇ℓ_iᵀ(x_iᵀq)/n, with respect to ω_i.
    """

    params: np.ndarray
    adjoint: np.ndarray
    value: np.floating
    per_weight: np.ndarray
    per_example: np.ndarray


HUBER = 0.7  # the δ of the pseudo-Huber loss in every test


def _predictions(kind: str, u: np.ndarray) -> np.ndarray:
    if kind in ("squared", "huber"):
        return u
    if kind == "poisson":
        return np.exp(u)
    if kind == "logistic":
        e = np.exp(-np.abs(u))
        return np.where(u >= 0, 1 / (1 + e), e / (1 + e))
    shifted = u - u.max(axis=1, keepdims=True)
    e = np.exp(shifted)
    return e / e.sum(axis=1, keepdims=True)


def _targets(kind: str, y: np.ndarray, columns: int) -> np.ndarray:
    if kind == "softmax":
        return np.eye(columns)[y]
    return y.reshape(len(y), -1).astype(float)


def losses(kind: str, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The pointwise losses (n,) of the predictions u (n, C)."""
    v = u[:, 0]
    if kind == "squared":
        return 0.5 * np.sum((u - _targets(kind, y, u.shape[1])) ** 2, axis=1)
    if kind == "huber":
        return HUBER**2 * (np.sqrt(1 + ((v - y) / HUBER) ** 2) - 1)
    if kind == "poisson":
        return np.exp(v) - y * v
    if kind == "logistic":
        return np.maximum(v, 0) + np.log1p(np.exp(-np.abs(v))) - y * v
    top = u.max(axis=1)
    return top + np.log(np.exp(u - top[:, None]).sum(axis=1)) - u[np.arange(len(u)), y]


def mean_loss(kind: str, u: np.ndarray, y: np.ndarray) -> np.floating:
    """The mean over examples of the pointwise loss of the predictions u (n, C)."""
    return np.mean(losses(kind, u, y))


def slopes(kind: str, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """∇ℓ_i, (n, C)."""
    r = _predictions(kind, u) - _targets(kind, y, u.shape[1])
    return r / np.sqrt(1 + (r / HUBER) ** 2) if kind == "huber" else r


def curvatures(kind: str, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """∇²ℓ_i, (n, C, C), in the dtype of u."""
    n, c = u.shape
    p = _predictions(kind, u)
    if kind == "squared":
        return np.broadcast_to(np.eye(c, dtype=u.dtype), (n, c, c))
    if kind == "softmax":
        return np.einsum("nc,ce->nce", p, np.eye(c, dtype=u.dtype)) - p[:, :, None] * p[:, None, :]
    if kind == "logistic":
        d = p * (1 - p)
    elif kind == "poisson":
        d = p
    else:
        d = (1 + ((u - _targets(kind, y, c)) / HUBER) ** 2) ** -1.5
    return d[:, :, None]


def gradient(
    kind: str, x: np.ndarray, y: np.ndarray, w: np.ndarray, omega: np.ndarray | None = None, offset: Any = 0
) -> np.ndarray:
    """The gradient of the unpenalised mean loss, (d, C), in the dtype of w; `omega` weighs the examples."""
    rows = slopes(kind, x @ w + offset, y)
    return x.T @ (rows if omega is None else omega[:, None] * rows) / len(x)


def hessian(
    kind: str,
    x: np.ndarray,
    y: np.ndarray,
    w: np.ndarray,
    strengths: np.ndarray,
    omega: np.ndarray | None = None,
    offset: Any = 0,
) -> np.ndarray:
    """The dense (dC, dC) Hessian of the penalised loss, in the dtype of w."""
    d, c = w.shape
    weight = curvatures(kind, x @ w + offset, y)
    if omega is not None:
        weight = omega[:, None, None] * weight
    blocks = np.einsum("nie,nj->iej", (x[:, :, None, None] * weight[:, None]).reshape(len(x), d * c, c), x) / len(x)
    blocks = blocks.transpose(0, 2, 1) if c > 1 else blocks.reshape(d, d, 1)
    return blocks.reshape(d * c, d * c) + penalty_matrix(strengths)


def penalty_matrix(strengths: np.ndarray) -> np.ndarray:
    """diag λ; for rows of several classes without any penalty also that of ½ (Σ_c W_jc)², which picks Σ_c W_jc = 0."""
    matrix, c = np.diag(strengths.ravel()), strengths.shape[1]
    for j in np.flatnonzero(np.all(strengths == 0, axis=1)) if c > 1 else ():
        matrix[j * c : (j + 1) * c, j * c : (j + 1) * c] += 1
    return matrix


def reference(
    kind: str,
    x: np.ndarray,
    y: np.ndarray,
    xv: np.ndarray,
    yv: np.ndarray,
    strengths: np.ndarray,
    omega: np.ndarray | None = None,
    offsets: tuple[np.ndarray, np.ndarray] | None = None,
    outer_omega: np.ndarray | None = None,
) -> Reference:
    """The truth: `strengths` (d, C) natural penalties, 0 for free columns; x, xv (n, d); `omega` (n,) example weights.

    `offsets`: what is added to the predictions of x and of xv, (n,) and (m,), or a column for each part.
    `outer_omega`: (m,), what the rows of xv count in the mean over m.
    """
    shape = strengths.shape
    o, ov = (0, 0) if offsets is None else (offset.reshape(len(offset), -1).astype(LONG) for offset in offsets)
    od = 0 if offsets is None else offsets[0].reshape(len(x), -1)
    matrix = penalty_matrix(strengths)

    def penalised(w: np.ndarray) -> np.ndarray:
        return (matrix.astype(w.dtype) @ w.ravel()).reshape(shape)

    omega = np.ones(len(x)) if omega is None else omega
    w = np.zeros(shape)
    xl, xvl, sl, ol = x.astype(LONG), xv.astype(LONG), strengths.astype(LONG), omega.astype(LONG)

    def objective(w: np.ndarray) -> float:
        with np.errstate(over="ignore"):
            return float(np.mean(omega * losses(kind, x @ w + od, y)) + 0.5 * np.sum(w * penalised(w)))

    for _ in range(200):
        g = gradient(kind, x, y, w, omega, od) + penalised(w)
        step = np.linalg.solve(hessian(kind, x, y, w, strengths, omega, od), g.ravel()).reshape(shape)
        t, before = 1.0, objective(w)
        while not objective(w - t * step) <= before + 1e-14 * abs(before) and t > 1e-10:
            t /= 2
        w = w - t * step
        if np.linalg.norm(g) < 1e-13 * (1 + np.linalg.norm(penalised(w))):
            break
    wl = w.astype(LONG)
    a = hessian(kind, x, y, w, strengths, omega, od)
    for _ in range(8):  # Newton with long-double residuals: each step gains what float64 can
        g = gradient(kind, xl, y, wl, ol, o) + penalised(wl)
        wl = wl - np.linalg.solve(a, g.astype(float).ravel()).reshape(shape).astype(LONG)
    outer_omega = np.ones(len(xv), LONG) if outer_omega is None else outer_omega.astype(LONG)
    fl = gradient(kind, xvl, yv, wl, outer_omega, ov)
    a = hessian(kind, x, y, wl.astype(float), strengths, omega, od)
    al = curvatures(kind, xl @ wl + o, y)
    q = np.zeros(shape, LONG)
    for _ in range(8):
        rows = ol[:, None] * np.einsum("nce,ne->nc", al, xl @ q)
        r = fl - xl.T @ rows / len(x) - penalised(q)
        q = q + np.linalg.solve(a, r.astype(float).ravel()).reshape(shape).astype(LONG)
    per_example = -np.sum(slopes(kind, xl @ wl + o, y) * (xl @ q), axis=1) / len(x)
    value = np.mean(outer_omega * losses(kind, xvl @ wl + ov, yv))
    return Reference(wl, q, value, -sl * wl * q, per_example)


def sum_to(per_weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum the entries (d, C) that one entry of an array of `shape` was broadcast to."""
    padded = (1,) * (2 - len(shape)) + shape
    for axis in range(2):
        if padded[axis] == 1:
            per_weight = per_weight.sum(axis=axis, keepdims=True)
    return per_weight.reshape(shape)
