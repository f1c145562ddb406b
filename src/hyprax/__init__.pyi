# The public names. The package imports each where it is first used (see __init__.py); nothing else stands here.

from . import evidence as evidence, runs as runs, search as search, tasks as tasks
from ._batches import Minibatches as Minibatches
from ._certificate import (
    AbstractCertificate as AbstractCertificate,
    ErrorBound as ErrorBound,
    NoCertificate as NoCertificate,
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
from .evidence import EvidenceObjective as EvidenceObjective, log_evidence as log_evidence
from .implicit import (
    CG as CG,
    LBFGS as LBFGS,
    AbstractAdjointSolver as AbstractAdjointSolver,
    AbstractBound as AbstractBound,
    AbstractInnerSolver as AbstractInnerSolver,
    Constants as Constants,
    EhrhardtRoberts as EhrhardtRoberts,
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
