"""Hypergradients through training runs of T steps: stored, recomputed, reversed, carried forward or cut short."""

from ._adam import Adam as Adam, AdamW as AdamW
from ._blocks import scan_blocks as scan_blocks
from ._checkpointed import Checkpointed as Checkpointed
from ._estimate import Estimate as Estimate, ModeCost as ModeCost, estimate as estimate
from ._forward_mode import ForwardMode as ForwardMode
from ._gauge import ChaosGauge as ChaosGauge, metasmoothness as metasmoothness
from ._long_run import LongRun as LongRun
from ._mode import AbstractMode as AbstractMode, Outer as Outer, UnrollReport as UnrollReport
from ._momentum_sgd import MomentumSGD as MomentumSGD
from ._objective import UnrolledObjective as UnrolledObjective, UnrolledState as UnrolledState
from ._optimizer import (
    AbstractOptimizer as AbstractOptimizer,
    OptaxOptimizer as OptaxOptimizer,
    lookup as lookup,
    per_leaf as per_leaf,
)
from ._reversible import ExactReversal as ExactReversal, Reversible as Reversible
from ._store_all import StoreAll as StoreAll
from ._training import Training as Training
from ._truncated import Truncated as Truncated
