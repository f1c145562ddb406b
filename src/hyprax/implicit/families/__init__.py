"""Losses together with the structure that certificates need: strong convexity, curvature, rounding."""

from ._constructors import (
    Logistic as Logistic,
    Poisson as Poisson,
    PseudoHuber as PseudoHuber,
    Softmax as Softmax,
    Squared as Squared,
)
from ._design import (
    Design as Design,
    SparseDesign as SparseDesign,
    forward as forward,
    forward_squared as forward_squared,
)
from ._exact_products import (
    exact_backward as exact_backward,
    exact_forward as exact_forward,
    extended_unit as extended_unit,
)
from ._generalised_linear import GeneralisedLinear as GeneralisedLinear
from ._mean_loss import (
    MeanLoss as MeanLoss,
    over as over,
    prediction_rounding as prediction_rounding,
    unit_roundoff as unit_roundoff,
)
from ._norms import DesignNorms as DesignNorms, measured as measured
from ._selection import Selection as Selection
