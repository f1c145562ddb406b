"""Holding back: only entries of a hypergradient that rise above their noise and their bound may move."""

import functools
import math
import operator
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._certificate import AbstractCertificate, entries_of
from .._noise import Noise
from .._objective import AbstractObjective
from ._results import RESULTS
from ._search import AbstractSearch, Move
from ._student import widened


class Gate(AbstractSearch):
    """Entry j of the hypergradient is replaced by sign(h_j) max(|h_j| - z se_j - bound_j, 0); closed entries rest.

    One rule for both errors of h: `se_j` is its standard error over the sample, `bound_j` the certificate's bound of
    the entry (of the whole, where there is none of the entry; none where nothing is known). What is left is handed to a
    gradient transformation. The run ends with `below_noise` where no entry is open.

    **Arguments:**

    - `z`: how many standard errors an entry must exceed: 2 where folds are redrawn at each step, 3 where nothing may be
        lost. Where standard errors are estimates of few degrees of freedom, that of Student's t with the same tail.
    - `transformation`: of optax, acts on unconstrained coordinates; default Adam at 0.05.

    **Raises:** `ValueError` for z < 0, and at the first step for an objective that does not measure its noise.
    """

    needs_accuracy: ClassVar[bool] = False
    needs_determinism: ClassVar[bool] = False

    z: float = 2.0
    transformation: optax.GradientTransformation = optax.adam(0.05)

    def __check_init__(self):
        if not 0 <= self.z < math.inf:
            raise ValueError(f"Gate: z must be a finite number >= 0; got {self.z}.")

    def init(self, hyper: PyTree) -> PyTree:
        return self.transformation.init(hyper)

    def step(self, objective: AbstractObjective, hyper: PyTree, search_state: PyTree, objective_state: PyTree) -> Move:
        answer, objective_state = objective.value_and_grad(hyper, objective_state)
        noise = answer.noise
        if not isinstance(noise, Noise):
            raise ValueError(
                f"Gate: the objective must measure the noise of its hypergradients; got {noise!r}. For folds of a "
                "family give noise=hx.implicit.ExampleNoise()."
            )
        factor = widened(self.z, float(noise.degrees_of_freedom))
        bounds = entry_bounds(answer.certificate, answer.grad)
        gated, opened = gate(answer.grad, noise.standard_errors, bounds, jnp.asarray(factor))
        moved, state = _moved(self.transformation, gated, search_state, hyper)
        ended = None if int(opened) else RESULTS.below_noise
        return Move(answer, moved, state, objective_state, ended, numbers={"open_entries": opened})


def entry_bounds(certificate: AbstractCertificate, grad: PyTree) -> PyTree:
    """|h_j - ∂F/∂θ_j| <= bound_j: of single entries where they are known, else of the whole; 0 where nothing is."""
    entries = entries_of(certificate)
    if entries is not None and jax.tree.structure(entries) == jax.tree.structure(grad):
        return jax.tree.map(lambda bound, g: bound.astype(g.dtype), entries, grad)
    whole: Any = certificate.bound
    if certificate.kind == "none":
        whole = jnp.zeros_like(whole)
    return jax.tree.map(lambda g: jnp.broadcast_to(whole.astype(g.dtype), g.shape), grad)


@jax.jit
def gate(grad: PyTree, errors: PyTree, bounds: PyTree, z: Array) -> tuple[PyTree, Int[Array, ""]]:
    """sign(h_j) max(|h_j| - z se_j - bound_j, 0), and how many are not 0."""

    def entry(g: Array, error: Array, bound: Array) -> Array:
        return jnp.sign(g) * jnp.maximum(jnp.abs(g) - z.astype(g.dtype) * error.astype(g.dtype) - bound, 0)

    gated = jax.tree.map(entry, grad, errors, bounds)
    return gated, functools.reduce(operator.add, [jnp.sum(leaf != 0) for leaf in jax.tree.leaves(gated)])


@eqx.filter_jit
def _moved(
    transformation: optax.GradientTransformation, gated: PyTree, state: PyTree, hyper: PyTree
) -> tuple[PyTree, PyTree]:
    with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes, whatever the user has set
        updates, state = transformation.update(gated, state, hyper)
        # Momentum would carry an entry on after it has closed.
        updates = jax.tree.map(lambda update, g: jnp.where(g == 0, 0, update), updates, gated)
        return optax.apply_updates(hyper, updates), state
