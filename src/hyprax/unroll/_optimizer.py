"""Optimisers of the weights: a step in floating point, and what the shapes of their hyperparameters stand for."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from equinox import Module
from jax.extend.core import Literal, jaxprs_in_params
from jaxtyping import Array, ArrayLike, Integer, PyTree

from .._objective import described
from ._at_zero import differentiable_at_zero


class Schedule(Module):
    """A hyperparameter of an optimiser that changes from step to step: entry t is that of step t, t = 0..T-1.

    Called with t it gives that entry, so it is a schedule of optax too:
    `optax.adam(hx.unroll.Schedule(hyper["rate"]))`.

    **Arguments:**

    - `values`: an array of shape [T], T the steps of the training; or a pytree of such, one leaf a group of weights.

    **Raises:** `ValueError` for an array of another rank; before the run, for one of another length.
    """

    values: PyTree

    def __init__(self, values: PyTree):
        self.values = jax.tree.map(jnp.asarray, values)
        for leaf in jax.tree.leaves(self.values):
            if leaf.ndim != 1:
                raise ValueError(f"Schedule: values must have one entry a step, shape [T]; got shape {leaf.shape}.")

    def __call__(self, t: Integer[ArrayLike, ""]) -> PyTree[Array]:
        """The entry of step t. A slice: its transpose is an update in place, O(1) a step."""
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, jnp.asarray(t), keepdims=False), self.values)


class PerWeight(Module):
    """A hyperparameter of an optimiser that differs from weight to weight, as a learning rate in Meta-SGD.

    With [`hyprax.unroll.Reversible`][] only a learning rate may be one, of an optimizer without weight decay.

    **Arguments:**

    - `values`: a pytree of arrays in the structure and shapes of the weights, or of the group in whose place it stands.

    **Raises:** `ValueError`, before the run, for other shapes.
    """

    values: PyTree

    def __init__(self, values: PyTree):
        self.values = jax.tree.map(jnp.asarray, values)


def is_said(x: Any) -> bool:
    """Whether it says what its entries stand for."""
    return isinstance(x, Schedule | PerWeight)


def lookup(value: PyTree, t: Integer[ArrayLike, ""], params: PyTree = None) -> PyTree[Array]:
    """The value at step `t` of a hyperparameter of an optimiser: a number, a `Schedule`, a `PerWeight`, a tree of
    those.

    **Arguments:**

    - `value`: the hyperparameter; of a tree, one leaf a group: a prefix of the tree of weights.
    - `t`: the step.
    - `params`: the weights: then the value comes as one array a leaf of the weights, in its dtype, a scalar or of its
        shape. Without, it comes in the structure of `value`.
    """

    def at(leaf: Any) -> Any:
        if isinstance(leaf, Schedule):
            return leaf(t)
        return leaf if isinstance(leaf, PerWeight) else jnp.asarray(leaf)

    found = jax.tree.map(at, value, is_leaf=is_said)
    return found if params is None else per_leaf(found, params)


def per_leaf(value: PyTree, params: PyTree) -> PyTree[Array]:
    """`value`, numbers and `PerWeight`s in a prefix of the tree `params`, as one array a leaf of it, in its dtype."""

    def cast(x: Any, leaf: Any) -> Array:
        return jnp.asarray(x).astype(jnp.asarray(leaf).dtype)

    def spread(x: Any, group: PyTree) -> PyTree[Array]:
        if isinstance(x, PerWeight):
            return jax.tree.map(cast, x.values, group)
        return jax.tree.map(lambda leaf: cast(x, leaf), group)

    return jax.tree.map(spread, value, params, is_leaf=is_said)


def check_hyperparameter(name: str, value: PyTree, params: PyTree, steps: int, *, said: bool) -> None:
    """Look at shapes alone; `said`: whether a plain array is refused, which could be a schedule or one entry a weight.

    **Raises:** `ValueError` in the name of the hyperparameter.
    """
    for leaf in jax.tree.leaves(value, is_leaf=is_said):
        if isinstance(leaf, Schedule):
            for entries in jax.tree.leaves(leaf):
                if entries.shape != (steps,):
                    raise ValueError(
                        f"{name}: a Schedule must have one entry a step; got {entries.shape[0]} entries for {steps} "
                        "steps."
                    )
        elif said and not isinstance(leaf, PerWeight) and getattr(leaf, "ndim", 0):
            raise ValueError(
                f"{name} must be a number, hx.unroll.Schedule(x) with one entry a step, or hx.unroll.PerWeight(x) with "
                f"one entry a weight; got an array of shape {leaf.shape}, which could be either."
            )
    if not said:
        return
    try:
        spread = jax.eval_shape(lambda value, params: lookup(value, 0, params), value, params)
        fits = all(
            x.shape in ((), leaf.shape)
            for x, leaf in zip(jax.tree.leaves(spread), jax.tree.leaves(params), strict=True)
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be a number, or a prefix of the tree of weights with a number for each group; got "
            f"{jax.tree.structure(value, is_leaf=is_said)} for the weights {jax.tree.structure(params)}."
        ) from error
    if not fits:
        raise ValueError(f"{name}: a PerWeight must have the shapes of the weights whose place it takes.")


class AbstractOptimizer(Module):
    """(w_{t+1}, s_{t+1}) = U(g_t, s_t, w_t, t): how a training run moves its weights.

    Hyperparameters (learning rates, momenta, decays) are fields, each a number, a [`hyprax.unroll.Schedule`][], a
    [`hyprax.unroll.PerWeight`][], or a pytree of those with one leaf a group of weights: a prefix of the tree of
    weights. All of them are differentiated.
    """

    said: ClassVar[bool] = False
    """Whether plain arrays of one entry or more are refused, which could be schedules or one entry a weight."""
    takes_loss: ClassVar[bool] = False
    """Whether `update` takes the loss of the step, a function of the weights, as a fifth argument."""

    def hyperparameters(self) -> dict[str, PyTree]:
        """The hyperparameters by name, whose shapes are looked at before a run: the fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

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
    `optax.adam(hx.unroll.Schedule(hyper["lr"]))`. It works with every mode but `Reversible`, which needs optimisers
    that can be undone.

    **Arguments:**

    - `transformation`: an `optax.GradientTransformation`.

    Where a gradient has always been 0 (a pixel that is always 0, a unit that is never active), √s of Adam and its kin
    has no derivative, and JAX would give nan. Square roots of 0, and quotients 0/b with b below the square root of the
    dtype's precision, count as constants when an update is differentiated: such a weight does not move, at any
    hyperparameters. So do products of 0 with roots in the denominator, as Adafactor has them; and 0/0 is 0.

    A transformation that asks for more is given `value`, `grad` and `value_fn`, the loss of the step as a function of
    the weights, and differentiated through them. One that searches along a line takes
    [`hyprax.unroll.ForwardMode`][]: through a loop of no fixed length no derivative goes backwards.
    """

    transformation: optax.GradientTransformation

    takes_loss: ClassVar[bool] = True

    def init(self, params: PyTree) -> PyTree:
        return self.transformation.init(params)

    def update(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        t: Integer[ArrayLike, ""],
        value_fn: Callable[[PyTree], Array] | None = None,
    ) -> tuple[PyTree, PyTree]:
        asks = isinstance(self.transformation, optax.GradientTransformationExtraArgs)
        value = value_fn(params) if asks and value_fn is not None else None

        def update(grads: PyTree, state: PyTree, params: PyTree, value: Array | None) -> tuple[PyTree, PyTree]:
            more = {} if value is None else {"value": value, "grad": grads, "value_fn": value_fn}
            return self.transformation.update(grads, state, params, **more)

        with jax.numpy_dtype_promotion("standard"):  # optax itself mixes dtypes, whatever the user has set
            updates, state = differentiable_at_zero(update)(grads, state, params, value)
            return optax.apply_updates(params, updates), state


def transformed(transformation: optax.GradientTransformation, grads: PyTree, params: PyTree) -> PyTree:
    """The gradient as a transformation without a state makes it, in its own dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        state = transformation.init(params)
        made = differentiable_at_zero(lambda g, w: transformation.update(g, state, w)[0])(grads, params)
    return jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), made, grads)


def check_stateless(name: str, transformation: Any, params: PyTree) -> None:
    """**Raises:** `ValueError` for what is no transformation of optax, or one that keeps a state."""
    if not isinstance(transformation, optax.GradientTransformation):
        raise ValueError(
            f"{name} must return a transformation of optax, such as optax.clip_by_global_norm(1.0) or "
            f"optax.stateless(f); got {described(transformation)}."
        )
    if jax.tree.leaves(jax.eval_shape(transformation.init, params)):
        raise ValueError(
            f"{name} must return a transformation that keeps no state from step to step; got one with a state. Chain "
            "it with the optimizer: hx.unroll.OptaxOptimizer(optax.chain(...))."
        )


def other_lengths(jaxpr: Any, steps: int) -> list[int]:
    """The lengths, other than `steps`, of vectors of which an update of optax takes the entry of its own count.

    An entry of a position that was computed, such as that of an epoch, is the user's own affair.
    """
    found = []
    for eqn in jaxpr.eqns:
        for inner in jaxprs_in_params(eqn.params):
            found += other_lengths(inner, steps)
        if eqn.primitive.name not in ("dynamic_slice", "gather") or eqn.outvars[0].aval.size != 1:
            continue
        vector, place = eqn.invars[0], eqn.invars[1]
        floating = jnp.issubdtype(vector.aval.dtype, jnp.floating)
        if floating and vector.aval.ndim == 1 and vector.aval.size != steps and _is_a_count(jaxpr, place):
            found.append(vector.aval.size)
    return found


def _is_a_count(jaxpr: Any, variable: Any) -> bool:
    """Whether an integer comes from outside without being multiplied or divided: by itself, or wrapped if negative."""
    made = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    waiting, seen = [variable], set()
    while waiting:
        x = waiting.pop()
        if isinstance(x, Literal) or x not in made or x in seen:
            continue
        seen.add(x)
        if made[x].primitive.name in ("div", "rem", "mul", "jit", "floor", "shift_right_arithmetic"):
            return False
        waiting += made[x].invars
    return not isinstance(variable, Literal)
