"""Ctrl-C and SIGTERM between steps: a signal waits until the step in progress is whole."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM), by a scheduler or a system that is going down."""


def terminate(number: int, frame: Any) -> None:
    """A handler of SIGTERM that lets a program clean up."""
    raise Terminated("terminated (SIGTERM)")


class _Handler:
    """Keeps the first signal, until it is asked for."""

    kept: KeyboardInterrupt | None = None

    def __call__(self, number: int, frame: Any) -> None:
        caught = Terminated("terminated (SIGTERM)") if number == signal.SIGTERM else KeyboardInterrupt()
        if self.kept is not None:
            raise caught
        self.kept = caught

    def check(self) -> None:
        if self.kept is not None:
            raise self.kept


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Within the context the first SIGINT or SIGTERM is kept until the yielded function is called; a second acts now.

    A `KeyboardInterrupt` raised inside compiled code can leave it broken (a crash was seen in its place), and
    would lose the step. A SIGTERM becomes a `Terminated`, so that whoever saves on Ctrl-C saves on it as well. Only the
    main thread may set handlers, and a handler that is not Python's own is left alone: elsewhere signals act as they
    did. A context within another yields the function of the outer one.
    """
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if isinstance(outer := usual[signal.SIGINT], _Handler):
        yield outer.check
        return
    handler = _Handler()
    own = {signal.SIGINT: (signal.default_int_handler,), signal.SIGTERM: (signal.SIG_DFL, terminate)}
    main = threading.current_thread() is threading.main_thread()
    changed = [number for number in own if main and usual[number] in own[number]]
    for number in changed:
        signal.signal(number, handler)
    try:
        yield handler.check
    finally:
        for number in changed:
            signal.signal(number, usual[number])
