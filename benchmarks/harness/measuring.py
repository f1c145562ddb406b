"""Runs the methods of a cell in turns, and compares what they find with the truth."""

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks.harness import environments
from benchmarks.harness.cells import Cell, Method
from benchmarks.harness.processes import PeerError, Peers


@dataclasses.dataclass
class Row:
    """What was found of a method; `failed` says why there is nothing else."""

    method: str
    ours: bool
    floor: bool = False
    """Whether it is no method, but the least that any could take."""
    note: str = ""
    failed: str = ""
    wrong: bool = False
    error: float | None = None
    tolerance: float | None = None
    first: float | None = None
    """Seconds of the start and the first run, less the median lap: compilation, above all."""
    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    memory: int | None = None
    """Bytes by which the process grew at most in a lap, the median of the laps: what an earlier one has not given back
    yet hides in some of them."""
    resident: int = 0
    """The most bytes that the process held in a lap."""
    trace: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """Of a search, in its last repetition: what it had reached, and when."""
    by_clock: bool = False
    """Whether the clock counts: while a card works, the processor waits."""

    @property
    def laps(self) -> list[float]:
        """The processor's time, which other work on the machine changes less than the clock's; or the clock's."""
        return self.wall if self.by_clock else self.cpu

    @property
    def seconds(self) -> float:
        """The median of the laps."""
        return float(np.median(self.laps))

    @property
    def counts(self) -> bool:
        return not (self.failed or self.wrong) and bool(self.cpu)


def _first(peers: Peers, cell: Cell, method: Method, key: str, path: Any, truth: Any) -> tuple[Row, dict[str, Any]]:
    """Prepare and run a method once, at the loosest tolerance that is accurate enough; and what its laps are given."""
    row = Row(method.name, method.ours, method.floor, method.note)
    peer = peers.of(method)
    ladder: tuple[float | None, ...] = cell.ladder if method.tuned else (None,)
    first, known = peer.prepare(key, method, path)
    row.first = first
    if cell.seeded:
        row.first = first + peer.run(key, {"seed": None}, fill=False, keep=False)[0]["wall"]
        return row, {}
    best, given = np.inf, dict[str, Any]()
    for tolerance in ladder:
        given = {} if tolerance is None else {"tolerance": tolerance}
        try:
            lap, answer = peer.run(key, given, fill=False, keep=True)
        except PeerError:
            if not peer.alive or (tolerance == ladder[-1] and not np.isfinite(best)):
                raise
            continue  # a method may refuse one tolerance and take the next
        first, known = first + (0.0 if known else lap["wall"]), True
        row.first = first
        if method.floor:
            return row, given
        row.error, row.tolerance, row.wrong = cell.error(answer, truth), tolerance, False
        best = min(best, row.error)
        if row.error <= cell.accept:
            return row, given
    row.wrong, row.error = True, float(best)
    return row, given


def _found(method: Method, peers: Peers, path: Any) -> dict[str, Any]:
    """The truth by a method, in a process that ends with it."""
    peer = peers.of(method)
    peer.prepare("truth", method, path)
    answer = peer.run("truth", {}, fill=False, keep=True)[1]
    peers.drop(method)
    return answer


def measure(cell: Cell, peers: Peers) -> list[Row]:
    """A row for each method of a cell."""
    arrays = cell.arrays()
    path = peers.save(arrays)
    truth = _found(cell.truth, peers, path) if isinstance(cell.truth, Method) else cell.truth(arrays)
    rows, running = [], list[tuple[Method, Row, str, dict[str, Any]]]()
    for method in cell.methods:
        key = f"{method.function} {sorted(method.settings.items())}"
        why = environments.missing(method.environment, method.package)
        if why is None and peers.device != "cpu" and method.environment != "hyprax":
            why = "its environment is one for CPUs"
        if why is not None:
            rows.append(Row(method.name, method.ours, method.floor, method.note, failed=f"not installed: {why}"))
            continue
        try:
            row, given = _first(peers, cell, method, key, path, truth)
        except PeerError as error:
            peers.drop(method, ended=True)
            rows.append(Row(method.name, method.ours, method.floor, method.note, failed=str(error)))
            continue
        rows.append(row)
        row.by_clock = peers.device != "cpu"
        if not (row.wrong and method.tuned):  # what never reached the target has no time to it
            running.append((method, row, key, given))
    _turns(cell, peers, running, truth)
    return rows


def _turns(cell: Cell, peers: Peers, running: list[tuple[Method, Row, str, dict[str, Any]]], truth: Any) -> None:
    begun, memory, errors = time.perf_counter(), dict[str, list[int]](), dict[str, list[float]]()
    for count in range(cell.rounds):
        if count >= min(3, cell.rounds) and time.perf_counter() - begun > cell.seconds:
            break
        # Each round begins with another method, so that none always follows the same one.
        turn = running[count % len(running) :] + running[: count % len(running)] if running else []
        for method, row, key, given in turn:
            if row.failed:
                continue
            asked = given | ({"seed": count} if cell.seeded else {})
            try:
                lap, answer = peers.of(method).run(key, asked, fill=not cell.seeded, keep=cell.seeded)
            except PeerError as error:
                row.failed = str(error)
                peers.drop(method, ended=True)
                continue
            row.wall.append(lap["wall"])
            row.cpu.append(lap["cpu"])
            row.resident = max(row.resident, lap["resident"])
            memory.setdefault(row.method, []).append(lap["memory"])
            if cell.seeded:
                errors.setdefault(row.method, []).append(cell.error(answer, truth))
                row.trace = {name: answer[name].tolist() for name in answer if name.startswith("trace_")}
    for _, row, _, _ in running:
        if row.failed or not row.cpu:
            continue
        row.memory = int(np.median(memory[row.method]))
        if not cell.seeded:
            row.first = max(0.0, (row.first or 0.0) - float(np.median(row.wall)))
        else:
            row.error = float(np.median(errors[row.method]))
            row.wrong = row.error > cell.accept
