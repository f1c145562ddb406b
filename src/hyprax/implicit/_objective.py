"""The hypergradient at an optimum, by the implicit function theorem."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._certificate import AbstractCertificate, Certificate, NoCertificate, TwoSidedCertificate
from .._hyper import natural
from .._noise import NoNoise
from .._objective import AbstractObjective, Hypergradient, Value
from .._result import RESULTS
from .._stats import Accuracy
from .._trees import tree_all_finite, tree_axpy, tree_dtype, tree_norm, tree_sub
from ._adjoint_solvers import CG, TRUE_SYSTEM, AbstractAdjointSolver, AdjointSystem
from ._bounds import AbstractBound, Evaluation, OuterLoss, ValueEvaluation, rayleigh_quotient
from ._family_bounds import AbstractFamilyBound
from ._hessian import hessian_diagonal
from ._inner_loss import AbstractInnerLoss, Point
from ._lookahead import LookAhead
from ._lookahead_estimate import LookAheadEstimate
from ._optimum import Optimum, default_tolerance
from ._spectrum import known_spectrum
from ._stats import ImplicitStats
from .families import GeneralisedLinear, MeanLoss
from .families._mean_loss import outer_arrays

NOISE = NoNoise("the spread over validation examples was not computed")


class ImplicitState(eqx.Module):
    """Warm starts: the last approximate optimum and the last adjoint."""

    params: PyTree
    adjoint: PyTree


class ImplicitObjective(AbstractObjective[ImplicitState]):
    """F(λ) = f(w*(λ), λ), w*(λ) = argmin_w g(w, λ); dF/dλ = ∂_λ f - Bᵀ q, A q = ∇_w f, A = ∂²_ww g, B = ∂_w ∂_λ g.

    The optimum is found to a gradient norm, the adjoint system solved to a residual (both warm-started from the
    state, both recomputed afterwards and reported), without ever forming A or B.

    **Arguments:**

    - `optimum`: the inner problem, a [`hyprax.Optimum`][].
    - `outer_loss`: a pure function `outer_loss(params, hyper, data)` to a scalar, hyper in natural units;
        `family.mean_loss` for the unpenalised loss of a family.
    - `outer_data`: passed to `outer_loss` as it is, typically validation data.
    - `adjoint`: a solver of A q = ∇f, any [`hyprax.implicit.AbstractAdjointSolver`][]; default
        [`hyprax.implicit.CG`][].
    - `certificate`: an [`hyprax.implicit.AbstractBound`][]; default [`hyprax.implicit.LookAhead`][] for a family with
        its own
        mean loss where 64-bit arithmetic is on, and [`hyprax.implicit.LookAheadEstimate`][] otherwise.

    **Raises:** `ValueError` for a bound whose assumptions the problem does not meet, such as a certified one in
    float32.

    Accuracy: `value_and_grad(..., accuracy=hx.Accuracy(inner, adjoint))` overrides both tolerances, as absolute norms.
    """

    optimum: Optimum
    outer_loss: OuterLoss
    outer_data: PyTree
    adjoint: AbstractAdjointSolver
    certificate: AbstractBound
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        optimum: Optimum,
        outer_loss: OuterLoss,
        outer_data: PyTree = None,
        *,
        adjoint: AbstractAdjointSolver | None = None,
        certificate: AbstractBound | None = None,
    ):
        if not isinstance(optimum, Optimum):
            raise ValueError(
                f"ImplicitObjective: given a problem of type {type(optimum).__name__}, allowed are hx.Optimum(family) "
                "and hx.Optimum(inner_loss, params0)."
            )
        self.noisy, self.adaptive, self.value_name = False, True, "validation loss"
        self.optimum, self.outer_loss = optimum, outer_loss
        self.outer_data = outer_arrays(outer_loss, outer_data, optimum.params0)
        self.adjoint = CG() if adjoint is None else adjoint
        self.certificate = _default_bound(optimum, outer_loss) if certificate is None else certificate
        _check_assumptions(self.certificate, optimum)
        self.certificate = self.certificate.prepare(optimum.loss, outer_loss, self.outer_data)

    def init(self, hyper: PyTree) -> ImplicitState:
        return ImplicitState(self.optimum.params0, jax.tree.map(jnp.zeros_like, self.optimum.params0))

    def _outer(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        return self.outer_loss(params, natural(hyper), self.outer_data)

    @eqx.filter_jit
    def value_and_grad(
        self, hyper: PyTree, state: ImplicitState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, ImplicitState]:
        self._check(state)
        tolerance = self.optimum.tolerance(None if accuracy is None else accuracy.inner)
        minimum = self.optimum.find(hyper, state.params, tolerance)
        point = minimum.point
        value, (outer_grad, direct) = jax.value_and_grad(self._outer, argnums=(0, 1))(point.params, hyper)

        loss = self.optimum.loss
        product = loss.product(point, hyper)
        allowed = self._residual(outer_grad, accuracy)
        system = AdjointSystem(
            product,
            outer_grad,
            allowed,
            state.adjoint,
            preconditioner=minimum.preconditioner(loss, hyper),
            diagonal=hessian_diagonal(loss, point, hyper),
            spectrum=known_spectrum(loss, hyper),
        )
        solved = self.adjoint.solve(system)
        residual = tree_sub(product(solved.value), outer_grad)
        evaluation = Evaluation(
            loss, self.outer_loss, self.outer_data, hyper, point, outer_grad, direct, solved.value, residual
        )
        certified = self.certificate.certify(evaluation)
        assumed = self.certificate.strong_convexity(point, hyper, loss)
        curvature = jnp.minimum(rayleigh_quotient(evaluation), solved.curvature)
        stats = ImplicitStats(
            inner_gradient_norm=tree_norm(point.grad),
            inner_tolerance=tolerance,
            inner_steps=minimum.steps,
            products=minimum.products + solved.products + 1 + certified.products,
            adjoint_residual=tree_norm(residual),
            adjoint_tolerance=allowed,
            adjoint_steps=solved.steps,
            curvature=curvature,
            strong_convexity=assumed,
        )
        finite = jnp.isfinite(value) & tree_all_finite((certified.grad, certified.adjoint, point.grad))
        result = _inner_result(stats, finite & jnp.isfinite(tree_norm(point.params)), _unpenalised(loss, hyper))
        # What is judged is the system that was to be solved, (A + ρI) q = ∇f; `stats` and bounds speak of A q = ∇f.
        judged = tree_norm(tree_axpy(solved.damping, solved.value, residual))
        result = _first_failure(
            result,
            (jnp.logical_not(self.adjoint.solves_indefinite) & (curvature <= 0), RESULTS.indefinite),
            ((assumed > 0) & (curvature < assumed * (1 - 1e-6)), RESULTS.strong_convexity_disproved),
            # Once more the requested residual, for its own rounding: the recursion met it, the recomputation may not.
            (jnp.logical_not(judged <= 2 * allowed), RESULTS.adjoint_not_converged),
        )
        certificate = _labelled(certified.certificate, self.adjoint)
        missed = (result == RESULTS.inner_not_converged) | (result == RESULTS.adjoint_not_converged)
        stats = dataclasses.replace(stats, inaccurate=missed)
        answer = Hypergradient(value, certified.grad, certificate, NOISE, result, stats)
        return answer, _next_state(finite, ImplicitState(certified.params, certified.adjoint), state)

    @eqx.filter_jit
    def value(
        self, hyper: PyTree, state: ImplicitState, accuracy: Accuracy | None = None
    ) -> tuple[Value, ImplicitState]:
        self._check(state)
        tolerance = self.optimum.tolerance(None if accuracy is None else accuracy.inner)
        minimum = self.optimum.find(hyper, state.params, tolerance)
        point: Point = minimum.point
        value, outer_grad = jax.value_and_grad(self._outer)(point.params, hyper)
        certificate = self.certificate.value(
            ValueEvaluation(self.optimum.loss, self.outer_loss, self.outer_data, hyper, point, outer_grad)
        )
        stats = ImplicitStats(
            inner_gradient_norm=tree_norm(point.grad),
            inner_tolerance=tolerance,
            inner_steps=minimum.steps,
            products=minimum.products,
        )
        finite = jnp.isfinite(value) & tree_all_finite(point.params)
        unpenalised = _unpenalised(self.optimum.loss, hyper)
        result = _inner_result(stats, finite, unpenalised)
        stats = dataclasses.replace(stats, inaccurate=result == RESULTS.inner_not_converged)
        after = _next_state(finite, ImplicitState(point.params, state.adjoint), state)
        return Value(value, certificate, NOISE, result, stats), after

    def params(self, state: ImplicitState) -> PyTree:
        return state.params

    def final(self, hyper: PyTree, state: ImplicitState) -> tuple[Value, ImplicitState]:
        return self.value(hyper, state)

    def _check(self, state: ImplicitState) -> None:
        """Refuse a warm start of another structure, shape or dtype: it belongs to another problem."""
        for name, tree in (("params", state.params), ("adjoint", state.adjoint)):
            given, allowed = (
                jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", t)
                for t in (tree, self.optimum.params0)
            )
            if given != allowed:
                raise ValueError(
                    f"ImplicitState: given {name} {given}, allowed is what this problem's parameters are, {allowed}: "
                    "was the state made by another objective?"
                )

    def _residual(self, outer_grad: PyTree, accuracy: Accuracy | None) -> Float[Array, ""]:
        dtype = tree_dtype(self.optimum.params0)
        if accuracy is not None:
            return jnp.asarray(accuracy.adjoint, dtype)
        own = self.adjoint.tolerance
        if own is None and self.adjoint.truncated:
            return jnp.asarray(jnp.inf, dtype)
        relative = default_tolerance(self.optimum.params0) if own is None else own
        return jnp.asarray(relative, dtype) * tree_norm(outer_grad)


def _labelled(certificate: AbstractCertificate, adjoint: AbstractAdjointSolver) -> AbstractCertificate:
    """The certificate, with the name of the system that q solves where that is not A q = ∇f."""
    if adjoint.system == TRUE_SYSTEM and not adjoint.truncated:
        return certificate
    words = f"the adjoint solver took {adjoint.system}"
    if isinstance(certificate, Certificate | TwoSidedCertificate):
        return dataclasses.replace(certificate, method=f"{certificate.method}; {words}")
    if isinstance(certificate, NoCertificate):
        return NoCertificate(f"{certificate.reason}; {words}", certificate.bound.dtype)
    return certificate


def _unpenalised(loss: AbstractInnerLoss, hyper: PyTree) -> Bool[Array, ""]:
    """Whether a family's strong convexity is not above zero; a loss of unknown structure says nothing."""
    return loss.strong_convexity(hyper) <= 0 if isinstance(loss, GeneralisedLinear) else jnp.asarray(False)


def _default_bound(optimum: Optimum, outer_loss: OuterLoss) -> AbstractBound:
    family = isinstance(optimum.loss, GeneralisedLinear) and isinstance(outer_loss, MeanLoss)
    return LookAhead() if family and jax.config.read("jax_enable_x64") else LookAheadEstimate()


def _check_assumptions(certificate: AbstractBound, optimum: Optimum) -> None:
    """Refuse a bound that would not hold: of another system than A q = ∇f, or in too narrow an arithmetic.

    Families are certified in float64 arithmetic whatever they are stored in.
    """
    name, dtype, system = type(certificate).__name__, tree_dtype(optimum.params0), optimum.loss.system
    if certificate.of_hessian and system:
        raise ValueError(
            f"{name}: given an inner loss whose products are {system}, allowed are hx.implicit.LookAheadEstimate() and "
            "hx.implicit.NoBound(): a bound would be of that system's hypergradient."
        )
    if isinstance(certificate, AbstractFamilyBound) and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{name}: given 32-bit arithmetic alone, allowed is 64-bit: call "
            "jax.config.update('jax_enable_x64', True) first, or use certificate=hx.implicit.NoBound()."
        )
    if certificate.of_float64 and dtype != jnp.float64:
        raise ValueError(
            f"{name}: given {dtype} parameters, allowed are float64: call jax.config.update('jax_enable_x64', "
            "True) before making arrays, or use hx.implicit.LookAhead() with a family, which widens them."
        )


def _inner_result(stats: ImplicitStats, finite: Bool[Array, ""], unpenalised: Bool[Array, ""]) -> RESULTS:
    return _first_failure(
        RESULTS.successful,
        (unpenalised, RESULTS.unpenalised),
        (jnp.logical_not(finite), RESULTS.diverged),
        (jnp.logical_not(stats.inner_gradient_norm <= stats.inner_tolerance), RESULTS.inner_not_converged),
    )


def _first_failure(result: RESULTS, *failures: tuple[Bool[Array, ""], RESULTS]) -> RESULTS:
    for failed, name in failures:
        result = RESULTS.where((result == RESULTS.successful) & failed, name, result)
    return result


def _next_state(finite: Bool[Array, ""], new: ImplicitState, old: ImplicitState) -> ImplicitState:
    """The new warm start; the old one where the new is not finite, so that a search can step back and go on."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
