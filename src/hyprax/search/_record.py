"""What `tune` asks of a record of a run; `hyprax.runs` keeps one on disk."""

import abc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import PyTree

from ._step import Step

if TYPE_CHECKING:
    from ._tune import TuneResult


class AbstractRecord(abc.ABC):
    """Where a run writes what it does, and finds what it did before."""

    folder: Any = None
    """Where it writes, for those who are told of it: a path, or `None`."""

    @abc.abstractmethod
    def begin(self, template: PyTree, problem: PyTree = None) -> tuple[PyTree, list[dict[str, Any]]] | None:
        """The saved state, in the structure of `template`, and the history up to it; `None` for a new run.

        `problem` is the objective and the search, for a record that notices when data, settings or code change.
        """

    @abc.abstractmethod
    def step(self, step: Step, state: PyTree) -> Path | None:
        """One step was made; `state` is all that is needed to go on from here. Returns the folder if it was saved."""

    @abc.abstractmethod
    def interrupt(self) -> None:
        """The run is being left before its end: save what the last `step` was given."""

    @abc.abstractmethod
    def finish(self, tuned: "TuneResult") -> None:
        """The run ended by itself."""
