"""The posterior of linear models at their optimum: what `predict(return_std=True)` rests on."""

from typing import Any

import numpy as np
import scipy.linalg as sla
from scipy import sparse

from ._columns import Design


def covariance(x: Design, curves: np.ndarray, strengths: np.ndarray, intercept: Any) -> tuple[np.ndarray, float]:
    """H⁻¹/n, H = Xᵀ diag(curves) X/n + Λ, and tr(H⁻¹ (H - Λ)): the effective number of coefficients.

    The last column is that of the intercept, where there is one. Directions that nothing determines have none.
    """
    n = x.shape[0]
    if sparse.issparse(x):
        fit = np.asarray((x.T @ sparse.diags_array(curves) @ x).todense()) / n
    else:
        fit = x.T @ (curves[:, None] * x) / n
    if intercept:
        cross = np.asarray(x.T @ curves).ravel() / n
        fit = np.block([[fit, cross[:, None]], [cross[None], np.full((1, 1), curves.mean())]])
        strengths = np.append(strengths, 0.0)
    hessian = fit + np.diag(strengths)
    root = np.sqrt(np.maximum(np.diag(hessian), np.finfo(float).tiny))
    inverse = sla.pinvh(hessian / root / root[:, None]) / root / root[:, None]
    return inverse / n, float(np.sum(inverse * fit))


def deviation(x: Design, centre: np.ndarray, scale: np.ndarray, cov: np.ndarray, intercept: Any) -> np.ndarray:
    """√(xᵀ C x), row by row, for columns brought to (x - centre)/scale."""
    dense = np.asarray(x.todense()) if sparse.issparse(x) else x
    scaled = dense / scale - centre / scale
    if intercept:
        scaled = np.column_stack([scaled, np.ones(len(scaled))])
    return np.sqrt(np.maximum(np.sum((scaled @ cov) * scaled, axis=1), 0))
