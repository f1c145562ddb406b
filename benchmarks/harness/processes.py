"""The other end of `worker`: a process for each environment, package and precision, on one core and one thread."""

import hashlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.device import PLATFORMS
from benchmarks.harness import environments
from benchmarks.harness.cells import Method

Arrays = dict[str, np.ndarray]
THREADS = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

PATIENCE = 300.0
"""Seconds to wait for an answer."""


class PeerError(Exception):
    """A method did not answer; the sentence says why."""


def _surroundings(x64: bool, device: str) -> dict[str, str]:
    given = (
        os.environ
        | dict.fromkeys(THREADS, "1")
        | {"JAX_PLATFORMS": PLATFORMS[device], "JAX_ENABLE_X64": str(x64).lower()}
    )
    if device != "cpu":  # workers stand beside each other: none may take all of a card's memory at its start
        given["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    paths = [str(environments.ROOT), str(environments.ROOT / "src")]
    return given | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "PYTHONPATH": os.pathsep.join(paths)}


class Peer:
    """A worker; `folder` is where arrays are exchanged."""

    def __init__(self, method: Method, folder: Path, *, pinned: bool, device: str):
        self._folder, self.patience = folder, PATIENCE
        self._log = Path(tempfile.mkstemp(suffix=".log", dir=folder)[1])
        command = [environments.python(method.environment), "-m", "benchmarks.harness.worker"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *([str(max(os.sched_getaffinity(0)))] if pinned else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=environments.ROOT,
                env=_surroundings(method.x64, device),
            )
        self.versions: dict[str, str] = self._read()["versions"]

    def prepare(self, key: str, method: Method, arrays: Path) -> tuple[float, bool]:
        """Seconds of a method's start, and whether its first run is in them, which a method that is kept has had."""
        asked = {"key": key, "function": method.function, "settings": method.settings, "arrays": str(arrays)}
        made = self._ask({"do": "prepare"} | asked)
        return made["seconds"], made["known"]

    def run(self, key: str, given: dict[str, Any], *, fill: bool, keep: bool) -> tuple[dict[str, Any], Arrays]:
        path = self._folder / "answer.npz" if keep else None
        asked = {"do": "run", "key": key, "given": given, "fill": fill, "answer": path and str(path)}
        lap = self._ask(asked)
        if path is None:
            return lap, {}
        with np.load(path) as archive:
            return lap, dict(archive)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def forget(self) -> None:
        self._ask({"do": "forget"})

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._last_words()) from None
        answer = self._read()
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + self.patience
        while not select.select([self._process.stdout], [], [], 1.0)[0]:
            if time.monotonic() > until:
                self.close()
                raise PeerError(f"stopped after {self.patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        self._process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"its process ended: {lines[-1][:200] if lines else 'it said nothing'}"


class Peers:
    """All workers of a run, each started when it is first needed; `pinned` to the last core of the machine.

    `device`: where JAX runs. On a card each method of a problem has a worker of its own, as the peak of a card's memory
    cannot be forgotten.
    """

    def __init__(self, *, pinned: bool, device: str = "cpu"):
        self._folder = tempfile.TemporaryDirectory(prefix="hyprax-bench-")
        self._shown = b""
        self._pinned, self.device, self._peers = pinned, device, dict[tuple[str, ...], Peer]()
        self.versions: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def _place(self, method: Method) -> tuple[str, ...]:
        alone = () if self.device == "cpu" else (method.name,)
        return method.environment, method.package, str(method.x64), *alone

    def of(self, method: Method) -> Peer:
        place = self._place(method)
        if place not in self._peers:
            self._peers[place] = Peer(method, self.folder, pinned=self._pinned, device=self.device)
            own = method.environment == "r"
            self.versions[method.environment] = environments.r_versions() if own else self._peers[place].versions
        return self._peers[place]

    def drop(self, method: Method, *, ended: bool = False) -> None:
        """End a worker, or with `ended` only one that has ended; the next method of its kind gets a new one."""
        place = self._place(method)
        if place in self._peers and not (ended and self._peers[place].alive):
            self._peers.pop(place).close()

    def save(self, arrays: Mapping[str, np.ndarray]) -> Path:
        """The file with these arrays. Where they are others than before, methods made of those are forgotten."""
        path, digest = self.folder / "arrays.npz", hashlib.sha256()
        for name in sorted(arrays):
            digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
        if digest.digest() != self._shown:
            self._shown = digest.digest()
            np.savez(path, allow_pickle=False, **arrays)
            if self.device != "cpu":
                self.close()
            for peer in self._peers.values():
                if peer.alive:
                    peer.forget()
        return path

    def close(self) -> None:
        while self._peers:
            self._peers.popitem()[1].close()
