"""Rules that stop a run: its value no longer falls, its time is over, its work is spent."""

import math
import time
from collections import deque

from ..search import Start, Step


class EarlyStopping:
    """Stop when the value has not fallen for `patience` steps.

    A fall is one by more than `improvement` times the size of the lowest value. A step that missed its accuracy counts
    as none. Beside [`hyprax.search.Stopping`][] it serves noisy objectives too: there compare means over a `window`,
    since the lowest of noisy values is luck.

    **Arguments:**

    - `patience`: steps, an integer >= 1.
    - `improvement`: a relative fall, >= 0.
    - `window`: the value compared is the mean of the last so many steps.

    A run that goes on is judged by its whole history, so it stops where an unbroken one does.
    """

    def __init__(self, patience: int, *, improvement: float = 1e-4, window: int = 1):
        for name, number in (("patience", patience), ("window", window)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"EarlyStopping: {name} must be an integer >= 1; got {number!r}.")
        if not improvement >= 0:
            raise ValueError(f"EarlyStopping: improvement must be a number >= 0; got {improvement!r}.")
        self._patience, self._improvement = patience, improvement
        self._recent: deque[float] = deque(maxlen=window)
        self._lowest, self._waited = math.inf, 0

    def start(self, start: Start) -> str | None:
        self._recent.clear()
        self._lowest, self._waited = math.inf, 0
        for row in start.history:
            self._see(row["value"], row["result"])
        return self._reason()

    def step(self, step: Step) -> str | None:
        self._see(step.value, step.result)
        return self._reason()

    def _see(self, value: float, result: str) -> None:
        if result != "successful" or not math.isfinite(value):
            self._waited += 1
            return
        self._recent.append(value)
        mean = sum(self._recent) / len(self._recent)
        full = len(self._recent) == self._recent.maxlen
        if full and (math.isinf(self._lowest) or self._lowest - mean > self._improvement * abs(self._lowest)):
            self._lowest, self._waited = mean, 0
        else:
            self._waited += full

    def _reason(self) -> str | None:
        if self._waited < self._patience:
            return None
        return f"The value has not fallen for {self._waited} steps (EarlyStopping)."


class TimeBudget:
    """Stop after the first step that ends `seconds` or more after this call of `tune` began.

    A recorded run goes on with another budget when it is called again.
    """

    def __init__(self, seconds: float):
        if not seconds > 0:
            raise ValueError(f"TimeBudget: seconds must be a number > 0; got {seconds!r}.")
        self._seconds, self._began = seconds, 0.0

    def start(self, start: Start) -> None:
        self._began = time.monotonic()

    def step(self, step: Step) -> str | None:
        taken = time.monotonic() - self._began
        return f"{taken:.3g} s of {self._seconds:g} s are over (TimeBudget)." if taken >= self._seconds else None


class WorkBudget:
    """Stop after the first step by which the whole run has done `work` or more.

    Work is what [`hyprax.search.Step`][] counts: products with the inner Hessian, or what costs as much. It is the same
    on every machine, and 0 for objectives that have none.
    """

    def __init__(self, work: float):
        if not work > 0:
            raise ValueError(f"WorkBudget: work must be a number > 0; got {work!r}.")
        self._work, self._done = work, 0.0

    def start(self, start: Start) -> str | None:
        self._done = sum(row["work"] for row in start.history)
        return self._reason()

    def step(self, step: Step) -> str | None:
        self._done += step.work
        return self._reason()

    def _reason(self) -> str | None:
        return f"{self._done:g} products of {self._work:g} are done (WorkBudget)." if self._done >= self._work else None
