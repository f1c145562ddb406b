"""The log evidence as an objective: weights trained online, hyperparameters moved by the bound."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from .._batches import Minibatches
from .._hyper import natural, validated
from .._keys import checked_key
from .._noise import AbstractNoise, Noise, NoNoise
from .._objective import AbstractObjective, Hypergradient, Value, described, refuse_accuracy
from .._stats import Accuracy
from .._trees import tree_all_finite
from ._arrival import bounded_decrement, cheap, near, to_mode
from ._certificate import RESULTS, EvidenceCertificate, EvidenceStats
from ._chain import LogDeterminant
from ._data import Data, as_data
from ._designs import check_size
from ._estimator import AbstractAdaptive, AbstractEstimator, or_default
from ._likelihoods import AbstractLikelihood, Categorical
from ._log_evidence import judged, linearise, measured, tempered_fit
from ._mode import decrement, log_joint, way_of_mode
from ._online import OVER, EvidenceState, Kept, Moments, Schedule
from ._problem import GaussianPrior, LinearisedModel, widened
from ._tangent import Choice

FINAL_DRAWS = 10
TRIFLE = 0.05
"""Nats of the whole data set that a search does not go on for."""
ADAM = optax.adam(1e-3)
"""The default optimizer of the weights: one object, so that objectives of equal shapes share what is compiled."""


class Constant(eqx.Module):
    """A function of hyper that does not depend on it: a module, so that equal ones share what is compiled."""

    value: Any

    def __call__(self, hyper: PyTree) -> Any:
        return self.value


class EvidenceObjective(AbstractObjective[EvidenceState]):
    """The negative log evidence per example, in nats, at weights that are trained on the same data.

    F(λ) = -(1/N) log q(D; λ, w). As the schedule says, an evaluation first makes steps of the optimizer on minibatches
    of the loss -mean log p(y|f) + ½ T (w - m)ᵀ P0 (w - m)/N at the current λ, or goes to the mode; then it draws one
    estimate of log|I + K| and its gradient at the weights found, which are held fixed in it.

    **Arguments:**

    - `apply`: `apply(params, hyper, x)` to the outputs (C,) of one example, or (S, C) of a sequence of S tokens; hyper
        in natural units.
    - `params`: the first weights.
    - `data`: as for [`hyprax.evidence.log_evidence`][]: (inputs, targets), with weights, or batches of these.
    - `likelihood`: a likelihood, or a function of hyper (in natural units) to one, for learned noise.
    - `prior`: a function of hyper to a [`hyprax.evidence.GaussianPrior`][]; default one precision for each tensor,
        `hyper["precision"]` ([`hyprax.evidence.precisions`][]).
    - `temperature`: T, a number or a function of hyper.
    - `estimator`: of log|I + K|, an adaptive one too ([`hyprax.evidence.Choice`][],
        [`hyprax.evidence.AdaptiveTangent`][], [`hyprax.evidence.OnlineKFAC`][]); default as for
        [`hyprax.evidence.log_evidence`][].
    - `schedule`: [`hyprax.evidence.Schedule`][]; default frozen weights.
    - `optimizer`, `batch_size`: how the weights are trained; default Adam at 1e-3 on batches of min(N, 128).
    - `likelihood_batch`: data for the sum of log p in the value; default all.
    - `decay`: of the smoothed value and slack and of the gradient's standard errors.
    - `key`: a JAX random key for batches and draws.

    The noise of a hypergradient are the standard errors of its entries over the rows drawn. The value is, in
    expectation over the draw, at least F where the estimator is a bound; what is bounded is the Laplace evidence at
    these weights. The gradient is that at fixed weights; at the mode, where nothing is drawn and the smaller side is
    small enough for one matrix, it is that of F(λ, w*(λ)) with the way of the mode in it. `decrement` in the statistics
    says how far from their mode the weights are.

    **Raises:** `ValueError` for data, labels or settings that do not fit.
    """

    apply: Callable[[Any, Any, Any], Array]
    initial: PyTree
    data: Data
    likelihood: Callable[[Any], AbstractLikelihood]
    prior: Callable[[Any], GaussianPrior]
    temperature: Callable[[Any], Any]
    estimator: AbstractEstimator | AbstractAdaptive
    optimizer: optax.GradientTransformation = eqx.field(static=True)
    batches: Minibatches
    key: Array
    schedule: Schedule = eqx.field(static=True)
    likelihood_batch: int | None = eqx.field(static=True)
    decay: float = eqx.field(static=True)
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    measures_noise: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        apply: Callable[[Any, Any, Any], Array],
        params: PyTree,
        data: Any,
        *,
        likelihood: AbstractLikelihood | Callable[[Any], AbstractLikelihood] = Categorical(),
        prior: Callable[[Any], GaussianPrior] | None = None,
        temperature: float | Callable[[Any], Any] = 1.0,
        estimator: AbstractEstimator | AbstractAdaptive | None = None,
        schedule: Schedule = Schedule(),
        optimizer: optax.GradientTransformation = ADAM,
        batch_size: int | None = None,
        likelihood_batch: int | None = None,
        decay: float = 0.9,
        key: Array,
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"EvidenceObjective: decay must be a number in [0, 1); got {decay}.")
        if not isinstance(schedule, Schedule):
            raise ValueError(
                f"EvidenceObjective: schedule must be such as Schedule(every=20); got {described(schedule)}."
            )
        if prior is not None and not callable(prior):
            raise ValueError(
                "EvidenceObjective: prior must be a function of hyper to one, such as "
                f'lambda hyper: GaussianPrior(hyper["precision"]); got {described(prior)}.'
            )
        if not (isinstance(likelihood, AbstractLikelihood) or callable(likelihood)):
            raise ValueError(
                "EvidenceObjective: likelihood must be a likelihood such as Categorical(), or a function of hyper to "
                f'one: lambda hyper: Gaussian(hyper["noise"]); got {described(likelihood)}.'
            )
        self.apply, self.initial = apply, widened(jax.tree.map(jnp.asarray, params))
        batch_size = data.batch_size if batch_size is None and isinstance(data, Minibatches) else batch_size
        self.data = as_data(data)
        leaves = jax.tree.leaves(self.data)
        size = leaves[0].shape[0]
        self.likelihood = Constant(likelihood) if isinstance(likelihood, AbstractLikelihood) else likelihood
        self.prior = tensor_prior if prior is None else prior
        self.temperature = temperature if callable(temperature) else Constant(jnp.asarray(temperature, float))
        self.estimator = or_default(
            "EvidenceObjective",
            estimator,
            sum(w.size for w in jax.tree.leaves(self.initial)),
            size,
            _outputs(self.data[1], isinstance(likelihood, Categorical)),
            (AbstractEstimator, AbstractAdaptive),
        )
        self.optimizer, self.schedule, self.decay = optimizer, schedule, decay
        batch_key, self.key = jax.random.split(checked_key("EvidenceObjective", key))
        self.batches = Minibatches(self.data, min(size, 128) if batch_size is None else batch_size, key=batch_key)
        if likelihood_batch is not None:
            check_size("EvidenceObjective: likelihood_batch", likelihood_batch, size, "data")
        self.likelihood_batch = likelihood_batch
        settled = schedule.frozen or schedule.mode_after == 0
        self.noisy = self.draws or not settled
        self.adaptive, self.measures_noise = False, False
        self.value_name = "negative log evidence per example"

    @property
    def draws(self) -> bool:
        """Whether an evaluation at fixed weights draws anything."""
        return self.estimator.draws or self.likelihood_batch is not None

    def init(self, hyper: PyTree) -> EvidenceState:
        hyper = validated(hyper)
        built = self._linearised(self.initial, hyper)  # refuses what does not fit, where there are numbers to look at
        zero, past = jnp.zeros((), built.dtype), None
        if isinstance(self.estimator, AbstractAdaptive):
            if self.estimator.of_precisions_alone:
                self._check_precisions_alone(hyper)
            past = self.estimator.init(built, jax.random.fold_in(self.key, 2**32 - 1))
        count, nothing = jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, hyper)
        return EvidenceState(
            params=self.initial,
            optimizer_state=self.optimizer.init(self.initial),
            trained=count,
            draws=count,
            moments=Moments(nothing, nothing, zero, zero, zero, zero),
            past=past,
            kept=Kept(self.initial, hyper, far := jnp.full_like(zero, jnp.inf), count, far, count),
        )

    def examples(self, hyper: PyTree) -> int:
        """N: the examples, or all tokens of the sequences."""
        return self._linearised(self.initial, hyper).size

    def train(self, hyper: PyTree, state: EvidenceState, steps: int) -> EvidenceState:
        """The state after `steps` minibatch steps of the weights at fixed hyperparameters."""
        for _ in range(steps):  # a loop of the host's: convolutions are slow in a loop of the compiler's on a CPU
            state = self._train_step(hyper, state)
        return state

    def at_mode(self, hyper: PyTree, state: EvidenceState) -> EvidenceState:
        """The state with the weights that are random at their mode."""
        return self._arrived(hyper, state)[0]

    def _arrived(self, hyper: PyTree, state: EvidenceState) -> tuple[EvidenceState, Float[Array, ""]]:
        """The same, and the decrement that is left."""
        random = self.estimator.random(self.model(hyper, state))
        arrival = to_mode(random, steps=self.schedule.newton_steps, tolerance=near(random))
        params = eqx.combine(arrival.params, state.params)
        return eqx.tree_at(lambda s: s.params, state, params), arrival.decrement

    def _arrived_within(
        self, hyper: PyTree, state: EvidenceState, stats: EvidenceStats, value: Float[Array, ""]
    ) -> Bool[Array, ""]:
        """Whether weights that go to their mode came as near as they were to come, but for rounding.

        Short of it the evidence can be many nats above that of the mode which lies ahead.
        """
        random = self.estimator.random(self.model(hyper, state))
        if self.schedule.mode_after is None or not cheap(random):
            return jnp.asarray(True)
        rounding = 8 * jnp.finfo(random.dtype).eps * random.size * jnp.abs(value)
        return stats.decrement <= near(random) + rounding

    def _from_kept(self, state: EvidenceState) -> EvidenceState:
        """With the weights of the best stationary evaluation: a search sets out from there after a step too far."""
        known = jnp.isfinite(state.kept.value)
        params = jax.tree.map(lambda a, b: jnp.where(known, a, b), state.kept.params, state.params)
        return eqx.tree_at(lambda s: s.params, state, params)

    def value_and_grad(
        self, hyper: PyTree, state: EvidenceState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, EvidenceState]:
        refuse_accuracy(self, accuracy)
        if self.schedule.frozen:
            return self._gradient(hyper, state, jnp.asarray(False), None)
        evaluation = int(state.draws)
        at_mode = self.schedule.at_mode(evaluation)
        steps = self.schedule.steps(evaluation)
        measurable = cheap(self.estimator.random(self.model(hyper, state)))
        left = jnp.full_like(state.moments.value, 0 if measurable else jnp.inf)
        if at_mode:
            state, left = self._arrived(hyper, state if self.draws else self._from_kept(state))
        elif steps:
            state = self.train(hyper, state, steps)
        if bool(tree_all_finite(state.params)):
            state = self._informed(hyper, state, at_mode or steps > 0)
        answer, after = self._gradient(hyper, state, jnp.asarray(not at_mode), left)
        if at_mode and self._follows(hyper, state):
            answer = self._followed(answer, hyper, state)
        return answer, after

    def _informed(self, hyper: PyTree, state: EvidenceState, moved: bool) -> EvidenceState:
        """What an adaptive estimator is to know of new weights."""
        if not moved or not isinstance(self.estimator, AbstractAdaptive):
            return state
        past = self.estimator.at_weights(self.model(hyper, state), state.past)
        return eqx.tree_at(lambda s: s.past, state, past, is_leaf=lambda x: x is None)

    @eqx.filter_jit
    def value(
        self, hyper: PyTree, state: EvidenceState, accuracy: Accuracy | None = None
    ) -> tuple[Value, EvidenceState]:
        refuse_accuracy(self, accuracy)
        value, (sides, _) = self._value(hyper, state)
        size = self.model(hyper, state).size
        certificate = EvidenceCertificate.of_draw(self.estimator.kind, self.draws, sides).scaled(size)
        stats = self._measured(hyper, state, sides, certificate.slack, None)
        result = judged(stats, size, jnp.isfinite(value), training=not self.schedule.frozen)
        noise = NoNoise("one draw has no spread: compare several" if self.draws else "nothing is drawn")
        return Value(value, certificate, noise, result, stats), state

    def params(self, state: EvidenceState) -> PyTree:
        return state.params

    def final(self, hyper: PyTree, state: EvidenceState) -> tuple[Value, EvidenceState]:
        """The value at the mode, if the schedule says `finish`; the mean over fresh draws with its standard error.

        The draws are those that follow the last of the run, so that no choice has seen them.
        """
        clean = eqx.tree_at(lambda s: s.moments, state, jax.tree.map(jnp.zeros_like, state.moments))
        left = None
        if self.schedule.finish and not self.schedule.frozen:
            clean, left = self._arrived(hyper, clean)
        elif not self.schedule.frozen:
            left = self._left(hyper, clean)
        clean = self._informed(hyper, clean, moved=True)
        count = FINAL_DRAWS if self.draws else 1
        answers: list[Hypergradient] = []
        for _ in range(count):
            answer, clean = self._gradient(hyper, clean, jnp.asarray(False), left)
            answers.append(answer)
        found = jnp.stack([answer.value for answer in answers])
        noise: AbstractNoise = NoNoise("nothing is drawn")
        if self.draws:
            noise = Noise(jnp.std(found, ddof=1) / jnp.sqrt(jnp.asarray(count, found.dtype)), count - 1, OVER)
        last = answers[-1]
        assert isinstance(last.certificate, EvidenceCertificate)
        certificate = last.certificate.for_value()
        if not self.draws:
            one, _ = self.value(hyper, clean)
            certificate = eqx.tree_at(lambda c: c.slack, one.certificate, last.certificate.slack)
        after = eqx.tree_at(lambda s: (s.kept, s.moments), clean, (state.kept, state.moments))
        return Value(jnp.mean(found), certificate, noise, last.result, last.stats), after

    def _check_precisions_alone(self, hyper: PyTree) -> None:
        """Refuse hyperparameters that the first output, the likelihood or the temperature has a derivative in."""
        first = jax.tree.map(lambda x: x[0], self.data[0])
        leaves, structure = jax.tree.flatten(self.initial)
        moved = [w + jax.random.normal(jax.random.key(i), w.shape, w.dtype) for i, w in enumerate(leaves)]
        params = jax.tree.unflatten(structure, moved)  # not those where a derivative happens to vanish

        def outside_the_prior(hyper: PyTree) -> list[Array]:
            plain = natural(hyper)
            found = (self.apply(params, plain, first), self.likelihood(plain), self.temperature(plain))
            return jax.tree.leaves(eqx.filter(found, eqx.is_inexact_array))

        values, pull = jax.vjp(outside_the_prior, hyper)
        (slopes,) = pull([jax.random.normal(jax.random.key(i), x.shape, x.dtype) for i, x in enumerate(values)])
        for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
            if jnp.any(slope != 0):
                raise ValueError(
                    "OnlineKFAC: hyper must hold prior precisions alone, since the factors are functions of the rest; "
                    f"got hyper{jax.tree_util.keystr(path)}. FullData(KFAC()) has a derivative in everything."
                )

    def model(self, hyper: PyTree, state: EvidenceState) -> LinearisedModel:
        """The model linearised at the weights of `state`: what [`hyprax.evidence.posterior`][] takes."""
        return self._linearised(state.params, hyper)

    def _linearised(self, params: PyTree, hyper: PyTree, data: Any = None) -> LinearisedModel:
        plain = natural(hyper)
        return linearise(
            self.apply,
            params,
            self.data if data is None else data,
            plain,
            likelihood=self.likelihood(plain),
            prior=self.prior(plain),
            temperature=self.temperature(plain),
        )

    def _value(self, hyper: PyTree, state: EvidenceState) -> tuple[Float[Array, ""], tuple[LogDeterminant, Any]]:
        """-(1/N) log q, drawn with the key of this draw."""
        built = self.model(hyper, state)
        draw_key, batch_key = jax.random.split(jax.random.fold_in(self.key, state.draws))
        past = state.past
        if isinstance(self.estimator, AbstractAdaptive):
            sides, past = self.estimator(built, draw_key, past)
        else:
            sides = self.estimator(built, draw_key)
        fit = tempered_fit(built, self.likelihood_batch, batch_key)
        random = self.estimator.random(built)
        total = fit - 0.5 * (random.prior.penalty(random.params).astype(fit.dtype) + sides.upper)
        return -total / built.size, (sides, past)

    def _left(self, hyper: PyTree, state: EvidenceState) -> Float[Array, ""] | None:
        """The decrement by a loop of the host's, once for all draws; `None` where each of them measures it."""
        random = self.estimator.random(self.model(hyper, state))
        return None if cheap(random) else bounded_decrement(random)

    def _measured(
        self, hyper: PyTree, state: EvidenceState, sides: LogDeterminant, slack: Array, left: Array | None
    ) -> EvidenceStats:
        """`left` is what the way to the mode says is left: all that is known where it is too dear to measure here."""
        random = self.estimator.random(self.model(hyper, state).constant())
        if left is None or cheap(random):
            here = decrement(random, jax.random.fold_in(jax.random.fold_in(self.key, state.draws), 2)).value
            left = here if left is None else jnp.where(jnp.isinf(left), left.astype(here.dtype), here)
        chosen = self.estimator.chosen(state.past) if isinstance(self.estimator, Choice) else None
        return measured(random, sides, left, slack, state.trained, chosen)

    def _follows(self, hyper: PyTree, state: EvidenceState) -> bool:
        """Whether gradients at the mode hold how the mode moves: where one matrix is cheap, and nothing is drawn."""
        if self.draws or not isinstance(self.estimator, AbstractEstimator):
            return False
        return cheap(self.estimator.random(self.model(hyper, state)))

    @eqx.filter_jit
    def _followed(self, answer: Hypergradient, hyper: PyTree, state: EvidenceState) -> Hypergradient:
        """The gradient at fixed weights and (dw*/dλ)ᵀ ∂F/∂w: that of F(λ, w*(λ))."""
        random = self.estimator.random(self.model(hyper, state))

        def at(params: PyTree) -> EvidenceState:
            return eqx.tree_at(lambda s: s.params, state, eqx.combine(params, state.params))

        def joint(hyper: PyTree, params: PyTree) -> Array:
            problem = self.estimator.random(self.model(hyper, at(params)))
            return log_joint(problem, problem.params)

        slope = jax.grad(lambda params: self._value(hyper, at(params))[0])(random.params)
        moved = way_of_mode(joint, hyper, random, slope)
        assert isinstance(answer.certificate, EvidenceCertificate)
        certificate, whole = answer.certificate.following(), jax.tree.map(jnp.add, answer.grad, moved)
        return Hypergradient(answer.value, whole, certificate, answer.noise, answer.result, answer.stats)

    @eqx.filter_jit
    def _gradient(
        self, hyper: PyTree, state: EvidenceState, training: Bool[Array, ""], left: Float[Array, ""] | None
    ) -> tuple[Hypergradient, EvidenceState]:
        """At fixed weights; `training` is an array, so that one program serves all evaluations."""
        (value, (sides, past)), grad = jax.value_and_grad(self._value, has_aux=True)(hyper, state)
        size = self.model(hyper, state).size
        certificate = EvidenceCertificate.of_draw(self.estimator.kind, self.draws, sides).scaled(size)
        two_sided = sides.lower is not None
        slack = certificate.slack if two_sided else jnp.zeros_like(value)
        moments = state.moments.updated(self.decay, grad, value, slack)
        smoothed = moments.slack / moments.total if two_sided else jnp.full_like(value, jnp.inf)
        stats = self._measured(hyper, state, sides, smoothed, left)
        finite = jnp.isfinite(value) & tree_all_finite((grad, state.params))
        result = judged(stats, size, finite, training)
        seen = (moments.value / moments.total).astype(value.dtype) if self.draws else value
        matters = seen < state.kept.mark - TRIFLE / size
        marked = jnp.where(matters, seen, state.kept.mark), jnp.where(matters, state.draws, state.kept.gained)
        kept = Kept(state.params, hyper, seen, state.draws, *marked)
        arrived = self._arrived_within(hyper, state, stats, value)
        better = (judged(stats, size, finite) == RESULTS.successful) & arrived & (kept.value < state.kept.value)
        kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), kept, state.kept)
        places = tuple(jnp.where(jnp.isfinite(kept.value), x, -1) for x in (kept.evaluation, kept.gained))
        stats = eqx.tree_at(lambda s: (s.kept, s.gained), stats, places, is_leaf=lambda x: x is None)
        noise: AbstractNoise = moments.noise() if self.draws else NoNoise("nothing is drawn")
        known = moments, past
        moments, past = jax.tree.map(lambda a, b: jnp.where(finite, a, b), known, (state.moments, state.past))
        params = jax.tree.map(lambda a, b: jnp.where(finite, a, b), state.params, state.kept.params)
        after = EvidenceState(params, state.optimizer_state, state.trained, state.draws + 1, moments, past, kept)
        certificate = certificate.for_gradient(smoothed)
        return Hypergradient(value, grad, certificate, noise, result, stats), after

    @eqx.filter_jit
    def _train_step(self, hyper: PyTree, state: EvidenceState) -> EvidenceState:
        batch = self._linearised(state.params, hyper, self.batches(state.trained))
        factor = self.batches.size / self.batches.batch_size

        def loss(params: PyTree) -> Float[Array, ""]:
            fit = eqx.tree_at(lambda b: b.params, batch, params).log_likelihood()
            penalty = batch.prior.penalty(params).astype(fit.dtype)
            return (0.5 * batch.temperature.astype(fit.dtype) * penalty / factor - fit) / batch.size

        grad = jax.grad(loss)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes, whatever the user has set
            updates, optimizer_state = self.optimizer.update(grad, state.optimizer_state, state.params)
            params = optax.apply_updates(state.params, updates)
        return eqx.tree_at(
            lambda s: (s.params, s.optimizer_state, s.trained),
            state,
            (params, optimizer_state, state.trained + 1),
        )


def tensor_prior(hyper: Any) -> GaussianPrior:
    """The prior of the precisions `hyper["precision"]`."""
    return GaussianPrior(hyper["precision"])


def _outputs(targets: Array, labels: bool) -> int:
    """About the outputs of a model of these targets, for all tokens of one example."""
    places = int(np.prod(targets.shape[1:]))
    if not labels or not jnp.issubdtype(targets.dtype, jnp.integer):
        return places if targets.ndim > 1 else int(np.max(np.asarray(targets), initial=0)) + 1
    return places * (int(np.max(np.asarray(targets), initial=0)) + 1)
