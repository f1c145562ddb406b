"""Kronecker-factored curvature: not a bound, and the common practice to compare with."""

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._products import einsum, product
from ._chain import LogDeterminant
from ._kernel import TensorUse, uses
from ._problem import Problem
from ._structures import AbstractStructure, summed


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Numbered:
    """The place of a tensor among the leaves of the weights, which no transformation turns into an array."""

    value: int


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
    ) -> LogDeterminant:
        check_precisions(problem)
        m = cotangents.shape[0]
        total = summed(lambda places, rows: moments(problem, places, rows, m), problem, data, cotangents)
        return LogDeterminant(reduced(problem, spectra(total)))


Moments: TypeAlias = list[tuple[Numbered, Float[Array, "_ _ _"], Float[Array, "_ _ _"]]]
"""For each use of a tensor: the number of its leaf, A and G, of B groups."""

Spectra: TypeAlias = list[tuple[Numbered, Float[Array, "_ _"], Float[Array, "_ _"]]]
"""For each use of a tensor: the number of its leaf, and the eigenvalues of A and G."""


def check_precisions(problem: Problem) -> None:
    """Refuse precisions that no product of two factors can hold."""
    if any(v.ndim for v in jax.tree.leaves(problem.prior.variances(problem.params))):
        raise ValueError("KFAC: given a prior precision for each weight, allowed is one number for each tensor.")


def moments(problem: Problem, data: Int[Array, " m"], cotangents: Float[Array, "m r c"], total: int) -> Moments:
    """The share of some of `total` examples in A (a mean over examples and positions) and in G (a sum)."""
    found = uses(problem.apply, problem.params, problem.hyper, problem.examples(data), cotangents)
    return [(Numbered(use.number), *_moments(use, total)) for use in found]


def spectra(total: Moments) -> Spectra:
    """The eigenvalues of all factors."""
    return [(number, jnp.linalg.eigvalsh(left), jnp.linalg.eigvalsh(right)) for number, left, right in total]


def reduced(problem: Problem, found: Spectra) -> Float[Array, ""]:
    """Σ_l Σ_io log(1 + d_i e_o/δ_l)."""
    variances = jax.tree.leaves(problem.prior.variances(problem.params))
    value = jnp.zeros((), problem.dtype)
    for number, d, e in found:
        products = jnp.maximum(d[..., :, None] * e[..., None, :], 0.0)
        value = value + jnp.sum(jnp.log1p(variances[number.value] * products))
    return value


def _moments(use: TensorUse, examples: int) -> tuple[Float[Array, "b i i"], Float[Array, "b o o"]]:
    """The share of some examples in A (a mean over `examples` and positions) and in G (a sum)."""
    if use.rows is not None:
        rows = use.rows.reshape(-1, int(np.prod(use.rows.shape[2:])))
        share = use.rows.shape[0] / examples  # the chunks' shares add up to 1: the block is G itself
        return jnp.full((1, 1, 1), share, rows.dtype), product(rows.T, rows)[None]
    assert use.a is not None
    assert use.g is not None
    positions = use.a.shape[2]
    left = einsum("mbsi,mbsj->bij", use.a, use.a) / (examples * positions)
    return left, einsum("mrbso,mrbsp->bop", use.g, use.g)
