"""The record of a run: a folder that says what was asked, what was done, and where to go on."""

import contextlib
import errno
import json
import math
import platform
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._arrays import (
    RunError,
    StateError,
    leaf_names,
    load_tree,
    save_arrays,
    save_tree,
    temporary_files,
    write_atomically,
)
from .._certificate import details
from .._hyper import is_constrained, natural
from .._objective import Hypergradient
from .._processes import here, leads, told
from .._result import result_name
from ..search import AbstractRecord, Step, TuneResult
from ._history import History, Lock
from ._settings import arrays_of, settings_of

FORMAT = 3
CONFIG, HISTORY, LOCK = "config.json", "history.sqlite", ".lock"
STATE = "state.safetensors"
START, BEST, SUMMARY = "start.safetensors", "best.safetensors", "summary.json"
WRITTEN = (CONFIG, STATE, START, BEST, SUMMARY)
FULL = (errno.ENOSPC, errno.EDQUOT)


class RunWarning(UserWarning):
    """A run goes on, but not quite from where, or as, it was."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `RunError` for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: must hold a JSON object; got a {type(found).__name__}.")
    return found


def read_config(path: Path) -> dict[str, Any]:
    """What was asked, the environment, and the hashes of what it was asked of."""
    found = read_json(path)
    if not all(isinstance(found.get(name), dict) for name in ("config", "environment")):
        raise RunError(f"{path}: must hold the configuration of a run; got something else.")
    if found.get("format") != FORMAT:
        raise RunError(
            f"{path}: must be of format {FORMAT}; got format {found.get('format', 1)}. Read it with the version of "
            f"hyprax that wrote it ({found['environment'].get('hyprax', 'unknown')})."
        )
    return found


def natural_arrays(hyper: PyTree) -> dict[str, np.ndarray]:
    """Natural values by name: what a reader needs who knows nothing of the code that made them."""
    values = natural(hyper)
    return {name: np.asarray(leaf) for name, leaf in zip(leaf_names(values), jax.tree.leaves(values), strict=True)}


def _environment() -> dict[str, str]:
    from importlib.metadata import version

    processes, devices = jax.process_count(), jax.device_count()
    many = f", {devices} devices in {processes} process{'es' * (processes > 1)}" if devices > 1 else ""
    return {
        "hyprax": version("hyprax"),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {jax.devices()[0].device_kind}{many}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class Run(AbstractRecord):
    """A run on disk, in a folder of its own: `hx.tune(..., run=hx.Run("runs/digits"))`.

    - `config.json`: the resolved configuration, the environment, hashes of the arrays of the objective, and
        settings and hashes of the code of objective and search.
    - `history.sqlite`: one row a step (value, gradient norm, certificate kind and bound, noise, work, seconds, result,
        what the engine and the search measured as JSON), committed as it is made, with a checksum of it and of the rows
        before it. Others may read it meanwhile.
    - `state.safetensors`: all that is needed to go on with the same bits, written atomically at the start, then by time
        and by steps, at the end and on an interrupt. The states before it are kept (`previous.safetensors`,
        `previous-2.safetensors`, ...), and used with a warning where the last does not match its checksum. They are
        given up for room where a disk is full.
    - `start.safetensors`, `best.safetensors`: hyperparameters before and after, in natural units, by name.
    - `summary.json`: how the run ended.

    Of several processes of `jax.distributed`, which make every call alike, process 0 writes and tells the others where
    to go on.

    Nothing is pickled. Used again on the same folder, the run goes on from its last saved state: rows beyond it are
    made again, and the result has the same bits as a run that was never interrupted. A run that has ended makes no
    further step, unless it is given more of them. Other data are refused; other versions of the software, other
    settings and other code of the objective and the search are warned of ([`hyprax.runs.RunWarning`][]).

    **Arguments:**

    - `folder`: made if missing; must be empty, or hold a run of the same configuration.
    - `config`: what was asked, JSON values; compared on resumption.
    - `about`: more JSON values to keep beside it, not compared.
    - `every`: the most seconds between saved states; they are written after a step.
    - `every_steps`: the most steps between saved states; `None` for no such rule.
    - `keep`: how many of the last states are kept, 1 or more.
    - `resume`: whether a folder that holds a run already is continued, rather than refused.

    **Raises:** [`hyprax.runs.RunError`][] for a folder of other things, of another configuration or other data, or
    whose history is not whole; for a state that is damaged or does not fit the hyperparameters and the search; where
    another process is writing the run, or the disk takes no more.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        every: float = 10.0,
        every_steps: int | None = None,
        keep: int = 2,
        resume: bool = True,
    ):
        if not every >= 0:
            raise ValueError(f"Run: every must be a number >= 0; got {every!r}.")
        for name, x in (("every_steps", every_steps), ("keep", keep)):
            if x is not None and (isinstance(x, bool) or not isinstance(x, int) or x < 1):
                raise ValueError(f"Run: {name} must be an integer >= 1; got {x!r}.")
        self.folder = Path(folder)
        self._config: dict[str, Any] = json.loads(json.dumps(dict(config or {})))
        self._about: dict[str, Any] = json.loads(json.dumps(dict(about or {})))
        self._every, self._every_steps = every, math.inf if every_steps is None else every_steps
        names = ["previous", *(f"previous-{i}" for i in range(2, keep))][: keep - 1]
        self._previous = [self.folder / f"{name}.safetensors" for name in names]
        self._history: History | None = None
        self._lock: Lock | None = None
        self._latest: PyTree | None = None
        self._saved, self._steps = time.monotonic(), 0  # when a state was written, and the steps since
        if not leads():
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder}: must be a folder; got a file.")
        if parent := next((path for path in self.folder.parents if path.is_file()), None):
            raise RunError(f"{self.folder}: must be in a folder; {parent} is a file.")
        if self.folder.is_dir():
            self._check_resumable(resume)

    def _check_resumable(self, resume: bool) -> None:
        path = self.folder / CONFIG
        there = set(self.folder.iterdir())  # before the next line: another process may be beginning the run
        if not path.exists():
            # A process that was killed at its very start leaves its lock, and a configuration that is not whole.
            left = [self.folder / LOCK, self.folder / f"{LOCK}-journal", *temporary_files(there, [CONFIG])]
            if others := sorted(path.name for path in there - set(left)):
                raise RunError(
                    f"{self.folder}: must be an empty or a new folder, or one of a run; it has other files "
                    f"({others[0][:60]})."
                )
            return
        if not resume:
            raise RunError(f"{self.folder}: holds a run already. Resume it, or name another folder.")
        self._check_config(read_config(path)["config"])

    def _check_config(self, saved: dict[str, Any]) -> None:
        if saved != self._config:
            keys = sorted(saved.keys() | self._config.keys())
            first = next(key for key in keys if saved.get(key) != self._config.get(key))
            raise RunError(
                f"{self.folder / CONFIG}: {first} was {json.dumps(saved.get(first))} and is now "
                f"{json.dumps(self._config.get(first))}: a run goes on with the configuration that it began with."
            )

    def begin(self, template: PyTree, problem: PyTree = None) -> tuple[PyTree, list[dict[str, Any]]] | None:
        # By all, as they may hold parts of them.
        asked = {"arrays": arrays_of(problem), "settings": settings_of(problem)}
        template = jax.tree.map(here, template)
        began: list[tuple[PyTree, list[dict[str, Any]]] | None] = []

        def say() -> tuple[Any, bytes]:
            began.append(self._opened(template, asked))
            found = began[0]
            return (None, b"") if found is None else (found[1], (self.folder / STATE).read_bytes())

        rows, raw = told(say, RunError)
        if began or rows is None:
            return began[0] if began else None
        return load_tree(self.folder / STATE, template, raw), rows

    def _opened(self, template: PyTree, asked: dict[str, dict[str, str]]) -> tuple[PyTree, list[dict[str, Any]]] | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder / LOCK)
        try:
            return self._begin(template, asked)
        except BaseException:
            self._close()
            raise

    def _begin(self, template: PyTree, asked: dict[str, dict[str, str]]) -> tuple[PyTree, list[dict[str, Any]]] | None:
        for path in temporary_files(self.folder.iterdir(), WRITTEN):
            path.unlink(missing_ok=True)
        if (self.folder / CONFIG).exists():
            self._check_problem(**asked)
        else:
            config = {"format": FORMAT, "config": self._config, "environment": _environment(), **asked}
            config["about"] = self._about
            write_atomically(self.folder / CONFIG, json.dumps(config, indent=1).encode())
        self._history = History(self.folder / HISTORY, write=True)
        if not any(path.exists() for path in (self.folder / STATE, *self._previous)):
            if rows := len(self._history.rows()):
                raise RunError(f"{self.folder / STATE}: is missing, and the history has {rows} steps: put it back.")
            save_arrays(self.folder / START, natural_arrays(template.hyper))
            for _ in range(min(2, 1 + len(self._previous))):  # twice: a full disk can then be given one up
                self._save_state(template)
            return None
        loaded = self._load(template)
        steps = int(loaded.step)
        self._history.truncate(steps)
        rows = self._history.rows()
        if [row["step"] for row in rows] != list(range(steps)):
            raise RunError(
                f"{self.folder / HISTORY}: must hold the {steps} steps that the state was saved after; got {len(rows)} "
                "of them: it was deleted or altered. Put it back, or start anew in another folder."
            )
        return (loaded, rows) if steps else None

    def _check_problem(self, arrays: dict[str, str], settings: dict[str, str]) -> None:
        """Refuse other data than the run began with, and warn of other software, settings and code."""
        path = self.folder / CONFIG
        saved = read_config(path)
        self._check_config(saved["config"])
        if changed := _changed(saved.get("arrays"), arrays):
            raise RunError(
                f"{path}: the arrays of the objective are not those that the run began with: {changed}. Did the data "
                "change? A run goes on with what it began with: put it back, or start anew in another folder."
            )
        now, then = _environment(), saved["environment"]
        for name in now.keys() - {"started"}:
            if now[name] != then.get(name):
                self._warn(
                    f"{name} was {then.get(name)} and is now {now[name]}: the steps to come may differ in their last "
                    "bits from those of an unbroken run."
                )
        same = now["python"] == then.get("python") and now["hyprax"] == then.get("hyprax")  # else all code is other
        if same and (changed := _changed(saved.get("settings"), settings)):
            self._warn(f"{changed}: the steps to come are not those of an unbroken run.")

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self.folder}: {text}", RunWarning, stacklevel=5)

    def _load(self, template: PyTree) -> PyTree:
        """The last state, or the one before it where the last is damaged or missing."""
        damaged: dict[Path, StateError] = {}
        for path in (self.folder / STATE, *(path for path in self._previous if path.exists())):
            try:
                loaded = load_tree(path, template)
            except StateError as error:
                damaged[path] = error
                continue
            for path, error in damaged.items():
                warnings.warn(f"{error} Going on from the state before it.", RunWarning, stacklevel=4)
                path.unlink(missing_ok=True)
            if damaged:  # a run that has ended makes no step, and writes no other
                save_tree(self.folder / STATE, loaded)
            return loaded
        raise damaged[self.folder / STATE]

    def step(self, step: Step, state: PyTree) -> Path | None:
        state = jax.tree.map(here, state)
        if not leads():
            return None
        assert self._history is not None  # `begin` comes first
        (self.folder / SUMMARY).unlink(missing_ok=True)  # of a run that had ended, and goes on for more steps
        self._history.append(step.row())
        self._latest = state
        self._steps += 1
        if time.monotonic() - self._saved < self._every and self._steps < self._every_steps:
            return None
        self._save()
        return self.folder

    def _save(self) -> None:
        """Write the state, and the best; on a full disk, in the room of the states before it."""
        latest = self._latest
        for spare in (True, False) if latest is not None else ():
            assert latest is not None  # else there is nothing to loop over
            try:
                self._save_state(latest)
                save_arrays(self.folder / BEST, natural_arrays(latest.best))
                break
            except OSError as error:
                if error.errno not in FULL or not spare:
                    raise
                for path in self._previous:
                    path.unlink(missing_ok=True)
        self._saved, self._steps = time.monotonic(), 0

    def _save_state(self, state: PyTree) -> None:
        for older, newer in zip(self._previous[:0:-1], self._previous[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
        save_tree(self.folder / STATE, state, self._previous[0] if self._previous else None)

    def _close(self) -> None:
        if self._history is not None:
            self._history.close()
        if self._lock is not None:
            self._lock.release()
        self._history = self._lock = None

    def interrupt(self) -> None:
        if not leads():
            return
        try:
            self._save()
        finally:
            self._close()

    def forget(self) -> None:
        """Delete the files of a run that failed before its first step; one that has made steps is kept.

        A folder that remembers a configuration would refuse the one that is mended.
        """
        if leads() and self._latest is None and not (self.folder / BEST).exists():
            for path in (*(self.folder / name for name in (CONFIG, HISTORY, START, STATE, LOCK)), *self._previous):
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def finish(self, tuned: TuneResult) -> None:
        if not leads():
            return
        self._save()
        if self._latest is None:  # no step was made: the best is written again, whatever became of its file
            save_arrays(self.folder / BEST, natural_arrays(tuned.best))
        self._close()
        ending = {"result": result_name(tuned.result), "message": tuned.message}
        if self._latest is None and self._summary().get("result") == ending["result"]:
            ending = {}  # no step was made: what was said of the ending when it came is more than is known now
        summary = {
            **ending,
            "best_value": tuned.best_value,
            "best_step": tuned.best_step,
            "steps": len(tuned.history),
            "seconds": sum(row["seconds"] for row in tuned.history),
            "hyperparameters": sum(leaf.size for leaf in jax.tree.leaves(tuned.best)),
            "constraints": _constraints(tuned.best),
            **({} if tuned.hypergradient is None else _statements(tuned.hypergradient)),
        }
        self.write_summary(summary)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Add to, or replace in, `summary.json`: how the run ended, and tables to report."""
        if not leads():
            return
        text = json.dumps(self._summary() | dict(summary), indent=1)
        write_atomically(self.folder / SUMMARY, text.encode())

    def _summary(self) -> dict[str, Any]:
        return read_json(self.folder / SUMMARY) if (self.folder / SUMMARY).exists() else {}


def _changed(saved: Any, now: dict[str, str]) -> str:
    """What differs first, and how many more things do; empty where nothing does."""
    known = saved if isinstance(saved, dict) else {}
    changed = [name for name in sorted(known.keys() | now.keys()) if known.get(name) != now.get(name)]
    if not changed:
        return ""
    was, is_now = known.get(changed[0], "absent"), now.get(changed[0], "absent")
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"{changed[0]} was {was} and is now {is_now}{more}"


def _statements(answer: Hypergradient) -> dict[str, Any]:
    """What the last answer says of its computation and of its sample, as it says it itself."""
    noise = {"meaning": answer.noise.meaning(), "over": answer.noise.over}
    return {"certificate": details(answer.certificate), "noise": noise}


def _constraints(hyper: PyTree) -> dict[str, str]:
    leaves = jax.tree.leaves(hyper, is_leaf=is_constrained)
    kinds = [type(leaf).__name__ if is_constrained(leaf) else "plain" for leaf in leaves]
    return dict(zip(natural_arrays(hyper), kinds, strict=True))
