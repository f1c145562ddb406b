"""Searches over hyperparameters, and `tune`, which runs them."""

from ._fit_evidence import EvidenceFit as EvidenceFit, fit_evidence as fit_evidence
from ._fixed import FixedTolerance as FixedTolerance
from ._hoag import HOAG as HOAG
from ._maid import MAID as MAID
from ._optax import Optax as Optax
from ._record import AbstractRecord as AbstractRecord
from ._results import RESULTS as RESULTS
from ._search import AbstractSearch as AbstractSearch, Move as Move
from ._step import FIELDS as FIELDS, Step as Step
from ._tune import (
    Callback as Callback,
    Stopping as Stopping,
    TuneResult as TuneResult,
    TuningWarning as TuningWarning,
    tune as tune,
)
