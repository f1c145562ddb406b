"""A direct solve, for small problems."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jax.flatten_util import ravel_pytree

from ..._trees import tree_size
from ._solver import AbstractAdjointSolver, AdjointSystem, LinearSolution, count


class Cholesky(AbstractAdjointSolver):
    """q = (LLᵀ)⁻¹∇f, A = LLᵀ formed from as many products as there are parameters.

    Residuals at the rounding floor, cubic cost: for small problems, and as a reference. An A that is not positive
    definite has no factor, and its least eigenvalue is reported with the result `indefinite`.

    **Arguments:**

    - `max_size`: the most parameters; more are refused, since A takes their square of memory.

    Source: Golub and Van Loan, Matrix Computations (2013), section 4.2.
    """

    max_size: int = 2048
    tolerance: float | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@book{golub2013matrix, author = {Golub, Gene H. and Van Loan, Charles F.}, title = {Matrix computations},
  publisher = {Johns Hopkins University Press}, year = {2013}, edition = {4th}}""",
    )

    def solve(self, system: AdjointSystem) -> LinearSolution:
        size = tree_size(system.rhs)
        if size > self.max_size:
            raise ValueError(
                f"Cholesky: at most max_size = {self.max_size} parameters are solved for; got {size}, and A would take "
                f"{8 * size**2 / 2**30:.1f} GiB. Use hx.implicit.CG(), or raise max_size."
            )
        flat, unravel = ravel_pytree(system.rhs)
        columns = jax.lax.map(lambda e: ravel_pytree(system.product(unravel(e)))[0], jnp.eye(size, dtype=flat.dtype))
        matrix = (columns + columns.T) / 2
        factor = jnp.linalg.cholesky(matrix)
        positive = jnp.all(jnp.isfinite(factor))
        solved = jsl.cho_solve((jnp.where(positive, factor, jnp.eye(size, dtype=flat.dtype)), True), flat)
        value = jnp.where(positive, solved, ravel_pytree(system.start)[0])
        infinite = jnp.asarray(jnp.inf, flat.dtype)
        finite = jnp.all(jnp.isfinite(matrix))
        least = jax.lax.cond(positive | ~finite, lambda a: infinite, lambda a: jnp.linalg.eigvalsh(a)[0], matrix)
        return LinearSolution(unravel(value), count(1), count(size), jnp.where(finite, least, jnp.nan))
