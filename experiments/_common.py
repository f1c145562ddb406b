"""What the experiments share: the machine's name, where the data sets are, where results go, and how they draw."""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


def machine() -> str:
    """Cores, architecture and memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = Path("/proc/cpuinfo")
    kind = "virtual machine" if cpu.exists() and "hypervisor" in cpu.read_text() else "machine"
    return f"{os.cpu_count()}-core {platform.machine().replace('_', '-')} {kind}, {int(memory)} GiB"


def data_file(name: str) -> Path:
    """A file in the folder named by `HYPRAX_DATA`, or in `../shared/data` beside the repository."""
    folder = Path(os.environ.get("HYPRAX_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: set HYPRAX_DATA to the folder that holds {name}.")
    return path


def results_folder(experiment: str) -> Path:
    """Beside the experiment; for a quick run, whose figures are not to stand, out/experiments/NAME instead."""
    here = Path(experiment).parent
    if "--quick" not in sys.argv:
        return here
    folder = Path("out") / "experiments" / here.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rows_of(
    experiment: str,
    cells: Iterable[tuple[Any, ...]],
    settings: dict[str, Any],
    measure: Callable[..., dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """`measure(*cell)` for each cell, with the cell and the settings; what an earlier run has finished is read back.

    Each is kept in out/experiments/NAME.jsonl as soon as it is there, so a run that was cut off goes on where it was.
    Rows of other settings are void; a quick run reads and keeps nothing.
    """
    store = Path("out") / "experiments" / f"{Path(experiment).parent.name}.jsonl"
    quick = "--quick" in sys.argv
    lines = store.read_text().splitlines() if store.exists() and not quick else []
    kept = [row for row in map(json.loads, lines) if row["settings"] == settings]
    done = {tuple(row["cell"]): row for row in kept}
    for cell in cells:
        row = done.get(cell)
        if row is None:
            row = {"cell": list(cell), **measure(*cell), "settings": settings}
            if not quick:
                store.parent.mkdir(parents=True, exist_ok=True)
                with store.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
        yield row


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files alone."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
