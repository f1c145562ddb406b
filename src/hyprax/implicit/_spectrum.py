"""Bounds μ and L of the eigenvalues of a Hessian: given, known from a family's structure, or estimated."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._products import product as _product
from ._constants import Spectrum
from ._inner_loss import Product

LANCZOS_STEPS = 12


def estimated_spectrum(product: Product, like: PyTree) -> Spectrum:
    """The extreme Ritz values of A after a few Lanczos steps, the upper one raised by the norm of its residual.

    The upper estimate is in practice an upper bound (Zhou and Li 2011); the lower is one of μ from ABOVE, which slows
    a momentum method and does not make it diverge. `LANCZOS_STEPS` products, three vectors.
    """
    flat, unravel = ravel_pytree(like)
    steps = min(LANCZOS_STEPS, flat.size)
    start = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
    tiny = jnp.finfo(flat.dtype).eps

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        before, now, beta = carry
        image = ravel_pytree(product(unravel(now)))[0] - beta * before
        alpha = _product(image, now)
        rest = image - alpha * now
        norm = jnp.linalg.norm(rest)
        # An invariant subspace ends the recursion: what follows is a zero vector, left out of the matrix below.
        norm = jnp.where(norm > 100 * tiny * jnp.abs(alpha), norm, 0)
        following = jnp.where(norm > 0, rest / jnp.where(norm > 0, norm, 1), jnp.zeros_like(rest))
        return (now, following, norm), (alpha, norm)

    first = (jnp.zeros_like(start), start / jnp.linalg.norm(start), jnp.zeros((), flat.dtype))
    _, (alphas, betas) = jax.lax.scan(step, first, length=steps)
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(betas[:-1] > 0) > 0])
    diagonal = jnp.where(alive, alphas, alphas[0])
    off = jnp.where(alive[1:], betas[:-1], 0)
    values, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1))
    last = jnp.where(alive[-1], betas[-1], 0)
    return Spectrum(values[0], values[-1] + last * jnp.max(jnp.abs(vectors[-1])))


def resolve(
    lower: float | Array | None,
    upper: float | Array | None,
    known: tuple[Array, Array] | None,
    product: Product,
    like: PyTree,
) -> tuple[Spectrum, bool, int]:
    """μ and L from what the user gave, else from the family, else estimated; whether L is a guess; products taken.

    An estimated μ is at least 10⁻⁶ L, so that a step and a momentum exist whatever was measured.
    """
    dtype = jnp.result_type(*jax.tree.leaves(like))
    if known is not None:
        lower, upper = (theirs if given is None else given for theirs, given in zip(known, (lower, upper), strict=True))
    if lower is not None and upper is not None:
        return Spectrum(jnp.asarray(lower, dtype), jnp.asarray(upper, dtype)), False, 0
    guess = estimated_spectrum(product, like)
    top = guess.upper if upper is None else jnp.asarray(upper, dtype)
    bottom = jnp.maximum(guess.lower, 1e-6 * top) if lower is None else jnp.asarray(lower, dtype)
    return Spectrum(bottom, top), upper is None, min(LANCZOS_STEPS, sum(leaf.size for leaf in jax.tree.leaves(like)))


def check_spectrum(name: str, lower: float | Array | None, upper: float | Array | None) -> None:
    """Refuse constants given as numbers that no Hessian has."""
    for word, value in (("strong_convexity", lower), ("smoothness", upper)):
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{name}: {word} must be a number > 0 or None; got {value}.")
    if isinstance(lower, int | float) and isinstance(upper, int | float) and lower > upper:
        raise ValueError(f"{name}: strong_convexity must not exceed smoothness; got {lower} > {upper}.")
