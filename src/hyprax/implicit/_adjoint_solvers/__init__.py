"""Solvers for the adjoint system A q = ∇f, A symmetric, given as Hessian-vector products."""

from ._cg import CG as CG, conjugate_gradients as conjugate_gradients
from ._cholesky import Cholesky as Cholesky
from ._gradient_descent import AdjointGradientDescent as AdjointGradientDescent
from ._heavy_ball import AdjointHeavyBall as AdjointHeavyBall
from ._minres import MINRES as MINRES
from ._neumann import Neumann as Neumann, OneStep as OneStep
from ._nystrom import NystromSolver as NystromSolver
from ._preconditioners import (
    AbstractPreconditioner as AbstractPreconditioner,
    Jacobi as Jacobi,
    NoPreconditioner as NoPreconditioner,
    Nystrom as Nystrom,
)
from ._solver import (
    TRUE_SYSTEM as TRUE_SYSTEM,
    AbstractAdjointSolver as AbstractAdjointSolver,
    AdjointSystem as AdjointSystem,
    LinearSolution as LinearSolution,
)
