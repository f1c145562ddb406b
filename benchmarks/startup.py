"""How long hyprax takes to start, in fresh processes: medians, beside their allowances.

`import hyprax` loads names where they are first used, so what it takes to load all of them is what is allowed 1.5 s.

Run: python -m benchmarks.startup [--repeats N]. The exit code is 1 if an allowance is exceeded.
"""

import argparse
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

HYPRAX = str(Path(sysconfig.get_path("scripts")) / "hyprax")
# What is run, and the seconds that it may take.
COMMANDS = {
    "python -c pass": ([sys.executable, "-c", "pass"], None),
    "import jax": ([sys.executable, "-c", "import jax"], None),
    "import hyprax": ([sys.executable, "-c", "import hyprax"], 1.5),
    "all its names": ([sys.executable, "-c", "import hyprax; [getattr(hyprax, n) for n in hyprax.__all__]"], 1.5),
    "hyprax --help": ([HYPRAX, "--help"], 0.5),
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description="Start-up times in fresh processes.")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each command after one to warm the file cache")
    repeats = parser.parse_args().repeats
    late = False
    print(f"{'command':<16} {'median s':>9} {'allowed s':>10}")
    for name, (command, allowed) in COMMANDS.items():
        seconds(command)
        median = statistics.median(seconds(command) for _ in range(repeats))
        late |= allowed is not None and median > allowed
        print(f"{name:<16} {median:>9.2f} {allowed or '':>10}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
