"""The noise of an objective asked for where it can be had for little."""

from typing import Protocol, runtime_checkable

from .._objective import AbstractObjective


@runtime_checkable
class CanMeasureNoise(Protocol):
    """An objective that can measure its noise where it does not yet."""

    def with_noise(self) -> AbstractObjective:
        """The same objective, its noise measured where that costs little; itself elsewhere."""
        ...


def measured(objective: AbstractObjective) -> AbstractObjective:
    """The objective with its noise measured, where it can be had for little."""
    if objective.measures_noise or not isinstance(objective, CanMeasureNoise):
        return objective
    return objective.with_noise()
