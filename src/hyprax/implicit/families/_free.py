"""Columns whose weights carry no penalty: which they are, and whether the data give them one optimum."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._chunked import Chunked
from ._class_weights import unweighted
from ._design import Design, SparseDesign
from ._losses import AbstractPointLoss, LogisticLoss, PoissonLoss, SoftmaxLoss

LOOKED_AT = 20_000_000  # entries of a linear programme: beyond, separation is not looked for


class FreeColumns(eqx.Module):
    """The columns of λ = 0.

    - `columns`: their places, ascending.
    - `gauge`: for several classes a number κ_j > 0 a column. Their losses do not change when all classes of a free
        column move alike, so g gets ½ Σ_j κ_j C (mean_c W_jc)², which is 0 at the optimum, and makes it the one with
        Σ_c W_jc = 0. Half the mean square of the column: as much curvature as the loss has at most.
    - `determined`: whether the data give the free weights one optimum: the columns are independent and, where a loss
        has no minimum of its own, do not separate the targets.
    """

    columns: Int[Array, " f"]
    gauge: Float[Array, " f"] | None
    determined: Bool[Array, ""]

    def gauged(self, v: Float[Array, "d C"]) -> Float[Array, "d C"]:
        """The gradient of the gauge at v: κ_j mean_c v_jc in the free rows."""
        if self.gauge is None:
            return jnp.zeros_like(v)
        means = self.gauge * jnp.mean(v[self.columns], axis=1)
        return jnp.zeros_like(v).at[self.columns].set(jnp.broadcast_to(means[:, None], (means.size, v.shape[1])))

    def mask(self, shape: tuple[int, ...]) -> Bool[Array, "d *C"]:
        """True at the free weights."""
        return jnp.zeros(shape, bool).at[self.columns].set(True)


def as_columns(free: Any, count: int, name: str) -> np.ndarray | None:
    """Places of free columns from a boolean mask or from indices (negative ones count from the end).

    **Raises:** `ValueError` for anything else, places beyond the columns, one named twice, or all columns.
    """
    if free is None:
        return None
    given = np.asarray(free)
    if given.dtype == bool and given.shape == (count,):
        found = np.flatnonzero(given)
    elif given.ndim == 1 and (given.dtype.kind in "iu" or given.size == 0):
        outside = given[(given < -count) | (given >= count)]
        if outside.size:
            raise ValueError(f"{name}: free must be columns from {-count} to {count - 1}; got {outside[0]}.")
        found = np.sort(given.astype(int) % count)
        if len(np.unique(found)) < len(found):
            raise ValueError(f"{name}: free must name each column once; got {given.tolist()}.")
    else:
        raise ValueError(
            f"{name}: free must be booleans ({count},), or a list of places of columns; got "
            f"{given.dtype}{list(given.shape)}."
        )
    if len(found) == count:
        raise ValueError(
            f"{name}: free must leave at least one column with a penalty, or there is nothing to tune; got all "
            f"{count} columns."
        )
    return found if len(found) else None


def free_columns(
    columns: np.ndarray, loss: AbstractPointLoss, inputs: Design, targets: Array, outputs: int | None
) -> FreeColumns:
    """The free columns of these data, looked at; rows of zeros count as absent."""
    block = _block(inputs, columns)
    gauge = None
    if isinstance(unweighted(loss), SoftmaxLoss):
        size = loss.curvature * np.mean(np.square(block), axis=0)
        gauge = jnp.asarray(np.where(size > 0, size, 1.0), inputs.dtype)
    determined = _independent(block) and not _separates(loss, block, np.asarray(targets), outputs)
    return FreeColumns(jnp.asarray(columns, jnp.int32), gauge, jnp.asarray(determined))


def _block(inputs: Design, columns: np.ndarray) -> np.ndarray:
    if isinstance(inputs, Chunked):
        return np.concatenate([np.asarray(block[:, columns], dtype=np.float64) for block in inputs.blocks()])
    if not isinstance(inputs, SparseDesign):
        return np.asarray(inputs[:, columns], dtype=np.float64)
    entries, rows, places = (np.asarray(part) for part in inputs.by_column)
    at = np.full(inputs.shape[1], -1)
    at[columns] = np.arange(len(columns))
    inside = at[places] >= 0
    block = np.zeros((inputs.shape[0], len(columns)))
    block[rows[inside], at[places[inside]]] = entries[inside]
    return block


def _independent(block: np.ndarray) -> bool:
    norms = np.linalg.norm(block, axis=0)
    if not np.all(norms > 0):
        return False
    if len(norms) == 1:
        return True
    if len(norms) > len(block):
        return False
    triangle = np.linalg.qr(block / norms, mode="r")
    values = np.linalg.svd(triangle, compute_uv=False)
    return bool(values[-1] > 4 * len(norms) * np.finfo(float).eps * values[0])


def _separates(loss: AbstractPointLoss, block: np.ndarray, targets: np.ndarray, outputs: int | None) -> bool:
    """Whether some direction of the free weights lowers the loss for ever: no optimum then exists.

    For classes, a v with sᵢ xᵢᵀv >= 0 for all rows and > 0 for one (Albert and Anderson, Biometrika 71, 1984); for
    counts, one with xᵢᵀv <= 0, and = 0 where yᵢ > 0. A single column needs a look at signs, several a linear programme.
    """
    there, loss = np.any(block != 0, axis=1), unweighted(loss)
    block, targets = block[there], targets[there]
    n, f = block.shape
    if isinstance(loss, LogisticLoss):
        rows = np.where(targets > 0.5, 1.0, -1.0)[:, None] * block
        return _one_sided(rows) if f == 1 else _reaches(rows, None)
    if isinstance(loss, PoissonLoss):
        some = targets > 0
        if f == 1:
            return not np.any(some) and _one_sided(block)
        return _reaches(-block[~some], block[some])
    if isinstance(loss, SoftmaxLoss):
        assert outputs is not None
        if f == 1:  # classes met with x > 0 must share the largest v_c, those met with x < 0 the smallest
            above, below = (set(targets[side[:, 0]].tolist()) for side in (block > 0, block < 0))
            return not above & below and len(above) < outputs and len(below) < outputs
        if n * f * outputs**2 > LOOKED_AT:
            return False
        apart = np.eye(outputs)[targets][:, None, :] - np.eye(outputs)[None]  # e_y - e_c for every c
        rows = apart[:, :, None, :] * block[:, None, :, None]
        return _reaches(rows.reshape(n * outputs, f * outputs), None)
    return False


def _one_sided(rows: np.ndarray) -> bool:
    return bool(np.all(rows >= 0) or np.all(rows <= 0))


def _reaches(rows: np.ndarray, equal: np.ndarray | None) -> bool:
    """Whether some v has rows v >= 0, not all 0, and equal v = 0."""
    if rows.size == 0 or rows.size > LOOKED_AT:
        return False
    scale = np.max(np.abs(rows), axis=0)
    if equal is not None and equal.size:
        scale = np.maximum(scale, np.max(np.abs(equal), axis=0))
    scale = np.where(scale > 0, scale, 1)
    rows = rows / scale
    fixed = {}
    if equal is not None and equal.size:
        triangle = np.linalg.qr(equal / scale, mode="r")
        fixed = {"A_eq": triangle, "b_eq": np.zeros(len(triangle))}
    from scipy.optimize import linprog  # slow to import, and seldom needed

    found = linprog(
        -np.sum(rows, axis=0), A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=(-1, 1), method="highs", **fixed
    )
    return bool(found.status == 0 and -found.fun > 1e-7)
