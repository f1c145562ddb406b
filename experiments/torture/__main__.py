"""`python -m experiments.torture [--quick]`: what runs and inputs go through, and that they come out of it.

Some hours on two cores; minutes with `--quick`. Writes RESULTS.md beside itself (a quick run: in
out/experiments/torture) after every batch, with what has been done so far, and ends with status 1 if anything was
wrong, which is kept in out/torture (`--out`). Given the same folder again, it goes on where it was stopped, and begins
anew if it had come to its end.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from .._common import machine, results_folder
from .work import work

COUNTS = {"kill": 900, "signal": 100, "torn": 100, "full": 40, "damage": 300, "fuzz": 100_000}
QUICK = {"kill": 24, "signal": 4, "torn": 4, "full": 2, "damage": 12, "fuzz": 1000}
BATCH = {"kill": 60, "signal": 10, "torn": 10, "full": 5, "damage": 20, "fuzz": 1000}
SAID = {
    "kill": "runs broken by SIGKILL at random, eight in threads of a process, resumed",
    "signal": "runs broken by a signal, one in a process (SIGKILL, SIGTERM, Ctrl-C once and twice), resumed",
    "torn": "runs that ended within an operation on a file, half written, resumed",
    "full": "runs whose disk (a tmpfs) was filled by others, resumed with room again",
    "damage": "files of finished records damaged: shown, reported, gone on with",
    "fuzz": "recipes, tables and archives at random, each within 20 s of the processor and 8 GiB",
}
HEADER = (
    "| torment | asked | done | what happened | wrong | wall minutes |",
    "| --- | ---: | ---: | --- | ---: | ---: |",
)
THREADS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Progress:
    """What has been done so far, batch by batch, in a file: a torture that is stopped goes on."""

    def __init__(self, path: Path, counts: dict[str, int]):
        self._path, self.counts = path, counts
        self.done: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def left(self, kinds: Iterable[str]) -> list[tuple[str, int, int]]:
        """The batches to be done, kind, number and size, so that all kinds come along together."""
        order = []
        for kind in kinds:
            total, size = self.counts[kind], BATCH[kind]
            batches = [(i, min(size, total - i * size)) for i in range(-(-total // size))]
            order += [((i + 0.5) / len(batches), kind, i, count) for i, count in batches]
        return [(kind, i, count) for _, kind, i, count in sorted(order) if f"{kind} {i}" not in self.done]

    def add(self, kind: str, batch: int, count: int, found: Counter[str], wrong: list[str], seconds: float) -> None:
        self.done[f"{kind} {batch}"] = {"count": count, "happened": found, "wrong": wrong, "seconds": seconds}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.done, indent=1))
        temporary.replace(self._path)

    def forget(self, *, wrong_alone: bool) -> None:
        """Have batches done again: those in which something was wrong, or all."""
        self.done = {name: entry for name, entry in self.done.items() if wrong_alone and not entry["wrong"]}

    def row(self, kind: str) -> str:
        entries = [entry for name, entry in self.done.items() if name.split()[0] == kind]
        happened = sum((Counter(entry["happened"]) for entry in entries), Counter())
        told = ", ".join(f"{n:,} {name}" for name, n in sorted(happened.items())) or "–"
        done = happened.get("broken", sum(entry["count"] for entry in entries))
        wrong, minutes = (sum(map(len, (entry["wrong"] for entry in entries))), sum(e["seconds"] for e in entries) / 60)
        return f"| {SAID[kind]} | {self.counts[kind]:,} | {done:,} | {told} | {wrong} | {minutes:.0f} |"

    def rows(self) -> list[str]:
        return [self.row(kind) for kind in self.counts]

    def wrong(self) -> list[str]:
        return [text for entry in self.done.values() for text in entry["wrong"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about five minutes, for the tests")
    parser.add_argument("--only", choices=list(COUNTS), action="append", help="one kind of torment; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("out/torture"), help="where runs and faults are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", action="store_true", help="do those batches again in which something was wrong")
    parser.add_argument("--page", action="store_true", help="write the page of what has been done, and no more")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", THREADS)
    os.environ.setdefault("MPLCONFIGDIR", str(out / "matplotlib"))

    progress = Progress(out / "progress.json", QUICK if arguments.quick else COUNTS)
    page = results_folder(__file__) / "RESULTS.md"
    if arguments.again:
        progress.forget(wrong_alone=True)
    if not arguments.page:
        left = progress.left(arguments.only or progress.counts)
        if not left:  # all of it was done before
            progress.forget(wrong_alone=False)
            left = progress.left(arguments.only or progress.counts)
        _work_through(left, progress, out, arguments.seed, arguments.workers, page, quick=arguments.quick)
    _write(page, progress, quick=arguments.quick)
    print("\n".join([*HEADER, *progress.rows()]))
    print("\n".join(progress.wrong()), file=sys.stderr)
    sys.exit(1 if progress.wrong() else 0)


def _work_through(
    left: list[tuple[str, int, int]],
    progress: Progress,
    out: Path,
    seed: int,
    workers: int,
    page: Path,
    *,
    quick: bool,
) -> None:
    """All batches that are left, `workers` at a time; a worker that dies is a fault, and is replaced."""
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
    while left:
        some, left = left[:workers], left[workers:]
        began = time.monotonic()
        shares: list[Any] = []
        for number, (kind, batch, count) in enumerate(some):
            folder = out / f"worker {number}"
            folder.mkdir(exist_ok=True)
            shares.append(pool.submit(work, kind, count, f"{seed} {batch}", folder))
        for share, (kind, batch, count) in zip(shares, some, strict=True):
            try:
                found, wrong = share.result()
            except BrokenProcessPool:
                found, wrong = Counter(), [f"{kind}, batch {batch}: the process that made it died"]
                pool.shutdown()
                pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
            except Exception as error:
                found, wrong = Counter(), [f"{kind}, batch {batch}: {type(error).__name__}: {str(error)[:300]}"]
            progress.add(kind, batch, count, found, wrong, (time.monotonic() - began) / len(some))
            print(
                time.strftime("%H:%M:%S"),
                progress.row(kind),
                f"{len(left)} batches left",
                *wrong,
                sep="\n  ",
                flush=True,
            )
        _write(page, progress, quick=quick)
    pool.shutdown()


def _write(page: Path, progress: Progress, *, quick: bool) -> None:
    command = "python -m experiments.torture" + (" --quick" if quick else "")
    text = [
        "# What runs and inputs go through",
        f"`{command}`, {machine()}. It may be stopped and gone on with; the table says what has been done so far.",
        "Each torment falls on one of the runs of `experiments/torture/runs.py`: implicit by L-BFGS and by MAID, folds "
        "redrawn at each step, a single loop, reversed trainings (of one the state within the training is kept), "
        "evidence in training. A process is forked from a server that has imported the library and started nothing. A "
        "run is *broken* if its process died before the run had ended; the same run is broken up to eight times, then "
        "goes on until it has ended, and is compared bit for bit with the unbroken one (hyperparameters, state of the "
        "search, rows of the history without seconds). Also wrong: a step that is made again although its state had "
        "been saved, an exit status that is none of ours, a process that hangs.",
        "\n".join(["<!-- --8<-- [start:table] -->", *HEADER, *progress.rows(), "<!-- --8<-- [end:table] -->"]),
    ]
    page.write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
