"""What is accepted as data: arrays, weights of the examples, minibatches and loaders; and sequences as their tokens."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._batches import FullBatch, Minibatches
from .._objective import described
from ._likelihoods import AbstractLikelihood, Categorical
from ._problem import widened

Data = tuple[PyTree, Array] | tuple[PyTree, Array, Array]
"""(inputs, targets), or with what each example counts."""


def as_data(data: Any) -> Data:
    """(inputs, targets) or (inputs, targets, weights) as arrays, half precision in single; batches are joined.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(data, Minibatches | FullBatch):
        data = data.data
    if not isinstance(data, tuple):
        data = _joined(data)
    if len(data) not in (2, 3):
        raise ValueError(
            "evidence: data must be (inputs, targets), or (inputs, targets, weights); got a tuple of "
            f"{len(data)} entries."
        )
    for name, part in zip(("inputs", "targets", "weights"), data, strict=False):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            where = f"evidence: {name}{jax.tree_util.keystr(path)}"
            if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind in "OSUMm":
                raise ValueError(f"{where} must be numbers; got values of type {np.asarray(leaf).dtype}.")
            if np.ndim(leaf) == 0:
                raise ValueError(f"{where} must be an array; got a single number (a list is a container of arrays).")
    return widened(jax.tree.map(jnp.asarray, data))


def _joined(batches: Any) -> tuple:
    """The batches of a loader, one after the other.

    **Raises:** `ValueError` for what is neither a pair nor batches of pairs.
    """
    found = []
    if isinstance(batches, Iterable) and not hasattr(batches, "__array__") and not isinstance(batches, dict | str):
        for batch in batches:
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                found = []
                break
            found.append(jax.tree.map(np.asarray, tuple(batch)))
    if not found:
        raise ValueError(
            "evidence: data must be a pair, the tuple (inputs, targets), or (inputs, targets, weights), or batches of "
            f"these; got {described(batches)}."
        )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def by_token(
    targets: Array, weights: Float[Array, "..."] | None, shape: tuple[int, ...], likelihood: AbstractLikelihood
) -> tuple[Array, Float[Array, " n"] | None]:
    """Targets and weights with one axis for all tokens of all sequences; a label below 0 is padding, and counts 0.

    `shape` is that of the outputs for one sequence, (S, C).

    **Raises:** `ValueError` for targets or weights of other numbers of tokens.
    """
    tokens = shape[0]
    if targets.ndim < 2 or targets.shape[1] != tokens:
        raise ValueError(
            "evidence: apply must return one array (C,) for one example, or (S, C) for a sequence whose targets are "
            f"(N, S, ...); its output has shape {shape}, and the targets {targets.shape}."
        )
    if weights is not None and weights.shape not in (targets.shape[:1], targets.shape[:2]):
        raise ValueError(
            f"evidence: weights must have shape {targets.shape[:1]}, or {targets.shape[:2]}, one for each token; got "
            f"{weights.shape}."
        )
    count = targets.shape[0]
    if weights is not None:
        weights = jnp.broadcast_to(weights.reshape(count, -1), (count, tokens)).ravel()
    flat = targets.reshape(count * tokens, *targets.shape[2:])
    if isinstance(likelihood, Categorical) and flat.ndim == 1:
        counts = jnp.ones(flat.shape, float) if weights is None else weights
        return jnp.where(flat < 0, 0, flat), jnp.where(flat < 0, 0, counts)
    return flat, weights
