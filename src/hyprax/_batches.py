"""Minibatches with random access: the batch of step t is a function of t alone."""

import functools
import math
import operator
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int, Integer, PyTree, UInt32

from ._keys import checked_key

ROUNDS, FEW, ROUNDS_OF_FEW = 8, 1 << 10, 16
"""Of the network; and of that on fewer numbers than `FEW`, whose functions have few values."""
LARGEST = 1 << 30


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The 32-bit finaliser of MurmurHash3: a bijection in which every input bit moves about half of the output bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@functools.partial(jax.jit, static_argnames="size")
def permuted(index: Integer[Array, "*n"], size: int, key: Array) -> Int[Array, "*n"]:
    """pi(index), for a pseudo-random permutation pi of 0..size-1 chosen by `key`, without forming pi.

    With a = ⌊√(size - 1)⌋ + 1 and b = ⌈size/a⌉, a Feistel network of 8 rounds (16 for few numbers) on pairs (l, r) of
    Z_a × Z_b, which adds to l and r by turns a function of the other, is a bijection of 0..ab-1 whatever that function
    is. Walking its cycle until the value is below `size` restricts it to a bijection of 0..size-1 (Black and Rogaway,
    CT-RSA 2002). As ab - size < a, about one index in √size walks on, so a batch costs O(batch), not O(size).
    """
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    rows, columns = jnp.uint32(a), jnp.uint32(b)
    rounds = ROUNDS if size >= FEW else ROUNDS_OF_FEW
    round_keys = jax.random.bits(key, (rounds,), jnp.uint32)

    def network(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
        left, right = x // columns, x % columns
        for i in range(0, rounds, 2):
            left = (left + _mix(right ^ round_keys[i]) % rows) % rows
            right = (right + _mix(left ^ round_keys[i + 1]) % columns) % columns
        return left * columns + right

    def walk(x: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
        return jnp.where(x < size, x, network(x))

    start = network(index.astype(jnp.uint32))
    return jax.lax.while_loop(lambda x: jnp.any(x >= size), walk, start).astype(jnp.int32)


class Minibatches(eqx.Module):
    """B_t = {data[pi_e(j)] : j = s b, ..., (s+1) b - 1}, with epoch e = t div m, s = t mod m, m = n div b.

    Each epoch e draws a fresh permutation pi_e of the n examples from `fold_in(key, e)` and visits every example at
    most once; the n mod b examples left over differ from epoch to epoch. Nothing is kept between steps, so step t can
    be asked for at any time, in any order, forwards or backwards, and gives the same bits.

    **Arguments:**

    - `data`: a pytree of arrays with a common leading axis of length n, 1 <= n <= 2^30.
    - `batch_size`: b, with 1 <= b <= n.
    - `key`: a JAX random key.

    **Raises:** `ValueError` for an empty pytree, leaves of different lengths, no examples or too many, or a batch size
    out of range; `TypeError` for a batch size or a step that is not an integer.
    """

    data: PyTree[Array]
    batch_size: int = eqx.field(static=True)
    key: Array

    def __init__(self, data: PyTree, batch_size: SupportsIndex, *, key: Array):
        data = jax.tree.map(jnp.asarray, data)
        axes = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
        if len(axes) != 1 or () in axes:
            raise ValueError(f"Minibatches: all arrays must have the same length; got leading axes {sorted(axes)}.")
        (size,) = axes.pop()
        if not 1 <= size <= LARGEST:
            raise ValueError(f"Minibatches: data must hold 1 to {LARGEST} examples; got {size}.")
        batch_size = operator.index(batch_size)
        if not 1 <= batch_size <= size:
            raise ValueError(
                f"Minibatches: batch_size must be between 1 and {size}, the number of examples; got {batch_size}."
            )
        self.data, self.batch_size, self.key = data, batch_size, checked_key("Minibatches", key)

    @property
    def size(self) -> int:
        """n, the number of examples."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def per_epoch(self) -> int:
        """m = n div b, the batches of an epoch."""
        return self.size // self.batch_size

    def indices(self, step: Integer[ArrayLike, ""]) -> Int[Array, " b"]:
        """The indices of the examples of step `step`."""
        step = jnp.asarray(step)
        if not jnp.issubdtype(step.dtype, jnp.integer):
            raise TypeError(f"Minibatches: step must be an integer; got {step.dtype}.")
        epoch, within = jnp.divmod(step, self.per_epoch)
        position = within * self.batch_size + jnp.arange(self.batch_size, dtype=within.dtype)
        return permuted(position, self.size, jax.random.fold_in(self.key, epoch))

    def __call__(self, step: Integer[ArrayLike, ""]) -> PyTree[Any]:
        """The batch of step `step`: the structure of `data`, with leading axis b."""
        index = self.indices(step)
        return jax.tree.map(lambda leaf: leaf[index], self.data)

    def reseeded(self, key: Array) -> "Minibatches":
        """The same examples, visited in another order."""
        return Minibatches(self.data, self.batch_size, key=key)


class FullBatch(eqx.Module):
    """B_t = data: every step sees all examples.

    **Arguments:**

    - `data`: a pytree of arrays.
    """

    data: PyTree[Array]

    def __init__(self, data: PyTree):
        self.data = jax.tree.map(jnp.asarray, data)

    def __call__(self, step: Integer[ArrayLike, ""]) -> PyTree[Any]:
        """`data`, whatever the step."""
        return self.data
