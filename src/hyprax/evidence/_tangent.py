"""The tangent bound, stochastic EKFAC made a bound by a linear correction; and the choice between estimators."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._products import einsum
from ._chain import LogDeterminant
from ._designs import check_size, subset
from ._estimator import AbstractAdaptive, AbstractEstimator, Chain, EstimatorKind, check_part, cotangents
from ._problem import LinearisedModel
from ._roots import Rows
from ._structures import Basis, Factors, accumulate, bases, projected_squares, second_factors, without_precisions


class Tangent(AbstractEstimator):
    """U = Σ_l Σ_io [ log(1 + s̃_io) + (ŝ_io - s̃_io)/(1 + s̃_io) ]: E U >= log|I + K| for any s̃ > -1 and any basis.

    The logarithm of a determinant is concave, so it lies below its tangent at I + U diag(s̃) Uᵀ; the tangent is linear
    in the curvature, so an unbiased estimate of that keeps it a bound in expectation. Basis and s̃ come from reference
    rows, ŝ from fresh rows drawn apart: one Rademacher cotangent L_n ξ_n a datum, weight N/B, scaled by P0^-½. No
    kernel, and nothing grows with N. The best where the budget is far below the effective rank.

    **Arguments:**

    - `size`: B, the fresh data, one backward pass each.
    - `reference`: the data of the basis and of s̃, as many more passes; `None` for two halves of `size` that play both
        parts, averaged.
    """

    size: int = eqx.field(static=True, default=256)
    reference: int | None = eqx.field(static=True, default=None)

    @property
    def kind(self) -> EstimatorKind:
        return "bound"

    def __check_init__(self):
        if self.reference is None and (self.size < 2 or self.size % 2):
            raise ValueError(f"Tangent: size must be an even number >= 2, for two halves; got {self.size}.")

    def __call__(self, problem: LinearisedModel, key: Array) -> LogDeterminant:
        first, second = jax.random.split(key)
        if self.reference is not None:
            return LogDeterminant(_sided(problem, self.size, first, self.reference, second))
        half = self.size // 2
        there = _sided(problem, half, first, half, second)
        back = _sided(problem, half, second, half, first)
        return LogDeterminant((there + back) / 2)


def _sided(problem: LinearisedModel, size: int, key: Array, reference: int, reference_key: Array) -> Float[Array, ""]:
    check_size("Tangent", size, problem.size, "data")
    past = _reference("Tangent: reference", problem, reference, reference_key)
    return tangent(problem, *draw(problem, size, key), past, reference)[0]


class TangentState(eqx.Module):
    """What past draws say of the curvature, in units of 1/(T δ_l) where a tensor has one prior precision δ_l."""

    factors: Factors
    """Smoothed A and G."""
    basis: list[Basis]
    """Eigenvectors of A and G as they were when last looked at."""
    squares: list[Float[Array, "_ _"]]
    """Smoothed second moments in the basis; the entries keep their rank in it when it is renewed."""
    draws: Int[Array, ""]


class AdaptiveTangent(AbstractAdaptive):
    """The [`hyprax.evidence.Tangent`][] bound with basis and s̃ smoothed over PAST draws: E U >= log|I + K| each time.

    The bound holds for any s̃ > -1 and any basis that are independent of the fresh rows, and past draws are. So no rows
    are spent on reference: a third of the passes for the same fresh rows, and an s̃ from many times as many data. After
    each draw m <- decay m + (1 - decay) (fresh), for the second moments and for the two factors, whose eigenvectors
    become the basis every `refresh` draws. The first draw has `size` reference rows.

    **Arguments:**

    - `size`: B, the fresh data, one backward pass each.
    - `decay`: of the smoothing, in [0, 1).
    - `refresh`: how often the eigenvectors are renewed.
    """

    size: int = eqx.field(static=True, default=256)
    decay: float = eqx.field(static=True, default=0.9)
    refresh: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if not (0 <= self.decay < 1) or self.refresh < 1:
            raise ValueError(
                f"AdaptiveTangent: decay must be in [0, 1) and refresh >= 1; got {self.decay} and {self.refresh}."
            )

    @property
    def kind(self) -> EstimatorKind:
        return "bound"

    def init(self, problem: LinearisedModel, key: Array) -> TangentState:
        """The state before the first draw, from rows of its own."""
        return _compiled_reference("AdaptiveTangent", problem, self.size, key)

    def __call__(
        self, problem: LinearisedModel, key: Array, state: TangentState
    ) -> tuple[LogDeterminant, TangentState]:
        """The bound at the past's basis and s̃, and the state with the fresh rows added."""
        check_size("AdaptiveTangent", self.size, problem.size, "data")
        return self.drawn(problem, *draw(problem, self.size, key), state)

    def drawn(
        self, problem: LinearisedModel, data: Int[Array, " m"], signs: Float[Array, "m c 1"], state: TangentState
    ) -> tuple[LogDeterminant, TangentState]:
        """The same for a draw that is given."""
        seen = self.size * (1 + self.decay) / (1 - self.decay)  # as many equally weighted rows have this variance
        value, (squares, factors) = tangent(problem, data, signs, state, seen)

        def smoothed(old: Array, new: Array) -> Array:
            return self.decay * old + (1 - self.decay) * new

        factors, squares = jax.tree.map(smoothed, (state.factors, state.squares), (factors, squares))
        due = (state.draws + 1) % self.refresh == 0
        basis = jax.lax.cond(due, bases, lambda _: state.basis, factors)
        return LogDeterminant(value), TangentState(factors, basis, squares, state.draws + 1)


def _reference(name: str, problem: LinearisedModel, size: int, key: Array) -> TangentState:
    """Basis and second moments of rows of their own."""
    check_size(name, size, problem.size, "data")
    plain, _ = without_precisions(problem.constant())
    data, signs = draw(plain, size, key)
    rows = _rows(plain, data, signs)
    factors = accumulate(plain, data, rows, second_factors)
    basis = bases(factors)
    squares = accumulate(plain, data, rows, lambda x: projected_squares(x, basis))
    factors, squares = jax.tree.map(lambda x: problem.temperature.astype(x.dtype) * x, (factors, squares))
    return jax.lax.stop_gradient(TangentState(factors, basis, squares, jnp.zeros((), jnp.int32)))


_compiled_reference = eqx.filter_jit(_reference)


def tangent(
    problem: LinearisedModel, data: Int[Array, " m"], signs: Float[Array, "m c 1"], past: TangentState, seen: float
) -> tuple[Float[Array, ""], tuple[list[Array], Factors]]:
    """U of fresh rows at a basis and s̃ that know nothing of them; and what the rows say of second moments and factors.

    s̃ follows δ and T, and has no other derivative: U is a bound for each δ at a given s̃ δ T, and where s̃ = s its
    derivative in δ has then no noise in directions that the data determine.
    """
    plain, units = without_precisions(problem)
    rows, temperature = _rows(plain, data, signs), problem.temperature.astype(problem.dtype)

    def both(x: PyTree) -> tuple[list[Array], Factors]:
        return projected_squares(x, past.basis), second_factors(jax.lax.stop_gradient(x))

    squares, factors = accumulate(plain, data, rows, both)
    value = jnp.zeros((), rows.dtype)
    for unit, fresh, old, basis, (left, right) in zip(
        units, squares, past.squares, past.basis, past.factors, strict=True
    ):
        expected = unit / temperature * jax.lax.stop_gradient(guess(old, basis, left, right, seen))
        value = value + jnp.sum(jnp.log1p(expected) + (unit * fresh - expected) / (1 + expected))
    return value, jax.lax.stop_gradient(jax.tree.map(lambda x: temperature * x, (squares, factors)))


def guess(
    squares: Float[Array, "i o"], basis: Basis, left: Array | None, right: Array | None, rows: float
) -> Float[Array, "i o"]:
    """s̃ = ½ d_i e_o/Σd + ½ ŝ_io, d and e the eigenvalues of the two factors, each shrunk towards its mean.

    k numbers from m rows keep the share m/(m + √k) of themselves: a direction of which few reference rows show anything
    would otherwise have s̃ near 0, and the tangent there is steep.
    """

    def shrunk(x: Array) -> Array:
        own = rows / (rows + x.size**0.5)
        return own * jnp.maximum(x, 0.0) + (1 - own) * jnp.mean(x)

    if basis.left is None or basis.right is None or left is None or right is None:
        return shrunk(squares)
    along = shrunk(einsum("ij,ik,kj->j", basis.left, left, basis.left))
    across = shrunk(einsum("ij,ik,kj->j", basis.right, right, basis.right))
    total = jnp.maximum(jnp.sum(along), jnp.finfo(squares.dtype).tiny)
    return 0.5 * shrunk(squares) + 0.5 * jnp.outer(along, across) / total


def draw(problem: LinearisedModel, size: int, key: Array) -> tuple[Int[Array, " m"], Float[Array, "m c 1"]]:
    """Data without replacement, and ξ = ±1 for each output of each."""
    data_key, sign_key = jax.random.split(key)
    data = subset(size, problem.size, data_key)
    return data, jax.random.rademacher(sign_key, (size, problem.outputs, 1), problem.dtype)


def _rows(problem: LinearisedModel, data: Int[Array, " m"], signs: Float[Array, "m c 1"]) -> Float[Array, "m 1 c"]:
    """The cotangents L ξ √(N/B): the mean of the outer products of their rows is the curvature."""
    scale = jnp.sqrt(jnp.asarray(problem.size / data.shape[0], problem.dtype))
    return scale * cotangents(problem, Rows(), data, signs)


class ChoiceState(eqx.Module):
    """Smoothed values of each estimator over past draws, and how many draws there were."""

    means: Float[Array, " k"]
    steps: Int[Array, ""]


class Choice(AbstractAdaptive):
    """The estimator with the least smoothed `upper` over PAST draws, then drawn afresh: a bound if all are.

    The least of several noisy bounds, or a choice by the current draw, is not a bound; a choice that is independent of
    the draw is. Every `refresh` draws all estimators are evaluated and m <- decay m + (1 - decay) upper; in between,
    the chosen one alone.

    **Arguments:**

    - `estimators`: default the chain and the tangent bound.
    - `decay`: of the smoothing, in [0, 1).
    - `refresh`: how often all are evaluated.
    """

    estimators: tuple[AbstractEstimator, ...] = (Chain(), Tangent())
    decay: float = eqx.field(static=True, default=0.7)
    refresh: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if not self.estimators:
            raise ValueError("Choice: estimators must be at least one; got none.")
        for estimator in self.estimators:
            check_part("Choice: estimators", estimator, AbstractEstimator, "Chain(OneRow(64))")
        if not (0 <= self.decay < 1) or self.refresh < 1:
            raise ValueError(f"Choice: decay must be in [0, 1) and refresh >= 1; got {self.decay} and {self.refresh}.")

    @property
    def kind(self) -> EstimatorKind:
        """`bound` if all estimators are."""
        return "bound" if all(e.kind == "bound" for e in self.estimators) else "estimated"

    def init(self, problem: LinearisedModel, key: Array) -> ChoiceState:
        """The state before the first draw, in which the first estimator is chosen."""
        return ChoiceState(jnp.zeros(len(self.estimators), problem.dtype), jnp.zeros((), jnp.int32))

    def chosen(self, state: ChoiceState) -> Int[Array, ""]:
        """The place of the estimator that the next draw uses."""
        return jnp.argmin(state.means).astype(jnp.int32)

    def __call__(self, problem: LinearisedModel, key: Array, state: ChoiceState) -> tuple[LogDeterminant, ChoiceState]:
        """The chosen estimate, and the next state."""

        def branch(estimator: AbstractEstimator):
            def evaluate(problem: LinearisedModel, key: Array) -> LogDeterminant:
                sides = estimator(problem, key)
                nothing = jnp.full_like(sides.upper, -jnp.inf)  # a true lower side that says nothing
                rounding = jnp.asarray(sides.rounding, sides.upper.dtype)
                return LogDeterminant(sides.upper, nothing if sides.lower is None else sides.lower, rounding)

            return evaluate

        branches = [branch(estimator) for estimator in self.estimators]
        chosen_key, *keys = jax.random.split(key, 1 + len(branches))
        arrays, static = eqx.partition(problem, eqx.is_array)
        sides = jax.lax.switch(
            self.chosen(state),
            [lambda arrays, key, b=b: b(eqx.combine(arrays, static), key) for b in branches],
            arrays,
            chosen_key,
        )

        def refreshed(means: Array) -> Array:
            now = jnp.stack([b(problem.constant(), k).upper for b, k in zip(branches, keys, strict=True)])
            return jnp.where(state.steps == 0, now, self.decay * means + (1 - self.decay) * now)

        means = jax.lax.cond(state.steps % self.refresh == 0, refreshed, lambda means: means, state.means)
        return sides, ChoiceState(jax.lax.stop_gradient(means), state.steps + 1)
