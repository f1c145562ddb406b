"""Generalised cross-validation of ridge regression: a criterion in closed form, without leaving anything out."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, PyTree

from .._certificate import NoCertificate
from .._noise import NoNoise
from .._objective import Hypergradient, Value, refuse_accuracy
from .._products import product
from .._stats import AbstractStats, Accuracy, Effort
from .._trees import tree_all_finite
from ._answers import RESULTS
from ._in_sample import AbstractInSample
from ._leave_one_out import checked_family
from ._objective import promoted
from ._optimum import Optimum, family_of, undetermined
from .families._losses import SquaredLoss

NOISE = NoNoise("generalised cross-validation is no mean over examples", "")


class GCVStats(AbstractStats):
    """What the fit was like.

    - `freedom`: tr S, the effective number of parameters.
    """

    freedom: Float[Array, ""]

    def effort(self) -> Effort:
        return Effort()


class GCV(AbstractInSample):
    """F(λ) = (1/2n) Σ_i ω_i (y_i - (Sy)_i)² / (1 - γ tr(S)/n)², S = X (XᵀΩX/n + Λ)⁻¹ XᵀΩ/n, for squared loss.

    Generalised cross-validation replaces the leverage of each row in the leave-one-out error of ridge by their mean, so
    that it does not change when rows are rotated. n is the sum of the example weights where there are any. Value and
    gradient are exact up to rounding, which is not bounded: the certificate is of kind `none`.

    **Arguments:**

    - `optimum`: an [`hyprax.Optimum`][] of [`hyprax.families.Squared`][] with one output, dense data and at most 2,000
      weights.
    - `gamma`: γ >= 1; above 1 (1.2 to 1.4 is usual) for smoother fits where rows are few.

    **Raises:** `ValueError` for another family, or a gamma below 1.

    Source: Craven and Wahba (Numer. Math. 31, 1979); γ: Kim and Gu (JRSS B 66, 2004).
    """

    optimum: Optimum
    gamma: float = eqx.field(static=True)
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    citations: ClassVar[tuple[str, ...]] = (
        """@article{craven1979smoothing, author = {Craven, Peter and Wahba, Grace},
  title = {Smoothing noisy data with spline functions}, journal = {Numerische Mathematik}, volume = {31},
  pages = {377--403}, year = {1979}}""",
    )

    def __init__(self, optimum: Optimum, *, gamma: float = 1.0):
        family = checked_family("GCV", optimum)
        if not isinstance(family.loss, SquaredLoss):
            raise ValueError(
                f"GCV: the family must be hx.families.Squared; got {type(family).__name__}. Use "
                "hx.implicit.LeaveOneOut, with approximate=True for a criterion as cheap."
            )
        if not (math.isfinite(gamma) and gamma >= 1):
            raise ValueError(f"GCV: gamma must be a finite number >= 1; got {gamma}.")
        self.optimum, self.gamma = optimum, float(gamma)
        self.noisy, self.adaptive, self.value_name = False, False, "generalised cross-validation"

    def _criterion(self, hyper: PyTree) -> tuple[Array, tuple[Array, Array]]:
        family = family_of(self.optimum)
        x, strengths = jnp.asarray(family.inputs), family.strengths(hyper)
        y = family.targets if family.offset is None else family.targets - family.offset
        n, weights = x.shape[0], family.weighted(jnp.ones_like(y), hyper)
        weighted = (x * weights[:, None]).T / n
        gram = product(weighted, x)
        factor = (jnp.linalg.cholesky(gram + jnp.diag(strengths)), True)
        params = jsl.cho_solve(factor, product(weighted, y))
        freedom = jnp.trace(jsl.cho_solve(factor, gram))
        whole = jnp.sum(weights)
        loss = 0.5 * jnp.sum(weights * jnp.square(y - product(x, params))) / whole
        return loss / jnp.square(1 - self.gamma * freedom / whole), (params, freedom)

    def _result(self, hyper: PyTree, finite: Array, freedom: Array) -> RESULTS:
        whole = jnp.sum(family_of(self.optimum).weighted(jnp.ones_like(family_of(self.optimum).targets), hyper))
        result = RESULTS.where(self.gamma * freedom < whole, RESULTS.successful, RESULTS.no_freedom)
        result = RESULTS.where(finite, result, RESULTS.diverged)
        result = RESULTS.where(undetermined(family_of(self.optimum)), RESULTS.no_optimum, result)
        positive = family_of(self.optimum).strong_convexity(hyper) > 0
        return RESULTS.where(positive, result, RESULTS.unpenalised)

    @eqx.filter_jit
    def value_and_grad(
        self, hyper: PyTree, state: Array, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, Array]:
        refuse_accuracy(self, accuracy)

        def criterion(h: PyTree) -> tuple[Array, tuple[Array, Array]]:
            return self._criterion(promoted(h, self.optimum.params0))

        (value, (params, freedom)), grad = jax.value_and_grad(criterion, has_aux=True)(hyper)
        result = self._result(hyper, jnp.isfinite(value) & tree_all_finite(grad), freedom)
        answer = Hypergradient(value, grad, _unbounded(value), NOISE, result, GCVStats(freedom))
        return answer, jnp.where(jnp.all(jnp.isfinite(params)), params, state)

    @eqx.filter_jit
    def value(self, hyper: PyTree, state: Array, accuracy: Accuracy | None = None) -> tuple[Value, Array]:
        refuse_accuracy(self, accuracy)
        value, (params, freedom) = self._criterion(promoted(hyper, self.optimum.params0))
        result = self._result(hyper, jnp.isfinite(value), freedom)
        answer = Value(value, _unbounded(value), NOISE, result, GCVStats(freedom))
        return answer, jnp.where(jnp.all(jnp.isfinite(params)), params, state)


def _unbounded(value: Array) -> NoCertificate:
    return NoCertificate("a closed form, whose rounding is not bounded", value.dtype)
