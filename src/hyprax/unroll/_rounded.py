"""A training run with fewer bits in every number that it computes: what rounding does to it, made larger."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Integer, PyTree

from .._jaxprs import bind, run
from ._given import MOVES
from ._mode import Outer
from ._optimizer import AbstractOptimizer
from ._training import Training


def shortened(x: Any, dropped: int) -> Any:
    """x with so many bits of its mantissa rounded away; its range stays. Linear in the eyes of JAX."""
    if not eqx.is_inexact_array(x) or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    kind = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, exponent_bits=kind.nexp, mantissa_bits=max(kind.nmant - dropped, 2))


def shortened_function(function: Callable[..., Any], dropped: int) -> Callable[..., Any]:
    """`function` of pytrees, every number that it computes shortened, and so those of its derivatives.

    Data and moves are left as they are; what stands in a function with a derivative of its own is shortened at its
    outputs alone.
    """

    def equation(eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        name, params = eqn.primitive.name, eqn.params
        if name == "jit":
            return run(params["jaxpr"].jaxpr, params["jaxpr"].consts, inputs, equation)
        if name == "cond":
            branches = [lambda *rest, b=b: run(b.jaxpr, b.consts, rest, equation) for b in params["branches"]]
            return jax.lax.switch(inputs[0], branches, *inputs[1:])
        if name == "scan":
            body, fixed, carried = params["jaxpr"], params["num_consts"], params["num_carry"]

            def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
                made = run(body.jaxpr, body.consts, [*inputs[:fixed], *carry, *slices], equation)
                return made[:carried], made[carried:]

            start, slices = inputs[fixed : fixed + carried], inputs[fixed + carried :]
            carry, rows = lax.scan(step, start, slices, params["length"], params["reverse"], params["unroll"])
            return [*carry, *rows]
        outputs = bind(eqn, inputs)
        exact = name in MOVES or name in ("convert_element_type", "neg", "iota", "bitcast_convert_type")
        return outputs if exact else [shortened(x, dropped) for x in outputs]

    def shorter(*args: Any) -> Any:
        arrays, rest = eqx.partition(args, eqx.is_array)
        closed, shapes = jax.make_jaxpr(lambda arrays: function(*eqx.combine(arrays, rest)), return_shape=True)(arrays)
        outputs = run(closed.jaxpr, closed.consts, jax.tree.leaves(arrays), equation)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return shorter


class Shortened(eqx.Module):
    """A loss like another, with fewer bits."""

    function: Callable[..., Any]
    dropped: int = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        return shortened_function(self.function, self.dropped)(*args)


class ShortenedStart(eqx.Module):
    """Initial weights with fewer bits."""

    init: Callable[..., Any]
    dropped: int = eqx.field(static=True)

    def __call__(self, hyper: PyTree, key: Array) -> PyTree:
        return jax.tree.map(lambda x: shortened(x, self.dropped), self.init(hyper, key))


class ShortenedOptimizer(AbstractOptimizer):
    """An optimizer like another, with fewer bits."""

    optimizer: AbstractOptimizer
    dropped: int = eqx.field(static=True)

    takes_loss: ClassVar[bool] = True

    def init(self, params: PyTree) -> PyTree:
        return self.optimizer.init(params)

    def update(
        self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[Any, ""], value_fn: Any = None
    ) -> tuple[PyTree, PyTree]:
        more = (value_fn,) if self.optimizer.takes_loss else ()
        return shortened_function(self.optimizer.update, self.dropped)(grads, state, params, t, *more)


class ShortenedOptimizers(eqx.Module):
    """λ to an optimizer with fewer bits."""

    optimizer: Callable[[PyTree], AbstractOptimizer]
    dropped: int = eqx.field(static=True)

    def __call__(self, hyper: PyTree) -> AbstractOptimizer:
        return ShortenedOptimizer(self.optimizer(hyper), self.dropped)


def shortened_run(training: Training, outer: Outer, dropped: int) -> tuple[Training, Outer]:
    """The same run, and the same outer loss, with so many bits fewer."""
    parts = (
        Shortened(training.loss, dropped),
        ShortenedStart(training.init, dropped),
        ShortenedOptimizers(training.optimizer, dropped),
    )
    training = eqx.tree_at(lambda x: (x.loss, x.init, x.optimizer), training, parts)
    if training.state is not None:
        training = eqx.tree_at(lambda x: x.state, training, Shortened(training.state, dropped))
    return training, Outer(Shortened(outer.loss, dropped), outer.data, outer.static)
