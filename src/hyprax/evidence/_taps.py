"""The interpreter: evaluates a jaxpr, and taps each operation that is linear in a parameter tensor.

A tap is a zero added to the operation's output: the derivative with respect to it is the output cotangent g, and the
other operand is a. The values that pass through are plain arrays or `Weight`s: parameter tensors whose entries were
only moved.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import Array

from .._jaxprs import bind, run
from ._layouts import LAYOUTS, Indices, Layout, input_type, output_type, reshuffle, stack_steps

_INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}
_INLINED |= {"checkpoint": "jaxpr", "remat": "jaxpr"}
"""Calls that mean no more than their body, and the parameter that holds it. custom_jvp and custom_vjp define
derivatives of their own (that of relu at 0, say) and stay whole."""


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """A parameter tensor, its entries moved or left out: the value, its leaf, and `index`, the places of its entries.

    Inside loops over slices, `index` numbers the entries of the slice, and `outer` [steps ..., size] where those stand
    in the leaf. `sliced` says for each loop around, outermost first, whether it runs over slices of this tensor.
    """

    value: Array
    leaf: int
    index: Indices
    outer: Indices | None = None
    sliced: tuple[bool, ...] = ()

    def places(self, local: Indices) -> Indices:
        """Entries of the slice -> entries of the leaf, [steps ...] + the shape of `local`."""
        return local if self.outer is None else self.outer[..., local]


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One matrix-like use of a leaf: the layout, and the raw shapes of operand and tap, the loops' axes leading."""

    leaf: int
    operation: str
    layout: Layout
    operand_shape: tuple[int, ...]
    tap_shape: tuple[int, ...]
    tap_dtype: np.dtype


class Recorder:
    """The uses that an evaluation meets, by number; and for each leaf why some use of it is no product of matrices."""

    def __init__(self) -> None:
        self.uses: dict[int, Use] = {}
        self.other_uses: dict[int, list[str]] = {}

    def other(self, weight: Weight, reason: str) -> None:
        reasons = self.other_uses.setdefault(weight.leaf, [])
        if reason not in reasons:
            reasons.append(reason)


class Tapper:
    """Adds `taps[number of the use]` where given, and keeps the raw operand there. A `recorder` is told of each use."""

    def __init__(
        self, taps: dict[int, Array], recorder: Recorder | None = None, first: int = 0, loops: tuple[int, ...] = ()
    ):
        self.taps = taps
        self.recorder = recorder
        self.count = first
        self.loops = loops
        self.operands: dict[int, Array] = {}

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        return run(jaxpr, consts, arguments, self._equation)

    def plain(self, value: Any, reason: str) -> Any:
        """The array itself, noting that a weight enters something that is no product of matrices."""
        if not isinstance(value, Weight):
            return value
        if self.recorder is not None:
            self.recorder.other(value, reason)
        return value.value

    def _equation(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        weights = [i for i, value in enumerate(inputs) if isinstance(value, Weight)]
        if not weights:
            return bind(eqn, inputs)
        if name in _INLINED:
            body = eqn.params[_INLINED[name]]
            jaxpr, consts = (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, [])
            return self.run(jaxpr, consts, inputs)
        if name == "scan":
            return self._scan(eqn, inputs)
        if len(inputs) == 1:
            moved = reshuffle(eqn, inputs[0].index)
            if moved is not None:
                values = bind(eqn, [inputs[0].value])
                return [dataclasses.replace(inputs[0], value=v, index=i) for v, i in zip(values, moved, strict=True)]
        reason = name
        if name in LAYOUTS and len(weights) == 1:
            reason = self._layout(eqn, inputs, weights[0])
            if isinstance(reason, Layout):
                return self._tap(eqn, inputs, weights[0], reason)
        return bind(eqn, [self.plain(value, reason) for value in inputs])

    @staticmethod
    def _layout(eqn: JaxprEqn, inputs: list[Any], position: int) -> Layout | str:
        weight = inputs[position]
        if np.unique(weight.index).size != weight.index.size:
            return "repeated before use"
        if output_type(eqn).dtype != weight.value.dtype:
            return "the result has another dtype"
        return LAYOUTS[eqn.primitive.name](eqn, position, weight.index, input_type(eqn, 0 if position else 1))

    def _tap(self, eqn: JaxprEqn, inputs: list[Any], position: int, layout: Layout) -> list[Any]:
        weight, data = inputs[position], inputs[0 if position else 1]
        (output,) = bind(eqn, [v.value if isinstance(v, Weight) else v for v in inputs])
        number = self.count
        self.count += 1
        if self.recorder is not None:
            steps = list(zip(self.loops, weight.sliced, strict=True))
            stacked = stack_steps(layout, steps, weight.places(layout.weight))
            shapes = (*self.loops, *np.shape(data)), (*self.loops, *output.shape)
            self.recorder.uses[number] = Use(weight.leaf, eqn.primitive.name, stacked, *shapes, output.dtype)
        if number in self.taps:
            output = output + self.taps[number]
            self.operands[number] = data
        return [output]

    def _scan(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        params = eqn.params
        body, length = params["jaxpr"], params["length"]
        n_consts, n_carry = params["num_consts"], params["num_carry"]
        consts = [
            dataclasses.replace(v, sliced=(*v.sliced, False)) if isinstance(v, Weight) else v for v in inputs[:n_consts]
        ]
        carry = [self.plain(v, "the first state of a scan") for v in inputs[n_consts : n_consts + n_carry]]
        over = inputs[n_consts + n_carry :]

        def sliced(values: list[Array]) -> list[Any]:
            """One step's slices, those of weights with their places."""
            xs: list[Any] = list(values)
            for k, weight in enumerate(over):
                if isinstance(weight, Weight):
                    rows = weight.index.reshape(length, -1)
                    index = np.arange(rows.shape[1]).reshape(weight.index.shape[1:])
                    xs[k] = Weight(values[k], weight.leaf, index, weight.places(rows), (*weight.sliced, True))
            return xs

        first = last = self.count

        def step(state: list[Array], slices: tuple[list[Array], dict[int, Array]]) -> tuple[list[Array], Any]:
            nonlocal last
            values, taps = slices
            inner = Tapper(taps, self.recorder, first, (*self.loops, length))
            outputs = inner.run(body.jaxpr, body.consts, [*consts, *state, *sliced(values)])
            outputs = [inner.plain(v, "returned by a scan") for v in outputs]
            last = inner.count
            return outputs[:n_carry], (outputs[n_carry:], inner.operands)

        values = [v.value if isinstance(v, Weight) else v for v in over]
        taps: dict[int, Array] = {}
        if (
            self.taps
        ):  # which taps are this loop's own, and have its axis, shows only in a trace of the body without any
            quiet = Tapper({}, None, first, (*self.loops, length))
            slices = [jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for v in values]
            jax.eval_shape(
                lambda state, values: quiet.run(body.jaxpr, body.consts, [*consts, *state, *sliced(values)]) and None,
                carry,
                slices,
            )
            taps = {n: tap for n, tap in self.taps.items() if first <= n < quiet.count}
        final, (ys, operands) = lax.scan(
            step, carry, (values, taps), length=length, reverse=params["reverse"], unroll=params["unroll"]
        )
        self.count = last
        self.operands.update(operands)
        return [*final, *ys]
