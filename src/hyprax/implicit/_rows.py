"""Families with some of their rows left out, or with others joined: the prior is kept."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._optimum import Optimum, family_of
from .families._chunked import Chunked
from .families._design import SparseDesign, is_dense
from .families._free import free_columns
from .families._generalised_linear import GeneralisedLinear
from .families._norms import measured
from .families._selection import selection


def padded(size: int, least: int, parts: int) -> int:
    """The next of few sizes: at most a share of 1/`parts` more, so that nearly equal tables share one program."""
    step = max(least, 2 ** max(int(np.log2(max(size, 1))) - int(np.log2(parts)), 0))
    return -(-size // step) * step


def kept(inputs: Any, rows: np.ndarray) -> Any:
    """The design with zeros in all other rows: they drop out of gradients and Hessians exactly."""
    keep = jnp.asarray(rows, inputs.dtype)
    if isinstance(inputs, Chunked):
        raise ValueError("rows that are read in chunks cannot be left out one by one: hold out rows of their own.")
    if not isinstance(inputs, SparseDesign):
        return inputs * keep[:, None]
    entries, row, column = inputs.by_row
    return SparseDesign(entries * keep[row], row, column, inputs.shape)


def without(optimum: Optimum, training: np.ndarray) -> Optimum:
    """The same problem fitted on the rows where `training` is true, (1/n) Σ kept, n all rows: the prior is kept."""
    family = family_of(optimum)
    inputs = kept(family.inputs, training)
    norms, products = measured(inputs)
    gram = jnp.square(norms.columns) if family.gram.ndim == 1 else products
    gram = jnp.asarray(gram, family.gram.dtype) / len(training)
    loss = eqx.tree_at(lambda f: (f.inputs, f.norms, f.gram), family, (inputs, norms, gram))
    if family.offset is not None:
        loss = eqx.tree_at(lambda f: f.offset, loss, masked(family.offset, training))
    return eqx.tree_at(lambda o: o.loss, optimum, _looked_at(loss))


def masked(x: Array, rows: np.ndarray) -> Array:
    """Zeros in all other rows."""
    return jnp.where(jnp.expand_dims(jnp.asarray(rows), tuple(range(1, x.ndim))), x, 0).astype(x.dtype)


def _looked_at(family: GeneralisedLinear) -> GeneralisedLinear:
    """The family with its free columns judged by the rows that it has now."""
    if family.free is None:
        return family
    outputs = family.shape[1] if len(family.shape) == 2 else None
    free = free_columns(np.asarray(family.free.columns), family.loss, family.inputs, family.targets, outputs)
    return eqx.tree_at(lambda f: f.free, family, free)


def joined(optimum: Optimum, outer_data: PyTree) -> Optimum:
    """The family on its rows and the validation rows together, with the prior kept.

    g(w) = (1/n) Σ_{i <= n + m} ℓ_i + ½ Σ_j λ_j w_j²: the mean over all rows times (n + m)/n, by example weights.
    """
    family = family_of(optimum)
    inputs, targets = outer_data[:2]
    if not (is_dense(family.inputs) and is_dense(inputs)) or family.weights is not None:
        raise ValueError(
            "refit joins dense training and validation rows without example weights; for others, make a family of all "
            "rows and use hx.Optimum(family).refit(hyper)."
        )
    n, m = family.inputs.shape[0], inputs.shape[0]
    both = jnp.concatenate([family.inputs, inputs])
    labels = jnp.concatenate([family.targets, targets.astype(family.targets.dtype)])
    norms, products = measured(both)
    gram = jnp.square(norms.columns) if family.gram.ndim == 1 else products
    gram = jnp.asarray(gram, family.gram.dtype) / (n + m)
    weights = selection((n + m) / n, (n + m,), None, "weights", family.inputs.dtype)
    loss = eqx.tree_at(
        lambda f: (f.inputs, f.targets, f.norms, f.gram, f.weights),
        family,
        (both, labels, norms, gram, weights),
        is_leaf=lambda x: x is None,
    )
    if family.offset is not None:  # `matched` has seen to it that both have one, or neither
        loss = eqx.tree_at(lambda f: f.offset, loss, jnp.concatenate([family.offset, outer_data[2]]))
    return eqx.tree_at(lambda o: o.loss, optimum, _looked_at(loss))
