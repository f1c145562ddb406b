"""Two ways to make many steps: one compiled loop, or a loop on the host over one compiled step.

A compiled loop has no cost between steps, so that tiny models are faster in it; but XLA on CPUs runs convolutions
inside loops many times slower than outside. Bounds of loops are traced: one program serves segments of every
length of a run. A run of another number of steps is another program, as that number is part of it.
"""

import abc
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._convolutions import convolves
from ._step import Program, advance, first, room, step_back, step_forward

DriverName: TypeAlias = Literal["auto", "loop", "host"]
DRIVERS: tuple[str, ...] = ("auto", "loop", "host")


class AbstractDriver(eqx.Module):
    """Steps lo..hi-1 of a run, made, recorded and carried backwards or forwards."""

    @abc.abstractmethod
    def advance(self, program: Program, carry: PyTree, lo: int, hi: int) -> PyTree:
        """The carry before step `hi`, from that before step `lo`."""

    @abc.abstractmethod
    def empty(self, carry: PyTree, size: int) -> Any:
        """Room for `size` carries."""

    @abc.abstractmethod
    def record(self, program: Program, store: Any, carry: PyTree, lo: int, hi: int, base: int) -> tuple[Any, PyTree]:
        """As `advance`, with the carry before step t put into place t - base of the store, which is used up."""

    @abc.abstractmethod
    def reverse(
        self, program: Program, store: Any, lo: int, hi: int, base: int, adjoint: PyTree, dhyper: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The adjoint of the carry before step `lo` from that before step `hi`, and dλ with the steps' part added."""

    @abc.abstractmethod
    def push(
        self, program: Program, carry: PyTree, tangents: PyTree, directions: PyTree, lo: int, hi: int
    ) -> tuple[PyTree, PyTree]:
        """As `advance`, with the derivatives along each direction carried along."""


class LoopDriver(AbstractDriver):
    """`jax.lax.fori_loop` with traced bounds; the store is one array a leaf, with a leading axis."""

    def advance(self, program: Program, carry: PyTree, lo: int, hi: int) -> PyTree:
        return loop_advance(program, carry, index(lo), index(hi))

    def empty(self, carry: PyTree, size: int) -> Any:
        return empty(carry, size)

    def record(self, program: Program, store: Any, carry: PyTree, lo: int, hi: int, base: int) -> tuple[Any, PyTree]:
        return loop_record((program, carry, index(lo), index(hi), index(base)), store)

    def reverse(
        self, program: Program, store: Any, lo: int, hi: int, base: int, adjoint: PyTree, dhyper: PyTree
    ) -> tuple[PyTree, PyTree]:
        return loop_reverse(program, store, index(lo), index(hi), index(base), adjoint, dhyper)

    def push(
        self, program: Program, carry: PyTree, tangents: PyTree, directions: PyTree, lo: int, hi: int
    ) -> tuple[PyTree, PyTree]:
        return loop_push(program, carry, tangents, directions, index(lo), index(hi))


class HostDriver(AbstractDriver):
    """A Python loop over one compiled step; the store is a list of carries."""

    def advance(self, program: Program, carry: PyTree, lo: int, hi: int) -> PyTree:
        for t in range(lo, hi):
            carry = host_advance(program, carry, index(t))
        return carry

    def empty(self, carry: PyTree, size: int) -> Any:
        return [None] * size

    def record(self, program: Program, store: Any, carry: PyTree, lo: int, hi: int, base: int) -> tuple[Any, PyTree]:
        for t in range(lo, hi):
            store[t - base] = carry
            carry = host_advance(program, carry, index(t))
        return store, carry

    def reverse(
        self, program: Program, store: Any, lo: int, hi: int, base: int, adjoint: PyTree, dhyper: PyTree
    ) -> tuple[PyTree, PyTree]:
        for t in reversed(range(lo, hi)):
            adjoint, dhyper = host_step_back(program, store[t - base], index(t), adjoint, dhyper)
            store[t - base] = None
        return adjoint, dhyper

    def push(
        self, program: Program, carry: PyTree, tangents: PyTree, directions: PyTree, lo: int, hi: int
    ) -> tuple[PyTree, PyTree]:
        for t in range(lo, hi):
            carry, tangents = host_step_forward(program, carry, tangents, index(t), directions)
        return carry, tangents


def index(t: int) -> Any:
    """A step number as an array, so that it is an argument of a compiled program and no part of it.

    NumPy's, whose making takes a hundredth of the time: for small networks that of a step.
    """
    return np.asarray(t, np.int32)


host_advance = eqx.filter_jit(advance)
host_step_back = eqx.filter_jit(step_back)
host_step_forward = eqx.filter_jit(step_forward)
start = eqx.filter_jit(first)
empty = eqx.filter_jit(room)


@eqx.filter_jit
def loop_advance(program: Program, carry: PyTree, lo: Any, hi: Any) -> PyTree:
    return jax.lax.fori_loop(lo, hi, lambda t, carry: advance(program, carry, t), carry)


@eqx.filter_jit(donate="all-except-first")
def loop_record(inputs: tuple[Program, PyTree, Any, Any, Any], store: PyTree) -> tuple[PyTree, PyTree]:
    program, carry, lo, hi, base = inputs

    def body(t: Any, both: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        store, carry = both
        store = jax.tree.map(lambda s, x: jax.lax.dynamic_update_index_in_dim(s, x, t - base, 0), store, carry)
        return store, advance(program, carry, t)

    return jax.lax.fori_loop(lo, hi, body, (store, carry))


@eqx.filter_jit
def loop_reverse(
    program: Program, store: PyTree, lo: Any, hi: Any, base: Any, adjoint: PyTree, dhyper: PyTree
) -> tuple[PyTree, PyTree]:
    def body(i: Any, both: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        t = hi - 1 - i
        carry = jax.tree.map(lambda s: jax.lax.dynamic_index_in_dim(s, t - base, keepdims=False), store)
        return step_back(program, carry, t, *both)

    return jax.lax.fori_loop(jnp.zeros_like(lo), hi - lo, body, (adjoint, dhyper))


@eqx.filter_jit
def loop_push(
    program: Program, carry: PyTree, tangents: PyTree, directions: PyTree, lo: Any, hi: Any
) -> tuple[PyTree, PyTree]:
    def body(t: Any, both: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        return step_forward(program, *both, t, directions)

    return jax.lax.fori_loop(lo, hi, body, (carry, tangents))


def check_driver(name: str, driver: str) -> None:
    """Refuse a driver of another name; `name` is that of the mode."""
    if driver not in DRIVERS:
        raise ValueError(f"{name}: driver must be 'auto', 'loop' or 'host'; got {driver!r}.")


def choose_driver(name: DriverName, program: Program) -> AbstractDriver:
    """The driver of that name; for "auto" the host loop where convolutions stay on a CPU, else the compiled loop."""
    if name == "auto":
        name = "host" if jax.default_backend() == "cpu" and _convolves(program) else "loop"
    return HostDriver() if name == "host" else LoopDriver()


@eqx.filter_jit
def _convolves(program: Program) -> bool:
    """Whether the gradient of a step holds a convolution. Compiled, so that the loss is looked through once."""
    params, _, model = eqx.filter_eval_shape(first, program)
    return convolves(jax.make_jaxpr(program.gradient)(params, model, jnp.asarray(0)).jaxpr)
