"""Neural tangent kernels of chosen rows: K = Σ_l φ_l diag(v_l) φ_lᵀ, with φ_l = ∂(cᵀf)/∂w_l for each cotangent c."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._products import einsum
from ._contractions import Features, example_factors, example_gradient, factors, in_chunks, tensor_gram
from ._plan import Apply, KernelPlan, make_plan

MEMORY = 2**30
"""The default budget of working storage, in bytes."""

_SMALL = 2**27
"""Working storage that a processor without an accelerator is quickest with, in bytes."""

_COPIES = 16
"""The most chunks of examples that are laid out one after the other for speed alone."""


class Arguments(NamedTuple):
    """What the features of M examples depend on: all arrays, `consts` those that `apply` closes over."""

    params: list[Array]
    consts: list[Array]
    hyper: list[Array]
    inputs: list[Array]
    cotangents: Array


def _example_features(plan: KernelPlan, given: Arguments) -> Features:
    """The features of one example: vjps of one evaluation, in the taps and in the leaves without a tap."""
    at_once = [i for i, tensor in enumerate(plan.tensors) if tensor.contraction == "gradient"]
    direct = {i: given.params[i] for i in at_once if not plan.tensors[i].groups}

    def outputs(taps: dict[int, Array], direct: dict[int, Array]) -> tuple[Array, dict[int, Array]]:
        leaves = [direct.get(i, leaf) for i, leaf in enumerate(given.params)]
        return plan.evaluate(leaves, given.consts, [*given.hyper, *given.inputs], taps)

    taps = {number: plan.tap(number) for number in plan.tapped()}
    _, pull, operands = jax.vjp(outputs, taps, direct, has_aux=True)
    cotangent, rows = jax.vmap(pull)(given.cotangents)
    lookups = {n for n in operands if plan.uses[n].layout.lookup}
    features: Features = {
        "operand": {n: a for n, a in operands.items() if n not in lookups},
        "ids": {n: operands[n] for n in lookups},
        "cotangent": cotangent,
        "rows": rows,
    }
    for i in at_once:  # formed here, so that their factors, which are larger, are never kept
        groups = plan.tensors[i].groups
        if groups:
            formed = [example_gradient(group, *example_factors(plan, group, features)) for group in groups]
            rows[i] = jnp.concatenate([w.reshape(w.shape[0], -1) for w in formed], axis=1)
            for number in (n for group in groups for n in group.uses):
                for key in ("operand", "ids", "cotangent"):
                    features[key].pop(number, None)
    return features


def _features(plan: KernelPlan, memory: int, given: Arguments) -> Features:
    """The features of all M examples, in chunks of as many as the budget holds."""

    def some(inputs: list[Array], cotangents: Array) -> Features:
        def one(x: list[Array], c: Array) -> Features:
            return _example_features(plan, given._replace(inputs=x, cotangents=c))

        return jax.vmap(one)(inputs, cotangents)

    m, r, _ = given.cotangents.shape
    unrolled = plan.has_convolution and jax.default_backend() == "cpu"
    if unrolled:  # for the sake of caches, but not at the price of compiling too many copies
        memory = min(memory, max(_SMALL, math.ceil(m / _COPIES) * plan.example_bytes(r)))
    size = max(1, memory // plan.example_bytes(r))
    return in_chunks(some, (given.inputs, given.cotangents), size, unrolled)


def _weighted(plan: KernelPlan, i: int, features: Features, variance: Array, memory: int) -> Array:
    if variance.ndim:
        return tensor_gram(plan, i, features, variance, memory)
    return variance * tensor_gram(plan, i, features, None, memory)


def _used(plan: KernelPlan) -> list[int]:
    return [i for i, tensor in enumerate(plan.tensors) if tensor.contraction != "unused"]


def _part(plan: KernelPlan, i: int, features: Features) -> Features:
    """The features that leaf i needs."""
    numbers = {n for group in plan.tensors[i].groups for n in group.uses}
    part = {key: {n: v for n, v in features[key].items() if n in numbers} for key in ("operand", "ids", "cotangent")}
    return {**part, "rows": {n: v for n, v in features["rows"].items() if n == i}}


def _for_values(plan: KernelPlan, given: Arguments) -> KernelPlan:
    """The plan where nothing but variances has a derivative."""
    m, r, _ = given.cotangents.shape
    return plan.untapped(m) if r == 1 else plan


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kernel(plan: KernelPlan, memory: int, given: Arguments, variances: list[Array]) -> Array:
    plan = _for_values(plan, given)
    return _total(plan, memory, _features(plan, memory, given), variances)[0]


def _total(
    plan: KernelPlan, memory: int, features: Features, variances: list[Array], keep: bool = False
) -> tuple[Array, dict[int, Array]]:
    """K, and with `keep` the K_l of the tensors with one variance."""
    rows = features_rows(features)
    dtype = jnp.result_type(*variances)
    total = jnp.zeros((rows, rows), dtype)
    kept: dict[int, Array] = {}
    for i in _used(plan):
        if keep and not variances[i].ndim:
            kept[i] = tensor_gram(plan, i, features, None, memory)
            part = variances[i] * kept[i]
        else:
            part = _weighted(plan, i, features, variances[i], memory)
        total = total + part.astype(dtype)
    return total, kept


def features_rows(features: Features) -> int:
    """M R."""
    for array in (*features["cotangent"].values(), *features["rows"].values()):
        return array.shape[0] * array.shape[1]
    raise ValueError("the outputs of `apply` depend on no parameter.")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Wanted:
    """Which arguments a derivative is asked for, one by one (leaves of `Arguments`, then variances)."""

    arguments: tuple[bool, ...]
    variances: tuple[bool, ...]


def _forward(plan: KernelPlan, memory: int, given: Any, variances: Any) -> tuple[Array, tuple]:
    def is_primal(x: Any) -> bool:
        return hasattr(x, "perturbed")

    wanted = _Wanted(
        tuple(x.perturbed for x in jax.tree.leaves(given, is_leaf=is_primal)),
        tuple(v.perturbed for v in variances),
    )
    given, variances = jax.tree.map(lambda x: x.value, (given, variances), is_leaf=is_primal)
    if not any(wanted.arguments):
        plan = _for_values(plan, given)
    features = _features(plan, memory, given)
    used = _used(plan)
    size = features_rows(features) ** 2 * len(used) * jnp.result_type(*variances).itemsize
    keep = any(wanted.variances) and size <= memory
    total, kept = _total(plan, memory, features, variances, keep)
    if not any(wanted.arguments) and all(i in kept for i in used if wanted.variances[i]):
        features = None
    return total, (wanted, given, variances, features, kept)


def _backward(plan: KernelPlan, memory: int, residuals: tuple, k_bar: Any) -> tuple:
    wanted, given, variances, features, kept = residuals
    if not any(wanted.arguments):
        plan = _for_values(plan, given)
    leaves, structure = jax.tree.flatten(given)
    inexact = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
    moving = [k for k, is_wanted in enumerate(wanted.arguments) if is_wanted and inexact[k]]
    k_bar = (
        jnp.broadcast_to(k_bar, k_bar.shape) if isinstance(k_bar, jax.Array) else jnp.zeros(k_bar.shape, k_bar.dtype)
    )

    # Tensor by tensor: the cotangents of the factors (or gradients) and of the variance.
    variances_bar: list[Array | None] = [None] * len(variances)
    bars: Features = {"operand": {}, "cotangent": {}, "rows": {}}
    for i in _used(plan):
        if not moving and not wanted.variances[i]:
            continue
        if wanted.variances[i] and i in kept:
            variances_bar[i] = jnp.sum(k_bar.astype(kept[i].dtype) * kept[i]).astype(variances[i].dtype)
            if not moving:
                continue
        part = _part(plan, i, features)
        ids = part.pop("ids")

        def weighted(part: Features, variance: Array, i: int = i, ids: dict[int, Array] = ids) -> Array:
            return _weighted(plan, i, {**part, "ids": ids}, variance, memory)

        cotangent = k_bar.astype(variances[i].dtype)
        if moving:
            _, pull = jax.vjp(lambda part, i=i, weighted=weighted: weighted(part, variances[i]), part)
            for key, bar in pull(cotangent)[0].items():
                bars[key].update(bar)
        if wanted.variances[i] and i not in kept:
            _, pull = jax.vjp(partial(weighted, part), variances[i])
            (variances_bar[i],) = pull(cotangent)

    # One recomputed vjp of the features takes them to whatever they depend on.
    bar_leaves: list[Array | None] = [None] * len(leaves)
    if moving:

        def inexact_features(*moved: Array) -> Features:
            arguments = list(leaves)
            for k, value in zip(moving, moved, strict=True):
                arguments[k] = value
            features = _features(plan, memory, jax.tree.unflatten(structure, arguments))
            return {key: value for key, value in features.items() if key != "ids"}

        _, pull = jax.vjp(inexact_features, *[leaves[k] for k in moving])
        for k, bar in zip(moving, pull(bars), strict=True):
            bar_leaves[k] = bar
    return jax.tree.unflatten(structure, bar_leaves), variances_bar


_kernel.defvjp(_forward, _backward, symbolic_zeros=True)


def _arguments(
    apply: Apply, params: PyTree, hyper: PyTree, inputs: PyTree, cotangents: Array, variances: PyTree | None
) -> tuple[KernelPlan, Arguments, list[Array]]:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(inputs)]
    m, r, c = cotangents.shape
    if not leaves or any(leaf.ndim == 0 or leaf.shape[0] != m for leaf in leaves):
        shapes = [tuple(leaf.shape) for leaf in leaves]
        raise ValueError(
            f"every array of inputs needs the {m} examples of cotangents as its leading axis, got {shapes}."
        )
    if min(m, r) == 0:
        raise ValueError(f"cotangents must hold at least one example and one row, got shape {cotangents.shape}.")
    weights = [jnp.asarray(w) for w in jax.tree.leaves(params)]
    if variances is None:
        spread = [jnp.ones((), w.dtype) for w in weights]
    else:
        if jax.tree.structure(variances) != jax.tree.structure(params):
            raise ValueError(
                f"variances must have the structure of params, {jax.tree.structure(params)}, "
                f"got {jax.tree.structure(variances)}."
            )
        spread = [jnp.asarray(v) for v in jax.tree.leaves(variances)]
        for v, w in zip(spread, weights, strict=True):
            if v.ndim and v.shape != w.shape:
                raise ValueError(f"each variance must be a scalar or like its leaf, got {v.shape} for {w.shape}.")
        spread = [v.reshape(()) if v.size == 1 else v for v in spread]
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf)), inputs)
    plan = make_plan(apply, params, hyper, x, m, r, [v.ndim == 0 for v in spread])
    if plan.outputs != c:
        raise ValueError(f"cotangents must have one entry for each of the {plan.outputs} outputs of apply, got {c}.")
    consts = [jnp.asarray(v) for v in plan.jaxpr.consts]
    others = [jnp.asarray(v) for v in jax.tree.leaves(hyper)]
    return plan, Arguments(weights, consts, others, leaves, cotangents), spread


def kernel(
    apply: Apply,
    params: PyTree,
    hyper: PyTree,
    inputs: PyTree,
    cotangents: Float[Array, "m r c"],
    variances: PyTree[Float[Array, "..."]],
    *,
    memory: int = MEMORY,
) -> Float[Array, "rows rows"]:
    """K = Σ_l φ_l diag(v_l) φ_lᵀ, the kernel of the rows φ_(m,r) = c_mrᵀ ∂f(x_m)/∂w, by products of matrices.

    Nothing of the size rows times parameters is formed where that is dearer than pairs of factors
    ([`hyprax.evidence.kernel_plan`][] prints which contraction serves which tensor). Differentiable once, in reverse,
    in everything: `hyper`, arrays that `apply` closes over, `inputs`, `cotangents`, `variances` and `params`; the
    derivative takes the cotangents of the factors tensor by tensor and then one recomputed vjp of the model, chunk of
    examples by chunk.

    **Arguments:**

    - `apply`: f = apply(params, hyper, x), outputs (C,) of one example x.
    - `params`: floating-point arrays w_l.
    - `hyper`: any arrays, passed on to `apply`.
    - `inputs`: a pytree of arrays with leading axis M, the examples.
    - `cotangents`: c [M, R, C], R rows for each example.
    - `variances`: v_l = 1/precision, in the structure of `params`: each a scalar or an array like its leaf.
    - `memory`: bytes of working storage to aim at; what is kept of each example does not shrink with it.

    **Returns:** K [M R, M R], rows datum by datum.

    **Raises:** `ValueError` for outputs, cotangents, variances or parameters of a wrong shape or type, and for a model
    with batch statistics, which no function of one example can express.
    """
    plan, given, spread = _arguments(apply, params, hyper, inputs, cotangents, variances)
    return _kernel(plan, memory, given, spread)


def kernels_by_tensor(
    apply: Apply,
    params: PyTree,
    hyper: PyTree,
    inputs: PyTree,
    cotangents: Float[Array, "m r c"],
    *,
    memory: int = MEMORY,
) -> PyTree[Float[Array, "rows rows"]]:
    """K_l = φ_l φ_lᵀ [M R, M R] for each leaf of `params`, rows datum by datum; arguments as for `kernel`."""
    plan, given, _ = _arguments(apply, params, hyper, inputs, cotangents, None)
    features = _features(plan, memory, given)
    used = _used(plan)
    n = math.prod(cotangents.shape[:2])
    grams = [
        tensor_gram(plan, i, features, None, memory) if i in used else jnp.zeros((n, n), leaf.dtype)
        for i, leaf in enumerate(given.params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), grams)


def kernel_matvec(
    apply: Apply,
    params: PyTree,
    hyper: PyTree,
    inputs: PyTree,
    cotangents: Float[Array, "m r c"],
    variances: PyTree[Float[Array, "..."]],
    vector: Float[Array, " rows"],
) -> Float[Array, " rows"]:
    """K v = φ (diag(v_l) (φᵀ v)), by one vjp and one jvp of the model: no row and no kernel is formed."""
    outputs = cotangents.shape[:2]

    def contracted(p: PyTree) -> Array:
        f = jax.vmap(lambda x: apply(p, hyper, x))(inputs)
        return einsum("mrc,mc->mr", cotangents, f)

    _, pull = jax.vjp(contracted, params)
    (gradient,) = pull(vector.reshape(outputs))
    scaled = jax.tree.map(lambda g, v: g * jnp.broadcast_to(v, g.shape), gradient, variances)
    return jax.jvp(contracted, (params,), (scaled,))[1].reshape(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class TensorUse:
    """The rows of a parameter tensor: W̄[b, i, o] = Σ_s a[b, s, i] g[b, s, o] and its place, or as they are.

    Attributes:
        leaf: the name of the leaf, and `number`, its place among the leaves of `params`.
        a, g: [M, B, S, I] and [M, R, B, S, O]; None where the use is no product of matrices.
        places: [B, I, O], the flat position in the leaf of each entry of W̄.
        rows: [M, R, *leaf], the gradients themselves; None where there are a and g.
    """

    leaf: str
    number: int
    a: Array | None = None
    g: Array | None = None
    places: Any = None
    rows: Array | None = None


def uses(
    apply: Apply,
    params: PyTree,
    hyper: PyTree,
    inputs: PyTree,
    cotangents: Float[Array, "m r c"],
    *,
    memory: int = MEMORY,
) -> list[TensorUse]:
    """The factors of the rows of every parameter tensor, wherever it is used by products of matrices only.

    A tensor of which disjoint parts are used apart (a fused query, key and value) has one entry for each part.
    Arguments as for `kernel`.
    """
    plan, given, _ = _arguments(apply, params, hyper, inputs, cotangents, None)
    plan = plan.contracted("columns")
    features = _features(plan, memory, given)
    found = []
    for i in _used(plan):
        tensor = plan.tensors[i]
        if not tensor.groups:
            found.append(TensorUse(tensor.name, i, rows=features["rows"][i]))
        for group in tensor.groups:
            a, g = factors(plan, group, features)
            if group.lookup:
                a = jax.nn.one_hot(a, group.weight.shape[1], dtype=g.dtype)
            found.append(TensorUse(tensor.name, i, a, g, group.weight))
    return found
