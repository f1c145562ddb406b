"""Estimates from all data, and from blocks of the data, of their outputs, of the weights, or of several at once."""

import importlib
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._chain import LogDeterminant
from ._designs import check_size, rotations_at, subset
from ._estimator import AbstractAdaptive, AbstractEstimator, EstimatorKind, check_part, cotangents
from ._kernel import kernel_matvec
from ._likelihoods import Categorical
from ._problem import LinearisedModel
from ._roots import AbstractRoot, StickBreaking
from ._structures import (
    AbstractStructure,
    Full,
    Moments,
    Spectra,
    check_precisions,
    moments,
    reduced,
    spectra,
)


class FullData(AbstractEstimator):
    """log|I + K| of all data, in full or reduced by a structure; nothing is drawn.

    **Arguments:**

    - `structure`: of `hyprax.evidence.structures`: default none; `TensorBlocks`, `EKFAC`, `Diagonal` (bounds), `KFAC`,
        `LastLayer` (estimated).
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

    def random(self, problem: LinearisedModel) -> LinearisedModel:
        return self.structure.random(problem)

    def __call__(self, problem: LinearisedModel, key: Array) -> LogDeterminant:
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
    - `root`: which rows; default [`hyprax.evidence.roots.StickBreaking`][].
        `roots.Rows(covariance=False)` gives the estimator of released code, which is no bound.
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
            raise ValueError(f"Partition: outputs must be 'all', 'each' or 'one'; got {self.outputs!r}.")

    @property
    def kind(self) -> EstimatorKind:
        return "bound" if self.root.exact and self.structure.exact else "estimated"

    def random(self, problem: LinearisedModel) -> LinearisedModel:
        return self.structure.random(problem)

    def __call__(self, problem: LinearisedModel, key: Array) -> LogDeterminant:
        check_size("Partition", self.size, problem.size, "data")
        data_key, row_key = jax.random.split(key)
        data, kept = self._data(problem, data_key)
        rotations = rotations_at(problem.constant(), self.root, data)
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

    def _data(self, problem: LinearisedModel, key: Array) -> tuple[Int[Array, " m"], Bool[Array, " m"]]:
        """The data of one block, and which of them count: a class may have fewer than M."""
        if not self.grouped:
            return subset(self.size, problem.size, key), jnp.ones(self.size, bool)
        if not isinstance(problem.likelihood, Categorical):
            raise ValueError(
                f"Partition: grouped needs a Categorical likelihood; got {type(problem.likelihood).__name__}."
            )
        class_key, data_key = jax.random.split(key)
        labels = problem.targets if problem.targets.ndim == 1 else jnp.argmax(problem.targets, axis=1)
        same = labels == labels[jax.random.randint(class_key, (), 0, problem.size)]
        # The M largest of random numbers, members of the class before all others.
        _, data = jax.lax.top_k(
            same.astype(problem.dtype) + jax.random.uniform(data_key, (problem.size,), problem.dtype), self.size
        )
        return data.astype(jnp.int32), same[data]


class Lanczos(AbstractEstimator):
    """log|I + K| ≈ (1/S) Σ_s ‖z_s‖² e_1ᵀ log(T_s) e_1, T_s the tridiagonal matrix of k Lanczos steps from z_s = ±1.

    K v = J (P0⁻¹ (Jᵀ v)) over all data, one forward and one reverse pass, so memory grows with neither N² nor P².
    Neither side is proved: the quadrature and the samples err both ways. Needs the package `matfree`
    (`pip install hyprax[lanczos]`).

    **Arguments:**

    - `steps`: k, the products for each sample; at most the number of rows.
    - `samples`: S.

    Source: Ubaru, Chen and Saad 2017; gradients of Krämer et al. 2024 (arXiv 2405.17277).
    """

    steps: int = eqx.field(static=True, default=30)
    samples: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if self.steps < 1 or self.samples < 1:
            raise ValueError(f"Lanczos: steps and samples must be integers >= 1; got {self.steps} and {self.samples}.")
        try:
            importlib.import_module("matfree")
        except ImportError as error:
            raise ImportError("Lanczos needs the package matfree: pip install hyprax[lanczos].") from error

    @property
    def kind(self) -> EstimatorKind:
        return "estimated"

    def __call__(self, problem: LinearisedModel, key: Array) -> LogDeterminant:
        from matfree import decomp, funm, stochtrace

        root = StickBreaking()
        count = root.count(problem.likelihood, problem.outputs, problem.dtype)
        directions = jnp.broadcast_to(jnp.eye(count, dtype=problem.dtype), (problem.size, count, count))
        rows = cotangents(problem, root, None, directions)
        total = problem.size * count
        if self.steps > total:
            raise ValueError(f"Lanczos: steps must be from 1 to {total} (the rows); got {self.steps}.")

        def product(vector: Float[Array, " rows"], parameters: tuple) -> Float[Array, " rows"]:
            params, hyper, inputs, rows, variances = parameters
            return vector + kernel_matvec(problem.apply, params, hyper, inputs, rows, variances, vector)

        parameters = (
            problem.params,
            problem.hyper,
            problem.examples(None),
            rows,
            problem.prior.variances(problem.params),
        )
        integrand = funm.monte_carlo_funm_sym_logdet(decomp.tridiag_sym(self.steps))
        sampler = stochtrace.sampler_signs(jnp.ones(total, problem.dtype), num=self.samples)
        return LogDeterminant(stochtrace.estimator_monte_carlo(integrand, sampler)(product, key, parameters))


class OnlineKFAC(AbstractAdaptive):
    """KFAC of all data, its factors made once at each set of weights: Σ_l Σ_io log(1 + d_i e_o/δ_l).

    d and e are the eigenvalues of the factors of [`hyprax.evidence.structures.KFAC`][]. They depend on the weights and
    not on the prior precisions, so they are made once each time that the weights have moved, and all evaluations there
    share them: the usual practice. The derivative is one in prior precisions alone, and other hyperparameters are
    refused: for those take `FullData(KFAC())`, which goes through all data at every step. Neither side is proved.

    **Arguments:**

    - `chunk`: data at a time, in a loop of the host's: nothing compiled grows with N.
    """

    chunk: int = eqx.field(static=True, default=256)

    def __check_init__(self):
        if self.chunk < 1:
            raise ValueError(f"OnlineKFAC: chunk must be an integer >= 1; got {self.chunk}.")

    @property
    def kind(self) -> EstimatorKind:
        return "estimated"

    @property
    def draws(self) -> bool:
        return False

    @property
    def of_precisions_alone(self) -> bool:
        return True

    def init(self, problem: LinearisedModel, key: Array) -> Spectra:
        """The eigenvalues of the factors at the weights of `problem`."""
        check_precisions(problem)
        total: Moments | None = None
        for start in range(0, problem.size, self.chunk):
            data = jnp.arange(start, min(start + self.chunk, problem.size), dtype=jnp.int32)
            found = _moments(problem, data)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        assert total is not None
        return jax.jit(spectra)(total)

    def at_weights(self, problem: LinearisedModel, state: Spectra) -> Spectra:
        return self.init(problem, jax.random.key(0))

    def __call__(self, problem: LinearisedModel, key: Array, state: Spectra) -> tuple[LogDeterminant, Spectra]:
        """The estimate at the factors in the state."""
        return LogDeterminant(reduced(problem, jax.lax.stop_gradient(state))), state


@eqx.filter_jit
def _moments(problem: LinearisedModel, data: Int[Array, " m"]) -> Moments:
    root = StickBreaking()  # all rows of a datum are taken, so the root makes no difference
    count = root.count(problem.likelihood, problem.outputs, problem.dtype)
    directions = jnp.broadcast_to(jnp.eye(count, dtype=problem.dtype), (data.shape[0], count, count))
    return moments(problem, data, cotangents(problem, root, data, directions), problem.size)
