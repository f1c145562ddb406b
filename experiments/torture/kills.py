"""Runs that are killed, whose disk is full, or whose files are torn: resumed, they must end in the same bits."""

import dataclasses
import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hyprax.runs import read

from . import runs

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_DEATHS = 3  # of one run, before it is let go to its end


@dataclasses.dataclass
class Ending:
    """How a process ended: its exit status (negative: the signal), what it told, and for how long it ran."""

    status: int
    told: list[Any]
    seconds: float


def server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.torture.runs"])
    return context


def live(
    name: str,
    folder: Path,
    *,
    every: float = 0.0,
    fatal: int | None = None,
    room: int | None = None,
    kill: tuple[float, tuple[signal.Signals, ...]] | None = None,
) -> Ending:
    """One process, to its end; `kill`: after how many seconds from when it is ready it gets which signals."""
    context = server()
    ours, theirs = context.Pipe()
    process = context.Process(target=runs.child, args=(name, str(folder), every, theirs, fatal, room))
    process.start()
    theirs.close()
    told, began = [], time.monotonic()
    deadline = math.inf
    try:
        while process.is_alive() or ours.poll():
            if ours.poll(max(0.0, min(0.05, deadline - time.monotonic()))):
                told.append(ours.recv())
                if told[-1] == "ready":
                    began = time.monotonic()
                    deadline = began + kill[0] if kill is not None else math.inf
            if time.monotonic() >= deadline:
                deadline = math.inf
                for number in kill[1] if kill is not None else ():
                    if process.pid is not None and process.is_alive():
                        os.kill(process.pid, number)
                        time.sleep(0.01)
            if time.monotonic() - began > 600:
                process.kill()
                raise TimeoutError(f"{name}: hangs in {folder}")
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
    fingerprint: dict[str, Any]
    seconds: float
    operations: int
    largest: int


def references(out: Path) -> dict[str, Reference]:
    """Each run, unbroken."""
    found = {}
    for name in runs.RUNS:
        folder = out / f"whole {name}"
        shutil.rmtree(folder, ignore_errors=True)
        ending = live(name, folder)  # compiles
        assert ending.status == 0, (name, ending)
        shutil.rmtree(folder)
        ending = live(name, folder)
        assert ending.status == 0, (name, ending)
        largest = max(path.stat().st_size for path in folder.iterdir())
        found[name] = Reference(fingerprint(folder), ending.seconds, ending.told[-1][1], largest)
    return found


def _tells(ending: Ending) -> str | None:
    """What is wrong with an ending that nobody forced, if anything."""
    if ending.status in (0, runs.REFUSED, runs.INTERRUPTED) or ending.status in (-9, -15, -2, 137):
        return None
    return f"exit status {ending.status}"


def torment(kind: str, count: int, known: dict[str, Reference], out: Path, seed: int) -> tuple[Counter[str], list[str]]:
    """`count` deaths of a kind (`kill`, `torn`, `full`), spread over the runs: what happened, and what was wrong."""
    draw = random.Random(f"{kind} {seed}")
    happened: Counter[str] = Counter()
    wrong: list[str] = []
    deaths = 0
    while deaths < count:
        name = draw.choice(list(runs.RUNS))
        whole = known[name]
        folder = out / f"{kind} {seed} {happened['runs']}"
        shutil.rmtree(folder, ignore_errors=True)
        every = draw.choice([0.0, 0.0, 0.2])
        happened["runs"] += 1
        for _ in range(draw.randint(1, MOST_DEATHS)):
            if kind == "kill":
                numbers = (draw.choice(SIGNALS),) if draw.random() < 0.9 else (signal.SIGINT, signal.SIGINT)
                ending = live(name, folder, every=every, kill=(draw.uniform(0, 1.1) * whole.seconds, numbers))
                died = ending.status != 0
            elif kind == "torn":
                ending = live(name, folder, every=every, fatal=draw.randint(1, whole.operations))
                died = ending.status != 0
            else:
                ending = live(name, folder, every=every, room=int(draw.random() * whole.largest))
                died = ending.status != 0
            if problem := _tells(ending):
                wrong.append(f"{kind}, {name}, {folder}: {problem}: {ending.told[-1:]}")
            deaths += died
            happened["deaths"] += died
        ending = live(name, folder, every=every)
        if ending.status != 0:
            wrong.append(f"{kind}, {name}, {folder}: cannot go on: {ending.told[-1:]}")
        elif (found := fingerprint(folder)) != whole.fingerprint:
            other = [part for part in found if found[part] != whole.fingerprint[part]]
            wrong.append(f"{kind}, {name}, {folder}: other bits in {', '.join(other)}")
        else:
            happened["same bits"] += 1
            shutil.rmtree(folder)
    return happened, wrong
