"""hyprax and its peers, side by side: python -m benchmarks.harness [--quick | --full] [--section NAME ...]

The usual size takes ten minutes on two quiet cores, `--full` hours, with larger problems and scaling curves; `--quick`
takes seconds and shows that everything runs. The results go to benchmarks/RESULTS.md, benchmarks/results.json and
docs/pictures; those of a quick run or of single sections to out/benchmarks, or to the folder of --out.
"""

import argparse
import datetime
import importlib
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks.harness import report
from benchmarks.harness.environments import ROOT
from benchmarks.harness.measuring import measure
from benchmarks.harness.processes import Peers
from benchmarks.harness.report import Part, Results, Section

SECTIONS = ("implicit", "unroll", "evidence", "tables", "search")


def run_section(name: str, size: str, peers: Peers) -> Section:
    module = importlib.import_module(f"benchmarks.harness.{name}")
    before, begun, parts = report.load(), time.perf_counter(), []
    for cell in module.cells(size):
        if absent := module.absent(cell) if hasattr(module, "absent") else None:
            print(f"{name}: {cell.problem}: left out: {absent}", file=sys.stderr, flush=True)
            continue
        part = Part(cell, measure(cell, peers))
        parts.append(part)
        spent = time.perf_counter() - begun
        print(f"{spent:6.0f} s  {name}: {cell.problem}: {report.verdict(part)}", file=sys.stderr, flush=True)
    peers.close()
    text = (module.__doc__ or "").split("\n\n", 1)
    shown = " ".join("\n\n".join(text).split())
    return Section(name, module.TITLE, shown, parts, (before, report.load()), time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", default="usual")
    sizes.add_argument("--full", dest="size", action="store_const", const="full")
    parser.add_argument("--section", nargs="+", choices=(*SECTIONS, "scaling"), metavar="NAME", help="these alone")
    parser.add_argument("--out", type=Path, help="the folder of the results")
    asked = parser.parse_args()
    if asked.size != "quick":
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # times of compilation are reported
    names = asked.section or (*SECTIONS, *(("scaling",) if asked.size == "full" else ()))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    with Peers(pinned=asked.size != "quick") as peers:
        sections = [run_section(name, asked.size, peers) for name in names]
        results = Results(asked.size, sections, peers.versions, report.commit(), date)
    stands = asked.out is None and asked.section is None and asked.size != "quick"
    folder = ROOT / "benchmarks" if stands else asked.out or ROOT / "out" / "benchmarks"
    report.write(results, folder, report.PICTURES if stands else folder / "pictures")
    print(report.as_markdown(results))


if __name__ == "__main__":
    main()
