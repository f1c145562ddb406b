"""The hypergradient through a training run, as an objective."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._certificate import AbstractCertificate
from .._hyper import natural, validated
from .._keys import checked_key
from .._noise import NoNoise
from .._objective import AbstractObjective, Hypergradient, Value, described, refuse_accuracy
from .._result import succeeded
from .._stats import Accuracy
from .._trees import is_traced, tree_norm
from ._certifiers import AbstractCertifier, Evaluated
from ._checkpointed import Checkpointed
from ._mode import RESULTS, AbstractMode, Outer, UnrollReport
from ._modes import ForwardMode
from ._noise import checked_probes, of_gradient, of_value
from ._step import Program, check_program, check_searches, first, unused
from ._training import Training, check_scalar

NOISE = NoNoise("the spread over validation examples was not asked for (noise=8)", "validation examples")


class ChaosGauge(eqx.Module):
    """When a training is called chaotic: where amplification = ‖dw_0‖/‖dw_T‖, of the adjoint of the weights, is large.

    Above a critical learning rate a small change of the weights grows at every step, F is rugged in λ at every scale,
    and its exact derivative is large and says nothing of where F falls. Then the amplification is growth^T. It bounds
    ‖∂w_T/∂w_0‖ from below, and rounding is amplified alike: at 10^6 that of float32 reaches a tenth of the answer.
    Where training contracts, it is below 1.

    **Arguments:**

    - `limit`: the amplification above which an answer ends as `RESULTS.chaotic`; infinity for never.

    **Raises:** `ValueError` for a limit that is not positive.
    """

    limit: float = eqx.field(static=True, default=1e6)

    def __check_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"ChaosGauge: limit must be a number > 0; got {self.limit}.")

    def judged(self, result: Any, amplification: Float[Array, ""] | None) -> Any:
        """How an evaluation ended, once this has looked at it; a mode without an adjoint at both ends passes."""
        if amplification is None:
            return result
        if not is_traced(amplification):
            return RESULTS.chaotic if bool(amplification > self.limit) and bool(succeeded(result)) else result
        chaotic = (result == RESULTS.successful) & (amplification > self.limit)
        return RESULTS.where(chaotic, RESULTS.chaotic, result)


class UnrolledState(eqx.Module):
    """How many evaluations there have been, from which the next key is made, and what the last ended with.

    `params`, its weights, are for the user to look at: they are never started from. `attempt` is which attempt
    succeeded, of a mode that may need several: the next evaluation begins with it.
    """

    key: Array
    evaluations: Int[Array, ""]
    params: PyTree
    attempt: Int[Array, ""]


class UnrolledObjective(AbstractObjective[UnrolledState]):
    """The loss at the end of a training run: F(λ) = f(w_T(λ), λ), with dF/dλ through all of its T steps.

    **Arguments:**

    - `training`: the run, a [`hyprax.Training`][].
    - `outer_loss`: a pure function `outer_loss(params, hyper, data)` to a scalar, hyper in natural units; with the
        state of the training as a fourth argument, where it has one.
    - `outer_data`: passed to `outer_loss` as it is, typically validation data.
    - `mode`: how to differentiate, a [`hyprax.unroll.AbstractMode`][]; default [`hyprax.unroll.Checkpointed`][],
        which works with every optimizer in the memory of 2 sqrt(T) states.
    - `key`: a JAX random key, from which initial weights and the keys of all steps are made.
    - `resample`: whether every evaluation of the hypergradient draws a new key, and visits the examples in a new order
        where the batches are [`hyprax.Minibatches`][]; F is then noisy, and its mean over keys is what a search
        minimises. Without it, F is one deterministic function.
    - `gauge`: when to call a training chaotic, a [`hyprax.unroll.ChaosGauge`][].
    - `noise`: k >= 1, for the spread of the hypergradient over validation examples by k random signs, at one more
        evaluation each: with signs s_i = ±1 on the examples, the derivative of (1/m) Σ_i (s_i - s̄) f_i(w_T) has the
        variance of the hypergradient as its mean square; k degrees of freedom. For an outer loss that is a mean over
        the examples along the first axis of `outer_data`. Default 0: not computed.
    - `certifier`: what bounds the rounding of the answer: [`hyprax.unroll.BallCertifier`][] proves a bound for short
        runs of small models, [`hyprax.unroll.RoundingCertifier`][] estimates one for any. Default: neither.

    The certificate is that of the certifier, or else of the mode; `Hypergradient.stats` is an
    [`hyprax.unroll.UnrollStats`][]. The weights at the end stand in the returned state, and the metrics of the training
    in `report`. An `accuracy` is refused: a run of T steps has no tolerance.

    `value` and `value_and_grad` may stand inside `jax.jit` and `jax.vmap`, with every mode but
    [`hyprax.unroll.Reversible`][] and without `noise` and `certifier`; small problems by the hundred in one program,
    with [`hyprax.unroll.StoreAll`][].

    **Raises:** `ValueError` for what is no mode or no key; by `init`, before the first step, for weights that are not
    floating, hyperparameters of the optimizer or outer data whose shapes do not fit, a loss or outer loss that is no
    scalar, or an optimizer that changes dtypes. **Warns:** by `init`, of a hyperparameter that nothing uses.
    """

    training: Training
    outer: Outer
    mode: AbstractMode
    key: Array
    gauge: ChaosGauge
    certifier: AbstractCertifier | None
    noise: int = eqx.field(static=True)
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        training: Training,
        outer_loss: Callable[..., Any],
        outer_data: PyTree = None,
        *,
        key: Array,
        mode: AbstractMode | None = None,
        resample: bool = False,
        gauge: ChaosGauge | None = None,
        noise: int = 0,
        certifier: AbstractCertifier | None = None,
    ):
        if not isinstance(training, Training):
            raise ValueError(f"UnrolledObjective: training must be an hx.Training; got {described(training)}.")
        if not callable(outer_loss):
            raise ValueError(f"UnrolledObjective: outer_loss must be a function; got {described(outer_loss)}.")
        mode = Checkpointed() if mode is None else mode
        if not isinstance(mode, AbstractMode):
            got = repr(mode) if isinstance(mode, str) else described(mode)
            raise ValueError(
                f"UnrolledObjective: mode must be an hx.unroll.AbstractMode, such as hx.unroll.Checkpointed() or "
                f"hx.unroll.Reversible(); got {got}."
            )
        if certifier is not None and not isinstance(certifier, AbstractCertifier):
            raise ValueError(
                "UnrolledObjective: certifier must be hx.unroll.BallCertifier(), hx.unroll.RoundingCertifier() or "
                f"None; got {described(certifier)}."
            )
        self.noisy, self.adaptive, self.value_name = resample, False, "validation loss"
        self.training = training
        self.outer = Outer(outer_loss, jax.tree.map(jnp.asarray, outer_data))
        self.mode, self.key = mode, checked_key("UnrolledObjective", key)
        self.gauge = ChaosGauge() if gauge is None else gauge
        self.noise, self.certifier = checked_probes(noise, self.outer.data), certifier

    @property
    def measures_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # known from its parts, where others hold a field
        return self.noise > 0

    def init(self, hyper: PyTree) -> UnrolledState:
        plain = natural(hyper)
        state = UnrolledState(self.key, jnp.asarray(0, jnp.int32), None, jnp.asarray(1, jnp.int32))
        training, outer, key = self._drawn(plain, state)
        check_program(Program(training, plain, key))
        if not isinstance(self.mode, ForwardMode):
            check_searches(Program(training, plain, key))
        params, _, model = eqx.filter_eval_shape(first, Program(training, plain, key))
        check_scalar("UnrolledObjective: outer_loss", self._shape(outer, params, model, plain))
        if nowhere := unused(Program(training, plain, key), outer):
            warnings.warn(
                f"UnrolledObjective: {', '.join(nowhere)} is used by neither init, loss, optimizer nor outer_loss: its "
                "derivative is 0.",
                stacklevel=2,
            )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
        return UnrolledState(self.key, state.evaluations, zeros, state.attempt)

    def _shape(self, outer: Outer, params: PyTree, model: PyTree, plain: PyTree) -> Any:
        try:
            return jax.eval_shape(outer, params, model, plain)
        except Exception as error:
            if outer.data is None and isinstance(error, TypeError | AttributeError):
                raise ValueError(
                    f"UnrolledObjective: outer_loss failed on outer_data None ({error}). If it needs validation data, "
                    "give them: hx.UnrolledObjective(training, outer_loss, (X_val, y_val), key=key)."
                ) from error
            raise

    def value_and_grad(
        self, hyper: PyTree, state: UnrolledState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, UnrolledState]:
        refuse_accuracy(self, accuracy)
        plain, pull = _natural(hyper), functools.partial(_pulled, hyper)
        training, outer, key = self._drawn(plain, state)
        value, grads, report = self.mode.value_and_grad(training, outer, plain, key, _attempt(state))
        grad = pull(grads)
        result = self.gauge.judged(report.result, report.stats.amplification)
        noise = NOISE
        if self.noise:

            def derivative(signed: Outer) -> PyTree:
                return pull(self.mode.value_and_grad(training, signed, plain, key, report.attempt)[1])

            noise = of_gradient(outer, plain, value, report, derivative, key, self.noise)
        run = Evaluated(training, outer, hyper, key, self.mode, value, grad)
        answer = Hypergradient(value, grad, self._certificate(run, report), noise, result, report.stats)
        return answer, self._after(state, report, state.evaluations + 1)

    def value(
        self, hyper: PyTree, state: UnrolledState, accuracy: Accuracy | None = None
    ) -> tuple[Value, UnrolledState]:
        refuse_accuracy(self, accuracy)
        plain = _natural(hyper)
        training, outer, key = self._drawn(plain, state)
        value, report = self.mode.value(training, outer, plain, key, _attempt(state))
        noise = of_value(outer, plain, value, report) if self.noise else NOISE
        certificate = self._certificate(Evaluated(training, outer, hyper, key, self.mode, value), report)
        answer = Value(value, certificate, noise, report.result, report.stats)
        return answer, self._after(state, report, state.evaluations)

    def _certificate(self, evaluated: Evaluated, report: UnrollReport) -> AbstractCertificate:
        """That of the certifier, where there is one and there is an answer."""
        if self.certifier is None or not bool(report.result == RESULTS.successful):
            return report.certificate
        return self.certifier.certificate(evaluated)

    def params(self, state: UnrolledState) -> PyTree:
        return state.params

    def final(self, hyper: PyTree, state: UnrolledState) -> tuple[Value, UnrolledState]:
        return self.value(hyper, state)

    def report(self, hyper: PyTree, state: UnrolledState | None = None) -> UnrollReport:
        """Train once with `hyper`: the weights at the end, and the metrics along the way."""
        state = self.init(hyper) if state is None else state
        plain = natural(hyper)
        training, outer, key = self._drawn(plain, state)
        return self.mode.value(training, outer, plain, key, _attempt(state))[1]

    def metasmoothness(self, hyper: PyTree, direction: PyTree, step: float = 0.01) -> Float[Array, ""]:
        """Whether the weights move steadily along a direction of λ: S, near 1 where they do, and near 0 or below.

        S = Σ_j |Δ_j| sign(Δ_j) sign(Δ'_j) / Σ_j |Δ_j|, Δ = w(λ + h v) - w(λ), Δ' = w(λ + 2 h v) - w(λ + h v), w(λ) the
        weights at the end of training: three trainings. S near 1 says that a derivative predicts what a step of length
        h does; near 0, or below it (ends that have nothing to do with one another move to and fro), that it does not:
        lower the learning rate of the training, clip its gradients, start from smaller weights, or use
        [`hyprax.unroll.Truncated`][].

        **Arguments:**

        - `hyper`: the hyperparameters, as for [`hyprax.hypergradient`][].
        - `direction`: the structure of `hyper`, in unconstrained coordinates: typically a hypergradient. Its length
            does not matter.
        - `step`: h, the length of a step in unconstrained coordinates.

        **Returns:** S, between -1 and 1. It is a measurement along one direction and carries no certificate; a nan, for
        weights that did not move at all.

        **Raises:** `ValueError` for a step that is not positive, or a direction that is zero or not finite.

        Source: Engstrom et al. 2025, arXiv 2503.13751.
        """
        norm = float(tree_norm(direction))
        if not (step > 0 and 0 < norm < float("inf")):
            raise ValueError(
                f"metasmoothness: step must be > 0 and the norm of direction > 0 and finite; got {step} and {norm}."
            )
        hyper = validated(hyper)
        state = self.init(hyper)
        ends = []
        for k in range(3):
            moved = jax.tree.map(
                lambda x, v, k=k: x + jnp.asarray(k * step / norm, x.dtype) * v.astype(x.dtype), hyper, direction
            )
            ends.append(self.report(moved, state).params)
        return _agreement(*ends)

    def _drawn(self, plain: PyTree, state: UnrolledState) -> tuple[Training, Outer, Array]:
        """The training, the outer loss and the key of the next evaluation."""
        key = jax.random.fold_in(state.key, state.evaluations) if self.noisy else state.key
        training = (self.training.reseeded(key) if self.noisy else self.training).prepared(plain, key)
        return training, Outer(self.outer.loss, self.outer.data, training.static), key

    def _after(self, state: UnrolledState, report: UnrollReport, evaluations: Array) -> UnrolledState:
        return UnrolledState(state.key, evaluations, report.params, jnp.asarray(report.attempt, jnp.int32))


_natural = eqx.filter_jit(natural)


@eqx.filter_jit
def _pulled(hyper: PyTree, grads: PyTree) -> PyTree:
    """dF/dλ in the coordinates of the leaves, from that in natural units."""
    return jax.vjp(natural, hyper)[1](grads)[0]


def _attempt(state: UnrolledState) -> int:
    """The attempt to begin with; the first under a transformation of JAX, for whose modes there is one."""
    return 1 if is_traced(state.attempt) else int(state.attempt)


@jax.jit
def _agreement(a: PyTree, b: PyTree, c: PyTree) -> Float[Array, ""]:
    first, second = jax.tree.map(jnp.subtract, b, a), jax.tree.map(jnp.subtract, c, b)
    weights = [jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(first)]
    agree = [jnp.sum(x * jnp.sign(y)) for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)]
    dtype = jnp.result_type(float)
    return sum((x.astype(dtype) for x in agree), jnp.zeros((), dtype)) / sum(
        (x.astype(dtype) for x in weights), jnp.zeros((), dtype)
    )
