"""Who watches a run: callbacks, told of its start, its steps, its saved states and its end."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import PyTree

from .._logging import logger
from .._objective import described
from ._step import Step

if TYPE_CHECKING:
    from ._tune import TuneResult

Callback: TypeAlias = Callable[[Step], bool | str | None] | object
"""Who watches a run: a function, called after every step, or an object with any of four methods.

- `start(start)`: the run begins, or goes on; a [`hyprax.search.Start`][].
- `step(step)`: a step was made and recorded; a [`hyprax.search.Step`][].
- `checkpoint(folder)`: the record has saved all that is needed to go on.
- `end(tuned)`: the run has ended, with its [`hyprax.search.TuneResult`][]; `None` after an interrupt or an error.

`start` and `step` (or the function) may stop the run: a true answer does, and a sentence says why in
`TuneResult.message`. An error in a callback is warned of once (`RuntimeWarning`), and the run goes on; one that
failed at the start is called no more. Callbacks watch: nothing they do changes the steps, nor what is recorded of them.
"""

METHODS = ("start", "step", "checkpoint", "end")


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run is, for its callbacks.

    - `objective`, `search`: the names of their classes; `value_name`: what the value is, in words.
    - `steps`: the most steps; `hyper`: the hyperparameters to evaluate next.
    - `history`: the rows of the steps that were made before; empty for a new run.
    - `folder`: of the record on disk, if there is one.
    """

    objective: str
    search: str
    value_name: str
    steps: int
    hyper: PyTree = dataclasses.field(repr=False)
    history: Sequence[Mapping[str, Any]] = dataclasses.field(repr=False)
    folder: Path | None = None


class Watchers:
    """The callbacks of a run: called in turn, none of them able to end it by an error."""

    def __init__(self, callbacks: Sequence[Callback]):
        for callback in callbacks:
            if not (callable(callback) or any(callable(getattr(callback, name, None)) for name in METHODS)):
                raise ValueError(
                    f"tune: callbacks must be functions of a step, or objects with a method {', '.join(METHODS[:-1])} "
                    f"or {METHODS[-1]}; got {described(callback)}."
                )
        self._callbacks = list(callbacks)
        self._failed: set[int] = set()

    def start(self, start: Start) -> str | None:
        """Why the run is to be stopped before its next step; `None` to go on."""
        return self._tell("start", start)

    def step(self, step: Step) -> str | None:
        """Why the run is to be stopped after this step; `None` to go on."""
        return self._tell("step", step)

    def checkpoint(self, folder: Path) -> None:
        self._tell("checkpoint", folder)

    def end(self, tuned: "TuneResult | None") -> None:
        self._tell("end", tuned)

    def _tell(self, name: str, news: Any) -> str | None:
        reasons = []
        for callback in tuple(self._callbacks):
            method = getattr(callback, name, None)
            if method is None and name == "step" and not any(hasattr(callback, each) for each in METHODS):
                method = callback
            if callable(method):
                try:
                    reasons.append(method(news))
                except Exception as error:
                    self._report(callback, name, error)
        asked = [reason for reason in reasons if reason is not None and reason is not False]
        return " ".join(reason for reason in asked if isinstance(reason, str)) if any(asked) else None

    def _report(self, callback: Callback, name: str, error: Exception) -> None:
        text = f"{_name(callback)} failed at {name} ({type(error).__name__}: {error})"
        if name == "start":
            self._callbacks.remove(callback)
            text += " and is called no more"
        if id(callback) in self._failed:
            logger.debug("callback %s", text)
            return
        self._failed.add(id(callback))
        logger.warning("callback %s", text)
        warnings.warn(f"callback {text}; the run goes on", RuntimeWarning, stacklevel=5)


def _name(callback: Callback) -> str:
    return getattr(callback, "__qualname__", type(callback).__qualname__)
