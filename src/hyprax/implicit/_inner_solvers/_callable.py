"""A solver of the user."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._inner_loss import AbstractInnerLoss
from ._solver import AbstractInnerSolver, Minimum, check_settings

ValueAndGrad = Callable[[PyTree], tuple[Float[Array, ""], PyTree]]


class CallableSolver(AbstractInnerSolver):
    """w = fn(value_and_grad, w_0, tolerance, max_steps): any minimiser that JAX can trace.

    Nothing it says is believed: the gradient norm of what it returns is measured, and decides whether the inner problem
    counts as solved. What it evaluates on its way is not seen, so that `stats` count one gradient, that of the
    measurement.

    **Arguments:**

    - `fn`: `fn(value_and_grad, params0, tolerance, max_steps) -> params`, a pure function; `value_and_grad(params)` is
        g and ∇_w g at the present hyperparameters, `params0` the warm start, `tolerance` a traced scalar. A name at
        module level compiles once; a new lambda in every call compiles anew.
    - `tolerance`: ‖∇g‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: passed on.

    **Raises:** `ValueError` where it returns another structure, or other shapes or dtypes, than it was given.
    """

    fn: Callable[[ValueAndGrad, PyTree, Float[Array, ""], int], PyTree]
    tolerance: float | None = None
    max_steps: int = 1000

    citations: ClassVar[tuple[str, ...]] = ()

    def __check_init__(self):
        check_settings("CallableSolver", self.tolerance, self.max_steps)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        def value_and_grad(w: PyTree) -> tuple[Float[Array, ""], PyTree]:
            point = loss.at(w, hyper)
            return point.value, point.grad

        found = jax.tree.map(jnp.asarray, self.fn(value_and_grad, params, tolerance, self.max_steps))
        given, returned = (jax.eval_shape(lambda tree=tree: tree) for tree in (params, found))
        if given != returned:
            raise ValueError(f"solver: the function must return what it was given, {given}; got {returned}.")
        return Minimum(loss.at(found, hyper), jnp.asarray(0), jnp.asarray(1))
