"""Citations: everything that a call used, each once, in order of appearance."""

import dataclasses
from collections import namedtuple

import equinox as eqx
import jax.numpy as jnp
import pytest

import hyprax as hx

FIRST = "@article{first, title={First}}"
SECOND = "@article{second, title={Second}}"
THIRD = "@article{third, title={Third}}"


class Solver(eqx.Module):
    citations = (FIRST, f"\n{SECOND}\n")
    tolerance: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    solver: object = None
    citations = (THIRD,)


class Objective(eqx.Module):
    parts: object
    array: object = eqx.field(default_factory=lambda: jnp.ones(3))


Pair = namedtuple("Pair", ["left", "right"])


@pytest.mark.parametrize(
    ("objects", "entries"),
    [
        ((), []),
        ((Objective(None),), []),
        ((3, "text", None, jnp.ones(2)), []),
        ((Solver(),), [FIRST, SECOND]),
        ((Solver(), Solver()), [FIRST, SECOND]),
        ((Objective(Solver()),), [FIRST, SECOND]),
        ((Objective({"a": [Settings()], "b": (1, Solver())}),), [THIRD, FIRST, SECOND]),
        ((Objective(Pair(Solver(), Settings())),), [FIRST, SECOND, THIRD]),
        ((Settings(solver=Objective(Solver())),), [THIRD, FIRST, SECOND]),
        ((Settings(), Objective(Solver())), [THIRD, FIRST, SECOND]),
    ],
)
def test_entries_are_found_once_each_in_order(objects, entries, capsys):
    text = hx.citation(*objects)
    assert text == "\n\n".join(entries)
    assert capsys.readouterr().out == text + "\n"


def test_a_class_stands_for_nothing_but_does_not_fail():
    assert hx.citation(Settings) == ""
