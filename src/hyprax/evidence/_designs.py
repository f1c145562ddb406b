"""Sampling designs: which rows are looked at, with what weight, in what order.

Every design here has inclusion probabilities π_i > 0 with π_ij <= π_i π_j for any two rows (or blocks) and an order
fixed in advance, which is what the chain bound needs. Sampling with replacement, single pivots of all rows of a datum,
or an order that depends on the sample break the bound.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._batches import permuted
from ._problem import LinearisedModel
from ._roots import AbstractRoot


class Sample(eqx.Module):
    """Rows in their order: row j is the combination S(f_n) q_j of the root's columns, n = data_j, with weight 1/π_j.

    All rows of a block share a datum and a weight; q has one column for each.
    """

    data: Int[Array, " m"]
    directions: Float[Array, "m s b"]
    weights: Float[Array, " m"]


class AbstractDesign(eqx.Module):
    """A way to draw rows."""

    @abc.abstractmethod
    def draw(self, problem: LinearisedModel, root: AbstractRoot, key: Array) -> Sample:
        """Draw a sample; `problem` is constant, no derivative flows through a draw."""


def check_size(name: str, size: int, most: int, what: str) -> None:
    """Refuse a sample of fewer than one or more than all."""
    if not isinstance(size, int | np.integer) or not 1 <= size <= most:
        raise ValueError(f"{name}: size must be an integer from 1 to {most} ({what}); got {size!r}.")


def subset(size: int, total: int, key: Array) -> Int[Array, " size"]:
    """`size` of 0..total-1, uniform without replacement, in increasing order, in O(size)."""
    return jnp.sort(permuted(jnp.arange(size, dtype=jnp.int32), total, key))


def rotations_at(problem: LinearisedModel, root: AbstractRoot, data: Int[Array, " m"] | None) -> Float[Array, "m s r"]:
    """Q for the examples `data`, or for all."""
    return jax.vmap(lambda one: root.rotation(problem.likelihood, one))(problem.logits(data))


def inclusion_probabilities(scores: Float[Array, " n"], size: int) -> Float[Array, " n"]:
    """π = min(1, κ s) with Σ π = size, s > 0."""
    ordered = -jnp.sort(-scores)
    tail = jnp.flip(jnp.cumsum(jnp.flip(ordered)))
    left = jnp.maximum(size - jnp.arange(scores.size), 0).astype(scores.dtype)
    # The first k for which the largest of the others stays below 1 once the k largest are certain.
    certain = jnp.argmax(left * ordered <= tail)
    return jnp.minimum(1.0, left[certain] / tail[certain] * scores)


def pivotal(probabilities: Float[Array, " n"], size: int, key: Array) -> tuple[Int[Array, " size"], Float[Array, " n"]]:
    """Ordered pivotal sampling of `size` units with Σ π = size (Deville and Tillé 1998), and the π really used.

    Two units duel at a time: the winner takes as much of their joint probability as 1 allows, the loser keeps the
    rest. The sample has exactly `size` units, and π_ij <= π_i π_j. Written as a chain over the `size` strata between
    whole numbers of the cumulated probabilities (Chauvet 2012): in each the survivor is drawn by one uniform number,
    and one duel with the unit on the border decides who is taken and who goes on. O(n) and `size` short steps.
    """
    # Certain units first, at whole numbers exactly; the rest scaled to fill what is left, exactly too.
    order = jnp.argsort(-probabilities, stable=True)
    ordered = probabilities[order]
    certain = ordered >= 1
    count = jnp.sum(certain.astype(ordered.dtype))
    total = jnp.cumsum(jnp.where(certain, 0.0, ordered))
    share = total / jnp.maximum(total[-1], jnp.finfo(total.dtype).tiny)
    ends = jnp.where(certain, jnp.arange(1, ordered.size + 1, dtype=ordered.dtype), count + share * (size - count))
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    used = jnp.zeros_like(ends).at[order].set(ends - starts)
    levels = jnp.arange(size, dtype=ends.dtype)
    # Border of stratum i: the unit that holds the level i + 1. Past the last level there is none.
    border = jnp.searchsorted(ends, levels + 1, side="right").astype(jnp.int32)
    border = jnp.minimum(border, probabilities.size - 1)
    before = jnp.where(levels + 1 < size, (levels + 1) - starts[border], 0.0)
    after = jnp.where(levels + 1 < size, ends[border] - (levels + 1), 0.0)
    carried = jnp.concatenate([jnp.zeros_like(after[:1]), after[:-1]])
    place_key, duel_key = jax.random.split(key)
    place = levels + jax.random.uniform(place_key, (size,), ends.dtype) * (1 - before)
    inside = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    inside = jnp.minimum(inside, probabilities.size - 1)
    keeps = place - levels < carried
    takes = jnp.where(before > 0, before / jnp.maximum(1 - after, before), 0.0)
    swaps = jax.random.uniform(duel_key, (size,), ends.dtype) < takes

    def stratum(carry: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        border, inside, keeps, swaps = step
        survivor = jnp.where(keeps, carry, inside)
        return jnp.where(swaps, survivor, border), jnp.where(swaps, border, survivor)

    _, taken = jax.lax.scan(stratum, jnp.zeros((), jnp.int32), (border, inside, keeps, swaps))
    return order[taken].astype(jnp.int32), used


class Blocks(AbstractDesign):
    """`size` data, uniform without replacement, all rows of a datum as one block: π = size/N, size R passes.

    **Arguments:**

    - `size`: m, the data.
    """

    size: int = eqx.field(static=True)

    def draw(self, problem: LinearisedModel, root: AbstractRoot, key: Array) -> Sample:
        check_size("Blocks", self.size, problem.size, "data")
        data = subset(self.size, problem.size, key)
        rotations = rotations_at(problem, root, data)
        return Sample(data, rotations, jnp.full(self.size, problem.size / self.size, rotations.dtype))


class OneRow(AbstractDesign):
    """`size` data, one row of each: π = (size/N) ρ_nk, ρ_nk in proportion to the score of row k of datum n.

    Siblings never meet, so no pass over the data is needed. The score is s = log(1 + κ ‖ℓ‖²) + 1e-9, κ the mean of
    K_ii/‖ℓ_i‖² over a pilot drawn apart. The order is by falling π.

    **Arguments:**

    - `size`: B, the data, which are as many backward passes.
    - `scored`: draw the data by pivotal sampling on their total score, at one forward pass over all data, instead of
        uniformly.
    - `pilot`: the rows of the pilot; as many more passes.
    - `first`: two phases: first so many data, uniformly and by forward passes only; of these `size` by pivotal sampling
        on their total score. π = (first/N) π_{n|first} ρ_nk, and the order is by falling score, which does not depend
        on the first sample.
    """

    size: int = eqx.field(static=True)
    scored: bool = eqx.field(static=True, default=False)
    pilot: int = eqx.field(static=True, default=16)
    first: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.scored and self.first is not None:
            raise ValueError("OneRow: scored must be False where there is a first phase; got both.")

    def draw(self, problem: LinearisedModel, root: AbstractRoot, key: Array) -> Sample:
        check_size("OneRow", self.size, problem.size, "data, one row each")
        data_key, row_key, pilot_key = jax.random.split(key, 3)
        factor = pilot_factor(problem, root, self.pilot, pilot_key)
        if self.scored:
            scores = row_scores(problem, root, None, factor)
            data, used = pivotal(inclusion_probabilities(jnp.sum(scores, 1), self.size), self.size, data_key)
            data = jnp.sort(data)
            return _one_row(problem, root, scores[data], data, used[data], row_key)
        if self.first is not None:
            return self._two_phase(problem, root, factor, self.first, *jax.random.split(data_key), row_key)
        data = subset(self.size, problem.size, data_key)
        scores = row_scores(problem, root, data, factor)
        probability = jnp.full(self.size, self.size / problem.size, scores.dtype)
        return _one_row(problem, root, scores, data, probability, row_key)

    def _two_phase(
        self, problem: LinearisedModel, root: AbstractRoot, factor: Array, first: int, *keys: Array
    ) -> Sample:
        first_key, data_key, row_key = keys
        check_size("OneRow: first", first, problem.size, "data")
        check_size("OneRow", self.size, first, "data of the first phase")
        candidates = subset(first, problem.size, first_key)
        scores = row_scores(problem, root, candidates, factor)
        place, used = pivotal(inclusion_probabilities(jnp.sum(scores, 1), self.size), self.size, data_key)
        place = jnp.sort(place)
        probability = used[place] * (first / problem.size)
        return _one_row(problem, root, scores[place], candidates[place], probability, row_key, by_score=True)


class Rows(AbstractDesign):
    """`size` of all N R rows by their scores: π = min(1, κ' s), the tightest; one forward pass over all data.

    The score and the order are those of [`hyprax.evidence.designs.OneRow`][]. `method` is "pivotal" (fixed size),
    "poisson" (each row by itself; the size is random), or "uniform": π = size/(N R), without any score or pass over the
    data.

    **Arguments:**

    - `size`: B, the rows (expected rows for "poisson"), and the backward passes.
    - `method`: how to draw them.
    - `pilot`: the rows of the pilot.

    A Poisson sample is padded with empty rows to B + 8 √B + 16, which it exceeds with probability below 1e-12; the
    answer would then be NaN.
    """

    size: int = eqx.field(static=True)
    method: str = eqx.field(static=True, default="pivotal")
    pilot: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if self.method not in ("pivotal", "poisson", "uniform"):
            raise ValueError(f"Rows: method must be 'pivotal', 'poisson' or 'uniform'; got {self.method!r}.")

    def draw(self, problem: LinearisedModel, root: AbstractRoot, key: Array) -> Sample:
        count = root.count(problem.likelihood, problem.outputs, problem.dtype)
        total = problem.size * count
        check_size("Rows", self.size, total, f"{problem.size} data with {count} rows each")
        if self.method == "uniform":
            data, row = jnp.divmod(subset(self.size, total, key), count)
            directions = columns_at(problem, root, data, row)
            return Sample(data, directions, jnp.full(self.size, total / self.size, directions.dtype))
        row_key, pilot_key = jax.random.split(key)
        factor = pilot_factor(problem, root, self.pilot, pilot_key)
        probabilities = inclusion_probabilities(row_scores(problem, root, None, factor).ravel(), self.size)
        if self.method == "pivotal":
            taken, used = pivotal(probabilities, self.size, row_key)
            weights = 1 / used[taken]
        else:
            taken, weights = _poisson(probabilities, self.size, row_key)
        order = jnp.lexsort((taken, weights))
        taken, weights = taken[order], weights[order]
        data, row = jnp.divmod(taken, count)
        directions = columns_at(problem, root, data, row)
        return Sample(data, jnp.where(jnp.isinf(weights)[:, None, None], 0.0, directions), _finite(weights))


def _poisson(probabilities: Array, size: int, key: Array) -> tuple[Array, Array]:
    """Independent choices, padded with rows of infinite weight; NaN weights if there is no room for all."""
    room = min(probabilities.size, size + int(8 * size**0.5) + 16)
    chosen = jax.random.uniform(key, probabilities.shape, probabilities.dtype) < probabilities
    (taken,) = jnp.nonzero(chosen, size=room, fill_value=0)
    number = jnp.sum(chosen)
    weights = jnp.where(jnp.arange(room) < number, 1 / probabilities[taken], jnp.inf)
    return taken.astype(jnp.int32), jnp.where(number > room, jnp.nan, weights)


def _finite(weights: Array) -> Array:
    return jnp.where(jnp.isinf(weights), 1.0, weights)


def row_scores(
    problem: LinearisedModel, root: AbstractRoot, data: Int[Array, " m"] | None, factor: Float[Array, ""]
) -> Float[Array, "m r"]:
    """s = log(1 + κ ‖ℓ‖²) + 1e-9 for all rows ℓ = S q of the examples `data`, or of all."""
    f = problem.logits(data)
    squares = jax.vmap(lambda one: root.squares(problem.likelihood, one))(f)
    if problem.weights is not None:
        weights = problem.weights if data is None else problem.weights[data]
        squares = weights.astype(f.dtype)[:, None] * squares
    return jnp.log1p(factor * squares) + 1e-9


def pilot_factor(problem: LinearisedModel, root: AbstractRoot, size: int, key: Array) -> Float[Array, ""]:
    """κ, the mean of K_ii/‖ℓ_i‖² over `size` data, one row each: how much a row weighs beside its cotangent."""
    size = min(size, problem.size)
    data_key, row_key = jax.random.split(key)
    data = subset(size, problem.size, data_key)
    row = jax.random.randint(row_key, (size,), 0, root.count(problem.likelihood, problem.outputs, problem.dtype))
    rows = times_at(problem, root, data, columns_at(problem, root, data, row))[..., 0]
    if problem.weights is not None:
        rows = jnp.sqrt(problem.weights[data]).astype(rows.dtype)[:, None] * rows
    squares = jnp.sum(jnp.square(rows), axis=1)
    unit = rows / jnp.sqrt(jnp.maximum(squares, jnp.finfo(rows.dtype).tiny))[:, None]
    return jnp.mean(jnp.diagonal(problem.kernel(data, unit[:, None]))) / problem.temperature.astype(rows.dtype)


def columns_at(
    problem: LinearisedModel, root: AbstractRoot, data: Int[Array, " m"], row: Int[Array, " m"]
) -> Float[Array, "m s 1"]:
    """One column of Q for each of the examples `data`."""
    f = problem.logits(data)
    return jax.vmap(lambda one, k: root.column(problem.likelihood, one, k))(f, row)[..., None]


def times_at(
    problem: LinearisedModel, root: AbstractRoot, data: Int[Array, " m"] | None, directions: Float[Array, "m s b"]
) -> Float[Array, "m c b"]:
    """S q for the examples `data`, or for all."""
    f = problem.logits(data)
    return jax.vmap(lambda one, q: root.times(problem.likelihood, one, q))(f, directions)


def _one_row(
    problem: LinearisedModel,
    root: AbstractRoot,
    scores: Array,
    data: Array,
    probability: Array,
    key: Array,
    by_score: bool = False,
) -> Sample:
    """One row of each datum, ρ in proportion to the scores; the order by falling π, or by falling score."""
    row = jax.random.categorical(key, jnp.log(scores), axis=1)
    share = scores / jnp.sum(scores, axis=1, keepdims=True)
    at = row[:, None]
    score = jnp.take_along_axis(scores, at, 1)[:, 0]
    weights = 1 / (probability * jnp.take_along_axis(share, at, 1)[:, 0])
    order = jnp.lexsort((data, -score if by_score else weights))
    return Sample(data[order], columns_at(problem, root, data[order], row[order]), weights[order])
