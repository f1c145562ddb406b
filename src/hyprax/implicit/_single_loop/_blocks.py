"""A fixed partition of the examples into random blocks, gone through in a new random order every epoch."""

import operator
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, PyTree

from ..._batches import LARGEST, permuted


class Blocks(eqx.Module):
    """{0, ..., n-1} = ∪_k B_k, N = ⌈n/b⌉ disjoint blocks of ⌊n/N⌋ examples, the first n mod N of them with one more.

    Every example is in one block, so that (1/N) Σ_k (N/n) Σ_{i in B_k} a_i is the mean of a_i exactly, whether b
    divides n or not. Blocks are drawn once, by `key`; epoch e goes through all N in an order drawn from `fold_in`. Both
    are pseudo-random permutations evaluated where they are needed, so step t can be asked for in any order, and gives
    the same bits.
    """

    size: int = eqx.field(static=True)
    count: int = eqx.field(static=True)
    key: Array

    def __init__(self, name: str, size: int, batch_size: SupportsIndex, key: Array):
        if not 1 <= size <= LARGEST:
            raise ValueError(f"{name}: the number of examples must be from 1 to {LARGEST}; got {size}.")
        batch_size = operator.index(batch_size)
        if not 1 <= batch_size <= size:
            raise ValueError(f"{name}: the batch size must be from 1 to {size} (all examples); got {batch_size}.")
        self.size, self.count, self.key = size, -(-size // batch_size), key

    @property
    def base(self) -> int:
        """⌊n/N⌋, what every block has."""
        return self.size // self.count

    @property
    def spare(self) -> int:
        """n mod N, the number of blocks with one example more."""
        return self.size % self.count

    @property
    def rows_of_a_block(self) -> int:
        """How many rows are read for a block: ⌈n/N⌉."""
        return self.base + (self.spare > 0)

    def draw(self, step: Integer[Array, ""]) -> Int[Array, ""]:
        """The block of step t: the (t mod N)-th in the order of epoch t div N."""
        epoch, within = jnp.divmod(step, self.count)
        return permuted(within, self.count, jax.random.fold_in(self.key, epoch + 1))

    def rows(self, block: Integer[Array, ""]) -> Int[Array, " rows"]:
        """The examples of a block: `base` of them, and one more where `spare` is not 0; see `extra`."""
        places = block * self.base + jnp.arange(self.base, dtype=jnp.int32)
        if self.spare:
            last = jnp.where(block < self.spare, self.count * self.base + block, 0).astype(jnp.int32)
            places = jnp.concatenate([places, last[None]])
        return permuted(places.astype(jnp.int32), self.size, jax.random.fold_in(self.key, 0))

    def extra(self, block: Integer[Array, ""], dtype: Any) -> Float[Array, ""]:
        """Whether the last row counts: 1 for the first `spare` blocks, 0 for the others, where it is a filler."""
        return (block < self.spare).astype(dtype)

    def weights(self, block: Integer[Array, ""], dtype: Any) -> Float[Array, " rows"]:
        """N/n for every row that counts, 0 for the filler."""
        weights = jnp.ones(self.base, dtype)
        if self.spare:
            weights = jnp.concatenate([weights, self.extra(block, dtype)[None]])
        return weights * jnp.asarray(self.count / self.size, dtype)


def common_length(name: str, data: PyTree) -> int:
    """The common leading axis of all leaves; 1 for data without leaves: a loss that sees no data is one term.

    **Raises:** `ValueError` for leaves of different lengths.
    """
    axes = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
    if not axes:
        return 1
    if len(axes) != 1 or () in axes:
        raise ValueError(f"{name}: all arrays must have one length; got leading axes {sorted(axes)}.")
    return axes.pop()[0]
