"""What the implicit engine measures."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._stats import AbstractStats, Accuracy, Effort


class ImplicitStats(AbstractStats):
    """What an evaluation at an optimum took and reached; norms are Euclidean, and recomputed from their definitions.

    - `inner_gradient_norm`, `inner_tolerance`: ‖∇_w g‖ at the point found, and what was asked for.
    - `inner_steps`: of the inner solver.
    - `products`: gradients of the inner loss and products with its Hessian.
    - `adjoint_residual`, `adjoint_tolerance`: ‖A q - ∇f‖, and what was asked for; `None` for a value alone.
    - `adjoint_steps`: of the adjoint solver.
    - `curvature`: the smallest pᵀAp/pᵀp that was measured; `strong_convexity`: the constant that the certifier assumes.
    - `inaccurate`: only the accuracy asked for was missed.
    """

    inner_gradient_norm: Float[Array, ""]
    inner_tolerance: Float[Array, ""]
    inner_steps: Int[Array, ""]
    products: Int[Array, ""]
    adjoint_residual: Float[Array, ""] | None = None
    adjoint_tolerance: Float[Array, ""] | None = None
    adjoint_steps: Int[Array, ""] | None = None
    curvature: Float[Array, ""] | None = None
    strong_convexity: Float[Array, ""] | None = None
    inaccurate: Bool[Array, ""] | None = None

    def effort(self) -> Effort:
        adjoint = jnp.full_like(self.inner_gradient_norm, jnp.inf)
        adjoint = adjoint if self.adjoint_residual is None else self.adjoint_residual
        reached = Accuracy(self.inner_gradient_norm, adjoint)
        return Effort(self.products, reached, False if self.inaccurate is None else self.inaccurate)


class SingleLoopStats(AbstractStats):
    """What a stochastic step measured.

    - `example_passes`: how many gradients, Hessian products and mixed products of one example's loss it took.
    - `inner_direction_norm`, `adjoint_direction_norm`: ‖D_w‖ and ‖D_v‖; `None` for a value alone.
    - `inner_rate`: the (largest) step size of the inner variable.
    """

    example_passes: Int[Array, ""]
    inner_direction_norm: Float[Array, ""] | None = None
    adjoint_direction_norm: Float[Array, ""] | None = None
    inner_rate: Float[Array, ""] | None = None

    def effort(self) -> Effort:
        return Effort()
