"""Long evaluations: a bar with the time left, interrupts between segments, and a file to go on from."""

import contextlib
import hashlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._arrays import StateError, array_bits, load_arrays, load_tree, save_tree
from .._interrupt import deferred_interrupt
from .._progress import ProgressBar

FILE = "evaluation.safetensors"
SEGMENTS = 400
SHORTEST_SEGMENT = 256
BACKWARDS = 3
"""A step backwards counts as three forwards: a gradient, and a second-order product for two."""


class LongRun(eqx.Module):
    """What one evaluation through a long training run does between its segments: show itself, stop, be saved.

    **Arguments:**

    - `folder`: where the state of the evaluation is saved, as `evaluation.safetensors`, when Ctrl-C is pressed and
        every `seconds`. The next evaluation of the same run by the same mode goes on from there, and ends with the
        bits that it would have ended with; then the file is removed. `None`: nothing is saved.
    - `progress`: a bar with the time left on standard error, after two seconds and on a terminal only.
    - `seconds`: the least time between two saves.

    The same run: the same hyperparameters, key, data and number of steps, which are compared; the functions of the
    training cannot be, and are yours to keep. The file holds the states kept at that moment, what was put away
    included. One at other hyperparameters, as a run of `tune` that goes on from an earlier step finds it, and one that
    is damaged are warned of, and the evaluation is begun anew.

    **Raises:** `ValueError` for negative seconds, and in an evaluation for a folder with that of another training.
    """

    folder: str | None = eqx.field(static=True, default=None)
    progress: bool = eqx.field(static=True, default=True)
    seconds: float = eqx.field(static=True, default=600.0)

    def __check_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"LongRun: seconds must be a number >= 0; got {self.seconds}.")


class Journal:
    """One evaluation on its way, told what it is at after every segment. With no settings it does nothing.

    - `position`: the integers saved with the state found in the folder, from which it is known what to restore; `None`
        where there is none, or once it was restored.
    """

    def __init__(self, long: LongRun | None, training: PyTree, run: PyTree, work: int):
        self._long, self._stack = long, contextlib.ExitStack()
        self._bar = ProgressBar(work) if long is not None and long.progress else None
        self._saved = time.monotonic()
        self._path = None if long is None or long.folder is None else Path(long.folder) / FILE
        self.position: list[int] | None = None
        if self._path is not None:
            self._run = np.stack([_fingerprint(training), _fingerprint(run)])
            if self._path.exists():
                self.position = self._found(self._path)

    def _found(self, path: Path) -> list[int] | None:
        """The position saved in a file, where it is of this evaluation."""
        try:
            found = load_arrays(path)
        except StateError as error:
            warnings.warn(f"{error} The evaluation is begun anew.", stacklevel=6)
            return None
        run = found.get("run", np.zeros(1))
        if np.array_equal(run, self._run):
            return found["position"].tolist()
        if run.shape != self._run.shape or not np.array_equal(run[0], self._run[0]):
            raise ValueError(
                f"LongRun: {path} must hold an evaluation of the same data, steps and mode; got one of another "
                "training. Remove it, or name another folder."
            )
        text = "holds an evaluation at other hyperparameters or of another key. This one is begun anew."
        warnings.warn(f"LongRun: {path} {text}", stacklevel=6)
        return None

    def __enter__(self) -> "Journal":
        if self._long is not None:
            self._check = self._stack.enter_context(deferred_interrupt())
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._stack.close()
        if self._bar is not None:
            self._bar.close()
        if kind is None and self._path is not None:
            self._path.unlink(missing_ok=True)

    def stops(self, steps: int) -> range:
        """Where segments are to end, for a mode that has no reason of its own to end them."""
        return range(0, steps if self._long is not None else 0, max(SHORTEST_SEGMENT, steps // SEGMENTS))

    def copied(self, tree: PyTree) -> PyTree:
        """A copy of arrays that will be used up, where they are to be saved later."""
        return jax.tree.map(jnp.copy, tree) if self._path is not None else None

    def restore(self, template: PyTree) -> PyTree:
        """The saved state, in the structure of `template`; afterwards there is none."""
        assert self._path is not None
        assert self.position is not None
        saved = {"run": self._run, "position": np.asarray(self.position), "state": template}
        self.position = None
        return load_tree(self._path, saved)["state"]

    def passed(self, done: int, text: str, position: list[int], state: PyTree) -> None:
        """A segment ended, after so much of the work. Here the evaluation is saved and stopped, if it is time."""
        if self._long is None:
            return
        jax.block_until_ready(state)
        if self._bar is not None:
            self._bar.show(done, text)
        save = self._saver(position, state)
        try:
            self._check()
        except KeyboardInterrupt:
            save()
            raise
        if time.monotonic() - self._saved >= self._long.seconds:
            save()
            self._saved = time.monotonic()

    def _saver(self, position: list[int], state: PyTree) -> Callable[[], None]:
        def save() -> None:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                save_tree(self._path, {"run": self._run, "position": np.asarray(position), "state": state})

        return save


def _fingerprint(run: PyTree) -> np.ndarray:
    """SHA-256 of all arrays, with their shapes and dtypes, and of the rest as it is written."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(run):
        array = array_bits(leaf) if eqx.is_array(leaf) else np.frombuffer(repr(leaf).encode(), np.uint8)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
