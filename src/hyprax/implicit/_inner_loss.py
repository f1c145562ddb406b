"""The inner loss as the engine sees it: values, gradients, Hessian and mixed products at a point.

An arbitrary loss is differentiated automatically; a family (see `families`) knows its derivatives in closed form, and
more: the constants that certificates need.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._hyper import as_floating, natural
from .._trees import tree_norm

Product = Callable[[PyTree], PyTree]


class Point(eqx.Module):
    """g and ∇g at one point, and what a loss keeps of it for its Hessian products: arrays, carried through loops."""

    params: PyTree
    value: Float[Array, ""]
    grad: PyTree
    memory: PyTree


class AbstractInnerLoss(eqx.Module):
    """g(w, λ), with its derivatives in w, and in the unconstrained coordinates of λ.

    What a loss of unknown structure cannot say it answers with `None`; [`hyprax.implicit.GaussNewton`][] and plain
    functions do, and share the base of this class that says so.
    """

    @property
    @abc.abstractmethod
    def system(self) -> str:
        """What certificates must say of the matrix A where it is not the Hessian; empty where it is."""

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
    def mixed(self, point: Point, hyper: PyTree, adjoint: PyTree) -> PyTree:
        """Bᵀq = ∂/∂(raw hyper) <∇_w g(w, hyper), adjoint> at the point: the structure of `hyper`."""

    @abc.abstractmethod
    def begin(self, params0: PyTree | None) -> tuple["AbstractInnerLoss", PyTree]:
        """The loss and where a cold start begins, both in one dtype that holds what was given.

        **Raises:** `ValueError` for parameters that the loss cannot take.
        """

    @abc.abstractmethod
    def scale(self, params0: PyTree, hyper: PyTree) -> Float[Array, ""]:
        """The size of ∇g away from the optimum: what default tolerances are relative to."""

    @abc.abstractmethod
    def preconditioner(self, point: Point, hyper: PyTree) -> Product | None:
        """v ↦ M⁻¹ v with M ≈ A at the point, symmetric positive definite."""

    @abc.abstractmethod
    def certifiable(self, hyper: PyTree) -> bool:
        """Whether bounds by the structure of a family apply: its hyperparameters are leaves as they are."""

    @abc.abstractmethod
    def strong_convexity(self, hyper: PyTree) -> Float[Array, ""] | None:
        """μ with A ⪰ μ I everywhere; not above 0 where the loss need not have a minimum.

        For a family with columns without penalty, of the block of the others alone.
        """

    @abc.abstractmethod
    def spectrum(self, hyper: PyTree) -> tuple[Array, Array] | None:
        """(μ, L) with μ I ⪯ A ⪯ L I everywhere."""

    @abc.abstractmethod
    def diagonal(self, point: Point, hyper: PyTree) -> PyTree | None:
        """The diagonal of A."""

    @abc.abstractmethod
    def hessian(self, point: Point, hyper: PyTree) -> Float[Array, "d d"] | None:
        """A as a matrix, where forming it costs no more than some tens of products."""


class AbstractFunctionLoss(AbstractInnerLoss):
    """A loss of unknown structure: its gradient and mixed products by JAX, and nothing known beyond."""

    def at(self, params: PyTree, hyper: PyTree) -> Point:
        value, grad = jax.value_and_grad(self.value)(params, hyper)
        return Point(params, value, grad, None)

    def mixed(self, point: Point, hyper: PyTree, adjoint: PyTree) -> PyTree:
        def slope(hyper: PyTree) -> Float[Array, ""]:
            return jax.jvp(lambda w: self.value(w, hyper), (point.params,), (adjoint,))[1]

        return jax.grad(slope)(hyper)

    def begin(self, params0: PyTree | None) -> tuple[AbstractInnerLoss, PyTree]:
        if not jax.tree.leaves(params0):
            raise ValueError("Optimum: params0 must be a pytree of floating arrays; got no parameters.")
        return self, jax.tree.map(lambda leaf: as_floating(leaf, "params0"), params0)

    def scale(self, params0: PyTree, hyper: PyTree) -> Float[Array, ""]:
        """‖∇g(params0)‖₂; at least 10⁻³, for parameters that are optimal already."""
        return jnp.maximum(tree_norm(jax.grad(self.value)(params0, hyper)), 1e-3)

    def preconditioner(self, point: Point, hyper: PyTree) -> None:
        return None

    def certifiable(self, hyper: PyTree) -> bool:
        return False

    def strong_convexity(self, hyper: PyTree) -> None:
        return None

    def spectrum(self, hyper: PyTree) -> None:
        return None

    def diagonal(self, point: Point, hyper: PyTree) -> None:
        return None

    def hessian(self, point: Point, hyper: PyTree) -> None:
        return None


class AutodiffLoss(AbstractFunctionLoss):
    """g(w, λ) = fn(w, natural(λ), data) for any smooth function; derivatives by JAX."""

    fn: Callable[[PyTree, PyTree, Any], Float[Array, ""]]
    data: PyTree

    @property
    def system(self) -> str:
        return ""

    def value(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        return self.fn(params, natural(hyper), self.data)

    def product(self, point: Point, hyper: PyTree) -> Product:
        return jax.linearize(lambda w: jax.grad(self.value)(w, hyper), point.params)[1]
