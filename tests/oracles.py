"""Dense references in NumPy, no code of the package: Newton and direct solves in float64, residuals in long double."""

import dataclasses

import numpy as np

LONG = np.longdouble


@dataclasses.dataclass
class Reference:
    """The exact optimum, adjoint, value and hypergradient (per weight: -λ_jc w_jc q_jc), in long double."""

    params: np.ndarray
    adjoint: np.ndarray
    value: np.floating
    per_weight: np.ndarray


def _predictions(kind: str, u: np.ndarray) -> np.ndarray:
    if kind == "squared":
        return u
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


def mean_loss(kind: str, u: np.ndarray, y: np.ndarray) -> np.floating:
    """The mean over examples of the pointwise loss of the predictions u (n, C)."""
    if kind == "squared":
        return 0.5 * np.sum((u - _targets(kind, y, u.shape[1])) ** 2) / len(u)
    if kind == "logistic":
        v = u[:, 0]
        return np.mean(np.maximum(v, 0) + np.log1p(np.exp(-np.abs(v))) - y * v)
    top = u.max(axis=1)
    return np.mean(top + np.log(np.exp(u - top[:, None]).sum(axis=1)) - u[np.arange(len(u)), y])


def gradient(kind: str, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The gradient of the unpenalised mean loss, (d, C), in the dtype of w."""
    return x.T @ (_predictions(kind, x @ w) - _targets(kind, y, w.shape[1])) / len(x)


def curvature_apply(kind: str, x: np.ndarray, w: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The Hessian of the unpenalised mean loss times v, in the dtype of w."""
    p, t = _predictions(kind, x @ w), x @ v
    if kind == "squared":
        d = t
    elif kind == "logistic":
        d = p * (1 - p) * t
    else:
        d = p * (t - np.sum(p * t, axis=1, keepdims=True))
    return x.T @ d / len(x)


def hessian(kind: str, x: np.ndarray, w: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """The dense (dC, dC) Hessian of the penalised loss, float64."""
    d, c = w.shape
    p = _predictions(kind, x @ w)
    if kind == "squared":
        weight = np.broadcast_to(np.eye(c), (len(x), c, c))
    elif kind == "logistic":
        weight = (p * (1 - p))[:, :, None]
    else:
        weight = np.einsum("nc,ce->nce", p, np.eye(c)) - p[:, :, None] * p[:, None, :]
    blocks = np.einsum("ni,nce,nj->icje", x, weight, x, optimize=True) / len(x)
    return blocks.reshape(d * c, d * c) + np.diag(strengths.ravel())


def reference(
    kind: str, x: np.ndarray, y: np.ndarray, xv: np.ndarray, yv: np.ndarray, strengths: np.ndarray
) -> Reference:
    """The truth: `strengths` (d, C) natural penalties; x, xv (n, d)."""
    shape = strengths.shape
    w = np.zeros(shape)
    xl, xvl, sl = x.astype(LONG), xv.astype(LONG), strengths.astype(LONG)

    def objective(w: np.ndarray) -> float:
        return float(mean_loss(kind, x @ w, y) + 0.5 * np.sum(strengths * w * w))

    for _ in range(100):
        g = gradient(kind, x, y, w) + strengths * w
        step = np.linalg.solve(hessian(kind, x, w, strengths), g.ravel()).reshape(shape)
        t, before = 1.0, objective(w)
        while objective(w - t * step) > before + 1e-14 * abs(before) and t > 1e-10:
            t /= 2
        w = w - t * step
        if np.linalg.norm(g) < 1e-13 * (1 + np.linalg.norm(strengths * w)):
            break
    wl = w.astype(LONG)
    a = hessian(kind, x, w, strengths)
    for _ in range(8):  # Newton with long-double residuals: each step gains what float64 can
        g = gradient(kind, xl, y, wl) + sl * wl
        wl = wl - np.linalg.solve(a, g.astype(float).ravel()).reshape(shape).astype(LONG)
    fl = gradient(kind, xvl, yv, wl)
    a = hessian(kind, x, wl.astype(float), strengths)
    q = np.zeros(shape, LONG)
    for _ in range(8):
        r = fl - curvature_apply(kind, xl, wl, q) - sl * q
        q = q + np.linalg.solve(a, r.astype(float).ravel()).reshape(shape).astype(LONG)
    return Reference(wl, q, mean_loss(kind, xvl @ wl, yv), -sl * wl * q)


def sum_to(per_weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum the entries (d, C) that one entry of an array of `shape` was broadcast to."""
    padded = (1,) * (2 - len(shape)) + shape
    for axis in range(2):
        if padded[axis] == 1:
            per_weight = per_weight.sum(axis=axis, keepdims=True)
    return per_weight.reshape(shape)
