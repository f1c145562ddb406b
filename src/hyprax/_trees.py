"""Small linear algebra on pytrees of arrays: what optax has, under our names, and what it lacks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Scalar
from optax.tree import (
    add as tree_add,
    scale as tree_scale,
    size as tree_size,
    sub as tree_sub,
    vdot,
)

__all__ = [
    "is_traced",
    "tree_add",
    "tree_all_finite",
    "tree_axpy",
    "tree_cast",
    "tree_dot",
    "tree_dtype",
    "tree_norm",
    "tree_scale",
    "tree_size",
    "tree_sub",
]


def tree_dot(a: PyTree[Array], b: PyTree[Array]) -> Scalar:
    """<a, b>, summed over all leaves, at the full precision of their dtype."""
    return jnp.asarray(vdot(a, b))


def tree_norm(a: PyTree[Array]) -> Scalar:
    """The Euclidean norm of all entries of all leaves together; 0 for a tree without leaves.

    Scaled by the largest entry, so that it neither overflows nor underflows where the norm itself does not.
    """
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(a) if leaf.size]
    if not leaves:
        return jnp.zeros(())
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(leaf)) for leaf in leaves])
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))
    return scale * jnp.sqrt(sum(jnp.sum(jnp.square(leaf / scale)) for leaf in leaves))


def tree_axpy(scale: Any, a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    """scale * a + b."""
    return jax.tree.map(lambda x, y: scale * x + y, a, b)


def tree_all_finite(a: PyTree[Array]) -> Bool[Array, ""]:
    """Whether every entry of every leaf is finite."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(a)]
    return functools.reduce(jnp.logical_and, checks, jnp.asarray(True))


def tree_dtype(a: PyTree[Array]) -> Any:
    """The common floating dtype of the leaves."""
    return jnp.result_type(*jax.tree.leaves(a))


def tree_cast(a: PyTree, dtype: Any) -> PyTree:
    """Every floating array of `a` in `dtype`; whatever else it holds as it is."""

    def cast(leaf: Any) -> Any:
        floating = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(cast, a)


def is_traced(tree: PyTree) -> bool:
    """Whether arrays of a tree stand for those of a transformation of JAX, and have no values yet."""
    try:
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array):
                leaf.is_deleted()  # of what has a value alone can be asked whether it still has it
    except jax.errors.ConcretizationTypeError:
        return True
    return False
