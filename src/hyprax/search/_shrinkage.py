"""Holding back by a prior on hyperparameters: `Towards`, and one number for all of them or for each group."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Certificate
from .._noise import NoNoise
from .._objective import AbstractObjective, Hypergradient, Value, as_objective
from .._stats import Accuracy


class Towards(AbstractObjective[PyTree]):
    """F(λ) + (τ/2) [Σ_j (θ_j - mean of its group)² + Σ_g n_g (group's mean - mean)²]: coordinates held together.

    θ are the unconstrained coordinates (logarithms of strengths) of all leaves. A large τ makes them one, τ = 0 leaves
    them free. With groups the two parts have strengths of their own.

    **Arguments:**

    - `objective`: F, an objective or a function of hyper to a scalar.
    - `strength`: τ >= 0, within groups (all one group by default).
    - `between`: the strength of the second part; default τ.
    - `groups`: integers, one a coordinate in the order of the leaves; default all in one group.

    Certificate and noise are those of F, the former wider by the rounding of the sum: the prior is known exactly.
    """

    objective: AbstractObjective
    strength: Float[Array, ""]
    between: Float[Array, ""]
    groups: Array | None
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    measures_noise: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        objective: AbstractObjective | Callable[[PyTree], Any],
        strength: Any,
        *,
        between: Any = None,
        groups: Any = None,
    ):
        objective = as_objective(objective)
        self.objective = objective
        self.strength = jnp.asarray(strength, float)
        self.between = self.strength if between is None else jnp.asarray(between, float)
        if not (float(self.strength) >= 0 and float(self.between) >= 0):
            raise ValueError(f"Towards: strength must be numbers >= 0; got {strength} and {between}.")
        self.groups = None if groups is None else jnp.asarray(groups)
        self.noisy, self.adaptive = objective.noisy, objective.adaptive
        self.measures_noise = objective.measures_noise
        self.value_name = f"{objective.value_name} with a prior"

    def init(self, hyper: PyTree) -> PyTree:
        return self.objective.init(hyper)

    def value_and_grad(
        self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, PyTree]:
        answer, state = self.objective.value_and_grad(hyper, state, accuracy)
        value, grad, _, off = _held(hyper, self.strength, self.between, self.groups, answer.value, answer.grad)
        certificate = _widened(answer.certificate, off)
        return dataclasses.replace(answer, value=value, grad=grad, certificate=certificate), state

    def value(self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None) -> tuple[Value, PyTree]:
        answer, state = self.objective.value(hyper, state, accuracy)
        return self._with_prior(hyper, answer), state

    def params(self, state: PyTree) -> PyTree:
        return self.objective.params(state)

    def final(self, hyper: PyTree, state: PyTree) -> tuple[Value, PyTree]:
        answer, state = self.objective.final(hyper, state)
        return self._with_prior(hyper, answer), state

    def _with_prior(self, hyper: PyTree, answer: Value) -> Value:
        value, _, off, _ = _held(hyper, self.strength, self.between, self.groups, answer.value, hyper)
        return dataclasses.replace(answer, value=value, certificate=_widened(answer.certificate, off))


@eqx.filter_jit
def _held(
    hyper: PyTree, strength: Array, between: Array, groups: Any, value: Array, grad: PyTree
) -> tuple[Array, PyTree, Array, Array]:
    """With the prior: the value, the gradient, and bounds of the rounding of both sums."""

    def prior(hyper: PyTree) -> Array:
        theta = ravel_pytree(hyper)[0]
        overall = jnp.mean(theta)
        if groups is None:
            return 0.5 * strength.astype(theta.dtype) * jnp.sum((theta - overall) ** 2)
        count = theta.size
        sizes = jax.ops.segment_sum(jnp.ones_like(theta), groups, num_segments=count)
        means = jax.ops.segment_sum(theta, groups, num_segments=count) / jnp.maximum(sizes, 1)
        within = jnp.sum((theta - means[groups]) ** 2)
        apart = jnp.sum((means[groups] - overall) ** 2)
        return 0.5 * (strength.astype(theta.dtype) * within + between.astype(theta.dtype) * apart)

    more, slope = jax.value_and_grad(prior)(hyper)
    total, sums = value + more.astype(value.dtype), jax.tree.map(lambda a, b: a + b.astype(a.dtype), grad, slope)
    theta = ravel_pytree(hyper)[0]
    unit = (theta.size + 20) * jnp.finfo(theta.dtype).eps
    # Differences of coordinates are off by units of the largest of them, times the strengths.
    steep = (strength + between).astype(theta.dtype) * theta.size**0.5 * jnp.max(jnp.abs(theta))
    off = unit * (steep + jnp.linalg.norm(ravel_pytree(sums)[0]))
    width = theta.size**0.5 * jnp.max(jnp.abs(theta))
    return total, sums, unit * (steep * width + jnp.abs(total)), off


def _widened(certificate: AbstractCertificate, off: Array) -> AbstractCertificate:
    """The same certificate, of an answer to which something was added that is known up to `off`."""
    if certificate.kind == "none":
        return certificate
    bound = certificate.bound + off.astype(certificate.bound.dtype)
    return Certificate(bound, certificate.kind, certificate.quantity, "with a prior that is known up to rounding")


class Together(AbstractObjective[PyTree]):
    """F(λ with one number for all coordinates, or one a group): θ_j = t_{g(j)}, for the t given as hyperparameters."""

    objective: AbstractObjective
    like: PyTree
    groups: Array | None
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    measures_noise: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(self, objective: AbstractObjective, like: PyTree, groups: Any = None):
        self.objective, self.like = objective, like
        self.groups = None if groups is None else jnp.asarray(groups)
        self.noisy, self.adaptive, self.measures_noise = objective.noisy, objective.adaptive, False
        self.value_name = objective.value_name

    def spread(self, t: Array) -> PyTree:
        """The hyperparameters of F."""
        raw, restore = ravel_pytree(self.like)
        return restore(jnp.broadcast_to(t[0], raw.shape) if self.groups is None else t[self.groups])

    def summed(self, tree: PyTree, t: Array) -> Array:
        """Sums over the coordinates of each number."""
        raw = ravel_pytree(tree)[0]
        index = jnp.zeros(raw.size, int) if self.groups is None else self.groups
        return jax.ops.segment_sum(raw, index, num_segments=t.size)

    def init(self, hyper: PyTree) -> PyTree:
        return self.objective.init(self.spread(hyper))

    def value_and_grad(
        self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, PyTree]:
        answer, state = self.objective.value_and_grad(self.spread(hyper), state, accuracy)
        certificate = answer.certificate
        if certificate.kind != "none":  # a sum of n entries is off by at most √n times what their norm is off by
            most = jnp.sqrt(jnp.max(self.summed(jax.tree.map(jnp.ones_like, self.like), hyper)))
            size = jnp.linalg.norm(self.summed(jax.tree.map(jnp.abs, answer.grad), hyper))
            unit = (2 * ravel_pytree(self.like)[0].size + 20) * jnp.finfo(size.dtype).eps
            bound = (1 + unit) * most * certificate.bound.astype(size.dtype) + unit * size
            certificate = Certificate(bound, certificate.kind, certificate.quantity, "of sums of its entries")
        noise = NoNoise("not known for sums of entries", answer.noise.over)
        grad = self.summed(answer.grad, hyper)
        return Hypergradient(answer.value, grad, certificate, noise, answer.result, answer.stats), state

    def value(self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None) -> tuple[Value, PyTree]:
        return self.objective.value(self.spread(hyper), state, accuracy)

    def params(self, state: PyTree) -> PyTree:
        return self.objective.params(state)

    def final(self, hyper: PyTree, state: PyTree) -> tuple[Value, PyTree]:
        return self.objective.final(self.spread(hyper), state)
