"""Losses together with the structure that certificates need: strong convexity, curvature, rounding."""

from ._families import (
    Logistic as Logistic,
    Poisson as Poisson,
    PseudoHuber as PseudoHuber,
    Softmax as Softmax,
    Squared as Squared,
)
