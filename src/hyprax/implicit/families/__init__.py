"""Losses together with the structure that certificates need: strong convexity, curvature, rounding."""

from ._generalised_linear import (
    GeneralisedLinear as GeneralisedLinear,
    Logistic as Logistic,
    MeanLoss as MeanLoss,
    Softmax as Softmax,
    Squared as Squared,
)
from ._norms import DesignNorms as DesignNorms
