"""The Laplace posterior of the weights, and what the linearised model predicts under it."""

import operator
from collections.abc import Callable
from typing import Any, Literal, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._keys import checked_key
from .._products import product
from ._data import by_token
from ._designs import check_size, subset
from ._factors import AbstractFactor, FunctionFactor, WeightFactor, scales_of, structured
from ._likelihoods import AbstractLikelihood, Bernoulli, Categorical
from ._predictive import Approximation, Outputs, Prediction, default_approximation, log_predictive, predicted
from ._problem import LinearisedModel, restricted
from ._structures import AbstractStructure, Full, LastLayer

MOST_LEFT_OUT = 1024
"""The most training examples that are left out, one at a time, for the scale of the variances."""


class Posterior(eqx.Module):
    """N(w*, P0^-½ A⁻¹ P0^-½), A = I + (N/(M T)) P0^-½ Σ_n Jᵀ Λ J P0^-½: made by [`hyprax.evidence.posterior`][].

    Predictions are those of the linearised model, f ~ N(f(x; w*), J Σ Jᵀ), except where weights are drawn by `sample`
    and used as they are.
    """

    problem: LinearisedModel
    factor: AbstractFactor
    fixed: PyTree
    """The weights that are not random, for a last layer."""
    scale: Float[Array, ""]
    """τ: what predictions of classes multiply the covariance of the outputs by."""
    tokens: int = eqx.field(static=True, default=0)
    """S, where new examples are sequences of S tokens; else 0."""

    def outputs(self, inputs: PyTree, *, chunk: int = 256) -> Outputs:
        """f ~ N(f(x; w*), J Σ Jᵀ): mean (m, C) and covariance (m, C, C) of the outputs for each of m new examples.

        **Arguments:**

        - `inputs`: a pytree of arrays with leading axis m.
        - `chunk`: examples at a time.
        """
        inputs = jax.tree.map(jnp.asarray, inputs)
        _check_like(inputs, self.problem.inputs[0] if self.tokens else self.problem.inputs)
        count = jax.tree.leaves(inputs)[0].shape[0]
        if count < 1 or chunk < 1:
            raise ValueError(
                f"posterior: inputs and chunk must be at least 1; got {count} examples, chunks of {chunk}."
            )
        chunk = max(chunk // max(self.tokens, 1), 1)
        chunks = (slice(start, start + chunk) for start in range(0, count, chunk))
        parts = [_outputs(self, jax.tree.map(operator.itemgetter(rows), inputs)) for rows in chunks]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    @overload
    def predict(
        self,
        inputs: PyTree,
        approximation: Approximation | None = None,
        *,
        return_std: Literal[False] = False,
        samples: int = 1000,
        key: Array | None = None,
    ) -> Float[Array, "m ..."]: ...

    @overload
    def predict(
        self,
        inputs: PyTree,
        approximation: Approximation | None = None,
        *,
        return_std: Literal[True],
        samples: int = 1000,
        key: Array | None = None,
    ) -> tuple[Float[Array, "m ..."], Float[Array, "m ..."]]: ...

    def predict(
        self,
        inputs: PyTree,
        approximation: Approximation | None = None,
        *,
        return_std: bool = False,
        samples: int = 1000,
        key: Array | None = None,
    ) -> Any:
        """E[y | x, D] for each new example: class probabilities, or the mean of the targets.

        **Arguments:**

        - `inputs`: a pytree of arrays with leading axis m.
        - `approximation`: for probabilities. "scaled", the default: "probit" with the variances times `scale`, which
            leave-one-out predictions of the training data have chosen. "probit": the logits divided by √(1 + (π/8) v).
            "bridge": the mean of the Dirichlet distribution of the Laplace bridge (Hobbhahn et al. 2022, arXiv
            2003.01227). "monte_carlo": the mean over draws of f. "map": at w*, as if nothing were uncertain. The means
            of Gaussian and Poisson targets are exact but for "map".
        - `return_std`: give (mean, standard deviation). For targets it is that of the target itself, noise included;
            for class probabilities that of the probability over draws of f, with the variances of the approximation.
        - `samples`, `key`: of "monte_carlo", which needs a JAX random key; of the deviations of probabilities, which
            take a fixed one by default.

        Which approximation is the default was decided by measurement, in `experiments/calibration/RESULTS.md`.
        """
        likelihood = self.problem.likelihood
        approximation = default_approximation(likelihood) if approximation is None else approximation
        how = Prediction(approximation, samples, _key(approximation, key), self.scale)
        mean, deviation = predicted(likelihood, self.outputs(inputs), how, return_std)
        mean = self._by_sequence(mean)
        return (mean, self._by_sequence(deviation)) if return_std else mean

    def log_likelihood(
        self,
        inputs: PyTree,
        targets: Any,
        approximation: Approximation | None = None,
        *,
        samples: int = 1000,
        key: Array | None = None,
    ) -> Float[Array, "m ..."]:
        """log p(y | x, D) of each new datum, in nats; for Gaussian targets N(y; f, J Σ Jᵀ + σ²) exactly.

        **Arguments:** those of `predict`, and `targets` with leading axis m. Poisson targets need
        "monte_carlo" or "map". Labels of sequences (m, S) are scored token by token, padding with 0.

        **Raises:** `ValueError` for targets that the likelihood cannot have produced.
        """
        problem, targets = self.problem, jnp.asarray(targets)
        count, counts = jax.tree.leaves(inputs)[0].shape[0], None
        if targets.shape[0] != count:
            raise ValueError(
                f"posterior: targets must be one for each input; got {count} inputs and {targets.shape[0]} targets."
            )
        if self.tokens:
            targets, counts = by_token(targets, None, (self.tokens, problem.outputs), problem.likelihood)
        problem.likelihood.validate(targets, problem.outputs)
        approximation = default_approximation(problem.likelihood) if approximation is None else approximation
        how = Prediction(approximation, samples, _key(approximation, key), self.scale)
        found = log_predictive(problem.likelihood, self.outputs(inputs), targets, how)
        return self._by_sequence(found if counts is None else jnp.where(counts > 0, found, 0.0))

    def _by_sequence(self, x: Array) -> Array:
        """Tokens -> sequences, where the model has them."""
        return x.reshape(-1, self.tokens, *x.shape[1:]) if self.tokens else x

    def sample(self, count: int, *, key: Array) -> PyTree:
        """`count` draws of the weights, in their structure with a leading axis; tensors held fixed are repeated."""
        scales = scales_of(self.problem)

        def one(key: Array) -> PyTree:
            drawn = self.factor.draw(self.problem, key)
            return jax.tree.map(lambda w, s, e: w + s * e, self.problem.params, scales, drawn)

        fixed = jax.tree.map(lambda w: jnp.broadcast_to(w, (count, *w.shape)), self.fixed)
        return eqx.combine(jax.vmap(one)(jax.random.split(key, count)), fixed)


def _key(approximation: Approximation, key: Array | None) -> Array:
    """The key of draws: a fixed one where an approximation draws nothing, and deviations alone may."""
    if key is None and approximation != "monte_carlo":
        return jax.random.key(0)
    return checked_key("posterior", key)


def _check_like(inputs: PyTree, known: PyTree) -> None:
    """Refuse new examples of another form than those of the training data."""
    given, allowed = jax.tree.structure(inputs), jax.tree.structure(known)
    if given != allowed:
        raise ValueError(f"posterior: inputs must have the structure of the data, {allowed}; got {given}.")
    for (path, x), at in zip(jax.tree_util.tree_leaves_with_path(inputs), jax.tree.leaves(known), strict=True):
        if x.ndim == 0 or x.shape[1:] != at.shape[1:]:
            shape = ", ".join(map(str, ("m", *at.shape[1:])))
            raise ValueError(
                f"posterior: inputs{jax.tree_util.keystr(path)} must have shape ({shape}) for m examples; got shape "
                f"{x.shape}."
            )
    if len({x.shape[0] for x in jax.tree.leaves(inputs)}) != 1:
        raise ValueError(
            "posterior: inputs must have one common leading axis; got shapes "
            f"{[x.shape for x in jax.tree.leaves(inputs)]}."
        )


@eqx.filter_jit
def _outputs(posterior: Posterior, inputs: PyTree) -> Outputs:
    problem, tokens = posterior.problem, posterior.tokens
    if tokens:
        count = jax.tree.leaves(inputs)[0].shape[0]
        sequences = jax.tree.map(lambda x: jnp.repeat(x, tokens, axis=0), inputs)
        inputs = sequences, jnp.tile(jnp.arange(tokens, dtype=jnp.int32), count)
    there = eqx.tree_at(lambda p: p.inputs, problem, inputs)
    return Outputs(there.logits(), posterior.factor.covariance(problem, inputs))


def posterior(
    model: LinearisedModel,
    *,
    size: int | None = None,
    where: Callable[[Any], Any] | None = None,
    structure: AbstractStructure | None = None,
    form: Literal["auto", "weights", "functions"] = "auto",
    scale: float | None = None,
    key: Array | None = None,
) -> Posterior:
    """N(w*, (P0 + H)⁻¹), H = (N/(M T)) Σ_{n in A} J_nᵀ Λ_n J_n: the Laplace posterior at the weights of `model`.

    With all data, M = N. With a uniform subset A, H is an unbiased estimate of the whole; since the inverse is operator
    convex, the covariance is then on average never too small.

    **Arguments:**

    - `model`: the `model` of what [`hyprax.fits.fit_evidence`][] returns, or that of
        [`hyprax.evidence.linearise`][]: the same prior, noise and temperature as in the evidence.
    - `size`: M; default all N.
    - `where`: picks the random tensors, the others held fixed, as `lambda params: params["head"]` for a last layer.
    - `structure`: of the precision, of `hyprax.evidence.structures` as for the evidence: `KFAC`, `EKFAC`, `Diagonal`,
        `TensorBlocks`, `LastLayer`; default none, the whole.
    - `form`: of the whole: "weights" factors a P x P matrix, "functions" an MC x MC one; "auto" the smaller. They are
        the same posterior. In single precision the variances of "functions" carry an absolute error of about 1e-7
        times the prior's, so they lose digits where the data leave far less.
    - `scale`: τ >= 0, by which predictions of classes multiply the covariance of the outputs. By default that under
        which training labels, each left out in turn, are most likely: on small data the linearised model is often too
        unsure, and 0 is the prediction at the mode. To leave a datum out is to take its own term from the
        posterior of its outputs (Vehtari et al. 2016); up to 1,024 are left out.
    - `key`: a JAX random key, needed for a subset.

    **Raises:** `ValueError` for a size out of range, an unknown form, or a `where` that picks no tensors.
    """
    if scale is not None and not scale >= 0:
        raise ValueError(f"posterior: scale must be a number >= 0, or None; got {scale}.")
    if form not in ("auto", "weights", "functions"):
        raise ValueError(f"posterior: form must be 'auto', 'weights' or 'functions'; got {form!r}.")
    if not isinstance(model, LinearisedModel):
        raise ValueError(
            "posterior: model must be the `model` of what `hyprax.fits.fit_evidence` returns, or that of "
            f"`hx.evidence.linearise`; got a {type(model).__name__}."
        )
    total, data = model.size, None
    if size is not None:
        check_size("posterior", size, total, "data")
        data = subset(size, total, checked_key("posterior", key))
    problem = model.some(data)
    fixed = jax.tree.map(lambda _: None, problem.params)
    if isinstance(structure, LastLayer):
        where, structure = structure.where if where is None else where, structure.within
    if where is not None:
        problem, fixed = restricted("posterior", problem, where)
    if form == "auto":
        weights = sum(w.size for w in jax.tree.leaves(problem.params))
        form = "weights" if weights <= problem.size * problem.outputs else "functions"
    factor = _factor(problem, None if isinstance(structure, Full) else structure, form, total / problem.size)
    found = Posterior(problem, factor, fixed, jnp.asarray(1.0 if scale is None else scale, problem.dtype), model.tokens)
    if scale is None and isinstance(problem.likelihood, Categorical | Bernoulli):
        found = eqx.tree_at(lambda p: p.scale, found, calibrated_scale(found, total / problem.size))
    return found


@eqx.filter_jit
def _factor(problem: LinearisedModel, structure: AbstractStructure | None, form: str, weight: float) -> AbstractFactor:
    roots = jax.vmap(problem.likelihood.root)(problem.logits())
    shares = jnp.sqrt(jnp.asarray(weight, roots.dtype)) * problem.shares(None).astype(roots.dtype)
    cotangents = shares[:, None, None] * jnp.swapaxes(roots, 1, 2)
    if structure is not None:
        return structured(problem, cotangents, structure)
    return (WeightFactor if form == "weights" else FunctionFactor).of(problem, cotangents)


@eqx.filter_jit
def calibrated_scale(found: Posterior, weight: float) -> Float[Array, ""]:
    """The τ under which training labels, each left out in turn, are most likely by the scaled probit.

    With S the covariance of the outputs of a datum, L Lᵀ its curvature and g the gradient of its log-likelihood, the
    posterior without it has the covariance S + S L (I - Lᵀ S L)⁻¹ Lᵀ S = C and the mean f - C g.
    """
    problem = found.problem
    data = jnp.arange(problem.size, dtype=jnp.int32)
    if problem.size > MOST_LEFT_OUT:
        data = data[:: -(-problem.size // MOST_LEFT_OUT)]
    some = problem.some(data)
    outputs = Outputs(some.logits(), found.factor.covariance(problem, some.inputs))
    shares = jnp.sqrt(jnp.asarray(weight, problem.dtype)) * some.shares(None)
    likelihood = problem.likelihood
    one_out = jax.vmap(lambda m, c, y, s: _left_out(likelihood, m, c, y, s))
    without = Outputs(*one_out(outputs.mean, outputs.covariance, some.targets, shares))
    grid = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, 10.0, 41)]).astype(problem.dtype)
    key = jax.random.key(0)
    counts = jnp.ones(data.shape, problem.dtype) if some.weights is None else some.weights

    def score(scale: Array) -> Array:
        how = Prediction("scaled", 1, key, scale)
        return jnp.sum(counts.astype(problem.dtype) * log_predictive(likelihood, without, some.targets, how))

    scores = jax.lax.map(score, grid)
    return grid[jnp.argmax(jnp.where(jnp.isfinite(scores), scores, -jnp.inf))]


def _left_out(
    likelihood: AbstractLikelihood, mean: Array, covariance: Array, target: Array, share: Array
) -> tuple[Array, Array]:
    root = share * likelihood.root(mean)
    values, vectors = jnp.linalg.eigh(product(root.T, product(covariance, root)))
    spread = product(covariance, product(root, vectors))
    # Below 1 but for rounding, and for structures that make too little of the datum.
    larger = spread / (1 - jnp.clip(values, 0.0, 0.999))[None]
    wider = covariance + product(larger, spread.T)
    slope = jnp.square(share) * jax.grad(lambda f: likelihood.log_likelihood(f, target))(mean)
    return mean - product(wider, slope), wider
