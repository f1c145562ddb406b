"""The hypergradient at an optimum, by the implicit function theorem."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._certificate import AbstractCertificate, Certificate, NoCertificate
from .._hyper import natural
from .._noise import NoNoise
from .._objective import AbstractObjective, Hypergradient, Value
from .._stats import AbstractStats, Accuracy
from .._trees import is_traced, tree_all_finite, tree_axpy, tree_dtype, tree_norm, tree_sub
from ._adjoint_solvers import CG, TRUE_SYSTEM, AbstractAdjointSolver, AdjointSystem
from ._answers import RESULTS, STATUS, ImplicitStats, TwoSidedCertificate
from ._bounds import AbstractCertifier, Evaluation, OuterLoss, rayleigh_quotient
from ._elimination import MOST_FREE, free_weights
from ._family_bounds import AbstractFamilyCertifier
from ._inner_loss import AbstractInnerLoss, Point, Product
from ._lookahead import LookAhead
from ._lookahead_estimate import LookAheadEstimate
from ._noise import ExampleNoise, costs_little
from ._optimum import Optimum, Refit, default_tolerance, matched, rounding, undetermined
from ._rows import joined
from .families._generalised_linear import GeneralisedLinear
from .families._mean_loss import MeanLoss

HALF = 0.5  # of the adjoint system: a truncated adjoint that leaves more than this is reported
NOISE = NoNoise(
    "the spread over validation examples was not asked for (noise=hx.implicit.ExampleNoise())", "validation examples"
)


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
        `family.mean_loss` for the unpenalised loss of a family, `family.mean_loss.weighted(c)` for one whose rows
        count by c, `(m,)`.
    - `outer_data`: passed to `outer_loss` as it is, typically validation data.
    - `adjoint`: a solver of A q = ∇f, any [`hyprax.implicit.AbstractAdjointSolver`][]; default
        [`hyprax.implicit.CG`][].
    - `certifier`: what bounds the error, an [`hyprax.implicit.AbstractCertifier`][]; default
        [`hyprax.implicit.LookAhead`][] for a family with its own mean loss where 64-bit arithmetic is on, and
        [`hyprax.implicit.LookAheadEstimate`][] otherwise, and where strengths are computed from the hyperparameters.
    - `noise`: [`hyprax.implicit.ExampleNoise`][] for the spread of the hypergradient over validation examples; `None`
        (the default) where it is not to be computed.

    **Raises:** `ValueError` for a bound whose assumptions the problem does not meet, such as a certified one in
    float32.

    Accuracy: `value_and_grad(..., accuracy=hx.Accuracy(inner, adjoint))` overrides both tolerances, as absolute norms.
    """

    optimum: Optimum
    outer_loss: OuterLoss
    outer_data: PyTree
    adjoint: AbstractAdjointSolver
    certifier: AbstractCertifier
    noise: ExampleNoise | None
    _defaulted: bool = eqx.field(static=True)
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
        certifier: AbstractCertifier | None = None,
        noise: ExampleNoise | None = None,
    ):
        if not isinstance(optimum, Optimum):
            raise ValueError(
                f"ImplicitObjective: the problem must be hx.Optimum(family) or hx.Optimum(inner_loss, params0); got "
                f"{type(optimum).__name__}."
            )
        self.noisy, self.adaptive, self.value_name = False, True, "validation loss"
        self.optimum, self.outer_loss, self.outer_data = matched(optimum, outer_loss, outer_data)
        self.adjoint = CG() if adjoint is None else adjoint
        self._defaulted = certifier is None
        self.certifier = _default_certifier(self.optimum, outer_loss) if certifier is None else certifier
        _check_assumptions(self.certifier, self.optimum)
        self.certifier = self.certifier.prepare(self.optimum.loss, outer_loss, self.outer_data)
        self.noise = noise
        if noise is not None:
            noise.check(outer_loss, self.outer_data)

    @property
    def measures_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # known from its parts, where others hold a field
        return self.noise is not None and self.noise.serves(self.optimum.params0)

    def with_noise(self) -> "ImplicitObjective":
        """The same objective with the spread over its validation examples, where a dense factor gives it for little."""
        if self.noise is not None or not costs_little(self.outer_loss, self.outer_data, self.optimum.params0):
            return self
        return eqx.tree_at(lambda o: o.noise, self, ExampleNoise(), is_leaf=lambda x: x is None)

    def init(self, hyper: PyTree) -> ImplicitState:
        return ImplicitState(self.optimum.params0, jax.tree.map(jnp.zeros_like, self.optimum.params0))

    def _outer(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        return self.outer_loss(params, natural(hyper), self.outer_data)

    def value_and_grad(
        self, hyper: PyTree, state: ImplicitState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, ImplicitState]:
        parts = self.certifier.parts
        if parts == 1 or is_traced((self, hyper, state, accuracy)):
            return self._evaluated(hyper, state, accuracy, None)
        answer, after = self._evaluated(hyper, state, accuracy, 0)
        for part in range(1, parts):
            if not _at_rounding_floor(answer.certificate):
                break
            before = answer.stats
            answer, after = self._evaluated(hyper, after, accuracy, part)
            answer = dataclasses.replace(answer, stats=_added(before, answer.stats))
        return answer, after

    @eqx.filter_jit
    def _evaluated(
        self, hyper: PyTree, state: ImplicitState, accuracy: Accuracy | None, part: int | None
    ) -> tuple[Hypergradient, ImplicitState]:
        """With one part of the certifier, or with all at once."""
        self._check(state)
        hyper = promoted(hyper, self.optimum.params0)
        asked = None if accuracy is None else accuracy.inner
        tolerance = self.optimum.tolerance(asked, hyper)
        minimum = self.optimum.find(hyper, state.params, tolerance)
        point = minimum.point
        value, (outer_grad, direct) = jax.value_and_grad(self._outer, argnums=(0, 1))(point.params, hyper)

        loss = self.optimum.loss
        product = loss.product(point, hyper)
        allowed = self._residual(outer_grad, accuracy)
        preconditioner = minimum.preconditioner(loss, hyper)
        system = AdjointSystem(
            product,
            outer_grad,
            allowed,
            state.adjoint,
            preconditioner=preconditioner,
            diagonal=loss.diagonal(point, hyper),
            spectrum=loss.spectrum(hyper),
        )
        solved = self.adjoint.solve(system)
        residual = tree_sub(product(solved.value), outer_grad)
        evaluation = Evaluation(
            loss, self.outer_loss, self.outer_data, hyper, point, outer_grad, direct, solved.value, residual
        )
        certifier = self._certifier(hyper)
        certifier = certifier if part is None else certifier.part(part)
        certified = certifier.certify(evaluation)
        assumed = certifier.assumed_convexity(point, hyper, loss)
        curvature = jnp.minimum(rayleigh_quotient(evaluation), solved.curvature)
        stats = ImplicitStats(
            inner_gradient_norm=tree_norm(point.grad),
            inner_tolerance=tolerance,
            inner_steps=minimum.steps,
            products=minimum.products + solved.products + 1 + certified.products,
            adjoint_residual=tree_norm(residual),
            adjoint_tolerance=allowed,
            adjoint_steps=solved.steps,
            adjoint_left=_left(residual, outer_grad, preconditioner) if self.adjoint.truncated else None,
            curvature=curvature,
            strong_convexity=assumed,
        )
        finite = jnp.isfinite(value) & tree_all_finite((certified.grad, certified.adjoint, point.grad))
        reachable = self.optimum.reachable(asked, hyper)
        result = _inner_result(stats, reachable, finite & jnp.isfinite(tree_norm(point.params)), loss, hyper)
        # What is judged is the system that was to be solved, (A + ρI) q = ∇f; `stats` and bounds speak of A q = ∇f.
        judged = tree_norm(tree_axpy(solved.damping, solved.value, residual))
        least = rounding(self.optimum.params0, tree_norm(outer_grad))
        result = _first_failure(
            result,
            (jnp.logical_not(self.adjoint.solves_indefinite) & (curvature <= 0), RESULTS.indefinite),
            ((assumed > 0) & (curvature < assumed * (1 - 1e-6)), RESULTS.strong_convexity_disproved),
            # Once more the requested residual, for its own rounding: the recursion met it, the recomputation may not.
            (jnp.logical_not(judged <= jnp.maximum(2 * allowed, least)), RESULTS.adjoint_not_converged),
            (jnp.asarray(0.0 if stats.adjoint_left is None else stats.adjoint_left) > HALF, RESULTS.adjoint_truncated),
        )
        certificate = _labelled(certified.certificate, self.adjoint)
        missed = jnp.asarray(False)
        for name in (RESULTS.inner_not_converged, RESULTS.adjoint_not_converged, RESULTS.adjoint_truncated):
            missed = missed | (result == name)
        stats = dataclasses.replace(stats, inaccurate=missed)
        noise = NOISE
        if self.noise is not None:
            noise = self.noise.of(loss, self.outer_loss, self.outer_data, hyper, certified.params)
        answer = Hypergradient(value, certified.grad, certificate, noise, result, stats)
        return answer, _next_state(finite, ImplicitState(certified.params, certified.adjoint), state)

    @eqx.filter_jit
    def value(
        self, hyper: PyTree, state: ImplicitState, accuracy: Accuracy | None = None
    ) -> tuple[Value, ImplicitState]:
        self._check(state)
        hyper = promoted(hyper, self.optimum.params0)
        asked = None if accuracy is None else accuracy.inner
        tolerance = self.optimum.tolerance(asked, hyper)
        minimum = self.optimum.find(hyper, state.params, tolerance)
        point: Point = minimum.point
        value, outer_grad = jax.value_and_grad(self._outer)(point.params, hyper)
        certificate = self._certifier(hyper).value(
            Evaluation(self.optimum.loss, self.outer_loss, self.outer_data, hyper, point, outer_grad)
        )
        stats = ImplicitStats(
            inner_gradient_norm=tree_norm(point.grad),
            inner_tolerance=tolerance,
            inner_steps=minimum.steps,
            products=minimum.products,
        )
        finite = jnp.isfinite(value) & tree_all_finite(point.params)
        result = _inner_result(stats, self.optimum.reachable(asked, hyper), finite, self.optimum.loss, hyper)
        stats = dataclasses.replace(stats, inaccurate=result == RESULTS.inner_not_converged)
        after = _next_state(finite, ImplicitState(point.params, state.adjoint), state)
        return Value(value, certificate, NOISE, result, stats), after

    def _certifier(self, hyper: PyTree) -> AbstractCertifier:
        """The certifier; by default one that asks for less where strengths are computed from the hyperparameters."""
        if self._defaulted and not self.optimum.loss.certifiable(hyper):
            return LookAheadEstimate()
        return self.certifier

    def params(self, state: ImplicitState) -> PyTree:
        return state.params

    def refit(self, hyper: PyTree) -> Refit:
        """The fit on training and validation rows together, beside the same penalty: the prior is kept.

        For a family with its own mean loss as outer loss, dense rows, and no example weights.
        """
        if not isinstance(self.outer_loss, MeanLoss):
            raise ValueError(
                "ImplicitObjective.refit: outer_loss must be the mean loss of the family, whose rows can be joined to "
                f"the training rows; got a {type(self.outer_loss).__name__}."
            )
        if self.outer_loss.weights is not None:
            raise ValueError(
                "ImplicitObjective.refit: outer_loss must be without weights, since rows are joined that count alike; "
                "got some. Make a family of all rows with weights=, and use hx.Optimum(family).refit(hyper)."
            )
        return joined(self.optimum, self.outer_data).refit(hyper)

    def final(self, hyper: PyTree, state: ImplicitState) -> tuple[Value, ImplicitState]:
        return self.value(hyper, state)

    @staticmethod
    def stacked(objectives: Sequence["ImplicitObjective"]) -> "ImplicitObjective":
        """(F_1, ..., F_m) with every array of the problems stacked along a new first axis.

        The result is for `equinox.filter_vmap`, which evaluates all problems at once, each at its hyperparameters:

            together = hx.ImplicitObjective.stacked(objectives)
            states = eqx.filter_vmap(lambda o, hyper: o.init(hyper))(together, hypers)
            answers, states = eqx.filter_vmap(lambda o, hyper, state: o.value_and_grad(hyper, state))(
                together, hypers, states
            )

        Every answer has its own certificate, result and statistics. Loops run until the slowest problem is done.

        **Raises:** `ValueError` for no objectives, or objectives that differ in anything but the entries of their
        arrays: shapes, solvers and their settings, losses, penalties (the same key or function, not two equal lambdas).
        """
        parts = [eqx.partition(objective, eqx.is_array) for objective in objectives]
        if not parts:
            raise ValueError("stacked: at least one objective is required; got none.")
        first, static = parts[0]
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), arrays) for arrays, _ in parts]
        for index, (_, other) in enumerate(parts):
            if shapes[index] != shapes[0] or not eqx.tree_equal(static, other):
                raise ValueError(
                    f"stacked: objectives must differ in the entries of their arrays alone; objective {index} differs "
                    "from the first in shapes, solvers, losses or penalties."
                )
        arrays = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, *(arrays for arrays, _ in parts[1:]))
        return eqx.combine(arrays, static)

    def _check(self, state: ImplicitState) -> None:
        """Refuse a warm start of another structure, shape or dtype: it belongs to another problem."""
        for name, tree in (("params", state.params), ("adjoint", state.adjoint)):
            given, allowed = (
                jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", t)
                for t in (tree, self.optimum.params0)
            )
            if given != allowed:
                raise ValueError(
                    f"state: {name} must be shaped like this problem's parameters, {allowed}; got {given}. Was the "
                    "state made by another objective?"
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


def _at_rounding_floor(certificate: AbstractCertificate) -> bool:
    return isinstance(certificate, TwoSidedCertificate) and bool(certificate.status == STATUS.rounding_floor)


def _added(before: AbstractStats, after: AbstractStats) -> AbstractStats:
    """What the last evaluation of several reached, and what all of them took."""
    assert isinstance(before, ImplicitStats)
    assert isinstance(after, ImplicitStats)
    names = "inner_steps", "products", "adjoint_steps"
    return dataclasses.replace(after, **{name: getattr(before, name) + getattr(after, name) for name in names})


def _left(residual: PyTree, rhs: PyTree, preconditioner: Product | None) -> Float[Array, ""]:
    """‖M⁻¹(A q - ∇f)‖/‖M⁻¹∇f‖, M ≈ A or the identity: 0 for ∇f = 0."""
    solve = preconditioner or (lambda v: v)
    whole = tree_norm(solve(rhs))
    return jnp.where(whole > 0, tree_norm(solve(residual)) / jnp.where(whole > 0, whole, 1), 0)


def promoted(hyper: PyTree, params: PyTree) -> PyTree:
    """The hyperparameters in the dtype of the weights, where theirs is narrower: an answer must hold its digits."""
    dtype = tree_dtype(params)

    def wide(leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.finfo(leaf.dtype).bits < jnp.finfo(dtype).bits else leaf

    return jax.tree.map(wide, hyper)


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
    """Whether a strength that should be above zero is not; a loss of unknown structure says nothing."""
    mu = loss.strong_convexity(hyper)
    return jnp.asarray(False) if mu is None else mu <= 0


def _default_certifier(optimum: Optimum, outer_loss: OuterLoss) -> AbstractCertifier:
    family = isinstance(optimum.loss, GeneralisedLinear) and isinstance(outer_loss, MeanLoss)
    if isinstance(optimum.loss, GeneralisedLinear) and free_weights(optimum.loss) > MOST_FREE:
        return LookAheadEstimate()
    return LookAhead() if family and jax.config.read("jax_enable_x64") else LookAheadEstimate()


def _check_assumptions(certifier: AbstractCertifier, optimum: Optimum) -> None:
    """Refuse a bound that would not hold: of another system than A q = ∇f, or in too narrow an arithmetic.

    Families are certified in float64 arithmetic whatever they are stored in.
    """
    name, dtype, system = type(certifier).__name__, tree_dtype(optimum.params0), optimum.loss.system
    if certifier.of_hessian and system:
        raise ValueError(
            f"{name} requires products with the Hessian of the inner loss; got products {system}. Use "
            "hx.implicit.LookAheadEstimate() or hx.implicit.NoCertifier()."
        )
    if isinstance(certifier, AbstractFamilyCertifier) and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{name} requires 64-bit arithmetic; got 32-bit alone. Call jax.config.update('jax_enable_x64', True) "
            "first, or use certifier=hx.implicit.LookAheadEstimate()."
        )
    if certifier.of_float64 and dtype != jnp.float64:
        raise ValueError(
            f"{name} requires float64 parameters; got {dtype}. Call jax.config.update('jax_enable_x64', True) before "
            "making arrays, or use hx.implicit.LookAhead() with a family, which widens them."
        )


def _inner_result(
    stats: ImplicitStats, reachable: Array, finite: Bool[Array, ""], loss: AbstractInnerLoss, hyper: PyTree
) -> RESULTS:
    return _first_failure(
        RESULTS.successful,
        (_unpenalised(loss, hyper), RESULTS.unpenalised),
        (undetermined(loss), RESULTS.no_optimum),
        (jnp.logical_not(finite), RESULTS.diverged),
        (jnp.logical_not(stats.inner_gradient_norm <= reachable), RESULTS.inner_not_converged),
    )


def _first_failure(result: RESULTS, *failures: tuple[Bool[Array, ""], RESULTS]) -> RESULTS:
    for failed, name in failures:
        result = RESULTS.where((result == RESULTS.successful) & failed, name, result)
    return result


def _next_state(finite: Bool[Array, ""], new: ImplicitState, old: ImplicitState) -> ImplicitState:
    """The new warm start; the old one where the new is not finite, so that a search can step back and go on."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
