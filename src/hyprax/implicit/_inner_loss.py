"""The inner loss as the engine sees it: values, gradients, Hessian and mixed products at a point.

An arbitrary loss is differentiated automatically; a family (see `families`) knows its derivatives in closed form, and
more: the constants that certificates need.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from .._hyper import natural

Product = Callable[[PyTree], PyTree]


class Point(eqx.Module):
    """g and ∇g at one point, and what a loss keeps of it for its Hessian products: arrays, carried through loops."""

    params: PyTree
    value: Float[Array, ""]
    grad: PyTree
    memory: PyTree


class AbstractInnerLoss(eqx.Module):
    """g(w, λ), with its derivatives in w, and in the unconstrained coordinates of λ."""

    @property
    def system(self) -> str:
        """What certificates must say of the matrix A where it is not the Hessian; empty where it is."""
        return ""

    @abc.abstractmethod
    def value(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        """g(params, hyper)."""

    @abc.abstractmethod
    def at(self, params: PyTree, hyper: PyTree) -> Point:
        """g and ∇_w g at `params`, and what Hessian products there need: about one gradient."""

    @abc.abstractmethod
    def product(self, point: Point, hyper: PyTree) -> Product:
        """v ↦ A v at the point, sharing whatever does not depend on v between products."""

    @abc.abstractmethod
    def preconditioner(self, point: Point, hyper: PyTree) -> Product | None:
        """v ↦ M⁻¹ v with M ≈ A at the point, symmetric positive definite; `None` where the loss knows none."""

    @abc.abstractmethod
    def mixed(self, point: Point, hyper: PyTree, adjoint: PyTree) -> PyTree:
        """Bᵀq = ∂/∂(raw hyper) <∇_w g(w, hyper), adjoint> at the point: the structure of `hyper`."""


class AutodiffLoss(AbstractInnerLoss):
    """g(w, λ) = fn(w, natural(λ), data) for any smooth function; derivatives by JAX."""

    fn: Callable[[PyTree, PyTree, Any], Float[Array, ""]]
    data: PyTree

    def value(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        return self.fn(params, natural(hyper), self.data)

    def at(self, params: PyTree, hyper: PyTree) -> Point:
        value, grad = jax.value_and_grad(self.value)(params, hyper)
        return Point(params, value, grad, None)

    def product(self, point: Point, hyper: PyTree) -> Product:
        return jax.linearize(lambda w: jax.grad(self.value)(w, hyper), point.params)[1]

    def preconditioner(self, point: Point, hyper: PyTree) -> Product | None:
        return None

    def mixed(self, point: Point, hyper: PyTree, adjoint: PyTree) -> PyTree:
        def slope(hyper: PyTree) -> Float[Array, ""]:
            return jax.jvp(lambda w: self.value(w, hyper), (point.params,), (adjoint,))[1]

        return jax.grad(slope)(hyper)
