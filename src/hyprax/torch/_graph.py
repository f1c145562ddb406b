"""A module of torch as a list of operations, and its evaluation in JAX: torch itself is no longer needed."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

TABLE: dict[str, Callable[..., Any]] = {}
"""The name of an operator of torch -> a function of a `Call` and of the operator's own arguments."""


def translates(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: this function is the operator of these names, without their `aten.`."""

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        TABLE.update({f"aten.{name}": fn for name in names})
        return fn

    return register


# Sizes, which are integers of Python while JAX traces, and what picks one of several results.
TABLE |= {
    f"operator.{name}": lambda _, *args, fn=getattr(operator, name): fn(*args)
    for name in (
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "pow",
        "neg",
        "getitem",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    )
}
TABLE |= {"torch.sym_max": lambda _, a, b: max(a, b), "torch.sym_min": lambda _, a, b: min(a, b)}
TABLE |= {"torch.sym_float": lambda _, a: float(a), "torch.sym_int": lambda _, a: int(a)}


class Draws:
    """The random keys of one evaluation: a new one for each operation that draws. `off` draws nothing: everything is
    kept, as for the comparison with torch, which draws other numbers."""

    def __init__(self, key: Array | None, *, off: bool = False):
        self.key, self.off, self.count = key, off, 0

    def kept(self, shape: Sequence[int], probability: float) -> Array:
        """Which entries are kept, each with `probability`."""
        if self.off:
            return jnp.ones(shape, bool)
        if self.key is None:
            raise ValueError("TorchFunction.train: key must be a JAX random key, since the module draws; got None.")
        self.count += 1
        return jax.random.bernoulli(jax.random.fold_in(self.key, self.count), probability, tuple(shape))


class Call(NamedTuple):
    """What an operation knows beside its arguments: the dtype of its (first) result, and where random keys are."""

    dtype: Any
    draws: Draws


class Ref(NamedTuple):
    """The result of the node of this name."""

    name: str


class Node(NamedTuple):
    """name = op(*args, **kwargs), where arguments may hold references."""

    name: str
    op: str
    args: tuple
    kwargs: dict[str, Any]
    dtype: str | None


class Input(NamedTuple):
    """An array that the function takes; a size that is `None` is free."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Graph(NamedTuple):
    """A function of parameters, buffers and inputs: its nodes in the order of evaluation.

    - `arrays`: the node of a parameter or buffer -> its name in the module.
    - `constants`: the node of a tensor that is neither -> its values.
    - `outputs`: references or plain values, in the order of the leaves of `structure`.
    - `changed`: the name of a buffer -> the reference of its new value.
    """

    nodes: tuple[Node, ...]
    arrays: Mapping[str, str]
    constants: Mapping[str, Any]
    inputs: tuple[Input, ...]
    outputs: tuple
    structure: Any
    changed: Mapping[str, Ref]

    def __call__(
        self, arrays: Mapping[str, Array], inputs: Sequence[Any], draws: Draws, *, wide: bool = False
    ) -> tuple[PyTree, dict[str, Array]]:
        """The outputs, and the buffers that change. `wide`: float64 wherever the module has float32."""
        values: dict[str, Any] = {node: arrays[name] for node, name in self.arrays.items()}
        for name, constant in self.constants.items():
            values[name] = jnp.asarray(constant, _dtype(str(constant.dtype), wide))
        values |= {place.name: x for place, x in zip(self.inputs, inputs, strict=True)}

        def resolved(x: Any) -> Any:
            if isinstance(x, Ref):
                return values[x.name]
            if isinstance(x, list | tuple):
                return type(x)(resolved(item) for item in x)
            return x

        for node in self.nodes:
            dtype = None if node.dtype is None else _dtype(node.dtype, wide)
            kwargs = {name: resolved(x) for name, x in node.kwargs.items()}
            values[node.name] = TABLE[node.op](Call(dtype, draws), *resolved(node.args), **kwargs)
        outputs = jax.tree.unflatten(self.structure, [resolved(x) for x in self.outputs])
        return outputs, {name: resolved(ref) for name, ref in self.changed.items()}


def _dtype(name: str, wide: bool) -> Any:
    """A dtype of torch as JAX has it: integers of 32 bits where 64 are not enabled."""
    return jax.dtypes.canonicalize_dtype(jnp.dtype("float64" if wide and name == "float32" else name))


def level(call: Call, *xs: Any, dtype: Any = None) -> list[Array]:
    """Arrays of one dtype, by default that of the result, and of one rank: torch promotes both without a word."""
    arrays = [jnp.asarray(x, call.dtype if dtype is None else dtype) for x in xs]
    rank = max(x.ndim for x in arrays)
    return [lax.expand_dims(x, range(rank - x.ndim)) for x in arrays]


def common(*xs: Any) -> Any:
    """The dtype in which torch compares: that of the arrays, of which numbers of Python change only the kind."""
    dtypes = [x.dtype for x in xs if isinstance(x, jax.Array)]
    dtype = dtypes[0] if dtypes else jnp.asarray(xs[0]).dtype
    with jax.numpy_dtype_promotion("standard"):  # torch's, whatever the user asks of JAX
        for other in dtypes[1:]:
            dtype = jnp.promote_types(dtype, other)
        if any(isinstance(x, float) for x in xs) and not jnp.issubdtype(dtype, jnp.inexact):
            dtype = jnp.promote_types(dtype, jnp.float32)
    if any(type(x) is int for x in xs) and jnp.issubdtype(dtype, jnp.bool_):
        dtype = jnp.asarray(0).dtype
    return dtype


def at(x: Array, *index: Any) -> Array:
    """x[index]; where torch would refuse an index as out of range, NaN (in integers the smallest), not a neighbour."""
    return x.at[index].get(mode="fill")


def axes(x: Array, dims: Any) -> tuple[int, ...]:
    """Dimensions as torch names them, none for all of them."""
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return tuple(range(x.ndim))
    return tuple(d % max(x.ndim, 1) for d in (dims if isinstance(dims, list | tuple) else (dims,)))
