"""Jaxprs evaluated one equation at a time, so that some equations can be treated differently."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params


def run(
    jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], equation: Callable[[JaxprEqn, list[Any]], list[Any]]
) -> list[Any]:
    """The values of a jaxpr, with `equation(eqn, inputs)` for the outputs of each of its equations."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))
    for eqn in jaxpr.eqns:
        inputs = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
        env.update(zip(eqn.outvars, equation(eqn, inputs), strict=True))
    return [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]


def bind(eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of an equation as it stands."""
    outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations of a jaxpr, and of those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)
