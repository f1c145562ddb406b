"""Solvers for the adjoint system A q = ∇f, A symmetric, given as Hessian-vector products."""

from ._cg import CG as CG, conjugate_gradients as conjugate_gradients
from ._cholesky import Cholesky as Cholesky
from ._minres import MINRES as MINRES
from ._preconditioners import (
    AbstractPreconditioner as AbstractPreconditioner,
    Jacobi as Jacobi,
    Nystrom as Nystrom,
)
from ._solver import (
    TRUE_SYSTEM as TRUE_SYSTEM,
    AbstractAdjointSolver as AbstractAdjointSolver,
    AdjointSystem as AdjointSystem,
    LinearSolution as LinearSolution,
)
