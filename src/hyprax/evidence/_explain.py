"""The plan of a model's kernels, as text."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._plan import Apply, Plan, Tensor, make_plan

_NAMES = {
    "pairwise": "pairs of factors",
    "columns": "gradients by columns",
    "gradient": "gradients at once",
    "unused": "none",
}


def explain(
    apply: Apply,
    params: PyTree,
    x: PyTree,
    hyper: PyTree = None,
    *,
    examples: int = 100,
    rows: int | None = None,
    per_parameter: bool = False,
) -> str:
    """The plan by which kernels of `apply` are contracted, as a table: one line for each parameter tensor.

    For a tensor used as y[b, s, o] = Σ_i a[b, s, i] W[b, i, o] the line gives the sizes B, S, I, O, the contraction,
    and why that one: pairs of factors, Σ_bst (a_s·a_t)(g_s·g_t); or gradients Σ_s a_s g_sᵀ, some columns at a time or
    at once. A tensor that is used by anything but products of matrices is served by its gradients, and the line says by
    what.

    Args:
        apply: f = apply(params, hyper, x), outputs [C] of one example.
        params: floating-point arrays.
        x: one example, without a leading axis of examples.
        hyper: what `apply` takes beside.
        examples: the number of examples M that the plan is for.
        rows: the number of rows R for each example; the number of outputs if not given.
        per_parameter: whether the prior has a variance for each parameter, rather than one for the tensor.

    Raises:
        ValueError: for a model that has no such kernels, as for `kernel`.
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


def _lines(plan: Plan, tensor: Tensor) -> list[list[str]]:
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
