"""How often bounds of hypergradients through training runs hold, and how long a run they reach.

    python -m experiments.coverage.short_runs [--cases N] [--quick]

Random networks with random data (tests/short_run_cases.py), of 6 steps, by momentum SGD and Adam, in float64 and
float32. The truth is a run in `decimal`, by loops over numbers, differenced in 120 digits. Counted are the bounds of
hypergradients, of their entries and of values by `hx.unroll.BallCertifier`, and how often the estimate of
`hx.unroll.RoundingCertifier` is above the error. Then networks of 90 weights with 50 examples, for more and more steps:
the bits and the seconds that a proof takes.

Writes short_runs.md beside this file; with --quick into out/experiments.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from decimal import Decimal

from experiments._common import machine, results_folder

import hyprax as hx
import short_run_cases as problems

HERE = results_folder(__file__)
STEPS = {"momentum": (10, 30), "adam": (10,)}


def counted(optimizer: str, dtype: str, cases: int) -> tuple[str, int]:
    """A row of the table, and the violations of anything certified."""
    violations, above, proved, width, ratios, relative = 0, 0, 0, [], [], []
    for seed in range(cases):
        problem = problems.drawn(seed, optimizer, dtype)
        objective = problem.objective(certifier=hx.unroll.BallCertifier())
        answer, state = hx.hypergradient(objective, problem.hyper)
        value = objective.value(problem.hyper, state)[0]
        estimate = hx.hypergradient(problem.objective(certifier=hx.unroll.RoundingCertifier()), problem.hyper)[0]
        error, entries = problems.errors(problem, answer)
        of_value = abs(problem.truth()[0] - Decimal(float(value.value)))
        proved += answer.certificate.kind == "certified" and value.certificate.kind == "certified"
        violations += error > float(answer.certificate.bound) or of_value > Decimal(float(value.certificate.bound))
        violations += any(of_entry > bound for of_entry, bound in entries.values())
        above += error <= float(estimate.certificate.bound)
        width.append(float(answer.certificate.bound) / error)
        ratios.append(float(estimate.certificate.bound) / error)
        relative.append(float(answer.relative_bound))
    row = (
        f"| {optimizer} | {dtype} | {cases} | {proved} | {violations} | {np.median(relative):.1e} "
        f"/ {max(relative):.1e} | {max(width):.4f} | {above} | {np.median(ratios):.3g} / {max(ratios):.3g} |"
    )
    return row, violations


def loss(params: Any, hyper: Any, data: Any) -> Any:
    """Logistic loss of a network with one hidden layer, and a penalty."""
    inputs, signs = data
    margins = signs * (jnp.tanh(inputs @ params["hidden"]) @ params["output"])
    return jnp.mean(jax.nn.softplus(-margins)) + hyper["penalty"] * sum(jnp.sum(w**2) for w in params.values())


def outer(params: Any, hyper: Any, data: Any) -> Any:
    return loss(params, {"penalty": 0.0}, data)


def init(hyper: Any, key: Any) -> Any:
    shapes = {"hidden": (8, 10), "output": (10,)}
    keys = jax.random.split(key)
    return {name: hyper["scale"] * jax.random.normal(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}


def reach(optimizer: str, steps: int) -> str:
    """One row: how a proof fares on a run of so many steps."""
    make, rate = {
        "momentum": (lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], hyper["momentum"], form="polyak"), 0.1),
        "adam": (lambda hyper: hx.unroll.Adam(hyper["rate"], hyper["momentum"]), 0.02),
    }[optimizer]
    rng = np.random.default_rng(0)
    data = rng.normal(size=(75, 8)), np.sign(rng.normal(size=75))
    train, validation = (tuple(x[part] for x in data) for part in (slice(50), slice(50, None)))
    training = hx.Training(loss, init, make, hx.FullBatch(train), steps)
    settings: Any = {"key": jax.random.key(0)}
    plain = hx.UnrolledObjective(training, outer, validation, **settings)
    proved = hx.UnrolledObjective(training, outer, validation, certifier=hx.unroll.BallCertifier(), **settings)
    hyper = {
        "rate": hx.Positive(rate),
        "momentum": hx.Interval(0.9, 0, 1),
        "scale": hx.Positive(0.5),
        "penalty": hx.Positive(1e-3),
    }
    hx.hypergradient(plain, hyper)
    start = time.process_time()
    hx.hypergradient(plain, hyper)
    alone = time.process_time() - start
    start = time.process_time()
    answer = hx.hypergradient(proved, hyper)[0]
    took = time.process_time() - start
    certificate: Any = answer.certificate
    how = certificate.method.split(";")[0].removeprefix("the run in ball arithmetic of ")
    print(optimizer, steps, certificate, flush=True)
    return (
        f"| {optimizer} | {steps} | {certificate.kind} | {how} | {float(answer.relative_bound):.1e} "
        f"| {alone:.3f} | {took:.1f} |"
    )


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description="How often bounds of hypergradients through runs hold.")
    parser.add_argument("--quick", action="store_true", help="3 cases each, and the shortest runs")
    parser.add_argument("--cases", type=int, default=25, help="random problems of each optimizer and dtype")
    asked = parser.parse_args()
    cases = 3 if asked.quick else asked.cases
    start, violations, rows = time.process_time(), 0, []
    for optimizer in problems.OPTIMIZERS:
        for dtype in ("float64", "float32"):
            row, bad = counted(optimizer, dtype, cases)
            print(row, flush=True)
            rows.append(row)
            violations += bad
    runs = [reach(name, steps) for name, many in STEPS.items() for steps in (many[:1] if asked.quick else many)]
    command = "python -m experiments.coverage.short_runs" + (" --quick" if asked.quick else f" --cases {asked.cases}")
    text = f"""# Bounds of hypergradients through training runs

    {command}

{machine()}, {time.process_time() - start:.0f} s of one processor, with other work beside it.

**Violations of anything certified: {violations}** (hypergradients, their entries, values). Bounds over the norm of the
hypergradient, and estimates over the error: median / largest. `bound / error`: the largest, of the certified bound.

| optimizer | dtype | cases | proved | violations | relative bound | bound / error | estimate held | estimate / error |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

A network 8-10-1 (90 weights), 50 examples in full batches, logistic loss, momentum .9, learning rates .1 (momentum
SGD) and .02 (Adam), in float64. `bits`: after the point, which the growth of the balls asks for. Seconds of the
processor for the hypergradient alone, and with its certificate, the compilation of which is in it.

| optimizer | steps | kind | bits | relative bound | alone, s | certified, s |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(runs)}
"""
    (HERE / "short_runs.md").write_text(text, encoding="utf-8")
    print(text)
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
