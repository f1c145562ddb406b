"""The look-ahead certificate: take one more step, bound the better point, and answer with it."""

from collections.abc import Callable
from typing import ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._trees import tree_sub
from ._adjoint_solvers import conjugate_gradients
from ._answers import STATUS, TwoSidedCertificate
from ._bounds import HYPERGRADIENT, Certified, Evaluation
from ._constants import INFLATION
from ._extended import extended_residuals
from ._family_bounds import AbstractFamilyCertifier, convex_or_infinite, entries_of, family_of
from ._inner_loss import Point
from ._self_concordance import Enclosure, Residuals, around, free_bound, geometry, plain_residuals
from .families._norms import DesignNorms

T = TypeVar("T")


class _ScaledNorm(eqx.Module):
    """‖v‖_{M⁻¹}; a module, so that its array is an argument of the solver that uses it, not a captured constant."""

    inverse: Array

    def __call__(self, v: Array) -> Float[Array, ""]:
        return jnp.sqrt(jnp.sum(jnp.square(v) * self.inverse))


class _Round(eqx.Module):
    """The point of one round: ŵ, q, their residuals, h for strengths and weights, and its bound."""

    point: Point
    adjoint: Array
    residuals: Residuals
    strengths: Array
    weights: Array | None
    bound: Enclosure


class _Carry(eqx.Module):
    """`begun`: whether the unimproved point has been measured, `free` is its bound, and rounds count from there.

    `extended`: whether the residuals are those of extended precision by now.
    """

    current: _Round
    free: Float[Array, ""]
    accuracy: Float[Array, ""]
    rounds: Int[Array, ""]
    products: Int[Array, ""]
    begun: Bool[Array, ""]
    extended: Bool[Array, ""]
    stuck: Bool[Array, ""]


def _where(condition: Bool[Array, ""], fn: Callable[[T], T], otherwise: T) -> T:
    """fn(otherwise) where the condition holds, else `otherwise`; as a loop of one turn or none.

    A branch would be given copies of the data, time after time: XLA moves nothing out of one.
    """
    start = condition, otherwise
    return jax.lax.while_loop(lambda now: now[0], lambda now: (jnp.zeros_like(now[0]), fn(now[1])), start)[1]


class LookAhead(AbstractFamilyCertifier):
    """‖h⁺ - dF/dλ‖₂ <= ω⁺, and Δ - ω⁺ <= ‖h - dF/dλ‖₂ <= Δ + ω⁺ with Δ = ‖h - h⁺‖₂.

    h is the hypergradient that was computed; h⁺ that of a better point (w⁺, q⁺), one inexact Newton step and one
    refinement of the adjoint further; ω⁺ the bound there that needs no solve, that of
    [`hyprax.implicit.ResidualCertifier`][]. Rounds are added until ω⁺ <= Δ/2, which proves that Δ + ω⁺ is at most 3
    times the error of h, or ω⁺ <= `relative` ‖h⁺‖, or ω⁺ no longer falls (the rounding floor). The answer is h⁺ with
    the bound ω⁺, and the point is the next warm start, so the work is not lost.

    For families with their own mean loss as outer loss; rounding included; nothing is asked of the user. A float32
    problem is certified in float64 arithmetic (which needs `jax_enable_x64`).

    **Arguments:**

    - `relative`: stop when ω⁺ <= relative ‖h⁺‖₂.
    - `rounds`: the most rounds.
    - `extended`: where ω⁺ is stuck at the rounding floor of float64, compute the two residuals that it rests on in
        extended precision (errors near 2^-80) and go on. Costs nothing until then, not even compilation, except inside
        `jax.jit` and `jax.vmap`, which compile both ways.

    The certificate is a [`hyprax.implicit.TwoSidedCertificate`][]: `shift` Δ; `lower` and `upper`, the bounds Δ ∓ ω⁺
    of the error of the unimproved h, as float64 makes it of ŵ and q; `entries`, bounds |h⁺ - dF/dλ|_k of the single
    entries; `status`.
    In `terms`: `free`, the bound at the unimproved point; `inner_error` ν and `adjoint_error` ζ at the better one;
    `rounds`; `extended`.

    Source: own derivation; the self-concordance calculus is that of Bach (Electron. J. Stat. 4, 2010) and Sun and
    Tran-Dinh (Math. Prog. 178, 2019).
    """

    relative: float = 1e-3
    rounds: int = 6
    extended: bool = True
    outer_norms: DesignNorms | None = eqx.field(default_factory=lambda: None, init=False)
    _arithmetic: str = eqx.field(default_factory=lambda: "either", init=False)

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
            raise ValueError(f"LookAhead: relative and rounds must be >= 0; got {self.relative} and {self.rounds}.")

    @property
    def parts(self) -> int:
        return 2 if self.extended else 1

    def part(self, index: int) -> "LookAhead":
        return eqx.tree_at(lambda c: c._arithmetic, self, ("plain", "extended")[index])

    def certify_double(self, evaluation: Evaluation, outer_norms: DesignNorms) -> Certified:
        e, hyper = evaluation, evaluation.hyper
        loss, outer = family_of(e)
        space = geometry(loss, e.outer_data, outer_norms, hyper, e.point)
        scaled = _ScaledNorm(1 / space.below)

        def residuals(extended: Bool[Array, ""], point: Point, adjoint: Array, residual: Array) -> Residuals:
            arguments = (loss, outer, e.outer_data, outer_norms, hyper, point, adjoint)
            if self._arithmetic == "extended":
                return extended_residuals(*arguments)
            plain = plain_residuals(*arguments, residual)
            if self._arithmetic == "plain" or not self.extended:
                return plain
            return _where(extended, lambda _: extended_residuals(*arguments), plain)

        def measured(point: Point, adjoint: Array, found: Residuals) -> _Round:
            strengths, weights = loss.mixed_parts(point, hyper, adjoint)
            here = around(space, loss, e.point, point, found.gradient, found.gradient_error)
            bound = free_bound(loss, outer, e.outer_data, outer_norms, hyper, point, adjoint, found, here)
            return _Round(point, adjoint, found, strengths, weights, bound)

        def adjoint_residual(adjoint: Array) -> Callable[[Array], Array]:
            return lambda params: (
                loss.product(loss.at(params, hyper), hyper)(adjoint) - outer.gradient(params, e.outer_data)
            )

        def shortened(start: Point, step: Array, tiny: Bool[Array, ""]) -> tuple[Array, Point]:
            """The step, halved until ‖∇g‖_{M⁻¹} falls; at the rounding floor it cannot tell, and takes it whole."""

            def rises(tried: tuple[Array, Point]) -> Bool[Array, ""]:
                return jnp.logical_not(tiny | (scaled(tried[1].grad) < scaled(start.grad))) & (tried[0] > 1e-6)

            def halve(tried: tuple[Array, Point]) -> tuple[Array, Point]:
                length = 0.5 * tried[0]
                return length, loss.at(start.params - length * step, hyper)

            return jax.lax.while_loop(rises, halve, halve((jnp.asarray(2.0, jnp.float64), start)))

        strengths, weights = loss.mixed_parts(e.point, hyper, e.adjoint)

        def shift(now: _Round) -> Float[Array, ""]:
            moved = jnp.linalg.norm(now.strengths - strengths)
            if now.weights is None or weights is None:
                return moved
            return jnp.hypot(moved, jnp.linalg.norm(now.weights - weights))

        def size(now: _Round) -> Float[Array, ""]:
            norm = jnp.linalg.norm(now.strengths)
            return norm if now.weights is None else jnp.hypot(norm, jnp.linalg.norm(now.weights))

        def decided(now: _Round) -> Bool[Array, ""]:
            return now.bound.total <= self.relative * size(now)

        def proved(now: _Round) -> Bool[Array, ""]:
            return now.bound.total <= 0.5 * shift(now)

        def unfinished(carry: _Carry) -> Bool[Array, ""]:
            finished = decided(carry.current) | proved(carry.current) | carry.stuck
            return jnp.logical_not(carry.begun) | (jnp.logical_not(finished) & (carry.rounds < self.rounds))

        def improved(carry: _Carry) -> tuple[Point, Array, Array, Int[Array, ""]]:
            """A better point and adjoint, its residual in working precision, and the products that they took."""
            now = carry.current
            most = 2 * now.adjoint.size + 20
            gradient = now.residuals.gradient
            step = conjugate_gradients(
                loss.product(now.point, hyper),
                gradient,
                carry.accuracy * scaled(gradient),
                norm=scaled,
                preconditioner=loss.preconditioner(now.point, hyper),
                max_steps=most,
            )
            length, point = shortened(now.point, step.value, carry.extended)
            product = loss.product(point, hyper)
            outer_grad = outer.gradient(point.params, e.outer_data)
            # Where the residual is known beyond working precision, so is its change, to first order in a tiny step.
            drift = jax.jvp(adjoint_residual(now.adjoint), (now.point.params,), (-length * step.value,))[1]
            refine = jnp.where(carry.extended, now.residuals.adjoint + drift, product(now.adjoint) - outer_grad)
            correction = conjugate_gradients(
                product,
                refine,
                carry.accuracy * scaled(refine),
                norm=scaled,
                preconditioner=loss.preconditioner(point, hyper),
                max_steps=most,
            )
            adjoint = now.adjoint - correction.value
            return point, adjoint, product(adjoint) - outer_grad, step.steps + correction.steps + 4

        def ahead(carry: _Carry) -> _Carry:
            # The unimproved point is measured in the same loop as the better ones, so that this is compiled once.
            now, first = carry.current, jnp.logical_not(carry.begun)
            unimproved = e.point, e.adjoint, e.residual, jnp.zeros_like(carry.products)
            point, adjoint, residual, took = _where(carry.begun, lambda _: improved(carry), unimproved)
            new = measured(point, adjoint, residuals(carry.extended, point, adjoint, residual))
            # From too far off nothing is proved where columns have no penalty: then the gradient norm is to fall.
            nearer = first | (jnp.isinf(now.bound.total) & (scaled(new.point.grad) < scaled(now.point.grad)))
            better = (new.bound.total < now.bound.total) | nearer
            gained = (new.bound.total < 0.9 * now.bound.total) | nearer
            new = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, now)
            wanted = jnp.clip(0.15 * shift(new) / new.bound.total, 1e-8, 0.1)
            stuck = jnp.logical_not(gained)
            further = self.extended and self._arithmetic == "either"
            return _Carry(
                current=new,
                free=jnp.where(first, new.bound.total, carry.free),
                accuracy=jnp.where(carry.begun & jnp.isfinite(wanted), wanted, 1e-2),
                rounds=carry.rounds + carry.begun.astype(carry.rounds.dtype),
                products=carry.products + took,
                begun=jnp.ones_like(carry.begun),
                extended=carry.extended | (stuck & further),
                stuck=stuck & (carry.extended | (not further)),
            )

        zero, no, infinite = jnp.asarray(0), jnp.asarray(False), jnp.asarray(jnp.inf, jnp.float64)
        blank = jnp.zeros_like(e.adjoint)
        bounded = None if loss.weights is None or loss.weights.constant else weights
        nothing = Enclosure(infinite, strengths, bounded, infinite, infinite)
        start = _Carry(
            current=_Round(e.point, e.adjoint, Residuals(*4 * (blank,)), strengths, weights, nothing),
            free=infinite,
            accuracy=jnp.asarray(1e-2, jnp.float64),
            rounds=zero,
            products=space.products,
            begun=no,
            extended=jnp.asarray(self._arithmetic == "extended"),
            stuck=no,
        )
        carry = jax.lax.while_loop(unfinished, ahead, start)
        last = carry.current
        status = STATUS.rounds_spent
        for reached, name in (
            (carry.stuck, STATUS.rounding_floor),
            (decided(last), STATUS.decision_made),
            ((carry.rounds > 0) & proved(last), STATUS.effectivity_proved),
        ):
            status = STATUS.where(reached, name, status)
        terms = {
            "free": carry.free,
            "inner_error": last.bound.inner_error,
            "adjoint_error": last.bound.adjoint_error,
            "rounds": carry.rounds,
            "extended": carry.extended,
        }
        bound, moved = convex_or_infinite(last.bound.total, loss, hyper), shift(last)
        certificate = TwoSidedCertificate(
            bound=bound,
            kind="certified",
            quantity=HYPERGRADIENT,
            method="look-ahead, self-concordance, rounding included",
            shift=moved,
            lower=jnp.maximum(moved / INFLATION - bound, 0),
            upper=INFLATION * moved + bound,
            entries=entries_of(e, last.bound),
            status=status,
            terms=terms,
        )
        grad: PyTree = tree_sub(e.direct, loss.placed(hyper, last.strengths, last.weights))
        return Certified(grad, certificate, last.point.params, last.adjoint, carry.products)
