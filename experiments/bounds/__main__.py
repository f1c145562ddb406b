"""Every estimator of log|I + K| against the truth, at equal budget: `python -m experiments.bounds [--quick]`.

MNIST-1000 (7 x 7), a small MLP and a small CNN, weights trained at prior precision 1 and frozen. For prior precisions
from 1e-4 to 1e4 and budgets of 10 to 1000 backward passes: the value and the slack of every estimator against
the full generalised Gauss-Newton matrix, the prior precision that each would choose, and how often anything that is
labelled `bound` is on the wrong side.

Writes RESULTS.md and the pictures beside this file; with --quick into out/experiments.
"""

import argparse
import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from experiments._common import machine, pyplot, results_folder
from jaxtyping import Array

from hyprax import evidence as ev
from hyprax.evidence._structures import Full

from .data import CLASSES, MODELS, digits, trained

HERE = results_folder(__file__)
ROWS = CLASSES - 1
"""Rows of a datum: those of the stick-breaking and eigenvector roots."""


@dataclasses.dataclass
class Curve:
    """One estimator at one budget: values over precisions and draws, [precisions, draws]."""

    name: str
    kind: str
    budget: int
    kernel: str
    upper: np.ndarray
    lower: np.ndarray | None
    seconds: float
    violations: int = 0
    """Precisions at which the mean is on the wrong side, after a second look with a hundred draws."""


def stochastic(budget: int, order: tuple[int, ...], size: int) -> dict[str, tuple[str, Any]]:
    """Estimators of `budget` backward passes, with the size of their kernel."""
    stick = ev.roots.StickBreaking(order)
    data = max(1, budget // ROWS)
    one = min(budget, size)
    found: dict[str, tuple[str, Any]] = {
        "chain, one row a datum": (f"{one}", ev.Chain(ev.designs.OneRow(one))),
        "chain, scored rows": (f"{budget}", ev.Chain(ev.designs.Rows(budget))),
        "chain, scored rows, stick-breaking": (f"{budget}", ev.Chain(ev.designs.Rows(budget), stick)),
        "chain, two-phase": (f"{one}", ev.Chain(ev.designs.OneRow(one, first=4 * one))),
        "chain, blocks": (f"{data * ROWS}", ev.Chain(ev.designs.Blocks(data))),
        "tangent": ("none", ev.Tangent(one)),
        "subset, all outputs": (f"{data * ROWS}", ev.Partition(data)),
        "subset of a class, all outputs": (f"{data * ROWS}", ev.Partition(data, grouped=True)),
        "subset, each output": (f"{ROWS} of {data}", ev.Partition(data, "each", stick)),
        "subset, one output, stick-breaking": (f"{one}", ev.Partition(one, "one", stick)),
        "subset, one output, rows": (f"{one}", ev.Partition(one, "one", ev.roots.Rows())),
        "released one-output heuristic": (f"{one}", ev.Partition(one, "one", ev.roots.Rows(covariance=False))),
        "doubly stochastic, tensor blocks": (
            f"{one}",
            ev.Partition(one, "one", stick, structure=ev.structures.TensorBlocks()),
        ),
        "doubly stochastic, EKFAC": ("none", ev.Partition(one, "one", stick, structure=ev.structures.EKFAC())),
        "doubly stochastic, KFAC": ("none", ev.Partition(one, "one", stick, structure=ev.structures.KFAC())),
    }
    return found


DETERMINISTIC = {
    "full": Full(),
    "tensor blocks": ev.structures.TensorBlocks(),
    "EKFAC": ev.structures.EKFAC(),
    "KFAC": ev.structures.KFAC(),
    "diagonal": ev.structures.Diagonal(),
    "last layer": ev.structures.LastLayer(lambda params: params["head"]),
}


def curve(
    name: str, kernel: str, estimator: Any, budget: int, problem: ev.LinearisedModel, precisions: np.ndarray, draws: int
) -> Curve:
    """Evaluate an estimator at every precision, with the same keys at each."""

    @eqx.filter_jit
    def at(problem: ev.LinearisedModel, precision: Array, key: Array) -> ev.LogDeterminant:
        prior = ev.GaussianPrior(precision)
        return estimator(eqx.tree_at(lambda p: p.prior, problem, prior), key)

    start = time.perf_counter()
    sides = [
        [at(problem, jnp.asarray(p), jax.random.key(1000 * budget + draw)) for draw in range(draws)] for p in precisions
    ]
    upper = np.array([[float(s.upper) for s in row] for row in sides])
    two = sides[0][0].lower is not None
    lower = np.array([[float(s.lower) for s in row] for row in sides]) if two else None
    return Curve(name, estimator.kind, budget, kernel, upper, lower, time.perf_counter() - start)


def wrong_side(c: Curve, truth: np.ndarray) -> np.ndarray:
    """Precisions at which the mean is below the truth by three standard errors and more than rounding."""
    mean, draws = c.upper.mean(1), c.upper.shape[1]
    error = c.upper.std(1, ddof=1) / np.sqrt(draws) if draws > 1 else np.zeros(len(mean))
    return mean + 3 * error < truth * (1 - 1e-8)


def best_precision(precisions: np.ndarray, logdet: np.ndarray, norm: float) -> float:
    """log10 of the precision of the greatest log evidence, on a spline through log|I + K| over log precision."""
    from scipy.interpolate import CubicSpline

    fine = np.linspace(np.log10(precisions[0]), np.log10(precisions[-1]), 4001)
    spline = CubicSpline(np.log10(precisions), logdet)
    return float(fine[np.argmax(-0.5 * 10**fine * norm - 0.5 * spline(fine))])


def run(name: str, data: tuple[Array, Array], budgets: list[int], precisions: np.ndarray, draws: int, steps: int):
    """All curves of one network; the first is the truth."""
    params = trained(name, data, 1.0, steps)
    problem = ev.linearise(MODELS[name], params, data, likelihood=ev.Categorical(), prior=ev.GaussianPrior(1.0))
    order = ev.roots.StickBreaking.ordered(problem.logits()).order
    accuracy = float(jnp.mean(jnp.argmax(problem.logits(), 1) == data[1]))
    weights = sum(x.size for x in jax.tree.leaves(params))
    print(f"{name}: {weights} weights, training accuracy {accuracy:.3f}", flush=True)
    curves = []
    for label, structure in DETERMINISTIC.items():
        passes = problem.size * ROWS
        found = curve(label, "none", ev.FullData(structure), passes, problem, precisions, 1)
        found.violations = int(wrong_side(found, found.upper[:, 0] if not curves else curves[0].upper[:, 0]).sum())
        curves.append(found)
        print(f"  {label}: {found.seconds:.1f} s", flush=True)
    truth = curves[0].upper[:, 0]
    for budget in budgets:
        for label, (kernel, estimator) in stochastic(budget, order, problem.size).items():
            found = curve(label, kernel, estimator, budget, problem, precisions, draws)
            flagged = wrong_side(found, truth)
            found.violations = int(flagged.sum())
            if found.kind == "bound" and flagged.any():  # few draws make false alarms: ask a hundred others
                again = curve(label, kernel, estimator, budget + 1, problem, precisions[flagged], 100)
                found.violations = int(wrong_side(again, truth[flagged]).sum())
                print(f"  {label}, {budget}: {flagged.sum()} flagged, {found.violations} confirmed", flush=True)
            curves.append(found)
            if label == "chain, scored rows" and found.lower is not None:  # the midpoint of the same draws
                middle = (found.upper + found.lower) / 2
                middle = Curve("midpoint of scored rows", "estimated", budget, kernel, middle, None, found.seconds)
                middle.violations = int(wrong_side(middle, truth).sum())
                curves.append(middle)
            print(f"  {label}, {budget}: {found.seconds:.1f} s", flush=True)
    norm = float(problem.prior.penalty(params))
    return curves, norm, weights, accuracy, float(problem.log_likelihood())


def table(curves: list[Curve], precisions: np.ndarray, norm: float) -> list[str]:
    """One row for each estimator and budget."""
    truth = curves[0].upper[:, 0]
    best = best_precision(precisions, truth, norm)
    rows = []
    for c in curves:
        ratio = c.upper.mean(1) / truth
        at = [int(np.argmin(np.abs(np.log10(precisions) - target))) for target in (-2, 0, 2)]
        deviation = np.mean(c.upper.std(1) / truth)
        error = np.mean(np.sqrt(np.mean((c.upper - truth[:, None]) ** 2, axis=1)) / truth)
        slack = "-" if c.lower is None else f"{np.mean((c.upper - c.lower).mean(1) / truth):.2f}"
        shift = np.mean([best_precision(precisions, draw, norm) - best for draw in c.upper.T])
        rows.append(
            f"| {c.name} | {c.kind} | {c.budget} | {c.kernel} | "
            + " | ".join(f"{ratio[i]:.3f}" for i in at)
            + f" | {deviation:.3f} | {error:.3f} | {slack} | {shift:+.2f} | {c.violations} | {c.seconds:.1f} |"
        )
    return rows


SHOWN = {
    "chain, one row a datum": "C0",
    "chain, scored rows": "C2",
    "tangent": "C4",
    "subset, all outputs": "C1",
    "subset, one output, rows": "C5",
    "released one-output heuristic": "C3",
}


def pictures(name: str, curves: list[Curve], precisions: np.ndarray, norm: float, fit: float, size: int) -> None:
    """The log evidence by every method, as in the first figure of the paper; and value over truth by budget."""
    plt = pyplot()

    truth = curves[0].upper[:, 0]
    budgets = sorted({c.budget for c in curves[len(DETERMINISTIC) :]})
    figure, axes = plt.subplots(2, len(budgets), figsize=(3.1 * len(budgets), 6), sharex=True, layout="constrained")
    for column, budget in enumerate(budgets):
        above, below = axes[0, column], axes[1, column]

        def evidence(logdet: np.ndarray) -> np.ndarray:
            return (fit - 0.5 * precisions * norm - 0.5 * logdet) / size

        above.plot(precisions, evidence(truth), "k", lw=2, label="truth (full GGN)")
        for c in curves:
            if c.budget != budget or c.name not in SHOWN:
                continue
            style = "-" if c.kind == "bound" else "--"
            mean, sd = c.upper.mean(1), c.upper.std(1)
            above.plot(precisions, evidence(mean), style, color=SHOWN[c.name], label=f"{c.name} ({c.kind})")
            below.plot(precisions, mean / truth, style, color=SHOWN[c.name])
            below.fill_between(precisions, (mean - sd) / truth, (mean + sd) / truth, color=SHOWN[c.name], alpha=0.15)
            if c.lower is not None and c.name == "chain, scored rows":
                above.plot(precisions, evidence(c.lower.mean(1)), ":", color=SHOWN[c.name], label="its other side")
                below.plot(precisions, c.lower.mean(1) / truth, ":", color=SHOWN[c.name])
        below.axhline(1.0, color="k", lw=2)
        above.set(xscale="log", title=f"{budget} backward passes", ylim=(-3.2, 0.1))
        below.set(xscale="log", yscale="log", xlabel="prior precision", ylim=(0.1, 30))
    axes[0, 0].set_ylabel("log evidence a datum, nats")
    axes[1, 0].set_ylabel("log-determinant / truth")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(HERE / f"{name}.png", dpi=100)
    plt.close(figure)


def report(
    sections: list[str], wrong: int, size: int, precisions: np.ndarray, draws: int, steps: int, quick: bool
) -> str:
    """The text of RESULTS.md."""
    return f"""# Estimators of the log-determinant at equal budget

    python -m experiments.bounds{" --quick" if quick else ""}

Measured on a {machine()}, float64. MNIST-{size} at 7 x 7, weights trained at prior precision 1 by {steps} steps of
Adam, then frozen. `passes` are backward passes (the pilot of 16 more rows of scored designs, and forward passes, are
not counted), `kernel` the side of the matrix factored. Columns 1e-2, 1 and 1e2: the mean estimate of log|I + K| over
the truth at these prior precisions. `sd`, `rmse`, `U - Lo`: relative to the truth, means over {len(precisions)}
precisions from 1e-4 to 1e4, {draws} draws each. `shift`: of the log10 of the best prior precision. `wrong side`:
precisions at which the mean of the draws is below the truth by more than three standard errors; for what is labelled
`bound` confirmed with a hundred fresh draws. `seconds`: all evaluations and the compilation, on a shared machine. With
10 passes the subsets of all outputs hold one datum, whose log-determinant varies so much that the mean of {draws} draws
says little.

**On the wrong side among everything labelled `bound`: {wrong}.**

{chr(10).join(sections)}"""


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 digits, two budgets, three precisions")
    quick = parser.parse_args().quick
    jax.config.update("jax_enable_x64", True)
    size, budgets, draws, steps = (100, [10, 50], 3, 100) if quick else (1000, [10, 100, 1000], 3, 1000)
    precisions = np.logspace(-4, 4, 3 if quick else 9)
    data = digits(size)
    sections, wrong, text = [], 0, ""
    for name in MODELS:
        curves, norm, weights, accuracy, fit = run(name, data, budgets, precisions, draws, steps)
        pictures(name, curves, precisions, norm, fit, size)
        rows = table(curves, precisions, norm)
        wrong += sum(c.violations for c in curves if c.kind == "bound")
        sections.append(f"""## {name.upper()}: {weights} weights, training accuracy {accuracy:.3f}

| estimator | kind | passes | kernel | 1e-2 | 1 | 1e2 | sd | rmse | U - Lo | shift | wrong side | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

![{name}: log evidence, and log-determinant over truth, by prior precision and budget]({name}.png)
""")
        text = report(sections, wrong, size, precisions, draws, steps, quick)
        (HERE / "RESULTS.md").write_text(text)  # after each network, since they take long
    print(text)


if __name__ == "__main__":
    main()
