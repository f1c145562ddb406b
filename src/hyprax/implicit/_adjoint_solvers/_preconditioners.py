"""Preconditioners of the adjoint system: cheap approximate inverses M⁻¹ of A, made from products alone."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..._keys import checked_key
from ..._products import product as product_of
from .._inner_loss import Product
from ._solver import AbstractAdjointSolver, AdjointSystem, LinearSolution, count, unmeasured


class AbstractPreconditioner(eqx.Module):
    """A way to make v ↦ M⁻¹v, symmetric positive definite."""

    @abc.abstractmethod
    def prepare(self, system: AdjointSystem) -> tuple[Product | None, int]:
        """M⁻¹, `None` for the identity, and the products with A that it took."""


class Jacobi(AbstractPreconditioner):
    """M = diag(A): exact for a family; elsewhere d = Σ_k v_k ∘ A v_k / K over random signs v_k, an unbiased estimate.

    The estimate of an entry is off by about the norm of the rest of its row over √K; absolute values are taken, and
    none is let below 10⁻³ of the mean, so that M stays positive definite.

    **Arguments:**

    - `probes`: K, products of the estimate.
    - `key`: a JAX random key, for the signs; not needed for a family, whose diagonal is known.

    Source: Bekas, Kokiopoulou and Saad (Appl. Numer. Math. 57, 2007).
    """

    probes: int = 32
    key: Array | None = eqx.field(default=None, kw_only=True)

    citations: ClassVar[tuple[str, ...]] = (
        """@article{bekas2007estimator, author = {Bekas, C. and Kokiopoulou, E. and Saad, Y.},
  title = {An estimator for the diagonal of a matrix}, journal = {Applied Numerical Mathematics},
  volume = {57}, pages = {1214--1229}, year = {2007}}""",
    )

    def __check_init__(self):
        if self.probes < 1:
            raise ValueError(f"Jacobi: probes must be an integer >= 1; got {self.probes}.")
        if self.key is not None:
            checked_key("Jacobi", self.key)

    def prepare(self, system: AdjointSystem) -> tuple[Product | None, int]:
        spent = 0
        diagonal = system.diagonal
        if diagonal is None:
            diagonal, spent = self._estimate(system.product, system.rhs), self.probes
        inverse = jax.tree.map(lambda d: 1 / d, diagonal)
        return lambda v: jax.tree.map(jnp.multiply, inverse, v), spent

    def _estimate(self, product: Product, like: PyTree) -> PyTree:
        flat, unravel = ravel_pytree(like)

        def probe(total: Array, key: Array) -> tuple[Array, None]:
            signs = jax.random.rademacher(key, flat.shape, flat.dtype)
            return total + signs * ravel_pytree(product(unravel(signs)))[0], None

        keys = jax.random.split(checked_key("Jacobi", self.key), self.probes)
        total, _ = jax.lax.scan(probe, jnp.zeros_like(flat), keys)
        size = jnp.abs(total) / self.probes
        return unravel(jnp.maximum(size, 1e-3 * jnp.mean(size) + jnp.finfo(flat.dtype).tiny))


class Sketch(eqx.Module):
    """A ≈ U diag(values) Uᵀ, U `(params, rank)` with orthonormal columns; values descending, none negative."""

    basis: Float[Array, "size rank"]
    values: Float[Array, " rank"]


def nystrom_sketch(product: Product, like: PyTree, rank: int, key: Array) -> Sketch:
    """Y (ΩᵀY)⁻¹ Yᵀ with Y = AΩ, Ω a random orthonormal `(params, rank)` matrix: `rank` products.

    The stable form: with a shift ν = √size ε ‖Y‖, Y + νΩ = B Cᵀ, C the Cholesky factor of Ωᵀ(Y + νΩ), and U, values + ν
    from the singular value decomposition of B.

    Source: Frangella, Tropp and Udell (SIAM J. Matrix Anal. Appl. 44, 2023), algorithm 2.1.
    """
    flat, unravel = ravel_pytree(like)
    omega = jnp.linalg.qr(jax.random.normal(key, (flat.size, rank), flat.dtype))[0]
    images = jax.lax.map(lambda column: ravel_pytree(product(unravel(column)))[0], omega.T).T
    shift = jnp.sqrt(jnp.asarray(flat.size, flat.dtype)) * jnp.finfo(flat.dtype).eps * jnp.linalg.norm(images)
    shifted = images + shift * omega
    small = product_of(omega.T, shifted)
    factor = jnp.linalg.cholesky((small + small.T) / 2)
    half = jax.scipy.linalg.solve_triangular(factor, shifted.T, lower=True).T
    basis, singular, _ = jnp.linalg.svd(half, full_matrices=False)
    return Sketch(basis, jnp.maximum(jnp.square(singular) - shift, 0))


def check_rank(name: str, rank: int, size: int | None = None) -> None:
    """Refuse a rank that no sketch has."""
    if rank < 1 or (size is not None and rank > size):
        limit = "" if size is None else f" to the number of parameters, {size}"
        raise ValueError(f"{name}: rank must be an integer from 1{limit}; got {rank}.")


class Nystrom(AbstractPreconditioner, AbstractAdjointSolver):
    """The randomised Nyström approximation A_r = U diag(v) Uᵀ of rank r: a preconditioner, or an adjoint solver.

        M⁻¹ = v_r U diag(v)⁻¹ Uᵀ + (I - UUᵀ)                      in `CG(preconditioner=Nystrom(...))`
        q = (A_r + ρI)⁻¹∇f = ∇f/ρ - U (1/ρ - 1/(v + ρ)) Uᵀ∇f       in `ImplicitObjective(adjoint=Nystrom(...))`

    As a preconditioner it brings the r largest eigenvalues, which random products find, down to about v_r, so that CG
    sees the rest of the spectrum alone. As an adjoint solver it takes r products and no iteration, and solves ANOTHER
    system, which certificates name: q differs from A⁻¹∇f by what the rank leaves out and by the damping; the residual
    with the true A is measured and reported. In the original A_r is made from r columns of A; here from r random
    products, which is the same formula in a stable form and needs no single columns.

    **Arguments:**

    - `rank`: r, products and vectors of memory.
    - `damping`: ρ > 0, of the adjoint solver.
    - `key`: a JAX random key, for the random matrix.

    Source: Frangella, Tropp and Udell (SIAM J. Matrix Anal. Appl. 44, 2023; arXiv 2110.02820); Hataya and Yamada, arXiv
    2302.09726 (2023).
    """

    rank: int = 20
    damping: float = eqx.field(static=True, default=1e-2)
    tolerance: float | None = None
    key: Array = eqx.field(kw_only=True)

    truncated: ClassVar[bool] = True
    citations: ClassVar[tuple[str, ...]] = (
        """@article{frangella2023randomized, author = {Frangella, Zachary and Tropp, Joel A. and Udell, Madeleine},
  title = {Randomized {Nystr{\\"o}m} preconditioning}, journal = {SIAM Journal on Matrix Analysis and Applications},
  volume = {44}, pages = {718--752}, year = {2023}, note = {arXiv:2110.02820}}""",
        """@inproceedings{hataya2023nystrom, author = {Hataya, Ryuichiro and Yamada, Makoto},
  title = {Nystr{\\"o}m method for accurate and scalable implicit differentiation}, booktitle = {AISTATS},
  year = {2023}, note = {arXiv:2302.09726}}""",
    )

    def __check_init__(self):
        check_rank("Nystrom", self.rank)
        checked_key("Nystrom", self.key)
        if not self.damping > 0:
            raise ValueError(f"Nystrom: damping must be > 0; got {self.damping}.")

    @property
    def system(self) -> str:
        return f"(A_r + {self.damping:g} I) q = ∇f, A_r the Nyström approximation of A of rank {self.rank}"

    def _sketch(self, system: AdjointSystem) -> tuple[Array, Callable[[Array], PyTree], Sketch]:
        flat, unravel = ravel_pytree(system.rhs)
        check_rank("Nystrom", self.rank, flat.size)
        return flat, unravel, nystrom_sketch(system.product, system.rhs, self.rank, self.key)

    def solve(self, system: AdjointSystem) -> LinearSolution:
        flat, unravel, sketch = self._sketch(system)
        gain = 1 / (sketch.values + self.damping) - 1 / self.damping
        value = flat / self.damping + product_of(sketch.basis, gain * product_of(sketch.basis.T, flat))
        return LinearSolution(unravel(value), count(self.rank), count(self.rank), unmeasured(system.rhs), self.damping)

    def prepare(self, system: AdjointSystem) -> tuple[Product | None, int]:
        flat, unravel, sketch = self._sketch(system)
        # Values lost in rounding are raised to that of the smallest trusted one, or M would not be positive definite.
        values = jnp.maximum(sketch.values, 100 * jnp.finfo(flat.dtype).eps * sketch.values[0])
        gain = values[-1] / values - 1

        def solve(v: PyTree) -> PyTree:
            flat = ravel_pytree(v)[0]
            return unravel(flat + product_of(sketch.basis, gain * product_of(sketch.basis.T, flat)))

        return solve, self.rank
