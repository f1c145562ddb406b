"""Learned training schedules on MNIST: `python -m experiments.schedules {momentum,adamw} [--quick]`.

As in Maclaurin, Duvenaud and Adams (2015, arXiv 1502.03492, section 3.1): a tanh network 784-50-50-50-10, 10,000
training images less their mean, batches of 200, T = 100 steps of gradient descent with momentum; a learning rate and a
momentum for every step and each of eight groups (weights and biases of four layers) and eight scales of initial
weights, 1,608 hyperparameters, moved by 50 steps of Adam at 0.04 on the training loss, each with a new seed. Beside it,
Optuna's TPE with 95 trials over three scalars on the same network. Or AdamW through T = 1,000 steps, judged on 10,000
validation images.

Hypergradients are exact, by reversal. All figures are means over runs with fresh seeds, which no search has seen.

Writes RESULTS.md or RESULTS_adamw.md, and the pictures, beside this file; with --quick into out/experiments. Needs
optuna.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import machine, results_folder
from experiments._mnist import splits
from experiments.schedules.pictures import learned, progress
from experiments.schedules.problem import (
    Ends,
    adamw_schedules,
    by_adamw,
    by_momentum,
    ends,
    momentum_schedules,
    objective,
    scalars,
)

import hyprax as hx
from hyprax.unroll import ReversalCertificate

HERE = results_folder(__file__)
AIMS = (0.139, 0.075)
"""Training loss and test error to reach from γ₀ = 0.9."""
WORST = 10.0
"""What the search without gradients is told of a run that diverged: far above log 10, the loss of guessing."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What a search found, the values on its way, and what it took."""

    hyper: Any
    values: np.ndarray
    scales: np.ndarray
    seconds: float
    exact: int = 0


def by_gradient(problem: hx.UnrolledObjective, hyper: Any, iterations: int, pace: float) -> Tuning:
    """Adam at `pace` in unconstrained coordinates: logarithms of rates and scales, logits of momenta."""
    exact, scales = [], []

    def watch(step: hx.search.Step) -> None:
        exact.append(isinstance(step.hypergradient.certificate, ReversalCertificate))
        scales.append([float(layer["w"]) for layer in hx.natural(step.hyper)["scale"]])

    problem.value_and_grad(hyper, problem.init(hyper))  # compile
    began = time.perf_counter()
    tuned = hx.tune(
        problem,
        hyper,
        search=hx.search.Optax(optax.adam(pace)),
        steps=iterations,
        stop=hx.search.Stopping(gradient=0.0, patience=None),
        callbacks=[watch],
        progress=False,
    )
    return Tuning(
        tuned.state.hyper, tuned.column("value"), np.asarray(scales), time.perf_counter() - began, int(np.sum(exact))
    )


def by_trials(
    problem: hx.UnrolledObjective, suggest: Callable[[Any], dict[str, Any]], trials: int, seed: int = 0
) -> Tuning:
    """Optuna's TPE with its default settings, a new seed of the training for every trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    values = []

    def run(trial: Any) -> float:
        hyper = suggest(trial)
        state = eqx.tree_at(lambda s: s.evaluations, problem.init(hyper), jnp.asarray(trial.number, jnp.int32))
        value = float(problem.value(hyper, state)[0].value)
        values.append(value if np.isfinite(value) and value < WORST else WORST)
        return values[-1]

    fixed = optuna.trial.FixedTrial({"rate": 1e-3, "gap": 0.1, "scale": 0.05, "decay": 0.01})
    problem.value(suggest(fixed), problem.init(suggest(fixed)))  # compile
    began = time.perf_counter()
    study.optimize(run, n_trials=trials)
    return Tuning(suggest(study.best_trial), np.asarray(values), np.empty(0), time.perf_counter() - began)


def momentum_scalars(trial: Any) -> dict[str, Any]:
    """α from .001 to 10, 1 - γ from .01 to 1, initial scale from .005 to .5, all on logarithmic axes."""
    rate = trial.suggest_float("rate", 0.001, 10, log=True)
    gap = trial.suggest_float("gap", 0.01, 1, log=True)
    return scalars(rate, 1 - gap, trial.suggest_float("scale", 0.005, 0.5, log=True))


def adamw_scalars(trial: Any) -> dict[str, Any]:
    """The rate from 1e-4 to .1, the decay from 1e-4 to 1, the initial scale from .005 to .5; β1 = .9, β2 = .999."""
    rate = trial.suggest_float("rate", 1e-4, 0.1, log=True)
    decay = trial.suggest_float("decay", 1e-4, 1, log=True)
    hyper = scalars(rate, 0.9, trial.suggest_float("scale", 0.005, 0.5, log=True))
    return {
        "rate": hyper["rate"],
        "beta1": hyper["momentum"],
        "beta2": jnp.asarray(0.999, jnp.float32),
        "decay": jnp.asarray(decay, jnp.float32),
        "scale": hyper["scale"],
    }


def count(hyper: Any) -> int:
    return sum(np.size(leaf) for leaf in jax.tree.leaves(hx.natural(hyper)))


HEADER = ["| | training loss | test loss | test error | seconds |", "| --- | --- | --- | --- | --- |"]


def row(name: str, judged: Ends, seconds: float | None) -> str:
    return f"| {name} | {judged.row()} | {'' if seconds is None else f'{seconds:.0f}'} |"


def momentum_part(data: Any, quick: bool) -> list[str]:
    steps, iterations, trials, seeds = (20, 4, 4, 2) if quick else (100, 50, 95, 10)
    plain = objective(data, by_momentum, steps, "train", hx.unroll.Checkpointed(), 0)
    exact = objective(data, by_momentum, steps, "train", hx.unroll.Reversible(), 0)
    rows, tunings, reached = [], {}, []
    for momentum, paces in ((0.5, (0.04,)), (0.9, (0.04, 0.06))):
        start = momentum_schedules(steps, momentum)
        rows.append(row(f"constants, γ = {momentum}", ends(plain, start, data, seeds), None))
        for pace in paces:
            name = f"γ₀ = {momentum}, Adam at {pace}"
            tunings[name] = tuning = by_gradient(exact, start, iterations, pace)
            judged = ends(plain, tuning.hyper, data, seeds)
            rows.append(row(f"learned from {name}", judged, tuning.seconds))
            reached += [name] if judged.train_loss.mean() <= AIMS[0] and judged.test_error.mean() <= AIMS[1] else []
            print(rows[-1], flush=True)
    trial = by_trials(plain, momentum_scalars, trials)
    best = {name: float(value) for name, value in trial.hyper.items()}
    rows.append(row(f"Optuna TPE, {trials} trials", ends(plain, trial.hyper, data, seeds), trial.seconds))
    print(rows[-1], flush=True)
    progress({name: t.values for name, t in tunings.items()} | {"Optuna TPE": trial.values}, HERE / "progress.png")
    last = tunings["γ₀ = 0.9, Adam at 0.06"]
    plain_hyper = hx.natural(last.hyper)
    learned(
        {"learning rate": plain_hyper["rate"], "momentum": plain_hyper["momentum"]}, last.scales, HERE / "momentum.png"
    )
    certified = sum(t.exact for t in tunings.values())
    return [
        f"## Momentum, T = {steps}, {count(last.hyper):,} hyperparameters",
        f"{iterations} steps of Adam from each start, at 0.04 as published and at 0.06 (the best of 0.06, 0.08 and "
        f"0.12, by one run each); {certified} of {len(tunings) * iterations} runs came back bit for bit.",
        f"A training loss of at most {AIMS[0]} and a test error of at most {100 * AIMS[1]} % (a little better than was "
        f"published): {'; '.join(reached) or 'none'}.",
        f"Means and standard deviations over {seeds} fresh seeds; seconds are those of the search, compilation apart.",
        f"Optuna chose α = {best['rate']:.3g}, γ = {best['momentum']:.3g}, initial scale {best['scale']:.3g}.",
        "",
        *HEADER,
        *rows,
        "| published, constants, γ = 0.9 | 0.638 | | 21.6 % | |",
        "| published, learned from γ₀ = 0.9 | 0.141 | | 7.5 % | |",
        "| published, Bayesian optimisation, 95 trials | 0.156 | | 8.5 % | |",
        "",
        "![the learned schedules of the weights, from γ₀ = 0.9 at 0.06](momentum.png)",
        "",
        "![training loss against evaluations](progress.png)",
        "",
    ]


def adamw_part(data: Any, quick: bool) -> list[str]:
    steps, iterations, trials, seeds = (20, 2, 2, 2) if quick else (1000, 16, 32, 3)
    plain = objective(data, by_adamw, steps, "validation", hx.unroll.Checkpointed(), 1)
    exact = objective(data, by_adamw, steps, "validation", hx.unroll.Reversible(), 1)
    start = adamw_schedules(steps)
    tuning = by_gradient(exact, start, iterations, 0.1)
    rows = [
        row("constants", ends(plain, start, data, seeds), None),
        row(f"learned, {iterations} hypergradients", ends(plain, tuning.hyper, data, seeds), tuning.seconds),
    ]
    print(*rows, sep="\n", flush=True)
    trial = by_trials(plain, adamw_scalars, trials)
    best = {name: float(value) for name, value in trial.hyper.items()}
    rows.append(row(f"Optuna TPE, {trials} trials", ends(plain, trial.hyper, data, seeds), trial.seconds))
    print(rows[-1], flush=True)
    plain_hyper = hx.natural(tuning.hyper)
    learned({"learning rate": plain_hyper["rate"], "β1": plain_hyper["beta1"]}, tuning.scales, HERE / "adamw.png")
    decays = ", ".join(f"{float(layer['w']):.3g}" for layer in plain_hyper["decay"])
    return [
        f"## AdamW, T = {steps:,}, {count(start):,} hyperparameters",
        "A rate and a β1 for every step and group; β2, decay and initial scale for every group. Judged on the",
        "validation loss, since a decay that serves the training loss alone would be none. Start: rate 0.001,",
        f"β1 = 0.9, β2 = 0.999, decay 0.01; {iterations} steps of Adam at 0.1.",
        f"{tuning.exact} of {iterations} runs came back bit for bit; {seeds} fresh seeds.",
        f"Learned decays of the weights of the four layers: {decays}. Optuna, over rate, decay and initial scale, "
        f"chose {best['rate']:.3g}, {best['decay']:.3g}, {best['scale']:.3g}.",
        "",
        *HEADER,
        *rows,
        "",
        "![the learned schedules of the weights](adamw.png)",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("momentum", "adamw"), help="which training to tune")
    parser.add_argument("--quick", action="store_true", help="20 steps, few evaluations; writes into out/experiments")
    chosen = parser.parse_args()
    data = splits(1000 if chosen.quick else 10_000, centred=True)
    part = momentum_part if chosen.part == "momentum" else adamw_part
    lines = [
        "# Learned training schedules",
        "",
        f"    python -m experiments.schedules {chosen.part}" + (" --quick" if chosen.quick else ""),
        "",
        f"Measured on a {machine()}, one thread, beside other programs (the seconds are",
        f"comparable with one another only). Tanh network 784-50-50-50-10 on MNIST, {data['train'][1].size:,}",
        "training images less their mean, batches of 200, hypergradients by exact reversal.",
        "",
        *part(data, chosen.quick),
    ]
    text = "\n".join(lines)
    (HERE / ("RESULTS.md" if chosen.part == "momentum" else "RESULTS_adamw.md")).write_text(text)
    print(text)


if __name__ == "__main__":
    main()
