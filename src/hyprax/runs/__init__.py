"""The record of a run on disk: configuration, history, state; resumption to the same bits."""

from .._arrays import StateError as StateError
from ..search import FIELDS as FIELDS
from ._history import HistoryError as HistoryError
from ._read import Record as Record, read as read
from ._run import Run as Run, RunError as RunError, RunWarning as RunWarning
