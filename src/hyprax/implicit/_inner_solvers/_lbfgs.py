"""The limited-memory BFGS method.

The driver is `optimistix.minimise`; its own solvers stop when successive iterates agree, which says little about the
gradient (the usual cause of a hypergradient that is silently wrong), so it is wrapped to stop at ‖∇g‖₂ <= tolerance.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PyTree

from ..._trees import tree_norm
from .._inner_loss import AbstractInnerLoss
from ._solver import AbstractInnerSolver, Minimum, check_settings, value_slack


class _RoundingAwareArmijo(optx.BacktrackingArmijo):
    """Armijo's rule, f(y + s) <= f(y) + c s·∇f, with the rounding of f allowed for.

    Near the optimum the predicted decrease falls below the rounding of f (at a gradient norm of about 1e-8 in float64),
    and the plain rule then rejects every good step: an L-BFGS stopped there was the cause of published Jacobians with
    wrong signs. An increase of a few rounding units is no evidence against a step (Hager and Zhang 2005).
    """

    def step(self, first_step, y, y_eval, f_info, f_eval_info, state):
        f, f_eval = f_info.as_min(), f_eval_info.as_min()
        rounding = jnp.abs(f_eval - f) <= value_slack(f)
        step_size, accept, result, new_state = super().step(first_step, y, y_eval, f_info, f_eval_info, state)
        step_size = jnp.where(rounding, jnp.asarray(self.step_init, step_size.dtype), step_size)
        return step_size, accept | rounding, result, type(new_state)(step_size=step_size)


class _StopAtGradientNorm(optx.AbstractMinimiser):
    """Another minimiser, stopped at ‖∇f‖₂ <= tolerance instead of by the agreement of iterates.

    It reads the gradient of the last accepted point from the wrapped solver's state (`state.f_info.grad`), so the test
    costs no evaluation.
    """

    solver: optx.AbstractMinimiser
    tolerance: Float[Array, ""]
    # What the interface asks for, and this stop does not use.
    rtol: float = 0.0
    atol: float = 0.0
    norm: Callable[[PyTree], Float[Array, ""]] = tree_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        return self.solver.init(fn, y, args, options, f_struct, aux_struct, tags)

    def step(self, fn, y, args, options, state, tags):
        return self.solver.step(fn, y, args, options, state, tags)

    def terminate(self, fn, y, args, options, state, tags):
        _, result = self.solver.terminate(fn, y, args, options, state, tags)
        small = tree_norm(state.f_info.grad) <= self.tolerance
        return jnp.logical_not(state.first_step) & small, result

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return self.solver.postprocess(fn, y, aux, args, options, state, tags, result)


class LBFGS(AbstractInnerSolver):
    """w ← w - t H ∇g(w), H the limited-memory BFGS inverse Hessian of the last `memory` steps, t by Armijo's rule.

    `optimistix.LBFGS`, with a stop at the gradient norm and a line search that allows for rounding.

    **Arguments:**

    - `tolerance`: ‖∇g‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: evaluations of the loss and gradient, at most.
    - `memory`: pairs of differences kept.

    Source: Liu and Nocedal (Math. Prog. 45, 1989); Byrd, Nocedal and Schnabel (1994).
    """

    tolerance: float | None = None
    max_steps: int = 1000
    memory: int = 10

    citations: ClassVar[tuple[str, ...]] = (
        """@article{liu1989limited, author = {Liu, Dong C. and Nocedal, Jorge},
  title = {On the limited memory {BFGS} method for large scale optimization},
  journal = {Mathematical Programming}, volume = {45}, pages = {503--528}, year = {1989}}""",
    )

    def __check_init__(self):
        check_settings("LBFGS", self.tolerance, self.max_steps)
        if self.memory < 1:
            raise ValueError(f"LBFGS: memory must be an integer >= 1; got {self.memory}.")

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        solver = optx.LBFGS(rtol=0.0, atol=0.0, norm=tree_norm, history_length=self.memory)
        solver = eqx.tree_at(lambda s: s.search, solver, _RoundingAwareArmijo())
        # `optimistix.LBFGS` keeps inner products in JAX's default dtype and takes no other for the parameters.
        wide = jnp.result_type(float)

        def narrowed(w: PyTree) -> PyTree:
            return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), w, params)

        solution = optx.minimise(
            lambda w, hyper: loss.value(narrowed(w), hyper).astype(wide),
            _StopAtGradientNorm(solver=solver, tolerance=tolerance.astype(wide)),
            jax.tree.map(lambda leaf: leaf.astype(wide), params),
            hyper,
            max_steps=self.max_steps,
            throw=False,
        )
        steps = jnp.asarray(solution.stats["num_steps"])
        return Minimum(loss.at(narrowed(solution.value), hyper), steps, steps + 1)
