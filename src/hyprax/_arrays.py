"""Pytrees of arrays on disk: safetensors, one entry a leaf, named by its path; written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

NATIVE = "biuf"  # kinds of dtype that safetensors stores as they are; others (bfloat16, float8) go as bytes


class StateError(ValueError):
    """A file does not hold what is asked of it."""


def leaf_names(tree: PyTree) -> list[str]:
    """The path of every leaf, as `hyper/penalty/raw`, in the order of `jax.tree.leaves`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator="/") or "value" for path in paths]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def array_bits(leaf: Any) -> np.ndarray:
    """The leaf as an array of NumPy that safetensors can hold, keys and rare dtypes by their bits."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    array = np.ascontiguousarray(array).reshape(array.shape)
    return array if array.dtype.kind in NATIVE else array.reshape(-1).view(np.uint8)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, either the old or the new one is there, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def save_tree(path: Path, tree: PyTree) -> None:
    """Every leaf with its bits: any dtype, any shape, random keys too."""
    save_arrays(path, dict(zip(leaf_names(tree), map(array_bits, jax.tree.leaves(tree)), strict=True)))


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays in one file, written atomically."""
    write_atomically(path, safetensors.numpy.save(dict(arrays)))


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of one file.

    **Raises:** `StateError` for a file that is missing, cut short or damaged.
    """
    try:
        return safetensors.numpy.load(path.read_bytes())
    except Exception as error:  # safetensors raises its own type for damage, and the system its own for the rest
        raise StateError(f"{path}: cannot be read ({error}).") from error


def load_tree(path: Path, template: PyTree) -> PyTree:
    """The saved tree, in the structure, shapes and dtypes of `template`.

    **Raises:** `StateError` naming the first leaf that is missing, left over, or of another shape or dtype.
    """
    arrays = load_arrays(path)
    leaves, structure = jax.tree.flatten(template)
    names = leaf_names(template)
    for name in [*names, *arrays]:
        if (name in arrays) != (name in names):
            where = "saved but not expected" if name in arrays else "expected but not saved"
            raise StateError(
                f"{path}: {name} is {where}: the run was made for other hyperparameters or another search."
            )
    restored = [_restored(path, name, arrays[name], leaf) for name, leaf in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(structure, restored)


def _restored(path: Path, name: str, saved: np.ndarray, leaf: Any) -> Any:
    expected = array_bits(leaf)
    if (saved.shape, saved.dtype) != (expected.shape, expected.dtype):
        raise StateError(
            f"{path}: {name} is {saved.dtype}{list(saved.shape)}, expected is {expected.dtype}{list(expected.shape)}."
        )
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(leaf))
    dtype = np.asarray(leaf).dtype
    array = saved if dtype.kind in NATIVE else saved.view(dtype).reshape(np.shape(leaf))
    return array if isinstance(leaf, np.ndarray) else jnp.asarray(array)
