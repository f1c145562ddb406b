"""The look-ahead certificate: take one more step, bound the better point, and answer with it."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._certificate import ErrorBound
from .._trees import tree_sub
from ._adjoint_solvers import conjugate_gradients
from ._bounds import HYPERGRADIENT, AbstractBound, Certified, Evaluation, OuterLoss, value_certificate
from ._inner_loss import AbstractInnerLoss, Point
from ._self_concordance import FreeBound, free_bound
from .families import DesignNorms, GeneralisedLinear, MeanLoss


class _ScaledNorm(eqx.Module):
    """‖v‖_{Λ⁻¹}; a module, so that its array is an argument of the solver that uses it, not a captured constant."""

    inverse: Array

    def __call__(self, v: Array) -> Float[Array, ""]:
        return jnp.sqrt(jnp.sum(jnp.square(v) * self.inverse))


class _Round(eqx.Module):
    """The point of one round: ŵ, q, r, and the bound of the hypergradient there."""

    point: Point
    outer_grad: Array
    adjoint: Array
    residual: Array
    grad: Array
    bound: FreeBound


class _Carry(eqx.Module):
    current: _Round
    accuracy: Float[Array, ""]
    rounds: Int[Array, ""]
    products: Int[Array, ""]
    stuck: Bool[Array, ""]


class LookAhead(AbstractBound):
    """‖h⁺ - dF/dλ‖₂ <= ω⁺, and Δ - ω⁺ <= ‖h - dF/dλ‖₂ <= Δ + ω⁺ with Δ = ‖h - h⁺‖₂.

    h is the hypergradient that was computed; h⁺ that of a better point (w⁺, q⁺), one inexact Newton step and one
    refinement of the adjoint further; ω⁺ a bound there that needs no solve (generalised self-concordance, penalty
    scaled out). Rounds are added until ω⁺ <= Δ/2, which proves that Δ + ω⁺ is at most 3 times the error of h, or ω⁺
    <= `relative` ‖h⁺‖, or ω⁺ no longer falls (the rounding floor). The answer is h⁺ with the bound ω⁺, and the point
    is the next warm start, so the work is not lost.

    For families with their own mean loss as outer loss; rounding included; nothing is asked of the user.

    **Arguments:**

    - `relative`: stop when ω⁺ <= relative ‖h⁺‖₂.
    - `rounds`: the most rounds.

    `terms` of the certificate: `shift` Δ; `lower` and `upper`, the bounds Δ ∓ ω⁺ of the error of the unimproved h;
    `free`, the bound at the unimproved point; `rounds`.

    Source: own derivation; the self-concordance calculus is that of Bach (Electron. J. Stat. 4, 2010) and Sun and
    Tran-Dinh (Math. Prog. 178, 2019).
    """

    relative: float = 1e-3
    rounds: int = 5
    outer_norms: DesignNorms | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@article{bach2010selfconcordant, author = {Bach, Francis},
  title = {Self-concordant analysis for logistic regression}, journal = {Electronic Journal of Statistics},
  volume = {4}, pages = {384--414}, year = {2010}}""",
        """@article{sun2019generalized, author = {Sun, Tianxiao and Tran-Dinh, Quoc},
  title = {Generalized self-concordant functions: a recipe for {Newton}-type methods},
  journal = {Mathematical Programming}, volume = {178}, pages = {145--213}, year = {2019}}""",
    )

    def __check_init__(self):
        if not self.relative >= 0 or self.rounds < 0:
            raise ValueError(
                f"LookAhead: given relative {self.relative}, rounds {self.rounds}, allowed are numbers >= 0."
            )

    def prepare(self, loss: AbstractInnerLoss, outer: OuterLoss, outer_data: PyTree) -> "LookAhead":
        if not (isinstance(loss, GeneralisedLinear) and isinstance(outer, MeanLoss)):
            raise ValueError(
                "LookAhead: given losses of unknown structure, allowed are a family (hx.families) with its `mean_loss` "
                "as outer loss. Otherwise use hx.EhrhardtRoberts(constants=...) or hx.NoBound()."
            )
        return LookAhead(self.relative, self.rounds, DesignNorms(outer_data[0]))

    def strong_convexity(self, params: PyTree, hyper: PyTree, loss: AbstractInnerLoss) -> Float[Array, ""]:
        assert isinstance(loss, GeneralisedLinear)  # `prepare` has refused anything else
        return jnp.min(loss.strengths(hyper))

    def value(self, loss, outer, outer_data, hyper, point, outer_grad):
        assert isinstance(outer, MeanLoss)
        assert self.outer_norms is not None  # `prepare` has filled it in
        lipschitz = outer.loss.curvature * self.outer_norms.gram / self.outer_norms.rows.size
        mu = self.strong_convexity(point.params, hyper, loss)
        method = "gradient norm over the smallest strength, rounding included"
        return value_certificate(
            loss, outer, outer_data, self.outer_norms, hyper, point, outer_grad, mu, lipschitz, method
        )

    def certify(self, evaluation: Evaluation) -> Certified:
        e, loss, outer = evaluation, evaluation.loss, evaluation.outer
        assert isinstance(loss, GeneralisedLinear)
        assert isinstance(outer, MeanLoss)
        assert self.outer_norms is not None
        hyper, outer_norms = e.hyper, self.outer_norms
        slope = loss.slope(hyper)
        scaled = _ScaledNorm(1 / loss.strengths(hyper))

        def measured(point: Point, outer_grad: Array, adjoint: Array, residual: Array) -> _Round:
            grad = -slope * loss.grouped(point.params * adjoint, slope)
            bound = free_bound(loss, outer, e.outer_data, outer_norms, hyper, point, outer_grad, adjoint, residual)
            return _Round(point, outer_grad, adjoint, residual, grad, bound)

        first = measured(e.point, e.outer_grad, e.adjoint, e.residual)

        def shift(carry: _Carry) -> Float[Array, ""]:
            return jnp.linalg.norm(carry.current.grad - first.grad)

        def unfinished(carry: _Carry) -> Bool[Array, ""]:
            bound = carry.current.bound.total
            decided = bound <= self.relative * jnp.linalg.norm(carry.current.grad)
            proved = (carry.rounds > 0) & (bound <= 0.5 * shift(carry))
            return jnp.logical_not(decided | proved | carry.stuck) & (carry.rounds < self.rounds)

        def ahead(carry: _Carry) -> _Carry:
            now = carry.current
            most = 2 * now.adjoint.size + 20
            step = conjugate_gradients(
                loss.product(now.point, hyper),
                now.point.grad,
                carry.accuracy * scaled(now.point.grad),
                norm=scaled,
                preconditioner=loss.preconditioner(now.point, hyper),
                max_steps=most,
            )
            moved = loss.at(now.point.params - step.value, hyper)
            falls = scaled(moved.grad) < scaled(now.point.grad)
            point = jax.tree.map(lambda a, b: jnp.where(falls, a, b), moved, now.point)
            outer_grad = jax.grad(outer)(point.params, None, e.outer_data)
            product = loss.product(point, hyper)
            refine = tree_sub(outer_grad, product(now.adjoint))
            correction = conjugate_gradients(
                product,
                refine,
                carry.accuracy * scaled(refine),
                norm=scaled,
                preconditioner=loss.preconditioner(point, hyper),
                max_steps=most,
            )
            adjoint = now.adjoint + correction.value
            new = measured(point, outer_grad, adjoint, product(adjoint) - outer_grad)
            better = new.bound.total < now.bound.total
            new = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, now)
            wanted = jnp.clip(0.15 * jnp.linalg.norm(new.grad - first.grad) / new.bound.total, 1e-8, 0.1)
            return _Carry(
                current=new,
                accuracy=jnp.where(jnp.isfinite(wanted), wanted, 1e-2),
                rounds=carry.rounds + 1,
                products=carry.products + step.steps + correction.steps + 4,
                stuck=jnp.logical_not(new.bound.total < 0.9 * now.bound.total),
            )

        zero = jnp.asarray(0)
        start = _Carry(first, jnp.asarray(1e-2, slope.dtype), zero, zero, jnp.asarray(False))
        carry = jax.lax.while_loop(unfinished, ahead, start)
        last, moved = carry.current, shift(carry)
        terms = {
            "shift": moved,
            "lower": jnp.maximum(moved - last.bound.total, 0),
            "upper": moved + last.bound.total,
            "free": first.bound.total,
            "inner_error": last.bound.inner_error,
            "adjoint_error": last.bound.adjoint_error,
            "rounds": carry.rounds,
            "entries": last.bound.entries,
        }
        certificate = ErrorBound(
            last.bound.total, "certified", HYPERGRADIENT, "look-ahead, self-concordance, rounding included", terms
        )
        grad = tree_sub(e.direct, loss.mixed(last.point.params, hyper, last.adjoint))
        return Certified(grad, certificate, last.point.params, last.adjoint, carry.products)
