"""What a set of rows is reduced to: log|I + Σ φφᵀ| in full, or by blocks, in a Kronecker basis, or on a diagonal.

φ are rows scaled by P0^-½, so that the prior is the identity. Every reduction but KFAC and the last layer is from
above: the determinant of a positive definite matrix is at most the product of those of its diagonal blocks (Fischer),
or of its diagonal (Hadamard) in any orthonormal basis.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._products import einsum, product
from ._chain import LogDeterminant, log_determinant
from ._kernel import TensorUse, uses
from ._problem import GaussianPrior, LinearisedModel, restricted

CHUNK_BYTES = 2**27
LARGEST_UNROLLED = 16
"""The most chunks that are compiled one by one."""
LARGEST_BASIS = 2048
"""The longest side of a matrix of weights for which an eigenbasis is formed; longer ones keep their own axes."""


class AbstractStructure(eqx.Module):
    """A reduction of log|I + Σ φφᵀ| over the rows `cotangents` at the examples `data`."""

    exact: ClassVar[bool]
    """Whether the result is never below the truth."""

    @abc.abstractmethod
    def __call__(
        self, problem: LinearisedModel, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> LogDeterminant:
        """The reduction: `upper`, and `lower` where it is log|I + Σ φφᵀ| itself."""

    def random(self, problem: LinearisedModel) -> LinearisedModel:
        """The problem in the weights that are random, where these are not all."""
        return problem


def accumulate(
    problem: LinearisedModel,
    data: Int[Array, " m"] | None,
    cotangents: Float[Array, "m r c"],
    summand: Callable[[PyTree], PyTree],
) -> PyTree:
    """Σ over chunks of examples of `summand(rows)`, rows with leaves [M' R, *shape] scaled by P0^-½.

    Chunks are computed again for the derivative instead of being kept.
    """

    @eqx.filter_checkpoint
    def part(problem: LinearisedModel, places: Array, rows: Array) -> PyTree:
        gradients = problem.gradients(places, rows)
        return summand(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), gradients))

    return summed(lambda places, rows: part(problem, places, rows), problem, data, cotangents)


def summed(
    part: Callable[[Array, Array], PyTree],
    problem: LinearisedModel,
    data: Int[Array, " m"] | None,
    cotangents: Float[Array, "m r c"],
) -> PyTree:
    """Σ part(places, rows) over chunks of as many examples as `CHUNK_BYTES` of gradients hold.

    A few chunks are laid out one after the other, since convolutions are slow in a loop of the compiler's on a CPU;
    many are a loop, so that what is compiled does not grow with the data.
    """
    m, r = cotangents.shape[:2]
    width = sum(leaf.size for leaf in jax.tree.leaves(problem.params)) * np.dtype(problem.dtype).itemsize * r
    length = max(1, min(m, CHUNK_BYTES // width))
    places = jnp.arange(m, dtype=jnp.int32) if data is None else data
    chunks = m // length
    looped = chunks - 1 if chunks > LARGEST_UNROLLED else 0
    total = part(places[:length], cotangents[:length])
    if looped:
        end = (1 + looped) * length
        over = [x[length:end].reshape(looped, length, *x.shape[1:]) for x in (places, cotangents)]
        total, _ = jax.lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, part(*x)), None), total, tuple(over))
    for start in range((1 + looped) * length, m, length):
        some = slice(start, start + length)
        total = jax.tree.map(jnp.add, total, part(places[some], cotangents[some]))
    return total


def without_precisions(problem: LinearisedModel) -> tuple[LinearisedModel, list[Float[Array, ""]]]:
    """The problem with δ_l = 1 for each tensor that has one precision δ_l, and 1/δ_l for all (1 for the others).

    Second moments are then those of that problem over δ_l, and their derivative in δ_l needs no second pass.
    """
    full = jax.tree.broadcast(problem.prior.precision, problem.params)
    units = [v if v.ndim == 0 else jnp.ones((), v.dtype) for v in _variances(problem)]
    prior = GaussianPrior(jax.tree.map(lambda p: p if p.ndim else jnp.ones_like(p), full), problem.prior.mean)
    return eqx.tree_at(lambda p: p.prior, problem, prior), units


def _variances(problem: LinearisedModel) -> list[Float[Array, "..."]]:
    return jax.tree.leaves(problem.prior.variances(problem.params))


def flat(rows: PyTree) -> Float[Array, "rows p"]:
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(rows)]
    return jnp.concatenate(leaves, axis=1)


def _moment(rows: Float[Array, "rows p"]) -> Float[Array, "p p"]:
    return product(rows.T, rows)


class Full(AbstractStructure):
    """log|I + K| itself, in the smaller of the two spaces: of rows [MR, MR], or of weights [P, P]."""

    exact = True

    def __call__(
        self, problem: LinearisedModel, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> LogDeterminant:
        rows = cotangents.shape[0] * cotangents.shape[1]
        if rows <= problem.count:
            return log_determinant(problem.kernel(data, cotangents))
        return log_determinant(accumulate(problem, data, cotangents, lambda x: _moment(flat(x))))


class TensorBlocks(AbstractStructure):
    """Σ_l log|I + K_l| over the tensors of weights l, each in the smaller of its two spaces: never below the truth."""

    exact = True

    def __call__(
        self, problem: LinearisedModel, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> LogDeterminant:
        rows = cotangents.shape[0] * cotangents.shape[1]
        leaves, structure = jax.tree.flatten(problem.params)
        small = [place for place, leaf in enumerate(leaves) if leaf.size < rows]

        def moments(x: PyTree) -> list[Array]:
            tensors = jax.tree.leaves(x)
            return [_moment(flat(tensors[place])) for place in small]

        parts = [log_determinant(moment) for moment in accumulate(problem, data, cotangents, moments)] if small else []
        variances = _variances(problem)
        for place in range(len(leaves)):
            if place not in small:
                alone = [v if other == place else jnp.zeros_like(v) for other, v in enumerate(variances)]
                kernel = problem.kernel(data, cotangents, jax.tree.unflatten(structure, alone))
                parts.append(log_determinant(kernel))
        upper, rounding = (
            functools.reduce(jnp.add, x) for x in zip(*((p.upper, p.rounding) for p in parts), strict=True)
        )
        return LogDeterminant(upper, None, rounding)


class Diagonal(AbstractStructure):
    """Σ_i log(1 + Σ φ_i²) over the single weights i: never below the truth, and the loosest."""

    exact = True

    def __call__(
        self, problem: LinearisedModel, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> LogDeterminant:
        plain, units = without_precisions(problem)

        def squares(x: PyTree) -> list[Array]:
            return [jnp.sum(jnp.square(leaf), axis=0) for leaf in jax.tree.leaves(x)]

        return _of_eigenvalues(units, accumulate(plain, data, cotangents, squares))


class LastLayer(AbstractStructure):
    """Some tensors alone are random, the others are constants of the model: the evidence of a last-layer posterior.

    Everything that the weights enter, the penalty and the log-determinant alike, is then over the chosen tensors; the
    prior precisions of the others have no part in it, and no derivative.

    **Arguments:**

    - `where`: picks the tensors from the weights, as `lambda params: params["head"]`.
    - `within`: the structure of the chosen tensors; default all of it.
    """

    where: Callable[[Any], Any] = eqx.field(static=True)
    within: AbstractStructure = Full()

    exact = False  # below the truth of the whole model

    def random(self, problem: LinearisedModel) -> LinearisedModel:
        return self.within.random(restricted("LastLayer", problem, self.where)[0])

    def __call__(
        self, problem: LinearisedModel, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> LogDeterminant:
        found = self.within(self.random(problem), data, cotangents)
        return LogDeterminant(found.upper, None, found.rounding)


class Basis(eqx.Module):
    """Orthonormal U_A [I, I] and U_G [O, O] of one tensor of weights seen as a matrix [I, O]; `None` for the axes."""

    left: Float[Array, "i i"] | None
    right: Float[Array, "o o"] | None


Factors: TypeAlias = list[tuple[Array | None, Array | None]]
"""A [I, I] and G [O, O] of each tensor; `None` for a side that keeps its own axes."""


def as_matrices(rows: Float[Array, "rows ..."]) -> Float[Array, "rows i o"]:
    """The rows of one tensor as matrices: its axes split where the two sides add up to the least."""
    shape = rows.shape[1:]
    if len(shape) < 2:
        return rows.reshape(rows.shape[0], -1, 1)
    sides = [(int(np.prod(shape[:k])), int(np.prod(shape[k:]))) for k in range(1, len(shape))]
    return rows.reshape(rows.shape[0], *min(sides, key=sum))


def second_factors(rows: PyTree) -> Factors:
    """A = Σ W Wᵀ and G = Σ Wᵀ W for every tensor, W a row seen as a matrix."""

    def factors(leaf: Array) -> tuple[Array | None, Array | None]:
        w = as_matrices(leaf)
        left = einsum("nio,njo->ij", w, w) if w.shape[1] <= LARGEST_BASIS else None
        right = einsum("nio,nip->op", w, w) if 1 < w.shape[2] <= LARGEST_BASIS else None
        return left, right

    return [factors(leaf) for leaf in jax.tree.leaves(rows)]


def bases(factors: Factors) -> list[Basis]:
    """The eigenvectors of the factors."""

    def vectors(factor: Array | None) -> Array | None:
        return None if factor is None else jnp.linalg.eigh(factor)[1]

    return [Basis(vectors(left), vectors(right)) for left, right in factors]


def projected_squares(rows: PyTree, into: list[Basis]) -> list[Float[Array, "i o"]]:
    """ŝ_io = Σ (U_Aᵀ W U_G)_io² for every tensor: the second moments in its Kronecker basis."""

    def squares(leaf: Array, basis: Basis) -> Array:
        w = as_matrices(leaf)
        if basis.left is not None:
            w = einsum("ij,nio->njo", basis.left, w)
        if basis.right is not None:
            w = einsum("op,nio->nip", basis.right, w)
        return jnp.sum(jnp.square(w), axis=0)

    return [squares(leaf, basis) for leaf, basis in zip(jax.tree.leaves(rows), into, strict=True)]


class EKFAC(AbstractStructure):
    """Σ_l Σ_io log(1 + ŝ_io), ŝ_io = Σ (U_Aᵀ W U_G)_io²: exact second moments in a Kronecker eigenbasis of each tensor.

    A bound, by Hadamard in the rotated basis, for any prior precision of each weight, since rows are scaled by it
    first. U_A and U_G are the eigenvectors of Σ W Wᵀ and Σ Wᵀ W over the rows themselves, seen as matrices, so that
    shared weights (convolutions) are treated exactly. Source: George et al. 2018 (arXiv 1806.03884), for the idea of
    corrected eigenvalues.

    The derivative is that of the bound in the basis found, which it holds fixed. The basis turns with precisions of
    single weights and with hyperparameters of the model, so there it is not the derivative of the value, and can
    differ from it in sign.
    """

    exact = True

    def __call__(
        self, problem: LinearisedModel, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> LogDeterminant:
        plain, units = without_precisions(problem)
        constant = accumulate(plain.constant(), data, jax.lax.stop_gradient(cotangents), second_factors)
        into = bases(jax.lax.stop_gradient(constant))
        squares = accumulate(plain, data, cotangents, lambda x: projected_squares(x, into))
        return _of_eigenvalues(units, squares)


def _of_eigenvalues(units: list[Float[Array, ""]], squares: list[Array]) -> LogDeterminant:
    """Σ_l Σ log(1 + s_l/δ_l)."""
    terms = [jnp.sum(jnp.log1p(u * s)) for u, s in zip(units, squares, strict=True)]
    return LogDeterminant(functools.reduce(jnp.add, terms))


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
        self, problem: LinearisedModel, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> LogDeterminant:
        check_precisions(problem)
        m = cotangents.shape[0]
        total = summed(lambda places, rows: moments(problem, places, rows, m), problem, data, cotangents)
        return LogDeterminant(reduced(problem, spectra(total)))


Moments: TypeAlias = list[tuple[Numbered, Float[Array, "_ _ _"], Float[Array, "_ _ _"]]]
"""For each use of a tensor: the number of its leaf, A and G, of B groups."""

Spectra: TypeAlias = list[tuple[Numbered, Float[Array, "_ _"], Float[Array, "_ _"]]]
"""For each use of a tensor: the number of its leaf, and the eigenvalues of A and G."""


def check_precisions(problem: LinearisedModel) -> None:
    """Refuse precisions that no product of two factors can hold."""
    if any(v.ndim for v in jax.tree.leaves(problem.prior.variances(problem.params))):
        raise ValueError("KFAC: a prior precision must be one number for each tensor; got one for each weight.")


def moments(problem: LinearisedModel, data: Int[Array, " m"], cotangents: Float[Array, "m r c"], total: int) -> Moments:
    """The share of some of `total` examples in A (a mean over examples and positions) and in G (a sum)."""
    found = uses(problem.apply, problem.params, problem.hyper, problem.examples(data), cotangents)
    return [(Numbered(use.number), *_moments(use, total)) for use in found]


def spectra(total: Moments) -> Spectra:
    """The eigenvalues of all factors."""
    return [(number, jnp.linalg.eigvalsh(left), jnp.linalg.eigvalsh(right)) for number, left, right in total]


def reduced(problem: LinearisedModel, found: Spectra) -> Float[Array, ""]:
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
