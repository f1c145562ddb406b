"""A progress bar in plain text, on standard error, and only where a person is looking."""

import sys
import time
from typing import Any

SILENT_SECONDS = 2.0
REFRESH_SECONDS = 0.1
WIDTH = 24


class ProgressBar:
    """How many of `total` are done, time spent and left, and a text; silent for two seconds, and off a terminal."""

    def __init__(self, total: int, done: int = 0, *, stream: Any = None):  # any text stream
        self._stream = sys.stderr if stream is None else stream
        self._total, self._first = total, done
        self._start = self._last = time.monotonic()
        self._length = 0
        self._on = self._stream.isatty()

    def show(self, done: int, text: str) -> None:
        """Show that `done` have been done, and a text."""
        now = time.monotonic()
        if not self._on or now - self._start < SILENT_SECONDS or now - self._last < REFRESH_SECONDS:
            return
        self._last = now
        self._write(f"{progress_text(done, self._first, self._total, now - self._start)}  {text}")

    def close(self) -> None:
        """Leave the last line standing, if one was written."""
        if self._length:
            self._stream.write("\n")
            self._stream.flush()
            self._length = 0

    def _write(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._length))
        self._stream.flush()
        self._length = len(text)


def progress_text(done: int, first: int, total: int, elapsed: float) -> str:
    """Bar, counts, time spent and left."""
    left = elapsed / max(done - first, 1) * (total - done)
    filled = round(WIDTH * done / total)
    return f"{'█' * filled}{'░' * (WIDTH - filled)} {done}/{total}  {_clock(elapsed)}<{_clock(left)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
