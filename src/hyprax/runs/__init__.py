"""The record of a run on disk: configuration, history, state; resumption to the same bits."""

from .._arrays import RunError as RunError
from ._read import Record as Record, read as read
from ._run import Run as Run, RunWarning as RunWarning
