"""What is known of dual functions before a task is seen (structures), and the bound by Rademacher complexity."""

from .._bounds import rademacher_bound as rademacher_bound
from .._brackets import rademacher_complexity as rademacher_complexity
from .._complexity import (
    Bounded as Bounded,
    Intervals as Intervals,
    LassoKinks as LassoKinks,
    Lipschitz as Lipschitz,
    Oscillations as Oscillations,
    Pieces as Pieces,
    PseudoDimension as PseudoDimension,
    Rational as Rational,
    RidgeRank as RidgeRank,
    Structure as Structure,
)
from .._networks import (
    ActivationInterpolation as ActivationInterpolation,
    GraphKernel as GraphKernel,
    PiecewisePolynomial as PiecewisePolynomial,
    ValidationOptimum as ValidationOptimum,
    published_order as published_order,
)
from .._several import ElasticNetPenalties as ElasticNetPenalties, RidgePenalties as RidgePenalties
