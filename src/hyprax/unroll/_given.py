"""What JAX computes exactly on the way through a program in balls, and what a program costs in them."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from .._jaxprs import equations

MOVES = {
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev", "slice", "concatenate", "pad",
    "gather", "dynamic_slice", "dynamic_update_slice", "select_n", "copy", "copy_p", "stop_gradient",
    "optimization_barrier", "scatter", "split", "stack", "reduce_and", "reduce_or",
}  # fmt: skip
DRAWS = {
    "_ball", "_bernoulli", "_beta", "_cauchy", "_chisquare", "_dirichlet", "_double_sided_maxwell", "_exponential",
    "_f", "_gamma", "_generalized_normal", "_geometric", "_gumbel", "_laplace", "_logistic", "_maxwell",
    "_multivariate_normal", "_normal", "_normal_real", "_orthogonal", "_pareto", "_poisson", "_poisson_knuth",
    "_poisson_rejection", "_rademacher", "_randint", "_rayleigh", "_shuffle", "_t", "_truncated_normal", "_uniform",
    "_wald", "_weibull_min",
}  # fmt: skip
"""The names under which functions of `jax.random` are compiled."""


def floating(variable: Any) -> bool:
    """Whether a variable of a jaxpr is of a floating dtype, a complex one included: of numbers that are rounded."""
    return hasattr(variable.aval, "dtype") and jnp.issubdtype(variable.aval.dtype, np.inexact)


def shape_of(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def draws(eqn: JaxprEqn) -> bool:
    """Whether it is a call of `jax.random`: one of its names, random bits inside, no floating arrays."""
    if eqn.params.get("name") not in DRAWS or any(floating(v) and shape_of(v) for v in eqn.invars):
        return False
    names = (e.primitive.name for body in jaxprs_in_params(eqn.params) for e in equations(body))
    return any(name.startswith(("random_bits", "threefry")) for name in names)


def operations(jaxpr: Jaxpr) -> int:
    """How many multiplications and entries a program makes, about: loops by their length, `while` taken once."""
    total = 0
    for eqn in jaxpr.eqns:
        inside = sum(operations(body) for body in jaxprs_in_params(eqn.params))
        if inside:
            total += inside * eqn.params.get("length", 1)
        elif any(map(floating, eqn.outvars)):
            made = sum(math.prod(shape_of(v)) for v in eqn.outvars)
            if eqn.primitive.name == "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                made *= math.prod(shape_of(eqn.invars[0])[i] for i in contracted)
            total += made
    return total


def exact_in_jax(eqn: JaxprEqn) -> bool:
    """Whether JAX computes an equation exactly from given inputs: integers, moves, and draws, which are data."""
    bodies = list(jaxprs_in_params(eqn.params))
    if bodies and eqn.primitive.name != "scatter":
        inside = [e for body in bodies for e in equations(body)]
        return draws(eqn) or not any(floating(v) for e in inside for v in (*e.invars, *e.outvars))
    if not any(map(floating, eqn.outvars)):
        return not any(map(floating, eqn.invars))
    name = eqn.primitive.name
    if name == "convert_element_type":  # of integers that fit, and to at least as many bits
        old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype  # pyright: ignore[reportAttributeAccessIssue]  # arrays
        wide = jnp.finfo(new).nmant + 1
        if jnp.issubdtype(old, np.floating):
            return jnp.finfo(old).nmant < wide and jnp.finfo(old).nexp <= jnp.finfo(new).nexp
        return old == np.dtype(bool) or jnp.iinfo(old).bits <= wide
    return name in MOVES or name in ("bitcast_convert_type", "iota")
