"""An inner loss whose systems are solved with a damped Gauss-Newton matrix: for models that are not convex."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._hyper import natural
from .._trees import tree_axpy, tree_dtype
from ._inner_loss import AbstractFunctionLoss, Point, Product


class GaussNewton(AbstractFunctionLoss):
    """g(w, λ) = ℓ(u(w, λ), λ) + R(w, λ), with A replaced by JᵀHJ + ∇²R + γI, J = ∂u/∂w, H = ∇²ℓ.

    Positive definite for convex ℓ and R and γ > 0, where the Hessian of a network is not: adjoint solvers then solve
    *this* system, and the answer is its hypergradient, not that of g. The two may differ by tens of per cent even for
    a small γ, and no certificate bounds that difference; every certificate names the system.

    **Arguments:** pure functions, hyper in natural units, for use as `inner_loss` of [`hyprax.Optimum`][].

    - `outputs`: `(params, hyper, data) -> u`, the predictions.
    - `loss`: `(u, hyper, data) -> ℓ`, convex in u.
    - `regulariser`: `(params, hyper) -> R`, convex in w; default 0.
    - `data`: passed to both.
    - `damping`: γ >= 0.

    Source: Schraudolph, Neural Computation 14 (2002), for products with JᵀHJ.
    """

    outputs: Callable[[PyTree, PyTree, Any], PyTree]
    loss: Callable[[PyTree, PyTree, Any], Float[Array, ""]]
    regulariser: Callable[[PyTree, PyTree], Float[Array, ""]] | None
    data: PyTree
    damping: float

    def __init__(
        self,
        outputs: Callable[[PyTree, PyTree, Any], PyTree],
        loss: Callable[[PyTree, PyTree, Any], Float[Array, ""]],
        *,
        regulariser: Callable[[PyTree, PyTree], Float[Array, ""]] | None = None,
        data: PyTree = None,
        damping: float,
    ):
        if not damping >= 0:
            raise ValueError(f"GaussNewton: damping must be a number >= 0; got {damping}.")
        self.outputs, self.loss, self.regulariser = outputs, loss, regulariser
        self.data, self.damping = data, float(damping)

    @property
    def system(self) -> str:
        return f"(of the damped Gauss-Newton system, damping {self.damping:g}, not of the Hessian)"

    def _regulariser(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        if self.regulariser is None:
            return jnp.zeros((), tree_dtype(params))
        return self.regulariser(params, natural(hyper))

    def value(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        plain = natural(hyper)
        loss = self.loss(self.outputs(params, plain, self.data), plain, self.data)
        return loss + self._regulariser(params, hyper)

    def product(self, point: Point, hyper: PyTree) -> Product:
        plain, params = natural(hyper), point.params
        outputs, tangent = jax.linearize(lambda w: self.outputs(w, plain, self.data), params)
        cotangent = jax.linear_transpose(tangent, params)
        slope = jax.grad(lambda u: self.loss(u, plain, self.data))
        curve = jax.linearize(slope, outputs)[1]
        of_regulariser = jax.linearize(lambda w: jax.grad(self._regulariser)(w, hyper), params)[1]
        damping = jnp.asarray(self.damping, tree_dtype(params))

        def product(v: PyTree) -> PyTree:
            (backward,) = cotangent(curve(tangent(v)))
            return tree_axpy(damping, v, jax.tree.map(jnp.add, backward, of_regulariser(v)))

        return product
