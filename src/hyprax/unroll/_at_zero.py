"""Updates that have a derivative where a gradient has always been 0: there a weight does not move, at any
hyperparameters."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array

from .._jaxprs import bind, run

SHAPES = ("broadcast_in_dim", "reshape", "squeeze", "transpose", "convert_element_type", "copy")


def smooth_root(x: Array) -> Array:
    """√x, with derivative 0 where x = 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.sqrt(jax.lax.stop_gradient(x)))


def smooth_ratio(a: Array, b: Array) -> Array:
    """a / b, with derivative 0 where a = 0 and |b| is below √eps: beside such a point it is a sign, not a quotient.

    0 / 0 is 0: without a gradient nothing moves.
    """
    flat = (a == 0) & (jnp.abs(b) < jnp.finfo(b.dtype).eps ** 0.5)
    safe = jnp.where(flat, jnp.ones_like(b), b)
    return jnp.where(flat, jax.lax.stop_gradient(a), _quotient(a, safe))


@jax.custom_jvp
def _quotient(a: Array, b: Array) -> Array:
    """a / b, with a derivative without b²: that underflows before a 0 meets it."""
    return a / b


@_quotient.defjvp
def _quotient_along(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    found = _quotient(a, b)
    return found, (da - found * db) / b


def smooth_product(a: Array, reciprocal: Array) -> Array:
    """The same of a · (1 / b)."""
    flat = (a == 0) & (jnp.abs(reciprocal) > jnp.finfo(reciprocal.dtype).eps ** -0.5)
    one = jnp.where(flat, jnp.ones_like(reciprocal), reciprocal)
    return jnp.where(flat, jax.lax.stop_gradient(a * reciprocal), a * one)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _negative_power(x: Array, exponent: float) -> Array:
    """x^p for p < 0, with a derivative whose factors do not overflow before a 0 meets them."""
    return jax.lax.pow(x, jnp.asarray(exponent, x.dtype))


@_negative_power.defjvp
def _power_along(exponent: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    power = _negative_power(x, exponent)
    return power, dx * power / x * jnp.asarray(exponent, x.dtype)


def differentiable_at_zero(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees of arrays, with its roots, quotients and reciprocals as above: the values but 0/0 stay."""

    def rewritten(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def _run(jaxpr: Any, consts: Any, inputs: Any) -> list[Any]:
    reciprocals = _reciprocals(jaxpr)
    return run(jaxpr, consts, inputs, lambda eqn, inputs: _equation(eqn, inputs, reciprocals))


def _exponent(eqn: Any) -> float | None:
    """The exponent of a power, where it is a negative constant."""
    if eqn.primitive.name != "pow" or not isinstance(eqn.invars[1], Literal):
        return None
    exponent = float(eqn.invars[1].val)
    return exponent if exponent < 0 else None


def _reciprocals(jaxpr: Any) -> set[Any]:
    """The variables that are negative powers or reciprocal roots, in whatever shape."""
    found = set()
    for eqn in jaxpr.eqns:
        shaped = eqn.primitive.name in SHAPES and not isinstance(eqn.invars[0], Literal) and eqn.invars[0] in found
        if eqn.primitive.name == "rsqrt" or _exponent(eqn) is not None or shaped:
            found |= set(eqn.outvars)
    return found


def _equation(eqn: Any, inputs: list[Any], reciprocals: set[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    floating = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating) if eqn.outvars else False
    if floating and name in ("sqrt", "div", "pow", "mul"):
        inputs = [jnp.asarray(x) for x in inputs]  # constants are arrays of NumPy
    if name == "sqrt" and floating:
        return [smooth_root(*inputs)]
    if name == "div" and floating:
        return [smooth_ratio(*inputs)]
    if floating and (exponent := _exponent(eqn)) is not None:
        return [_negative_power(inputs[0], exponent)]
    if name == "mul" and floating:
        for i in (0, 1):
            if not isinstance(eqn.invars[i], Literal) and eqn.invars[i] in reciprocals:
                return [smooth_product(inputs[1 - i], inputs[i])]
    if name == "jit":
        inner = params["jaxpr"]
        return _run(inner.jaxpr, inner.consts, inputs)
    if name == "cond":
        branches = [
            lambda *rest, branch=branch: _run(branch.jaxpr, branch.consts, rest) for branch in params["branches"]
        ]
        return jax.lax.switch(inputs[0], branches, *inputs[1:])
    return bind(eqn, inputs)
