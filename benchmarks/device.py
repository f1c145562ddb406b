"""The device of a benchmark: which, its clock, and the most memory that it held.

On CPUs times are those of the processor, which other work on the machine changes less than the clock's. While a card
works the processor waits, so there the clock counts. `python -m benchmarks.device gpu` says whether there is one.
"""

import argparse
import os
import sys
import time

import jax

from benchmarks import peak_memory

PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}
FLAGS = "--xla_gpu_deterministic_ops=true"


def add_argument(parser: argparse.ArgumentParser, default: str | None = "cpu") -> None:
    """`--device`."""
    said = "what JAX finds" if default is None else default
    parser.add_argument("--device", choices=PLATFORMS, default=default, help=f"default: {said}")


def use(name: str) -> None:
    """Ask for a device, here and in processes that are started later; before JAX looks for one.

    **Raises:** `SystemExit` where there is none of that kind.
    """
    if name == "gpu":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    os.environ["JAX_PLATFORMS"] = PLATFORMS[name]
    jax.config.update("jax_platforms", PLATFORMS[name])  # it may have read the other already
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # what JAX raises where a platform has no device
        raise SystemExit(f"--device {name}: JAX finds none. For a card, install jax[cuda13].") from error


def kind() -> str:
    """The device by its maker's name; of a CPU, that it is one."""
    return jax.devices()[0].device_kind


def on_card() -> bool:
    return jax.devices()[0].platform != "cpu"


def seconds() -> float:
    """Of the processor, or on a card by the clock."""
    return time.perf_counter() if on_card() else time.process_time()


def reset() -> int:
    """Bytes in use, from which `peak` counts.

    A card's peak is that since the process began, so each method needs one of its own.
    """
    stats = jax.devices()[0].memory_stats() if on_card() else None
    return stats["bytes_in_use"] if stats else peak_memory.reset()


def peak() -> int:
    """The most bytes in use since the last reset: of the device where it has a count, else of the process."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else peak_memory.peak()


def grown(before: int) -> float:
    """Bytes by which the process grew at most since `reset` answered `before`; NaN on a card: that is not known."""
    return float("nan") if on_card() else float(peak() - before)


if __name__ == "__main__":
    use(sys.argv[1])
    print(kind())
