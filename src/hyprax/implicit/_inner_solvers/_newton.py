"""Newton's method with conjugate gradients."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..._trees import tree_axpy, tree_dot, tree_norm, tree_size
from .._adjoint_solvers import conjugate_gradients
from .._inner_loss import AbstractInnerLoss, Point, Product
from ._solver import AbstractInnerSolver, Minimum, check_settings, value_slack


class _NewtonCarry(eqx.Module):
    point: Point
    norm: Float[Array, ""]
    inverse: Array | None
    slow: Bool[Array, ""]
    stalled: Int[Array, ""]
    steps: Int[Array, ""]
    products: Int[Array, ""]


class Newton(AbstractInnerSolver):
    """w ← w - t A⁻¹ ∇g(w), A = ∂²g(w); t = 1, halved until g falls (Armijo, rounding allowed for).

    The direction comes from conjugate gradients on Hessian-vector products of one linearisation, with the
    preconditioner of the loss where it has one, to a relative residual of min(0.1, ‖∇g‖/‖∇g(start)‖): loose far from
    the optimum, quadratic convergence near it. For strongly convex g; where g curves downwards, the direction is that
    found so far.

    A is not formed, but for a family with one output and at most 512 features, where it takes about as long as d/10
    products: then it is formed and inverted at a point where conjugate gradients were slow, and preconditions all that
    follows, the adjoint system too. Every answer is still that of the iteration: the inverse saves products only.

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
        check_settings("Newton", self.tolerance, self.max_steps)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        start = loss.at(params, hyper)
        start_norm = tree_norm(start.grad)
        formed = loss.hessian(start, hyper) is not None
        inverse = _inverted(loss.preconditioner(start, hyper), start.grad) if formed else None
        patience = max(3, tree_size(params) // 16)

        def unfinished(carry: _NewtonCarry) -> Bool[Array, ""]:
            # Two steps in a row that lower neither the loss, rounding aside, nor the gradient norm are the rounding
            # floor: more would wander about it.
            return (carry.norm > tolerance) & (carry.steps < self.max_steps) & (carry.stalled < 2)

        def step(carry: _NewtonCarry) -> _NewtonCarry:
            point = carry.point
            forcing = jnp.minimum(0.1, carry.norm / start_norm)
            # Nothing is gained by a direction that takes the gradient far below the tolerance.
            residual = jnp.maximum(forcing * carry.norm, 0.1 * tolerance)
            inverse = carry.inverse
            if inverse is not None:
                old = inverse
                inverse = jax.lax.cond(carry.slow, lambda: _exact_inverse(loss, point, hyper, old), lambda: old)
            solved = conjugate_gradients(
                loss.product(point, hyper),
                point.grad,
                residual,
                preconditioner=Minimum(point, carry.steps, carry.products, inverse).preconditioner(loss, hyper),
                max_steps=2 * tree_size(params) + 20,
            )
            # Negative curvature at the very first direction leaves nothing solved: then the gradient.
            downhill = tree_dot(point.grad, solved.value) > 0
            direction = jax.tree.map(lambda d, g: jnp.where(downhill, d, g), solved.value, point.grad)
            slope = -tree_dot(point.grad, direction)
            slack = value_slack(point.value)

            def trial(t: Float[Array, ""]) -> Point:
                return loss.at(tree_axpy(-t, direction, point.params), hyper)

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
            falls = new.value < point.value - slack
            keep = falls | (norm < carry.norm)
            new = jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, point)
            return _NewtonCarry(
                point=new,
                norm=jnp.where(keep, norm, carry.norm),
                inverse=inverse,
                slow=solved.steps > patience,
                stalled=jnp.where(falls | (norm < 0.9 * carry.norm), 0, carry.stalled + 1),
                steps=carry.steps + 1,
                products=carry.products + solved.steps + halvings + 1,
            )

        zero = jnp.asarray(0)
        no = jnp.asarray(False)
        carry = _NewtonCarry(start, start_norm, inverse, no, zero, zero, jnp.asarray(1))
        carry = jax.lax.while_loop(unfinished, step, carry)
        return Minimum(carry.point, carry.steps, carry.products, carry.inverse)


def _inverted(solve: Product | None, like: Array) -> Array | None:
    """The matrix of v ↦ M⁻¹v."""
    return None if solve is None else jax.vmap(solve)(jnp.eye(like.size, dtype=like.dtype))


def _exact_inverse(loss: AbstractInnerLoss, point: Point, hyper: PyTree, old: Array) -> Array:
    """A⁻¹ at the point; the old approximation where rounding leaves A without a factor."""
    matrix = loss.hessian(point, hyper)
    assert matrix is not None  # it is asked for where there is one
    inverse = jsl.cho_solve((jnp.linalg.cholesky(matrix), True), jnp.eye(len(matrix), dtype=matrix.dtype))
    return jnp.where(jnp.all(jnp.isfinite(inverse)), inverse, old)
