"""Recurrent layers of torch, as scans over time: a program of one step, however long the sequence."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ._graph import TABLE, Call
from ._layers import dropped, linear

# Products of the input with its weights, states, products of the first state with its weights -> states.
Cell = Callable[[Array, tuple[Array, ...], Array], tuple[Array, ...]]


def _lstm(x: Array, states: tuple[Array, ...], h: Array) -> tuple[Array, ...]:
    i, f, g, o = jnp.split(x + h, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _gru(x: Array, states: tuple[Array, ...], h: Array) -> tuple[Array, ...]:
    (xr, xz, xn), (hr, hz, hn) = jnp.split(x, 3, axis=-1), jnp.split(h, 3, axis=-1)
    z = jax.nn.sigmoid(xz + hz)
    return ((1 - z) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn) + z * states[0],)


def _direction(call: Call, cell: Cell, xs: Array, states: tuple[Array, ...], weights: tuple, reverse: bool) -> tuple:
    """All outputs, and the states at the end, of one direction of one layer."""
    w_input, w_state, *biases = weights
    b_input, b_state = biases or (None, None)
    inputs = linear(call, xs, w_input, b_input)

    def step(states: tuple[Array, ...], x: Array) -> tuple[tuple[Array, ...], Array]:
        states = cell(x, states, linear(call, states[0], w_state, b_state))
        return states, states[0]

    states, outputs = lax.scan(step, states, inputs, reverse=reverse)
    return outputs, states


def _recurrent(cell: Cell, per_layer: int) -> Any:
    def layers(
        call: Call,
        x: Array,
        starts: Any,
        weights: list[Array],
        has_biases: bool,
        count: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple:
        starts = starts if isinstance(starts, list | tuple) else (starts,)
        each, directions = 4 if has_biases else 2, 2 if bidirectional else 1
        if len(weights) != each * directions * count:
            raise ValueError("from_torch: LSTMs must have no projection; got one with proj_size > 0.")
        xs = jnp.swapaxes(x, 0, 1) if batch_first else x
        ends: list[tuple[Array, ...]] = []
        for layer in range(count):
            outputs = []
            for reverse in range(directions):
                at = layer * directions + reverse
                own = tuple(weights[at * each : (at + 1) * each])
                out, end = _direction(call, cell, xs, tuple(s[at] for s in starts), own, bool(reverse))
                outputs.append(out)
                ends.append(end)
            xs = jnp.concatenate(outputs, axis=-1)
            if train and layer < count - 1:
                xs = dropped(call, xs, dropout)
        states = tuple(jnp.stack([end[i] for end in ends]) for i in range(per_layer))
        return (jnp.swapaxes(xs, 0, 1) if batch_first else xs, *states)

    return layers


TABLE["aten.lstm.input"] = _recurrent(_lstm, 2)
TABLE["aten.gru.input"] = _recurrent(_gru, 1)
TABLE["aten.rnn_tanh.input"] = _recurrent(lambda x, _, h: (jnp.tanh(x + h),), 1)
TABLE["aten.rnn_relu.input"] = _recurrent(lambda x, _, h: (jax.nn.relu(x + h),), 1)
WHOLE = ("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
"""Operators that torch.export is asked not to take apart."""
