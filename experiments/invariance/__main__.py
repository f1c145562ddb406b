"""Invariances found from the training data alone: `python -m experiments.invariance [--quick]`.

Small MNIST, plain, rotated fully and by half, and translated: the ranges of six affine generators learned by a lower
bound of the log evidence, against the truth; test accuracy and log-likelihood against no augmentation and the right
fixed one.

Writes RESULTS.md and ranges.png beside this file; with --quick into out/experiments.
"""

import argparse
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import machine, pyplot, results_folder
from jaxtyping import Array

import hyprax as hx
from hyprax import evidence as ev

from .data import NAMES, TRUTH, moved, network, true_ranges, weights

HERE = results_folder(__file__)
START, SIZE = 0.2, 1000
EPOCHS = 250
OPTIMISER = optax.adam(optax.cosine_decay_schedule(1e-2, EPOCHS * (SIZE // 128), 1e-2))
HYPER_OPTIMISER = optax.adam(0.05)
SAMPLES = 8
LEARNED, NONE, RIGHT = "learned", "none", "right one, fixed"


AVERAGED = ev.AffineInvariance(network, samples=SAMPLES)


class Fixed(eqx.Module):
    """The averaged network at ranges that are not learned."""

    ranges: Array

    def __call__(self, params: Any, hyper: Any, x: Array) -> Array:
        return AVERAGED(params, {"ranges": self.ranges}, x)


def model(method: str, ranges: np.ndarray) -> Any:
    """The network, averaged over maps or not."""
    if method == NONE:
        return network
    return AVERAGED if method == LEARNED else Fixed(jnp.asarray(ranges))


def measure(version: str, method: str, size: int, test: int, epochs: int, seed: int) -> dict[str, Any]:
    data, (x, y) = moved(version, "train", size), moved(version, "t10k", test)
    hyper = {"ranges": jnp.full(len(NAMES), START, jnp.float32)} if method == LEARNED else {}
    began = time.perf_counter()
    fitted = ev.fit(
        model(method, true_ranges(version)),
        weights(seed),
        data,
        hyper,
        estimator=ev.Chain(ev.OneRow(min(64, size))),
        epochs=epochs,
        burn_in=epochs // 10,
        every=2,
        hyper_steps=4,
        optimiser=OPTIMISER,
        hyper_optimiser=HYPER_OPTIMISER,
        likelihood_batch=min(256, size),
        draws=5,
        key=jax.random.key(seed),
    )
    if fitted.message:
        raise RuntimeError(fitted.message)
    seconds = time.perf_counter() - began
    logits = outputs(fitted.problem, x)
    log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
    found = hx.natural(fitted.hyper)
    return {
        "accuracy": float(np.mean(logits.argmax(1) == y)),
        "log_likelihood": float(np.mean(log_p[np.arange(test), y])),
        "log_evidence": fitted.log_evidence / size,
        "ranges": np.abs(np.asarray(found["ranges"])) if method == LEARNED else true_ranges(version),
        "seconds": seconds,
        "epoch": fitted.epoch,
    }


def outputs(problem: ev.Problem, x: np.ndarray) -> np.ndarray:
    """Logits at the weights kept, 250 images at a time."""
    some = jax.jit(jax.vmap(lambda one: problem.apply(problem.params, problem.hyper, one)))
    return np.concatenate([np.asarray(some(jnp.asarray(x[i : i + 250]))) for i in range(0, len(x), 250)])


def picture(found: dict[str, np.ndarray]) -> None:
    """The learned density of each generator, uniform on ± its range, beside the true one."""
    plt = pyplot()

    figure, axes = plt.subplots(len(found), 1, figsize=(6.4, 1.45 * len(found)), sharex=True, layout="constrained")
    for axis, (version, ranges) in zip(np.atleast_1d(axes), found.items(), strict=True):
        places = np.arange(len(NAMES))
        axis.bar(places, 2 * ranges, 0.55, bottom=-ranges, color="C0", alpha=0.75, label="learned")
        truth = true_ranges(version)
        axis.hlines(
            np.r_[truth, -truth], np.r_[places, places] - 0.38, np.r_[places, places] + 0.38, "k", label="truth"
        )
        axis.set(title=version, ylim=(-3.6, 3.6), xticks=places, xticklabels=[n.replace("_", " ") for n in NAMES])
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=8)
    np.atleast_1d(axes)[0].legend(fontsize=8, loc="upper right", ncols=2)
    figure.supylabel("range (half widths, radians, log factors)", fontsize=9)
    figure.savefig(HERE / "ranges.png", dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 images, two versions, a few epochs")
    quick = parser.parse_args().quick
    size, test, epochs = (200, 250, 20) if quick else (SIZE, 2000, EPOCHS)
    versions = ["plain", "fully rotated"] if quick else list(TRUTH)
    lines, learned, table = [], {}, []
    for version in versions:
        for method in (NONE, LEARNED, RIGHT) if TRUTH[version] else (NONE, LEARNED):
            found = measure(version, method, size, test, epochs, seed=0)
            lines.append(
                f"| {version} | {method} | {100 * found['accuracy']:.1f} | {found['log_likelihood']:.3f} | "
                f"{found['log_evidence']:.3f} | {found['seconds']:.0f} |"
            )
            print(lines[-1], found["ranges"].round(2), found["epoch"], flush=True)
            if method == LEARNED:
                learned[version] = found["ranges"]
                pairs = zip(found["ranges"], true_ranges(version), strict=True)
                table.append(f"| {version} | " + " | ".join(f"{a:.2f} ({b:.2f})" for a, b in pairs) + " |")
    picture(learned)
    text = RESULTS.format(
        options=" --quick" if quick else "",
        machine=machine(),
        size=size,
        test=test,
        epochs=epochs,
        samples=SAMPLES,
        start=START,
        names=" | ".join(name.replace("_", " ") for name in NAMES),
        rule=" | ".join("---" for _ in NAMES),
        lines="\n".join(lines),
        table="\n".join(table),
    )
    (HERE / "RESULTS.md").write_text(text)


RESULTS = """# Invariances from the training data alone

    python -m experiments.invariance{options}

Measured on a {machine}, one thread, the machine shared with other work. Reduced: the first {size} training and
{test} test images of MNIST at 14 x 14, a network of one hidden layer (196-64-10, tanh), {epochs} epochs,
{samples} samples of the maps, one seed; the chain bound of 64 rows. Each image, of the test set too, is moved
once at random by the maps named on the left. *learned*: all six ranges start at {start}, nothing is held out.
*right one, fixed*: the network averaged over the very maps by which the data were moved. Accuracy in per cent
and log-likelihood on the test images, at the weights kept. Log evidence: the bound a datum, in nats. Seconds
with compilation, which methods of a kind share.

| data | invariance | accuracy | log-likelihood | log evidence | seconds |
| --- | --- | --- | --- | --- | --- |
{lines}

Learned ranges (truth in brackets): half widths for translations, radians, logarithms of factors.

| data | {names} |
| --- | {rule} |
{table}

![Learned ranges of each generator, and the true ones](ranges.png)
"""

if __name__ == "__main__":
    main()
