"""Bounds by partition: of the data, of their outputs, of the weights, or of several of these at once."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._designs import check_size, roots_at, subset
from ._estimator import AbstractEstimator, EstimatorKind, LogDeterminant, check_part, cotangents
from ._likelihoods import Categorical
from ._problem import Problem
from ._roots import AbstractRoot, StickBreaking
from ._structures import AbstractStructure, Full


class FullData(AbstractEstimator):
    """log|I + K| of all data, in full or reduced by a structure; nothing is drawn.

    **Arguments:**

    - `structure`: [`hyprax.evidence.Full`][] (exact, the default), [`hyprax.evidence.TensorBlocks`][],
        [`hyprax.evidence.EKFAC`][], [`hyprax.evidence.Diagonal`][] (bounds), [`hyprax.evidence.KFAC`][],
        [`hyprax.evidence.LastLayer`][] (estimated).
    """

    structure: AbstractStructure = Full()

    def __check_init__(self):
        check_part("FullData: structure", self.structure, AbstractStructure, "KFAC()")

    @property
    def kind(self) -> EstimatorKind:
        return "bound" if self.structure.exact else "estimated"

    @property
    def draws(self) -> bool:
        return False

    def random(self, problem: Problem) -> Problem:
        return self.structure.random(problem)

    def __call__(self, problem: Problem, key: Array) -> LogDeterminant:
        root = StickBreaking()  # with all rows of all data the root makes no difference, so the one with fewest rows
        count = root.count(problem.likelihood, problem.outputs, problem.dtype)
        directions = jnp.broadcast_to(jnp.eye(count, dtype=problem.dtype), (problem.size, count, count))
        return self.structure(problem, None, cotangents(problem, root, None, directions))


class Partition(AbstractEstimator):
    """(N/M) log|I + K_AA| of M random data A: a bound in expectation, for blocks of data and of outputs (Fischer).

    The expectation is the mean over all partitions into blocks of M data. The factor multiplies the logarithm.

    **Arguments:**

    - `size`: M, the data.
    - `outputs`: "all" for all outputs of the data in one block; "each" for one block for each row of the root; "one"
        for one of these at random, times their number.
    - `root`: which rows; default [`hyprax.evidence.StickBreaking`][]. [`hyprax.evidence.IgnoredCovariance`][] gives
        the estimator of released code, which is no bound.
    - `grouped`: draw the data from one class, itself drawn at random: correlated data in a block are tighter. For the
        categorical likelihood.
    - `structure`: reduce each block further in the space of weights ("doubly stochastic"); default none.

    Source: Immer et al. 2023 (arXiv 2306.03968).
    """

    size: int = eqx.field(static=True)
    outputs: Literal["all", "each", "one"] = eqx.field(static=True, default="all")
    root: AbstractRoot = StickBreaking()
    grouped: bool = eqx.field(static=True, default=False)
    structure: AbstractStructure = Full()

    def __check_init__(self):
        check_part("Partition: root", self.root, AbstractRoot, "StickBreaking()")
        check_part("Partition: structure", self.structure, AbstractStructure, "KFAC()")
        if self.outputs not in ("all", "each", "one"):
            raise ValueError(f"Partition: given outputs {self.outputs!r}, allowed are 'all', 'each' and 'one'.")

    @property
    def kind(self) -> EstimatorKind:
        return "bound" if self.root.exact and self.structure.exact else "estimated"

    def random(self, problem: Problem) -> Problem:
        return self.structure.random(problem)

    def __call__(self, problem: Problem, key: Array) -> LogDeterminant:
        check_size("Partition", self.size, problem.size, "data")
        data_key, row_key = jax.random.split(key)
        data, kept = self._data(problem, data_key)
        _, rotations = roots_at(problem.constant(), self.root, data)
        rows = cotangents(problem, self.root, data, jax.lax.stop_gradient(rotations))
        rows = jnp.where(kept[:, None, None], rows, 0.0)
        factor = (problem.size / jnp.sum(kept)).astype(rows.dtype)
        count = rows.shape[1]
        if self.outputs == "all":
            found = self.structure(problem, data, rows)
        elif self.outputs == "each":
            one = jax.vmap(lambda block: self.structure(problem, data, block[:, None]), in_axes=1)
            found = jax.tree.map(jnp.sum, one(rows))
        else:
            chosen = jax.random.randint(row_key, (1,), 0, count)
            found, factor = self.structure(problem, data, rows[:, chosen]), factor * count
        return LogDeterminant(factor * found.upper, None, factor * found.rounding)

    def _data(self, problem: Problem, key: Array) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
        """The data of one block, and which of them count: a class may have fewer than M."""
        if not self.grouped:
            return subset(self.size, problem.size, key), jnp.ones(self.size, bool)
        if not isinstance(problem.likelihood, Categorical):
            raise ValueError(f"Partition: given grouped for {type(problem.likelihood).__name__}, allowed: Categorical.")
        class_key, data_key = jax.random.split(key)
        labels = problem.targets
        same = labels == labels[jax.random.randint(class_key, (), 0, problem.size)]
        # The M largest of random numbers, members of the class before all others.
        _, data = jax.lax.top_k(
            same.astype(problem.dtype) + jax.random.uniform(data_key, (problem.size,), problem.dtype), self.size
        )
        return data.astype(jnp.int32), same[data]
