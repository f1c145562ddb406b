"""A certificate for a million weights and twenty thousand hyperparameters: `python -m benchmarks.scale [--device gpu]`.

Softmax regression on sparse random data: 20,000 examples of 50 entries among 100,000 features, 10 classes (1e6
weights), features in 20,000 groups with a penalty each. Prints seconds and memory of making the family (its constants:
one pass over the data), of the first call (with compilation) and of the next; Hessian products; the certificate.
"""

import argparse
import time

import jax
import numpy as np
import scipy.sparse

jax.config.update("jax_enable_x64", True)

import hyprax as hx
from benchmarks import device
from hyprax.implicit._answers import STATUS

EXAMPLES, FEATURES, ENTRIES, CLASSES, GROUPS = 20_000, 100_000, 50, 10, 20_000


def data(examples: int, rng: np.random.Generator) -> scipy.sparse.csr_array:
    """Rows of unit norm; some features are far more frequent than others, as words are."""
    columns = (FEATURES * rng.random((examples, ENTRIES)) ** 3).astype(np.int64)
    rows = np.repeat(np.arange(examples), ENTRIES)
    values = rng.normal(size=examples * ENTRIES) / np.sqrt(ENTRIES)
    matrix = scipy.sparse.coo_array((values, (rows, columns.ravel())), shape=(examples, FEATURES))
    return scipy.sparse.csr_array(matrix)


def memory() -> str:
    """The most that the process, or the card, has held so far."""
    return f"{device.peak() / 2**30:.2f} GiB"


def select(hyper):
    """The strengths, one a group."""
    return hyper["penalty"]


def main() -> None:
    """Time and memory of one certified hypergradient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device.add_argument(parser)
    device.use(parser.parse_args().device)
    rng = np.random.default_rng(0)
    x, xv = data(EXAMPLES, rng), data(EXAMPLES // 4, rng)
    planted = rng.normal(size=(FEATURES, CLASSES)) * 3
    y, yv = (
        np.argmax(m @ planted + rng.gumbel(size=(count, CLASSES)), axis=1)
        for m, count in ((x, EXAMPLES), (xv, EXAMPLES // 4))
    )
    groups = rng.permutation(np.arange(FEATURES) % GROUPS)
    start = time.perf_counter()
    family = hx.families.Softmax(x, y, penalty=select, penalty_groups=groups, classes=CLASSES)
    outer = (xv, yv)
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, outer)
    print(f"family and constants: {time.perf_counter() - start:.2f} s, {memory()}")
    hyper = {"penalty": hx.Positive(np.full(GROUPS, 1e-4))}
    state = objective.init(hyper)
    for name in ("first call, compilation included", "again, from the same cold start"):
        start = time.perf_counter()
        answer, _ = jax.block_until_ready(objective.value_and_grad(hyper, state))
        print(f"{name}: {time.perf_counter() - start:.1f} s, {memory()}")
    certificate = answer.certificate
    assert isinstance(certificate, hx.implicit.TwoSidedCertificate)
    print(f"products: {int(answer.stats['products'])}, inner steps {int(answer.stats['inner_steps'])}")
    print(f"{certificate}; {STATUS[certificate.status]}; relative {float(answer.relative_bound):.2e}")


if __name__ == "__main__":
    main()
