"""hyprax and its peers, side by side: python -m benchmarks.harness [--quick | --full] [--section NAME ...]

The usual size takes ten minutes on two quiet cores, `--full` hours, with larger problems and scaling curves; `--quick`
takes a minute or two, nearly all of it compilation, and shows that everything runs. The results go to
benchmarks/RESULTS.md, benchmarks/results.json and docs/pictures; those of a quick run or of single sections to
out/benchmarks, or to the folder of --out.
"""

import argparse
import datetime
import importlib
import inspect
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks.harness import report
from benchmarks.harness.environments import ROOT
from benchmarks.harness.measuring import measure
from benchmarks.harness.processes import PeerError, Peers
from benchmarks.harness.report import Part, Results, Section

SECTIONS = ("implicit", "unroll", "evidence", "tables", "search")


def run_section(name: str, size: str, peers: Peers) -> Section:
    module = importlib.import_module(f"benchmarks.harness.{name}")
    before, begun, parts = report.load(), time.perf_counter(), []
    for cell in module.cells(size):
        try:
            part = Part(cell, measure(cell, peers))
        except FileNotFoundError:
            part = Part(cell, [], "its data are not in the folder that HYPRAX_DATA names")
        except PeerError as error:  # in what finds the truth
            part = Part(cell, [], f"no truth was found: {error}")
        parts.append(part)
        spent = time.perf_counter() - begun
        print(f"{spent:6.0f} s  {name}: {cell.problem}: {report.verdict(part)}", file=sys.stderr, flush=True)
    peers.close()
    text = inspect.cleandoc(module.__doc__ or "")
    return Section(name, module.TITLE, text, parts, (before, report.load()), time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", default="usual")
    sizes.add_argument("--full", dest="size", action="store_const", const="full")
    parser.add_argument("--section", nargs="+", choices=(*SECTIONS, "scaling"), metavar="NAME", help="these alone")
    parser.add_argument("--out", type=Path, help="the folder of the results")
    asked = parser.parse_args()
    if asked.size == "quick":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    else:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # times of compilation are reported
    names = asked.section or (*SECTIONS, *(("scaling",) if asked.size == "full" else ()))
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    stands = asked.out is None and asked.section is None and asked.size != "quick"
    folder = ROOT / "benchmarks" if stands else asked.out or ROOT / "out" / "benchmarks"
    results = Results(asked.size, [], {}, report.commit(), date)
    with Peers(pinned=asked.size != "quick") as peers:
        for name in names:  # written after each, so that a run that is cut off leaves what it has
            sections = [*results.sections, run_section(name, asked.size, peers)]
            results = Results(asked.size, sections, peers.versions, results.commit, date)
            report.write(results, folder, report.PICTURES if stands else folder / "pictures")
    print(report.as_markdown(results))


if __name__ == "__main__":
    main()
