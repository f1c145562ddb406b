"""What is known of dual functions before a task is seen (structures), and the bounds that `gap` chooses from."""

from ._bounds import (
    crossing_bound as crossing_bound,
    empirical_bernstein_bound as empirical_bernstein_bound,
    hoeffding_bound as hoeffding_bound,
    lipschitz_bound as lipschitz_bound,
    rademacher_bound as rademacher_bound,
    wealth_bound as wealth_bound,
)
from ._brackets import rademacher_complexity as rademacher_complexity
from ._complexity import (
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
from ._networks import (
    ActivationInterpolation as ActivationInterpolation,
    GraphKernel as GraphKernel,
    PiecewisePolynomial as PiecewisePolynomial,
    ValidationOptimum as ValidationOptimum,
    published_order as published_order,
)
from ._split import split_excess_bound as split_excess_bound, split_risk_bound as split_risk_bound
