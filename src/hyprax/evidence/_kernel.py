"""Neural tangent kernels of chosen rows: K = Σ_l φ_l diag(v_l) φ_lᵀ, with φ_l = ∂(cᵀf)/∂w_l for each cotangent c."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Apply = Callable[[Any, Any, Any], Array]
"""f = apply(params, hyper, x): the outputs [C] of one example x."""


def _rows(apply: Apply, params: PyTree, hyper: PyTree, inputs: PyTree, cotangents: Array) -> PyTree:
    def example(x: PyTree, rows: Array) -> PyTree:
        _, pull = jax.vjp(lambda p: apply(p, hyper, x), params)
        return jax.vmap(lambda c: pull(c)[0])(rows)

    return jax.vmap(example)(inputs, cotangents)


def kernels_by_tensor(
    apply: Apply, params: PyTree, hyper: PyTree, inputs: PyTree, cotangents: Float[Array, "m r c"]
) -> PyTree[Float[Array, "rows rows"]]:
    """K_l = φ_l φ_lᵀ [MR, MR], rows datum-major, one for each leaf of `params`."""
    m, r = cotangents.shape[:2]

    def gram(leaf: Array) -> Array:
        flat = leaf.reshape(m * r, -1)
        return flat @ flat.T

    return jax.tree.map(gram, _rows(apply, params, hyper, inputs, cotangents))


def kernel(
    apply: Apply,
    params: PyTree,
    hyper: PyTree,
    inputs: PyTree,
    cotangents: Float[Array, "m r c"],
    variances: PyTree[Float[Array, "..."]],
) -> Float[Array, "rows rows"]:
    """K = Σ_l φ_l diag(v_l) φ_lᵀ [MR, MR], rows datum-major; each v_l a scalar or like its leaf."""
    m, r = cotangents.shape[:2]

    def gram(leaf: Array, variance: Array) -> Array:
        flat = leaf.reshape(m * r, -1)
        weight = jnp.broadcast_to(variance, leaf.shape[2:]).reshape(1, -1)
        return (flat * weight) @ flat.T

    rows = _rows(apply, params, hyper, inputs, cotangents)
    grams = jax.tree.leaves(jax.tree.map(gram, rows, variances))
    return sum(grams[1:], grams[0])


def kernel_matvec(
    apply: Apply,
    params: PyTree,
    hyper: PyTree,
    inputs: PyTree,
    cotangents: Float[Array, "m r c"],
    variances: PyTree[Float[Array, "..."]],
    vector: Float[Array, " rows"],
) -> Float[Array, " rows"]:
    """K v = φ (diag(v_l) (φᵀ v)), with no row formed."""
    outputs = cotangents.shape[:2]

    def contracted(p: PyTree) -> Array:
        f = jax.vmap(lambda x: apply(p, hyper, x))(inputs)
        return jnp.einsum("mrc,mc->mr", cotangents, f)

    _, pull = jax.vjp(contracted, params)
    (gradient,) = pull(vector.reshape(outputs))
    scaled = jax.tree.map(lambda g, v: g * jnp.broadcast_to(v, g.shape), gradient, variances)
    return jax.jvp(contracted, (params,), (scaled,))[1].reshape(-1)
