"""The restricted marginal likelihood of a family: strengths from the training rows alone, no row put aside."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Certificate
from .._noise import NoNoise
from .._objective import Hypergradient, Value, refuse_accuracy
from .._products import product
from .._stats import AbstractStats, Accuracy, Effort
from .._trees import tree_all_finite, tree_norm, tree_sub
from ._answers import RESULTS
from ._bounds import HYPERGRADIENT, VALUE
from ._in_sample import AbstractInSample
from ._leave_one_out import checked_family
from ._objective import promoted
from ._optimum import Optimum, family_of, undetermined
from .families._generalised_linear import GeneralisedLinear
from .families._losses import LogisticLoss, PoissonLoss, SquaredLoss

NOISE = NoNoise("a marginal likelihood is no mean over examples", "")
LIKELIHOODS = (SquaredLoss, LogisticLoss, PoissonLoss)
METHOD = "one Newton step more, and the rounding of a factor"


class REMLStats(AbstractStats):
    """What the fit was like.

    - `inner_gradient_norm`: ‖∇g‖ where the solver stopped; one more Newton step was taken from there.
    - `freedom`: tr (H⁻¹ XᵀΩDX/N), the effective number of parameters.
    - `variance`: φ; for squared loss that of the noise of an observation of weight 1.
    """

    inner_gradient_norm: Float[Array, ""]
    freedom: Float[Array, ""]
    variance: Float[Array, ""]

    def effort(self) -> Effort:
        return Effort()


class REML(AbstractInSample):
    """F(λ) = -log p(y | λ)/n: weights with a penalty are integrated out under their prior, free ones under a flat one.

        w_j ~ N(0, φ/(Nλ_j)),    ŵ = argmin_w g(w, λ),    H = ∇²g(ŵ) = XᵀΩDX/N + Λ
        nF = N g(ŵ)/φ + ½ log det(NH/φ) - ½ Σ_j log(Nλ_j/φ) - (M/2) log 2π + c(y, φ)

    with N the rows of the family, M its free columns, j over the others. For squared loss the integral is exact, φ is
    the variance of the noise, and stands at its own optimum, φ = 2N g(ŵ)/(n - M), where it is not given. For logistic
    and Poisson loss φ = 1, and the integral is Laplace's approximation. Minimising F is REML estimation of mixed
    models, and `method="REML"` of mgcv: no row is held out. It takes the model at its word. Where the model is far from
    the truth, or rows are too few for Laplace's approximation, folds are the safer criterion.

    **Arguments:**

    - `optimum`: an [`hyprax.Optimum`][] of [`hyprax.families.Squared`][], [`hyprax.families.Logistic`][] or
        [`hyprax.families.Poisson`][] with one output, dense data and at most 2,000 weights.
    - `observations`: n, where it is not the number of rows: rows of zeros that say nothing, or that stand for several.
        Example weights of squared loss are precisions: ω_i divides the variance of row i, and -½ Σ_i log ω_i is in c.
    - `dispersion`: φ, where it is known: the loss is φ times a negative log-likelihood.

    The gradient goes through ŵ, by the implicit function theorem. The certificates are `estimated`: what one more step
    of Newton's method changes, and the rounding of the factor of H.

    **Raises:** `ValueError` for another family, or a number of observations that is not above that of free columns.

    Source: Patterson and Thompson (Biometrika 58, 1971); Wood (JRSS B 73, 2011).
    """

    optimum: Optimum
    observations: Float[Array, ""]
    dispersion: Float[Array, ""] | None
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    citations: ClassVar[tuple[str, ...]] = (
        """@article{wood2011fast, author = {Wood, Simon N.},
  title = {Fast stable restricted maximum likelihood and marginal likelihood estimation of semiparametric generalized
    linear models}, journal = {Journal of the Royal Statistical Society B}, volume = {73}, pages = {3--36},
  year = {2011}}""",
    )

    def __init__(self, optimum: Optimum, *, observations: float | None = None, dispersion: float | None = None):
        family = checked_family("REML", optimum)
        if not isinstance(family.loss, LIKELIHOODS):
            raise ValueError(
                "REML: the family must be hx.families.Squared, Logistic or Poisson, whose loss is a negative "
                f"log-likelihood; got {type(family).__name__}. Use hx.implicit.LeaveOneOut."
            )
        rows = family.inputs.shape[0] if observations is None else observations
        free = _free(family)
        if isinstance(rows, bool) or not (math.isfinite(rows) and rows > free):
            raise ValueError(f"REML: observations must be a number above {free}, the free columns; got {rows!r}.")
        if dispersion is not None and not (math.isfinite(dispersion) and dispersion > 0):
            raise ValueError(f"REML: dispersion must be a finite number > 0; got {dispersion!r}.")
        if dispersion is None and not isinstance(family.loss, SquaredLoss):
            dispersion = 1.0
        self.optimum = optimum
        self.dispersion = None if dispersion is None else jnp.asarray(dispersion, optimum.params0.dtype)
        self.observations = jnp.asarray(rows, optimum.params0.dtype)
        self.noisy, self.adaptive, self.value_name = False, False, "negative log marginal likelihood"

    @eqx.filter_jit
    def value_and_grad(
        self, hyper: PyTree, state: Array, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, Array]:
        refuse_accuracy(self, accuracy)
        hyper = promoted(hyper, self.optimum.params0)
        found, params, stats, norm = self._fitted(hyper, state)
        value, grad = self._slope(hyper, params)
        off = tree_norm(tree_sub(grad, self._slope(hyper, found)[1]))
        result = self._result(hyper, tree_all_finite((value, grad, params)), norm)
        rounding = self._rounding(hyper, params)
        of_grad = _estimate(off + rounding * (1 + tree_norm(grad)), HYPERGRADIENT, {"one_step": off})
        answer = Hypergradient(value, grad, of_grad, NOISE, result, stats)
        return answer, jnp.where(jnp.all(jnp.isfinite(params)), params, state)

    @eqx.filter_jit
    def value(self, hyper: PyTree, state: Array, accuracy: Accuracy | None = None) -> tuple[Value, Array]:
        refuse_accuracy(self, accuracy)
        hyper = promoted(hyper, self.optimum.params0)
        found, params, stats, norm = self._fitted(hyper, state)
        value = self._criterion(hyper, params)
        off = jnp.abs(value - self._criterion(hyper, found))
        result = self._result(hyper, tree_all_finite((value, params)), norm)
        rounding = self._rounding(hyper, params)
        bound = _estimate(off + rounding * (1 + jnp.abs(value)), VALUE, {"one_step": off})
        return Value(value, bound, NOISE, result, stats), jnp.where(jnp.all(jnp.isfinite(params)), params, state)

    def _fitted(self, hyper: PyTree, state: Array) -> tuple[Array, Array, REMLStats, Array]:
        """Where the solver stopped, one Newton step further, and what the fit is like."""
        family = family_of(self.optimum)
        tolerance = self.optimum.tolerance(None, hyper)
        point = self.optimum.find(hyper, state, tolerance).point
        factor = self._factor(hyper, point.params)
        params = point.params - jsl.cho_solve((factor, True), point.grad)
        inverse = jsl.cho_solve((factor, True), jnp.eye(params.size, dtype=params.dtype))
        freedom = params.size - jnp.sum(jnp.diagonal(inverse) * family.strengths(hyper))
        norm = tree_norm(point.grad)
        return point.params, params, REMLStats(norm, freedom, self._variance(hyper, params)), norm <= tolerance

    def _factor(self, hyper: PyTree, params: Array) -> Float[Array, "d d"]:
        family = family_of(self.optimum)
        x = jnp.asarray(family.inputs)
        statistic = family.loss.statistic(family.predict(params), family.targets)
        curves = family.weighted(family.loss.curve_diagonal(statistic), hyper)
        return jnp.linalg.cholesky(product((x * curves[:, None]).T, x) / x.shape[0] + jnp.diag(family.strengths(hyper)))

    def _variance(self, hyper: PyTree, params: Array) -> Float[Array, ""]:
        family = family_of(self.optimum)
        if self.dispersion is not None:
            return self.dispersion
        return 2 * family.inputs.shape[0] * family.value(params, hyper) / (self.observations - _free(family))

    def _criterion(self, hyper: PyTree, params: Array) -> Float[Array, ""]:
        """F with ŵ as it is given."""
        family = family_of(self.optimum)
        rows, n, free = family.inputs.shape[0], self.observations, _free(family)
        held = jnp.ones(params.shape, bool) if family.free is None else jnp.logical_not(family.free.mask(params.shape))
        logs = jnp.log(jnp.diagonal(self._factor(hyper, params)))
        prior = jnp.where(held, jnp.log(jnp.where(held, family.strengths(hyper), 1)), 0)
        # Entry by entry: columns of zeros, whose two logarithms cancel, leave nothing behind.
        total = jnp.sum(logs - 0.5 * prior) + 0.5 * free * math.log(rows / (2 * math.pi))
        variance = self._variance(hyper, params)
        total = total + rows * family.value(params, hyper) / variance - 0.5 * free * jnp.log(variance)
        if isinstance(family.loss, SquaredLoss):
            total = total + 0.5 * n * jnp.log(2 * math.pi * variance)
            if family.weights is not None:
                weights = family.weights.values(hyper)
                total = total - 0.5 * jnp.sum(jnp.log(jnp.where(weights > 0, weights, 1)))
        return total / n

    def _slope(self, hyper: PyTree, params: Array) -> tuple[Array, PyTree]:
        """F and dF/d hyper = ∂F - Bᵀ H⁻¹ ∂F/∂w, B the derivative of ∇g by the hyperparameters."""
        family = family_of(self.optimum)
        value, (direct, through) = jax.value_and_grad(self._criterion, argnums=(0, 1))(hyper, params)
        adjoint = jsl.cho_solve((self._factor(hyper, params), True), through)
        mixed = family.mixed(family.at(params, hyper), hyper, adjoint)
        return value, tree_sub(direct, mixed)

    def _rounding(self, hyper: PyTree, params: Array) -> Float[Array, ""]:
        """Units of rounding that a factor of H loses, relative: its condition with unit diagonal, by its entries."""
        factor = self._factor(hyper, params)
        scale = jnp.sqrt(jnp.sum(jnp.square(factor), axis=1))
        lost = jnp.min(jnp.diagonal(factor) / scale)  # the sine of the smallest angle of a column to those before it
        return 4 * params.size * jnp.finfo(params.dtype).eps / jnp.square(lost)

    def _result(self, hyper: PyTree, finite: Array, reached: Array) -> RESULTS:
        family = family_of(self.optimum)
        result = RESULTS.where(reached, RESULTS.successful, RESULTS.inner_not_converged)
        result = RESULTS.where(finite, result, RESULTS.diverged)
        result = RESULTS.where(undetermined(family), RESULTS.no_optimum, result)
        return RESULTS.where(family.strong_convexity(hyper) > 0, result, RESULTS.unpenalised)


def _free(family: GeneralisedLinear) -> int:
    return 0 if family.free is None else int(family.free.columns.shape[0])


def _estimate(bound: Any, quantity: str, terms: dict[str, Array]) -> AbstractCertificate:
    bound = jnp.where(jnp.isfinite(bound), bound, jnp.inf)
    return Certificate(bound, "estimated", quantity, METHOD, terms)
