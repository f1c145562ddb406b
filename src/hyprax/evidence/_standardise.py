"""A model between standardised inputs and targets and those of the data; and where its precisions start."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._hyper import Positive


def precisions(params: PyTree, value: Any = 1.0) -> PyTree:
    """One learned prior precision for each tensor of weights: `params` with [`hyprax.Positive`][] leaves.

    **Arguments:**

    - `params`: the weights.
    - `value`: where every precision starts.
    """
    return jax.tree.map(lambda w: Positive(jnp.asarray(value, jnp.asarray(w).dtype)), params)


class Standardised(eqx.Module):
    """f(x) = b + s ∘ g((x - m)/d): a model g of standardised inputs and outputs, as one of the data themselves.

    The weights are those of g: their prior speaks of numbers of order one, whatever the units of the data.
    """

    apply: Callable[[Any, Any, Any], Array]
    mean: PyTree
    spread: PyTree
    offset: Float[Array, " c"] | None
    scale: Float[Array, " c"] | None

    def __call__(self, params: Any, hyper: Any, x: Any) -> Float[Array, " c"]:
        z = jax.tree.map(lambda x, m, d: (x - m) / d if m.size else x, x, self.mean, self.spread)
        f = self.apply(params, hyper, z)
        return f if self.scale is None or self.offset is None else self.offset + self.scale * f


def standardised(
    apply: Callable[[Any, Any, Any], Array], inputs: PyTree, targets: Array | None, noisy: bool = False
) -> tuple[Standardised, float]:
    """The model, and the spread of the targets (1 for none given); a model is `noisy` if it gives log noises as well.

    Columns of matrices of inputs are shifted and scaled, but for constant ones; images and integers are left alone.

    **Raises:** `ValueError` for targets that are all the same.
    """

    def moments(x: Array) -> tuple[np.ndarray, np.ndarray]:
        values = np.asarray(x)
        if values.ndim != 2 or values.dtype.kind != "f":
            return np.zeros(0), np.zeros(0)
        wide = values.astype(np.float64)
        mean, spread = wide.mean(0), wide.std(0)
        constant = spread <= 1e-10 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)
        center, width = np.where(constant, 0.0, mean), np.where(constant, 1.0, spread)
        return center.astype(values.dtype), width.astype(values.dtype)

    leaves, structure = jax.tree.flatten(inputs)
    found = [moments(x) for x in leaves]
    mean, spread = (jax.tree.unflatten(structure, [jnp.asarray(x[k]) for x in found]) for k in (0, 1))
    if targets is None:
        return Standardised(apply, mean, spread, None, None), 1.0
    wide = np.asarray(targets, dtype=np.float64)
    offset, scale = wide.mean(0), wide.std(0)
    if np.any(scale <= 1e-10 * np.maximum(np.abs(offset), np.finfo(np.float32).tiny)):
        raise ValueError(
            f"evidence: targets must vary; got targets that are all {offset[0]:.6g}: there is neither signal nor noise "
            "to learn from them, and the evidence grows without end as the noise vanishes."
        )
    dtype = jnp.result_type(float) if targets.dtype.kind != "f" else targets.dtype
    size = float(np.sqrt(np.mean(np.square(scale))))
    if noisy:
        offset, scale = np.concatenate([offset, np.log(scale)]), np.concatenate([scale, np.ones_like(scale)])
    return Standardised(apply, mean, spread, jnp.asarray(offset, dtype), jnp.asarray(scale, dtype)), size
