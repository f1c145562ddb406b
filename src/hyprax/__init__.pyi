# The public names. The package imports each where it is first used (see __init__.py); nothing else stands here.

from . import (
    callbacks as callbacks,
    core as core,
    evidence as evidence,
    implicit as implicit,
    runs as runs,
    search as search,
    tasks as tasks,
    unroll as unroll,
)
from ._batches import FullBatch as FullBatch, Minibatches as Minibatches
from ._certificate import Certificate as Certificate, NoCertificate as NoCertificate
from ._citation import citation as citation
from ._hyper import (
    Interval as Interval,
    LogInterval as LogInterval,
    Positive as Positive,
    Simplex as Simplex,
    natural as natural,
)
from ._noise import Noise as Noise, NoNoise as NoNoise
from ._objective import (
    Hypergradient as Hypergradient,
    HypergradientError as HypergradientError,
    hypergradient as hypergradient,
)
from ._result import RESULTS as RESULTS
from ._stats import Accuracy as Accuracy
from .cli._resume import resume as resume
from .evidence import EvidenceObjective as EvidenceObjective
from .implicit import ImplicitObjective as ImplicitObjective, Optimum as Optimum, families as families
from .runs import Run as Run
from .search import (
    CrossValidated as CrossValidated,
    TuneResult as TuneResult,
    honest as honest,
    refit as refit,
    tune as tune,
)
from .torch import from_torch as from_torch
from .unroll import Training as Training, UnrolledObjective as UnrolledObjective

__version__: str
