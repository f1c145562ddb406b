"""Hypergradients through T steps of training: a network 64-64-10 on the digits, batches of 100, momentum 0.9, float32.

Tuned are a learning rate for every step and the logarithm of a penalty for every array of weights. The problem is that
of `benchmarks.unrolled`; the truth is `jax.grad` of a scan written by hand, in float64.
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.harness.cells import Arrays, Cell, Method, distance

TITLE = "A hypergradient through training"

MODES = "Reversible", "StoreAll", "Checkpointed"


def arrays(name: str) -> Arrays:
    from benchmarks import unrolled  # brings JAX along

    return unrolled.load(name).numbers()


def error(found: Arrays, expected: Arrays) -> float:
    """Of both kinds of hyperparameters, the larger."""
    return max(distance(found[name], expected[name]) for name in ("rates", "penalties"))


def _of(name: str, modes: tuple[str, ...]) -> tuple[Method, ...]:
    def plain(label: str, function: str, package: str = "hyprax", environment: str = "hyprax", **given: object):
        where = f"benchmarks.harness.{function}"
        return Method(label, where, environment, package, given, x64=False)

    torch = {"a loop in torch": ("plain", "torch"), "higher": ("higher",) * 2, "TorchOpt": ("torchopt",) * 2}
    return (
        *(plain(f"hyprax {mode}", "unroll_methods:ours", name=name, mode=mode) for mode in modes),
        plain("jax.grad of a scan", "unroll_methods:scanned", "jax"),
        plain("jax.checkpoint, √T segments", "unroll_methods:scanned", "jax", segments=True),
        *(plain(label, "torch_methods:unrolled", package, "torch", how=how) for label, (how, package) in torch.items()),
    )


def cells(size: str) -> Iterator[Cell]:
    names = {"quick": ("digits 20",), "usual": ("digits 100", "digits 1000")}
    for name in names.get(size, ("digits 100", "digits 1000", "mnist")):
        yield Cell(
            section="unroll",
            problem="MNIST, 784-200-10, T = 200" if name == "mnist" else f"digits, T = {int(name.split()[1]):,}",
            arrays=partial(arrays, name),
            truth=Method("truth", "benchmarks.harness.unroll_methods:scanned", package="truth"),
            methods=_of(name, MODES[:1] if size == "quick" else MODES),
            accept=1e-2,
            error=error,
            error_name="relative error of the hypergradient",
            rounds=3 if size == "quick" else 20,
            seconds={"quick": 0.5, "usual": 8.0, "full": 60.0}[size],
        )
