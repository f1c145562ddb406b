"""One activation for 45 digit pairs, chosen globally: `python -m experiments.activation [--quick]`.

Every pair of digits (scikit-learn's 8 x 8 images) is a binary task: 40 images train, the rest validate. A hidden layer
of random features with the activation `α ReLU + (1 - α) z` (α = 0: linear, 1: ReLU, 2: |z|) and a ridge
read-out: the dual of each task is exact, and one α for all is chosen at the global minimum of their mean. The same
for `α ReLU^2 + (1 - α) hard tanh`. Then two tasks are trained throughout (estimated).

Writes RESULTS.md and the pictures beside this file; with --quick into out/experiments.
"""

import argparse
import time
from functools import partial

import numpy as np
from experiments._common import machine, pyplot, results_folder

from hyprax import tasks

from .data import FAMILIES, PAIRS, PENALTY, TRAIN, WIDTH, digit_task, dual, layer

HERE = results_folder(__file__)
PENALTIES = (1e-3, 1.0)


def excess(duals: list[tasks.PiecewiseFunction], repeats: int) -> tuple[float, float]:
    """Mean and 95 % quantile of the excess loss on the other half of the pairs, over random halves."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repeats):
        order = rng.permutation(len(duals))
        half = len(duals) // 2
        chosen = tasks.PiecewiseFunction.mean([duals[i] for i in order[:half]]).minimise().hyper
        others = tasks.PiecewiseFunction.mean([duals[i] for i in order[half:]])
        found.append(float(others(chosen)) - others.minimise().value)
    return float(np.mean(found)), float(np.quantile(found, 0.95))


def save(best: tasks.GlobalOptimum, name: str, label: str) -> None:
    """Draw the duals, their mean and the optimum."""
    pyplot()
    figure = best.plot(xlabel="hyper", ylabel=label).get_figure(root=True)
    assert figure is not None
    figure.savefig(HERE / name, dpi=120)


def rows_of(family: str, n_pairs: int, repeats: int, processes: int) -> tuple[list[str], list[str], list[str]]:
    """Table rows of the optimum and of the excess risk, and the pictures."""
    start = time.perf_counter()
    found = tasks.map_tasks(partial(dual, family), range(n_pairs), processes=processes)
    seconds = time.perf_counter() - start
    table, halves, pictures = [], [], []
    a, b = FAMILIES[family][2]
    for loss, duals in {
        "squared": [d.squared for d in found],
        "0-1": [d.zero_one for d in found if d.zero_one is not None],
    }.items():
        best = tasks.erm(duals, epsilon=0.001, progress=False)
        own = float(np.mean([e.value for e in best.task_optima]))
        near = ", ".join(f"[{x:.4f}, {y:.4f}]" for x, y in best.epsilon_set[:3])
        more = " ..." if len(best.epsilon_set) > 3 else ""
        shapes = best.shapes()
        table.append(
            f"| {family} | {loss} | {best.hyper:.4f} | {best.value:.5f} | {best.certificate.kind}, "
            f"{float(best.certificate.bound):.1e} | {near}{more} | "
            f"{float(best.mean(a)):.5f} | {float(best.mean(1.0)):.5f} | {float(best.mean(b)):.5f} | {own:.5f} | "
            f"{np.mean([d.n_pieces for d in duals]):.0f} | {np.mean(shapes['local_maxima']):.1f} |"
        )
        mean, high = excess(duals, repeats)
        halves.append(f"| {family} | {loss} | {mean:.5f} | {high:.5f} |")
        name = f"{family.replace(', ', '_').replace(' ', '_')}_{loss}.png"
        pictures.append(f"![{family}, {loss} loss: duals of the pairs, their mean, the optimum]({name})")
        save(best, name, f"{loss} loss")
    print(f"{family}: {n_pairs} duals in {seconds:.1f} s")
    return table, halves, pictures


def trained(pairs: list[int], n_hypers: int, n_starts: int) -> tuple[list[str], str]:
    """Networks trained throughout at each α, from several starts, and followed in α."""
    import jax
    from experiments._trained_networks import activation_losses

    plt = pyplot()

    o1, o2, domain = FAMILIES["ReLU, identity"]
    figure, axes = plt.subplots(1, len(pairs), figsize=(5 * len(pairs), 3.6), squeeze=False, layout="constrained")
    rows = []
    with jax.enable_x64(True):
        for ax, pair in zip(axes[0], pairs, strict=True):
            losses = activation_losses(digit_task(pair), [8], o1, o2, penalty=PENALTY)
            starts = [losses.init(jax.random.key(s)) for s in range(n_starts)]
            start = time.perf_counter()
            found = tasks.trained_dual(losses.inner, losses.outer, starts, np.linspace(*domain, n_hypers))
            seconds = time.perf_counter() - start
            best = tasks.erm([found.dual], progress=False)
            a, b = PAIRS[pair]
            rows.append(
                f"| {a} or {b} | {best.hyper:.3f} | {best.value:.4f} | {best.certificate.kind} | "
                f"{int(np.sum(found.start < 0))} of {n_hypers} | "
                f"{int(np.sum(np.isfinite(found.slopes)))} of {n_hypers} | {seconds:.0f} |"
            )
            found.dual.plot(ax)
            ax.plot(found.hypers, found.validation, "o", markersize=4)
            ax.set(title=f"{a} or {b}, estimated", xlabel="hyper", ylabel="validation loss of the best optimum found")
    figure.savefig(HERE / "trained.png", dpi=120)
    return rows, "trained.png"


def together(family: str, n_pairs: int) -> str:
    """A row of the table of activation and penalty, chosen together."""
    o1, o2, (a, b) = FAMILIES[family]
    box = ((a, b), PENALTIES)
    start = time.process_time()
    duals = [tasks.BoxDual.activation(digit_task(pair), layer(), o1, o2, box) for pair in range(n_pairs)]
    best = tasks.erm_box(duals)
    seconds = time.process_time() - start
    return (
        f"| {family} | {best.hyper[0]:.4f} | {best.hyper[1]:.4f} | {best.value:.5f} | "
        f"{best.certificate.kind}, {float(best.certificate.bound):.1e} | {best.history[-1].boxes} | {seconds:.0f} |"
    )


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="10 pairs, 20 halves, one trained pair on 5 hyperparameters"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--together", action="store_true", help="print the table of activation and penalty alone")
    arguments = parser.parse_args()
    if arguments.together:
        print("\n".join(together(family, 10 if arguments.quick else len(PAIRS)) for family in FAMILIES))
        return
    n_pairs, repeats = (10, 20) if arguments.quick else (len(PAIRS), 200)
    table, halves, pictures = [], [], []
    for family in FAMILIES:
        parts = rows_of(family, n_pairs, repeats, arguments.processes)
        for all_rows, rows in zip((table, halves, pictures), parts, strict=True):
            all_rows += rows
    networks, picture = trained([1], 5, 2) if arguments.quick else trained([16, 43], 13, 4)
    text = f"""# One activation for {n_pairs} digit pairs

    python -m experiments.activation{" --quick" if arguments.quick else ""}

Measured on a {machine()}. scikit-learn's digits; each pair is a task with {TRAIN} training images, the others validate.
{WIDTH} random features with the activation `α o1 + (1 - α) o2` and a ridge read-out of penalty {PENALTY}.
Pairs share digits, so they are not independent tasks: no guarantee for new pairs is claimed.

## The global optimum over all pairs
The bound is the certificate's: the mean loss at α minus the least mean loss. "left", "at 1" and "right" are the
mean losses at the left end, at α = 1 (pure o1) and at the right end of the domain; "own" is the mean of the least
losses of the tasks by themselves. Pieces and local maxima are means over the tasks.

| o1, o2 | loss | α | mean loss | certificate | 0.001-optimal | left | at 1 | right | own | pieces | local maxima |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(table)}

{chr(10).join(pictures)}

## Activation and penalty together
Both on a box, the penalty in [{PENALTIES[0]:g}, {PENALTIES[1]:g}], squared loss; branch and bound to a relative gap of
1e-3. Seconds are of the processor, one thread. `python -m experiments.activation --together` prints this table alone.

| o1, o2 | α | penalty | mean loss | certificate | boxes | seconds |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(together(family, n_pairs) for family in FAMILIES)}

## Split-half excess loss
α is chosen on a random half of the pairs and judged on the others: its mean loss there minus the least mean loss
there; {repeats} random halves.

| o1, o2 | loss | mean | 95 % quantile |
| --- | --- | --- | --- |
{chr(10).join(halves)}

## Trained throughout (estimated)
A hidden layer of 8 units, all weights trained by L-BFGS with an l2 penalty, several starts at each α and a sweep in
both directions. "followed" counts the αs whose best optimum came from a neighbour, "slopes" those where the optimum
was smooth enough for the implicit function theorem.

| task | α | validation loss | kind | followed | slopes | seconds |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(networks)}

![validation loss of the best trained networks found]({picture})
"""
    (HERE / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
