"""Losses together with the structure that certificates need: strong convexity, curvature, rounding."""

from ._constructors import (
    Logistic as Logistic,
    Poisson as Poisson,
    PseudoHuber as PseudoHuber,
    Softmax as Softmax,
    Squared as Squared,
)
from ._design import SparseDesign as SparseDesign
from ._generalised_linear import GeneralisedLinear as GeneralisedLinear
from ._mean_loss import MeanLoss as MeanLoss
from ._norms import DesignNorms as DesignNorms
