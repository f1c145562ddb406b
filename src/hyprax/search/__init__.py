"""Searches over hyperparameters, and `tune`, which runs them."""

from ._callbacks import Callback as Callback, Start as Start
from ._cross_validated import (
    CrossValidated as CrossValidated,
    Foldable as Foldable,
)
from ._fixed import FixedTolerance as FixedTolerance
from ._gain import (
    Gain as Gain,
    Improvement as Improvement,
    improvement as improvement,
    rows_needed as rows_needed,
)
from ._gate import Gate as Gate
from ._gated_lbfgs import GatedLBFGS as GatedLBFGS
from ._hoag import HOAG as HOAG
from ._honest import Honest as Honest, honest as honest, refit as refit
from ._lbfgs import LBFGS as LBFGS
from ._maid import MAID as MAID
from ._optax import Optax as Optax
from ._optimism import Optimism as Optimism
from ._record import AbstractRecord as AbstractRecord
from ._results import RESULTS as RESULTS
from ._search import AbstractSearch as AbstractSearch, Move as Move
from ._shrinkage import Towards as Towards
from ._shrinkage_path import ShrinkagePath as ShrinkagePath, shrinkage_path as shrinkage_path
from ._step import Step as Step
from ._trust_region import TrustRegion as TrustRegion
from ._tune import (
    Stopping as Stopping,
    TuneResult as TuneResult,
    TuningWarning as TuningWarning,
    tune as tune,
)
