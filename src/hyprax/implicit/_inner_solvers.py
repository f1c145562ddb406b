"""Solvers for the inner problem: min_w g(w), stopped by the gradient norm.

The driver is `optimistix.minimise`; its own solvers stop when successive iterates agree, which says little about the
gradient (the usual cause of a hypergradient that is silently wrong), so each is wrapped to stop at ‖∇g‖₂ <= tolerance.
"""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._trees import tree_axpy, tree_dot, tree_norm, tree_size
from ._adjoint_solvers import conjugate_gradients
from ._inner_loss import AbstractInnerLoss, Point


class Minimum(eqx.Module):
    """Where a solver stopped, and what it took: iterations, and gradients plus Hessian-vector products."""

    point: Point
    steps: Int[Array, ""]
    products: Int[Array, ""]


class AbstractInnerSolver(eqx.Module):
    """A way to find w with ‖∇g(w)‖₂ <= tolerance. Settings only: the state is in the call."""

    tolerance: eqx.AbstractVar[float | None]
    """The gradient norm to stop at; `None` for the square root of the rounding unit of the parameters."""
    max_steps: eqx.AbstractVar[int]
    """The most steps; stopping there is reported as `inner_not_converged`."""

    @abc.abstractmethod
    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        """Start at `params`, stop at ‖∇_w g‖₂ <= `tolerance`, at the rounding floor, or after `max_steps`."""


def _check_settings(name: str, tolerance: float | None, max_steps: int) -> None:
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"{name}: given tolerance {tolerance}, allowed are numbers > 0 (or None for the default).")
    if max_steps < 1:
        raise ValueError(f"{name}: given max_steps {max_steps}, allowed are integers >= 1.")


class _RoundingAwareArmijo(optx.BacktrackingArmijo):
    """Armijo's rule, f(y + s) <= f(y) + c s·∇f, with the rounding of f allowed for.

    Near the optimum the predicted decrease falls below the rounding of f (at a gradient norm of about 1e-8 in float64),
    and the plain rule then rejects every good step: an L-BFGS stopped there was the cause of published Jacobians with
    wrong signs. An increase of a few rounding units is no evidence against a step (Hager and Zhang 2005).
    """

    def step(self, first_step, y, y_eval, f_info, f_eval_info, state):  # pyright: ignore[reportIncompatibleMethodOverride]
        f, f_eval = f_info.as_min(), f_eval_info.as_min()
        slack = 8 * jnp.finfo(f.dtype).eps * jnp.abs(f)
        rounding = jnp.abs(f_eval - f) <= slack
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
        _check_settings("LBFGS", self.tolerance, self.max_steps)
        if self.memory < 1:
            raise ValueError(f"LBFGS: given memory {self.memory}, allowed are integers >= 1.")

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        solver = optx.LBFGS(rtol=0.0, atol=0.0, norm=tree_norm, history_length=self.memory)
        solver = eqx.tree_at(lambda s: s.search, solver, _RoundingAwareArmijo())
        solution = optx.minimise(
            lambda w, hyper: loss.value(w, hyper),
            _StopAtGradientNorm(solver=solver, tolerance=tolerance),
            params,
            hyper,
            max_steps=self.max_steps,
            throw=False,
        )
        steps = jnp.asarray(solution.stats["num_steps"])
        return Minimum(loss.at(solution.value, hyper), steps, steps + 1)


class _NewtonCarry(eqx.Module):
    point: Point
    norm: Float[Array, ""]
    stalled: Int[Array, ""]
    steps: Int[Array, ""]
    products: Int[Array, ""]


class Newton(AbstractInnerSolver):
    """w ← w - t A⁻¹ ∇g(w), A = ∂²g(w); t = 1, halved until g falls (Armijo, rounding allowed for).

    A is never formed. The direction comes from conjugate gradients on Hessian-vector products of one linearisation,
    with the preconditioner of the loss where it has one, to a relative residual of min(0.1, ‖∇g‖/‖∇g(start)‖): loose
    far from the optimum, quadratic convergence near it. For strongly convex g.

    **Arguments:**

    - `tolerance`: ‖∇g‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: Newton steps, at most.

    Source: Dembo, Eisenstat and Steihaug (SIAM J. Numer. Anal. 19, 1982).
    """

    tolerance: float | None = None
    max_steps: int = 100

    citations: ClassVar[tuple[str, ...]] = (
        """@article{dembo1982inexact, author = {Dembo, Ron S. and Eisenstat, Stanley C. and Steihaug, Trond},
  title = {Inexact {Newton} methods}, journal = {SIAM Journal on Numerical Analysis},
  volume = {19}, number = {2}, pages = {400--408}, year = {1982}}""",
    )

    def __check_init__(self):
        _check_settings("Newton", self.tolerance, self.max_steps)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        start = loss.at(params, hyper)
        start_norm = tree_norm(start.grad)

        def unfinished(carry: _NewtonCarry) -> Bool[Array, ""]:
            # Two steps in a row that do not lower the gradient norm are the rounding floor: more would wander about it.
            return (carry.norm > tolerance) & (carry.steps < self.max_steps) & (carry.stalled < 2)

        def step(carry: _NewtonCarry) -> _NewtonCarry:
            point = carry.point
            forcing = jnp.minimum(0.1, carry.norm / start_norm)
            # Nothing is gained by a direction that takes the gradient far below the tolerance.
            residual = jnp.maximum(forcing * carry.norm, 0.1 * tolerance)
            solved = conjugate_gradients(
                loss.product(point, hyper),
                point.grad,
                residual,
                preconditioner=loss.preconditioner(point, hyper),
                max_steps=2 * tree_size(params) + 20,
            )
            slope = -tree_dot(point.grad, solved.value)
            slack = 8 * jnp.finfo(point.value.dtype).eps * jnp.abs(point.value)

            def trial(t: Float[Array, ""]) -> Point:
                return loss.at(tree_axpy(-t, solved.value, point.params), hyper)

            def too_high(search: tuple[Float[Array, ""], Point, Int[Array, ""]]) -> Bool[Array, ""]:
                t, new, halvings = search
                falls = new.value <= point.value + 1e-4 * t * slope + slack
                return jnp.logical_not(falls) & (halvings < 40)

            def halve(search: tuple[Float[Array, ""], Point, Int[Array, ""]]):
                t, _, halvings = search
                return t / 2, trial(t / 2), halvings + 1

            one = jnp.ones_like(carry.norm)
            _, new, halvings = jax.lax.while_loop(too_high, halve, (one, trial(one), jnp.asarray(0)))
            norm = tree_norm(new.grad)
            better = norm < carry.norm
            keep = better | (new.value < point.value - slack)
            new = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, point)
            return _NewtonCarry(
                point=new,
                norm=jnp.where(keep, norm, carry.norm),
                stalled=jnp.where(keep & (norm < 0.9 * carry.norm), 0, carry.stalled + 1),
                steps=carry.steps + 1,
                products=carry.products + solved.steps + halvings + 1,
            )

        zero = jnp.asarray(0)
        carry = _NewtonCarry(start, start_norm, zero, zero, jnp.asarray(1))
        carry = jax.lax.while_loop(unfinished, step, carry)
        return Minimum(carry.point, carry.steps, carry.products)
