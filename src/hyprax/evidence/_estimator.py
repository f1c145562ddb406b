"""What an estimator of log|I + K| is, and the chain estimator."""

import abc
from typing import Any, ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._products import product
from ._chain import chain
from ._designs import AbstractDesign, OneRow
from ._problem import Problem
from ._roots import AbstractRoot, Eigen
from ._structures import AbstractStructure

EstimatorKind: TypeAlias = Literal["bound", "estimated"]

EVIDENCE_PAPER = """
@inproceedings{immer2023stochastic,
  title = {Stochastic marginal likelihood gradients using neural tangent kernels},
  author = {Immer, Alexander and van der Ouderaa, Tycho F. A. and van der Wilk, Mark and R{\\"a}tsch, Gunnar and
    Sch{\\"o}lkopf, Bernhard},
  booktitle = {International Conference on Machine Learning},
  year = {2023},
  note = {arXiv:2306.03968}
}
"""


def or_default(name: str, estimator: Any, size: int, allowed: Any) -> Any:
    """The estimator given, else the chain with one row of each of min(size, 256) data.

    **Raises:** `ValueError`, of the caller `name`, for anything else than an estimator.
    """
    if estimator is None:
        return Chain(OneRow(min(size, 256)))
    if not isinstance(estimator, allowed):
        if isinstance(estimator, AbstractAdaptive):
            raise ValueError(
                f"{name}: given {type(estimator).__name__}, which learns from past draws, allowed here are estimators "
                "of one draw such as Chain(OneRow(64)) and Tangent(64); fit and EvidenceObjective draw many times."
            )
        structure = type(estimator).__name__ if isinstance(estimator, AbstractStructure) else "KFAC"
        raise ValueError(
            f"{name}: given {described(estimator)} as the estimator, allowed are estimators such as Chain(OneRow(64)); "
            f"a structure of the curvature comes inside of one: FullData({structure}())."
        )
    return estimator


def described(x: Any) -> str:
    """What `x` is, for a message."""
    return f"the class {x.__name__} itself" if isinstance(x, type) else f"a {type(x).__name__}"


def check_part(name: str, part: Any, kind: type, example: str) -> None:
    """Refuse a part of an estimator that is of another kind.

    **Raises:** `ValueError`.
    """
    if not isinstance(part, kind):
        raise ValueError(f"{name}: given {described(part)}, allowed are such as {example}.")


class LogDeterminant(eqx.Module):
    """An estimate of F = log|I + K|, and where there is one, a second one from the other side.

    From an estimator of kind `bound`: E upper >= F, and E lower <= F where `lower` is not `None`. The log evidence
    falls with F, so `upper` gives its lower bound.
    """

    upper: Float[Array, ""]
    lower: Float[Array, ""] | None = None


class AbstractEstimator(eqx.Module):
    """A rule for log|I + K|: `estimator(problem, key)` is differentiable in everything continuous in `problem`."""

    citations: ClassVar[tuple[str, ...]] = (EVIDENCE_PAPER,)

    @property
    @abc.abstractmethod
    def kind(self) -> EstimatorKind:
        """`bound` if E upper >= log|I + K| is proved (in expectation over the draw, rounding aside), or `estimated`."""

    @abc.abstractmethod
    def __call__(self, problem: Problem, key: Array) -> LogDeterminant:
        """Estimate log|I + K|.

        **Arguments:**

        - `problem`: the model, likelihood, prior and data.
        - `key`: a JAX random key; estimators that draw nothing ignore it.
        """


class AbstractAdaptive(eqx.Module):
    """A rule for log|I + K| that past draws inform: a bound for each state that was fixed before the draw."""

    citations: ClassVar[tuple[str, ...]] = (EVIDENCE_PAPER,)

    @property
    @abc.abstractmethod
    def kind(self) -> EstimatorKind:
        """As that of an [`hyprax.evidence.AbstractEstimator`][], given the state."""

    @abc.abstractmethod
    def init(self, problem: Problem, key: Array) -> Any:
        """The state before the first draw."""

    @abc.abstractmethod
    def __call__(self, problem: Problem, key: Array, state: Any) -> tuple[LogDeterminant, Any]:
        """The estimate, and the state for the next draw; `key` must be independent of `state`."""


def cotangents(
    problem: Problem,
    root: AbstractRoot,
    data: Int[Array, " m"] | None,
    directions: Float[Array, "m s r"],
) -> Float[Array, "m r c"]:
    """The rows S(f_n) q / √T, differentiable in what f depends on; the directions q are constants."""
    f = problem.logits(data)
    matrix = jax.vmap(lambda one: root.matrix(problem.likelihood, one))(f)
    scale = jax.lax.rsqrt(problem.temperature.astype(f.dtype))
    return scale * jnp.swapaxes(product(matrix, directions), 1, 2)


class Chain(AbstractEstimator):
    """U = Σ_j w_j log(1 + (R_jj² - 1)/w_j), I + W^½ K W^½ = R Rᵀ, on sampled rows: E Lo <= log|I + K| <= E U.

    The other side Lo = 2 Σ_j log R_jj comes from the same factorisation. For every sample Lo <= U, and U is at most
    the subset estimate (N/M) log|I + K| on the same rows. A row is conditioned on the earlier rows of the sample,
    each standing for the 1/π rows that it represents.

    **Arguments:**

    - `design`: which rows; default [`hyprax.evidence.OneRow`][] of 256 data. All satisfy π_ij <= π_i π_j.
    - `root`: of the likelihood's curvature; default [`hyprax.evidence.Eigen`][].
    """

    design: AbstractDesign = OneRow(256)
    root: AbstractRoot = Eigen()

    def __check_init__(self):
        check_part("Chain: design", self.design, AbstractDesign, "OneRow(64)")
        check_part("Chain: root", self.root, AbstractRoot, "Eigen()")

    @property
    def kind(self) -> EstimatorKind:
        return "bound" if self.root.exact else "estimated"

    def __call__(self, problem: Problem, key: Array) -> LogDeterminant:
        sample = jax.lax.stop_gradient(self.design.draw(problem.constant(), self.root, key))
        rows = cotangents(problem, self.root, sample.data, sample.directions)
        upper, lower = chain(problem.kernel(sample.data, rows), sample.weights, rows.shape[1])
        return LogDeterminant(upper, lower)


class Midpoint(AbstractEstimator):
    """(U + Lo)/2 of a chain: nearer to log|I + K| than either, and a bound of nothing.

    **Arguments:**

    - `chain`: the [`hyprax.evidence.Chain`][].
    """

    chain: Chain = Chain()

    def __check_init__(self):
        check_part("Midpoint: chain", self.chain, Chain, "Chain(OneRow(64))")

    @property
    def kind(self) -> EstimatorKind:
        return "estimated"

    def __call__(self, problem: Problem, key: Array) -> LogDeterminant:
        sides = self.chain(problem, key)
        assert sides.lower is not None
        return LogDeterminant((sides.upper + sides.lower) / 2)
