"""Bounds where arguments have dtypes of their own: `python -m experiments.coverage.dtypes [--cases N] [--quick]`.

Random problems of every family: inputs and targets, of training and of validation, each in a dtype drawn for it (bool,
integers of 8 to 64 bits, float16, bfloat16, float32, float64), and a strength in float32 or float64. The truth is that
of the numbers as they were given, from NumPy in long double (tests/oracles.py); bounds are those of
`hx.implicit.ResidualCertifier`. A float64 argument makes a problem one of float64, and so do integers of 32 and 64 bits
beside float32; a strength wider than the data is refused in words, and drawn anew.

Writes dtypes.md beside this file; with --quick into out/experiments.
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

jax.config.update("jax_enable_x64", True)
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from experiments._common import machine, results_folder

import hyprax as hx
import oracles

HERE = results_folder(__file__)
ROWS, FEATURES, CLASSES = 24, 3, 3
FAMILIES = {
    "squared": hx.families.Squared,
    "logistic": hx.families.Logistic,
    "softmax": hx.families.Softmax,
    "poisson": hx.families.Poisson,
    "huber": lambda x, y, **terms: hx.families.PseudoHuber(x, y, delta=oracles.HUBER, **terms),
}
SMALL = (bool, np.int8, np.uint8, np.int16, np.float16, ml_dtypes.bfloat16, np.float32)
WIDE = (np.int32, np.int64, np.float64)


def drawn(rng: np.random.Generator, values: np.ndarray, dtypes: tuple[Any, ...]) -> np.ndarray:
    """The values in a dtype drawn for them, as that dtype holds them."""
    dtype = np.dtype(dtypes[rng.integers(len(dtypes))])
    if dtype.kind == "b":
        return values > 0
    if dtype.kind in "iu":
        return np.abs(np.rint(values)).astype(dtype) if dtype.kind == "u" else np.rint(values).astype(dtype)
    return values.astype(dtype)


def targets(rng: np.random.Generator, kind: str, dtypes: tuple[Any, ...]) -> np.ndarray:
    """In a dtype that holds them."""
    if kind == "softmax":
        whole = tuple(dtype for dtype in dtypes if np.dtype(dtype).kind in "iu")
        return drawn(rng, rng.permutation(np.arange(ROWS) % CLASSES), whole)
    if kind == "logistic":
        return drawn(rng, rng.permutation(np.arange(ROWS) % 2), dtypes)
    if kind == "poisson":
        return drawn(rng, rng.poisson(2.0, ROWS), tuple(dtype for dtype in dtypes if dtype is not bool))
    return drawn(rng, 2 * rng.standard_normal(ROWS), dtypes)


def one(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    """A problem, its bound and its error."""
    dtypes = (SMALL, SMALL + WIDE)[rng.integers(2)]  # one wide argument widens a problem
    x, v = (drawn(rng, 2 * rng.standard_normal((ROWS, FEATURES)), dtypes) for _ in range(2))
    y, u = targets(rng, kind, dtypes), targets(rng, kind, dtypes)
    strength = np.exp(rng.uniform(np.log(1e-3), 0))
    terms = {"classes": CLASSES} if kind == "softmax" else {}
    family = FAMILIES[kind](x, y, penalty="penalty", **terms)
    objective = hx.ImplicitObjective(
        hx.Optimum(family), family.mean_loss, (v, u), certifier=hx.implicit.ResidualCertifier()
    )
    refused = False
    dtype = (np.float32, np.float64)[rng.integers(2)]
    try:
        hyper = {"penalty": hx.Positive(dtype(strength))}
        answer = hx.hypergradient(objective, hyper, throw=False)[0]
    except ValueError:
        refused, hyper = True, {"penalty": hx.Positive(np.float32(strength))}
        answer = hx.hypergradient(objective, hyper, throw=False)[0]
    result = answer.grad["penalty"].raw.dtype
    used = float(jnp.exp(hyper["penalty"].raw.astype(result)))
    labels = [a.astype(int if kind == "softmax" else float) for a in (y, u)]
    exact = x.astype(float), labels[0], v.astype(float), labels[1]
    columns = CLASSES if kind == "softmax" else 1
    truth = oracles.reference(kind, *exact, np.full((FEATURES, columns), used)).per_weight.sum()
    return {
        "dtype": str(result),
        "refused": refused,
        "error": abs(float(answer.grad["penalty"].raw - float(truth))),
        "bound": float(answer.certificate.bound),
        "kind": answer.certificate.kind,
        "size": abs(float(truth)),
        "given": tuple(str(a.dtype) for a in (x, y, v, u)),
    }


def main() -> None:
    """All families in turn, and the table."""
    parser = argparse.ArgumentParser(description="Bounds where arguments have dtypes of their own.")
    parser.add_argument("--quick", action="store_true", help="5 cases each")
    parser.add_argument("--cases", type=int, default=200, help="of each family")
    asked = parser.parse_args()
    start, rng = time.process_time(), np.random.default_rng(0)
    lines, bad, seen = [], [], set()
    for kind in FAMILIES:
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for _ in range(5 if asked.quick else asked.cases):
            case = one(rng, kind)
            found[case["dtype"]].append(case)
            seen.add((kind, *case["given"]))
            if case["kind"] == "certified" and not case["error"] <= case["bound"]:
                bad.append(f"{kind} {case}")
        for dtype, cases in sorted(found.items()):
            kinds = Counter(case["kind"] for case in cases)
            relative = [case["bound"] / case["size"] for case in cases]
            ratio = [case["bound"] / max(case["error"], 1e-300) for case in cases]
            wrong = sum(case["error"] > case["bound"] for case in cases if case["kind"] == "certified")
            lines.append(
                f"| {kind} | {dtype} | {len(cases)} | {kinds['certified']} | {wrong} | {np.median(relative):.1e} "
                f"| {min(ratio):.3g} | {sum(case['refused'] for case in cases)} |"
            )
            print(lines[-1], flush=True)
    command = "python -m experiments.coverage.dtypes" + (" --quick" if asked.quick else f" --cases {asked.cases}")
    text = f"""# Bounds where arguments have dtypes of their own

    {command}

{machine()}, {time.process_time() - start:.0f} s of one processor, with other work beside it; {len(seen)} combinations
of a family and the dtypes of its four arguments.

**Violations of anything certified: {len(bad)}.**

`computed in`: the dtype of the hypergradient. Bounds are over the norm of the hypergradient, in the median; `bound /
error` is the smallest; `refused`: strengths in float64 for data that float32 holds, which were then given in float32.

| family | computed in | cases | certified | violations | relative bound | bound / error | refused |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(lines)}
"""
    (HERE / "dtypes.md").write_text(text + "".join(f"\n- {line}" for line in bad[:20]), encoding="utf-8")
    print(text)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
