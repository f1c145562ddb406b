"""Searches over hyperparameters, and `tune`, which runs them."""

from ._optax import Optax as Optax
from ._record import AbstractRecord as AbstractRecord
from ._search import AbstractSearch as AbstractSearch, Move as Move
from ._step import Step as Step
from ._tune import (
    Callback as Callback,
    Stopping as Stopping,
    Tuned as Tuned,
    TuningWarning as TuningWarning,
    tune as tune,
)
