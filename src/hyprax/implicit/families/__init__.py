"""Losses together with the structure that certificates need: strong convexity, curvature, rounding."""

from ._chunked import Chunked as Chunked
from ._families import (
    Logistic as Logistic,
    Poisson as Poisson,
    PseudoHuber as PseudoHuber,
    Softmax as Softmax,
    Squared as Squared,
)
