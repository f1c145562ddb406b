"""How many random problems a property is tried on: few in `make test`, as many as it takes in `make test-slow`."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

THOROUGH = bool(os.environ.get("HYPRAX_THOROUGH"))


def examples(quick: int, thorough: int) -> Callable[[Any], Any]:
    """Settings of a property: `quick` examples, or `thorough` ones where `make test-slow` has set HYPRAX_THOROUGH."""

    def decorate(test: Any) -> Any:
        return pytest.mark.thorough(settings(max_examples=thorough if THOROUGH else quick)(test))

    return decorate
