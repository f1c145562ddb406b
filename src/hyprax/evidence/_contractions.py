"""The Gram matrix of one parameter tensor, from its factors a, g or from its gradients.

For rows φ_mr = Σ_s a_ms g_mrsᵀ (b understood), K_(mr)(nq) = <φ_mr, φ_nq> is, pairwise,

    Σ_bst (a_mbs·a_nbt) (g_mrbs·g_nqbt) = Σ_bt (Σ_s (a_mbs·a_nbt) g_mrbs) · g_nqbt,

in which nothing of the tensor's size is formed, and the sum over s is taken before rows meet rows; or by gradients,
W̄[b, i, o] = Σ_s a[b, s, i] g[b, s, o] a few columns at a time.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._products import einsum
from ._plan import CACHE, Group, KernelPlan, Tensor

Features = dict[str, dict[int, Array]]
"""Of M examples: "operand" and "ids" [M, raw operand] and "cotangent" [M, R, raw output] by number of use, "rows"
by number of leaf: [M, R, *leaf], or [M, R, entries] in the order of `gradient_places` of the leaf's groups."""

_TILE = 2**24
"""Bytes of gradients that are formed at a time."""


def example_factors(plan: KernelPlan, group: Group, features: Features) -> tuple[Array, Array]:
    """a [B, S, I], or row numbers [B, S] for look-ups, and g [R, B, S, O] of one example: a group as one use."""
    which = "ids" if group.lookup else "operand"
    operands, cotangents = [], []
    for number in group.uses:
        layout = plan.uses[number].layout
        operands.append(layout.operand(features[which][number]))
        cotangents.append(jax.vmap(layout.cotangent)(features["cotangent"][number]))
    if len(operands) == 1:
        return operands[0], cotangents[0]
    return jnp.concatenate(operands, axis=1), jnp.concatenate(cotangents, axis=2)


def example_gradient(group: Group, a: Array, g: Array) -> Array:
    """W̄ [R, B, O, I] of one example: the rows and the outputs as one side of a matrix product."""
    if group.lookup:
        rows = jnp.arange(group.weight.shape[1], dtype=a.dtype).reshape(1, 1, -1)
        a = (a[..., None] == rows).astype(g.dtype)
    r, b, s, o = g.shape
    merged = einsum("bks,bsi->bki", g.transpose(1, 0, 3, 2).reshape(b, r * o, s), a)
    return merged.reshape(b, r, o, -1).swapaxes(0, 1)


def gradient_places(group: Group) -> np.ndarray:
    """The places in the tensor of the entries of W̄ [B, O, I]."""
    return group.weight.swapaxes(1, 2)


def factors(plan: KernelPlan, group: Group, features: Features) -> tuple[Array, Array]:
    """a [M, B, S, I] or [M, B, S], and g [M, R, B, S, O]."""
    return jax.vmap(lambda one: example_factors(plan, group, one))(features)


def _pairwise(group: Group, a: Array, g: Array, memory: int) -> Array:
    """[M, R, M, R]."""
    m, r, b, s, o = g.shape
    if s == 1 and not group.lookup:
        a, g = a[:, :, 0], g[:, :, :, 0]
        if b == 1:
            return einsum("mi,ni->mn", a[:, 0], a[:, 0])[:, None, :, None] * einsum(
                "mro,nqo->mrnq", g[:, :, 0], g[:, :, 0]
            )
        return einsum("bmn,bmrnq->mrnq", einsum("mbi,nbi->bmn", a, a), einsum("mrbo,nqbo->bmrnq", g, g))

    # Each pair of examples once, tile by tile, those of the first with the half circle of tiles that follow it.
    each = g.dtype.itemsize * b * s * r * (o + s)
    tiles = math.ceil(m / min(m, max(1, min(memory, CACHE) // (each * math.ceil(m / 2)))))
    size = math.ceil(m / tiles)
    tiles = math.ceil(m / size)
    window, total = tiles // 2 + 1, tiles * size
    counted = np.ones(window)
    counted[0] = 0.5  # twice in K + Kᵀ
    if tiles % 2 == 0:
        counted[-1] = 0.5
    share = jnp.repeat(jnp.asarray(counted, g.dtype), size).reshape(1, 1, -1, 1)

    def around(x: Array, padding: int) -> Array:
        x = jnp.pad(x, ((0, total - m), *[(0, 0)] * (x.ndim - 1)), constant_values=padding)
        return jnp.concatenate([x, x[: (window - 1) * size]])

    a, g = around(a, -1 if group.lookup else 0), around(g, 0)

    def some(start: Array) -> Array:
        a_some, g_some = (lax.dynamic_slice_in_dim(x, start, size) for x in (a, g))
        a_next, g_next = (lax.dynamic_slice_in_dim(x, start, size * window) for x in (a, g))
        if group.lookup:
            same = a_some[:, :, :, None, None] == a_next.transpose(1, 0, 2)[None, :, None]
            inner = jnp.moveaxis((same & (a_some >= 0)[..., None, None]).astype(g.dtype), 3, 1)
        else:
            inner = einsum("mbsi,nbti->mnbst", a_some, a_next)
        # Every pair and row as a product of its own: of all orders the one in which nothing large is transposed.
        batch = (size, size * window, r, b)
        inner = jnp.broadcast_to(inner[:, :, None], (*batch, s, s)).reshape(-1, s, s)
        follow = jnp.broadcast_to(g_next, (*batch, s, o)).reshape(-1, s, o)
        moved = einsum("xst,xto->xso", inner, follow).reshape(size, -1, b * s * o)
        part = einsum("mrp,mxp->mrx", g_some.reshape(size, r, -1), moved).reshape(size, r, -1, r) * share
        wide = jnp.zeros((size, r, total + (window - 1) * size, r), g.dtype)
        wide = lax.dynamic_update_slice_in_dim(wide, part, start, 2)
        return wide[:, :, :total].at[:, :, : (window - 1) * size].add(wide[:, :, total:])

    half = lax.map(jax.checkpoint(some), jnp.arange(0, total, size)).reshape(total, r, total, r)
    return (half + half.transpose(2, 3, 0, 1))[:m, :, :m]


def _by_columns(group: Group, a: Array, g: Array, variance: Array | None, memory: int) -> Array:
    """[M, R, M, R]; with a variance [B, O, I] of each entry of the tensor."""
    m, r = g.shape[:2]
    b, i, o = group.weight.shape
    over_inputs = i >= o and not group.lookup
    side = i if over_inputs else o
    n = min(math.ceil(g.dtype.itemsize * m * r * b * i * o / min(memory, _TILE)), side)
    width = math.ceil(side / n)

    def pieces(x: Array, axis: int) -> Array:
        """[pieces, ..., width], the last filled up with zeros."""
        count = math.ceil(side / width)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, count * width - side)
        x = jnp.pad(x, padding)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], count, width, *x.shape[axis + 1 :]), axis, 0)

    # Parts of the examples, so that half of the product of all with all is enough; cut and transposed once, not in each
    # piece.
    bounds = np.linspace(0, m, min(m, 4, 1 + m * r // 128) + 1).astype(int)
    parts = [(a[lo:hi], g[lo:hi].transpose(0, 1, 2, 4, 3)) for lo, hi in itertools.pairwise(bounds)]
    v_pieces = None if variance is None else pieces(variance, 2 if over_inputs else 1)

    def rows(a: Array, g: Array) -> Array:
        formed = jax.vmap(lambda a, g: example_gradient(group, a, g))(a, g.swapaxes(3, 4))
        return formed.reshape(a.shape[0] * r, -1)

    def add(total: Array, piece: tuple[list[Array], Array | None]) -> tuple[Array, None]:
        some, variance_some = piece
        if over_inputs:
            formed = [rows(a, g) for a, (_, g) in zip(some, parts, strict=True)]
        else:
            formed = [rows(a, g) for g, (a, _) in zip(some, parts, strict=True)]
        return total + _symmetric(formed, variance_some), None

    total = jnp.zeros((m * r, m * r), g.dtype)
    some = [pieces(a if over_inputs else g, 3) for a, g in parts]
    total, _ = lax.scan(jax.checkpoint(add), total, (some, v_pieces))
    return total.reshape(m, r, m, r)


def _symmetric(parts: list[Array], variance: Array | None) -> Array:
    """rows diag(variance) rowsᵀ of rows in parts, each pair of parts once."""
    blocks: list[list[Array]] = []
    for k, part in enumerate(parts):
        weighted = part if variance is None else part * variance.reshape(1, -1)
        left = [blocks[j][k].T for j in range(k)]
        blocks.append(left + [einsum("ip,jp->ij", weighted, other) for other in parts[k:]])
    return jnp.block(blocks)


def gram(rows: Array, variance: Array | None) -> Array:
    """rows diag(variance) rowsᵀ."""
    return _symmetric([rows], variance)


def tensor_gram(
    plan: KernelPlan, number: int, features: Features, variance: Array | None, memory: int
) -> Float[Array, "rows rows"]:
    """K_l of leaf `number`, weighted by the variance of each of its parameters if given (an array like the leaf)."""
    tensor: Tensor = plan.tensors[number]
    if tensor.contraction == "gradient":
        rows = features["rows"][number]
        if variance is not None and tensor.groups:
            places = np.concatenate([gradient_places(group).reshape(-1) for group in tensor.groups])
            variance = variance.reshape(-1)[places]
        return gram(rows.reshape(rows.shape[0] * rows.shape[1], -1), variance)
    total: Array | None = None
    for group in tensor.groups:
        a, g = factors(plan, group, features)
        if tensor.contraction == "pairwise":
            if variance is not None:
                raise ValueError("no pairwise contraction with a variance for each parameter")
            part = _pairwise(group, a, g, memory)
        else:
            placed = None if variance is None else variance.reshape(-1)[gradient_places(group)]
            part = _by_columns(group, a, g, placed, memory)
        total = part if total is None else total + part
    assert total is not None
    return total.reshape(total.shape[0] * total.shape[1], -1)


def in_chunks(function: Callable, arrays: tuple, size: int, unrolled: bool = False):
    """function(*arrays), mapped over the leading axis in chunks, each recomputed when differentiated.

    `unrolled`: no loop is left to the compiler, whose convolutions inside loops are far slower on CPU.
    """
    m = jax.tree.leaves(arrays)[0].shape[0]
    if size >= m:
        return function(*arrays)
    again = jax.checkpoint(function)
    cut = 0 if unrolled else m - m % size
    parts = [again(*jax.tree.map(lambda x, k=k: x[k : k + size], arrays)) for k in range(cut, m, size)]
    if not unrolled:
        chunks = jax.tree.map(lambda x: x[:cut].reshape(-1, size, *x.shape[1:]), arrays)
        looped = lax.map(lambda chunk: again(*chunk), chunks)
        parts.insert(0, jax.tree.map(lambda x: x.reshape(cut, *x.shape[2:]), looped))
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
