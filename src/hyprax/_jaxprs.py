"""Jaxprs evaluated one equation at a time, so that some equations can be treated differently."""

from collections.abc import Callable, Collection, Iterator, Sequence
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


def needed(jaxpr: Jaxpr, outputs: Collection[Any] | None = None) -> set[Any]:
    """The variables on which outputs of a jaxpr depend (all of them if `None`), arguments among them.

    It looks into functions compiled on their own and into rematerialised ones; of a loop, a conditional or a function
    with a derivative of its own, every output depends on every input.
    """
    found = {v for v in (jaxpr.outvars if outputs is None else outputs) if not isinstance(v, Literal)}
    for eqn in reversed(jaxpr.eqns):
        wanted = [i for i, v in enumerate(eqn.outvars) if v in found]
        if not wanted:
            continue
        used = range(len(eqn.invars))
        if eqn.primitive.name in ("jit", "remat2", "checkpoint", "remat"):
            inner = getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])
            inside = needed(inner, [inner.outvars[i] for i in wanted])
            used = [i for i, v in enumerate(inner.invars) if v in inside]
        found |= {v for i in used if not isinstance(v := eqn.invars[i], Literal)}
    return found
