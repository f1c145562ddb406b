"""How many random problems a property is tried on: few in `make test`, as many as it takes in `make test-slow`."""

import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

THOROUGH = bool(os.environ.get("HYPRAX_THOROUGH"))
USUAL = 100 if THOROUGH else 20


def examples(quick: int, thorough: int) -> settings:
    """Settings of a property: `quick` examples, or `thorough` ones where `make test-slow` has set HYPRAX_THOROUGH."""
    return settings(max_examples=thorough if THOROUGH else quick)


def slow(*values: Any) -> Any:
    """Parameters of a test that `make test-slow` runs: others of the same kind are run by `make test`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def quickly(kinds: Iterable[Any], *quick: Any, several: bool = False) -> list[Any]:
    """All kinds, those that are not among `quick` as `slow` ones; `several`: each is a tuple, of several arguments."""
    kinds = list(kinds)
    assert all(kind in kinds for kind in quick), f"must be among the kinds {kinds}; got {quick}"
    return [kind if kind in quick else slow(*kind) if several else slow(kind) for kind in kinds]
