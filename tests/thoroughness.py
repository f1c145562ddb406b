"""How many random problems a property is tried on: few in `make test`, as many as it takes in `make test-slow`."""

import os
from typing import Any

import pytest
from hypothesis import settings

THOROUGH = bool(os.environ.get("HYPRAX_THOROUGH"))
USUAL = 100 if THOROUGH else 30


def examples(quick: int, thorough: int) -> settings:
    """Settings of a property: `quick` examples, or `thorough` ones where `make test-slow` has set HYPRAX_THOROUGH."""
    return settings(max_examples=thorough if THOROUGH else quick)


def slow(*values: Any) -> Any:
    """Parameters of a test that `make test-slow` runs: others of the same kind are run by `make test`."""
    return pytest.param(*values, marks=pytest.mark.slow)
