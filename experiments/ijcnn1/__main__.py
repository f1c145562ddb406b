"""22 penalties on ijcnn1: `python -m experiments.ijcnn1 [--quick]`.

Binary logistic regression with an l2 penalty for each of 22 features, chosen by the loss on the validation part: the
first 35,000 examples train, the next 14,990 validate, contiguous in time. Every method starts at log-strengths of 0 and
may visit so many examples: one derivative of one example's loss (gradient, Hessian product) is one visit.
F, the validation loss at the exact optimum, is worked out afterwards, from the log-strengths that a method had.

Writes RESULTS.md and the picture beside this file; with --quick into out/experiments.
"""

import argparse

import jax
import numpy as np
import optax
from experiments._common import machine, pyplot, results_folder

import hyprax as hx
from hyprax.search import MAID, Optax, Stopping

from . import methods
from .problem import START, Ijcnn1, Judge

jax.config.update("jax_enable_x64", True)

HERE = results_folder(__file__)
RATES = (3e-4, 1e-3, 3e-3)
COLOURS = {
    "SABA": "tab:blue",
    "SOBA": "tab:cyan",
    "AmIGO": "tab:purple",
    "hyprax implicit, MAID": "tab:red",
    "hyprax implicit, Adam, fixed tolerance": "tab:pink",
    "hyprax implicit, Adam, following tolerance": "tab:orange",
    "jaxopt implicit, Adam": "tab:green",
    "Optuna TPE": "tab:gray",
}


def contestants(problem: Ijcnn1, budget: float) -> dict[str, list[tuple[str, methods.Track]]]:
    """For every method the tracks of its settings."""
    found: dict[str, list[tuple[str, methods.Track]]] = {}

    def add(name: str, setting: str, track: methods.Track) -> None:
        found.setdefault(name, []).append((setting, track))
        print(f"{name} ({setting}): {track.passes[-1]:.3g} visits, {track.seconds[-1]:.1f} s", flush=True)

    for rate in RATES:
        add("SABA", f"rate {rate:g}", methods.stochastic(hx.implicit.SABA, problem, budget, rate))
        add("SOBA", f"rate {rate:g}", methods.stochastic(hx.implicit.SOBA, problem, budget, rate, decreasing=True))
        add("AmIGO", f"rate {10 * rate:g}", methods.stochastic(hx.implicit.AmIGO, problem, budget, 10 * rate))
    add("hyprax implicit, MAID", "nothing to set", methods.full_batch(problem, budget, MAID(), steps=2000))
    for rate in (0.1, 0.3):
        fixed, following = Optax(optax.adam(rate)), methods.FollowingAdam(optax.adam(rate))
        for name, search in (("fixed tolerance", fixed), ("following tolerance", following)):
            track = methods.full_batch(problem, budget, search, steps=2000)
            add(f"hyprax implicit, Adam, {name}", f"rate {rate:g}", track)
        add("jaxopt implicit, Adam", f"rate {rate:g}", methods.jaxopt_implicit(problem, budget, rate))
    for seed in range(3):
        add("Optuna TPE", f"seed {seed}", methods.optuna_tpe(problem, budget, seed))
    return found


def lowest(problem: Ijcnn1, values: dict) -> float:
    """The lowest F known: of all methods, and of a long run of certified full-batch descent from the best of them."""
    best = min((value, raw) for value, raw in values)
    objective = hx.ImplicitObjective(*problem.parts)
    start = {"penalty": hx.Positive(np.exp(np.array(best[1])))}
    tuned = hx.tune(
        objective, start, search=MAID(), steps=400, stop=Stopping(gradient=1e-10, patience=None), progress=False
    )
    return min(best[0], tuned.best_value)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 examples and a twentieth of the visits")
    quick = parser.parse_args().quick
    problem = Ijcnn1(2000) if quick else Ijcnn1()
    budget = 1e6 if quick else 2e7
    tracks = contestants(problem, budget)
    judge = Judge(problem)
    judged = {
        name: [(setting, track, np.array([judge(raw) for raw in track.raw])) for setting, track in group]
        for name, group in tracks.items()
    }
    every = [(float(v), tuple(r)) for g in judged.values() for _, t, f in g for v, r in zip(f, t.raw, strict=True)]
    least = lowest(problem, every)
    first = judge(np.asarray(problem.start["penalty"].raw))
    chosen = {name: min(group, key=lambda item: item[2][-1]) for name, group in judged.items()}
    write(problem, budget, judged, chosen, least, first)


def visits_to(track: methods.Track, gaps: np.ndarray, target: float) -> str:
    """The visits after which F stays below the target."""
    above = np.flatnonzero(gaps > target)
    place = 0 if not len(above) else above[-1] + 1
    return "not reached" if place == len(gaps) else f"{track.passes[place]:.2g}"


def write(problem: Ijcnn1, budget: float, judged: dict, chosen: dict, least: float, first: float) -> None:
    rows = []
    for name, group in judged.items():
        for setting, track, values in group:
            gaps = values - least
            share = gaps[-1] / (first - least)
            reached = " | ".join(visits_to(track, gaps, part * (first - least)) for part in (1e-2, 1e-4))
            mark = "**" if setting == chosen[name][0] else ""
            rows.append(
                f"| {mark}{name}{mark} | {setting} | {values[-1]:.7f} | {share:.1e} | {reached} | "
                f"{track.seconds[-1]:.1f} | {track.certificate} |"
            )
    text = f"""# 22 penalties on ijcnn1

    python -m experiments.ijcnn1

Measured on a {machine()}. {len(problem.train[1]):,} training and {len(problem.validation[1]):,} validation examples,
contiguous in time; every log-strength starts at {np.log(START):g}, where F = {first:.7f}; a visit is one gradient or
one Hessian product of one example's loss, and each method may make {budget:.0e} of them
({budget / len(problem.train[1]):.0f} passes over the training part). F is worked out afterwards at the exact optimum of
the strengths that a method had at that point; the lowest known is {least:.7f}. "Share" is what is left of the way from
the first to the lowest. Stochastic methods have batches of 64, the library's own rates of the inner loop, and Adam at
three rates each for the log-strengths; that of SOBA falls like 1/sqrt(1 + t/1000). The full-batch objective is solved
to 1.5e-8 (fixed tolerance), to a tenth of the last hypergradient's norm (following), or as MAID asks; jaxopt to its
default, 1e-3. Of each method the setting in bold ended lowest, and is drawn; MAID has none. Visits for certificates are
counted. Seconds are of one run each, on a machine with other work beside.

| method | setting | F at the end | share left | visits to 1e-2 left | to 1e-4 left | seconds | certificate |
| --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

![F minus the lowest known, against examples visited](ijcnn1.png)
"""
    (HERE / "RESULTS.md").write_text(text)
    print(text)
    draw(chosen, least)


def draw(chosen: dict, least: float) -> None:
    plt = pyplot()

    figure, ax = plt.subplots(figsize=(7.5, 4.6), constrained_layout=True)
    for name, (setting, track, values) in chosen.items():
        gaps = np.maximum(values - least, 1e-12)
        passes = np.maximum(track.passes, track.passes[1] / 2)
        step = "steps-post" if name == "Optuna TPE" else "default"
        ax.plot(passes, gaps, label=f"{name} ({setting})", color=COLOURS[name], drawstyle=step)
    ax.set(xscale="log", yscale="log", xlabel="examples visited", ylabel="F − lowest known")
    ax.set_ylim(bottom=1e-5)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    figure.savefig(HERE / "ijcnn1.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
