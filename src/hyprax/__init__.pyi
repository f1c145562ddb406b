# The public names. The package imports each where it is first used (see __init__.py); nothing else stands here.

from . import evidence as evidence, runs as runs, search as search, tasks as tasks, unroll as unroll
from ._batches import FullBatch as FullBatch, Minibatches as Minibatches
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
from .evidence import EvidenceObjective as EvidenceObjective, log_evidence as log_evidence
from .implicit import (
    CG as CG,
    FISTA as FISTA,
    LBFGS as LBFGS,
    MINRES as MINRES,
    SABA as SABA,
    SOBA as SOBA,
    AbstractAdjointSolver as AbstractAdjointSolver,
    AbstractBound as AbstractBound,
    AbstractInnerSolver as AbstractInnerSolver,
    AdjointGradientDescent as AdjointGradientDescent,
    AdjointHeavyBall as AdjointHeavyBall,
    AmIGO as AmIGO,
    CallableSolver as CallableSolver,
    Cholesky as Cholesky,
    CholeskyBound as CholeskyBound,
    Constants as Constants,
    DirectionalBound as DirectionalBound,
    EhrhardtRoberts as EhrhardtRoberts,
    FreeBound as FreeBound,
    GaussNewton as GaussNewton,
    GradientDescent as GradientDescent,
    HeavyBall as HeavyBall,
    ImplicitObjective as ImplicitObjective,
    Jacobi as Jacobi,
    LookAhead as LookAhead,
    LookAheadEstimate as LookAheadEstimate,
    Neumann as Neumann,
    Newton as Newton,
    NoBound as NoBound,
    NoPreconditioner as NoPreconditioner,
    Nystrom as Nystrom,
    NystromSolver as NystromSolver,
    OneStep as OneStep,
    Optimum as Optimum,
    families as families,
)
from .runs import Run as Run
from .search import Tuned as Tuned, tune as tune
from .unroll import (
    AbstractMode as AbstractMode,
    AbstractOptimizer as AbstractOptimizer,
    Adam as Adam,
    AdamW as AdamW,
    Checkpointed as Checkpointed,
    ForwardMode as ForwardMode,
    MomentumSGD as MomentumSGD,
    OptaxOptimizer as OptaxOptimizer,
    Reversible as Reversible,
    StoreAll as StoreAll,
    Training as Training,
    Truncated as Truncated,
    UnrolledObjective as UnrolledObjective,
)

__version__: str
