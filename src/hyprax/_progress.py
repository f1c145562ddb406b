"""A progress bar, in a terminal or a notebook, and only where a person is looking."""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

SILENT_SECONDS = 2.0
T = TypeVar("T")
FORMAT = "{n}/{total} [{elapsed}<{remaining}] {desc}"


class ProgressBar:
    """How much of `total` is done, the time left, and a text; silent for two seconds, and off a terminal.

    In a notebook the bar is a widget where `ipywidgets` is installed, and text otherwise.
    """

    def __init__(self, total: int, done: int = 0, *, stream: Any = None):  # any text stream
        self._stream = sys.stderr if stream is None else stream
        self._total, self._first = total, done
        self._start = time.monotonic()
        self._bar: Any = None
        self._timer: threading.Timer | None = None
        self._on = self._stream.isatty() or _in_notebook()

    def wait(self, text: str) -> None:
        """Show a text until something is done, if that takes longer than the silence."""
        if self._stream.isatty():
            self._timer = threading.Timer(SILENT_SECONDS, self._write, [text])
            self._timer.daemon = True
            self._timer.start()

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _no_longer_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            if self._timer.finished.is_set() and time.monotonic() - self._start >= SILENT_SECONDS:
                self._write("\r\x1b[K")
            self._timer = None

    def show(self, done: int, text: str) -> None:
        """Show that `done` have been done, and a text."""
        self._no_longer_wait()
        if not self._on or time.monotonic() - self._start < SILENT_SECONDS:
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=self._total,
                initial=self._first,
                file=self._stream,
                bar_format=f"{'{bar:24}' if self._stream.isatty() else '{bar}'} {FORMAT}",
                dynamic_ncols=True,
            )
            self._bar.start_t -= time.monotonic() - self._start
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leave the last line standing, if one was written."""
        self._no_longer_wait()
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None


def counted(items: Iterable[T], total: int, label: str, progress: bool = True) -> Iterator[T]:
    """The items, one by one, with a progress bar where `progress` is asked for."""
    bar = ProgressBar(total) if progress else None
    try:
        for i, item in enumerate(items):
            yield item
            if bar is not None:
                bar.show(i + 1, label)
    finally:
        if bar is not None:
            bar.close()


def _in_notebook() -> bool:
    """Whether the output goes to a notebook, whose streams are no terminals."""
    shell = sys.modules.get("IPython")
    kernel = None if shell is None else shell.get_ipython()
    return type(kernel).__name__ == "ZMQInteractiveShell"
