"""Columns without penalty, eliminated: what the Hessian is above where the penalty alone is above nothing."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._products import product
from ._adjoint_solvers import conjugate_gradients
from ._constants import INFLATION, UNIT
from ._inner_loss import Point
from .families._chunked import Chunked
from .families._generalised_linear import GeneralisedLinear

MOST_FREE = 2000  # free weights: their block is dense, and factorised
SHARE = 0.5  # of the penalty, that what the Hessian is above keeps


def free_weights(loss: GeneralisedLinear) -> int:
    """How many weights carry no penalty."""
    return 0 if loss.free is None else loss.free.columns.size * math.prod(loss.shape[1:])


def eliminated(loss: GeneralisedLinear, point: Point, hyper: PyTree) -> tuple[Float[Array, "d *C"], Int[Array, ""]]:
    """A diagonal M with A(ŵ) ⪰ M, and how many products with A it took.

    θΛ at the weights with a penalty, θ = ½; NaN at the others where none is proved.

    With p and f the weights with and without penalty, P = A_pp - θΛ ⪰ (1 - θ)Λ, and any matrix K, which is to be near
    P⁻¹A_pf: put B = (-K; I), T = (A - θΛ)B, so that -T_p = A_pf - PK is a residual. For every v, completing the square,

        vᵀ(A - θΛ)v >= v_fᵀ(BᵀT - T_pᵀP⁻¹T_p)v_f >= v_fᵀ(BᵀT - T_pᵀ((1 - θ)Λ)⁻¹T_p)v_f,

    so M_f = σ diag(BᵀT) is safe for σ at most the least eigenvalue of the matrix in brackets, scaled to a diagonal of
    ones: the Schur complement of the penalised block. A Cholesky factor of BᵀT - σ₀I, so scaled, proves σ₀ less its
    own rounding (Higham 2002, theorem 10.3), that of BᵀT, and the residual's part. Nothing is assumed of K, which
    conjugate gradients find, one column at a time.

    Source: own derivation; elimination of nuisance parameters is Schur's complement.
    """
    assert loss.free is not None  # nothing is to be eliminated otherwise
    strengths, mask = loss.strengths(hyper), loss.free.mask(loss.shape)
    kept = SHARE * strengths
    rest = jnp.where(mask, 1, strengths - kept)
    apply, solve = loss.product(point, hyper), loss.preconditioner(point, hyper)
    size, count = mask.size, free_weights(loss)

    def penalised(v: Array) -> Array:
        return jnp.where(mask, 0, v)

    def scaled(v: Array) -> Float[Array, ""]:
        return jnp.sqrt(jnp.sum(jnp.square(penalised(v)) / rest))

    places = jnp.flatnonzero(mask, size=count)

    def column(place: Array) -> tuple[Array, Array, Array, Array]:
        unit = jnp.zeros(size, strengths.dtype).at[place].set(1).reshape(mask.shape)
        image = apply(unit)
        found = conjugate_gradients(
            lambda v: penalised(apply(v) - kept * v),
            penalised(image),
            1e-8 * jnp.sqrt(image.ravel()[place]),
            norm=scaled,
            preconditioner=lambda v: penalised(solve(penalised(v))),
            max_steps=2 * size + 20,
        )
        basis = unit - penalised(found.value)
        whole = apply(basis)
        image = whole - kept * basis
        rounding = loss.rounding(point, hyper, basis, UNIT).product
        error = rounding + 2 * UNIT * (jnp.abs(image) + kept * jnp.abs(basis))
        return basis, image, error, found.steps + 2

    basis, image, error, products = jax.lax.map(
        column, places, batch_size=None if isinstance(loss.inputs, Chunked) else 64
    )
    flat, images, errors = (x.reshape(count, size) for x in (basis, image, error))
    inverse = jnp.where(mask, 0, 1 / rest).reshape(1, size)
    left = jnp.sum(jnp.square(jnp.abs(images) + errors) * inverse, axis=1)
    schur = product(flat, images.T)
    schur = 0.5 * (schur + schur.T)
    off = product(jnp.abs(flat), errors.T) + (size + 16) * UNIT * product(jnp.abs(flat), jnp.abs(images).T)
    scale = 1 / jnp.sqrt(jnp.diagonal(schur))
    schur, off = (scale[:, None] * x * scale[None, :] for x in (schur, off))
    guess = 0.95 * jnp.linalg.eigvalsh(schur)[0]
    factor = jnp.linalg.cholesky(schur - guess * jnp.eye(count, dtype=schur.dtype))
    lost = (count + 16) * UNIT * jnp.sum(jnp.square(factor)) + 8 * count * UNIT
    lost = INFLATION * (lost + jnp.linalg.norm(off) + jnp.sum(left * jnp.square(scale)))
    least = (guess - lost) / INFLATION
    proved = jnp.where((least > 0) & jnp.all(jnp.isfinite(factor)), least, jnp.nan)
    own = proved / (INFLATION * jnp.square(scale))
    return kept.ravel().at[places].set(own).reshape(mask.shape), jnp.sum(products)
