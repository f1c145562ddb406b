"""Hypergradients through training runs of T steps: stored, recomputed, reversed, carried forward or cut short."""

from ._mode import AbstractMode as AbstractMode, Outer as Outer, UnrollReport as UnrollReport
from ._optimizer import (
    AbstractOptimizer as AbstractOptimizer,
    OptaxOptimizer as OptaxOptimizer,
    lookup as lookup,
    per_leaf as per_leaf,
)
from ._training import Training as Training
