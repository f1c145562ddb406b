"""Hypergradients at an optimum, with a posteriori bounds of their error."""

from . import families as families
from ._adjoint_solvers import (
    CG as CG,
    MINRES as MINRES,
    AbstractAdjointSolver as AbstractAdjointSolver,
    AbstractPreconditioner as AbstractPreconditioner,
    AdjointSystem as AdjointSystem,
    Cholesky as Cholesky,
    Jacobi as Jacobi,
    LinearSolution as LinearSolution,
    Nystrom as Nystrom,
)
from ._answers import (
    RESULTS as RESULTS,
    ImplicitStats as ImplicitStats,
    TwoSidedCertificate as TwoSidedCertificate,
)
from ._bounds import (
    AbstractCertifier as AbstractCertifier,
    Certified as Certified,
    EhrhardtRoberts as EhrhardtRoberts,
    Evaluation as Evaluation,
    NoCertifier as NoCertifier,
)
from ._cholesky_bound import CholeskyCertifier as CholeskyCertifier
from ._constants import Constants as Constants
from ._elastic_net import ElasticNet as ElasticNet
from ._family_bounds import ResidualCertifier as ResidualCertifier
from ._first_order import (
    FISTA as FISTA,
    GradientDescent as GradientDescent,
    HeavyBall as HeavyBall,
    Neumann as Neumann,
)
from ._gauss_newton import GaussNewton as GaussNewton
from ._gcv import GCV as GCV
from ._inner_loss import AbstractInnerLoss as AbstractInnerLoss, Point as Point
from ._inner_solvers import (
    LBFGS as LBFGS,
    AbstractInnerSolver as AbstractInnerSolver,
    Minimum as Minimum,
    Newton as Newton,
)
from ._leave_one_out import LeaveOneOut as LeaveOneOut
from ._lookahead import LookAhead as LookAhead
from ._lookahead_estimate import LookAheadEstimate as LookAheadEstimate
from ._noise import ExampleNoise as ExampleNoise
from ._objective import ImplicitObjective as ImplicitObjective
from ._optimum import Optimum as Optimum
from ._reml import REML as REML
from ._single_loop import (
    SABA as SABA,
    SOBA as SOBA,
    AmIGO as AmIGO,
)
from ._splines import SplineTerms as SplineTerms
