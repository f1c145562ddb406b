"""The leaves of the weights as vectors: those that share all coefficients are joined, so that a step has few kernels.

A kernel of a small leaf takes as long to start as to run. Large leaves stay alone: joining them would be a copy.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

JOINED = 1 << 16
"""The size from which on a leaf is a vector of its own, in its shape; so is one that an explicit mesh spreads."""


@dataclasses.dataclass(frozen=True)
class Vector:
    """Which leaves stand one after the other, their dtype, and the group whose coefficients they share."""

    leaves: tuple[int, ...]
    dtype: Any
    group: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Packing:
    """A pytree of leaves of these shapes as a list of vectors, and back."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    vectors: tuple[Vector, ...]

    @property
    def size(self) -> int:
        """The numbers in all vectors."""
        return sum(vector.size for vector in self.vectors)

    def join(self, tree: PyTree) -> list[Array]:
        """The vectors of a tree of this structure; any dtypes that a vector's leaves share."""
        leaves = self.structure.flatten_up_to(tree)
        parts = [
            [leaves[i].reshape(vector.shape if len(vector.leaves) == 1 else -1) for i in vector.leaves]
            for vector in self.vectors
        ]
        return [jnp.concatenate(pieces) if len(pieces) > 1 else pieces[0] for pieces in parts]

    def split(self, vectors: Sequence[Array]) -> PyTree:
        """The tree of vectors of these sizes."""
        leaves: list[Any] = [None] * len(self.shapes)
        for vector, numbers in zip(self.vectors, vectors, strict=True):
            if len(vector.leaves) == 1:
                leaves[vector.leaves[0]] = numbers.reshape(self.shapes[vector.leaves[0]])
                continue
            start = 0
            for i in vector.leaves:
                end = start + math.prod(self.shapes[i])
                leaves[i] = jax.lax.slice(numbers, (start,), (end,)).reshape(self.shapes[i])
                start = end
        return self.structure.unflatten(leaves)


def pack(tree: PyTree, groups: Sequence[int], *, by_leaf: bool = False) -> Packing:
    """The packing of trees like this one, given the group of each leaf; `by_leaf`: every leaf alone, in its shape."""
    leaves, structure = jax.tree.flatten(tree)
    together: dict[Any, list[int]] = {}
    for i, (leaf, group) in enumerate(zip(leaves, groups, strict=True)):
        alone = i if by_leaf or leaf.size >= JOINED or _spread(leaf) else -1
        together.setdefault((group, leaf.dtype, alone), []).append(i)
    vectors = tuple(
        Vector(
            tuple(members),
            dtype,
            group,
            leaves[members[0]].shape if alone >= 0 else (sum(leaves[i].size for i in members),),
        )
        for (group, dtype, alone), members in together.items()
    )
    return Packing(structure, tuple(leaf.shape for leaf in leaves), vectors)


def _spread(leaf: Array) -> bool:
    """Whether the type of an array names axes of a mesh, over which it lies."""
    return any(axis is not None for axis in jax.typeof(leaf).sharding.spec)
