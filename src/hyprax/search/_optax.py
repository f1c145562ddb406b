"""Searches by a gradient transformation of optax."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._objective import AbstractObjective
from .._result import succeeded
from ._search import AbstractSearch, Move


class Optax(AbstractSearch):
    """u ← u + Δ(h), u the unconstrained coordinates, h the hypergradient, Δ any `optax.GradientTransformation`.

    **Arguments:**

    - `transformation`: for instance `optax.adam(0.05)`. A learning rate acts on unconstrained coordinates: for
        `Positive` leaves 0.05 is about 5 % a step under Adam. One that takes further arguments is given the
        `value`, infinite where an evaluation did not succeed.
    """

    needs_accuracy: ClassVar[bool] = False
    needs_determinism: ClassVar[bool] = False

    transformation: optax.GradientTransformation

    def init(self, hyper: PyTree) -> PyTree:
        return self.transformation.init(hyper)

    def step(self, objective: AbstractObjective, hyper: PyTree, search_state: PyTree, objective_state: PyTree) -> Move:
        hypergradient, objective_state = objective.value_and_grad(hyper, objective_state)
        value = jnp.where(succeeded(hypergradient.result), hypergradient.value, jnp.inf)
        given = hypergradient.grad, value
        hyper, search_state = _update(self.transformation, given, search_state, hyper)
        return Move(hypergradient, hyper, search_state, objective_state)


@eqx.filter_jit
def _update(
    transformation: optax.GradientTransformation, given: tuple[PyTree, Array], state: PyTree, hyper: PyTree
) -> tuple[PyTree, PyTree]:
    grad, value = given
    with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes, whatever the user has set
        updates, state = optax.with_extra_args_support(transformation).update(grad, state, hyper, value=value)
        return optax.apply_updates(hyper, updates), state
