"""A process that was forked after JAX had started has lost JAX's threads, and may wait for them without end."""

import os
from typing import Any

import jax.monitoring

_started = _forked = False


def _note(*_: Any, **__: Any) -> None:
    global _started
    _started = True


def _in_child() -> None:
    global _forked
    _forked = _started


def refuse_forked() -> None:
    """Refuse to compute in a process that was forked from one that had computed.

    **Raises:** `RuntimeError`.
    """
    if _forked:
        raise RuntimeError(
            "this process was forked from one in which JAX had started, and would hang: its threads were not copied. "
            'Start workers afresh: multiprocessing.get_context("spawn"), or "forkserver".'
        )
    _note()


jax.monitoring.register_event_duration_secs_listener(_note)  # of everything that is traced or compiled
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
