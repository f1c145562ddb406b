"""A batch of one kind of torment, in a process of its own: in a module, so that a process that is spawned finds it."""

from collections import Counter
from pathlib import Path


def work(kind: str, count: int, batch: str, out: Path) -> tuple[Counter[str], list[str]]:
    """`count` torments of a kind; `batch` names them, and is all that their draws depend on."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from . import damage, inputs, kills

    if kind == "fuzz":
        return inputs.fuzz(count, batch, out)
    if kind == "damage":
        return damage.damage(count, batch, out)
    return kills.torment(kind, count, batch, out)
