"""Strided convolutions as products of matrices, on CPUs.

The derivative of a strided convolution with respect to its input is a convolution of an input dilated with zeros. XLA
on CPUs has no fast program for it: in the second-order product of a small network it takes three quarters of the time.
With the windows of the input as the rows of a matrix, derivatives of every order are products, slices and paddings, all
of which are fast, in compiled loops too. With strides of 1, XLA's own convolution is as fast as a product outside of
loops, and stays.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from .._jaxprs import bind, equations, run

CONVOLUTION = "conv_general_dilated"
REMATERIALISED = ("remat2", "checkpoint", "remat")
"""The names that `jax.checkpoint` has had."""
LARGEST = 1 << 22
"""The most numbers in the windows of one convolution: beyond it they leave the caches, and a product gains nothing."""


def strided_as_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees of arrays, with its strided convolutions as products where the platform is a CPU."""
    if jax.default_backend() != "cpu":
        return function

    def rewritten(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = run(closed.jaxpr, closed.consts, jax.tree.leaves(args), _equation)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def convolves(jaxpr: Any) -> bool:
    """Whether a jaxpr, or any inside it, holds a convolution."""
    return any(eqn.primitive.name == CONVOLUTION for eqn in equations(jaxpr))


def _equation(eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name == CONVOLUTION and _slow(eqn):
        return [_product(eqn, *inputs)]
    if name in ("jit", *REMATERIALISED) and any(e.primitive.name == CONVOLUTION for e in equations(_body(eqn))):
        inner = params["jaxpr"]

        def called(*inputs: Any) -> list[Any]:
            return run(_body(eqn), getattr(inner, "consts", ()), inputs, _equation)

        if name in REMATERIALISED:
            called = jax.checkpoint(called, prevent_cse=params["prevent_cse"], policy=params["policy"])
        return called(*inputs)
    return bind(eqn, inputs)


def _body(eqn: JaxprEqn) -> Any:
    return getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])


def _type(variable: Any) -> Any:
    return variable.aval


def _slow(eqn: JaxprEqn) -> bool:
    """Whether its derivative is slow in XLA and its windows are small enough for a product."""
    params, x, kernel, out = eqn.params, *map(_type, (*eqn.invars, *eqn.outvars))
    spec = params["dimension_numbers"]
    window = math.prod(kernel.shape) // max(1, kernel.shape[spec.rhs_spec[0]])
    places = math.prod(out.shape) // max(1, out.shape[spec.out_spec[1]])
    return (
        max(params["window_strides"], default=1) > 1
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and jnp.issubdtype(x.dtype, jnp.floating)
        and 0 < window * places <= LARGEST
    )


def _product(eqn: JaxprEqn, x: Array, kernel: Array) -> Array:
    """The windows of x, dimensions (batch, place, window, ..., place, window, channel), times the kernel.

    Windows are cut along one axis after the other: fewer and longer pieces than all offsets at once.
    """
    params, out = eqn.params, _type(eqn.outvars[0])
    lhs, rhs, result = params["dimension_numbers"]
    rank = len(params["window_strides"])
    x = lax.transpose(x, (lhs[0], *lhs[2:], lhs[1]))
    margins = [(*pair, step - 1) for pair, step in zip(params["padding"], params["lhs_dilation"], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    for d, (stride, step) in enumerate(zip(params["window_strides"], params["rhs_dilation"], strict=True)):
        axis, width = 1 + 2 * d, kernel.shape[rhs[2 + d]]
        reach = stride * (out.shape[result[2 + d]] - 1) + 1
        pieces = [lax.slice_in_dim(x, i * step, i * step + reach, stride, axis) for i in range(width)]
        x = jnp.stack(pieces, axis)
    windows, channels = [1 + 2 * d for d in range(rank)], x.ndim - 1
    places = (0, *(i + 1 for i in windows))
    x = lax.transpose(x, (*places, *windows, channels))
    kernel = lax.transpose(kernel, (*rhs[2:], rhs[1], rhs[0]))
    made = lax.dot_general(
        x.reshape(math.prod(x.shape[: rank + 1]), -1),
        kernel.reshape(-1, kernel.shape[-1]),
        (((1,), (0,)), ((), ())),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    made = made.reshape(*x.shape[: rank + 1], -1)
    order = (result[0], *result[2:], result[1])  # of the dimensions of `made` in the result
    return lax.transpose(made, tuple(order.index(i) for i in range(made.ndim)))
