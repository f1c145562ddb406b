"""The log evidence as an objective: weights trained online, hyperparameters moved by the bound."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._batches import Minibatches
from .._hyper import natural, validated
from .._noise import Noise, NoNoise
from .._objective import AbstractObjective, Hypergradient, Value, refuse_accuracy
from .._result import RESULTS
from .._stats import Accuracy, NamedStats
from .._trees import tree_all_finite
from ._certificate import EvidenceCertificate
from ._choice import Choice
from ._designs import check_size
from ._estimator import AbstractAdaptive, AbstractEstimator, LogDeterminant, described, or_default
from ._likelihoods import AbstractLikelihood, Categorical
from ._log_evidence import pair, problem, tempered_fit
from ._online_kfac import OnlineKFAC
from ._priors import GaussianPrior
from ._problem import Problem

OVER = "rows drawn for the log-determinant"
FINAL_DRAWS = 10


class Moments(eqx.Module):
    """Smoothed moments over past draws: of the gradient, of its square, of the slack; and the weights' own."""

    gradient: PyTree
    square: PyTree
    slack: Float[Array, ""]
    total: Float[Array, ""]
    squared_total: Float[Array, ""]

    def updated(self, decay: float, gradient: PyTree, slack: Array) -> "Moments":
        """After one more draw."""
        new = 1 - decay
        return Moments(
            jax.tree.map(lambda m, g: decay * m + new * g, self.gradient, gradient),
            jax.tree.map(lambda m, g: decay * m + new * jnp.square(g), self.square, gradient),
            decay * self.slack + new * slack,
            decay * self.total + new,
            decay**2 * self.squared_total + new**2,
        )

    def noise(self) -> Noise:
        """√ of the unbiased weighted variance of the gradient, entry by entry; infinite for one draw.

        The drift of the hyperparameters during the window counts as variance. The degrees of freedom are those of the
        effective number of draws in the window.
        """
        free = 1 - self.squared_total / jnp.square(self.total)
        tiny = jnp.finfo(free.dtype).eps

        def deviation(first: Array, second: Array) -> Array:
            variance = jnp.maximum(second / self.total - jnp.square(first / self.total), 0.0)
            return jnp.where(free > tiny, jnp.sqrt(variance / jnp.maximum(free, tiny)), jnp.inf)

        errors = jax.tree.map(deviation, self.gradient, self.square)
        draws = jnp.square(self.total) / self.squared_total
        return Noise(errors, jnp.maximum(draws - 1, 0), OVER)


class Constant(eqx.Module):
    """A function of hyper that does not depend on it: a module, so that equal ones share what is compiled."""

    value: Any

    def __call__(self, hyper: PyTree) -> Any:
        return self.value


class EvidenceState(eqx.Module):
    """The weights and their optimiser, the training steps and the draws made so far, and what past draws said."""

    params: PyTree
    optimiser_state: PyTree
    trained: Int[Array, ""]
    draws: Int[Array, ""]
    moments: Moments
    past: Any
    """The state of an adaptive estimator."""


class EvidenceObjective(AbstractObjective[EvidenceState]):
    """F(λ) = -(1/N) log q(D; λ, w): minus the log evidence a datum, in nats, at weights trained on the same data.

    Each evaluation first makes `train_steps` steps of the optimiser on minibatches of the loss
    -mean log p(y|f) + ½ T (w - m)ᵀ P0 (w - m)/N at the current λ, then draws one estimate of log|I + K| and its
    gradient at the weights found, which are held fixed in it.

    **Arguments:**

    - `apply`: `apply(params, hyper, x)` to the outputs (C,) of one example, hyper in natural units.
    - `params`: the first weights.
    - `data`: (inputs, targets).
    - `likelihood`: a likelihood, or a function of hyper (in natural units) to one, for learned noise.
    - `prior`: a function of hyper to a [`hyprax.evidence.GaussianPrior`][].
    - `temperature`: T, a number or a function of hyper.
    - `estimator`: of log|I + K|, an adaptive one too ([`hyprax.evidence.Choice`][],
        [`hyprax.evidence.AdaptiveTangent`][]); default [`hyprax.evidence.Chain`][] with one row of each of min(N, 256)
        data.
    - `optimiser`, `train_steps`, `batch_size`: how the weights are trained; 0 steps for frozen weights.
    - `likelihood_batch`: data for the sum of log p in the value; default all.
    - `decay`: of the smoothed slack and the gradient's standard deviation.
    - `key`: a JAX random key for batches and draws.

    The certificate, [`hyprax.evidence.EvidenceCertificate`][], gives the standard deviation of the stochastic gradient
    and the smoothed slack, both a datum. The value is, in expectation over the draw, at least F where the estimator is
    a bound; what is bounded is the Laplace evidence at these weights.

    **Raises:** `ValueError` for data, labels or settings that do not fit.
    """

    apply: Callable[[Any, Any, Any], Array]
    initial: PyTree
    data: tuple[PyTree, Array]
    likelihood: Callable[[Any], AbstractLikelihood]
    prior: Callable[[Any], GaussianPrior]
    temperature: Callable[[Any], Any]
    estimator: AbstractEstimator | AbstractAdaptive
    optimiser: optax.GradientTransformation = eqx.field(static=True)
    batches: Minibatches
    key: Array
    train_steps: int = eqx.field(static=True)
    likelihood_batch: int | None = eqx.field(static=True)
    decay: float = eqx.field(static=True)
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        apply: Callable[[Any, Any, Any], Array],
        params: PyTree,
        data: tuple[PyTree, Any],
        *,
        prior: Callable[[Any], GaussianPrior],
        likelihood: AbstractLikelihood | Callable[[Any], AbstractLikelihood] = Categorical(),
        temperature: float | Callable[[Any], Any] = 1.0,
        estimator: AbstractEstimator | AbstractAdaptive | None = None,
        optimiser: optax.GradientTransformation = optax.adam(1e-3),
        train_steps: int = 0,
        batch_size: int | None = None,
        likelihood_batch: int | None = None,
        decay: float = 0.9,
        key: Array,
    ):
        if train_steps < 0 or not 0 <= decay < 1:
            raise ValueError(
                f"EvidenceObjective: given train_steps {train_steps}, decay {decay}, allowed are train_steps >= 0 and "
                "0 <= decay < 1."
            )
        if not callable(prior):
            raise ValueError(
                f"EvidenceObjective: prior: given {described(prior)}, allowed is a function of hyper to one, such as "
                'lambda hyper: GaussianPrior(hyper["precision"]).'
            )
        if not (isinstance(likelihood, AbstractLikelihood) or callable(likelihood)):
            raise ValueError(
                f"EvidenceObjective: likelihood: given {described(likelihood)}, allowed are a likelihood such as "
                'Categorical(), and a function of hyper to one: lambda hyper: Gaussian(hyper["noise"]).'
            )
        self.noisy, self.adaptive, self.value_name = True, False, "negative log evidence per example"
        self.apply, self.initial = apply, jax.tree.map(jnp.asarray, params)
        self.data = pair(data)
        size = jax.tree.leaves(self.data)[0].shape[0]
        self.likelihood = Constant(likelihood) if isinstance(likelihood, AbstractLikelihood) else likelihood
        self.prior = prior
        self.temperature = temperature if callable(temperature) else Constant(temperature)
        self.estimator = or_default("EvidenceObjective", estimator, size, (AbstractEstimator, AbstractAdaptive))
        self.optimiser, self.train_steps, self.decay = optimiser, train_steps, decay
        batch_key, self.key = jax.random.split(key)
        self.batches = Minibatches(self.data, min(size, 128) if batch_size is None else batch_size, batch_key)
        if likelihood_batch is not None:
            check_size("EvidenceObjective: likelihood_batch", likelihood_batch, size, "data")
        self.likelihood_batch = likelihood_batch

    def init(self, hyper: PyTree) -> EvidenceState:
        hyper = validated(hyper)
        built = self._problem(self.initial, hyper)  # refuses what does not fit, where there are numbers to look at
        zero, past = jnp.zeros((), built.dtype), None
        if isinstance(self.estimator, AbstractAdaptive):
            past = _before_first_draw(self.estimator, built, jax.random.fold_in(self.key, 2**32 - 1))
        return EvidenceState(
            params=self.initial,
            optimiser_state=self.optimiser.init(self.initial),
            trained=jnp.zeros((), jnp.int32),
            draws=jnp.zeros((), jnp.int32),
            moments=Moments(*(jax.tree.map(jnp.zeros_like, hyper),) * 2, zero, zero, zero),
            past=past,
        )

    def train(self, hyper: PyTree, state: EvidenceState, steps: int) -> EvidenceState:
        """The state after `steps` minibatch steps of the weights at fixed hyperparameters."""
        for _ in range(steps):  # a loop of the host's: convolutions are slow in a loop of the compiler's on a CPU
            state = self._train_step(hyper, state)
        return state

    def at_weights(self, hyper: PyTree, state: EvidenceState) -> "EvidenceObjective":
        """The same objective for several evaluations at the weights of `state`, which share what can be shared.

        **Raises:** `ValueError` for [`hyprax.evidence.OnlineKFAC`][] and hyperparameters of which its factors are
        functions.
        """
        if not isinstance(self.estimator, OnlineKFAC):
            return self
        self._check_precisions_alone(hyper, state)
        estimator = self.estimator.at_weights(self.problem(hyper, state))
        return eqx.tree_at(lambda o: o.estimator, self, estimator)

    def value_and_grad(
        self, hyper: PyTree, state: EvidenceState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, EvidenceState]:
        refuse_accuracy(self, accuracy)
        return self._gradient(hyper, self.train(hyper, state, self.train_steps))

    @eqx.filter_jit
    def value(
        self, hyper: PyTree, state: EvidenceState, accuracy: Accuracy | None = None
    ) -> tuple[Value, EvidenceState]:
        refuse_accuracy(self, accuracy)
        value, (sides, _) = self._value(hyper, state)
        size = self.batches.size
        certificate = EvidenceCertificate.of_draw(self.estimator.kind, sides)
        certificate = jax.tree.map(lambda x: x / size, certificate)
        result = RESULTS.where(jnp.isfinite(value), RESULTS.successful, RESULTS.diverged)
        noise = NoNoise("one draw has no spread: compare several")
        return Value(value, certificate, noise, result, NamedStats({"log_determinant": sides.upper})), state

    def params(self, state: EvidenceState) -> PyTree:
        return state.params

    def final(self, hyper: PyTree, state: EvidenceState) -> tuple[Value, EvidenceState]:
        """The mean over fresh draws at the weights of the state, with the standard error of that mean."""
        clean = eqx.tree_at(lambda s: s.moments, state, jax.tree.map(jnp.zeros_like, state.moments))
        objective, values, answers = self.at_weights(hyper, clean), [], []
        for _ in range(FINAL_DRAWS):
            answer, clean = objective._gradient(hyper, clean)
            values.append(answer.value)
            answers.append(answer)
        found = jnp.stack(values)
        error = jnp.std(found, ddof=1) / jnp.sqrt(jnp.asarray(FINAL_DRAWS, found.dtype))
        last = answers[-1]
        slack = last.certificate.slack
        certificate = EvidenceCertificate.of_value(self.estimator.kind, bool(jnp.isfinite(slack)), slack)
        noise = Noise(error, FINAL_DRAWS - 1, OVER)
        return Value(jnp.mean(found), certificate, noise, last.result, last.stats), clean

    def _check_precisions_alone(self, hyper: PyTree, state: EvidenceState) -> None:
        """Refuse hyperparameters that the first output, the likelihood or the temperature has a derivative in."""
        first = jax.tree.map(lambda x: x[0], self.data[0])

        def outside_the_prior(hyper: PyTree) -> list[Array]:
            plain = natural(hyper)
            found = (self.apply(state.params, plain, first), self.likelihood(plain), self.temperature(plain))
            return jax.tree.leaves(eqx.filter(found, eqx.is_inexact_array))

        values, pull = jax.vjp(outside_the_prior, hyper)
        (slopes,) = pull([jax.random.normal(jax.random.key(i), x.shape, x.dtype) for i, x in enumerate(values)])
        for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
            if jnp.any(slope != 0):
                raise ValueError(
                    f"OnlineKFAC: given hyper{jax.tree_util.keystr(path)}, of which its factors are functions, allowed "
                    "are prior precisions alone: FullData(KFAC()) has a derivative in everything."
                )

    def problem(self, hyper: PyTree, state: EvidenceState) -> Problem:
        """The linearised model at the weights of `state`: what [`hyprax.evidence.posterior`][] takes."""
        return self._problem(state.params, hyper)

    def _problem(self, params: PyTree, hyper: PyTree) -> Problem:
        plain = natural(hyper)
        return problem(
            self.apply, self.likelihood(plain), self.prior(plain), params, plain, self.data, self.temperature(plain)
        )

    def _value(self, hyper: PyTree, state: EvidenceState) -> tuple[Float[Array, ""], tuple[LogDeterminant, Any]]:
        """-(1/N) log q, drawn with the key of this draw."""
        built = self.problem(hyper, state)
        draw_key, batch_key = jax.random.split(jax.random.fold_in(self.key, state.draws))
        past = state.past
        if isinstance(self.estimator, AbstractAdaptive):
            sides, past = self.estimator(built, draw_key, past)
        else:
            sides = self.estimator(built, draw_key)
        fit = tempered_fit(built, self.likelihood_batch, batch_key)
        total = fit - 0.5 * (built.prior.penalty(built.params).astype(fit.dtype) + sides.upper)
        return -total / built.size, (sides, past)

    @eqx.filter_jit
    def _gradient(self, hyper: PyTree, state: EvidenceState) -> tuple[Hypergradient, EvidenceState]:
        (value, (sides, past)), grad = jax.value_and_grad(self._value, has_aux=True)(hyper, state)
        size = self.batches.size
        two_sided = sides.lower is not None
        slack = 0.5 * (sides.upper - sides.lower) / size if sides.lower is not None else jnp.zeros_like(value)
        moments = state.moments.updated(self.decay, grad, slack)
        smoothed = moments.slack / moments.total if two_sided else jnp.full_like(value, jnp.inf)
        certificate = EvidenceCertificate.of_gradient(self.estimator.kind, smoothed)
        noise = moments.noise()
        stats = {"log_determinant": sides.upper, "slack": smoothed, "trained": state.trained}
        if isinstance(self.estimator, Choice):
            stats["estimator"] = self.estimator.chosen(state.past)
        finite = jnp.isfinite(value) & tree_all_finite((grad, state.params))
        result = RESULTS.where(finite, RESULTS.successful, RESULTS.diverged)
        known = moments, past
        moments, past = jax.tree.map(lambda a, b: jnp.where(finite, a, b), known, (state.moments, state.past))
        after = EvidenceState(state.params, state.optimiser_state, state.trained, state.draws + 1, moments, past)
        return Hypergradient(value, grad, certificate, noise, result, NamedStats(stats)), after

    @eqx.filter_jit
    def _train_step(self, hyper: PyTree, state: EvidenceState) -> EvidenceState:
        plain = natural(hyper)
        likelihood, prior = self.likelihood(plain), self.prior(plain)
        temperature = jnp.asarray(self.temperature(plain))
        inputs, targets = self.batches(state.trained)

        def loss(params: PyTree) -> Float[Array, ""]:
            f = jax.vmap(lambda x: self.apply(params, plain, x))(inputs)
            fit = jnp.mean(jax.vmap(likelihood.log_likelihood)(f, targets))
            return 0.5 * temperature.astype(f.dtype) * prior.penalty(params) / self.batches.size - fit

        grad = jax.grad(loss)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes, whatever the user has set
            updates, optimiser_state = self.optimiser.update(grad, state.optimiser_state, state.params)
            params = optax.apply_updates(state.params, updates)
        return eqx.tree_at(
            lambda s: (s.params, s.optimiser_state, s.trained),
            state,
            (params, optimiser_state, state.trained + 1),
        )


@eqx.filter_jit
def _before_first_draw(estimator: AbstractAdaptive, built: Problem, key: Array) -> Any:
    return estimator.init(built, key)
