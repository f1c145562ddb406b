"""Hypergradients through training runs of T steps: stored, recomputed, reversed, carried forward or cut short."""

from ._adam import Adam as Adam, AdamW as AdamW
from ._certifiers import BallCertifier as BallCertifier, RoundingCertifier as RoundingCertifier
from ._checkpointed import Checkpointed as Checkpointed
from ._estimate import estimate as estimate
from ._lion import Lion as Lion
from ._long_run import LongRun as LongRun
from ._mode import (
    RESULTS as RESULTS,
    AbstractMode as AbstractMode,
    Outer as Outer,
    UnrollReport as UnrollReport,
    UnrollStats as UnrollStats,
)
from ._modes import ForwardMode as ForwardMode, StoreAll as StoreAll, Truncated as Truncated
from ._momentum_sgd import MomentumSGD as MomentumSGD
from ._muon import Muon as Muon
from ._objective import ChaosGauge as ChaosGauge, UnrolledObjective as UnrolledObjective
from ._optimizer import (
    AbstractOptimizer as AbstractOptimizer,
    OptaxOptimizer as OptaxOptimizer,
    PerWeight as PerWeight,
    Schedule as Schedule,
    lookup as lookup,
)
from ._oracle import oracle as oracle
from ._reversible import ReversalCertificate as ReversalCertificate, Reversible as Reversible
from ._training import Training as Training, scan_blocks as scan_blocks
