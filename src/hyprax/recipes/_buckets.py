"""Rows up to a size that other tables have too, so that the next table of about this size compiles nothing."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import PyTree

from .._objective import AbstractObjective
from ..implicit import Optimum
from ..implicit._folds_together import folds_together
from ..implicit._optimum import family_of
from ..implicit._rows import padded

LEAST, PARTS = 64, 4


def blanked(inputs: np.ndarray, targets: np.ndarray, terms: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, Any]:
    """Rows for a `Bucketed` family, and its terms: blank ones, without a gradient, their targets amid the others'.

    The weight of each row is a number, which families keep as an array: tables of other sizes share the program.
    """
    more = padded(len(inputs), LEAST, PARTS) - len(inputs)
    middle = targets[0] if targets.dtype.kind in "iu" else np.mean(targets, dtype=float).astype(targets.dtype)
    terms = {**terms, "weights": (len(inputs) + more) / len(inputs)}
    if "offset" in terms:
        terms["offset"] = np.concatenate([terms["offset"], np.zeros(more)])
    blank = np.full(more, middle, targets.dtype)
    return np.concatenate([inputs, np.zeros((more, inputs.shape[1]))]), np.concatenate([targets, blank]), terms


class Bucketed(eqx.Module):
    """A problem with blank rows after its own, as folds see it: a [`hyprax.search.CrossValidated`][] takes it.

    - `optimum`: of a family whose N rows weigh N/n each, so that its loss is (1/n) Σ over the n rows that are not
        blank. The weight is rounded, by one unit of the twelve that bounds of rounding leave room for.
    - `own`: 1 for these rows, 0 for blank ones.
    """

    optimum: Optimum
    own: np.ndarray

    def __init__(self, optimum: Optimum, rows: int):
        self.optimum = optimum
        self.own = np.arange(family_of(optimum).inputs.shape[0]) < rows

    @property
    def rows(self) -> int:
        """n."""
        return int(self.own.sum())

    def labels(self) -> np.ndarray:
        return self.optimum.labels()[: self.rows]

    def stratify(self) -> bool:
        return self.optimum.stratify()

    def held_out(self, training: np.ndarray, held_out: np.ndarray, **settings: Any) -> AbstractObjective:
        return self.optimum.held_out(self._with_blanks(training), self._with_blanks(held_out), **settings)

    def together(self, hyper: PyTree, sets: Any) -> Any:
        """All folds in one program, the weight in the masks that fit."""
        family = family_of(self.optimum)
        plain = eqx.tree_at(lambda f: f.weights, family, None, is_leaf=lambda x: x is None)
        share = len(self.own) / self.rows
        return folds_together(
            plain, hyper, [[(share * self._with_blanks(a), self._with_blanks(b)) for a, b in masks] for masks in sets]
        )

    def shaped(self, flat: Any) -> Any:
        return self.optimum.shaped(flat)

    def refit(self, hyper: PyTree) -> Any:
        return self.optimum.refit(hyper)

    def _with_blanks(self, mask: np.ndarray) -> np.ndarray:
        return np.concatenate([mask, np.zeros(len(self.own) - len(mask), mask.dtype)])
