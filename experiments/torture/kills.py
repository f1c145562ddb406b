"""Runs that are killed, whose disk is full, or whose files are torn: resumed, they must end in the same bits."""

import dataclasses
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hyprax.runs import read

from . import runs

ONE = ((signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT))
MOST_DEATHS = 8  # of one run, before it is let go to its end
SIDE_BY_SIDE = 8  # runs in threads of one process
HANGS = 900.0  # seconds
Told = Callable[[Any], None]


@dataclasses.dataclass
class Ending:
    """How a process ended: its exit status (negative: the signal), what it told, and for how long it ran."""

    status: int
    told: list[Any]
    seconds: float

    def steps(self, i: int) -> list[int]:
        """The steps that the run in the i-th folder told of."""
        return [said[1] for said in self.told if isinstance(said, tuple) and said[0] == i]


def live(
    name: str,
    folders: Sequence[Path],
    *,
    every: float = 0.0,
    fatal: int | None = None,
    kill: tuple[float, tuple[signal.Signals, ...]] | None = None,
    hears: Told = lambda _: None,
) -> Ending:
    """One process, to its end; `kill`: after how many seconds from when it is ready it gets which signals.

    It is forked from a server that has imported everything and started nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.torture.runs"])
    ours, theirs = context.Pipe()
    process = context.Process(target=runs.child, args=(name, [*map(str, folders)], every, theirs, fatal))
    process.start()
    theirs.close()
    told, began = [], time.monotonic()
    deadline = math.inf
    try:
        while process.is_alive() or ours.poll():
            if ours.poll(max(0.0, min(0.05, deadline - time.monotonic()))):
                told.append(ours.recv())
                hears(told[-1])
                if told[-1] == "ready":
                    began = time.monotonic()
                    deadline = began + kill[0] if kill is not None else math.inf
            if time.monotonic() >= deadline:
                deadline = math.inf
                for number in kill[1] if kill is not None else ():
                    if process.pid is not None and process.is_alive():
                        os.kill(process.pid, number)
                        time.sleep(0.01)
            if time.monotonic() - began > HANGS:
                process.kill()
                raise TimeoutError(f"{name}: hangs in {folders}")
    except EOFError:
        pass
    process.join()
    assert process.exitcode is not None
    return Ending(process.exitcode, told, time.monotonic() - began)


def fingerprint(folder: Path) -> dict[str, Any]:
    """All that a run has found, bit for bit, without its clock."""
    record = read(folder)
    arrays = {name: (folder / f"{name}.safetensors").read_bytes() for name in ("start", "best", "state")}
    rows = [{name: repr(x) for name, x in row.items() if name != "seconds"} for row in record.history]
    ended = {name: repr(record.summary[name]) for name in ("result", "best_value", "best_step", "steps")}
    return {**arrays, "rows": rows, "summary": ended}


@dataclasses.dataclass
class Reference:
    """An unbroken run: what it found, and how long a process took for one, and for several side by side."""

    fingerprint: dict[str, Any]
    seconds: dict[int, float]
    operations: int


def references(out: Path) -> dict[str, Reference]:
    """Each run, unbroken, made once in this folder."""
    return {name: _reference(name, out) for name in runs.RUNS}


def _reference(name: str, out: Path) -> Reference:
    folder, notes = out / f"whole {name}", out / f"whole {name}.json"
    if not notes.exists():
        seconds, operations = {}, 0
        for count in (1, 1, SIDE_BY_SIDE) if name != runs.LONG else (1, 1):  # the first compiles
            folders = [folder, *(out / f"whole {name} {i}" for i in range(1, count))]
            for made in folders:
                shutil.rmtree(made, ignore_errors=True)
            ending = live(name, folders)
            assert ending.status == 0, (name, ending)
            seconds[count] = ending.seconds
            operations = ending.told[-1][1] if count == 1 else operations
            for other in folders[1:]:
                assert fingerprint(other) == fingerprint(folder), f"{name}: other bits in a thread"
                shutil.rmtree(other)
        notes.write_text(json.dumps({"seconds": seconds, "operations": operations}))
    noted = json.loads(notes.read_text())
    seconds = {int(count): took for count, took in noted["seconds"].items()}
    return Reference(fingerprint(folder), seconds, noted["operations"])


class Torment:
    """Runs of one kind, broken again and again, then let go to their end and compared."""

    def __init__(self, kind: str, batch: str, known: dict[str, Reference], out: Path):
        self.kind, self.batch, self.known, self.out = kind, batch, known, out
        self.draw = random.Random(f"{kind} {batch}")
        self.happened: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.told: list[int] = []
        """The last step that each run told of, all lives together; its state was saved after it if `every` is 0."""

    def go(self, count: int) -> None:
        """Break at least `count` runs."""
        generation = 0
        while self.happened["broken"] < count:
            name = self.draw.choice(list(runs.RUNS))
            together = SIDE_BY_SIDE if self.kind == "kill" and name != runs.LONG else 1
            folders = [self.out / f"{self.kind} {self.batch} {generation} {i}" for i in range(together)]
            generation += 1
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
            self.told = [-1] * together
            every = 10.0 if self.kind == "full" else self.draw.choice([0.0, 0.0, 0.2])
            if self.kind == "full":
                self._full(name, folders[0], every)
            for _ in range(self.draw.randint(1, MOST_DEATHS) if self.kind != "full" else 0):
                if all((folder / "summary.json").exists() for folder in folders):
                    break
                if self.happened["broken"] < count:
                    self._break(name, folders, every)
            self._end(name, folders, every)

    def _break(self, name: str, folders: list[Path], every: float) -> None:
        whole = self.known[name]
        if self.kind == "torn":
            options: dict[str, Any] = {"fatal": self.draw.randint(1, whole.operations)}
        else:
            numbers = self.draw.choice(ONE) if self.kind == "signal" else ONE[0]
            # Half of the time of a process goes by before its first step is made.
            after = self.draw.choice([self.draw.uniform(0, 1), self.draw.uniform(0.4, 1)])
            options = {"kill": (after * whole.seconds[len(folders)], numbers)}
        ending = live(name, folders, every=every, **options)
        broken = sum(not (folder / "summary.json").exists() for folder in folders) if ending.status != 0 else 0
        self.happened["broken"] += broken
        self.happened["processes"] += broken > 0
        self._check(name, folders, ending, every, allowed=(0, runs.REFUSED, runs.INTERRUPTED, -9, -15, -2, 137))

    def _full(self, name: str, folder: Path, every: float) -> None:
        """A disk of its own that others fill while the run goes on, and free again."""
        _disk(folder)
        at, left = self.draw.randrange(-1, runs.STEPS - 1), self.draw.choice([0, 0, 4096, 16384, 65536])
        run = folder / "run"

        def hears(said: Any) -> None:
            if said == (0, at) or (at < 0 and said == "ready"):
                _fill(folder / "filler", left)

        ending = live(name, [run], every=every, hears=hears)
        (folder / "filler").unlink(missing_ok=True)
        self.happened["broken"] += ending.status != 0
        self.happened["processes"] += ending.status != 0
        self._check(name, [run], ending, 0.0, allowed=(0, runs.REFUSED))

    def _end(self, name: str, folders: list[Path], every: float) -> None:
        inner = [folder / "run" if self.kind == "full" else folder for folder in folders]
        whole = self.known[name].fingerprint
        ending = live(name, inner, every=every)
        self._check(name, inner, ending, 0.0 if self.kind == "full" else every, allowed=(0,))
        for folder, run in zip(folders, inner, strict=True):
            if not (run / "summary.json").exists():
                self.wrong.append(f"{self.kind}, {name}, {folder}: did not end")
                continue
            found = fingerprint(run)
            if found != whole:
                other = [part for part in found if found[part] != whole[part]]
                self.wrong.append(f"{self.kind}, {name}, {folder}: other bits in {', '.join(other)}")
            else:
                self.happened["ended in the same bits"] += 1
            if self.kind == "full":
                subprocess.run(["umount", str(folder)], check=True)
            if found == whole:
                shutil.rmtree(folder)

    def _check(self, name: str, runs_: list[Path], ending: Ending, every: float, allowed: tuple[int, ...]) -> None:
        """How a process ended, and that it made no step again whose state had been saved."""
        if ending.status not in allowed:
            place = f"{self.kind}, {name}, {runs_[0]}"
            self.wrong.append(f"{place}: exit status {ending.status}: {ending.told[-1:]}")
        for i in range(len(runs_)):
            if steps := ending.steps(i):
                if every == 0.0 and steps[0] <= self.told[i]:
                    gone = f"step {steps[0]} comes after step {self.told[i]}"
                    self.wrong.append(f"{self.kind}, {name}, {runs_[i]}: {gone}")
                self.told[i] = steps[-1]


def _disk(folder: Path) -> bool:
    """Mount a small disk of memory here, where that is allowed."""
    folder.mkdir(exist_ok=True)
    asked = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(asked, capture_output=True).returncode == 0


def _fill(path: Path, left: int) -> None:
    """Take all room of a disk but for so many bytes."""
    with open(path, "wb", buffering=0) as stream:
        for size in (65536, 4096):
            try:
                while True:
                    stream.write(b"\1" * size)
            except OSError:
                pass
        stream.truncate(max(0, stream.tell() - left))


def torment(kind: str, count: int, batch: str, out: Path) -> tuple[Counter[str], list[str]]:
    """`count` runs broken in a way (`kill`, `signal`, `torn`, `full`): what happened, and what was wrong."""
    if kind == "full":
        if not _disk(out / "disk"):
            return Counter({"not done: only root may mount a disk to fill": count}), []
        subprocess.run(["umount", str(out / "disk")], check=True)
    made = Torment(kind, batch, references(out), out)
    made.go(count)
    return made.happened, made.wrong
