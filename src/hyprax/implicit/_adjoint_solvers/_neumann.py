"""Truncated adjoints of fixed cost: the Neumann series, and one step of it."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ..._trees import tree_dtype, tree_scale
from .._spectrum import check_spectrum, resolve
from ._first_order import iterate
from ._solver import AbstractAdjointSolver, AdjointSystem, LinearSolution, count, unmeasured


def _step_of(step: float | Array | None, system: AdjointSystem) -> tuple[Array, int]:
    """The step given, or 1/L."""
    if step is not None:
        return jnp.asarray(step, tree_dtype(system.rhs)), 0
    spectrum, _, spent = resolve(None, None, system.spectrum, system.product, system.rhs)
    return 1 / spectrum.upper, spent


class Neumann(AbstractAdjointSolver):
    """q = t Σ_{k<K} (I - tA)^k ∇f: the first K terms of the series of A⁻¹∇f, which converges for 0 < t < 2/L.

    The work is fixed, no warm start is used, and what is missing is (I - tA)^K A⁻¹∇f: its residual is measured,
    reported in `stats["adjoint_residual"]`, and part of every bound.

    **Arguments:**

    - `terms`: K; K - 1 products.
    - `step`: t; default 1/L with the family's L, or else a Lanczos estimate (12 products).

    Source: Lorraine, Vicol and Duvenaud, arXiv 1911.02590 (2020).
    """

    terms: int
    step: float | Array | None = None
    tolerance: float | None = None

    truncated: ClassVar[bool] = True
    citations: ClassVar[tuple[str, ...]] = (
        """@inproceedings{lorraine2020optimizing, author = {Lorraine, Jonathan and Vicol, Paul and Duvenaud, David},
  title = {Optimizing millions of hyperparameters by implicit differentiation}, booktitle = {AISTATS}, year = {2020},
  note = {arXiv:1911.02590}}""",
    )

    def __check_init__(self):
        if self.terms < 1:
            raise ValueError(f"Neumann: terms must be an integer >= 1; got {self.terms}.")
        check_spectrum("Neumann", None, self.step)

    @property
    def system(self) -> str:
        return f"A q = ∇f by {self.terms} terms of the Neumann series, truncated"

    def solve(self, system: AdjointSystem) -> LinearSolution:
        step, spent = _step_of(self.step, system)
        # The first term is a step from 0, which needs no product; the rest are gradient steps that never stop early.
        term = tree_scale(step, system.rhs)
        whole = AdjointSystem(system.product, system.rhs, jnp.zeros_like(system.residual), term)
        if self.terms == 1:
            return LinearSolution(term, count(1), count(spent), unmeasured(system.rhs))
        found = iterate(whole, step, None, self.terms - 1, spent)
        return LinearSolution(found.value, found.steps + 1, found.products, found.curvature)


class OneStep(AbstractAdjointSolver):
    """q = t ∇f: the adjoint of the last inner step alone, no product at all.

    Good where one inner step (t A ≈ I) nearly solves the problem, and wrong by a constant factor where it does not: the
    error is ‖I - tA‖ ‖A⁻¹∇f‖. The residual is measured and reported all the same.

    **Arguments:**

    - `step`: t; default 1/L with the family's L, or else a Lanczos estimate (12 products).
    - `preconditioned`: q = M⁻¹∇f with the preconditioner M of the inner loss instead, where it has one: the adjoint of
        one step of a (quasi-)Newton method.

    Source: Bolte, Pauwels and Vaiter, arXiv 2305.13768 (2023).
    """

    step: float | Array | None = None
    preconditioned: bool = False
    tolerance: float | None = None

    truncated: ClassVar[bool] = True
    citations: ClassVar[tuple[str, ...]] = (
        """@inproceedings{bolte2023onestep, author = {Bolte, J{\\'e}r{\\^o}me and Pauwels, Edouard and Vaiter, Samuel},
  title = {One-step differentiation of iterative algorithms}, booktitle = {NeurIPS}, year = {2023},
  note = {arXiv:2305.13768}}""",
    )

    def __check_init__(self):
        check_spectrum("OneStep", None, self.step)

    @property
    def system(self) -> str:
        return f"{'M' if self.preconditioned else '(1/t)'} q = ∇f, one step in place of A q = ∇f"

    def solve(self, system: AdjointSystem) -> LinearSolution:
        if self.preconditioned:
            if system.preconditioner is None:
                raise ValueError("OneStep: preconditioned=True requires a family as inner loss.")
            value, spent = system.preconditioner(system.rhs), 0
        else:
            step, spent = _step_of(self.step, system)
            value = tree_scale(step, system.rhs)
        return LinearSolution(value, count(1), count(spent), unmeasured(system.rhs))
