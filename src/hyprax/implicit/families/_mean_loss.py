"""The unpenalised mean loss of linear predictions, and the rounding of its derivatives."""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._design import Design, SparseDesign, backward, forward
from ._losses import AbstractPointLoss, SoftmaxLoss
from ._norms import DesignNorms


def unit_roundoff(x: Array) -> float:
    """u = ε/2 of a floating array."""
    return float(jnp.finfo(x.dtype).eps) / 2


def over(rows: Float[Array, " n"], like: Array) -> Array:
    """A number for each row, with as many axes as `like`."""
    return jnp.expand_dims(rows, tuple(range(1, like.ndim)))


def prediction_rounding(params: Array, norms: DesignNorms, unit: float) -> tuple[Array, Array]:
    """|Xw| <= size and |fl(Xw) - Xw| <= γ_d size, row by row: size_i = ‖x_i‖ max_c‖w_c‖, γ_k = (k + 12) u."""
    largest = jnp.max(jnp.sqrt(jnp.sum(jnp.square(params), axis=0)))
    size = over(norms.rows, params) * largest
    return size, (norms.columns.size + 12) * unit * size


def per_feature(norms: DesignNorms, rows: Float[Array, "n *C"]) -> Float[Array, "d *C"]:
    """A bound of |X|ᵀ rows, entry by entry, for rows >= 0."""
    columns = over(norms.columns, rows)
    return columns * jnp.sqrt(jnp.sum(jnp.square(rows), axis=0, keepdims=rows.ndim > 1))


class MeanLoss(eqx.Module):
    """f(w) = (1/m) Σ_i ℓ(v_iᵀw; y_i): the unpenalised mean loss on given data, as an outer loss.

    Called as `outer_loss(params, hyper, data)` with `data = (V, y)`, V dense or a [`hyprax.families.SparseDesign`][];
    `hyper` is not used.
    """

    loss: AbstractPointLoss

    def arrays(self, data: PyTree, params: Array) -> tuple[Design, Array]:
        """Outer data as arrays, looked at where they are concrete: labels out of range give numbers without meaning.

        **Raises:** `ValueError` for data that are no pair, or of shapes or targets that do not fit the loss.
        """
        if not (isinstance(data, tuple | list) and len(data) == 2):
            kind = type(data).__name__
            raise ValueError(f"outer_data: given {kind}, allowed for a mean loss is a pair (inputs, targets).")
        inputs = data[0] if isinstance(data[0], SparseDesign) else jnp.asarray(data[0])
        targets = jnp.asarray(data[1])
        if len(inputs.shape) != 2 or inputs.shape[1] != params.shape[0] or targets.shape[:1] != inputs.shape[:1]:
            raise ValueError(
                f"outer_data: given inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)}, allowed are "
                f"inputs (m, {params.shape[0]}), the features of the training data, and m targets."
            )
        with contextlib.suppress(jax.errors.TracerArrayConversionError):
            self.loss.check_targets("outer_data", np.asarray(targets), params.shape[1] if params.ndim == 2 else None)
        return inputs, targets if isinstance(self.loss, SoftmaxLoss) else targets.astype(inputs.dtype)

    def __call__(self, params: PyTree, hyper: PyTree, data: tuple[Design, Array]) -> Float[Array, ""]:
        inputs, targets = data
        return jnp.mean(self.loss.value(forward(inputs, params), targets))

    def gradient(self, params: Array, data: tuple[Design, Array]) -> Float[Array, "d *C"]:
        """∇f = Vᵀ ∇ℓ/m."""
        inputs, targets = data
        slope = self.loss.slope(self.loss.statistic(forward(inputs, params), targets), targets)
        return backward(inputs, slope) / inputs.shape[0]

    def gradient_rounding(
        self, params: Array, data: tuple[Design, Array], norms: DesignNorms, unit: float
    ) -> Float[Array, "d *C"]:
        """|fl(∇f) - ∇f| <= |V|ᵀ(|δ∇ℓ| + γ_m |∇ℓ|)/m, entry by entry, in arithmetic of unit roundoff `unit`."""
        inputs, targets = data
        statistic = self.loss.statistic(forward(inputs, params), targets)
        rows = slope_rounding(self.loss, statistic, targets, params, norms, unit)
        return per_feature(norms, rows) / inputs.shape[0]

    def value_rounding(
        self, params: Array, data: tuple[Design, Array], norms: DesignNorms, unit: float
    ) -> Float[Array, ""]:
        """A bound on the rounding of f: the mean of (Σ_c|∇ℓ|_c + D e^{2M du} du) du + γ_m size(ℓ), D = ‖∇²ℓ‖."""
        inputs, targets = data
        u = forward(inputs, params)
        parts = tuple(range(1, u.ndim))
        statistic = self.loss.statistic(u, targets)
        slope = jnp.sum(jnp.abs(self.loss.slope(statistic, targets)), axis=parts)
        size, du = (jnp.max(x, axis=parts) for x in prediction_rounding(params, norms, unit))
        curved = self.loss.top_curvature(statistic) * jnp.exp(2 * self.loss.self_concordance * du)
        columns = u.shape[-1] ** (u.ndim - 1)
        relative = (inputs.shape[0] + 12 + 8 * columns) * unit
        sizes = self.loss.value_size(u, targets) + size
        return jnp.mean((slope + columns * curved * du) * du + relative * sizes)


def outer_arrays(loss: Any, data: PyTree, params: PyTree) -> PyTree:
    """Outer data as arrays; those of a [`hyprax.families.MeanLoss`][] are looked at."""
    return loss.arrays(data, params) if isinstance(loss, MeanLoss) else jax.tree.map(jnp.asarray, data)


def slope_rounding(
    loss: AbstractPointLoss, statistic: Array, targets: Array, params: Array, norms: DesignNorms, unit: float
) -> Float[Array, "n *C"]:
    """|δ∇ℓ| + γ_n |∇ℓ|, row by row: what summing n rows of the computed ∇ℓ adds up, before |X|ᵀ."""
    size, du = prediction_rounding(params, norms, unit)
    error = loss.slope_rounding(statistic, targets, size, du, unit)
    return error + (norms.rows.size + 12) * unit * jnp.abs(loss.slope(statistic, targets))
