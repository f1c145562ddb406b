"""What the experiments share: the machine's name, where the data sets are, where results go, and how they draw."""

import os
import platform
import sys
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


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files alone."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot
