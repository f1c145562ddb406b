"""Training images made by gradient: `python -m experiments.learned_images [--quick]`.

Data distillation as in Maclaurin, Duvenaud and Adams (2015, arXiv 1502.03492, section 3.3): one or ten images of every
class, all their pixels hyperparameters (7,840 or 78,400), and the learning rate of every step. Softmax regression is
trained on them alone for T = 20 steps of momentum, from a new draw of the weights each time; exact hypergradients of
its loss on the 60,000 training images of MNIST, 2,000 of them a draw, move the pixels. Judged on the 10,000 test
images: fresh draws, and networks of other architectures that the images were never shown, beside the same number of
real images.

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
STEPS, RATE, MOMENTUM, OUTER_BATCH = 20, 0.5, 0.9, 2000
NETWORKS = {
    "784-10": (784, 10),
    "784-50-10": (784, 50, 10),
    "784-200-10": (784, 200, 10),
    "784-50-50-10": (784, 50, 50, 10),
}
RATES, TRAINED = (0.1, 0.3, 1.0, 3.0), 200


def start(sizes: tuple[int, ...], key: Array) -> Params:
    """Weights of standard deviation 1/√inputs; a tenth of that for regression, whose optimum does not need them."""
    spread = 0.1 if len(sizes) == 2 else 1.0
    scales = [{"w": np.float32(spread * rows**-0.5), "b": np.float32(0)} for rows in sizes[:-1]]
    return drawn(sizes, scales, key)


def init(hyper: Any, key: Array) -> Params:
    return start(NETWORKS["784-10"], key)


def loss(params: Params, hyper: dict[str, Array], labels: Array) -> Array:
    """The loss of the images that are learned: the data of this training run are hyperparameters."""
    return nll(params, (hyper["images"], labels))


def outer_loss(params: Params, hyper: Any, data: Examples) -> Array:
    return nll(params, data)


def optimizer(hyper: dict[str, Array]) -> hx.unroll.MomentumSGD:
    return hx.unroll.MomentumSGD(hx.unroll.Schedule(hyper["rate"]), MOMENTUM)


@dataclasses.dataclass(frozen=True)
class Learned:
    """Images (n, 784) and labels, the learned rates, the losses on the way, and what it took."""

    images: Array
    labels: Array
    rates: Array
    values: np.ndarray
    seconds: float
    exact: int


def learn(per_class: int, iterations: int) -> Learned:
    """Adam at 0.02 on pixels and on the logarithms of rates, from noise around grey."""
    labels = jnp.tile(jnp.arange(10), per_class)
    noise = 0.1 * np.random.default_rng(per_class).standard_normal((10 * per_class, 784))
    hyper = {
        "images": jnp.asarray(0.2 + noise, jnp.float32),
        "rate": hx.Positive(np.full(STEPS, RATE, np.float32)),
    }
    training = hx.Training(loss, init, optimizer, hx.FullBatch(labels), STEPS)
    drawn_data = hx.Minibatches(examples("train", 0, 60_000), OUTER_BATCH, key=jax.random.key(2))
    objective = hx.UnrolledObjective(
        training, outer_loss, drawn_data(0), key=jax.random.key(per_class), mode=hx.unroll.Reversible(), resample=True
    )
    rule = optax.adam(0.02)
    state, moments, values, exact = objective.init(hyper), rule.init(hyper), [], 0
    began = time.perf_counter()
    for i in range(iterations):
        objective = eqx.tree_at(lambda o: o.outer.data, objective, drawn_data(i))
        answer, state = objective.value_and_grad(hyper, state)
        updates, moments = rule.update(answer.grad, moments)
        hyper = optax.apply_updates(hyper, updates)
        values.append(float(answer.value))
        exact += isinstance(answer.certificate, ReversalCertificate)
    plain = hx.natural(hyper)
    seconds = time.perf_counter() - began
    return Learned(plain["images"], labels, plain["rate"], np.asarray(values), seconds, exact)


@eqx.filter_jit
def trained(sizes: tuple[int, ...], data: Examples, rates: Array, key: Array) -> Params:
    """A network trained on `data` alone, momentum 0.9 at the given rates."""

    def step(carry: tuple[Params, Params], rate: Array) -> tuple[tuple[Params, Params], None]:
        params, velocity = carry
        slope = jax.grad(nll)(params, data)
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v - (1 - MOMENTUM) * g, velocity, slope)
        return (jax.tree.map(lambda w, v: w + rate * v, params, velocity), velocity), None

    params = start(sizes, key)
    return jax.lax.scan(step, (params, jax.tree.map(jnp.zeros_like, params)), rates)[0][0]


def accuracy(sizes: tuple[int, ...], data: Examples, rates: Array, test: Examples, seeds: int) -> np.ndarray:
    """Test accuracy in per cent for draws of the weights that no search has seen."""
    keys = [jax.random.fold_in(jax.random.key(99), seed) for seed in range(seeds)]
    return np.asarray([100 * (1 - float(error(trained(sizes, data, rates, key), test))) for key in keys])


def best_constant(sizes: tuple[int, ...], data: Examples, test: Examples, seeds: int) -> np.ndarray:
    """As `accuracy`, at the constant rate that does best on other training images, for longer."""
    held = examples("train", 50_000, 2000)
    schedules = [jnp.full(TRAINED, rate, jnp.float32) for rate in RATES]
    scores = [np.mean(accuracy(sizes, data, rates, held, 2)) for rates in schedules]
    return accuracy(sizes, data, schedules[int(np.argmax(scores))], test, seeds)


def cell(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def real(per_class: int, seed: int) -> Examples:
    """The same number of training images of every class, drawn at random."""
    images, labels = examples("train", 0, 60_000)
    rng, known = np.random.default_rng(seed), np.asarray(labels)
    chosen = np.concatenate([rng.choice(np.flatnonzero(known == c), per_class, replace=False) for c in range(10)])
    return images[chosen], labels[chosen]


def section(per_class: int, found: Learned, test: Examples, seeds: int) -> list[str]:
    """The table of one number of images."""
    data = (found.images, found.labels)
    as_learned = accuracy(NETWORKS["784-10"], data, found.rates, test, seeds)
    lines = [
        f"## {10 * per_class} images",
        f"{found.exact} of {len(found.values)} hypergradients exact, {found.seconds:.0f} s; loss {found.values[0]:.3f}",
        f"at the start, {found.values[-10:].mean():.3f} over the last ten. Softmax regression, {STEPS} steps at the",
        f"learned rates: {cell(as_learned)} % of the test images, {seeds} fresh draws of the weights. With {TRAINED}",
        f"steps at the best constant rate of {', '.join(f'{rate:g}' for rate in RATES)} (chosen on 2,000 training",
        "images):",
        "",
        "| network | learned images, test accuracy (%) | real images, test accuracy (%) |",
        "| --- | --- | --- |",
    ]
    for name, sizes in NETWORKS.items():
        scores = [best_constant(sizes, real(per_class, seed), test, 1)[0] for seed in range(max(seeds // 2, 2))]
        lines.append(f"| {name} | {cell(best_constant(sizes, data, test, seeds))} | {cell(np.asarray(scores))} |")
    print("\n".join(lines), flush=True)
    return [*lines, ""]


def picture(results: list[Learned]) -> None:
    """Ten images of each search, and the losses."""
    plt = pyplot()

    figure, axes = plt.subplots(len(results), 10, figsize=(12, 1.5 * len(results)), layout="constrained")
    for row, found in zip(axes, results, strict=True):
        shown = np.asarray(found.images[:10])
        reach = np.quantile(np.abs(shown), 0.995)
        for digit, axis in enumerate(row):
            show(axis, shown[digit], str(int(found.labels[digit])), cmap="RdBu_r", vmin=-reach, vmax=reach)
        row[0].set_ylabel(f"{len(found.labels)} images", fontsize=9)
    figure.savefig(HERE / "images.png", dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few hypergradients; writes into out/experiments")
    quick = parser.parse_args().quick
    test, seeds = examples("t10k", 0, 10_000), 2 if quick else 10
    results, tables = [], []
    for per_class in (1, 10):
        results.append(learn(per_class, 10 if quick else 300))
        tables += section(per_class, results[-1], test, seeds)
    picture(results)
    text = "\n".join(
        [
            "# Learned training images",
            "",
            "    python -m experiments.learned_images" + (" --quick" if quick else ""),
            "",
            f"Measured on a {machine()}, one thread, beside other programs. Pixels",
            f"and the rates of {STEPS} steps moved by Adam at 0.02, every hypergradient by exact reversal from a new",
            f"draw of the weights, on {OUTER_BATCH:,} of the 60,000 training images. Real images: the same number a",
            "class, at random, a new draw each time. The paper shows ten learned images and gives no accuracy.",
            "",
            *tables,
            "The images (red above 0, blue below); of the hundred, the first ten:",
            "",
            "![learned images of the ten digits](images.png)",
            "",
        ]
    )
    (HERE / "RESULTS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
