"""Hypergradients at an optimum, with a posteriori bounds of their error."""

from . import families as families
from ._a_priori import (
    a_priori_bound as a_priori_bound,
    a_priori_reduction as a_priori_reduction,
    a_priori_steps as a_priori_steps,
)
from ._adjoint_solvers import (
    CG as CG,
    MINRES as MINRES,
    AbstractAdjointSolver as AbstractAdjointSolver,
    AbstractPreconditioner as AbstractPreconditioner,
    AdjointGradientDescent as AdjointGradientDescent,
    AdjointHeavyBall as AdjointHeavyBall,
    AdjointSystem as AdjointSystem,
    Cholesky as Cholesky,
    Jacobi as Jacobi,
    LinearSolution as LinearSolution,
    Neumann as Neumann,
    NoPreconditioner as NoPreconditioner,
    Nystrom as Nystrom,
    NystromSolver as NystromSolver,
    OneStep as OneStep,
)
from ._answers import (
    RESULTS as RESULTS,
    STATUS as STATUS,
    ImplicitStats as ImplicitStats,
    SingleLoopStats as SingleLoopStats,
    TwoSidedCertificate as TwoSidedCertificate,
)
from ._bounds import (
    AbstractCertifier as AbstractCertifier,
    Certified as Certified,
    EhrhardtRoberts as EhrhardtRoberts,
    Evaluation as Evaluation,
    NoCertifier as NoCertifier,
    ValueEvaluation as ValueEvaluation,
)
from ._cholesky_bound import CholeskyCertifier as CholeskyCertifier
from ._constants import Constants as Constants, Spectrum as Spectrum
from ._directional import DirectionalCertifier as DirectionalCertifier
from ._family_bounds import ResidualCertifier as ResidualCertifier
from ._gauss_newton import GaussNewton as GaussNewton
from ._held_out import HeldOut as HeldOut
from ._inner_solvers import (
    FISTA as FISTA,
    LBFGS as LBFGS,
    AbstractInnerSolver as AbstractInnerSolver,
    CallableSolver as CallableSolver,
    GradientDescent as GradientDescent,
    HeavyBall as HeavyBall,
    Minimum as Minimum,
    Newton as Newton,
)
from ._lookahead import LookAhead as LookAhead
from ._lookahead_estimate import LookAheadEstimate as LookAheadEstimate
from ._noise import ExampleNoise as ExampleNoise
from ._objective import ImplicitObjective as ImplicitObjective, ImplicitState as ImplicitState
from ._optimum import Optimum as Optimum
from ._single_loop import (
    SABA as SABA,
    SOBA as SOBA,
    AbstractSingleLoop as AbstractSingleLoop,
    AmIGO as AmIGO,
    SingleLoopState as SingleLoopState,
)
from ._stacked import stacked as stacked
