"""A penalty for every weight of softmax regression on MNIST: `python -m experiments.pixel_penalties [--quick]`.

As in Maclaurin, Duvenaud and Adams (2015, arXiv 1502.03492, section 3.2): weights w (784 x 10) and biases trained for
T = 50 steps of momentum (α = 1, γ = 0.9, batches of 200) on the mean loss plus Σ λ_j w_j², with 7,850 penalties λ_j
moved by exact hypergradients of the loss on 10,000 validation images, each from a new seed. Beside it: no penalty, one
penalty for all moved in the same way, and both of these trained on the validation images too, since learned penalties
have seen them.

Writes RESULTS.md and the picture beside this file; with --quick into out/experiments.
"""

import argparse
import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import machine, pyplot, results_folder
from experiments._mnist import Examples, Params, drawn, error, examples, nll, show
from jax import Array

import hyprax as hx
from hyprax.unroll import ReversalCertificate

HERE = results_folder(__file__)
SIZES, BATCH, STEPS, RATE, MOMENTUM = (784, 10), 200, 50, 1.0, 0.9
START, LOW, HIGH = 1e-3, 1e-6, 1.0


def init(hyper: Any, key: Array) -> Params:
    return drawn(SIZES, [{"w": np.float32(0.01), "b": np.float32(0)}], key)


def loss(params: Params, hyper: dict[str, Any], data: Examples) -> Array:
    """The mean loss plus Σ λ_j w_j²; each λ an array, or one scalar for all."""
    given: Any = hyper["penalty"]
    penalties = given if isinstance(given, dict) else {"w": given, "b": given}
    return nll(params, data) + sum(jnp.sum(penalties[name] * params[0][name] ** 2) for name in "wb")


def validation_loss(params: Params, hyper: Any, data: Examples) -> Array:
    return nll(params, data)


def optimizer(hyper: Any) -> hx.unroll.MomentumSGD:
    return hx.unroll.MomentumSGD(RATE, MOMENTUM)


def objective(train: Examples, validation: Examples, mode: Any) -> hx.UnrolledObjective:
    batches = hx.Minibatches(train, BATCH, key=jax.random.key(0))
    training = hx.Training(loss, init, optimizer, batches, STEPS)
    return hx.UnrolledObjective(training, validation_loss, validation, key=jax.random.key(1), mode=mode, resample=True)


def one_for_all() -> dict[str, Any]:
    return {"penalty": hx.LogInterval(np.float32(START), LOW, HIGH)}


def one_for_each(start: float) -> dict[str, Any]:
    shapes = {"w": (784, 10), "b": (10,)}
    return {
        "penalty": {
            name: hx.LogInterval(np.full(shape, start, np.float32), LOW, HIGH) for name, shape in shapes.items()
        }
    }


@dataclasses.dataclass(frozen=True)
class Fit:
    """Penalties, runs with fresh seeds under them (arrays over the seeds), and the weights of one of them."""

    hyper: Any
    losses: np.ndarray
    errors: np.ndarray
    params: Params
    seconds: float = 0.0
    exact: int = 0


def judged(objective: hx.UnrolledObjective, hyper: Any, test: Examples, seeds: int) -> Fit:
    """Trainings with seeds that no search has seen, on the test images."""
    state, params, rows = objective.init(hyper), [], []
    for seed in range(seeds):
        fresh = eqx.tree_at(lambda s: s.evaluations, state, jnp.asarray(1_000_000 + seed, jnp.int32))
        params = objective.report(hyper, fresh).params
        rows.append([float(nll(params, test)), float(error(params, test))])
    losses, errors = np.asarray(rows).T
    return Fit(hyper, losses, errors, params)


def learned(exact: hx.UnrolledObjective, plain: hx.UnrolledObjective, start: Any, test: Examples, quick: bool) -> Fit:
    """Adam at 0.1 in unconstrained coordinates, by exact hypergradients."""
    exacts = []
    began = time.perf_counter()
    tuned = hx.tune(
        exact,
        start,
        search=hx.search.Optax(optax.adam(0.1)),
        steps=3 if quick else 60,
        stop=hx.search.Stopping(gradient=0.0, patience=None),
        callbacks=[lambda step: exacts.append(isinstance(step.hypergradient.certificate, ReversalCertificate))],
        progress=False,
    )
    seconds = time.perf_counter() - began
    fit = judged(plain, tuned.state.hyper, test, 2 if quick else 10)
    return dataclasses.replace(fit, seconds=seconds, exact=sum(exacts))


def compared(count: int, quick: bool) -> tuple[list[str], Fit]:
    """The table for `count` training images, and the fit with a penalty for each weight."""
    train, test = examples("train", 0, count), examples("t10k", 0, 10_000)
    validation = examples("train", 50_000, 10_000)
    both = (jnp.concatenate([train[0], validation[0]]), jnp.concatenate([train[1], validation[1]]))
    exact, plain, wider = (
        objective(data, validation, mode)
        for data, mode in (
            (train, hx.unroll.Reversible()),
            (train, hx.unroll.Checkpointed()),
            (both, hx.unroll.Checkpointed()),
        )
    )
    none, seeds = {"penalty": jnp.zeros(())}, 2 if quick else 10
    single = learned(exact, plain, one_for_all(), test, quick)
    shared = float(hx.natural(single.hyper)["penalty"])
    each = learned(exact, plain, one_for_each(min(shared, 0.5 * HIGH)), test, quick)
    fits = {
        "no penalty": judged(plain, none, test, seeds),
        f"one penalty, learned: {shared:.2g}": single,
        "7,850 penalties, learned": each,
        "no penalty, trained on the validation images too": judged(wider, none, test, seeds),
        f"penalty {shared:.2g}, trained on the validation images too": judged(wider, single.hyper, test, seeds),
    }
    lines = [
        f"## {count:,} training images",
        "",
        "| | test loss | test error | hypergradients that were exact | seconds of the search |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, fit in fits.items():
        took = f"{fit.exact} | {fit.seconds:.0f}" if fit.seconds else "|"
        lines.append(
            f"| {name} | {fit.losses.mean():.4f} ± {fit.losses.std(ddof=1):.4f} "
            f"| {100 * fit.errors.mean():.2f} ± {100 * fit.errors.std(ddof=1):.2f} % | {took} |"
        )
    print("\n".join(lines), flush=True)
    return [*lines, ""], each


def picture(fits: dict[int, Fit]) -> None:
    """Penalties of every class, and weights trained with them."""
    plt = pyplot()

    figure, axes = plt.subplots(2 * len(fits), 10, figsize=(13, 3.0 * len(fits)), layout="constrained")
    for i, (count, fit) in enumerate(fits.items()):
        penalties = np.log10(np.asarray(hx.natural(fit.hyper)["penalty"]["w"]))
        weights = np.asarray(fit.params[0]["w"])
        reach = np.quantile(np.abs(weights), 0.995)
        rows = (
            ("log10 penalty", penalties, "viridis", *np.quantile(penalties, (0.005, 0.995))),
            ("weight", weights, "RdBu", -reach, reach),
        )
        for j, (name, values, colours, low, high) in enumerate(rows):
            shown = [
                show(axis, values[:, digit], "" if j else str(digit), cmap=colours, vmin=low, vmax=high)
                for digit, axis in enumerate(axes[2 * i + j])
            ]
            figure.colorbar(shown[0], ax=axes[2 * i + j], shrink=0.8, label=name)
            axes[2 * i + j, 0].set_ylabel(f"{count:,} images", fontsize=8)
    figure.savefig(HERE / "penalties.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few hypergradients; writes into out/experiments")
    quick = parser.parse_args().quick
    fits, tables = {}, []
    for count in (1000, 10_000):
        lines, fits[count] = compared(count, quick)
        tables += lines
    picture(fits)
    text = "\n".join(
        [
            "# A penalty for every weight",
            "",
            "    python -m experiments.pixel_penalties" + (" --quick" if quick else ""),
            "",
            f"Measured on a {machine()}, one thread, beside other programs.",
            f"Softmax regression on MNIST, T = {STEPS} steps of momentum 0.9 at the rate 1, batches of {BATCH};",
            f"penalties moved by {3 if quick else 60} steps of Adam at 0.1 on the loss of 10,000 validation images",
            "(one penalty for all; then, from that one, one for each of 7,850 weights), by exact reversal, each step",
            "from a new seed. Means and standard deviations over fresh seeds, on the 10,000 test images. The paper",
            "shows the picture and gives no test error.",
            "",
            *tables,
            "Penalties of every class, and weights trained with them:",
            "",
            "![learned penalties and weights](penalties.png)",
            "",
        ]
    )
    (HERE / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
