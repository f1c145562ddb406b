"""Hypergradients at an optimum, with a posteriori bounds of their error."""

from . import families as families
from ._adjoint_solvers import CG as CG, AbstractAdjointSolver as AbstractAdjointSolver
from ._bounds import (
    AbstractBound as AbstractBound,
    Certified as Certified,
    EhrhardtRoberts as EhrhardtRoberts,
    Evaluation as Evaluation,
    NoBound as NoBound,
)
from ._constants import Constants as Constants
from ._family_bounds import FreeBound as FreeBound
from ._inner_solvers import LBFGS as LBFGS, AbstractInnerSolver as AbstractInnerSolver, Newton as Newton
from ._lookahead import LookAhead as LookAhead
from ._objective import ImplicitObjective as ImplicitObjective, ImplicitState as ImplicitState
from ._optimum import Optimum as Optimum
from ._single_loop import (
    SABA as SABA,
    SOBA as SOBA,
    AbstractSingleLoop as AbstractSingleLoop,
    AmIGO as AmIGO,
    SingleLoopState as SingleLoopState,
)
