"""KFAC of all data, its factors made once for all hyper-steps at the same weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ._estimator import AbstractEstimator, EstimatorKind, LogDeterminant, cotangents
from ._kfac import KFAC, Moments, Spectra, check_precisions, moments, reduced, spectra
from ._partitions import FullData
from ._problem import Problem
from ._roots import StickBreaking


class OnlineKFAC(AbstractEstimator):
    """Σ_l Σ_io log(1 + d_i e_o/δ_l) of all data, d and e the eigenvalues of [`hyprax.evidence.KFAC`][]'s factors.

    The factors depend on the weights and not on the prior precisions, so [`hyprax.evidence.fit`][] makes them once
    each time that the hyperparameters are to move, and all its hyper-steps there share them: the usual practice. The
    derivative is one in prior precisions alone, and other hyperparameters are refused: for those take
    `FullData(KFAC())`, which goes through all data at every step, as this one does outside `fit`. Neither side is
    proved.

    **Arguments:**

    - `chunk`: data at a time, in a loop of the host's: nothing compiled grows with N.
    """

    chunk: int = eqx.field(static=True, default=256)
    spectra: Spectra | None = None
    """What `at_weights` makes; `None` before."""

    def __check_init__(self):
        if self.chunk < 1:
            raise ValueError(f"OnlineKFAC: given chunk {self.chunk}, allowed are integers >= 1.")

    @property
    def kind(self) -> EstimatorKind:
        return "estimated"

    @property
    def draws(self) -> bool:
        return False

    def at_weights(self, problem: Problem) -> "OnlineKFAC":
        """The estimator with its factors made, for any prior precisions at the weights of `problem`."""
        check_precisions(problem)
        size = problem.size
        total: Moments | None = None
        for start in range(0, size, self.chunk):
            data = jnp.arange(start, min(start + self.chunk, size), dtype=jnp.int32)
            found = _moments(problem, data)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        assert total is not None
        return OnlineKFAC(self.chunk, jax.jit(spectra)(total))

    def __call__(self, problem: Problem, key: Array) -> LogDeterminant:
        if self.spectra is None:
            return FullData(KFAC())(problem, key)
        return LogDeterminant(reduced(problem, jax.lax.stop_gradient(self.spectra)))


@eqx.filter_jit
def _moments(problem: Problem, data: Int[Array, " m"]) -> Moments:
    root = StickBreaking()  # all rows of a datum are taken, so the root makes no difference
    count = root.count(problem.likelihood, problem.outputs, problem.dtype)
    directions = jnp.broadcast_to(jnp.eye(count, dtype=problem.dtype), (data.shape[0], count, count))
    return moments(problem, data, cotangents(problem, root, data, directions), problem.size)
