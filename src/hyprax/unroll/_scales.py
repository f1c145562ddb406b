"""Factors of fixed-point words that are neither rounded nor multiplied by: the unit of the words takes them.

A state of momentum γ is the word V in units of U: v = U V. Its step v ← γ v - g is U ← γ U, V ← V - rint(g/U): the word
changes by an integer that the gradient determines, and whatever γ is, nothing is lost. The units are numbers known
before the run starts. Where γ < 1 they shrink, and words of one magnitude grow; before they would be finer than 2^-F,
the low 8 bits of every word are put away, and the unit is 2^8 times as coarse. So log2(1/γ) bits a parameter and step
are kept, the least possible, as by the rational factors of Maclaurin, Duvenaud and Adams 2015 (arXiv 1502.03492), but
no factor has to be a fraction of few digits, and no step divides.
"""

import dataclasses
import math
from typing import Any, Literal, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._fixed_point import Long

SHIFT_BITS = 8
"""The bits that are put away at once."""
SMALLEST, LARGEST = 2.0**-SHIFT_BITS, 2.0
"""The factors that one shift before a step makes room for."""

Place: TypeAlias = Literal["device", "host"]
PLACES: tuple[str, ...] = ("device", "host")
Number = TypeVar("Number", Array, Long)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The units of one kind of number over a run of T steps, for every group.

    - `units`: (T + 1, groups), the unit before step t and after the last; (1, groups) where no factor is other than 1.
    - `after`: (T, groups), or (1, groups): the unit after step t, before the words are shifted for the next.
    - `shifts`: for every group (t, k): before step t its words are shifted by k bits to the right, of which are put
        away, or by -k to the left.
    - `theory`: for every group Σ log2(1/γ).
    """

    units: np.ndarray
    after: np.ndarray
    shifts: tuple[tuple[tuple[int, int], ...], ...]
    theory: np.ndarray

    def kept(self, group: int) -> int:
        """The bits of a word of this group that are put away."""
        return sum(k for _, k in self.shifts[group] if k > 0)


def fixed_scale(groups: int, fraction_bits: int) -> Scale:
    """The unit 2^-F, for numbers that are not multiplied."""
    unit = np.full((1, groups), 2.0**-fraction_bits)
    return Scale(unit, unit, ((),) * groups, np.zeros(groups))


def make_scale(factors: np.ndarray, steps: int, fraction_bits: int) -> Scale:
    """The units under factors (1 or T, groups), each between 2^-8 and 2, never finer than 2^-F."""
    if np.all(factors == 1):
        return fixed_scale(factors.shape[1], fraction_bits)
    units, after, shifts = zip(*(_one_group(column, steps, 2.0**-fraction_bits) for column in factors.T), strict=True)
    logs = -np.log2(factors)
    theory = np.sum(np.broadcast_to(logs, (steps, logs.shape[1])), axis=0)
    return Scale(np.stack(units, axis=1), np.stack(after, axis=1), shifts, theory)


def _one_group(column: np.ndarray, steps: int, finest: float) -> tuple[np.ndarray, np.ndarray, tuple[Any, ...]]:
    """Units that start as coarse as they have to and no coarser: T factors may take fewer than 8 bits in all."""
    factors = np.broadcast_to(column, (steps,))
    products = np.concatenate([[0.0], np.cumsum(np.log2(factors))])
    drop = float(np.max(np.maximum.accumulate(products) - products))
    octaves = max(min(SHIFT_BITS, math.ceil(drop)), int(np.any(factors > 1)))  # a word shifted left is half as large
    coarsest = finest * 2.0**octaves
    unit, units, after, shifts = coarsest, [], [], []
    for t, factor in enumerate(factors.tolist()):
        next_unit, bits = unit * factor, 0
        if next_unit < finest:
            bits = SHIFT_BITS
        elif next_unit > coarsest:
            bits = -math.ceil(math.log2(next_unit / coarsest))
        if bits:
            unit *= 2.0**bits
            if t > 0:  # what is multiplied by more than 1 starts at 0
                shifts.append((t, bits))
        units.append(unit)
        unit *= factor
        after.append(unit)
    return np.array([*units, unit]), np.array(after), tuple(shifts)


def shifted(word: Number, bits: Any) -> tuple[Number, Array]:
    """The number shifted by 8 bits or none to the right, or by -bits to the left, and its low 8 bits."""
    right, left = jnp.maximum(bits, 0), jnp.maximum(-bits, 0)
    if isinstance(word, Long):
        return _either(bits >= 0, word.right(right), word.left(left)), word.low(SHIFT_BITS).astype(jnp.uint8)
    low = (word & ((1 << SHIFT_BITS) - 1)).astype(jnp.uint8)
    return jnp.where(bits >= 0, word >> right, word << left), low


def unshifted(word: Number, low: Any, bits: Any) -> Number:
    """The number as it was before `shifted`."""
    right = jnp.maximum(-bits, 0)
    if isinstance(word, Long):
        return _either(bits > 0, word.left(SHIFT_BITS, low.astype(jnp.float64)), word.right(right))
    return jnp.where(bits > 0, (word << SHIFT_BITS) | low.astype(jnp.int64), word >> right)


def _either(which: Any, one: Number, other: Number) -> Number:
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), one, other)


_shifted, _unshifted = jax.jit(shifted), jax.jit(unshifted)


class Store:
    """The low bits of words, last in first out, on the device or in the memory of the host. For where 64-bit types are
    on."""

    def __init__(self, place: Place):
        self.place = place
        self.bytes = 0
        self._lows: list[Any] = []

    def put(self, low: Any) -> None:
        """Keep the low bits of a word."""
        self._lows.append(np.asarray(low) if self.place == "host" else low)
        self.bytes += low.nbytes

    def take(self) -> Any:
        """What was put last."""
        return self._lows.pop()

    def shift(self, word: Number, bits: int) -> Number:
        """The word shifted by `bits` to the right, with the low bits kept, or by -bits to the left."""
        word, low = _shifted(word, bits)
        if bits > 0:
            self.put(low)
        return word

    def unshift(self, word: Number, bits: int) -> Number:
        """The word as it was before that `shift`."""
        return _unshifted(word, self.take() if bits > 0 else jnp.zeros((), jnp.uint8), bits)

    def lows(self) -> list[Any]:
        """All that is kept, first in first."""
        return list(self._lows)

    def refill(self, lows: list[Any], taken: int) -> None:
        """Keep these, of so many bytes taken in all."""
        self._lows = [np.asarray(low) for low in lows] if self.place == "host" else list(lows)
        self.bytes = taken

    def __len__(self) -> int:
        return len(self._lows)
