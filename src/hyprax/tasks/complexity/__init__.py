"""What is known of dual functions before a task is seen (structures), and their Rademacher complexity."""

from .._brackets import rademacher_complexity as rademacher_complexity
from .._complexity import (
    Bounded as Bounded,
    Lipschitz as Lipschitz,
    Oscillations as Oscillations,
    Pieces as Pieces,
    PseudoDimension as PseudoDimension,
    Structure as Structure,
)
from .._intervals import Intervals as Intervals
from .._several import ElasticNetPenalties as ElasticNetPenalties, RidgePenalties as RidgePenalties
