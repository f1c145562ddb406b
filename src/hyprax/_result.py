"""What became of a computation: enumerations in layers, whose members are the messages."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool


class RESULTS(eqx.Enumeration):
    """How a computation ended. `RESULTS[result]` is the message: what happened and what to try.

    The measured numbers travel beside the result, in `stats`; the `message` of an answer joins the two.
    """

    successful = ""
    diverged = (
        "A non-finite number (inf or nan) appeared. Look for non-finite data, lower the learning rate of the search, "
        "or bound the hyperparameters (`hx.Interval`) so that the inner problem keeps a finite optimum."
    )


if TYPE_CHECKING:
    Result: TypeAlias = eqx.Enumeration
    """The type of a member of any layer of results."""
else:  # `isinstance` of an enumeration itself knows its own members alone
    Result = type(RESULTS.successful)
    """The type of a member of any layer of results."""


def _enumerations(base: type[eqx.Enumeration] = eqx.Enumeration) -> Iterator[type[eqx.Enumeration]]:
    yield base
    for layer in base.__subclasses__():
        yield from _enumerations(layer)


def layer_of(result: Result) -> type[eqx.Enumeration]:
    """The enumeration that `result` is a member of: the core's, or that of an engine or of the searches."""
    return next(layer for layer in _enumerations() if isinstance(result, layer))


def message_of(result: Result) -> str:
    """The text of a member of any enumeration, not traced."""
    return layer_of(result)[result]


def succeeded(result: Result) -> Bool[Array, "..."]:
    """Whether a result of any layer is `successful`."""
    return result == layer_of(result).successful  # pyright: ignore[reportAttributeAccessIssue]  # all layers have it


def result_name(result: Result) -> str:
    """The name of a member of any layer, for records and tables."""
    names = layer_of(result)._name_to_item
    return next(name for name, member in names.items() if bool(result == member))


def describe(stats: Mapping[str, Any]) -> str:
    """`name = number` for every scalar statistic, in the order in which it was recorded."""
    words = []
    for name, value in stats.items():
        try:
            number = np.asarray(value)
        except jax.errors.TracerArrayConversionError:  # under a transformation there is no number yet
            continue
        if number.size == 1:
            words.append(f"{name} = {number.item():.4g}")
    return ", ".join(words)


def explain(result: Result, stats: Mapping[str, Any]) -> str:
    """The message of a result, followed by the numbers that it speaks of.

    **Arguments:**

    - `result`: a member of [`hyprax.RESULTS`][] or of a layer above it, not traced.
    - `stats`: the statistics beside it.

    **Returns:** the text; empty for a success.
    """
    text = message_of(result)
    return f"{text} [{describe(stats)}]" if text else ""
