"""A training run: where it starts, what it minimises, how it moves, for how long."""

import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer, PyTree

from .._objective import described
from ._optimizer import AbstractOptimizer, check_hyperparameter


class Training(eqx.Module):
    """A training run of T steps: w_0 = init(λ, key_0), (w_{t+1}, s_{t+1}) = U_λ(∇_w loss(w_t, λ, batch_t), s_t, w_t,
    t).

    Everything random is a function of t alone, so that any step can be made again at any time, in either direction:
    `key_0, key_1 = jax.random.split(key)`, the batch of step t is `batches(t)`, its key `fold_in(key_1, t)`.

    **Arguments:**

    - `loss`: a pure function `loss(params, hyper, batch)` to a scalar, hyper in natural units; with `keyed=True` it is
        `loss(params, hyper, batch, key)`, for dropout and augmentation.
    - `init`: `init(hyper, key)`, the weights w_0: any pytree of floating arrays, or an Equinox module, whose functions
        are set aside (what is returned as weights then holds its arrays alone: `eqx.combine` joins them again).
    - `optimizer`: `optimizer(hyper)`, a [`hyprax.unroll.AbstractOptimizer`][].
    - `batches`: `batches(t)`, the batch of step t, for instance [`hyprax.Minibatches`][] or [`hyprax.FullBatch`][];
        `t` is a traced integer. A closure works, but what it holds is copied into every compiled program.
    - `steps`: T, an integer >= 1.
    - `keyed`: whether the loss takes a key.
    - `metrics`: `metrics(params, hyper, batch)`, any pytree of arrays, recorded at the steps 0, every, 2 every, ...,
        from the weights before the step.
    - `every`: the steps between two records of the metrics.

    **Raises:** `ValueError` for what is no function, and steps or every that are no integers or below 1.
    """

    loss: Callable[..., Float[Array, ""]]
    init: Callable[[PyTree, Array], PyTree]
    optimizer: Callable[[PyTree], AbstractOptimizer]
    batches: Callable[[Integer[ArrayLike, ""]], Any]
    steps: int = eqx.field(static=True)
    keyed: bool = eqx.field(static=True)
    metrics: Callable[[PyTree, PyTree, Any], PyTree] | None
    every: int = eqx.field(static=True)
    static: PyTree
    """What of the weights is no array, once `prepared` has looked; `None` for plain arrays."""

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
        for name, thing in (("loss", loss), ("init", init), ("optimizer", optimizer)):
            if not callable(thing):
                raise ValueError(f"Training: {name} must be a function; got {described(thing)}.")
        if not callable(batches):
            raise ValueError(
                "Training: batches must be a function of the step, such as hx.Minibatches(data, batch_size, key=key) "
                f"or hx.FullBatch(data); got {described(batches)}. A step is made more than once, so its batch must be "
                "had at any time: what is iterated over, as a DataLoader, cannot give it."
            )
        self.steps, self.every = _count("steps", steps), _count("every", every)
        self.loss, self.init, self.optimizer, self.batches = loss, init, optimizer, batches
        self.keyed, self.metrics, self.static = keyed, metrics, None

    def prepared(self, hyper: PyTree, key: Array) -> "Training":
        """This training with the functions among its weights set aside."""
        made = eqx.filter_eval_shape(self.init, hyper, jax.random.split(key)[0])
        static = eqx.filter(made, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))
        if all(isinstance(leaf, int | float) for leaf in jax.tree.leaves(static)):
            return self
        return eqx.tree_at(lambda training: training.static, self, static, is_leaf=lambda x: x is None)

    def whole(self, params: PyTree) -> PyTree:
        """The weights as `init` gives them, functions included: what user functions see."""
        return params if self.static is None else eqx.combine(params, self.static)

    def start(self, hyper: PyTree, key: Array) -> PyTree:
        """w_0 for a run with this key."""
        params = self.init(hyper, jax.random.split(key)[0])
        return params if self.static is None else eqx.filter(params, eqx.is_array)

    def step_loss(self, params: PyTree, hyper: PyTree, t: Integer[ArrayLike, ""], key: Array) -> Float[Array, ""]:
        """loss(params, hyper, batch_t), with the key of step t, for a run with the key `key`."""
        batch = self.batches(t)
        if not self.keyed:
            return self.loss(self.whole(params), hyper, batch)
        return self.loss(self.whole(params), hyper, batch, jax.random.fold_in(jax.random.split(key)[1], t))

    def reseeded(self, key: Array) -> "Training":
        """The same run with its examples visited in an order made from `key`, where the batches can be reseeded."""
        reseeded = getattr(self.batches, "reseeded", None)
        return self if reseeded is None else eqx.tree_at(lambda training: training.batches, self, reseeded(key))

    def check(self, hyper: PyTree, key: Array) -> None:
        """Look at shapes and types alone.

        **Raises:** `ValueError` for weights that are not floating, an optimizer of another type, hyperparameters of it
        whose shapes do not fit, or a loss that is not a floating scalar.
        """
        params = jax.eval_shape(self.start, hyper, key)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        if not leaves:
            raise ValueError("Training: init must return a pytree with at least one array; got none.")
        for path, leaf in leaves:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"Training: init must return floating arrays; got {leaf.dtype} at params"
                    f"{jax.tree_util.keystr(path)}. Keep integers and masks in the loss."
                )
        optimizer = eqx.filter_eval_shape(self.optimizer, hyper)
        if not isinstance(optimizer, AbstractOptimizer):
            raise ValueError(
                "Training: optimizer(hyper) must be an hx.unroll.AbstractOptimizer, such as hx.unroll.Adam; got "
                f"{described(optimizer)}. Wrap one of optax in hx.unroll.OptaxOptimizer."
            )
        for name, value in optimizer.hyperparameters().items():
            check_hyperparameter(f"{type(optimizer).__name__}: {name}", value, params, self.steps, said=optimizer.said)
        check_scalar("Training: loss", jax.eval_shape(self.step_loss, params, hyper, jnp.asarray(0), key))
        if self.metrics is not None:
            metrics = self.metrics
            jax.eval_shape(lambda p, h, t: metrics(self.whole(p), h, self.batches(t)), params, hyper, jnp.asarray(0))


def check_scalar(name: str, value: Any) -> None:
    """**Raises:** `ValueError` for a loss that is not one floating number."""
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        got = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", value) if jax.tree.leaves(value) else value
        raise ValueError(f"{name} must return one floating number; got {got}.")


def _count(name: str, value: SupportsIndex) -> int:
    """**Raises:** `ValueError` for what is no integer from 1 to 2^31 - 1: in loops a step is an int32."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number < 2**31:
        raise ValueError(f"Training: {name} must be an integer from 1 to 2**31 - 1; got {value!r}.")
    return number


def scan_blocks(block: Callable[[PyTree, Any], Any], params: PyTree, x: Any) -> Any:
    """Deep models in the memory of one block: x ← block(params[i], x) for i = 0..n-1, each made again when needed.

    Between steps of a training nothing of a step is kept, but within one its activations are: those of n blocks. Here
    only the inputs of the blocks are, and the activations of one block: about one more forward pass for memory n times
    smaller. A loop is needed: outside one, XLA on CPUs merges what is made again with what was made before.

    **Arguments:**

    - `block`: `block(params_i, x)`, to the same shapes and dtypes as x.
    - `params`: a pytree of arrays with a common leading axis of length n.
    - `x`: a pytree of arrays.

    **Returns:** x after the last block.

    **Raises:** `ValueError` (by JAX) where the leading axes differ.
    """
    again = jax.checkpoint(block, prevent_cse=False)
    return jax.lax.scan(lambda x, params: (again(params, x), None), x, params)[0]
