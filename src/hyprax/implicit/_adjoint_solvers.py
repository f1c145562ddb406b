"""Solvers for the adjoint system A q = ∇f, A symmetric positive definite, given as Hessian-vector products."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Float, Int, PyTree

from .._trees import tree_dtype, tree_scale, tree_size
from ._inner_loss import Product


class LinearSolution(eqx.Module):
    """A solution as the solver left it; the residual is for the caller to recompute."""

    value: PyTree
    steps: Int[Array, ""]


def conjugate_gradients(
    product: Product,
    rhs: PyTree,
    residual: Float[Array, ""],
    *,
    norm: Callable[[PyTree], Float[Array, ""]] = optx.two_norm,
    start: PyTree | None = None,
    preconditioner: Product | None = None,
    max_steps: int,
) -> LinearSolution:
    """A q = rhs by `lineax.CG`, to ‖A q - rhs‖ <= `residual` (by the recursion's residual) or `max_steps`.

    `lineax.CG` stops when the residual AND the last step are below `atol`, and gives up where pᵀAp is small beside
    rᵀr. On a badly scaled A the first asks for far more than the residual, and the second fails a solvable system; so
    the equation is multiplied by s = 1/√ε, s A q = s rhs, which leaves q and the residual test as they are and takes
    both away.
    """
    dtype = tree_dtype(rhs)
    scale = jnp.asarray(float(jnp.finfo(dtype).eps) ** -0.5, dtype)
    structure = jax.eval_shape(lambda: rhs)
    operator = lx.FunctionLinearOperator(
        lambda v: tree_scale(scale, product(v)), structure, tags=lx.positive_semidefinite_tag
    )
    options: dict = {} if start is None else {"y0": start}
    if preconditioner is not None:
        options["preconditioner"] = lx.FunctionLinearOperator(
            preconditioner, structure, tags=lx.positive_semidefinite_tag
        )
    # lineax annotates tolerances as floats and takes arrays as well: a tolerance that changes compiles nothing anew.
    atol: Any = scale * residual
    solver = lx.CG(rtol=0.0, atol=atol, norm=norm, stabilise_every=None, max_steps=max_steps)
    solution = lx.linear_solve(operator, tree_scale(scale, rhs), solver, options=options, throw=False)
    return LinearSolution(solution.value, jnp.asarray(solution.stats["num_steps"]))


class AbstractAdjointSolver(eqx.Module):
    """A way to find q with ‖A q - ∇f‖₂ <= tolerance. Settings only: warm starts are in the call."""

    tolerance: eqx.AbstractVar[float | None]
    """The residual to stop at, relative to ‖∇f‖₂; `None` for the square root of the rounding unit."""

    @abc.abstractmethod
    def solve(
        self,
        product: Product,
        rhs: PyTree,
        residual: Float[Array, ""],
        *,
        start: PyTree,
        preconditioner: Product | None,
    ) -> LinearSolution:
        """Start at `start`, stop at ‖A q - rhs‖₂ <= `residual`."""


class CG(AbstractAdjointSolver):
    """A q = ∇f by conjugate gradients: k products put q at the A-norm minimiser over the Krylov space of dimension k.

    `lineax.CG`, matrix-free, warm-started, with the preconditioner of the inner loss where it has one. The residual
    that certificates use is recomputed from A q - ∇f, never taken from the recursion.

    **Arguments:**

    - `tolerance`: ‖A q - ∇f‖₂/‖∇f‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: products, at most; default twice the number of parameters, and 20 more.

    Source: Hestenes and Stiefel (J. Res. NBS 49, 1952).
    """

    tolerance: float | None = None
    max_steps: int | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@article{hestenes1952methods, author = {Hestenes, Magnus R. and Stiefel, Eduard},
  title = {Methods of conjugate gradients for solving linear systems},
  journal = {Journal of Research of the National Bureau of Standards},
  volume = {49}, pages = {409--436}, year = {1952}}""",
    )

    def __check_init__(self):
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(
                f"CG: given tolerance {self.tolerance}, allowed are numbers > 0 (or None for the default)."
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"CG: given max_steps {self.max_steps}, allowed are integers >= 1 (or None).")

    def solve(
        self,
        product: Product,
        rhs: PyTree,
        residual: Float[Array, ""],
        *,
        start: PyTree,
        preconditioner: Product | None,
    ) -> LinearSolution:
        most = 2 * tree_size(rhs) + 20 if self.max_steps is None else self.max_steps
        return conjugate_gradients(product, rhs, residual, start=start, preconditioner=preconditioner, max_steps=most)
