"""The unpenalised mean loss of linear predictions, and the rounding of its derivatives."""

from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..._processes import here
from ._design import Design, as_design, as_offset, backward, common_dtype, forward
from ._losses import AbstractPointLoss
from ._norms import DesignNorms

OuterData: TypeAlias = tuple[Design, Array] | tuple[Design, Array, Array]
"""Inputs, targets, and an offset where there is one."""


def offset_of(data: OuterData) -> Array | None:
    """The third of outer data."""
    return data[2] if len(data) == 3 else None


def unit_roundoff(x: Array) -> float:
    """u = ε/2 of a floating array."""
    return float(jnp.finfo(x.dtype).eps) / 2


def underflow(x: Array) -> float:
    """What underflow may take from an entry of a residual, and what a sum of squares still sees: 2^10 √tiny.

    A product below `tiny` is flushed to 0, and so is the square of a number below its root. As a bound of the rounding
    of each entry this covers both while data and factors are below 2^500 in float64.
    """
    return 2.0**10 * float(jnp.finfo(x.dtype).tiny) ** 0.5


def over(rows: Float[Array, " n"], like: Array) -> Array:
    """A number for each row, with as many axes as `like`."""
    return jnp.expand_dims(rows, tuple(range(1, like.ndim)))


def shifted(u: Float[Array, "n *C"], offset: Array | None) -> Float[Array, "n *C"]:
    """u + offset."""
    return u if offset is None else u + offset


def prediction_rounding(
    params: Array, norms: DesignNorms, unit: float, offset: Array | None = None
) -> tuple[Array, Array]:
    """|u| <= size and |fl(u) - u| <= γ_d size for u = Xw + o, row by row: size_i = ‖x_i‖ max_c‖w_c‖ + |o_i|.

    γ_k = (k + 12) u.
    """
    largest = jnp.max(jnp.sqrt(jnp.sum(jnp.square(params), axis=0)))
    size = over(norms.rows, params) * largest
    if offset is not None:
        size = size + jnp.max(jnp.abs(offset), axis=tuple(range(1, offset.ndim)), keepdims=True)
    return size, (norms.columns.size + 12 + 2 * (offset is not None)) * unit * size


def per_feature(norms: DesignNorms, rows: Float[Array, "n *C"]) -> Float[Array, "d *C"]:
    """A bound of |X|ᵀ rows, entry by entry, for rows >= 0."""
    columns = over(norms.columns, rows)
    return columns * jnp.sqrt(jnp.sum(jnp.square(rows), axis=0, keepdims=rows.ndim > 1))


class MeanLoss(eqx.Module):
    """f(w) = (1/m) Σ_i c_i ℓ(v_iᵀw; y_i): the unpenalised mean loss on given data, as an outer loss.

    Called as `outer_loss(params, hyper, data)` with `data = (V, y)`, V an array or a `scipy.sparse` matrix, or
    `(V, y, offset)`, the offset added to the predictions; `hyper` is not used. Integers and narrower floats are
    promoted to what holds them, never the other way.

    - `weights`: c, `(m,)`, numbers >= 0 (see `weighted`); `None` for 1. Every derivative of a row is that of ℓ times
        c_i, so bounds are sums with c_i before each row; the product rounds once more, by a unit.
    """

    loss: AbstractPointLoss
    weights: Float[Array, " m"] | None = None

    def weighted(self, weights: Any) -> "MeanLoss":
        """The same mean, rows counting by `weights`, `(m,)`: (1/m) Σ_i c_i ℓ_i, m all rows.

        The units of the loss are those of the weights: weights of mean 1 keep it what tolerances are made for.

        **Raises:** `ValueError` for anything but finite numbers >= 0, one of them above 0.
        """
        found = np.asarray(here(weights))
        fits = found.ndim == 1 and found.dtype.kind in "fiub"
        if not fits or not np.all(np.isfinite(found) & (found >= 0)) or not np.any(found > 0):
            raise ValueError(
                "mean_loss.weighted: weights must be finite numbers >= 0, one a row and one of them above 0; got "
                f"{found.dtype}{list(found.shape)}{', not all of them so' if fits else ''}."
            )
        return MeanLoss(self.loss, jnp.asarray(found, jnp.result_type(float)))

    def of_rows(self, data: OuterData) -> "MeanLoss":
        """The same for `data` as `arrays` gives them: weights in their dtype, which defines the problem.

        **Raises:** `ValueError` for weights of another number of rows.
        """
        if self.weights is None:
            return self
        if len(self.weights) != data[0].shape[0]:
            raise ValueError(
                f"outer_data must have a row for each of the {len(self.weights)} weights of the mean loss; got "
                f"{data[0].shape[0]}."
            )
        return MeanLoss(self.loss, self.weights.astype(data[0].dtype))

    def scaled(self, rows: Float[Array, "m *C"]) -> Float[Array, "m *C"]:
        """c_i rows_i, and 0 where c_i is, whatever the row is."""
        if self.weights is None:
            return rows
        weights = over(self.weights.astype(rows.dtype), rows)
        return jnp.where(weights > 0, weights * rows, 0)

    def heaviest(self, like: Array) -> Float[Array, ""]:
        """max_i c_i, in the dtype of `like`."""
        return jnp.ones((), like.dtype) if self.weights is None else jnp.max(self.weights).astype(like.dtype)

    def arrays(self, data: PyTree, params: Array) -> OuterData:
        """Outer data as arrays of one dtype that holds them and the parameters; looked at where they are concrete.

        **Raises:** `ValueError` for data that are no pair, or of shapes, dtypes or targets that do not fit the loss.
        """
        if not (isinstance(data, tuple | list) and len(data) in (2, 3)):
            raise ValueError(
                "outer_data of a mean loss must be a pair (inputs, targets), or three with an offset; got "
                f"{type(data).__name__}."
            )
        inputs = as_design(data[0], "outer_data: inputs")
        targets = self.loss.as_targets(
            data[1], "outer_data: targets", params.shape[1] if params.ndim == 2 and self.loss.labels else None
        )
        rows, columns = inputs.shape
        shape = (rows,) if self.loss.labels else (rows, *params.shape[1:])
        if columns != params.shape[0] or targets.shape != shape:
            raise ValueError(
                f"outer_data must be inputs (m, {params.shape[0]}), with the features of the training data, and "
                f"targets {('m', *params.shape[1:]) if not self.loss.labels else ('m',)}; got {tuple(inputs.shape)} "
                f"and {tuple(targets.shape)}.".replace("'", "")
            )
        added = as_offset(data[2] if len(data) == 3 else None, (rows, *params.shape[1:]), "outer_data: offset")
        numbers = (*(() if self.loss.labels else (targets,)), *(() if added is None else (added,)))
        dtype = common_dtype(inputs, params, *numbers)
        found = inputs.astype(dtype), targets if self.loss.labels else targets.astype(dtype)
        return found if added is None else (*found, added.astype(dtype))

    def predict(self, params: Array, data: OuterData) -> Float[Array, "m *C"]:
        """V w, and the offset."""
        return shifted(forward(data[0], params), offset_of(data))

    def __call__(self, params: PyTree, hyper: PyTree, data: OuterData) -> Float[Array, ""]:
        return jnp.mean(self.scaled(self.loss.value(self.predict(params, data), data[1])))

    def slopes(self, params: Array, data: OuterData) -> Float[Array, "m *C"]:
        """c ∇ℓ, row by row."""
        targets = data[1]
        return self.scaled(self.loss.slope(self.loss.statistic(self.predict(params, data), targets), targets))

    def gradient(self, params: Array, data: OuterData) -> Float[Array, "d *C"]:
        """∇f = Vᵀ c∇ℓ/m."""
        return backward(data[0], self.slopes(params, data)) / data[0].shape[0]

    def gradient_rounding(
        self, params: Array, data: OuterData, norms: DesignNorms, unit: float
    ) -> Float[Array, "d *C"]:
        """|fl(∇f) - ∇f| <= |V|ᵀc(|δ∇ℓ| + γ_m |∇ℓ|)/m, entry by entry, in arithmetic of unit roundoff `unit`."""
        inputs, targets = data[:2]
        statistic = self.loss.statistic(self.predict(params, data), targets)
        rows = slope_rounding(self.loss, statistic, targets, params, norms, unit, offset_of(data))
        if self.weights is not None:
            rows = self.scaled(rows + 2 * unit * jnp.abs(self.loss.slope(statistic, targets)))
        return per_feature(norms, rows) / inputs.shape[0] + underflow(params)

    def value_rounding(self, params: Array, data: OuterData, norms: DesignNorms, unit: float) -> Float[Array, ""]:
        """A bound on the rounding of f: the mean of c times (Σ|∇ℓ| + D e^{2M du} du) du + γ_m size(ℓ), D = ‖∇²ℓ‖."""
        inputs, targets = data[:2]
        u = self.predict(params, data)
        parts = tuple(range(1, u.ndim))
        statistic = self.loss.statistic(u, targets)
        slope = jnp.sum(jnp.abs(self.loss.slope(statistic, targets)), axis=parts)
        size, du = (jnp.max(x, axis=parts) for x in prediction_rounding(params, norms, unit, offset_of(data)))
        curved = self.loss.top_curvature(statistic) * jnp.exp(2 * self.loss.self_concordance * du)
        columns = u.shape[-1] ** (u.ndim - 1)
        relative = (inputs.shape[0] + 12 + 8 * columns) * unit
        sizes = self.loss.value_size(u, targets) + size
        relative = relative if self.weights is None else relative + 2 * unit
        return jnp.mean(self.scaled((slope + columns * curved * du) * du + relative * sizes)) + underflow(params)


def slope_rounding(
    loss: AbstractPointLoss,
    statistic: Array,
    targets: Array,
    params: Array,
    norms: DesignNorms,
    unit: float,
    offset: Array | None = None,
) -> Float[Array, "n *C"]:
    """|δ∇ℓ| + γ_n |∇ℓ|, row by row: what summing n rows of the computed ∇ℓ adds up, before |X|ᵀ."""
    size, du = prediction_rounding(params, norms, unit, offset)
    error = loss.slope_rounding(statistic, targets, size, du, unit)
    return error + (norms.rows.size + 12) * unit * jnp.abs(loss.slope(statistic, targets))
