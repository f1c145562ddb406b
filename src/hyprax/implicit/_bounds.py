"""A posteriori bounds on the error of a hypergradient at an approximate optimum."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._certificate import AbstractCertificate, Certificate, NoCertificate
from .._hyper import natural
from .._trees import tree_dot, tree_dtype, tree_norm, tree_sub
from ._constants import INFLATION, Constants
from ._inner_loss import AbstractInnerLoss, Point
from .families._generalised_linear import GeneralisedLinear
from .families._mean_loss import MeanLoss, unit_roundoff
from .families._norms import DesignNorms, measured

HYPERGRADIENT = "‖grad - dF/d hyper‖₂"
VALUE = "|value - F(hyper)|"

OuterLoss = Callable[[PyTree, PyTree, Any], Float[Array, ""]]


class Evaluation(eqx.Module):
    """What was computed at an approximate optimum, and all that a bound of it may look at.

    - `point`: ŵ, with ∇g(ŵ) and A(ŵ).
    - `outer_grad`: ∇_w f(ŵ).
    - `direct`: ∂_λ f(ŵ); `adjoint`: q; `residual`: A q - ∇_w f(ŵ), recomputed; `None` for a value alone.
    """

    loss: AbstractInnerLoss
    outer: OuterLoss
    outer_data: PyTree
    hyper: PyTree
    point: Point
    outer_grad: PyTree
    direct: PyTree = None
    adjoint: PyTree = None
    residual: PyTree = None


class Certified(eqx.Module):
    """A hypergradient with its certificate; where a bound has improved the point, the better one.

    - `params`, `adjoint`: where the next evaluation may start from.
    - `products`: what certifying took beyond the hypergradient itself.
    """

    grad: PyTree
    certificate: AbstractCertificate
    params: PyTree
    adjoint: PyTree
    products: Int[Array, ""]


class AbstractCertifier(eqx.Module):
    """A way to bound the error of a hypergradient.

    - `of_hessian`: whether what it says holds only where products are with the Hessian of the inner loss itself.
    - `of_float64`: whether it holds only for parameters stored in float64.
    """

    of_hessian: ClassVar[bool] = True
    of_float64: ClassVar[bool] = False

    @property
    def parts(self) -> int:
        """How many certifiers it consists of, to be tried in turn while the bound has come to a rounding floor."""
        return 1

    def part(self, index: int) -> "AbstractCertifier":
        """One of them. Each has a program of its own, so that nobody waits for one that is not needed to compile."""
        return self

    @abc.abstractmethod
    def prepare(self, loss: AbstractInnerLoss, outer: OuterLoss, outer_data: PyTree) -> "AbstractCertifier":
        """The same bound with what depends on the data alone worked out; once, on the host. Refuses what cannot be."""

    @abc.abstractmethod
    def assumed_convexity(self, point: Point, hyper: PyTree, loss: AbstractInnerLoss) -> Float[Array, ""]:
        """The μ that the bound assumes, 0 where it assumes none: a measured curvature below it disproves the bound."""

    @abc.abstractmethod
    def certify(self, evaluation: Evaluation) -> Certified:
        """h = ∂_λ f(ŵ) - B(ŵ)ᵀ q, or a better one, with a bound of ‖h - dF/d hyper‖₂."""

    @abc.abstractmethod
    def value(self, evaluation: Evaluation) -> AbstractCertificate:
        """A bound of |f(ŵ) - F(hyper)|."""


def unimproved(e: Evaluation, certificate: AbstractCertificate) -> Certified:
    """h itself, with its certificate."""
    grad = tree_sub(e.direct, e.loss.mixed(e.point, e.hyper, e.adjoint))
    return Certified(grad, certificate, e.point.params, e.adjoint, jnp.asarray(0))


class NoCertifier(AbstractCertifier):
    """No bound is computed: every answer says so."""

    reason: str = eqx.field(static=True, default="no bound was asked for")

    of_hessian: ClassVar[bool] = False

    def prepare(self, loss, outer, outer_data):
        return self

    def assumed_convexity(self, point, hyper, loss):
        return jnp.zeros((), tree_dtype(point.params))

    def certify(self, evaluation: Evaluation) -> Certified:
        reason = f"{self.reason} {evaluation.loss.system}".strip()
        return unimproved(evaluation, NoCertificate(reason, evaluation.point.value.dtype))

    def value(self, evaluation: Evaluation) -> NoCertificate:
        return NoCertificate(self.reason, evaluation.point.value.dtype)


class EhrhardtRoberts(AbstractCertifier):
    """‖h - dF/dλ‖₂ <= min(ω, ω_q), the a posteriori bounds of Ehrhardt and Roberts.

    With ε = ‖∇_w g(ŵ)‖/μ >= ‖ŵ - w*‖ and the true residual δ = ‖A q - ∇f(ŵ)‖, everything at ŵ:

        ω   = (L_f‖B‖/μ + L_A‖∇f‖‖B‖/μ² + L_B‖∇f‖/μ) ε + (‖B‖/μ) δ + (L_B L_f/μ) ε² + L_fλ ε
        ω_q = ((‖B‖ + L_B ε)/μ) (L_f ε + L_A ε‖q‖ + δ) + L_B ε‖q‖ + L_fλ ε

    Both hold under the same assumptions (the second by inserting B*ᵀ(q - q*) with A*(q - q*) = r + (A* - Â)q + ∇f̂ -
    ∇f*), so the smaller is taken; each stands in `terms`. They are safe and loose: constants are global, so the bound
    is often orders of magnitude above the error, and is meant to be driven down by tighter tolerances.

    **Arguments:** none for a family with its own `mean_loss` as outer loss: constants are analytic, rounding errors are
    included, and the certificate is `certified`. Otherwise:

    - `constants`: a function `(params, hyper) -> hx.implicit.Constants` (hyper in natural units), or a fixed
        `hx.implicit.Constants`.
    - `lipschitz_outer`: L_f, the Lipschitz constant of ∇_w f.
    - `lipschitz_direct`: L_fλ, that of ∂_λ f as a function of w; 0 where f does not see λ.

    The certificate is then `certified` given these constants and exact arithmetic; its text says so. A μ that a
    measured curvature disproves is reported as `strong_convexity_disproved`.

    **Raises:** `ValueError` where constants are missing, and for float32 data: certificates need float64.

    Source: Ehrhardt and Roberts, arXiv 2301.04764 (2023).
    """

    constants: Callable[[PyTree, PyTree], Constants] | Constants | None = None
    lipschitz_outer: float | Array | None = None
    lipschitz_direct: float | Array | None = None
    outer_norms: DesignNorms | None = eqx.field(default_factory=lambda: None, init=False)

    of_float64: ClassVar[bool] = True
    citations: ClassVar[tuple[str, ...]] = (
        """@article{ehrhardt2023analyzing, author = {Ehrhardt, Matthias J. and Roberts, Lindon},
  title = {Analyzing inexact hypergradients for bilevel learning}, journal = {IMA Journal of Applied Mathematics},
  year = {2023}, note = {arXiv:2301.04764}}""",
    )

    def prepare(self, loss: AbstractInnerLoss, outer: OuterLoss, outer_data: PyTree) -> "EhrhardtRoberts":
        if self.constants is None and not isinstance(loss, GeneralisedLinear):
            raise ValueError(
                "EhrhardtRoberts requires a family (hx.families) or `constants=`; got an inner loss of unknown "
                "structure. Without either use certifier=hx.implicit.LookAheadEstimate()."
            )
        if self.constants is None and isinstance(loss, GeneralisedLinear) and loss.free is not None:
            raise ValueError(
                "EhrhardtRoberts requires a penalty on every column, since its constants are global; got free columns. "
                "Use hx.implicit.LookAhead() or hx.implicit.ResidualCertifier()."
            )
        if self.lipschitz_outer is None:
            if not isinstance(outer, MeanLoss):
                raise ValueError(
                    "EhrhardtRoberts requires `family.mean_loss` as outer loss, or `lipschitz_outer=` (and "
                    "`lipschitz_direct=`); got an outer loss of unknown structure."
                )
            norms, _ = measured(outer_data[0])
            lipschitz = outer.loss.curvature * outer.heaviest(norms.gram) * norms.gram / norms.rows.size
            found = dataclasses.replace(self, lipschitz_outer=lipschitz, lipschitz_direct=jnp.zeros(()))
            prepared = eqx.tree_at(lambda c: c.outer_norms, found, norms, is_leaf=lambda x: x is None)
        elif self.lipschitz_direct is None and not isinstance(outer, MeanLoss):
            raise ValueError(
                "EhrhardtRoberts: lipschitz_outer requires lipschitz_direct beside it (0 where "
                "the outer loss does not see the hyperparameters)."
            )
        else:
            direct = 0.0 if self.lipschitz_direct is None else self.lipschitz_direct
            prepared = EhrhardtRoberts(self.constants, jnp.asarray(self.lipschitz_outer), jnp.asarray(direct))
        return prepared

    def _constants(self, point: Point, hyper: PyTree, loss: AbstractInnerLoss) -> Constants:
        if self.constants is None:
            assert isinstance(loss, GeneralisedLinear)  # `prepare` has refused anything else
            return loss.constants(point, hyper)
        if isinstance(self.constants, Constants):
            return self.constants
        return self.constants(point.params, natural(hyper))

    def _outer_constants(self) -> tuple[Array, Array]:
        assert self.lipschitz_outer is not None  # `prepare` has filled them in
        assert self.lipschitz_direct is not None
        return jnp.asarray(self.lipschitz_outer), jnp.asarray(self.lipschitz_direct)

    def _method(self) -> str:
        if self.constants is None and self.outer_norms is not None:
            return "Ehrhardt-Roberts a posteriori, analytic constants, rounding included"
        return "Ehrhardt-Roberts a posteriori, given the user's constants, in exact arithmetic"

    def assumed_convexity(self, point: Point, hyper: PyTree, loss: AbstractInnerLoss) -> Float[Array, ""]:
        return self._constants(point, hyper, loss).strong_convexity

    def certify(self, evaluation: Evaluation) -> Certified:
        e = evaluation
        c = self._constants(e.point, e.hyper, e.loss)
        inner, outer, product, assembly = _margins(e, self.outer_norms)
        l_f, l_direct = self._outer_constants()
        mu, b, l_a, l_b = c.strong_convexity, c.mixed_norm, c.lipschitz_hessian, c.lipschitz_mixed
        epsilon = (tree_norm(e.point.grad) + inner) / mu
        delta = tree_norm(e.residual) + product + outer
        slope = tree_norm(e.outer_grad) + outer
        q = tree_norm(e.adjoint)
        direct = l_direct * epsilon
        omega = (l_f * b / mu + l_a * slope * b / mu**2 + l_b * slope / mu) * epsilon + b / mu * delta
        omega = omega + l_b * l_f / mu * epsilon**2 + direct
        omega_q = (b + l_b * epsilon) / mu * (l_f * epsilon + l_a * epsilon * q + delta) + l_b * epsilon * q + direct
        bound = INFLATION * jnp.minimum(omega, omega_q) + assembly
        bound = jnp.where((mu > 0) & jnp.isfinite(bound), bound, jnp.inf)
        terms = {"omega": omega, "omega_q": omega_q, "inner_error": epsilon, "adjoint_residual": delta}
        certificate = Certificate(bound, "certified", HYPERGRADIENT, self._method(), terms)
        return unimproved(e, certificate)

    def value(self, evaluation: Evaluation) -> Certificate:
        """|f(ŵ) - f(w*)| <= ‖∇f(ŵ)‖ ε + ½ L_f ε², ε = ‖∇g(ŵ)‖/μ, and the rounding of f where the structure is known."""
        e, norms = evaluation, self.outer_norms
        mu, lipschitz = self.assumed_convexity(e.point, e.hyper, e.loss), self._outer_constants()[0]
        norm, slope, own = tree_norm(e.point.grad), tree_norm(e.outer_grad), jnp.zeros_like(e.point.value)
        if isinstance(e.loss, GeneralisedLinear) and isinstance(e.outer, MeanLoss) and norms is not None:
            params, unit = e.point.params, unit_roundoff(e.point.params)
            norm = norm + jnp.linalg.norm(e.loss.rounding(e.point, e.hyper, jnp.zeros_like(params), unit).gradient)
            slope = slope + jnp.linalg.norm(e.outer.gradient_rounding(params, e.outer_data, norms, unit))
            own = e.outer.value_rounding(params, e.outer_data, norms, unit)
        epsilon = norm / mu
        bound = INFLATION * (slope * epsilon + 0.5 * lipschitz * epsilon**2) + own
        bound = jnp.where((mu > 0) & jnp.isfinite(bound), bound, jnp.inf)
        return Certificate(bound, "certified", VALUE, self._method(), {"inner_error": epsilon})


def _margins(e: Evaluation, outer_norms: DesignNorms | None) -> tuple[Array, Array, Array, Array]:
    """Rounding of ‖∇g‖, ‖∇f‖, ‖A q‖ and of the assembly of h; zeros where the structure is not known."""
    if isinstance(e.loss, GeneralisedLinear) and isinstance(e.outer, MeanLoss) and outer_norms is not None:
        unit = unit_roundoff(e.point.params)
        rounding = e.loss.rounding(e.point, e.hyper, e.adjoint, unit)
        outer = e.outer.gradient_rounding(e.point.params, e.outer_data, outer_norms, unit)
        assembly = tree_norm((rounding.strengths, rounding.weights))
        return *(jnp.linalg.norm(part) for part in (rounding.gradient, outer, rounding.product)), assembly
    zero = jnp.zeros_like(e.point.value)
    return zero, zero, zero, zero


def rayleigh_quotient(e: Evaluation) -> Float[Array, ""]:
    """<q, A q>/<q, q>, from the products already made (A q = residual + ∇f); 1 for q = 0, which measures nothing."""
    square = tree_dot(e.adjoint, e.adjoint)
    product = tree_dot(e.adjoint, e.residual) + tree_dot(e.adjoint, e.outer_grad)
    return jnp.where(square > 0, product / jnp.where(square > 0, square, 1), 1)
