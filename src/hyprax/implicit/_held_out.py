"""A family fitted without some of its rows and judged on others: one fold of a cross-validation."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Certificate, NoCertificate
from .._noise import NoNoise
from .._objective import AbstractObjective, Hypergradient, Value
from .._stats import Accuracy
from .._trees import tree_norm, tree_scale
from ._answers import TwoSidedCertificate
from ._noise import ExampleNoise, costs_little
from ._objective import ImplicitObjective, ImplicitState
from ._optimum import Optimum, family_of
from ._rows import kept, masked, without
from .families._mean_loss import MeanLoss

NOT_ASKED = NoNoise(
    "the spread over held-out examples was not asked for (noise=hx.implicit.ExampleNoise())", "held-out examples"
)


class HeldOut(AbstractObjective[ImplicitState]):
    """F(λ) = (1/m) Σ_{i in S} c_i ℓ(x_iᵀw(λ); y_i): what [`hyprax.Optimum.held_out`][] returns, and says all of."""

    problem: ImplicitObjective
    held_out: Float[Array, " n"]
    noise: ExampleNoise | None
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        optimum: Optimum,
        training: Any,
        held_out: Any,
        *,
        weights: Any = None,
        noise: ExampleNoise | None = None,
        **settings: Any,
    ):
        family = family_of(optimum)
        training, held_out = np.asarray(training), np.asarray(held_out)
        n = family.inputs.shape[0]
        for name, mask in (("training", training), ("held_out", held_out)):
            if mask.dtype != bool or mask.shape != (n,) or not mask.any():
                raise ValueError(
                    f"Optimum.held_out: {name} must be booleans ({n},), some of them true; got {mask.dtype}"
                    f"{list(mask.shape)}."
                )
        data = (kept(family.inputs, held_out), masked(family.targets, held_out))
        if family.offset is not None:
            data = (*data, masked(family.offset, held_out))
        mean = family.mean_loss
        if weights is not None:
            weights = np.asarray(weights)
            if weights.shape != (n,):
                raise ValueError(
                    f"Optimum.held_out: weights must be a number for each of {n} rows; got {list(weights.shape)}."
                )
            if not np.any(weights[held_out] != 0):
                raise ValueError(
                    f"Optimum.held_out: weights must be above 0 for one of the held-out rows at least; got 0 for all "
                    f"{np.sum(held_out)} of them (the first is row {np.flatnonzero(held_out)[0]})."
                )
            mean = mean.weighted(np.where(held_out, weights, 0))
        self.problem = ImplicitObjective(without(optimum, training), mean, data, **settings)
        self.held_out = jnp.asarray(held_out, family.inputs.dtype)
        self.noise = noise
        if noise is not None:
            noise.check(mean, self.problem.outer_data)
        self.noisy, self.adaptive, self.value_name = False, True, "held-out loss"

    @property
    def measures_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # known from its parts, where others hold a field
        return self.noise is not None and self.noise.serves(self.problem.optimum.params0)

    def with_noise(self) -> "HeldOut":
        """The same objective with the spread over its held-out examples, where a dense factor gives it for little."""
        problem = self.problem
        if self.noise is not None or not costs_little(problem.outer_loss, problem.outer_data, problem.optimum.params0):
            return self
        return eqx.tree_at(lambda o: o.noise, self, ExampleNoise(), is_leaf=lambda x: x is None)

    def init(self, hyper: PyTree) -> ImplicitState:
        return self.problem.init(hyper)

    def _scale(self) -> tuple[Array, Array]:
        """n/m, and what the rows that are not held out add to the mean: (n - m)/m times ℓ(0; 0), or with weights 0."""
        n, m = self.held_out.size, jnp.sum(self.held_out)
        inputs, targets = self.problem.outer_data[:2]
        outputs = self.problem.optimum.params0.shape[1:]
        mean = self.problem.outer_loss
        assert isinstance(mean, MeanLoss)  # __init__ has made it that of the family
        if mean.weights is not None:
            return n / m, jnp.zeros_like(m)
        blank = mean.loss.value(
            jnp.zeros((1, *outputs), inputs.dtype), jnp.zeros((1, *targets.shape[1:]), targets.dtype)
        )[0]
        return n / m, (n - m) / m * blank

    @eqx.filter_jit
    def value_and_grad(
        self, hyper: PyTree, state: ImplicitState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, ImplicitState]:
        answer, state = self.problem.value_and_grad(hyper, state, accuracy)
        scale, added = self._scale()
        grad = tree_scale(scale, answer.grad)
        certificate = _scaled(answer.certificate, scale, 2 * tree_norm(grad))
        noise = NOT_ASKED
        if self.noise is not None:
            loss, outer, data = self.problem.optimum.loss, self.problem.outer_loss, self.problem.outer_data
            noise = self.noise.of(loss, outer, data, hyper, state.params, self.held_out)
        value = scale * answer.value - added
        return Hypergradient(value, grad, certificate, noise, answer.result, answer.stats), state

    @eqx.filter_jit
    def value(
        self, hyper: PyTree, state: ImplicitState, accuracy: Accuracy | None = None
    ) -> tuple[Value, ImplicitState]:
        answer, state = self.problem.value(hyper, state, accuracy)
        scale, added = self._scale()
        value = scale * answer.value - added
        certificate = _scaled(answer.certificate, scale, 4 * (jnp.abs(scale * answer.value) + jnp.abs(added)))
        return Value(value, certificate, NOT_ASKED, answer.result, answer.stats), state

    def params(self, state: ImplicitState) -> PyTree:
        return self.problem.params(state)

    def final(self, hyper: PyTree, state: ImplicitState) -> tuple[Value, ImplicitState]:
        return self.value(hyper, state)


def _scaled(certificate: AbstractCertificate, scale: Array, rounded: Array) -> AbstractCertificate:
    """The certificate of `scale` times an answer, with the rounding of numbers of the size `rounded`."""
    unit = jnp.finfo(rounded.dtype).eps

    def wider(x: Array) -> Array:
        return (1 + 8 * unit).astype(x.dtype) * scale.astype(x.dtype) * x + (unit * rounded).astype(x.dtype)

    if isinstance(certificate, TwoSidedCertificate):
        parts = {
            name: scale.astype(x.dtype) * x
            for name in ("shift", "lower", "upper")
            for x in (getattr(certificate, name),)
        }
        return dataclasses.replace(
            certificate, bound=wider(certificate.bound), entries=jax.tree.map(wider, certificate.entries), **parts
        )
    if isinstance(certificate, Certificate):
        return dataclasses.replace(certificate, bound=wider(certificate.bound))
    return certificate if certificate.kind == "none" else NoCertificate("not known for a scaled answer", rounded.dtype)
