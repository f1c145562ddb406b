"""The hypergradient through a training run, as an objective."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from .._hyper import natural
from .._noise import NoNoise
from .._objective import AbstractObjective, Hypergradient, Value, refuse_accuracy
from .._result import RESULTS
from .._stats import Accuracy, NamedStats
from ._checkpointed import Checkpointed
from ._gauge import ChaosGauge
from ._mode import AbstractMode, Outer, UnrollReport
from ._step import Program, check_program
from ._training import Training

NOISE = NoNoise("the spread over validation examples was not computed")


class UnrolledState(eqx.Module):
    """How many evaluations there have been, from which the next key is made, and what the last ended with.

    `params`, its weights, are for the user to look at: they are never started from. `attempts` is what it took to be
    exact, where the mode counts that: the next evaluation begins with the attempt that succeeded.
    """

    key: Array
    evaluations: Int[Array, ""]
    params: PyTree
    attempts: Int[Array, ""]


class UnrolledObjective(AbstractObjective[UnrolledState]):
    """F(λ) = f(w_T(λ), λ), w_T the weights after the T steps of a training run; dF/dλ through every step.

    **Arguments:**

    - `training`: the run, a [`hyprax.Training`][].
    - `outer_loss`: a pure function `outer_loss(params, hyper, data)` to a scalar, hyper in natural units.
    - `outer_data`: passed to `outer_loss` as it is, typically validation data.
    - `mode`: how to differentiate, a [`hyprax.unroll.AbstractMode`][]; default [`hyprax.unroll.Checkpointed`][],
        which works
        with every optimiser in the memory of 2 sqrt(T) states.
    - `key`: a JAX random key, from which initial weights and the keys of all steps are made.
    - `resample`: whether every evaluation of the hypergradient draws a new key, and visits the examples in a new order
        where the batches are [`hyprax.Minibatches`][]; F is then noisy, and its mean over keys is what a search
        minimises. Without it, F is one deterministic function.
    - `gauge`: when to call a training chaotic, a [`hyprax.unroll.ChaosGauge`][].

    The certificate is that of the mode. `Hypergradient.stats` holds the gauge (`growth`, `amplification`) and what the
    mode counted. The weights at the end stand in the returned state, and the metrics of the training in `report`.

    An `accuracy` is refused: a run of T steps has no tolerance.

    **Raises:** `ValueError` at the first evaluation for weights that are not floating, schedules whose length is not T,
    a loss that is no scalar, or an optimiser that changes dtypes.
    """

    training: Training
    outer: Outer
    mode: AbstractMode
    key: Array
    resample: bool = eqx.field(static=True)
    gauge: ChaosGauge
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        training: Training,
        outer_loss: Callable[[PyTree, PyTree, Any], Any],
        outer_data: PyTree = None,
        *,
        key: Array,
        mode: AbstractMode | None = None,
        resample: bool = False,
        gauge: ChaosGauge | None = None,
    ):
        self.noisy, self.adaptive, self.value_name = resample, False, "validation loss"
        self.training = training
        self.outer = Outer(outer_loss, jax.tree.map(jnp.asarray, outer_data))
        self.mode = Checkpointed() if mode is None else mode
        self.key, self.resample = key, resample
        self.gauge = ChaosGauge() if gauge is None else gauge

    def init(self, hyper: PyTree) -> UnrolledState:
        plain = natural(hyper)
        check_program(Program(self.training, plain, self.key))
        params = jax.eval_shape(self.training.start, plain, self.key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
        return UnrolledState(self.key, jnp.asarray(0, jnp.int32), zeros, jnp.asarray(1, jnp.int32))

    def value_and_grad(
        self, hyper: PyTree, state: UnrolledState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, UnrolledState]:
        refuse_accuracy(self, accuracy)
        plain, pull = jax.vjp(natural, hyper)
        training, key = self._drawn(state)
        mode = self.mode.after(int(state.attempts))
        value, grads, report = mode.value_and_grad(training, self.outer, plain, key)
        (grad,) = pull(grads)
        gauge, chaotic = self.gauge.read(report.stats, training.steps)
        result = RESULTS.where((report.result == RESULTS.successful) & chaotic, RESULTS.chaotic, report.result)
        answer = Hypergradient(value, grad, report.certificate, NOISE, result, NamedStats({**gauge, **report.stats}))
        attempts = jnp.asarray(report.stats.get("attempts", state.attempts), jnp.int32)
        return answer, UnrolledState(state.key, state.evaluations + 1, report.params, attempts)

    def value(
        self, hyper: PyTree, state: UnrolledState, accuracy: Accuracy | None = None
    ) -> tuple[Value, UnrolledState]:
        refuse_accuracy(self, accuracy)
        training, key = self._drawn(state)
        value, report = self.mode.after(int(state.attempts)).value(training, self.outer, natural(hyper), key)
        answer = Value(value, report.certificate, NOISE, report.result, NamedStats(report.stats))
        return answer, UnrolledState(state.key, state.evaluations, report.params, state.attempts)

    def params(self, state: UnrolledState) -> PyTree:
        return state.params

    def final(self, hyper: PyTree, state: UnrolledState) -> tuple[Value, UnrolledState]:
        return self.value(hyper, state)

    def report(self, hyper: PyTree, state: UnrolledState | None = None) -> UnrollReport:
        """Train once with `hyper`: the weights at the end, and the metrics along the way."""
        state = self.init(hyper) if state is None else state
        training, key = self._drawn(state)
        return self.mode.after(int(state.attempts)).value(training, self.outer, natural(hyper), key)[1]

    def _drawn(self, state: UnrolledState) -> tuple[Training, Array]:
        """The training and the key of the next evaluation."""
        if not self.resample:
            return self.training, state.key
        key = jax.random.fold_in(state.key, state.evaluations)
        return self.training.reseeded(key), key
