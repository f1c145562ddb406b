"""Pytrees of arrays on disk: safetensors, one entry a leaf, named by its path; written whole or not at all."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import PyTree

from ._processes import here

CHECKSUM = "blake2b"
NATIVE = "biuf"  # kinds of dtype that safetensors stores as they are; others (bfloat16, float8) go as bytes


class RunError(ValueError):
    """A run cannot be read, written or gone on with: its record is missing, damaged, in use, or of something else."""


class StateError(RunError):
    """A file of arrays does not hold what is asked of it."""


def leaf_names(tree: PyTree) -> list[str]:
    """The path of every leaf, as `hyper/penalty/raw`, in the order of `jax.tree.leaves`."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator="/") or "value" for path in paths]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def array_bits(leaf: Any) -> np.ndarray:
    """The leaf as an array of NumPy that safetensors can hold, keys and rare dtypes by their bits."""
    array = np.asarray(here(jax.random.key_data(leaf) if _is_key(leaf) else leaf))
    array = np.ascontiguousarray(array).reshape(array.shape)
    return array if array.dtype.kind in NATIVE else array.reshape(-1).view(np.uint8)


def write_atomically(path: Path, data: bytes, previous: Path | None = None) -> None:
    """Write a file so that, whatever happens, either the old or the new one is there, whole; the old one as `previous`.

    **Raises:** `OSError` that names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can: after a loss of power they are those of now."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def temporary_files(paths: Iterable[Path], names: Iterable[str]) -> list[Path]:
    """Which paths writers of files of these names have left behind, killed before they were done."""
    pattern = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.\d+\.tmp")
    return [path for path in paths if pattern.fullmatch(path.name)]


def digest(array: np.ndarray) -> str:
    """A hash of an array's dtype, shape and bits."""
    found = hashlib.blake2b(f"{array.dtype}{list(array.shape)}".encode(), digest_size=16)
    found.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return found.hexdigest()


def save_tree(path: Path, tree: PyTree, previous: Path | None = None) -> None:
    """Every leaf with its bits: any dtype, any shape, random keys too. A file that was there is kept as `previous`."""
    save_arrays(path, dict(zip(leaf_names(tree), map(array_bits, jax.tree.leaves(tree)), strict=True)), previous)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], previous: Path | None = None) -> None:
    """Named arrays in one file, with a checksum, written atomically."""
    arrays = dict(arrays)
    write_atomically(path, safetensors.numpy.save(arrays, {CHECKSUM: _checksum(arrays)}), previous)


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    text = json.dumps({name: digest(array) for name, array in sorted(arrays.items())})
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load_arrays(path: Path, raw: bytes | None = None) -> dict[str, np.ndarray]:
    """Named arrays of one file, or of the bytes of one.

    **Raises:** `StateError` for a file that is missing, cut short, damaged or altered.
    """
    try:
        raw = path.read_bytes() if raw is None else raw
        arrays = safetensors.numpy.load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        written = header.get("__metadata__", {}).get(CHECKSUM)
    except Exception as error:  # safetensors raises its own type for damage, and the system its own for the rest
        raise StateError(f"{path}: cannot be read ({error}).") from error
    if written != _checksum(arrays):
        raise StateError(f"{path}: does not match its checksum: it was damaged, or altered.")
    return arrays


def load_tree(path: Path, template: PyTree, raw: bytes | None = None) -> PyTree:
    """The saved tree, in the structure, shapes and dtypes of `template`; from the bytes of the file, where given.

    **Raises:** `StateError` naming the first leaf that is missing, left over, or of another shape or dtype.
    """
    arrays = load_arrays(path, raw)
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
    dtype = np.dtype(leaf.dtype) if isinstance(leaf, jax.Array) else np.asarray(leaf).dtype
    array = saved if dtype.kind in NATIVE else saved.view(dtype).reshape(np.shape(leaf))
    return array if isinstance(leaf, np.ndarray) else jnp.asarray(array)
