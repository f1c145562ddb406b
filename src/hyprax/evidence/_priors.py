"""Gaussian priors of the weights."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._likelihoods import positive


class GaussianPrior(eqx.Module):
    """w ~ N(m, P0⁻¹) with P0 diagonal: one precision, one for each tensor or layer, or one for each weight.

    **Arguments:**

    - `precision`: a number, or a pytree that is a prefix of the weights' (one number for a layer covers all of its
        tensors), each leaf a number or an array of the shape of its tensor. Arrays, so they can be learned.
    - `mean`: m, a prefix in the same way; default 0.

    **Raises:** `ValueError` for a precision that is not positive and finite, or that does not fit the weights.
    """

    precision: PyTree
    mean: PyTree

    def __init__(self, precision: PyTree, mean: PyTree = 0.0):
        self.precision = jax.tree_util.tree_map_with_path(
            lambda path, x: positive(x, "GaussianPrior: precision" + jax.tree_util.keystr(path)), precision
        )
        self.mean = jax.tree.map(jnp.asarray, mean)

    def variances(self, params: PyTree) -> PyTree[Float[Array, "..."]]:
        """1/P0: the structure of the weights, each leaf a scalar or like its tensor."""
        return jax.tree.map(lambda p, w: (1 / p).astype(w.dtype), _fitted("precision", self.precision, params), params)

    def penalty(self, params: PyTree) -> Float[Array, ""]:
        """(w - m)ᵀ P0 (w - m)."""

        def one(w: Array, p: Array, m: Array) -> Array:
            return jnp.sum(p.astype(w.dtype) * jnp.square(w - m.astype(w.dtype)))

        precision, mean = _fitted("precision", self.precision, params), _fitted("mean", self.mean, params)
        terms = jax.tree.leaves(jax.tree.map(one, params, precision, mean))
        return functools.reduce(jnp.add, terms)


def _fitted(name: str, prefix: PyTree, params: PyTree) -> PyTree:
    """`prefix` repeated to the structure of the weights, its shapes checked."""
    try:
        full = jax.tree.broadcast(prefix, params)
    except ValueError as error:
        raise ValueError(
            f"GaussianPrior: given a {name} of structure {jax.tree.structure(prefix)}, allowed are prefixes of the "
            f"weights' {jax.tree.structure(params)}."
        ) from error

    def check(path: Any, x: Array, w: Array) -> Array:
        if x.ndim and x.shape != w.shape:
            raise ValueError(
                f"GaussianPrior: given a {name} of shape {x.shape} for the weights{jax.tree_util.keystr(path)} of "
                f"shape {w.shape}, allowed are one number or the same shape."
            )
        return x

    return jax.tree_util.tree_map_with_path(check, full, params)
