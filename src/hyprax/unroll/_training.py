"""A training run: where it starts, what it minimises, how it moves, for how long."""

import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer, PyTree

from ._optimizer import AbstractOptimizer


class Training(eqx.Module):
    """w_0 = init(λ, key_0); (w_{t+1}, s_{t+1}) = U_λ(∇_w loss(w_t, λ, batch_t), s_t, w_t, t), t = 0..T-1.

    Everything random is a function of t alone, so that any step can be made again at any time, in either direction:
    `key_0, key_1 = jax.random.split(key)`, the batch of step t is `batches(t)`, its key `fold_in(key_1, t)`.

    **Arguments:**

    - `loss`: a pure function `loss(params, hyper, batch)` to a scalar, hyper in natural units; with `keyed=True` it is
        `loss(params, hyper, batch, key)`, for dropout and augmentation.
    - `init`: `init(hyper, key)`, the weights w_0, any pytree of floating arrays.
    - `optimizer`: `optimizer(hyper)`, a [`hyprax.unroll.AbstractOptimizer`][]; its hyperparameters may be schedules
        [T] and
        trees over groups of weights.
    - `batches`: `batches(t)`, the batch of step t, for instance [`hyprax.Minibatches`][] or [`hyprax.FullBatch`][];
        `t` is a traced integer. A closure works, but what it holds is copied into every compiled program.
    - `steps`: T, an integer >= 1.
    - `keyed`: whether the loss takes a key.
    - `metrics`: `metrics(params, hyper, batch)`, any pytree of arrays, recorded at the steps 0, every, 2 every, ...,
        from the weights before the step.
    - `every`: the steps between two records of the metrics.

    **Raises:** `ValueError` for steps or every below 1, `TypeError` for what is not an integer.
    """

    loss: Callable[..., Float[Array, ""]]
    init: Callable[[PyTree, Array], PyTree]
    optimizer: Callable[[PyTree], AbstractOptimizer]
    batches: Callable[[Integer[ArrayLike, ""]], Any]
    steps: int = eqx.field(static=True)
    keyed: bool = eqx.field(static=True)
    metrics: Callable[[PyTree, PyTree, Any], PyTree] | None
    every: int = eqx.field(static=True)

    def __init__(
        self,
        loss: Callable[..., Any],
        init: Callable[[PyTree, Array], PyTree],
        optimizer: Callable[[PyTree], AbstractOptimizer],
        batches: Callable[[Any], Any],
        steps: SupportsIndex,
        *,
        keyed: bool = False,
        metrics: Callable[[PyTree, PyTree, Any], PyTree] | None = None,
        every: SupportsIndex = 1,
    ):
        for name, thing in (("loss", loss), ("init", init), ("optimizer", optimizer), ("batches", batches)):
            if not callable(thing):
                raise ValueError(f"Training: given {name} of type {type(thing).__name__}, allowed are functions.")
        steps, every = operator.index(steps), operator.index(every)
        if not (1 <= steps < 2**31 and every >= 1):  # a step's number is an int32 inside compiled loops
            raise ValueError(
                f"Training: given steps {steps}, every {every}, allowed are steps from 1 to 2**31 - 1 and every >= 1."
            )
        self.loss, self.init, self.optimizer, self.batches = loss, init, optimizer, batches
        self.steps, self.keyed, self.metrics, self.every = steps, keyed, metrics, every

    def start(self, hyper: PyTree, key: Array) -> PyTree:
        """w_0 for a run with this key."""
        return self.init(hyper, jax.random.split(key)[0])

    def step_loss(self, params: PyTree, hyper: PyTree, t: Integer[ArrayLike, ""], key: Array) -> Float[Array, ""]:
        """loss(params, hyper, batch_t), with the key of step t, for a run with the key `key`."""
        batch = self.batches(t)
        if not self.keyed:
            return self.loss(params, hyper, batch)
        return self.loss(params, hyper, batch, jax.random.fold_in(jax.random.split(key)[1], t))

    def reseeded(self, key: Array) -> "Training":
        """The same run with its examples visited in an order made from `key`, where the batches can be reseeded."""
        reseeded = getattr(self.batches, "reseeded", None)
        return self if reseeded is None else eqx.tree_at(lambda training: training.batches, self, reseeded(key))

    def check(self, hyper: PyTree, key: Array) -> None:
        """Look at shapes and types alone.

        **Raises:** `ValueError` for weights that are not floating, an optimiser of another type, a schedule whose
        length is not `steps`, or a loss that is not a floating scalar.
        """
        params = jax.eval_shape(self.start, hyper, key)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        if not leaves:
            raise ValueError("Training: init gave a pytree without arrays, allowed is at least one.")
        for path, leaf in leaves:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"Training: init gave {leaf.dtype} at params{jax.tree_util.keystr(path)}, allowed are floats: "
                    "keep integers and masks in the loss."
                )
        optimizer = eqx.filter_eval_shape(self.optimizer, hyper)
        if not isinstance(optimizer, AbstractOptimizer):
            raise ValueError(
                f"Training: optimizer(hyper) gave {type(optimizer).__name__}, allowed are optimisers of hyprax: wrap "
                "one of optax in hx.unroll.OptaxOptimizer."
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(optimizer, _has_shape)):
            if leaf.shape not in ((), (self.steps,)):
                raise ValueError(
                    f"Training: given a hyperparameter of the optimiser, {jax.tree_util.keystr(path)}, of shape "
                    f"{leaf.shape}, allowed are scalars and schedules of shape ({self.steps},), one leaf a group."
                )
        value = jax.eval_shape(self.step_loss, params, hyper, jnp.asarray(0), key)
        if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"Training: the loss gave {value}, allowed is one floating scalar.")


def _has_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
