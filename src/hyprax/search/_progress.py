"""A progress bar in plain text, on standard error, and only where a person is looking."""

import sys
import time
from typing import Any

from ._step import Step

SILENT_SECONDS = 2.0
REFRESH_SECONDS = 0.1
WIDTH = 24


class ProgressBar:
    """`steps` done of `total`, time left, value, ‖h‖ with its bound; silent for two seconds, and off a terminal."""

    def __init__(self, total: int, done: int = 0, *, stream: Any = None):  # any text stream
        self._stream = sys.stderr if stream is None else stream
        self._total, self._first = total, done
        self._start = self._last = time.monotonic()
        self._length = 0
        self._on = self._stream.isatty()

    def update(self, step: Step) -> None:
        """Show the state after `step`."""
        self.show(step.step + 1, step_text(step))

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


def step_text(step: Step) -> str:
    """Value, gradient norm, certificate, and what went wrong."""
    known = "none" if step.certificate_kind == "none" else f"±{step.certificate_bound:.1e} {step.certificate_kind}"
    warning = "" if step.result == "successful" else f"  {step.result}"
    return f"F={step.value:.6g}  |h|={step.gradient_norm:.2e} ({known}){warning}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
