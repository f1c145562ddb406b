"""A training run: where it starts, what it minimises, how it moves, for how long."""

import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Integer, PyTree

from .._objective import described
from ._optimizer import AbstractOptimizer, check_hyperparameter, check_stateless, transformed


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
    - `state`: `state(params, hyper)`, a pytree of arrays m_0, from the weights w_0, for a loss that carries more than
        weights from step to step: running statistics, averages of the weights, what else it computes. Then it is
        `loss(params, hyper, batch, state)`, after the key if there is one, and returns (scalar, m_{t+1}), of the same
        shapes and dtypes. `outer_loss` and `metrics` take the state as their last argument. It is differentiated.
    - `transform`: `transform(hyper)`, a transformation of optax that keeps no state, by which every gradient goes
        before it reaches the optimizer: clipping, centralisation, `optax.stateless(f)`. In every mode.
    - `microbatches`: k; where k > 1, a gradient is the mean of those of k equal parts of the batch along the first axis
        of its arrays, one after the other, in the memory of one. Part j has the key `fold_in(key of the step, j)`.
    - `metrics`: `metrics(params, hyper, batch)`, any pytree of arrays, recorded at the steps 0, every, 2 every, ...,
        from the weights before the step.
    - `every`: the steps between two records of the metrics.

    **Raises:** `ValueError` for what is no function, and steps, microbatches or every that are no integers or below 1.
    """

    loss: Callable[..., Any]
    init: Callable[[PyTree, Array], PyTree]
    optimizer: Callable[[PyTree], AbstractOptimizer]
    batches: Callable[[Integer[ArrayLike, ""]], Any]
    steps: int = eqx.field(static=True)
    keyed: bool = eqx.field(static=True)
    state: Callable[[PyTree, PyTree], PyTree] | None
    transform: Callable[[PyTree], optax.GradientTransformation] | None
    microbatches: int = eqx.field(static=True)
    metrics: Callable[..., PyTree] | None
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
        state: Callable[[PyTree, PyTree], PyTree] | None = None,
        transform: Callable[[PyTree], optax.GradientTransformation] | None = None,
        microbatches: SupportsIndex = 1,
        metrics: Callable[..., PyTree] | None = None,
        every: SupportsIndex = 1,
    ):
        needed = {"loss": loss, "init": init, "optimizer": optimizer}
        optional = {"state": state, "transform": transform, "metrics": metrics}
        for name, thing in (needed | {name: x for name, x in optional.items() if x is not None}).items():
            if not callable(thing):
                raise ValueError(f"Training: {name} must be a function; got {described(thing)}.")
        if not callable(batches):
            raise ValueError(
                "Training: batches must be a function of the step, such as hx.Minibatches(data, batch_size, key=key) "
                f"or hx.FullBatch(data); got {described(batches)}. A step is made more than once, so its batch must be "
                "had at any time: what is iterated over, as a DataLoader, cannot give it."
            )
        self.steps, self.every = _count("steps", steps), _count("every", every)
        self.state, self.transform, self.microbatches = state, transform, _count("microbatches", microbatches)
        self.loss, self.init, self.optimizer, self.batches = loss, init, optimizer, batches
        self.keyed, self.metrics, self.static = keyed, metrics, None

    def prepared(self, hyper: PyTree, key: Array) -> "Training":
        """This training with the functions among its weights set aside."""
        static = _not_arrays(self.init, hyper, key)
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

    def model(self, params: PyTree, hyper: PyTree) -> PyTree:
        """m_0, the state of the model beside its weights; `None` where there is none."""
        if self.state is None:
            return None
        numbers = int | float
        made = self.state(self.whole(params), hyper)
        return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, numbers) else x, made)

    def pieces(self, t: Integer[ArrayLike, ""], key: Array) -> tuple[Any, Array | None]:
        """The batch of step t and its key, for a run with the key `key`; stacked microbatches where there are any."""
        batch, parts = self.batches(t), self.microbatches
        at = jax.random.fold_in(jax.random.split(key)[1], t) if self.keyed else None
        if parts == 1:
            return batch, at
        cut = jax.tree.map(lambda leaf: leaf.reshape(parts, leaf.shape[0] // parts, *leaf.shape[1:]), batch)
        return cut, None if at is None else jax.vmap(lambda j: jax.random.fold_in(at, j))(jnp.arange(parts))

    def piece_loss(
        self, params: PyTree, model: PyTree, hyper: PyTree, batch: Any, key: Array | None
    ) -> tuple[Float[Array, ""], PyTree]:
        """The loss of a batch or microbatch, and the state after it."""
        arguments = (self.whole(params), hyper, batch, *(() if key is None else (key,)))
        return (self.loss(*arguments), None) if self.state is None else self.loss(*arguments, model)

    def step_loss(
        self, params: PyTree, model: PyTree, hyper: PyTree, t: Integer[ArrayLike, ""], key: Array
    ) -> tuple[Float[Array, ""], PyTree]:
        """The loss of step t and the state after it, for a run with the key `key`."""
        batch, at = self.pieces(t, key)
        if self.microbatches == 1:
            return self.piece_loss(params, model, hyper, batch, at)

        def part(model: PyTree, piece: tuple[Any, Array | None]) -> tuple[PyTree, Array]:
            value, after = self.piece_loss(params, model, hyper, *piece)
            return jax.tree.map(strong, after), value

        model, values = jax.lax.scan(part, model, (batch, at))
        return jnp.mean(values), model

    def transformed(self, grads: PyTree, params: PyTree, hyper: PyTree) -> PyTree:
        """The gradient as the optimizer gets it."""
        return grads if self.transform is None else transformed(self.transform(hyper), grads, params)

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
        if self.transform is not None:
            check_stateless("Training: transform", eqx.filter_eval_shape(self.transform, hyper), params)
        model = self._check_model(params, hyper)
        if self.microbatches > 1:
            check_divisible(jax.eval_shape(self.batches, jnp.asarray(0)), self.microbatches)
        self._check_loss(params, model, hyper, key)
        if self.metrics is not None:
            jax.eval_shape(self.measured, params, model, hyper, jnp.asarray(0))

    def measured(self, params: PyTree, model: PyTree, hyper: PyTree, t: Integer[ArrayLike, ""]) -> PyTree:
        """The metrics of step t."""
        assert self.metrics is not None
        return self.metrics(self.whole(params), hyper, self.batches(t), *(() if self.state is None else (model,)))

    def _check_model(self, params: PyTree, hyper: PyTree) -> PyTree:
        if self.state is None:
            return None
        model = eqx.filter_eval_shape(self.model, params, hyper)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model):
            if not isinstance(leaf, jax.ShapeDtypeStruct) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
                got = leaf.dtype if isinstance(leaf, jax.ShapeDtypeStruct) else described(leaf)
                raise ValueError(
                    f"Training: state must return a pytree of arrays of numbers; got {got} at state"
                    f"{jax.tree_util.keystr(path)}. Of an Equinox module take eqx.filter(module, eqx.is_array); for "
                    "random keys, say keyed=True."
                )
        if model is None:
            raise ValueError("Training: state must return a pytree of arrays; got None.")
        return jax.eval_shape(lambda model: jax.tree.map(strong, model), model)

    def _check_loss(self, params: PyTree, model: PyTree, hyper: PyTree, key: Array) -> None:
        """**Raises:** `ValueError` for a loss that does not return what it must."""
        zero = jnp.asarray(0)

        def once(params: PyTree, model: PyTree, hyper: PyTree) -> Any:
            batch, at = self.pieces(zero, key)
            if self.microbatches > 1:
                batch, at = jax.tree.map(lambda leaf: leaf[0], (batch, at))
            arguments = (self.whole(params), hyper, batch, *(() if at is None else (at,)))
            return self.loss(*arguments, *(() if self.state is None else (model,)))

        made = jax.eval_shape(once, params, model, hyper)
        if self.state is None:
            check_scalar("Training: loss", made)
            return
        if not (isinstance(made, tuple) and len(made) == 2):
            raise ValueError(
                f"Training: loss must return (one floating number, the next state) where there is a state; got "
                f"{jax.tree.structure(made)}."
            )
        check_scalar("Training: loss", made[0])
        before, after = (jax.tree_util.tree_leaves_with_path(x) for x in (model, made[1]))
        if jax.tree.structure(model) != jax.tree.structure(made[1]):
            raise ValueError(
                f"Training: loss must return a state of the structure that state(params, hyper) has, "
                f"{jax.tree.structure(model)}; got {jax.tree.structure(made[1])}."
            )
        for (path, a), (_, b) in zip(before, after, strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise ValueError(
                    f"Training: loss must keep shapes and dtypes of the state; at state{jax.tree_util.keystr(path)} it "
                    f"turns {a.dtype}{list(a.shape)} into {b.dtype}{list(b.shape)}."
                )


@eqx.filter_jit
def _not_arrays(init: Callable[[PyTree, Array], PyTree], hyper: PyTree, key: Array) -> PyTree:
    """What of the weights is no array. Compiled, so that `init` is looked through once."""
    made = eqx.filter_eval_shape(init, hyper, jax.random.split(key)[0])
    return eqx.filter(made, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))


def strong(leaf: Any) -> Array:
    """The leaf without a weak type: it would not survive a step, and a loop must end with what it began with."""
    leaf = jnp.asarray(leaf)
    return jnp.asarray(leaf, dtype=leaf.dtype)


def check_divisible(batch: Any, parts: int) -> None:
    """**Raises:** `ValueError` for a batch that cannot be cut into so many equal parts."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if leaf.ndim == 0 or leaf.shape[0] % parts:
            raise ValueError(
                f"Training: microbatches must divide the first axis of every array of a batch; got {parts} for "
                f"batch{jax.tree_util.keystr(path)} of shape {leaf.shape}."
            )


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
