"""Ctrl-C between steps: an interrupt waits until the step in progress is whole."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class _Handler:
    """Keeps the first interrupt, until it is asked for."""

    waiting = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.waiting:
            raise KeyboardInterrupt
        self.waiting = True

    def check(self) -> None:
        if self.waiting:
            raise KeyboardInterrupt


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Within the context the first SIGINT is kept until the yielded function is called; a second one acts at once.

    A `KeyboardInterrupt` raised inside compiled code can leave it broken (a crash was seen in its place), and
    would lose the step. Only the main thread may set handlers, and a handler that is not Python's own is left alone:
    elsewhere interrupts act as they did. A context within another yields the function of the outer one.
    """
    usual = signal.getsignal(signal.SIGINT)
    if isinstance(usual, _Handler):
        yield usual.check
        return
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield lambda: None
        return
    handler = _Handler()
    signal.signal(signal.SIGINT, handler)
    try:
        yield handler.check
    finally:
        signal.signal(signal.SIGINT, usual)
