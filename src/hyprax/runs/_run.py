"""The record of a run: a folder that says what was asked, what was done, and where to go on."""

import contextlib
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from .._arrays import leaf_names, load_tree, save_arrays, save_tree, write_atomically
from .._certificate import details
from .._hyper import is_constrained, natural
from .._objective import Hypergradient
from .._result import result_name
from ..search import AbstractRecord, Step, TuneResult
from ._history import History

CONFIG, HISTORY, STATE = "config.json", "history.sqlite", "state.safetensors"
START, BEST, SUMMARY = "start.safetensors", "best.safetensors", "summary.json"


class RunError(ValueError):
    """A folder cannot be used for this run."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `RunError` for anything else."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: given a {type(found).__name__}, allowed is an object.")
    return found


def read_config(path: Path) -> dict[str, Any]:
    """What was asked, and the environment."""
    found = read_json(path)
    if not all(isinstance(found.get(name), dict) for name in ("config", "environment")):
        raise RunError(f"{path}: given something else, allowed is the configuration of a run.")
    return found


def natural_arrays(hyper: PyTree) -> dict[str, np.ndarray]:
    """Natural values by name: what a reader needs who knows nothing of the code that made them."""
    values = natural(hyper)
    return {name: np.asarray(leaf) for name, leaf in zip(leaf_names(values), jax.tree.leaves(values), strict=True)}


def _environment() -> dict[str, str]:
    from importlib.metadata import version

    return {
        "hyprax": version("hyprax"),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {jax.devices()[0].device_kind}",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


class Run(AbstractRecord):
    """A run on disk, in a folder of its own: `hx.tune(..., run=hx.Run("runs/digits"))`.

    - `config.json`: the resolved configuration, and the environment.
    - `history.sqlite`: one row a step (value, gradient norm, certificate kind and bound, noise, seconds, result,
        what the engine and the search measured as JSON), committed as it is made.
    - `state.safetensors`: all that is needed to go on with the same bits, written atomically at most every `every`
        seconds, at the end and on an interrupt.
    - `start.safetensors`, `best.safetensors`: hyperparameters before and after, in natural units, by name.
    - `summary.json`: how the run ended.

    Nothing is pickled. Used again on the same folder, the run goes on from its last saved state: rows beyond it are
    made again, and the result has the same bits as a run that was never interrupted.

    **Arguments:**

    - `folder`: made if missing; must be empty, or hold a run of the same configuration.
    - `config`: what was asked, JSON values; compared on resumption.
    - `every`: seconds between saved states.
    - `resume`: whether a folder that holds a run already is continued, rather than refused.

    **Raises:** [`hyprax.runs.RunError`][] for a folder of other things, or of another configuration; `StateError` for a
    state that does not fit the hyperparameters and the search.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        every: float = 10.0,
        resume: bool = True,
    ):
        self.folder = Path(folder)
        self._config: dict[str, Any] = json.loads(json.dumps(dict(config or {})))
        self._every = every
        self._history: History | None = None
        self._latest: PyTree | None = None
        self._saved = time.monotonic()
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder}: given a file, allowed is a folder.")
        if self.folder.is_dir() and any(self.folder.iterdir()):
            self._check_resumable(resume)

    def _check_resumable(self, resume: bool) -> None:
        path = self.folder / CONFIG
        if not path.exists():
            raise RunError(f"{self.folder}: given a folder with other files in it, allowed is an empty or a new one.")
        if not resume:
            raise RunError(
                f"{self.folder}: given a folder that holds a run, allowed is to resume it, or another folder."
            )
        saved = read_config(path)["config"]
        if saved != self._config:
            keys = sorted(saved.keys() | self._config.keys())
            first = next(key for key in keys if saved.get(key) != self._config.get(key))
            raise RunError(
                f"{path}: {first} was {json.dumps(saved.get(first))} and is now {json.dumps(self._config.get(first))}: "
                "a run goes on with the configuration that it began with."
            )

    def begin(self, template: PyTree) -> tuple[PyTree, list[dict[str, Any]]] | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / CONFIG).exists():
            config = {"config": self._config, "environment": _environment()}
            write_atomically(self.folder / CONFIG, json.dumps(config, indent=1).encode())
        self._history = History(self.folder / HISTORY, write=True)
        state = self.folder / STATE
        if not state.exists():
            self._history.truncate(0)
            save_arrays(self.folder / START, natural_arrays(template.hyper))
            return None
        loaded = load_tree(state, template)
        self._history.truncate(int(loaded.step))
        return loaded, self._history.rows()

    def step(self, step: Step, state: PyTree) -> None:
        assert self._history is not None  # `begin` comes first
        (self.folder / SUMMARY).unlink(missing_ok=True)  # of a run that had ended, and goes on for more steps
        self._history.append(step.row())
        self._latest = state
        if time.monotonic() - self._saved >= self._every:
            self._save()

    def _save(self) -> None:
        if self._latest is not None:
            save_tree(self.folder / STATE, self._latest)
            save_arrays(self.folder / BEST, natural_arrays(self._latest.best))
        self._saved = time.monotonic()

    def interrupt(self) -> None:
        self._save()
        if self._history is not None:
            self._history.close()

    def forget(self) -> None:
        """Remove what a run has left that was refused before its first step; one that has made steps is kept.

        A folder that remembers a configuration would refuse the one that is mended.
        """
        if self._latest is None and not (self.folder / STATE).exists():
            for name in (CONFIG, HISTORY, START):
                (self.folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def finish(self, tuned: TuneResult) -> None:
        self._save()
        assert self._history is not None  # `begin` comes first
        self._history.close()
        self.write_summary(
            {
                "result": result_name(tuned.result),
                "message": tuned.message,
                "best_value": tuned.best_value,
                "best_step": tuned.best_step,
                "steps": len(tuned.history),
                "seconds": sum(row["seconds"] for row in tuned.history),
                "hyperparameters": sum(leaf.size for leaf in jax.tree.leaves(tuned.best)),
                "constraints": _constraints(tuned.best),
                **({} if tuned.hypergradient is None else _statements(tuned.hypergradient)),
            }
        )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Add to, or replace in, `summary.json`: how the run ended, and tables to report."""
        path = self.folder / SUMMARY
        known = read_json(path) if path.exists() else {}
        write_atomically(path, json.dumps(known | dict(summary), indent=1).encode())


def _statements(answer: Hypergradient) -> dict[str, Any]:
    """What the last answer says of its computation and of its sample, as it says it itself."""
    noise = {"meaning": answer.noise.meaning(), "over": answer.noise.over}
    return {"certificate": details(answer.certificate), "noise": noise}


def _constraints(hyper: PyTree) -> dict[str, str]:
    leaves = jax.tree.leaves(hyper, is_leaf=is_constrained)
    kinds = [type(leaf).__name__ if is_constrained(leaf) else "plain" for leaf in leaves]
    return dict(zip(natural_arrays(hyper), kinds, strict=True))
