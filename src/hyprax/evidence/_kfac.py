"""Kronecker-factored curvature: not a bound, and the common practice to compare with."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ._kernel import TensorUse, uses
from ._problem import Problem
from ._structures import CHUNK_BYTES, AbstractStructure


class KFAC(AbstractStructure):
    """Σ_l Σ_io log(1 + d_i e_o/δ_l), d and e the eigenvalues of A = mean a aᵀ and G = Σ g gᵀ of each use of a tensor.

    a are the inputs of a matrix product (at every datum and position), g the cotangents of its outputs, δ_l the prior
    precision of the tensor, which must be one number. The curvature Σ (a ⊗ g)(a ⊗ g)ᵀ is replaced by A ⊗ G, so the
    result may fall on either side of the truth. Tensors that are not used in products keep their full block.

    Source: Martens and Grosse 2015 (arXiv 1503.05671); for shared weights "expand" of Eschenhagen et al. 2023
    (arXiv 2311.00636).
    """

    exact = False

    def __call__(
        self, problem: Problem, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> Float[Array, ""]:
        variances = jax.tree.leaves(problem.prior.variances(problem.params))
        if any(v.ndim for v in variances):
            raise ValueError("KFAC: given a prior precision for each weight, allowed is one number for each tensor.")
        m, r = cotangents.shape[:2]
        width = sum(leaf.size for leaf in jax.tree.leaves(problem.params)) * np.dtype(problem.dtype).itemsize * r
        length = max(1, min(m, CHUNK_BYTES // width))
        places = jnp.arange(m, dtype=jnp.int32) if data is None else data
        total: PyTree = None
        where: list[int] = []
        for start in range(0, m, length):
            found = uses(
                problem.apply,
                problem.params,
                problem.hyper,
                problem.examples(places[start : start + length]),
                cotangents[start : start + length],
            )
            where = [use.number for use in found]
            moments = [_moments(use, m) for use in found]
            total = moments if total is None else jax.tree.map(jnp.add, total, moments)
        value = jnp.zeros((), cotangents.dtype)
        for index, (left, right) in zip(where, total, strict=True):
            d, e = jnp.linalg.eigvalsh(left), jnp.linalg.eigvalsh(right)
            products = jnp.maximum(d[..., :, None] * e[..., None, :], 0.0)
            value = value + jnp.sum(jnp.log1p(variances[index] * products))
        return value


def _moments(use: TensorUse, examples: int) -> tuple[Float[Array, "b i i"], Float[Array, "b o o"]]:
    """The share of some examples in A (a mean over `examples` and positions) and in G (a sum)."""
    if use.rows is not None:
        rows = use.rows.reshape(-1, int(np.prod(use.rows.shape[2:])))
        share = use.rows.shape[0] / examples  # the chunks' shares add up to 1: the block is G itself
        return jnp.full((1, 1, 1), share, rows.dtype), (rows.T @ rows)[None]
    assert use.a is not None
    assert use.g is not None
    positions = use.a.shape[2]
    left = jnp.einsum("mbsi,mbsj->bij", use.a, use.a) / (examples * positions)
    return left, jnp.einsum("mrbso,mrbsp->bop", use.g, use.g)
