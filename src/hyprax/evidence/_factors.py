"""Factors of I + Σφφᵀ, the posterior precision in units of the prior's: whole, or as a structure has it."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from .._products import einsum, product
from ._kernel import uses
from ._problem import LinearisedModel
from ._structures import (
    EKFAC,
    KFAC,
    AbstractStructure,
    Basis,
    Diagonal,
    TensorBlocks,
    accumulate,
    as_matrices,
    bases,
    check_precisions,
    flat,
    moments,
    projected_squares,
    second_factors,
    summed,
)


def scales_of(problem: LinearisedModel) -> PyTree[Float[Array, "..."]]:
    """P0^-½, each leaf like its tensor."""
    variances = problem.prior.variances(problem.params)
    return jax.tree.map(lambda v, w: jnp.broadcast_to(jnp.sqrt(v), w.shape), variances, problem.params)


def _unit(count: int, outputs: int, dtype: Any) -> Float[Array, "m c c"]:
    return jnp.broadcast_to(jnp.eye(outputs, dtype=dtype), (count, outputs, outputs))


def new_rows(problem: LinearisedModel, inputs: PyTree) -> PyTree[Float[Array, "rows ..."]]:
    """J P0^-½ at new examples, with one axis for all their outputs."""
    there = eqx.tree_at(lambda p: p.inputs, problem, inputs)
    count = jax.tree.leaves(inputs)[0].shape[0]
    rows = there.gradients(None, _unit(count, problem.outputs, problem.dtype))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


class AbstractFactor(eqx.Module):
    """A = I + ΦᵀΦ, Φ = √(N/(M T)) Lᵀ J P0^-½, factored: the covariance of the weights is P0^-½ A⁻¹ P0^-½."""

    @abc.abstractmethod
    def covariance(self, problem: LinearisedModel, inputs: PyTree) -> Float[Array, "m c c"]:
        """s A⁻¹ sᵀ for the rows s = J P0^-½ of each new example."""

    @abc.abstractmethod
    def draw(self, problem: LinearisedModel, key: Array) -> PyTree:
        """ε ~ N(0, A⁻¹), in the structure of the weights."""


class WeightFactor(AbstractFactor):
    """A = R Rᵀ itself, [P, P]: for fewer weights than rows."""

    cholesky: Float[Array, "p p"]

    @classmethod
    def of(cls, problem: LinearisedModel, cotangents: Float[Array, "m c c"]) -> "WeightFactor":
        """From the rows that `cotangents` pick at the examples of the problem."""

        def moment(rows: PyTree) -> Array:
            matrix = flat(rows)
            return product(matrix.T, matrix)

        total = accumulate(problem, None, cotangents, moment)
        return cls(jnp.linalg.cholesky(jnp.eye(total.shape[0], dtype=total.dtype) + total))

    def covariance(self, problem: LinearisedModel, inputs: PyTree) -> Float[Array, "m c c"]:
        count, outputs = jax.tree.leaves(inputs)[0].shape[0], problem.outputs
        rows = flat(new_rows(problem, inputs))
        solved = jax.scipy.linalg.solve_triangular(self.cholesky, rows.T, lower=True).T
        solved = solved.reshape(count, outputs, -1)
        return product(solved, jnp.swapaxes(solved, 1, 2))

    def draw(self, problem: LinearisedModel, key: Array) -> PyTree:
        noise = jax.random.normal(key, self.cholesky.shape[:1], self.cholesky.dtype)
        draw = jax.scipy.linalg.solve_triangular(self.cholesky, noise, lower=True, trans=1)
        return ravel_pytree(problem.params)[1](draw)


class FunctionFactor(AbstractFactor):
    """A⁻¹ = I - Φᵀ(I + ΦΦᵀ)⁻¹Φ with I + ΦΦᵀ = R Rᵀ, [MC, MC]: for many weights; nothing of size P x P is formed.

    Draws are ε - Φᵀ(I + ΦΦᵀ)⁻¹(Φε + η), ε and η standard normal: their covariance is A⁻¹ exactly (Matheron's rule).
    """

    cotangents: Float[Array, "m c c"]
    cholesky: Float[Array, "rows rows"]

    @classmethod
    def of(cls, problem: LinearisedModel, cotangents: Float[Array, "m c c"]) -> "FunctionFactor":
        """From the rows that `cotangents` pick at the examples of the problem."""
        kernel = problem.kernel(None, cotangents)
        return cls(cotangents, jnp.linalg.cholesky(jnp.eye(kernel.shape[0], dtype=kernel.dtype) + kernel))

    def covariance(self, problem: LinearisedModel, inputs: PyTree) -> Float[Array, "m c c"]:
        known, outputs = self.cholesky.shape[0], self.cotangents.shape[2]
        count = jax.tree.leaves(inputs)[0].shape[0]
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), problem.inputs, inputs)
        there = eqx.tree_at(lambda p: p.inputs, problem, both)
        joint = there.kernel(None, jnp.concatenate([self.cotangents, _unit(count, outputs, self.cotangents.dtype)]))
        solved = jax.scipy.linalg.solve_triangular(self.cholesky, joint[:known, known:], lower=True)
        solved = solved.reshape(known, count, outputs)
        own = joint[known:, known:].reshape(count, outputs, count, outputs)
        return einsum("ncnd->ncd", own) - einsum("knc,knd->ncd", solved, solved)

    def draw(self, problem: LinearisedModel, key: Array) -> PyTree:
        scales = scales_of(problem)

        def contracted(scaled: PyTree) -> Array:
            w = jax.tree.map(jnp.multiply, scaled, scales)
            return einsum("mrc,mc->mr", self.cotangents, problem.logits(None, w)).ravel()

        at = jax.tree.map(jnp.divide, problem.params, scales)
        unit_key, noise_key = jax.random.split(key)
        flat, unravel = ravel_pytree(at)
        unit = unravel(jax.random.normal(unit_key, flat.shape, flat.dtype))
        _, image = jax.jvp(contracted, (at,), (unit,))
        noise = jax.random.normal(noise_key, image.shape, image.dtype)
        solved = jax.scipy.linalg.cho_solve((self.cholesky, True), image + noise)
        (back,) = jax.vjp(contracted, at)[1](solved)
        return jax.tree.map(jnp.subtract, unit, back)


class AbstractBlock(eqx.Module):
    """The block A_l = R_l R_lᵀ of one tensor of weights."""

    @abc.abstractmethod
    def whitened(self, rows: Float[Array, "rows ..."]) -> Float[Array, "rows k"]:
        """s R_l⁻ᵀ for rows of the shape of the tensor."""

    @abc.abstractmethod
    def draw(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        """R_l⁻ᵀ ε, in the shape of the tensor, of standard normal ε in it."""


class DiagonalBlock(AbstractBlock):
    """diag(pivots)."""

    pivots: Float[Array, "..."]

    def whitened(self, rows: Float[Array, "rows ..."]) -> Float[Array, "rows k"]:
        return (rows / jnp.sqrt(self.pivots)[None]).reshape(rows.shape[0], -1)

    def draw(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        return noise / jnp.sqrt(self.pivots)


class DenseBlock(AbstractBlock):
    """R Rᵀ itself."""

    cholesky: Float[Array, "p p"]

    def whitened(self, rows: Float[Array, "rows ..."]) -> Float[Array, "rows k"]:
        matrix = rows.reshape(rows.shape[0], -1)
        return jax.scipy.linalg.solve_triangular(self.cholesky, matrix.T, lower=True).T

    def draw(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        drawn = jax.scipy.linalg.solve_triangular(self.cholesky, noise.ravel(), lower=True, trans=1)
        return drawn.reshape(noise.shape)


class EigenBlock(AbstractBlock):
    """(U_A ⊗ U_G) diag(pivots) (U_A ⊗ U_G)ᵀ of a tensor seen as a matrix [I, O]."""

    basis: Basis
    pivots: Float[Array, "i o"]

    def whitened(self, rows: Float[Array, "rows ..."]) -> Float[Array, "rows k"]:
        w = as_matrices(rows)
        if self.basis.left is not None:
            w = einsum("ij,nio->njo", self.basis.left, w)
        if self.basis.right is not None:
            w = einsum("op,nio->nip", self.basis.right, w)
        return (w / jnp.sqrt(self.pivots)[None]).reshape(rows.shape[0], -1)

    def draw(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        w = noise.reshape(self.pivots.shape) / jnp.sqrt(self.pivots)
        if self.basis.left is not None:
            w = product(self.basis.left, w)
        if self.basis.right is not None:
            w = product(w, self.basis.right.T)
        return w.reshape(noise.shape)


class KroneckerBlock(AbstractBlock):
    """I + v A ⊗ G for each part of a tensor that products use, whose entries stand at `places` [B, I, O] of it."""

    places: list[Int[Array, "b i o"]]
    left: list[Float[Array, "b i i"]]
    right: list[Float[Array, "b o o"]]
    pivots: list[Float[Array, "b i o"]]

    def whitened(self, rows: Float[Array, "rows ..."]) -> Float[Array, "rows k"]:
        entries = rows.reshape(rows.shape[0], -1)
        parts = []
        for places, left, right, pivots in zip(self.places, self.left, self.right, self.pivots, strict=True):
            w = entries[:, places.ravel()].reshape(-1, *places.shape)
            w = einsum("nbjo,bop->nbjp", einsum("bij,nbio->nbjo", left, w), right)
            parts.append((w / jnp.sqrt(pivots)[None]).reshape(rows.shape[0], -1))
        return jnp.concatenate(parts, axis=1)

    def draw(self, noise: Float[Array, "..."]) -> Float[Array, "..."]:
        drawn = noise.ravel()  # places that nothing uses keep their prior
        for places, left, right, pivots in zip(self.places, self.left, self.right, self.pivots, strict=True):
            w = noise.ravel()[places] / jnp.sqrt(pivots)
            w = einsum("bip,bop->bio", einsum("bij,bjp->bip", left, w), right)
            drawn = drawn.at[places.ravel()].set(w.ravel())
        return drawn.reshape(noise.shape)


class BlockFactor(AbstractFactor):
    """A, without what tensors of weights have in common: one block for each."""

    blocks: list[AbstractBlock]

    def covariance(self, problem: LinearisedModel, inputs: PyTree) -> Float[Array, "m c c"]:
        count, outputs = jax.tree.leaves(inputs)[0].shape[0], problem.outputs
        total = jnp.zeros((count, outputs, outputs), problem.dtype)
        for block, rows in zip(self.blocks, jax.tree.leaves(new_rows(problem, inputs)), strict=True):
            white = block.whitened(rows).reshape(count, outputs, -1)
            total = total + product(white, jnp.swapaxes(white, 1, 2))
        return total

    def draw(self, problem: LinearisedModel, key: Array) -> PyTree:
        leaves, structure = jax.tree.flatten(problem.params)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            block.draw(jax.random.normal(k, w.shape, problem.dtype))
            for block, w, k in zip(self.blocks, leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn)


def structured(
    problem: LinearisedModel, cotangents: Float[Array, "m c c"], structure: AbstractStructure
) -> BlockFactor:
    """What a structure takes A to be.

    **Raises:** `ValueError` for a structure without a covariance.
    """
    if isinstance(structure, Diagonal):
        squares = accumulate(problem, None, cotangents, lambda x: jax.tree.map(lambda w: jnp.sum(w * w, axis=0), x))
        return BlockFactor([DiagonalBlock(1 + s) for s in jax.tree.leaves(squares)])
    if isinstance(structure, EKFAC):
        into = bases(accumulate(problem, None, cotangents, second_factors))
        squares = accumulate(problem, None, cotangents, lambda x: projected_squares(x, into))
        return BlockFactor([EigenBlock(basis, 1 + s) for basis, s in zip(into, squares, strict=True)])
    if isinstance(structure, TensorBlocks):

        def blocks(x: PyTree) -> list[Array]:
            matrices = [w.reshape(w.shape[0], -1) for w in jax.tree.leaves(x)]
            return [product(w.T, w) for w in matrices]

        found = accumulate(problem, None, cotangents, blocks)
        return BlockFactor([DenseBlock(jnp.linalg.cholesky(jnp.eye(len(b), dtype=b.dtype) + b)) for b in found])
    if isinstance(structure, KFAC):
        return BlockFactor(_kronecker(problem, cotangents))
    raise ValueError(
        "posterior: structure must be None or one of hyprax.evidence.structures, such as KFAC(); got a "
        f"{type(structure).__name__}."
    )


def _kronecker(problem: LinearisedModel, cotangents: Float[Array, "m c c"]) -> list[AbstractBlock]:
    check_precisions(problem)
    m = cotangents.shape[0]
    total = summed(lambda places, rows: moments(problem, places, rows, m), problem, None, cotangents)
    one = problem.examples(jnp.zeros(1, jnp.int32))
    first = uses(problem.apply, problem.params, problem.hyper, one, cotangents[:1])
    blocks: list[AbstractBlock] = []
    variances = jax.tree.leaves(problem.prior.variances(problem.params))
    for number, (leaf, variance) in enumerate(zip(jax.tree.leaves(problem.params), variances, strict=True)):
        places, lefts, rights, pivots = [], [], [], []
        for use, (_, a, g) in zip(first, total, strict=True):
            if use.number != number:
                continue
            own = np.arange(leaf.size).reshape(1, 1, -1) if use.rows is not None else np.asarray(use.places)
            d, left = jnp.linalg.eigh(a)
            e, right = jnp.linalg.eigh(g)
            products = jnp.maximum(d[:, :, None] * e[:, None, :], 0.0)
            places.append(own)
            lefts.append(left)
            rights.append(right)
            pivots.append(1 + variance * products)
        used = KroneckerBlock([jnp.asarray(p) for p in places], lefts, rights, pivots)
        blocks.append(used if places else DiagonalBlock(jnp.ones_like(leaf)))
    return blocks
