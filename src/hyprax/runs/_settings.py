"""What an objective and a search are made of: their arrays, their settings and the code of their functions, by place.

Fields that move no bit of a result (a bar, where to save) say so: `eqx.field(metadata={"bits": False})`.
"""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from .._arrays import array_bits, digest, leaf_names

DEEPEST, MOST_ENTRIES, MOST_OF_A_LIST = 16, 2000, 64
PLAIN = (bool, int, float, complex, str, bytes, type(None))
Place = tuple[str, Any]


def arrays_of(problem: PyTree) -> dict[str, str]:
    """The shape and a hash of every array, by its place: those of the pytree, and those that its functions hold."""
    arrays = eqx.filter(problem, eqx.is_array)
    bits = map(array_bits, jax.tree.leaves(arrays))
    found = {name: _hash(x) for name, x in zip(leaf_names(arrays), bits, strict=True)}
    known = {id(leaf) for leaf in jax.tree.leaves(arrays)}
    held = {place: x for place, x in _walk(problem) if eqx.is_array(x) and id(x) not in known}
    return found | {place: _hash(array_bits(x)) for place, x in held.items()}


def settings_of(problem: PyTree) -> dict[str, str]:
    """The plain settings and a hash of the code of every function, by place."""
    found = {}
    for place, x in _walk(problem):
        if isinstance(x, types.CodeType):
            found[place] = f"code {_code(x)}"
        elif isinstance(x, PLAIN):
            found[place] = repr(x)[:200]
        elif isinstance(x, type):
            found[place] = f"{x.__module__}.{x.__qualname__}"
        elif isinstance(x, jax.Array) and not x.sharding.is_fully_replicated:
            found[f"{place} over devices"] = _sharding(x.sharding)
    return found


def _sharding(sharding: jax.sharding.Sharding) -> str:
    if not isinstance(sharding, NamedSharding):
        return repr(sharding)[:200]
    return f"{sharding.spec} on a mesh of {dict(sharding.mesh.shape)}"


def _hash(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)} {digest(array)}"


def _code(code: types.CodeType) -> str:
    """A hash of what a function does, wherever it stands: its instructions, names and constants."""
    constants = [_code(x) if isinstance(x, types.CodeType) else _constant(x) for x in code.co_consts]
    text = repr((code.co_code, code.co_names, code.co_varnames, constants))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _constant(x: Any) -> str:
    return repr(sorted(map(repr, x))) if isinstance(x, frozenset) else repr(x)


def _walk(problem: PyTree) -> Iterator[Place]:
    """Everything that can be compared, with its place; each object once, and not without end."""
    seen: set[int] = set()
    keep: list[Any] = []  # what is made on the way, so that no two have one identity
    stack: list[tuple[str, Any, int]] = [("", problem, 0)]
    count = 0
    while stack and count < MOST_ENTRIES:
        place, x, depth = stack.pop()
        if isinstance(x, PLAIN) or eqx.is_array(x):
            count += 1
            yield place, x
            continue
        if id(x) in seen or depth > DEEPEST:
            continue
        seen.add(id(x))
        keep.append(x)
        if not isinstance(x, list | tuple | Mapping | types.FunctionType | types.MethodType):
            count += 1
            yield place, x if isinstance(x, type) else type(x)
        parts = []
        for name, part in _parts(x):
            if isinstance(part, types.CodeType):
                yield f"{place}/{name}".strip("/"), part
            else:
                parts.append((f"{place}/{name}".strip("/"), part, depth + 1))
        stack += reversed(parts)


def _parts(x: Any) -> Iterator[Place]:
    """What an object is made of, as far as that is its own."""
    if isinstance(x, Mapping):
        yield from ((str(name), part) for name, part in list(x.items())[:MOST_OF_A_LIST])
    elif isinstance(x, list | tuple):
        yield from ((str(i), part) for i, part in enumerate(x[:MOST_OF_A_LIST]))
    elif isinstance(x, types.MethodType):
        yield from (("self", x.__self__), ("function", x.__func__))
    elif isinstance(x, functools.partial):
        yield from (("function", x.func), ("arguments", x.args), ("keywords", x.keywords))
    elif isinstance(x, types.FunctionType):
        yield from _function(x)
    elif isinstance(x, type | types.ModuleType):
        return
    elif dataclasses.is_dataclass(x):
        for field in dataclasses.fields(x):
            if field.metadata.get("bits", True) and hasattr(x, field.name):
                yield field.name, getattr(x, field.name)
    elif (wrapped := getattr(x, "__wrapped__", None)) is not None:
        yield "function", wrapped


def _function(function: types.FunctionType) -> Iterator[Place]:
    """The code of a function, and what it uses: by its closure, its defaults, and its module's names."""
    yield "code", function.__code__
    try:
        used = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return
    yield from used.nonlocals.items()
    for name, x in used.globals.items():
        own = isinstance(x, types.FunctionType) and x.__module__ == function.__module__
        if own or eqx.is_array(x) or (isinstance(x, PLAIN) and not name.startswith("__")):
            yield name, x
    for kind in (function.__defaults__, function.__kwdefaults__):
        if kind:
            yield "defaults", kind
