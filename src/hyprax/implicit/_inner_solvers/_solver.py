"""What an inner solver is, and what it gives."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ..._products import product
from .._inner_loss import AbstractInnerLoss, Point, Product


class Minimum(eqx.Module):
    """Where a solver stopped, and what it took: iterations, and gradients plus Hessian-vector products.

    - `inverse`: a dense approximation of A⁻¹ near the point, where the solver has made one on the way: the adjoint
        system is preconditioned by it.
    """

    point: Point
    steps: Int[Array, ""]
    products: Int[Array, ""]
    inverse: Float[Array, "d d"] | None = None

    def preconditioner(self, loss: AbstractInnerLoss, hyper: PyTree) -> Product | None:
        """v ↦ M⁻¹v at the point: that of the solver, else that of the loss."""
        inverse = self.inverse
        return loss.preconditioner(self.point, hyper) if inverse is None else lambda v: product(inverse, v)


class AbstractInnerSolver(eqx.Module):
    """A way to find w with ‖∇g(w)‖₂ <= tolerance. Settings only: the state is in the call."""

    tolerance: eqx.AbstractVar[float | None]
    """The gradient norm to stop at; `None` for the square root of the rounding unit of the parameters."""
    max_steps: eqx.AbstractVar[int]
    """The most steps; stopping there is reported as `inner_not_converged`."""

    @abc.abstractmethod
    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        """Start at `params`, stop at ‖∇_w g‖₂ <= `tolerance`, at the rounding floor, or after `max_steps`."""


def check_settings(name: str, tolerance: float | None, max_steps: int) -> None:
    """Refuse settings that mean nothing."""
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"{name}: tolerance must be > 0, or None for the default; got {tolerance}.")
    if max_steps < 1:
        raise ValueError(f"{name}: max_steps must be an integer >= 1; got {max_steps}.")


def value_slack(value: Float[Array, ""]) -> Float[Array, ""]:
    """8ε|g|: an increase of a few rounding units is no evidence against a step (Hager and Zhang 2005)."""
    return 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)
