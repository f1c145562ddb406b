"""Conjugate gradients."""

from collections.abc import Callable
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..._trees import tree_axpy, tree_dot, tree_norm, tree_size, tree_sub
from .._inner_loss import Product
from ._preconditioners import AbstractPreconditioner
from ._solver import (
    AbstractAdjointSolver,
    AdjointSystem,
    LinearSolution,
    check_settings,
    damped,
    damped_system,
    zeros_like,
)


class _Carry(eqx.Module):
    value: PyTree
    residual: PyTree
    direction: PyTree
    gamma: Float[Array, ""]
    least: Float[Array, ""]
    largest: Float[Array, ""]
    steps: Int[Array, ""]
    negative: Bool[Array, ""]


def conjugate_gradients(
    product: Product,
    rhs: PyTree,
    residual: Float[Array, ""],
    *,
    norm: Callable[[PyTree], Float[Array, ""]] = tree_norm,
    start: PyTree | None = None,
    preconditioner: Product | None = None,
    max_steps: int,
) -> LinearSolution:
    """q ← q + α p, r ← r - α A p, p ← M⁻¹r + β p, α = rᵀM⁻¹r/pᵀAp, β = r₊ᵀM⁻¹r₊/rᵀM⁻¹r, until norm(r) <= `residual`.

    Stops too where pᵀAp <= 0, which no positive definite A allows, and after `max_steps`. Without `start` it begins at
    0, and no product is spent on that. `lineax.CG` stops on the size of its last step as well, calls badly scaled but
    solvable systems singular, and does not give the curvatures pᵀAp/pᵀp away that disprove a constant: hence this loop.
    """
    begun = rhs if start is None else tree_sub(rhs, product(start))
    solve = preconditioner or (lambda v: v)

    def unfinished(carry: _Carry) -> Bool[Array, ""]:
        return (norm(carry.residual) > residual) & (carry.steps < max_steps) & jnp.logical_not(carry.negative)

    def step(carry: _Carry) -> _Carry:
        image = product(carry.direction)
        curve = tree_dot(carry.direction, image)
        quotient = curve / tree_dot(carry.direction, carry.direction)
        negative = curve <= 0
        alpha = jnp.where(negative, 0, carry.gamma / jnp.where(negative, 1, curve))
        left = tree_axpy(-alpha, image, carry.residual)
        solved = solve(left)
        gamma = tree_dot(left, solved)
        return _Carry(
            value=tree_axpy(alpha, carry.direction, carry.value),
            residual=left,
            direction=tree_axpy(gamma / carry.gamma, carry.direction, solved),
            gamma=gamma,
            least=jnp.minimum(carry.least, quotient),
            largest=jnp.maximum(carry.largest, quotient),
            steps=carry.steps + 1,
            negative=negative,
        )

    direction = solve(begun)
    gamma = tree_dot(begun, direction)
    first = _Carry(
        value=zeros_like(rhs) if start is None else start,
        residual=begun,
        direction=direction,
        gamma=gamma,
        least=jnp.full_like(gamma, jnp.inf),
        largest=jnp.zeros_like(gamma),
        steps=jnp.asarray(0),
        negative=jnp.asarray(False),
    )
    last = jax.lax.while_loop(unfinished, step, first)
    rounding = 1000 * jnp.finfo(gamma.dtype).eps * last.largest
    return LinearSolution(last.value, last.steps, last.steps + int(start is not None), last.least + rounding)


class CG(AbstractAdjointSolver):
    """A q = ∇f by conjugate gradients: k products put q at the A-norm minimiser over the Krylov space of dimension k.

    Matrix-free and warm-started. The residual that certificates use is recomputed from A q - ∇f, never taken from the
    recursion. ‖q_k - q‖₂ <= 2√κ ((√κ - 1)/(√κ + 1))^k ‖q_0 - q‖₂, κ = L/μ. A direction of non-positive curvature ends
    the iteration and is reported as `indefinite`: [`hyprax.implicit.MINRES`][] solves such systems.

    **Arguments:**

    - `tolerance`: ‖A q - ∇f‖₂/‖∇f‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: products, at most; default twice the number of parameters, and 20 more.
    - `preconditioner`: [`hyprax.implicit.Jacobi`][] or [`hyprax.implicit.Nystrom`][]; default that of the inner loss,
        where it has one; `False` for none.
    - `damping`: ρ; with ρ > 0 the system (A + ρI) q = ∇f is solved instead, which certificates name. Another system has
        another solution: ρ = 1e-2 can move a hypergradient by a third.

    Source: Hestenes and Stiefel (J. Res. NBS 49, 1952).
    """

    tolerance: float | None = None
    max_steps: int | None = None
    preconditioner: AbstractPreconditioner | Literal[False] | None = None
    damping: float = eqx.field(static=True, default=0.0)

    citations: ClassVar[tuple[str, ...]] = (
        """@article{hestenes1952methods, author = {Hestenes, Magnus R. and Stiefel, Eduard},
  title = {Methods of conjugate gradients for solving linear systems},
  journal = {Journal of Research of the National Bureau of Standards},
  volume = {49}, pages = {409--436}, year = {1952}}""",
    )

    def __check_init__(self):
        check_settings("CG", self.tolerance, self.max_steps, self.damping)

    @property
    def system(self) -> str:
        return damped_system(self.damping)

    def solve(self, system: AdjointSystem) -> LinearSolution:
        own, spent = system.preconditioner if self.preconditioner is None else None, 0
        if self.preconditioner:
            own, spent = self.preconditioner.prepare(system)
        found = conjugate_gradients(
            damped(system.product, self.damping),
            system.rhs,
            system.residual,
            start=system.start,
            preconditioner=own,
            max_steps=2 * tree_size(system.rhs) + 20 if self.max_steps is None else self.max_steps,
        )
        return LinearSolution(
            found.value, found.steps, found.products + spent, found.curvature - self.damping, self.damping
        )
