"""The look-ahead estimate: how far a hypergradient moves when the solves behind it are taken further. For any loss."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._certificate import Certificate
from .._hyper import natural
from .._trees import tree_all_finite, tree_axpy, tree_dot, tree_dtype, tree_norm, tree_size, tree_sub
from ._adjoint_solvers import conjugate_gradients
from ._answers import STATUS, TwoSidedCertificate
from ._bounds import HYPERGRADIENT, VALUE, AbstractCertifier, Certified, Evaluation
from ._inner_loss import AbstractInnerLoss, Point


class _Here(eqx.Module):
    """ŵ, q and h, and how far h has moved in the round that led here, entry by entry."""

    point: Point
    adjoint: PyTree
    grad: PyTree
    moved: PyTree
    rounds: Int[Array, ""]
    products: Int[Array, ""]
    sound: Bool[Array, ""]


class LookAheadEstimate(AbstractCertifier):
    """‖h⁺ - dF/dλ‖₂ ≈ 2‖h⁺ - h‖₂: an estimate of the error, with no proof, for any smooth loss.

    h is the hypergradient at (ŵ, q), h⁺ that at a point one inexact Newton step and one refinement of the adjoint
    further. While the solves converge, an answer moves by about its own error, so the answer h⁺ is off by less than it
    has just moved; the factor 2 is for what is not known (and never less than 100 units of rounding). Rounds are added
    until that is at most `relative` ‖h⁺‖₂.

    Of kind `estimated`: it fails where the solves make no progress without saying so, and (rarely) where errors cancel
    in h. For an inner loss that is not convex it speaks of the branch of minima that ŵ belongs to. Where a Newton step
    does not lower ‖∇g‖ (an indefinite Hessian, a rounding floor) it is infinite, and the status says `rounds_spent`.
    A system that is not the Hessian's, such as the damped one of [`hyprax.implicit.GaussNewton`][], is named in the
    text: then this says how well that system has been solved, not how far its solution is from the hypergradient.

    **Arguments:**

    - `relative`: stop when the estimate is at most this times ‖h⁺‖₂.
    - `rounds`: the most rounds, at least 1.
    - `accuracy`: the relative residual of the linear solves of each round.
    - `steps`: the most steps of each linear solve.
    """

    relative: float = 1e-2
    rounds: int = 3
    accuracy: float = 1e-2
    steps: int = 200

    of_hessian: ClassVar[bool] = False

    def __check_init__(self):
        if not (self.relative >= 0 and self.rounds >= 1 and 0 < self.accuracy < 1 and self.steps >= 1):
            raise ValueError(
                f"LookAheadEstimate: relative must be >= 0, rounds and steps >= 1 and 0 < accuracy < 1; got "
                f"{self.relative}, {self.rounds}, {self.steps} and {self.accuracy}."
            )

    def prepare(self, loss, outer, outer_data) -> "LookAheadEstimate":
        return self

    def assumed_convexity(self, point: Point, hyper: PyTree, loss: AbstractInnerLoss) -> Float[Array, ""]:
        return jnp.zeros((), tree_dtype(point.params))

    def certify(self, evaluation: Evaluation) -> Certified:
        e, loss, hyper = evaluation, evaluation.loss, evaluation.hyper
        dtype = tree_dtype(e.point.params)
        most = min(self.steps, 2 * tree_size(e.adjoint) + 20)
        accuracy = jnp.asarray(self.accuracy, dtype)

        def of_outer(params: PyTree, hyper: PyTree) -> Float[Array, ""]:
            return e.outer(params, natural(hyper), e.outer_data)

        def ahead(now: _Here) -> _Here:
            step = conjugate_gradients(
                loss.product(now.point, hyper),
                now.point.grad,
                accuracy * tree_norm(now.point.grad),
                preconditioner=loss.preconditioner(now.point, hyper),
                max_steps=most,
            )
            point = loss.at(tree_axpy(jnp.asarray(-1, dtype), step.value, now.point.params), hyper)
            falls = tree_all_finite(point.grad) & (tree_norm(point.grad) < tree_norm(now.point.grad))
            point = jax.tree.map(lambda a, b: jnp.where(falls, a, b), point, now.point)
            outer_grad, direct = jax.grad(of_outer, argnums=(0, 1))(point.params, hyper)
            product = loss.product(point, hyper)
            residual = tree_sub(outer_grad, product(now.adjoint))
            correction = conjugate_gradients(
                product,
                residual,
                accuracy * tree_norm(residual),
                preconditioner=loss.preconditioner(point, hyper),
                max_steps=most,
            )
            adjoint = tree_axpy(jnp.asarray(1, dtype), correction.value, now.adjoint)
            left = tree_norm(tree_sub(outer_grad, product(adjoint)))
            curved = tree_dot(adjoint, product(adjoint)) >= 0
            refined = tree_all_finite(adjoint) & (left <= tree_norm(residual)) & curved
            adjoint = jax.tree.map(lambda a, b: jnp.where(refined, a, b), adjoint, now.adjoint)
            grad = tree_sub(direct, loss.mixed(point, hyper, adjoint))
            # At an exact stationary point nothing can fall, and nothing need.
            still = (tree_norm(now.point.grad) == 0) | falls
            return _Here(
                point=point,
                adjoint=adjoint,
                grad=grad,
                moved=jax.tree.map(lambda a, b: 2 * jnp.abs(a - b), grad, now.grad),
                rounds=now.rounds + 1,
                products=now.products + step.steps + correction.steps + 5,
                sound=still & refined,
            )

        def small(now: _Here) -> Bool[Array, ""]:
            return tree_norm(now.moved) <= self.relative * tree_norm(now.grad)

        def unfinished(now: _Here) -> Bool[Array, ""]:
            fresh = now.rounds == 0
            return fresh | (jnp.logical_not(small(now)) & now.sound & (now.rounds < self.rounds))

        first_grad = tree_sub(e.direct, loss.mixed(e.point, hyper, e.adjoint))
        endless = jax.tree.map(lambda h: jnp.full_like(h, jnp.inf), first_grad)
        zero = jnp.asarray(0)
        start = _Here(e.point, e.adjoint, first_grad, endless, zero, zero, jnp.asarray(True))
        last = jax.lax.while_loop(unfinished, ahead, start)
        kind = jnp.finfo(dtype)  # below the root of its least number sums of squares are 0, and solvers do nothing
        rounding = 100 * float(kind.eps) * tree_norm(last.grad) + 2.0**10 * float(kind.tiny) ** 0.5
        estimate = jnp.where(last.sound, jnp.maximum(tree_norm(last.moved), rounding), jnp.inf)
        estimate = jnp.where(jnp.isnan(estimate), jnp.inf, estimate)
        shift = tree_norm(tree_sub(last.grad, first_grad))
        certificate = TwoSidedCertificate(
            bound=estimate,
            kind="estimated",
            quantity=HYPERGRADIENT,
            method=" ".join(("look-ahead, twice the last change, without proof", loss.system)).strip(),
            shift=shift,
            lower=jnp.maximum(shift - estimate, 0),
            upper=shift + estimate,
            entries=last.moved,
            status=STATUS.where(last.sound & small(last), STATUS.decision_made, STATUS.rounds_spent),
            terms={"rounds": last.rounds},
        )
        return Certified(last.grad, certificate, last.point.params, last.adjoint, last.products)

    def value(self, evaluation: Evaluation) -> Certificate:
        """|f(ŵ) - F| ≈ 2|∇fᵀ s|, s the inexact Newton step from ŵ."""
        loss, hyper, point = evaluation.loss, evaluation.hyper, evaluation.point
        step = conjugate_gradients(
            loss.product(point, hyper),
            point.grad,
            jnp.asarray(self.accuracy, tree_dtype(point.params)) * tree_norm(point.grad),
            preconditioner=loss.preconditioner(point, hyper),
            max_steps=min(self.steps, 2 * tree_size(point.params) + 20),
        )
        change = 2 * jnp.abs(tree_dot(evaluation.outer_grad, step.value))
        method = "twice the change by a Newton step, without proof"
        return Certificate(jnp.where(jnp.isfinite(change), change, jnp.inf), "estimated", VALUE, method)
