"""Where the low words of full buffers wait for the way back: a stack, on the device or in the memory of the host."""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._rational import WORD_BITS

Place: TypeAlias = Literal["device", "host"]
PLACES: tuple[str, ...] = ("device", "host")


@jax.jit
def _take(buffer: Array) -> tuple[Array, Array]:
    return buffer >> WORD_BITS, (buffer & ((1 << WORD_BITS) - 1)).astype(jnp.uint32)


@jax.jit
def _put(buffer: Array, word: Any) -> Array:
    return (buffer << WORD_BITS) | word.astype(jnp.int64)


class Spill:
    """The low 32 bits of buffers, last in first out. Use it where 64-bit types are on."""

    def __init__(self, place: Place):
        self.place = place
        self.bytes = 0
        self._words: list[Any] = []

    def take(self, buffer: Array) -> Array:
        """The buffer without its low 32 bits, which are kept."""
        rest, word = _take(buffer)
        self._words.append(np.asarray(word) if self.place == "host" else word)
        self.bytes += word.nbytes
        return rest

    def put(self, buffer: Array) -> Array:
        """The buffer as it was before the `take` of it."""
        return _put(buffer, self._words.pop())

    def words(self) -> list[Any]:
        """All that is kept, first in first."""
        return list(self._words)

    def refill(self, words: list[Any], taken: int) -> None:
        """Keep these words, of so many bytes taken in all."""
        self._words = [np.asarray(word) for word in words] if self.place == "host" else list(words)
        self.bytes = taken

    def __len__(self) -> int:
        return len(self._words)
