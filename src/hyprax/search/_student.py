"""Student's t: how many standard errors an estimate of a standard error is worth."""

import math

from .._noise import beyond


def quantile(tail: float, freedom: float) -> float:
    """The t with P(|T| > t) = `tail`."""
    low, high = 0.0, 1.0
    while beyond(high, freedom) > tail and high < 1e9:
        low, high = high, 2 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if beyond(middle, freedom) > tail else (low, middle)
    return high


def widened(z: float, freedom: float) -> float:
    """What `z` standard errors are worth where the errors are estimates: the t of the same two-sided tail."""
    return z if math.isinf(freedom) or freedom > 1e4 else quantile(beyond(z, math.inf), freedom)
