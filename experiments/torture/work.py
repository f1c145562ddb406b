"""A share of one kind of torment, in a process of its own: in a module, so that a process that is spawned finds it."""

from collections import Counter
from pathlib import Path


def work(kind: str, count: int, seed: int, out: Path) -> tuple[Counter[str], list[str]]:
    """A share of one kind, in a process of its own."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from . import damage, inputs, kills

    if kind == "fuzz":
        return inputs.fuzz(count, out, seed)
    known = kills.references(out)
    if kind == "damage":
        return damage.damage(count, known, out, seed)
    return kills.torment(kind, count, known, out, seed)
