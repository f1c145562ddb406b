"""hyprax and its peers, side by side: python -m benchmarks.harness [--quick | --full] [--section NAME ...] [--renew]

The usual size takes a quarter of an hour on two quiet cores, `--full` hours, with larger problems and scaling curves;
`--quick` takes a minute or two, nearly all of it compilation, and shows that everything runs. The results go to
benchmarks/RESULTS.md, benchmarks/results.json and docs/pictures; those of a quick run or of single sections to
out/benchmarks, or to the folder of --out. With --renew single sections replace those of the usual size that stand in
benchmarks/, each with its commit and date; `--section scaling --renew` puts the curves, which take about an hour,
there. With `--device gpu` JAX runs on a card, in the sections that are all of JAX; the tasks of the scaling curves stay
on the CPU. The results go to out/benchmarks.
"""

import argparse
import datetime
import importlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks import device
from benchmarks.harness import report
from benchmarks.harness.cells import Cell
from benchmarks.harness.environments import ROOT
from benchmarks.harness.measuring import measure
from benchmarks.harness.processes import PeerError, Peers
from benchmarks.harness.report import Part, Results, Section

SECTIONS = ("implicit", "unroll", "evidence", "tables", "search")
ORDER = (*SECTIONS, "scaling")
ON_CARD = ("implicit", "unroll", "evidence")
"""The sections in which all of hyprax's work is JAX's."""


def problems(name: str, size: str) -> tuple[ModuleType, Iterator[Cell]]:
    """The module of a section, and its problems; scaling curves are whole but in a quick run."""
    module = importlib.import_module(f"benchmarks.harness.{name}")
    return module, module.cells("full" if name == "scaling" and size == "usual" else size)


def run_section(name: str, size: str, peers: Peers) -> Section:
    module, cells = problems(name, size)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    before, begun, parts = report.load(), time.perf_counter(), []
    for cell in cells:
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
    seconds = time.perf_counter() - begun
    return Section(
        name, module.TITLE, inspect.getdoc(module) or "", parts, (before, report.load()), seconds, report.commit(), date
    )


def standing(folder: Path) -> tuple[list[Section], dict[str, dict[str, str]]]:
    """The sections that stand in a folder, and the versions that were measured.

    **Raises:** `SystemExit` for results of another size than the usual.
    """
    found = json.loads((folder / "results.json").read_text())
    if found["size"] != "usual":
        raise SystemExit(f"--renew: the results in {folder} must be of the usual size; got those of --{found['size']}.")
    sections = []
    for name, one in found["sections"].items():
        module, cells = problems(name, found["size"])
        sections.append(report.restored(name, module.TITLE, inspect.getdoc(module) or "", cells, one))
    return sections, found["versions"]


def found_card() -> str:
    """The card's name, asked in a process of its own, as this one stays on the CPU.

    **Raises:** `SystemExit` where there is none.
    """
    asked = [sys.executable, "-m", "benchmarks.device", "gpu"]
    surroundings = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    found = subprocess.run(asked, capture_output=True, text=True, check=False, env=surroundings)
    if found.returncode != 0:
        raise SystemExit(
            (found.stderr.strip().splitlines() or ["--device gpu: the process that looked for it died."])[-1]
        )
    return found.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", default="usual")
    sizes.add_argument("--full", dest="size", action="store_const", const="full")
    parser.add_argument("--section", nargs="+", choices=ORDER, metavar="NAME", help="these alone")
    parser.add_argument("--out", type=Path, help="the folder of the results")
    parser.add_argument("--renew", action="store_true", help="put the sections into the results that stand")
    device.add_argument(parser)
    asked = parser.parse_args()
    card = found_card() if asked.device == "gpu" else ""
    if card and (asked.renew or not {*(asked.section or ON_CARD)} <= {*ON_CARD, "scaling"}):
        parser.error(f"--device gpu goes with no --renew, and with the sections {', '.join(ON_CARD)} and scaling.")
    if asked.renew and not (asked.section and asked.size == "usual" and asked.out is None):
        parser.error("--renew goes with --section, and with no --quick, --full or --out.")
    if asked.size == "quick":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    else:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # times of compilation are reported
    usual = ON_CARD if card else SECTIONS
    names = asked.section or (*usual, *(("scaling",) if asked.size == "full" else ()))
    stands = asked.renew or (asked.out is None and asked.section is None and asked.size != "quick" and not card)
    folder = ROOT / "benchmarks" if stands else asked.out or ROOT / "out" / "benchmarks"
    sections, versions = standing(folder) if asked.renew else ([], {})
    results = Results(asked.size, sections, versions, card)
    with Peers(pinned=asked.size != "quick", device=asked.device) as peers:
        for name in names:  # written after each, so that a run that is cut off leaves what it has
            made = run_section(name, asked.size, peers)
            others = [section for section in sections if section.name != name]
            sections = sorted([*others, made], key=lambda section: ORDER.index(section.name))
            results = Results(asked.size, sections, {**versions, **peers.versions}, card)
            report.write(results, folder, report.PICTURES if stands else folder / "pictures")
    print(report.as_markdown(results))


if __name__ == "__main__":
    main()
