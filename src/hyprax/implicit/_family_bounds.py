"""What the bounds of families by self-concordance share, and the one of them that is free."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._certificate import AbstractCertificate, Certificate
from .._trees import tree_cast, tree_dtype, tree_norm, tree_sub
from ._answers import TwoSidedCertificate
from ._bounds import (
    HYPERGRADIENT,
    VALUE,
    AbstractCertifier,
    Certified,
    Evaluation,
    OuterLoss,
)
from ._constants import INFLATION
from ._elimination import MOST_FREE, free_weights
from ._inner_loss import AbstractInnerLoss, Point
from ._self_concordance import (
    Enclosure,
    around,
    finite_or_infinite,
    free_bound,
    geometry,
    inner_error,
    outer_curvature,
    plain_residuals,
)
from .families._generalised_linear import GeneralisedLinear
from .families._mean_loss import MeanLoss, unit_roundoff
from .families._norms import DesignNorms, measured

# What storing an answer in float32 may cost, for each entry: its own rounding, that of the slope of its leaf.
NARROWING = 2.0**-21


class AbstractFamilyCertifier(AbstractCertifier):
    """A bound for a family with its own mean loss as outer loss; in float64, whatever the problem is stored in.

    A float32 problem is widened exactly: data, parameters, adjoint and the natural values of the hyperparameters as
    float32 has them, so that the problem is the same, and only the arithmetic is better. The answer is narrowed, which
    its bound includes.
    """

    outer_norms: eqx.AbstractVar[DesignNorms | None]

    @abc.abstractmethod
    def certify_double(self, evaluation: Evaluation, outer_norms: DesignNorms) -> Certified:
        """`certify` in float64."""

    def prepare(self, loss: AbstractInnerLoss, outer: OuterLoss, outer_data: PyTree) -> "AbstractFamilyCertifier":
        if not (isinstance(loss, GeneralisedLinear) and isinstance(outer, MeanLoss)):
            raise ValueError(
                f"{type(self).__name__} requires a family (hx.families) with its `mean_loss` as outer loss; got "
                "losses of unknown structure. Use hx.implicit.LookAheadEstimate(), "
                "hx.implicit.EhrhardtRoberts(constants=...) or hx.implicit.NoCertifier()."
            )
        if free_weights(loss) > MOST_FREE:
            raise ValueError(
                f"{type(self).__name__} requires at most {MOST_FREE} weights without penalty, whose block is "
                f"factorised; got {free_weights(loss)}. Use hx.implicit.LookAheadEstimate()."
            )
        return eqx.tree_at(lambda c: c.outer_norms, self, measured(outer_data[0])[0], is_leaf=lambda x: x is None)

    def assumed_convexity(self, point: Point, hyper: PyTree, loss: AbstractInnerLoss) -> Float[Array, ""]:
        assert isinstance(loss, GeneralisedLinear)  # `prepare` has refused anything else
        mu = loss.strong_convexity(hyper)
        return mu if loss.free is None else jnp.zeros_like(mu)

    def certify(self, evaluation: Evaluation) -> Certified:
        assert self.outer_norms is not None  # `prepare` has filled it in
        dtype = tree_dtype(evaluation.point.params)
        norms = tree_cast(self.outer_norms, jnp.float64)
        if dtype == jnp.float64:
            return self.certify_double(evaluation, norms)
        return _narrowed(self.certify_double(_widened(evaluation), norms), evaluation)

    def value(self, evaluation: Evaluation) -> Certificate:
        """|f(ŵ) - f(w*)| <= ‖∇f(ŵ)‖_{M⁻¹} ν + ½ κ ν², ν >= ‖w* - ŵ‖_M, κ the curvature of f there; rounding."""
        assert self.outer_norms is not None
        e, (loss, outer) = evaluation, family_of(evaluation)
        hyper, point, outer_data, outer_grad = e.hyper, e.point, e.outer_data, e.outer_grad
        dtype, unit = point.value.dtype, unit_roundoff(point.params)
        norms = tree_cast(self.outer_norms, jnp.float64)
        if dtype != jnp.float64:
            loss, outer_data = loss.resolved(hyper, jnp.float64), tree_cast(outer_data, jnp.float64)
            point = loss.at(point.params.astype(jnp.float64), hyper)
            outer_grad = outer.gradient(point.params, outer_data)
        zero = jnp.zeros_like(point.params)
        residuals = plain_residuals(loss, outer, outer_data, norms, hyper, point, zero, zero)
        space = geometry(loss, outer_data, norms, hyper, point)
        space = around(space, loss, point, point, residuals.gradient, residuals.gradient_error)
        nu = inner_error(space, residuals)
        slope = jnp.abs(outer_grad) + outer.gradient_rounding(
            point.params, outer_data, norms, unit_roundoff(point.params)
        )
        steep = jnp.sqrt(jnp.sum(jnp.square(slope) / space.below))
        kappa = outer_curvature(space, outer, outer_data, point.params, nu)
        own = outer.value_rounding(point.params, outer_data, norms, unit)
        bound = INFLATION * (steep * nu + 0.5 * kappa * jnp.square(nu)) + own
        bound = convex_or_infinite(bound, loss, hyper)
        return Certificate(
            _up(bound, dtype),
            "certified",
            VALUE,
            "self-concordance, rounding included",
            {"inner_error": _up(nu, dtype), "rounding": _up(own, dtype)},
        )


class ResidualCertifier(AbstractFamilyCertifier):
    """‖h - dF/dλ‖₂ <= ω, from the two residuals that are there anyway: no solve, no constants, rounding included.

    For penalties ω = max_k‖q‖_{Λ,k} ν + max_k‖ŵ‖_{Λ,k} ζ + ν ζ, with ν = ‖∇g(ŵ)‖_{Λ⁻¹} >= ‖w* - ŵ‖_Λ and ζ a bound of
    ‖q - q*‖_Λ by generalised self-concordance; for example weights see docs/certificates.md. Valid for families with
    their own mean loss as outer loss, and safe, but often a hundred times the error: [`hyprax.implicit.LookAhead`][]
    uses it at a better point.

    Source: own derivation; the self-concordance calculus is that of Bach (Electron. J. Stat. 4, 2010) and Sun and
    Tran-Dinh (Math. Prog. 178, 2019).
    """

    outer_norms: DesignNorms | None = eqx.field(default_factory=lambda: None, init=False)

    def certify_double(self, evaluation: Evaluation, outer_norms: DesignNorms) -> Certified:
        e = evaluation
        loss, outer = family_of(e)
        residuals = plain_residuals(loss, outer, e.outer_data, outer_norms, e.hyper, e.point, e.adjoint, e.residual)
        space = geometry(loss, e.outer_data, outer_norms, e.hyper, e.point)
        space = around(space, loss, e.point, e.point, residuals.gradient, residuals.gradient_error)
        bound = free_bound(loss, outer, e.outer_data, outer_norms, e.hyper, e.point, e.adjoint, residuals, space)
        certificate = Certificate(
            convex_or_infinite(bound.total, loss, e.hyper),
            "certified",
            HYPERGRADIENT,
            "self-concordance, no solve, rounding included",
            {"inner_error": bound.inner_error, "adjoint_error": bound.adjoint_error},
        )
        return as_computed(e, certificate, space.products)


def family_of(e: Evaluation) -> tuple[GeneralisedLinear, MeanLoss]:
    """The losses of an evaluation, which `prepare` has seen to be a family and its mean loss."""
    assert isinstance(e.loss, GeneralisedLinear)
    assert isinstance(e.outer, MeanLoss)
    return e.loss, e.outer


def as_computed(e: Evaluation, certificate: AbstractCertificate, products: Int[Array, ""]) -> Certified:
    """h itself, with its certificate, which took so many products."""
    loss, _ = family_of(e)
    strengths, weights = loss.mixed_parts(e.point, e.hyper, e.adjoint)
    grad = tree_sub(e.direct, loss.placed(e.hyper, strengths, weights))
    return Certified(grad, certificate, e.point.params, e.adjoint, products)


def entries_of(e: Evaluation, bound: Enclosure) -> PyTree:
    """The bounds for strengths and weights in the structure of the hyperparameters."""
    loss, _ = family_of(e)
    return loss.placed(e.hyper, bound.strengths, bound.weights)


def convex_or_infinite(bound: Array, loss: GeneralisedLinear, hyper: PyTree) -> Array:
    """All of this presumes strengths > 0 and weights >= 0."""
    return jnp.where(loss.strong_convexity(hyper) > 0, finite_or_infinite(bound), jnp.inf)


def _widened(e: Evaluation) -> Evaluation:
    loss, outer = family_of(e)
    loss = loss.resolved(e.hyper, jnp.float64)
    outer_data = tree_cast(e.outer_data, jnp.float64)
    params, adjoint = tree_cast((e.point.params, e.adjoint), jnp.float64)
    point = loss.at(params, e.hyper)
    outer_grad = outer.gradient(params, outer_data)
    residual = loss.product(point, e.hyper)(adjoint) - outer_grad
    direct = tree_cast(e.direct, jnp.float64)
    return Evaluation(loss, outer, outer_data, e.hyper, point, outer_grad, direct, adjoint, residual)


def _up(x: Array, dtype: Any) -> Array:
    """A bound in a narrower dtype, rounded up."""
    return x if x.dtype == dtype else (INFLATION * x + float(jnp.finfo(dtype).tiny)).astype(dtype)


def _narrowed(certified: Certified, e: Evaluation) -> Certified:
    dtype = tree_dtype(e.point.params)
    lost = jax.tree.map(lambda h: NARROWING * jnp.abs(h), certified.grad)
    certificate = certified.certificate
    assert isinstance(certificate, Certificate | TwoSidedCertificate)
    bound = _up(certificate.bound + tree_norm(lost), dtype)
    terms = {name: x.astype(dtype) if x.dtype == jnp.float64 else x for name, x in certificate.terms.items()}
    certificate = eqx.tree_at(lambda c: (c.bound, c.terms), certificate, (bound, terms))
    if isinstance(certificate, TwoSidedCertificate):
        entries = jax.tree.map(lambda x, more: _up(x + more, dtype), certificate.entries, lost)
        shift, lower, upper = certificate.shift, certificate.lower, certificate.upper
        parts = (shift.astype(dtype), (lower / INFLATION).astype(dtype), _up(upper, dtype), entries)
        certificate = eqx.tree_at(lambda c: (c.shift, c.lower, c.upper, c.entries), certificate, parts)
    grad, params, adjoint = tree_cast((certified.grad, certified.params, certified.adjoint), dtype)
    return Certified(grad, certificate, params, adjoint, certified.products)
