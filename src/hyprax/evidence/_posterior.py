"""The Laplace posterior of the weights, and what the linearised model predicts under it."""

import abc
import operator
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._keys import checked_key
from .._products import einsum, product
from ._designs import check_size, subset
from ._predictive import Approximation, Outputs, log_predictive, mean_prediction
from ._problem import LinearisedModel, restricted
from ._structures import accumulate


def _scales(problem: LinearisedModel) -> PyTree[Float[Array, "..."]]:
    """P0^-½, each leaf like its tensor."""
    variances = problem.prior.variances(problem.params)
    return jax.tree.map(lambda v, w: jnp.broadcast_to(jnp.sqrt(v), w.shape), variances, problem.params)


def _flat(rows: PyTree) -> Float[Array, "rows p"]:
    return jax.vmap(lambda row: ravel_pytree(row)[0])(rows)


def _unit(count: int, outputs: int, dtype: Any) -> Float[Array, "m c c"]:
    return jnp.broadcast_to(jnp.eye(outputs, dtype=dtype), (count, outputs, outputs))


class AbstractFactor(eqx.Module):
    """A = I + ΦᵀΦ, Φ = √(N/(M T)) Lᵀ J P0^-½, factored: the covariance of the weights is P0^-½ A⁻¹ P0^-½."""

    @abc.abstractmethod
    def covariance(self, problem: LinearisedModel, inputs: PyTree) -> Float[Array, "m c c"]:
        """s A⁻¹ sᵀ for the rows s = J P0^-½ of each new example."""

    @abc.abstractmethod
    def draw(self, problem: LinearisedModel, key: Array) -> PyTree:
        """ε ~ N(0, A⁻¹), in the structure of the weights."""


class WeightFactor(AbstractFactor):
    """A = R Rᵀ itself, [P, P]: for fewer weights than rows."""

    cholesky: Float[Array, "p p"]

    @classmethod
    def of(cls, problem: LinearisedModel, cotangents: Float[Array, "m c c"]) -> "WeightFactor":
        """From the rows that `cotangents` pick at the examples of the problem."""

        def moment(rows: PyTree) -> Array:
            flat = _flat(rows)
            return product(flat.T, flat)

        total = accumulate(problem, None, cotangents, moment)
        return cls(jnp.linalg.cholesky(jnp.eye(total.shape[0], dtype=total.dtype) + total))

    def covariance(self, problem: LinearisedModel, inputs: PyTree) -> Float[Array, "m c c"]:
        count, outputs = jax.tree.leaves(inputs)[0].shape[0], problem.outputs
        there = eqx.tree_at(lambda p: p.inputs, problem, inputs)
        rows = jax.vmap(_flat)(there.gradients(None, _unit(count, outputs, self.cholesky.dtype)))
        flat = rows.reshape(count * outputs, -1)
        solved = jax.scipy.linalg.solve_triangular(self.cholesky, flat.T, lower=True).T.reshape(rows.shape)
        return product(solved, jnp.swapaxes(solved, 1, 2))

    def draw(self, problem: LinearisedModel, key: Array) -> PyTree:
        noise = jax.random.normal(key, self.cholesky.shape[:1], self.cholesky.dtype)
        draw = jax.scipy.linalg.solve_triangular(self.cholesky, noise, lower=True, trans=1)
        return ravel_pytree(problem.params)[1](draw)


class FunctionFactor(AbstractFactor):
    """A⁻¹ = I - Φᵀ(I + ΦΦᵀ)⁻¹Φ with I + ΦΦᵀ = R Rᵀ, [MC, MC]: for many weights; nothing of size P x P is formed.

    Draws are ε - Φᵀ(I + ΦΦᵀ)⁻¹(Φε + η), ε and η standard normal: their covariance is A⁻¹ exactly (Matheron's rule).
    """

    cotangents: Float[Array, "m c c"]
    cholesky: Float[Array, "rows rows"]

    @classmethod
    def of(cls, problem: LinearisedModel, cotangents: Float[Array, "m c c"]) -> "FunctionFactor":
        """From the rows that `cotangents` pick at the examples of the problem."""
        kernel = problem.kernel(None, cotangents)
        return cls(cotangents, jnp.linalg.cholesky(jnp.eye(kernel.shape[0], dtype=kernel.dtype) + kernel))

    def covariance(self, problem: LinearisedModel, inputs: PyTree) -> Float[Array, "m c c"]:
        known, outputs = self.cholesky.shape[0], self.cotangents.shape[2]
        count = jax.tree.leaves(inputs)[0].shape[0]
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), problem.inputs, inputs)
        there = eqx.tree_at(lambda p: p.inputs, problem, both)
        joint = there.kernel(None, jnp.concatenate([self.cotangents, _unit(count, outputs, self.cotangents.dtype)]))
        solved = jax.scipy.linalg.solve_triangular(self.cholesky, joint[:known, known:], lower=True)
        solved = solved.reshape(known, count, outputs)
        own = joint[known:, known:].reshape(count, outputs, count, outputs)
        return einsum("ncnd->ncd", own) - einsum("knc,knd->ncd", solved, solved)

    def draw(self, problem: LinearisedModel, key: Array) -> PyTree:
        scales = _scales(problem)

        def contracted(scaled: PyTree) -> Array:
            w = jax.tree.map(jnp.multiply, scaled, scales)
            f = jax.vmap(lambda x: problem.apply(w, problem.hyper, x))(problem.inputs)
            return einsum("mrc,mc->mr", self.cotangents, f).ravel()

        at = jax.tree.map(jnp.divide, problem.params, scales)
        unit_key, noise_key = jax.random.split(key)
        flat, unravel = ravel_pytree(at)
        unit = unravel(jax.random.normal(unit_key, flat.shape, flat.dtype))
        _, image = jax.jvp(contracted, (at,), (unit,))
        noise = jax.random.normal(noise_key, image.shape, image.dtype)
        solved = jax.scipy.linalg.cho_solve((self.cholesky, True), image + noise)
        (back,) = jax.vjp(contracted, at)[1](solved)
        return jax.tree.map(jnp.subtract, unit, back)


class Posterior(eqx.Module):
    """N(w*, P0^-½ A⁻¹ P0^-½), A = I + (N/(M T)) P0^-½ Σ_n Jᵀ Λ J P0^-½: made by [`hyprax.evidence.posterior`][].

    Predictions are those of the linearised model, f ~ N(f(x; w*), J Σ Jᵀ), except where weights are drawn by `sample`
    and used as they are.
    """

    problem: LinearisedModel
    factor: AbstractFactor
    fixed: PyTree
    """The weights that are not random, for a last layer."""

    def outputs(self, inputs: PyTree, *, chunk: int = 256) -> Outputs:
        """f ~ N(f(x; w*), J Σ Jᵀ): mean (m, C) and covariance (m, C, C) of the outputs for each of m new examples.

        **Arguments:**

        - `inputs`: a pytree of arrays with leading axis m.
        - `chunk`: examples at a time.
        """
        inputs = jax.tree.map(jnp.asarray, inputs)
        _check_like(inputs, self.problem.inputs)
        count = jax.tree.leaves(inputs)[0].shape[0]
        if count < 1 or chunk < 1:
            raise ValueError(
                f"posterior: inputs and chunk must be at least 1; got {count} examples, chunks of {chunk}."
            )
        chunks = (slice(start, start + chunk) for start in range(0, count, chunk))
        parts = [_outputs(self, jax.tree.map(operator.itemgetter(rows), inputs)) for rows in chunks]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def predict(
        self,
        inputs: PyTree,
        approximation: Approximation = "probit",
        *,
        samples: int = 1000,
        key: Array | None = None,
    ) -> Float[Array, "m c"]:
        """E[y | x, D] for each new example: class probabilities, or the mean of the targets.

        **Arguments:**

        - `inputs`: a pytree of arrays with leading axis m.
        - `approximation`: for probabilities. "probit": the logits divided by √(1 + (π/8) v). "bridge": the mean of the
            Dirichlet distribution of the Laplace bridge (Hobbhahn et al. 2022, arXiv 2003.01227). "monte_carlo": the
            mean over draws of f. "map": at w*, as if nothing were uncertain. The means of Gaussian and Poisson targets
            are exact but for "map".
        - `samples`, `key`: of "monte_carlo", which needs a JAX random key.
        """
        key = _key(approximation, key)
        return mean_prediction(self.problem.likelihood, self.outputs(inputs), approximation, samples, key)

    def log_likelihood(
        self,
        inputs: PyTree,
        targets: Any,
        approximation: Approximation = "probit",
        *,
        samples: int = 1000,
        key: Array | None = None,
    ) -> Float[Array, " m"]:
        """log p(y | x, D) of each new datum, in nats; for Gaussian targets N(y; f, J Σ Jᵀ + σ²) exactly.

        **Arguments:** those of `predict`, and `targets` with leading axis m. Poisson targets need
        "monte_carlo" or "map".

        **Raises:** `ValueError` for targets that the likelihood cannot have produced.
        """
        targets = jnp.asarray(targets)
        self.problem.likelihood.validate(targets, self.problem.outputs)
        count = jax.tree.leaves(inputs)[0].shape[0]
        if targets.shape[0] != count:
            raise ValueError(
                f"posterior: targets must be one for each input; got {count} inputs and {targets.shape[0]} targets."
            )
        key = _key(approximation, key)
        return log_predictive(self.problem.likelihood, self.outputs(inputs), targets, approximation, samples, key)

    def sample(self, count: int, *, key: Array) -> PyTree:
        """`count` draws of the weights, in their structure with a leading axis; tensors held fixed are repeated."""
        scales = _scales(self.problem)

        def one(key: Array) -> PyTree:
            drawn = self.factor.draw(self.problem, key)
            return jax.tree.map(lambda w, s, e: w + s * e, self.problem.params, scales, drawn)

        fixed = jax.tree.map(lambda w: jnp.broadcast_to(w, (count, *w.shape)), self.fixed)
        return eqx.combine(jax.vmap(one)(jax.random.split(key, count)), fixed)


def _key(approximation: Approximation, key: Array | None) -> Array:
    """The key of draws; any, where nothing is drawn."""
    return checked_key("posterior", key) if approximation == "monte_carlo" else jax.random.key(0)


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
    problem = posterior.problem
    mean = jax.vmap(lambda x: problem.apply(problem.params, problem.hyper, x))(inputs)
    return Outputs(mean, posterior.factor.covariance(problem, inputs))


def posterior(
    model: LinearisedModel,
    *,
    size: int | None = None,
    where: Callable[[Any], Any] | None = None,
    form: Literal["auto", "weights", "functions"] = "auto",
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
    - `form`: "weights" factors a P x P matrix, "functions" an MC x MC one; "auto" the smaller. They are the same
        posterior. In single precision the variances of "functions" carry an absolute error of about 1e-7 times the
        prior's, so they lose digits where the data leave far less.
    - `key`: a JAX random key, needed for a subset.

    **Raises:** `ValueError` for a size out of range, an unknown form, or a `where` that picks no tensors.
    """
    if form not in ("auto", "weights", "functions"):
        raise ValueError(f"posterior: form must be 'auto', 'weights' or 'functions'; got {form!r}.")
    if not isinstance(model, LinearisedModel):
        raise ValueError(
            "posterior: model must be the `model` of what `hyprax.fits.fit_evidence` returns, or that of "
            f"`hx.evidence.linearise`; got a {type(model).__name__}."
        )
    problem, total = model, model.size
    if size is not None:
        check_size("posterior", size, total, "data")
        data = subset(size, total, checked_key("posterior", key))
        some = (problem.examples(data), problem.targets[data])
        problem = eqx.tree_at(lambda p: (p.inputs, p.targets), problem, some)
    fixed = jax.tree.map(lambda _: None, problem.params)
    if where is not None:
        problem, fixed = restricted("posterior", problem, where)
    if form == "auto":
        weights = sum(w.size for w in jax.tree.leaves(problem.params))
        form = "weights" if weights <= problem.size * problem.outputs else "functions"
    return Posterior(problem, _factor(problem, form, total / problem.size), fixed)


@eqx.filter_jit
def _factor(problem: LinearisedModel, form: str, weight: float) -> AbstractFactor:
    roots = jax.vmap(problem.likelihood.root)(problem.logits())
    scale = jnp.sqrt(weight / problem.temperature).astype(roots.dtype)
    cotangents = scale * jnp.swapaxes(roots, 1, 2)
    return (WeightFactor if form == "weights" else FunctionFactor).of(problem, cotangents)
