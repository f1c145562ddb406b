"""What an estimator of log|I + K| is, and the chain estimator."""

import abc
from typing import Any, ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._objective import described
from ._chain import LogDeterminant, chain, chain_of_rows
from ._designs import AbstractDesign, OneRow, times_at
from ._problem import LinearisedModel
from ._roots import AbstractRoot, Eigen, StickBreaking
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


LARGEST_SIDE = 1024
"""The largest matrix of a side that is factored without being asked for."""
MANY_CLASSES = 128
"""From so many, rows by stick-breaking, which needs no matrix of C x C numbers."""
MOST_WORK = 2e9
"""The most multiplications of the product that makes it."""


LARGEST_ROOTS = 1e8
"""The most numbers in the roots of all data, C x C of each, that are made without being asked for."""


def exact_side(weights: int, size: int, outputs: int) -> Literal["weights", "functions"] | None:
    """The smaller of the two sides, where the matrix of its size is cheap."""
    rows = size * outputs
    least = min(weights, rows)
    if least > LARGEST_SIDE or float(rows) * weights * least > MOST_WORK or float(rows) * outputs > LARGEST_ROOTS:
        return None
    return "weights" if weights <= rows else "functions"


def or_default(name: str, estimator: Any, weights: int, size: int, outputs: int, allowed: Any) -> Any:
    """The estimator given; else all data where that is cheap, or the chain with one row of each of min(size, 256) data.

    **Raises:** `ValueError`, of the caller `name`, for anything else than an estimator.
    """
    if estimator is None:
        from ._partitions import FullData  # which builds on this module

        if exact_side(weights, size, outputs) is not None:
            return FullData()
        return Chain(OneRow(min(size, 256)), Eigen() if outputs <= MANY_CLASSES else StickBreaking())
    if not isinstance(estimator, allowed):
        if isinstance(estimator, AbstractAdaptive):
            raise ValueError(
                f"{name}: estimator must be one of one draw, such as Chain(OneRow(64)); got "
                f"{type(estimator).__name__}, which learns from past draws: give it to an EvidenceObjective."
            )
        structure = type(estimator).__name__ if isinstance(estimator, AbstractStructure) else "KFAC"
        raise ValueError(
            f"{name}: estimator must be such as Chain(OneRow(64)); got {described(estimator)}. A structure of the "
            f"curvature comes inside of one: FullData({structure}())."
        )
    return estimator


def check_part(name: str, part: Any, kind: type, example: str) -> None:
    """Refuse a part of an estimator that is of another kind.

    **Raises:** `ValueError`.
    """
    if not isinstance(part, kind):
        raise ValueError(f"{name} must be such as {example}; got {described(part)}.")


class _Rule(eqx.Module):
    """What rules for log|I + K| share, whether or not past draws inform them."""

    citations: ClassVar[tuple[str, ...]] = (EVIDENCE_PAPER,)

    @property
    def draws(self) -> bool:
        """Whether an estimate depends on its key."""
        return True

    def random(self, problem: LinearisedModel) -> LinearisedModel:
        """The problem in the weights that are random: all, but for a last layer.

        The penalty, the distance from the mode and the log-determinant are then over the same weights.
        """
        return problem


class AbstractEstimator(_Rule):
    """A rule for log|I + K|: `estimator(problem, key)` is differentiable in everything continuous in `problem`."""

    @property
    @abc.abstractmethod
    def kind(self) -> EstimatorKind:
        """`bound` if E upper >= log|I + K| is proved (in expectation over the draw, rounding aside), or `estimated`."""

    @abc.abstractmethod
    def __call__(self, problem: LinearisedModel, key: Array) -> LogDeterminant:
        """Estimate log|I + K|.

        **Arguments:**

        - `problem`: the model, likelihood, prior and data.
        - `key`: a JAX random key; estimators that draw nothing ignore it.
        """


class AbstractAdaptive(_Rule):
    """A rule for log|I + K| that past draws inform: a bound for each state that was fixed before the draw."""

    @property
    @abc.abstractmethod
    def kind(self) -> EstimatorKind:
        """As that of an [`hyprax.evidence.AbstractEstimator`][], given the state."""

    @property
    def of_precisions_alone(self) -> bool:
        """Whether estimates have a derivative in nothing but prior precisions."""
        return False

    @abc.abstractmethod
    def init(self, problem: LinearisedModel, key: Array) -> Any:
        """The state before the first draw."""

    def at_weights(self, problem: LinearisedModel, state: Any) -> Any:
        """The state once the weights have moved to those of `problem`: called outside of compiled code."""
        return state

    @abc.abstractmethod
    def __call__(self, problem: LinearisedModel, key: Array, state: Any) -> tuple[LogDeterminant, Any]:
        """The estimate, and the state for the next draw; `key` must be independent of `state`."""


def cotangents(
    problem: LinearisedModel,
    root: AbstractRoot,
    data: Int[Array, " m"] | None,
    directions: Float[Array, "m s r"],
) -> Float[Array, "m r c"]:
    """The rows S(f_n) q √(w_n/T), differentiable in what f depends on; the directions q are constants."""
    rows = jnp.swapaxes(times_at(problem, root, data, directions), 1, 2)
    return problem.shares(data).astype(rows.dtype)[:, None, None] * rows


class Chain(AbstractEstimator):
    """U = Σ_j w_j log(1 + (R_jj² - 1)/w_j), I + W^½ K W^½ = R Rᵀ, on sampled rows: E Lo <= log|I + K| <= E U.

    The other side Lo = 2 Σ_j log R_jj comes from the same factorisation. For every sample Lo <= U, and U is at most
    the subset estimate (N/M) log|I + K| on the same rows. A row is conditioned on the earlier rows of the sample,
    each standing for the 1/π rows that it represents.

    **Arguments:**

    - `design`: which rows; default [`hyprax.evidence.designs.OneRow`][] of 256 data. All satisfy π_ij <= π_i π_j.
    - `root`: of the likelihood's curvature; default [`hyprax.evidence.roots.Eigen`][].
    - `midpoint`: (U + Lo)/2 in place of U: nearer to log|I + K| than either, and a bound of nothing.
    """

    design: AbstractDesign = OneRow(256)
    root: AbstractRoot = Eigen()
    midpoint: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_part("Chain: design", self.design, AbstractDesign, "OneRow(64)")
        check_part("Chain: root", self.root, AbstractRoot, "Eigen()")

    @property
    def kind(self) -> EstimatorKind:
        return "bound" if self.root.exact and not self.midpoint else "estimated"

    def __call__(self, problem: LinearisedModel, key: Array) -> LogDeterminant:
        sample = jax.lax.stop_gradient(self.design.draw(problem.constant(), self.root, key))
        rows = cotangents(problem, self.root, sample.data, sample.directions)
        m, block = rows.shape[:2]
        if problem.count <= m * block:
            found = chain_of_rows(problem.rows(sample.data, rows), sample.weights, block)
        else:
            found = chain(problem.kernel(sample.data, rows), sample.weights, block)
        if not self.midpoint:
            return found
        assert found.lower is not None
        return LogDeterminant((found.upper + found.lower) / 2, None, found.rounding)
