"""Solvers for the inner problem: min_w g(w), stopped by the gradient norm."""

from ._callable import CallableSolver as CallableSolver
from ._lbfgs import LBFGS as LBFGS
from ._newton import Newton as Newton
from ._solver import AbstractInnerSolver as AbstractInnerSolver, Minimum as Minimum
