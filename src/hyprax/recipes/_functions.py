"""Functions of the user's own, found beside the recipe, and what they are given."""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._hyper import natural
from ._data import Splits
from ._errors import RecipeError
from ._leaves import numbers, own
from ._schema import Recipe


def found(path: Path, reference: str, key: str) -> Callable[..., Any]:
    """The function that `"module:function"` names, the module beside the recipe or installed.

    **Raises:** `RecipeError`.
    """
    module_name, _, name = reference.partition(":")
    folder = path.resolve().parent
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise RecipeError(f"cannot import {module_name!r} ({in_short(error)})", key=key) from None
    finally:
        sys.path.remove(str(folder))
    beside = folder / f"{module_name.replace('.', '/')}.py"
    if beside.is_file() and beside != Path(module.__file__ or "").resolve():
        raise RecipeError(
            f"{module_name!r} is the name of another module, {module.__file__ or 'built in'}: rename {beside.name}",
            key=key,
        )
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"module {module_name!r} has no function {name!r}", key=key)
    return function


def called(path: Path, reference: str, key: str, *arguments: Any) -> Any:
    """What that function returns; it may import what lies beside the recipe.

    **Raises:** `RecipeError`.
    """
    function = found(path, reference, key)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        return function(*arguments)
    except Exception as error:
        raise RecipeError(f"{reference} failed ({in_short(error)})", key=key) from error
    finally:
        sys.path.remove(folder)


def own_start(
    path: Path, recipe: Recipe, splits: Splits | None
) -> tuple[Callable[..., Any], Callable[..., Any], PyTree]:
    """The training loss, the outer loss, and the first weights of a loss of one's own, tried once on the data."""
    model = recipe.model
    assert model.function is not None  # the schema asks for both
    assert model.params is not None
    inner = found(path, model.function, "model.function")
    outer = inner if model.outer is None else found(path, model.outer, "model.outer")
    if isinstance(model.params, str):
        params = called(path, model.params, "model.params", splits)
    else:
        params = {name: numbers(given, f"model.params.{name}") for name, given in model.params.items()}
    try:
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), params)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"must be arrays ({in_short(error)})", key="model.params") from None
    if not jax.tree.leaves(params):
        raise RecipeError("must have a weight at least; got none", key="model.params")
    hyper = own_hyper(recipe)
    for key, function, data in (
        ("model.function", inner, None if splits is None else splits.train),
        ("model.outer" if model.outer else "model.function", outer, None if splits is None else splits.validation),
    ):
        try:
            value = jax.eval_shape(lambda p, h, d, fn=function: fn(p, h, d), params, natural(hyper), as_arrays(data))
        except Exception as error:
            raise RecipeError(f"the loss failed ({in_short(error)})", key=key) from error
        if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            kind = getattr(value, "dtype", type(value).__name__)
            returned = f"{kind}{list(getattr(value, 'shape', ()))}"
            raise RecipeError(f"must return one floating number; the loss returned {returned}", key=key)
    return inner, outer, params


def own_hyper(recipe: Recipe) -> dict[str, Any]:
    """The hyperparameters of [hyper.own]."""
    return {name: own(name, table) for name, table in (recipe.hyper.own or {}).items()}


def as_arrays(data: Any) -> Any:
    """The (inputs, targets) that a loss is given, on the device; numbers are floating, classes whole."""
    return jax.tree.map(jnp.asarray, data)


def in_short(error: Exception) -> str:
    """The type, the text and the last place of an error in somebody else's code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {error}{place}"
