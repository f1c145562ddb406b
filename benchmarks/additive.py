"""Additive models with a strength for each smooth term, beside mgcv (R, Debian's r-cran-mgcv).

    python -m benchmarks.additive [--terms 5 20 40] [--rows 1000]

P-splines of 18 columns a term on equal knots, random data with the first four terms at work; one thread each if
OMP_NUM_THREADS=1 and XLA_FLAGS=--xla_cpu_multi_thread_eigen=false are set. Both minimise the same criterion, GCV or
REML; each is run three times in one process, the median is shown, and what ours takes to compile is shown apart.
`distance` is how far our criterion at mgcv's strengths lies above our optimum, relative: below zero mgcv's is lower.
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

import hyprax as hx

jax.config.update("jax_enable_x64", True)

SEGMENTS, TIMES = 15, 3
SCRIPT = """
suppressMessages(library(mgcv))
args <- commandArgs(TRUE); d <- read.csv(args[1]); k <- ncol(d) - 1; segments <- as.integer(args[3])
names <- names(d)[1:k]
knots <- lapply(names, function(v) { x <- range(d[[v]]); h <- diff(x) / segments; x[1] + h * (-3:(segments + 3)) })
names(knots) <- names
terms <- paste0("s(", names, ", bs='ps', k=", segments + 3, ")", collapse = " + ")
seconds <- c()
for (i in 1:as.integer(args[4])) {
  start <- proc.time()[3]
  g <- gam(as.formula(paste("y ~", terms)), data = d, method = args[2], knots = knots,
           control = gam.control(scalePenalty = FALSE, nthreads = 1))
  seconds <- c(seconds, proc.time()[3] - start)
}
cat(format(seconds, digits = 17), "\n", format(unname(g$sp), digits = 17), "\n")
"""


def data(terms: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 10, (rows, terms))
    shapes = (np.sin, lambda u: 0.05 * (u - 5) ** 2, lambda u: 0.2 * u, lambda u: np.exp(-((u - 3) ** 2)))
    return x, sum(shape(x[:, j]) for j, shape in enumerate(shapes)) + 0.5 * rng.normal(size=rows)


def mgcv(x: np.ndarray, y: np.ndarray, method: str) -> tuple[list[float], np.ndarray] | None:
    """Seconds of each fit, and the smoothing parameters found; `None` without R."""
    if shutil.which("Rscript") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        table, script = Path(folder) / "d.csv", Path(folder) / "fit.R"
        header = ",".join([*(f"x{j}" for j in range(x.shape[1])), "y"])
        np.savetxt(table, np.column_stack([x, y]), delimiter=",", header=header, comments="", fmt="%.17g")
        script.write_text(SCRIPT)
        asked = ["Rscript", str(script), str(table), method, str(SEGMENTS), str(TIMES)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"Rscript ended with {done.returncode}: {done.stderr[-400:]}")
        seconds, strengths = done.stdout.splitlines()[:2]
        return [float(t) for t in seconds.split()], np.asarray(strengths.split(), float)


def ours(x: np.ndarray, y: np.ndarray, criterion: Any) -> tuple[list[float], Any, Any, int]:
    """Seconds of each call, the first with compilation; the objective, the optimum, and hypergradients taken."""
    seconds: list[float] = []
    made: tuple[Any, Any] = (None, None)
    found: Any = None
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        terms = hx.implicit.SplineTerms(x, segments=SEGMENTS)
        family = hx.families.Squared(terms.columns, y, penalty="penalty", penalty_groups=terms.groups, free=terms.free)
        made = terms, (objective := criterion(hx.Optimum(family)))
        stop = hx.search.Stopping(gradient=1e-6, patience=5, improvement=1e-9)
        begin = {"penalty": hx.Positive(np.full(terms.count, 0.01))}
        found = hx.tune(objective, begin, search=hx.search.LBFGS(), steps=300, stop=stop, progress=False)
        seconds.append(time.perf_counter() - start)
    return seconds, made, found, len(found.history)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--terms", type=int, nargs="+", default=[5, 20, 40])
    parser.add_argument("--rows", type=int, default=1000)
    asked = parser.parse_args()
    print(f"{asked.rows} rows; seconds, the median of {TIMES}")
    print("criterion terms columns    ours  compile steps    mgcv  distance")
    for count in asked.terms:
        x, y = data(count, asked.rows)
        for name, method, criterion in (("GCV", "GCV.Cp", hx.implicit.GCV), ("REML", "REML", hx.implicit.REML)):
            seconds, (terms, objective), found, steps = ours(x, y, criterion)
            theirs = mgcv(x, y, method)
            each, away = float("nan"), float("nan")
            if theirs is not None:
                each = median(theirs[0])
                strengths = theirs[1] * terms.scales / asked.rows
                there, _ = objective.value({"penalty": hx.Positive(strengths)}, objective.init(found.best))
                away = (float(there.value) - found.best_value) / abs(found.best_value)
            warm = median(seconds[1:])
            print(
                f"{name:>9} {count:5d} {terms.columns.shape[1]:7d} {warm:7.2f} {seconds[0] - warm:8.2f} {steps:5d} "
                f"{each:7.2f} {away:9.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
