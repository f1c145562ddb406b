"""Strengths tuned on all folds at once, from several starts side by side, where a table is of the size for it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..search._lockstep import Held, Limits, minimised
from ..search._shrinkage_path import Score
from ._folds import Masks

STARTS = 6
"""So many searches for a single strength begin evenly spaced on a logarithmic scale, unless folds ask for others."""


@dataclasses.dataclass(frozen=True)
class Walked:
    """Where a search went: strengths, the criterion there, steps; whether all were spent, or the gradient was small."""

    strengths: np.ndarray
    criterion: float
    steps: int
    spent: bool
    flat: bool


class AtOnce:
    """Folds of a table beside each other, in one compiled program for all that is asked of them.

    - `bounds`: of a strength, in the units of the family.
    """

    def __init__(self, problem: Any, masks: Masks, hyper_of: Any, count: int, bounds: tuple[float, float]):
        self.problem, self.hyper_of, self.count = problem, hyper_of, count
        self.low, self.high = np.log(bounds)
        # As many sets as the shrinkage path has, so that both are the same program.
        self.width = len(masks) + 1 if 3 <= len(masks) <= 7 else STARTS
        self.pads = len(masks)
        like = hyper_of(np.ones(count))
        self.sets = problem.together(like, [masks] * self.width, fine=True)
        every = np.ones(len(problem.targets), bool)
        self.whole = problem.together(like, [[(every, every)] * self.pads] * self.width, fine=True)

    @property
    def possible(self) -> bool:
        return self.sets is not None and self.whole is not None

    def single(self, span: tuple[float, float], steps: int, gradient: float) -> Walked:
        """The best single strength, from starts over `span`: the criterion may have several valleys."""
        starts = np.linspace(np.log(span[0]), np.log(span[1]), self.width)
        return self._walked(np.repeat(starts[:, None], self.count, axis=1), True, steps, gradient)

    def free(self, strengths: np.ndarray, steps: int, gradient: float) -> Walked:
        """All strengths freely, from these."""
        return self._walked(np.tile(np.log(strengths), (self.width, 1)), False, steps, gradient)

    def _walked(self, raw: np.ndarray, tied: bool, steps: int, gradient: float) -> Walked:
        end, values, _, taken, flat = minimised(
            self.sets, jnp.asarray(raw), self.sets.start(), self._held(tied), Limits.of(steps, gradient, 0.0)
        )
        values, taken = np.asarray(values), np.asarray(taken)
        best = int(np.argmin(values))
        spent, small = bool(taken[best] >= steps), bool(np.asarray(flat)[best])
        return Walked(np.exp(np.asarray(end)[best]), float(values[best]), int(taken.sum()), spent and not small, small)

    def value(self, strengths: np.ndarray) -> float:
        """The criterion."""
        return float(self._at(self.sets, strengths)[1][0])

    def scores(self, strengths: np.ndarray, masks: Masks, score: Score) -> list[float]:
        """The score of each fold on its held-out rows."""
        fits = np.asarray(self._at(self.sets, strengths)[2][0])
        return [score(self.problem.shaped(w), held) for w, (_, held) in zip(fits, masks, strict=True)]

    def refit(self, strengths: np.ndarray) -> tuple[np.ndarray, bool]:
        """The weights fitted on all rows, and whether they arrived."""
        _, values, weights, _, _ = self._at(self.whole, strengths)
        return np.asarray(self.problem.shaped(weights[0, 0])), bool(np.isfinite(values[0]))

    def _at(self, sets: Any, strengths: np.ndarray) -> tuple:
        raw = jnp.asarray(np.tile(np.log(strengths), (self.width, 1)))
        return minimised(sets, raw, sets.start(), self._held(False), Limits.of(0, 0.0, 0.0))

    def _held(self, tied: bool) -> Held:
        n = self.count
        return Held(
            strength=jnp.asarray(0.0),
            tied=jnp.asarray(tied),
            groups=jnp.zeros(n, int),
            low=jnp.full(n, self.low),
            high=jnp.full(n, self.high),
        )
