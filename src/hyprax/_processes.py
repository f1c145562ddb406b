"""Several processes of `jax.distributed`: one of them speaks for all, and arrays may lie on several."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ._trees import is_traced


def leads() -> bool:
    """Whether this process writes what is written once: process 0, or the only one."""
    return jax.process_index() == 0


def is_spread(x: Any) -> bool:
    """Whether an array has parts that only other processes hold."""
    several = isinstance(x, jax.Array) and jax.process_count() > 1 and not is_traced(x)
    return several and not x.is_fully_addressable


def here(x: Any) -> Any:
    """The whole array in this process; gathered where it is spread, for which every process must ask."""
    if not is_spread(x):
        return x
    if x.is_fully_replicated:
        return x.addressable_data(0)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)


def told(say: Callable[[], tuple[Any, bytes]], fault: type[Exception]) -> tuple[Any, bytes]:
    """What process 0 finds to say, JSON values and bytes, in every process; `say` is called there alone.

    **Raises:** what `say` raises in process 0, and `fault` with its words in the others.
    """
    if jax.process_count() == 1:
        return say()
    said: tuple[Any, bytes] = (None, b"")
    error: Exception | None = None
    if leads():
        try:
            said = say()
        except Exception as caught:  # the others wait: they must be told before it is raised
            error = caught
    note = json.loads(_sent(json.dumps([said[0], None if error is None else str(error)]).encode()))
    if error is not None:
        raise error
    if note[1] is not None:
        raise fault(f"process 0: {note[1]}")
    return note[0], _sent(said[1])


def _sent(payload: bytes) -> bytes:
    """The bytes of process 0."""
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(payload), np.int32)))
    buffer = np.frombuffer(payload, np.uint8) if leads() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8).tobytes()
