"""Learned regularisers for denoising: `python -m experiments.denoising [--quick]`.

The weight and the smoothing of a smoothed total variation, and the filters, weights and smoothing of a field of
experts, are learned on patches of half of BSD68 by the hypergradients of an implicit objective, whose certificates are
proved from the regularisers' own constants; denoising is tested on crops of the other half, and of Set12. Then, at one
noise level, gradient descent at fixed tolerances is compared with searches that choose their accuracies.

Writes RESULTS.md and the pictures beside this file; with --quick into out/experiments.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import machine, pyplot, results_folder

import hyprax as hx
from hyprax.search import HOAG, MAID, FixedTolerance, Optax, Stopping, TuneResult

from .data import Patches, psnr, testing, training
from .regularisers import EXPERTS, TV, Regulariser, filters

jax.config.update("jax_enable_x64", True)

HERE = results_folder(__file__)
SIGMAS = (15.0, 25.0, 50.0)
COMPARED = 25.0
FIXED = (1e0, 1e-1, 1e-2, 1e-3)
ADJOINT_PART = 1e-3
"""A fixed tolerance of the adjoint system, in parts of that of the inner problem: ∇f is that much smaller than ∇g."""


def learn(regulariser: Regulariser, patches: Patches, steps: int) -> TuneResult:
    """Adam with hypergradients at the objective's own tolerances, each certified."""
    objective = regulariser.objective(patches.clean, patches.noisy)
    search = Optax(optax.adam(optax.cosine_decay_schedule(0.05, steps, alpha=0.02)))
    stop = Stopping(gradient=0.0, patience=None)
    return hx.tune(objective, regulariser.start(), search=search, steps=steps, stop=stop, progress=False)


def grid(regulariser: Regulariser, patches: Patches) -> float:
    """The lowest training loss of TV on a grid of 9 x 5 weights and smoothings."""
    objective = regulariser.objective(patches.clean, patches.noisy)
    state, lowest = objective.init(regulariser.start()), np.inf
    accuracy = hx.Accuracy(jnp.asarray(1e-4), jnp.asarray(1e-4))
    for weight in np.geomspace(0.01, 0.3, 9):
        for smoothing in (0.009, 0.015, 0.03, 0.05, 0.09):
            hyper = {"weight": hx.Positive(weight), "smoothing": hx.LogInterval(smoothing, 0.008, 0.1)}
            value, state = objective.value(hyper, state, accuracy)
            lowest = min(lowest, float(value.value))
    return lowest


def certificates(regulariser: Regulariser, patches: Patches, hyper: dict) -> list[str]:
    """Rows: at the learned hyperparameters, the true error and the bound at several tolerances."""
    objective = regulariser.objective(patches.clean, patches.noisy)

    def flat(tolerance: float) -> tuple[np.ndarray, hx.Hypergradient]:
        accuracy = hx.Accuracy(jnp.asarray(tolerance), jnp.asarray(ADJOINT_PART * tolerance))
        answer, _ = objective.value_and_grad(hyper, objective.init(hyper), accuracy)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(answer.grad)]), answer

    truth, _ = flat(1e-10)
    # Relative to the hypergradient of where learning began: at the optimum it vanishes.
    size = float(hx.hypergradient(objective, regulariser.start())[0].norm)
    rows = []
    for tolerance in (1e-1, 1e-3, 1e-5, 1e-7):
        found, answer = flat(tolerance)
        error = float(np.linalg.norm(found - truth))
        assert answer.certificate.kind == "certified"
        assert error <= float(answer.certificate.bound)
        products, bound = int(answer.stats.products), float(answer.certificate.bound)
        rows.append(f"| {regulariser.name} | {tolerance:.0e} | {products} | {error / size:.1e} | {bound / size:.1e} |")
    return rows


def descend(regulariser: Regulariser, patches: Patches, search, budget: int) -> tuple[list[float], list[dict], float]:
    """Products spent and hyperparameters along a run, and its seconds."""
    objective = regulariser.objective(patches.clean, patches.noisy)
    spent, hypers, total = [], [], 0.0

    def look(step) -> bool:
        nonlocal total
        spent.append(total)
        hypers.append(step.hyper)
        total += step.stats.search_products
        return total > budget

    began = time.perf_counter()
    tuned = hx.tune(
        objective,
        regulariser.start(),
        search=search,
        steps=100_000,
        stop=Stopping(gradient=0.0, patience=None),
        callbacks=[look],
        progress=False,
    )
    return [*spent, total], [*hypers, tuned.state.hyper], time.perf_counter() - began


def compare(regulariser: Regulariser, patches: Patches, budget: int) -> tuple[list[str], dict[str, tuple]]:
    """Rows, and for every search the products spent and the exact training loss along its run."""
    searches = {f"fixed {t:g}": FixedTolerance(t, ADJOINT_PART * t) for t in FIXED}
    searches |= {"HOAG": HOAG(), "MAID": MAID()}
    objective = regulariser.objective(patches.clean, patches.noisy)
    accuracy = hx.Accuracy(jnp.asarray(1e-6), jnp.asarray(1e-6))
    rows, curves = [], {}
    for name, search in searches.items():
        spent, hypers, seconds = descend(regulariser, patches, search, budget)
        kept = sorted({*np.unique(np.geomspace(1, len(hypers), 60).astype(int) - 1), len(hypers) - 1})
        state, losses = objective.init(hypers[0]), []
        for i in kept:
            value, state = objective.value(hypers[i], state, accuracy)
            losses.append(float(value.value))
        curves[name] = (np.array(spent)[kept], np.array(losses))
        print(f"{regulariser.name}, {name}: {losses[-1]:.6e}, {len(hypers) - 1} steps, {seconds:.0f} s", flush=True)
        rows.append((name, losses[-1], len(hypers) - 1, spent[-1], seconds))
    lines = [
        f"| {regulariser.name} | {name} | {1e3 * loss:.5f} | {steps} | {products:.0f} | {seconds:.0f} |"
        for name, loss, steps, products, seconds in rows
    ]
    return lines, curves


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few small patches, few steps, 4 test images")
    quick = parser.parse_args().quick
    count, side, tests, steps, budget = (4, 16, 4, (10, 10), 300) if quick else (34, 32, 34, (100, 150), 3000)
    table, bounds, examples, learned = [], [], {}, {}
    for sigma in SIGMAS:
        patches = training(count, side, sigma)
        sets = [testing(name, tests, 64, sigma) for name in ("bsd68", "set12")]
        row = [f"{sigma:g}", " / ".join(f"{psnr(test.noisy, test.clean):.2f}" for test in sets)]
        for regulariser, number in zip((TV, EXPERTS), steps, strict=True):
            began = time.perf_counter()
            tuned = learn(regulariser, patches, number)
            kinds = {entry["certificate_kind"] for entry in tuned.history}
            assert kinds == {"certified"}, kinds
            worst = float(np.max(tuned.column("certificate_bound") / tuned.column("gradient_norm")))
            images = [regulariser.denoised(test.noisy, tuned.best) for test in sets]
            scores = [psnr(image, test.clean) for image, test in zip(images, sets, strict=True)]
            row += [" / ".join(f"{score:.2f}" for score in scores), f"{1e3 * tuned.best_value:.4f}", f"{worst:.0e}"]
            learned[regulariser.name, sigma] = tuned
            examples[regulariser.name, sigma] = images[0]
            print(f"sigma {sigma:g}, {regulariser.name}: {row[-3:]}, {time.perf_counter() - began:.0f} s", flush=True)
            if sigma == COMPARED:
                bounds += certificates(regulariser, patches, tuned.best)
        row.append(f"{1e3 * grid(TV, patches):.4f}")
        table.append("| " + " | ".join(row) + " |")
    patches = training(count, side, COMPARED)
    rows, curves = [], {}
    for regulariser in (TV, EXPERTS):
        lines, curves[regulariser.name] = compare(regulariser, patches, budget)
        rows += lines
    pictures(testing("bsd68", tests, 64, COMPARED), examples, learned[EXPERTS.name, COMPARED].best)
    draw(curves)
    write(count, side, tests, steps, budget, table, bounds, rows)


def write(count, side, tests, steps, budget, table, bounds, rows) -> None:
    """RESULTS.md."""
    text = f"""# Learned regularisers for denoising

    python -m experiments.denoising

Measured on a {machine()}. Training: a random patch of {side} x {side} pixels of each of {count} images of
BSD68. Test: the central 64 x 64 pixels of {tests} others, and of the images of Set12. Grey levels in [0, 1]; noise in
levels of 255. The smoothed total variation has 2 hyperparameters, the field of experts (8 filters of 3 x 3 and mean 0)
{8 * 8 + 8 + 1}; the smoothing of either stays between 0.008 and 0.1. Learned by {steps[0]} and {steps[1]} steps of Adam
from the same start at every noise level. Every hypergradient is `certified` given the regularisers' constants (derived
in `regularisers.py`), in exact arithmetic; "bound" is the largest one of the run relative to the hypergradient.

PSNR in dB, the mean over the test images of BSD68 / of Set12; loss is 1000 times half the mean squared error on the
training patches, that of the grid the lowest TV reaches on 9 x 5 weights and smoothings.

| noise | noisy | TV | loss | bound | experts | loss | bound | loss of the TV grid |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(table)}

The field of experts, separable responses of 3 x 3 filters, does not contain TV, whose two differences are coupled at
every pixel.

![Two test crops: noisy, TV, field of experts, clean](crops.png)
![The filters learned at noise 25, each with its weight](filters.png)

## Bounds and errors

At the hyperparameters learned for noise {COMPARED:g}: tolerance of the inner gradient norm (that of the adjoint
residual is {ADJOINT_PART:g} of it), products, true error (against a tolerance of 1e-10) and bound, both relative to the
norm of the hypergradient where learning began.

| regulariser | tolerance | products | error | bound |
| --- | --- | --- | --- | --- |
{chr(10).join(bounds)}

## Fixed and adaptive accuracy

Gradient descent with a line search at noise {COMPARED:g}, from the same start, {budget} products (gradients of the
inner problem and Hessian products) each: with fixed tolerances, with HOAG's schedule, and with MAID, which is given
none. The loss is worked out afterwards at the exact optimum.

| regulariser | search | 1000 x loss at the end | steps | products | seconds |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}

![Training loss against products](accuracy.png)
"""
    (HERE / "RESULTS.md").write_text(text)
    print(text)


def _axes(rows: int, columns: int, size: tuple[float, float]):
    return pyplot().subplots(rows, columns, figsize=size, constrained_layout=True, squeeze=False)


def pictures(test: Patches, examples: dict, hyper: dict) -> None:
    """Two crops in four states, and the filters."""
    figure, axes = _axes(2, 4, (7.2, 3.9))
    for row, k in zip(axes, (1, 2), strict=True):
        shown = {
            "noisy": test.noisy,
            TV.name: examples[TV.name, COMPARED],
            EXPERTS.name: examples[EXPERTS.name, COMPARED],
            "clean": test.clean,
        }
        for ax, (name, images) in zip(row, shown.items(), strict=True):
            ax.imshow(images[k], cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
            error = "" if name == "clean" else f" {psnr(images[k : k + 1], test.clean[k : k + 1]):.1f} dB"
            ax.set_title(name + error, fontsize=8)
    figure.savefig(HERE / "crops.png", dpi=90)
    natural = hx.natural(hyper)
    figure, axes = _axes(1, 8, (7.2, 1.3))
    for ax, f, weight in zip(axes[0], np.asarray(filters(natural)), np.asarray(natural["weights"]), strict=True):
        ax.imshow(f.reshape(3, 3), cmap="RdBu", vmin=-np.abs(f).max(), vmax=np.abs(f).max())
        ax.set_axis_off()
        ax.set_title(f"{weight * np.linalg.norm(f):.3f}", fontsize=8)
    figure.savefig(HERE / "filters.png", dpi=90)


def draw(curves: dict) -> None:
    """Training loss above the lowest reached by any search, against products."""
    figure, axes = _axes(1, len(curves), (9, 3.8))
    for ax, (name, group) in zip(axes[0], curves.items(), strict=True):
        lowest = min(losses.min() for _, losses in group.values())
        for label, (spent, losses) in group.items():
            style = {"lw": 2.2} if label == "MAID" else {"lw": 1.2}
            ax.plot(np.maximum(spent, 10), losses - lowest + 1e-9, label=label, **style)
        ax.set(title=name, xlabel="products", xscale="log", yscale="log", ylabel="loss − lowest reached + 1e-9")
        ax.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=8)
    figure.savefig(HERE / "accuracy.png", dpi=90)


if __name__ == "__main__":
    main()
