"""The process of a peer, kept alive: a line of JSON asks, a line answers. Needs NumPy, and what its methods import.

- prepare: make a method from arrays in a file. One that is there already is kept: the answer then is how long its start
  and its first run took, of which else the run is still to come.
- run: run it, as often as fills the shortest lap, and say how long one took, by the clock and of the processor; how far
  memory grew; and, where a file is named, what it found.

A method is a function of the arrays and of settings to a function `run`, which answers with arrays by name. Some names
are special: `cpu_seconds`, `wall_seconds`, `grown_bytes` and `peak_bytes`, of a method that measures itself, as one in
R does.
"""

import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import numpy as np

METER = importlib.import_module(
    "benchmarks.device" if os.environ.get("JAX_PLATFORMS") == "cuda" else "benchmarks.peak_memory"
)
SHORTEST = 0.03
"""Seconds of a lap: what is shorter is repeated, and the mean of the lap is taken."""
PACKAGES = (
    *("hyprax", "jax", "jaxopt", "optimistix", "scikit-learn", "numpy", "scipy", "torch", "higher", "torchopt"),
    *("laplace-torch", "himalaya", "pygam", "optuna"),
)


def versions():
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Worker:
    def __init__(self):
        self.runs, self.firsts, self.ran = {}, {}, set()

    def prepare(self, asked):
        if asked["key"] in self.firsts:
            return {"seconds": self.firsts[asked["key"]], "known": True}
        module, name = asked["function"].split(":")
        with np.load(asked["arrays"]) as archive:
            arrays = dict(archive)
        begun = time.perf_counter()
        self.runs[asked["key"]] = getattr(importlib.import_module(module), name)(arrays, **asked["settings"])
        self.firsts[asked["key"]] = time.perf_counter() - begun
        return {"seconds": self.firsts[asked["key"]], "known": False}

    def forget(self, asked):
        self.runs.clear()
        self.firsts.clear()
        self.ran.clear()
        gc.collect()
        return {}

    def run(self, asked):
        run, fresh = self.runs[asked["key"]], asked["key"] not in self.ran
        before, answer = METER.reset(), dict[str, Any]()
        wall, cpu, count = time.perf_counter(), time.process_time(), 0
        while not count or (asked["fill"] and time.perf_counter() - wall < SHORTEST):
            answer = {name: np.asarray(value) for name, value in run(**asked["given"]).items()}
            count += 1
        wall, cpu = (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count
        if fresh:
            self.ran.add(asked["key"])
            self.firsts[asked["key"]] += wall
        peak = METER.peak()
        memory = max(0, peak - before)
        if "cpu_seconds" in answer:
            cpu, wall = float(answer.pop("cpu_seconds")), float(answer.pop("wall_seconds"))
        memory, peak = int(answer.pop("grown_bytes", memory)), int(answer.pop("peak_bytes", peak))
        if asked["answer"]:
            np.savez(asked["answer"], **answer)
        return {"wall": wall, "cpu": cpu, "memory": memory, "resident": peak}


def main():
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})
    out = os.fdopen(os.dup(1), "w")  # what a peer prints must not come among the answers
    os.dup2(2, 1)
    worker = Worker()
    print(json.dumps({"versions": versions()}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = getattr(worker, asked["do"])(asked)
        except Exception as error:  # the peer's, whatever it is: it is said in the table
            said = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
            answer = {"error": said[:300]}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
