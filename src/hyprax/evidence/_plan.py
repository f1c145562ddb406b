"""Which contraction serves each parameter tensor: chosen once for a model, from its jaxpr and the numbers of rows."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, PyTree

from .._jaxprs import equations
from ._layouts import Indices
from ._taps import Recorder, Tapper, Use, Weight

Apply = Callable[[Any, Any, Any], Array]
"""f = apply(params, hyper, x): the outputs [C] of one example x."""

Contraction = Literal["pairwise", "columns", "gradient", "unused"]

_MOVING = 8.0
"""Memory traffic in place of arithmetic: an entry of an elementwise product costs about as much as so many of a matrix
product."""


CACHE = 2**22
"""Bytes of operands that are fast to have at hand. Larger ones are better not formed, if all else is equal."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Uses of the same entries of a tensor, taken together as one use with more positions.

    `weight` [B, I, O] are the places in the tensor, `positions` the sum of the uses' S.
    """

    uses: tuple[int, ...]
    weight: Indices
    positions: int
    lookup: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """The plan of one leaf of the parameters."""

    name: str
    shape: tuple[int, ...]
    contraction: Contraction
    reason: str
    groups: tuple[Group, ...] = ()
    """All uses, where all are products of matrices."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class KernelPlan:
    """A traced `apply` and the plan of each leaf."""

    jaxpr: ClosedJaxpr
    tensors: tuple[Tensor, ...]
    uses: dict[int, Use]
    outputs: int
    has_convolution: bool

    def tapped(self) -> list[int]:
        return [number for tensor in self.tensors for group in tensor.groups for number in group.uses]

    def contracted(self, contraction: Contraction) -> "KernelPlan":
        """The plan with one contraction for every tensor that has a choice."""
        tensors = [dataclasses.replace(t, contraction=contraction) if t.groups else t for t in self.tensors]
        return dataclasses.replace(self, tensors=tuple(tensors))

    def untapped(self, examples: int) -> "KernelPlan":
        """For one row of each example and no derivative but in the variances: large convolutions by their own rule.

        One row shares its patches with no other, and the rule needs none.
        """

        def large(tensor: Tensor) -> bool:
            uses = [self.uses[number] for group in tensor.groups for number in group.uses]
            entries = [group.positions * group.weight.size // group.weight.shape[2] for group in tensor.groups]
            bytes_ = examples * sum(entries) * np.dtype(uses[0].tap_dtype).itemsize if uses else 0
            return bytes_ > CACHE and all(use.operation == "conv_general_dilated" for use in uses)

        tensors = [
            dataclasses.replace(t, groups=(), contraction="gradient")
            if t.contraction in ("columns", "gradient") and t.groups and large(t)
            else t
            for t in self.tensors
        ]
        return dataclasses.replace(self, tensors=tuple(tensors))

    def tap(self, number: int) -> Array:
        use = self.uses[number]
        return jnp.zeros(use.tap_shape, use.tap_dtype)

    def evaluate(
        self, leaves: Sequence[Array], consts: Sequence[Array], others: Sequence[Array], taps: dict[int, Array]
    ) -> tuple[Array, dict[int, Array]]:
        """f [C] of one example with the taps added, and the raw operands of the tapped uses."""
        tapper = Tapper(taps)
        (f,) = tapper.run(self.jaxpr.jaxpr, consts, [*_weights(leaves), *others])
        return tapper.plain(f, ""), tapper.operands

    def example_bytes(self, rows: int) -> int:
        """About the bytes of working storage that one example takes, apart from the features that are kept of it.

        The activations, which all rows share; what a row's backward pass holds at a time; and of a tensor whose
        gradients are formed at once, the operand as patches and the cotangents.
        """
        outputs = [v.aval for eqn in equations(self.jaxpr.jaxpr) for v in eqn.outvars]
        sizes = [math.prod(getattr(aval, "shape", ())) for aval in outputs]
        formed = 0
        for tensor in self.tensors:
            for group in tensor.groups:
                if tensor.contraction == "gradient":
                    b, i, o = group.weight.shape
                    formed = max(formed, b * group.positions * (i + rows * o))
        width = max((getattr(aval, "dtype", np.dtype(np.float32)).itemsize for aval in self.jaxpr.in_avals), default=4)
        return width * (sum(sizes) + rows * 4 * max(sizes, default=0) + 2 * formed)


def _weights(leaves: Sequence[Array]) -> list[Weight]:
    return [Weight(w, i, np.arange(np.size(w)).reshape(np.shape(w))) for i, w in enumerate(leaves)]


def _names(params: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path) or "params" for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _check_params(params: PyTree) -> None:
    if not jax.tree.leaves(params):
        raise ValueError("params hold no array: there is nothing whose kernel could be taken.")
    for name, leaf in zip(_names(params), jax.tree.leaves(params), strict=True):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"params must hold floating-point arrays only, but {name} is {dtype or type(leaf).__name__}: keep the "
                "rest inside `apply` (equinox.partition(model, equinox.is_inexact_array) separates them)."
            )
        if "batch_stats" in name:
            raise ValueError(
                f"params hold batch statistics ({name}): these are no parameters with a prior. Close over them in "
                "`apply`, with the normalisation in evaluation mode, or use GroupNorm, LayerNorm or Fixup."
            )


def _trace(apply: Apply, params: PyTree, hyper: PyTree, x: PyTree) -> tuple[ClosedJaxpr, int]:
    _check_params(params)
    way_out = (
        "`apply` is a function of one example, which batch normalisation in training mode is not: put it in evaluation "
        "mode, its statistics closed over, or use GroupNorm, LayerNorm or Fixup."
    )
    try:
        jaxpr, out = jax.make_jaxpr(apply, return_shape=True)(params, hyper, x)
    except NameError as error:
        if "axis name" not in str(error):
            raise
        raise ValueError(f"apply reduces over the batch ({error}). {way_out}") from error
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or not hasattr(out, "shape"):
        raise ValueError(
            f"apply must return one array of outputs [C], got {jax.tree.structure(out)}; if it returns new batch "
            f"statistics beside the outputs: {way_out}"
        )
    if len(out.shape) != 1 or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"apply must return floating-point outputs [C] for one example, got {out.dtype} of shape "
            f"{tuple(out.shape)}; x is one example, without the leading axis of `inputs`."
        )
    return jaxpr, out.shape[0]


def _groups(uses: dict[int, Use], leaf: int) -> list[Group] | str:
    """The uses of a leaf by the entries that they take; or why they cannot be summed as products of matrices."""
    groups: list[Group] = []
    for number, use in uses.items():
        if use.leaf != leaf:
            continue
        layout = use.layout
        same = [
            i for i, g in enumerate(groups) if np.array_equal(g.weight, layout.weight) and g.lookup == layout.lookup
        ]
        if same:
            g = groups[same[0]]
            groups[same[0]] = Group((*g.uses, number), g.weight, g.positions + layout.positions, g.lookup)
        elif any(np.intersect1d(g.weight, layout.weight).size for g in groups):
            return "used in two layouts"
        else:
            groups.append(Group((number,), layout.weight, layout.positions, layout.lookup))
    for g in groups:
        if np.unique(g.weight).size != g.weight.size:
            return "the steps of a loop overlap"
    return groups


def _choose(tensor: Tensor, uses: dict[int, Use], m: int, r: int, whole: bool) -> Tensor:
    """Pairwise or by gradients, by the arithmetic of each; at once as gradients where these take the least memory.

    `whole` says that the prior has one variance for the tensor: with one for each parameter no pairwise form exists.
    """
    pairwise, columns, kept = 0.0, 0.0, 0
    for g in tensor.groups:
        b, i, o = g.weight.shape
        s = g.positions
        arithmetic = 0.0 if g.lookup else 1.0
        if s == 1:
            pairwise += m**2 * b * (i * arithmetic + r**2 * o)
        else:  # each pair of examples once
            pairwise += m**2 / 2 * b * s * (s * (i * arithmetic + r * o) + r**2 * o + _MOVING * r * (s + o))
        columns += m * r * b * s * i * o * arithmetic + (m * r) ** 2 * b * i * o
        kept += sum(math.prod(uses[n].operand_shape) + r * math.prod(uses[n].tap_shape) for n in g.uses)
    if whole and pairwise < columns:
        return dataclasses.replace(tensor, contraction="pairwise", reason="fewest operations")
    why = "fewer operations than pairwise" if whole else "one variance for each parameter"
    if kept < r * tensor.size:
        return dataclasses.replace(
            tensor, contraction="columns", reason=f"{why}; factors take less memory than gradients"
        )
    return dataclasses.replace(tensor, contraction="gradient", reason=f"{why}; gradients take less memory than factors")


def make_plan(
    apply: Apply, params: PyTree, hyper: PyTree, x: PyTree, m: int, r: int, whole: Sequence[bool] | None = None
) -> KernelPlan:
    """Trace `apply` at the types of one example x, and choose for kernels of m examples with r rows each."""
    closed, outputs = _trace(apply, params, hyper, x)
    leaves = jax.tree.leaves(params)
    recorder = Recorder()

    def record(leaves: list[Array], consts: list[Array], others: list[Array]) -> Array:
        tapper = Tapper({}, recorder)
        (f,) = tapper.run(closed.jaxpr, consts, [*_weights(leaves), *others])
        return tapper.plain(f, "returned as it is")

    others = closed.in_avals[len(leaves) :]
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in others]
    jax.eval_shape(record, leaves, closed.consts, structs)

    tensors = []
    for i, (name, leaf) in enumerate(zip(_names(params), leaves, strict=True)):
        tensor = Tensor(name, jnp.shape(leaf), "gradient", "")
        is_used = any(use.leaf == i for use in recorder.uses.values())
        groups = _groups(recorder.uses, i)
        if i in recorder.other_uses:
            operations = ", ".join(recorder.other_uses[i])
            also = "; also in products of matrices" if is_used else ""
            tensor = dataclasses.replace(tensor, reason=f"used by {operations}{also}")
        elif isinstance(groups, str):
            tensor = dataclasses.replace(tensor, reason=groups)
        elif not groups:
            tensor = dataclasses.replace(tensor, contraction="unused", reason="the outputs do not depend on it")
        else:
            tensor = dataclasses.replace(tensor, groups=tuple(groups))
            tensor = _choose(tensor, recorder.uses, m, r, True if whole is None else whole[i])
        tensors.append(tensor)
    has_convolution = any(eqn.primitive.name == "conv_general_dilated" for eqn in equations(closed.jaxpr))
    return KernelPlan(closed, tuple(tensors), recorder.uses, outputs, has_convolution)


_NAMES = {
    "pairwise": "pairs of factors",
    "columns": "gradients by columns",
    "gradient": "gradients at once",
    "unused": "none",
}


def kernel_plan(
    apply: Apply,
    params: PyTree,
    x: PyTree,
    hyper: PyTree = None,
    *,
    examples: int = 100,
    rows: int | None = None,
    per_parameter: bool = False,
) -> str:
    """The plan by which kernels of a model are contracted, as a table: one line for each parameter tensor.

    For a tensor used as y[b, s, o] = Σ_i a[b, s, i] W[b, i, o] the line gives the sizes B, S, I, O, the contraction,
    and why that one: pairs of factors, Σ_bst (a_s·a_t)(g_s·g_t); or gradients Σ_s a_s g_sᵀ, some columns at a time or
    at once. A tensor that is used by anything but products of matrices is served by its gradients, and the line says by
    what.

    **Arguments:**

    - `apply`: f = apply(params, hyper, x), outputs (C,) of one example.
    - `params`: floating-point arrays.
    - `x`: one example, without a leading axis of examples.
    - `hyper`: what `apply` takes beside.
    - `examples`: the number of examples M that the plan is for.
    - `rows`: the number of rows R for each example; the number of outputs if not given.
    - `per_parameter`: whether the prior has a variance for each parameter, rather than one for the tensor.

    **Raises:** `ValueError` for a model that has no such kernels, such as one whose output is not an array (C,).
    """
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), x)
    whole = [not per_parameter] * len(jax.tree.leaves(params))
    plan = make_plan(apply, params, hyper, x, examples, rows or 1, whole)
    rows = rows or plan.outputs
    plan = make_plan(apply, params, hyper, x, examples, rows, whole)
    header = ["tensor", "shape", "uses", "B", "S", "I", "O", "contraction", "because"]
    lines = [header] + [line for tensor in plan.tensors for line in _lines(plan, tensor)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    count = sum(tensor.size for tensor in plan.tensors)
    title = f"{count} parameters, {examples} examples, {rows} rows each, {plan.outputs} outputs"
    return "\n".join([title, *table])


def _lines(plan: KernelPlan, tensor: Tensor) -> list[list[str]]:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    contraction = _NAMES[tensor.contraction]
    if not tensor.groups:
        return [[tensor.name, shape, "", "", "", "", "", contraction, tensor.reason]]
    lines = []
    for group in tensor.groups:
        operations = [plan.uses[number].operation for number in group.uses]
        counted = ", ".join(
            f"{operations.count(o)} {o}" if operations.count(o) > 1 else o for o in dict.fromkeys(operations)
        )
        b, i, o = group.weight.shape
        lines.append(
            [tensor.name, shape, counted, str(b), str(group.positions), str(i), str(o), contraction, tensor.reason]
        )
    return lines
