"""A bound from directional Lipschitz constants, for any strongly convex inner loss whose user knows them."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Certificate, NoCertificate
from .._hyper import natural
from .._trees import tree_dtype, tree_norm
from ._bounds import (
    HYPERGRADIENT,
    VALUE,
    AbstractCertifier,
    Certified,
    Evaluation,
    unimproved,
)
from ._constants import INFLATION
from ._inner_loss import AbstractInnerLoss, Point

Constant = Float[Array, ""] | float


class DirectionalCertifier(AbstractCertifier):
    """‖h - dF/dλ‖₂ <= sup‖(B(w) - B̂)ᵀq‖ + μ⁻¹ sup‖B(w)‖ (‖r‖ + sup‖A(w)q - ∇f(w) - r‖) + sup‖∂_λ f(w) - ∂_λ f(ŵ)‖.

    The suprema over the ball ‖w - ŵ‖₂ <= ε = ‖∇g(ŵ)‖/μ, which holds the optimum w*; r = Âq - ∇f(ŵ) is the computed
    residual. Insert dF/dλ = ∂_λ f* - B*ᵀA*⁻¹∇f*: up to the direct part, h - dF/dλ = (B* - B̂)ᵀq + B*ᵀA*⁻¹(∇f* - A*q),
    and A* ⪰ μI on the ball. Only the change along the computed adjoint q enters, so constants may be far smaller than
    those of [`hyprax.implicit.EhrhardtRoberts`][].

    **Arguments:** functions that return upper bounds; hyper in natural units, derivatives in λ with respect to the
    unconstrained coordinates.

    - `strong_convexity`: μ, a number or `(params, hyper) -> μ`, for the ball. A measured curvature below it is reported
        as `strong_convexity_disproved`.
    - `mixed_change`: `(params, hyper, adjoint, radius)`, of sup‖(B(w) - B̂)ᵀq‖.
    - `mixed_norm`: `(params, hyper, radius)`, of sup‖B(w)‖₂.
    - `residual_change`: `(params, hyper, adjoint, radius)`, of sup‖(A(w) - Â)q - (∇f(w) - ∇f(ŵ))‖.
    - `direct_change`: `(params, hyper, radius)`, of sup‖∂_λ f(w) - ∂_λ f(ŵ)‖; not needed where f does not see λ.
    - `outer_slope`: `(params, hyper, radius)`, of sup‖∇f(w)‖, for the bound of values: |f(ŵ) - F| <= ε sup‖∇f‖.

    The certificate is `certified` given these constants and exact arithmetic; its text says so. It is infinite where f
    depends on λ directly and `direct_change` is not given.

    Source: own derivation; the proof is the three lines above.
    """

    strong_convexity: Constant | Callable[[PyTree, PyTree], Constant]
    mixed_change: Callable[[PyTree, PyTree, PyTree, Array], Constant] = eqx.field(kw_only=True)
    mixed_norm: Callable[[PyTree, PyTree, Array], Constant] = eqx.field(kw_only=True)
    residual_change: Callable[[PyTree, PyTree, PyTree, Array], Constant] = eqx.field(kw_only=True)
    direct_change: Callable[[PyTree, PyTree, Array], Constant] | None = eqx.field(default=None, kw_only=True)
    outer_slope: Callable[[PyTree, PyTree, Array], Constant] | None = eqx.field(default=None, kw_only=True)

    of_float64: ClassVar[bool] = True
    METHOD: ClassVar[str] = "directional, given the user's constants, in exact arithmetic"

    def __check_init__(self):
        mu = self.strong_convexity
        if isinstance(mu, int | float) and not mu > 0:
            raise ValueError(f"DirectionalCertifier: strong_convexity must be > 0; got {mu}.")

    def prepare(self, loss, outer, outer_data) -> "DirectionalCertifier":
        return self

    def assumed_convexity(self, point: Point, hyper: PyTree, loss: AbstractInnerLoss) -> Float[Array, ""]:
        mu = self.strong_convexity
        mu = mu(point.params, natural(hyper)) if callable(mu) else mu
        return jnp.asarray(mu, tree_dtype(point.params))

    def certify(self, evaluation: Evaluation) -> Certified:
        e, params, hyper = evaluation, evaluation.point.params, natural(evaluation.hyper)
        dtype = tree_dtype(params)
        mu = self.assumed_convexity(e.point, e.hyper, e.loss)
        radius = INFLATION * tree_norm(e.point.grad) / mu
        residual = tree_norm(e.residual)
        of_mixed = jnp.asarray(self.mixed_change(params, hyper, e.adjoint, radius), dtype)
        size = jnp.asarray(self.mixed_norm(params, hyper, radius), dtype)
        of_residual = jnp.asarray(self.residual_change(params, hyper, e.adjoint, radius), dtype)
        if self.direct_change is None:
            of_direct = jnp.where(tree_norm(e.direct) > 0, jnp.inf, jnp.zeros((), dtype))
        else:
            of_direct = jnp.asarray(self.direct_change(params, hyper, radius), dtype)
        bound = INFLATION * (of_mixed + size / mu * (residual + of_residual) + of_direct)
        bound = jnp.where((mu > 0) & jnp.isfinite(bound), bound, jnp.inf)
        terms = {
            "inner_error": radius,
            "mixed": of_mixed,
            "residual": size / mu * residual,
            "residual_change": size / mu * of_residual,
            "direct": of_direct,
        }
        return unimproved(e, Certificate(bound, "certified", HYPERGRADIENT, self.METHOD, terms))

    def value(self, evaluation: Evaluation) -> AbstractCertificate:
        point, hyper = evaluation.point, evaluation.hyper
        dtype = tree_dtype(point.params)
        if self.outer_slope is None:
            return NoCertificate("DirectionalCertifier bounds values only where `outer_slope=` is given", dtype)
        mu = self.assumed_convexity(point, hyper, evaluation.loss)
        radius = INFLATION * tree_norm(point.grad) / mu
        bound = INFLATION * radius * jnp.asarray(self.outer_slope(point.params, natural(hyper), radius), dtype)
        bound = jnp.where((mu > 0) & jnp.isfinite(bound), bound, jnp.inf)
        return Certificate(bound, "certified", VALUE, self.METHOD, {"inner_error": radius})
