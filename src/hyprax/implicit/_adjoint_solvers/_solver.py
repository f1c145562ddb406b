"""What an adjoint solver is given, and what it gives."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..._trees import tree_axpy, tree_dtype
from .._inner_loss import Product

TRUE_SYSTEM = "A q = ∇f"


class AdjointSystem(eqx.Module):
    """A q = rhs, to be solved from `start` to ‖A q - rhs‖₂ <= `residual`.

    - `product`: v ↦ A v.
    - `preconditioner`: v ↦ M⁻¹ v, M ≈ A, where the inner loss knows one.
    - `diagonal`: that of A, where the inner loss knows it.
    - `spectrum`: bounds (μ, L) of the eigenvalues of A, where the inner loss knows them.
    """

    product: Product
    rhs: PyTree
    residual: Float[Array, ""]
    start: PyTree
    preconditioner: Product | None = None
    diagonal: PyTree | None = None
    spectrum: tuple[Array, Array] | None = None


class LinearSolution(eqx.Module):
    """A solution as the solver left it; the residual is for the caller to recompute.

    - `steps`: iterations; `products`: products with A, all of them.
    - `curvature`: the least vᵀAv/vᵀv that was met on the way, raised by its rounding; infinite where none was measured.
    - `damping`: ρ, where (A + ρI) q = ∇f was solved instead: the residual is judged with it.
    """

    value: PyTree
    steps: Int[Array, ""]
    products: Int[Array, ""]
    curvature: Float[Array, ""]
    damping: float = eqx.field(static=True, default=0.0)


class AbstractAdjointSolver(eqx.Module):
    """A way to find q with ‖A q - ∇f‖₂ <= tolerance. Settings only: warm starts are in the call."""

    tolerance: eqx.AbstractVar[float | None]
    """The residual to stop at, relative to ‖∇f‖₂; `None` for the square root of the rounding unit."""
    truncated: ClassVar[bool] = False
    """Whether the amount of work is fixed: the residual is then reported, and judged only where one was asked for."""
    solves_indefinite: ClassVar[bool] = False
    """Whether an A with eigenvalues of both signs is solved too."""

    @property
    def system(self) -> str:
        """The system that is solved: certificates name it where it is not A q = ∇f, or not to the end."""
        return TRUE_SYSTEM

    @abc.abstractmethod
    def solve(self, system: AdjointSystem) -> LinearSolution:
        """Start at `system.start`, stop at ‖A q - rhs‖₂ <= `system.residual`."""


def damped(product: Product, damping: float) -> Product:
    """v ↦ (A + ρI) v."""
    return (lambda v: tree_axpy(damping, v, product(v))) if damping else product


def damped_system(damping: float) -> str:
    """The name of (A + ρI) q = ∇f."""
    return f"(A + {damping:g} I) q = ∇f, damped" if damping else TRUE_SYSTEM


def unmeasured(like: PyTree) -> Float[Array, ""]:
    """The curvature of a solver that has measured none."""
    return jnp.asarray(jnp.inf, tree_dtype(like))


def count(number: int) -> Int[Array, ""]:
    """A number of steps or products that is known beforehand."""
    return jnp.asarray(number)


def check_settings(name: str, tolerance: float | None, max_steps: int | None, damping: float = 0.0) -> None:
    """Refuse settings that mean nothing."""
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"{name}: tolerance must be > 0, or None for the default; got {tolerance}.")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"{name}: max_steps must be an integer >= 1, or None; got {max_steps}.")
    if not damping >= 0:
        raise ValueError(f"{name}: damping must be >= 0; got {damping}.")


def zeros_like(tree: PyTree) -> PyTree:
    """0, in the structure of `tree`."""
    return jax.tree.map(jnp.zeros_like, tree)
