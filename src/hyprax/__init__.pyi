# The public names. The package imports each where it is first used (see __init__.py); nothing else stands here.

from . import runs as runs, search as search, tasks as tasks
from ._batches import Minibatches as Minibatches
from ._certificate import (
    STATUS as STATUS,
    AbstractCertificate as AbstractCertificate,
    ErrorBound as ErrorBound,
    NoCertificate as NoCertificate,
    TwoSidedBound as TwoSidedBound,
)
from ._citation import citation as citation
from ._hyper import (
    AbstractConstrained as AbstractConstrained,
    Interval as Interval,
    LogInterval as LogInterval,
    Positive as Positive,
    Simplex as Simplex,
    natural as natural,
)
from ._objective import (
    AbstractObjective as AbstractObjective,
    Accuracy as Accuracy,
    Hypergradient as Hypergradient,
    HypergradientError as HypergradientError,
    Value as Value,
    hypergradient as hypergradient,
)
from ._result import RESULTS as RESULTS, explain as explain
from .implicit import (
    CG as CG,
    LBFGS as LBFGS,
    SABA as SABA,
    SOBA as SOBA,
    AbstractAdjointSolver as AbstractAdjointSolver,
    AbstractBound as AbstractBound,
    AbstractInnerSolver as AbstractInnerSolver,
    AmIGO as AmIGO,
    Constants as Constants,
    EhrhardtRoberts as EhrhardtRoberts,
    FreeBound as FreeBound,
    ImplicitObjective as ImplicitObjective,
    LookAhead as LookAhead,
    Newton as Newton,
    NoBound as NoBound,
    Optimum as Optimum,
    families as families,
)
from .runs import Run as Run
from .search import Tuned as Tuned, tune as tune

__version__: str
