"""Optimisers of the weights: one step in ordinary floating point, and how their hyperparameters are looked up."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
import optax
from equinox import Module
from jaxtyping import Array, ArrayLike, Integer, PyTree


def lookup(value: PyTree, t: Integer[ArrayLike, ""]) -> PyTree[Array]:
    """The value at step `t` of a hyperparameter: of every leaf of shape [T] its entry t, of every scalar itself.

    A slice and not a gather: its transpose is an update in place, so that the gradient with respect to a schedule of
    T entries is accumulated in O(1) a step.
    """

    def at(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return jax.lax.dynamic_index_in_dim(leaf, jnp.asarray(t), keepdims=False) if leaf.ndim == 1 else leaf

    return jax.tree.map(at, value)


def per_leaf(value: PyTree[Array], params: PyTree) -> PyTree[Array]:
    """`value`, a scalar or a prefix of the tree `params` (one scalar a group), as one scalar a leaf of `params`.

    Each scalar has the dtype of its leaf.
    """

    def spread(scalar: Array, group: PyTree) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: jnp.asarray(scalar).astype(jnp.asarray(leaf).dtype), group)

    return jax.tree.map(spread, value, params)


class AbstractOptimizer(Module):
    """(w_{t+1}, s_{t+1}) = U(g_t, s_t, w_t, t): how a training run moves its weights.

    Hyperparameters (learning rates, momenta, decays) are fields, each a scalar, a schedule of shape [T] (its entry t is
    that of step t), or a pytree of those with one leaf a group of weights: a prefix of the tree of weights. All of them
    are differentiated.
    """

    @abc.abstractmethod
    def init(self, params: PyTree) -> PyTree:
        """s_0, a pytree of arrays."""

    @abc.abstractmethod
    def update(self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        """The weights and the state after step `t`, from the gradient, state and weights before it."""


class OptaxOptimizer(AbstractOptimizer):
    """w_{t+1} = w_t + u_t, (u_t, s_{t+1}) = transformation.update(g_t, s_t, w_t): any optimiser of optax.

    Its hyperparameters are whatever the transformation was built from:
    `optimizer=lambda hyper: hx.unroll.OptaxOptimizer(optax.adam(hyper["lr"]))`, or, for a schedule of shape [T],
    `optax.adam(lambda count: hyper["lr"][count])`. It works with every mode but `Reversible`, which needs optimisers
    that can be undone.

    **Arguments:**

    - `transformation`: an `optax.GradientTransformation`.
    """

    transformation: optax.GradientTransformation

    def init(self, params: PyTree) -> PyTree:
        return self.transformation.init(params)

    def update(self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes, whatever the user has set
            updates, state = self.transformation.update(grads, state, params)
            return optax.apply_updates(params, updates), state
