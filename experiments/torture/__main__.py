"""`python -m experiments.torture [--quick]`: what runs and inputs go through, and that they come out of it.

An hour on two cores; five minutes with `--quick`. Writes RESULTS.md beside itself (a quick run: in
out/experiments/torture), and ends with status 1 if anything was wrong, which is kept in out/torture (`--out`).
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .._common import machine, results_folder
from .work import work

COUNTS = {"kill": 1000, "torn": 300, "full": 100, "damage": 300, "fuzz": 100_000}
QUICK = {"kill": 24, "torn": 16, "full": 8, "damage": 40, "fuzz": 1500}
SAID = {
    "kill": "kills at random (half SIGKILL; SIGTERM, Ctrl-C once and twice), resumed",
    "torn": "ended within an operation on a file, half written, resumed",
    "full": "no room for a file to grow, then room again, resumed",
    "damage": "files of finished records damaged: shown, reported, gone on with",
    "fuzz": "recipes, tables and archives at random",
}


HEADER = ("| torment | how many | what happened | wrong | minutes |", "| --- | ---: | --- | ---: | ---: |")


def _share(count: int, share: int, parts: int) -> int:
    return count // parts + (share < count % parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five minutes, for the tests")
    parser.add_argument("--only", choices=list(COUNTS), action="append", help="one kind of torment; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("out/torture"), help="where runs and faults are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    counts = QUICK if arguments.quick else COUNTS
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    rows: list[str] = []
    faults: list[str] = []
    spawn = multiprocessing.get_context("spawn")
    for kind in arguments.only or counts:
        began = time.monotonic()
        happened: Counter[str] = Counter()
        before = len(faults)
        with concurrent.futures.ProcessPoolExecutor(arguments.workers, mp_context=spawn) as pool:
            shares: list[Any] = []
            for i in range(arguments.workers):
                folder = out / f"worker {i}"
                folder.mkdir(exist_ok=True)
                count = _share(counts[kind], i, arguments.workers)
                shares.append(pool.submit(work, kind, count, 1000 * arguments.seed + i, folder))
            for share in shares:
                found, wrong = share.result()
                happened += found
                faults += wrong
        told = ", ".join(f"{n:,} {name}" for name, n in sorted(happened.items()))
        minutes = (time.monotonic() - began) / 60
        rows.append(f"| {SAID[kind]} | {counts[kind]:,} | {told} | {len(faults) - before} | {minutes:.1f} |")
        print(rows[-1], flush=True)
    print("\n".join(faults), file=sys.stderr)
    command = "python -m experiments.torture" + (" --quick" if arguments.quick else "")
    page = [
        "# What runs and inputs go through",
        f"`{command}`, {machine()}.",
        "Each torment falls on one of six runs: implicit by L-BFGS and by MAID, folds redrawn at each step, a single "
        "loop, a reversed training, evidence in training. Resumed means: until it has ended, and then compared bit for "
        "bit with the unbroken run (hyperparameters, state of the search, rows of the history without seconds).",
        "\n".join(["<!-- --8<-- [start:table] -->", *HEADER, *rows, "<!-- --8<-- [end:table] -->"]),
    ]
    if not arguments.only:
        (results_folder(__file__) / "RESULTS.md").write_text("\n\n".join(page) + "\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
